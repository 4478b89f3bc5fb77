"""How a job rolls over its targets: which tasks are in which wave, and what follows when some have ended. Pure.

Waves go by the number of the task: first the canaries, if any, then batches. A wave is over when none of its tasks
waits or is with a player; who commits that releases the next (:mod:`orchestra.store.gates`).
"""

import re
from collections.abc import Mapping
from typing import Final

from orchestra.model import Rolling, State, Waves

FAILURES: Final = (State.FAILED, State.KILLED, State.EXPIRED, State.REFUSED, State.LOST)
"""What counts against ``max_failures``. Cancelled does not: somebody wanted that."""

LONGEST_PAUSE: Final = 30 * 86_400  # seconds
_SHARE: Final = re.compile(r"([0-9]{1,9})(%?)")


def planned(asked: Rolling, tasks: int) -> Waves:
    """The waves over ``tasks`` targets; a ValueError has the sentence that says what is wrong with the request."""
    if not 0 <= asked.canary <= 1_000_000_000:
        raise ValueError("'canary' is a number of hosts from 0 on")
    if not 0 <= asked.pause <= LONGEST_PAUSE:
        raise ValueError("'pause' is a number of seconds up to thirty days")
    if asked.pause and not (asked.batch or asked.canary):
        raise ValueError("a pause is one between waves: it goes with a batch or canaries")
    batch = _share("batch", asked.batch, tasks) if asked.batch else tasks
    if asked.batch and not int(asked.batch.rstrip("%")):
        raise ValueError("'batch' is at least 1, or 1%")
    return Waves(
        tasks=tasks,
        batch=max(batch, 1),
        canary=min(asked.canary, tasks),
        max_failures=_share("max_failures", asked.max_failures, tasks),
        pause=round(asked.pause * 1000),
    )


def _share(what: str, text: str, whole: int) -> int:
    """So many, or so many of a hundred, rounded down: the careful side for a batch and for failures alike."""
    match = _SHARE.fullmatch(text)
    if match is None or (match[2] and int(match[1]) > 100):
        raise ValueError(f"'{what}' is a whole number, or a percentage such as 10%, not '{text[:20]}'")
    return whole * int(match[1]) // 100 if match[2] else int(match[1])


def reach(waves: Waves, wave: int) -> int:
    """The tasks of the first ``wave`` waves have numbers below this."""
    if wave <= 0:
        return 0
    batches = wave - 1 if waves.canary else wave
    return min(waves.canary + batches * waves.batch, waves.tasks)


def wave_of(waves: Waves, task: int) -> int:
    """The wave that a task is in; the first is 1."""
    if task < waves.canary:
        return 1
    return (task - waves.canary) // waves.batch + (2 if waves.canary else 1)


def how_many(waves: Waves) -> int:
    """How many waves there are."""
    return wave_of(waves, waves.tasks - 1)


def trouble(waves: Waves, wave: int, counts: Mapping[State, int], over: bool) -> str:
    """Why the job must stop, or "". ``counts`` are of the whole job, in its ``wave``-th wave, which is ``over`` or
    still goes on."""
    if waves.max_failures is None:
        return ""
    wrong = {state: counts[state] for state in FAILURES if counts.get(state)}
    failures = sum(wrong.values())
    if waves.canary and wave == 1:
        good = counts.get(State.OK, 0)
        if failures:
            return f"every canary must be ok: {_listed(wrong)}"
        return f"every canary must be ok: {waves.canary - good} cancelled" if over and good < waves.canary else ""
    return f"{_listed(wrong)}: that is more than max_failures, {waves.max_failures}" * (failures > waves.max_failures)


def _listed(counts: Mapping[State, int]) -> str:
    return ", ".join(f"{counts[state]} {state.label}" for state in sorted(counts))
