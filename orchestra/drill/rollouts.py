"""What the drill knows of jobs that roll: whose turn it is, and when to stop. It shares no rule with what it judges.

Everything is read from the request, the names of the hosts, and the order of the job's events.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from orchestra.drill.case import OUTCOMES, Case, TaskCase
from orchestra.drill.evidence import Seen
from orchestra.model import Rolling

if TYPE_CHECKING:
    from orchestra.drill.checker import Tally

FAILURES: Final = frozenset({"failed", "killed", "refused", "expired", "lost"})


def waves_in_turn(case: Case, tally: "Tally") -> None:
    """Nothing of a wave is handed out before all of the one before it has its outcome, nor after too many failures."""
    for seen in case.final.values():
        rolling = _rolling(case, seen)
        if rolling is not None:
            _turns(seen, rolling, tally)
            _limit(seen, rolling, tally)


def _rolling(case: Case, seen: Seen) -> Rolling | None:
    request = case.request_of(seen)
    return None if request is None else request.ask.rolling


def _turns(seen: Seen, rolling: Rolling, tally: "Tally") -> None:
    job = seen.job.job
    for number, (before, after) in enumerate(pairwise(_waves(seen, rolling)), 2):
        given = [event.n for event in seen.events if event.task in after and event.kind == "dispatched"]
        over = [event.n for event in seen.events if event.task in before and event.kind in OUTCOMES]
        in_turn = not given or (len(over) == len(before) and max(over) < min(given))
        words = f"wave {number} of job {job} began with event {given[:1]}, the one before it ended with {over[-1:]}"
        tally.expect(in_turn, words, job=job)


def _limit(seen: Seen, rolling: Rolling, tally: "Tally") -> None:
    job, failed, over = seen.job.job, 0, 0
    for event in seen.events:
        failed += event.kind in FAILURES
        over = over or (event.n if failed > int(rolling.max_failures) else 0)
        tally.expect(not (over and event.kind == "dispatched"), f"job {job} went on after event {over}", job=job)


def _waves(seen: Seen, rolling: Rolling) -> list[Sequence[int]]:
    tasks = [task.task for task in sorted(seen.tasks, key=lambda task: task.player or "")]
    size = int(rolling.batch or len(tasks))
    rest = tasks[rolling.canary :]
    waves = [tasks[: rolling.canary], *(rest[n : n + size] for n in range(0, len(rest), size))]
    return [wave for wave in waves if wave]


def stopped(one: TaskCase) -> bool:
    """Whether the job of a task had every reason to be stopped."""
    rolling = None if one.request is None else one.request.ask.rolling
    if rolling is None:
        return False
    failed = sum(task.state in FAILURES for task in one.seen.tasks)
    first = sorted(one.seen.tasks, key=lambda task: task.player or "")[: rolling.canary]
    return failed > int(rolling.max_failures) or any(task.state != "ok" for task in first)
