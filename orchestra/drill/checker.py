"""The checker: from everything that was seen to what was kept of each promise, and what was not. Pure.

Every promise is a function that looks at a :class:`~orchestra.drill.case.Case` and expects things of it. It trusts
nobody: what the conductor says is held against the ledger that the scores wrote and against what its askers were told.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Final

from msgspec import Struct

from orchestra.drill import rollouts
from orchestra.drill.case import END, OUTCOMES, START, Attempt, Case, TaskCase
from orchestra.drill.evidence import Evidence, Request, Vitals
from orchestra.drill.ledger import Line
from orchestra.model import Scope

SLACK: Final = 1000  # milliseconds by which the ledger's clock and the conductor's may differ
RECORDED_WITHIN: Final = 2000  # milliseconds after its end by which a live stage has a run's outcome
FULL_DISK: Final = 4000  # milliseconds by which a full disk makes that later
LONGEST: Final = 1000  # characters of one sentence
MORE_DESCRIPTORS: Final = 12
MORE_MEMORY: Final = 20_000  # kilobytes, beside three tenths

NEVER_STARTED: Final = frozenset({"cancelled", "expired", "refused"})
CONFLICT: Final = "REQUEST_KEY_CONFLICT"


class Violation(Struct, frozen=True, kw_only=True):
    """A promise that was broken, and the story of where."""

    what: str
    job: int | None = None
    task: int | None = None
    story: tuple[str, ...] = ()


class Check(Struct, frozen=True):
    """How often a promise was held against what was seen, and where it was broken."""

    promise: str
    checked: int
    violations: tuple[Violation, ...]


class Tally:
    """Counts what is expected, keeps what is not met."""

    def __init__(self) -> None:
        self.checked = 0
        self.violations: list[Violation] = []

    def expect(self, holds: bool, what: str, case: TaskCase | None = None, job: int | None = None) -> None:
        """``what`` says what is wrong if it does not hold."""
        self.checked += 1
        if holds:
            return
        what = what if len(what) <= LONGEST else f"{what[:LONGEST]} ..."
        if case is None:
            self.violations.append(Violation(what=what, job=job))
        else:
            self.violations.append(Violation(what=what, job=case.job, task=case.task.task, story=case.story()))


def check(evidence: Evidence) -> tuple[Check, ...]:
    """Every promise, held against the evidence."""
    case = Case(evidence)
    return tuple(_checked(promise, look, case) for promise, look in PROMISES.items())


def _checked(promise: str, look: Callable[[Case, Tally], None], case: Case) -> Check:
    tally = Tally()
    look(case, tally)
    return Check(promise, tally.checked, tuple(tally.violations))


# ---- 1: accepted means durable


def _accepted_exists(case: Case, tally: Tally) -> None:
    for request in case.evidence.requests:
        for answer in request.answers:
            seen = case.final.get(answer.job)
            tally.expect(seen is not None, f"job {answer.job} was accepted and is gone", job=answer.job)
            if seen is not None:
                told = (seen.job.score, seen.job.params, seen.job.scope, seen.job.request_key)
                asked = (request.ask.score, request.ask.params, request.ask.scope, request.ask.request_key)
                tally.expect(told == asked, f"it was asked for {asked}, and job {answer.job} is {told}", job=answer.job)


def _same_key_same_job(case: Case, tally: Tally) -> None:
    for request in case.evidence.requests:
        if request.ask.request_key is None or not (request.answers or request.conflicts):
            continue
        jobs = sorted({answer.job for answer in request.answers})
        made = sum(answer.created for answer in request.answers)
        tally.expect(len(jobs) <= 1, f"key {request.ask.request_key} was answered with the jobs {jobs}")
        tally.expect(made <= 1, f"key {request.ask.request_key} was told {made} times that it had made a job")
        for code in request.conflicts:
            words = f"key {request.ask.request_key} was used for something else, and the answer was {code or 'a job'}"
            tally.expect(code == CONFLICT, words)


def _nothing_from_nowhere(case: Case, tally: Tally) -> None:
    unknown = 0
    for seen in case.final.values():
        known = case.request_of(seen) is not None
        unknown += not known
        if seen.job.request_key is not None:
            tally.expect(known, f"nobody has asked for job {seen.job.job}", job=seen.job.job)
    keyless = [request for request in case.evidence.requests if request.ask.request_key is None]
    most = sum(request.unanswered for request in keyless)
    tally.expect(unknown <= most, f"{unknown} jobs without a key exist that nobody was told of, of at most {most}")
    keys = Counter(seen.job.request_key for seen in case.final.values() if seen.job.request_key is not None)
    for key, many in keys.items():
        tally.expect(many == 1, f"key {key} has made {many} jobs")
    for line in case.strays:
        tally.expect(False, f"a run of no task that is known: {line}", job=line.job)


# ---- 2: one outcome


def _one_outcome(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        moves = [event.kind for event in one.events if event.kind in OUTCOMES | {"pending", "dispatched"}]
        outcomes = [kind for kind in moves if kind in OUTCOMES]
        if one.task.state in OUTCOMES or outcomes:
            tally.expect(outcomes == [one.task.state], f"it is {one.task.state}, its events say {outcomes}", one)
        if outcomes:
            tally.expect(moves[-1] in OUTCOMES, f"it went on to {moves[-1]} after its outcome", one)


def _unchanged(case: Case, tally: Tally) -> None:
    first, *later = case.evidence.looks
    for one in case.tasks:
        for look in later:
            seen = look.get(one.job)
            now = next((task for task in seen.tasks if task.task == one.task.task), None) if seen else None
            tally.expect(now == one.task, f"a later look at it says {now and now.state}: {now}", one)
            same = seen is not None and (seen.events, seen.output) == (one.seen.events, one.seen.output)
            tally.expect(same, "a later look shows other events or other output", one)
    for look in later:
        new = sorted(set(look) - set(first))
        tally.expect(not new, f"the jobs {new} appeared when all had ended")
    states = {(one.job, one.task.task): one for one in case.tasks}
    for glance in case.evidence.glances:
        found = states.get((glance.job, glance.task))
        now_is = found.task.state if found else "gone"
        words = f"it was {glance.state} when it was looked at before, and is {now_is}"
        tally.expect(now_is == glance.state, words, found, job=glance.job)


def _counts(case: Case, tally: Tally) -> None:
    for seen in case.final.values():
        counts = dict(Counter(task.state for task in seen.tasks))
        job = seen.job
        tally.expect(counts == job.counts, f"job {job.job} counts {job.counts}, its tasks are {counts}", job=job.job)
        request = case.request_of(seen)
        if request is not None:
            wanted = len(request.ask.targets) if request.ask.scope is Scope.ALL else request.ask.count
            words = f"job {job.job} has {len(seen.tasks)} tasks for {wanted} targets"
            tally.expect(len(seen.tasks) == wanted, words, job=job.job)
            given = [task.player for task in seen.tasks if task.player is not None]
            words = f"job {job.job} has several tasks on one player: {sorted(given)}"
            tally.expect(len(given) == len(set(given)), words, job=job.job)
        good = counts.get("ok", 0)
        verdict = "ok" if good == len(seen.tasks) else "partial" if good else "failed"
        tally.expect(job.verdict == verdict, f"job {job.job}'s verdict is {job.verdict!r}, not {verdict}", job=job.job)


def _locks_exclude(case: Case, tally: Tally) -> None:
    """Of the runs that came to their own end: one that was killed has written no end to go by."""
    runs = [
        (start.player, lock, start.place, end.place, one)
        for one in case.tasks
        if (score := case.evidence.scores.get(one.seen.job.score)) and (lock := score.lock)
        for start in one.starts
        for end in one.wrote(END, start.attempt)
    ]
    runs.sort(key=lambda run: run[:3])
    for before, after in pairwise(runs):
        if before[:2] == after[:2]:
            words = f"it began before job {before[4].job}, which has the lock '{after[1]}' too, had ended"
            tally.expect(before[3] < after[2], words, after[4])


# ---- 3 and 4: start once


def _started_once(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        for attempt, many in Counter(line.attempt for line in one.starts).items():
            tally.expect(many == 1, f"attempt {attempt} was started {many} times", one)
    for mark, many in Counter(line.mark for line in case.evidence.ledger if line.kind == START).items():
        tally.expect(many == 1, f"run {mark} was started {many} times")


def _started_as_dispatched(case: Case, tally: Tally) -> None:
    for one, line in case.wrote(START):
        given = one.attempts[line.attempt - 1 : line.attempt]
        tally.expect(bool(given), f"attempt {line.attempt} was started and never handed out", one)
        if given:
            words = f"attempt {line.attempt} was handed to {given[0].player} and started on {line.player}"
            tally.expect(given[0].player == line.player, words, one)
            early = given[0].at - case.moment(line)
            tally.expect(early <= SLACK, f"attempt {line.attempt} started {early} ms before it was handed out", one)


def _not_idempotent_once(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        if not _idempotent(case, one):
            many = len(one.starts)
            tally.expect(many <= 1, f"{one.seen.job.score} is not idempotent and was started {many} times", one)


def _moved_after_proof(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        for attempt in one.attempts:
            if attempt.became == "pending":
                lost = _idempotent(case, one) and case.stage_killed(attempt) is not None
                told = lost or not one.wrote(START, attempt.number)
                words = f"attempt {attempt.number} had started on {attempt.player}, and was handed out again"
                tally.expect(told, words, one)


def _no_two_at_once(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        newest = 0
        for line in one.lines:
            words = f"attempt {line.attempt} was alive when attempt {newest} had started"
            tally.expect(line.attempt >= newest, words, one)
            newest = max(newest, line.attempt)


def _idempotent(case: Case, one: TaskCase) -> bool:
    score = case.evidence.scores.get(one.seen.job.score)
    return score is not None and score.idempotent


# ---- what the outcomes say is true


def _ok_is_true(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        if one.task.state == "ok":
            _expect_whole(case, one, tally)
            wanted = int(one.seen.job.params.get("status", "0"))
            tally.expect(one.task.rc == 0 == wanted, f"it is ok with {one.task.rc}, and was to end with {wanted}", one)


def _failed_is_true(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        if one.task.state == "failed":
            _expect_whole(case, one, tally)
            wanted = int(one.seen.job.params.get("status", "0"))
            words = f"it failed with {one.task.rc} (signal {one.task.signal}), and was to end with {wanted}"
            tally.expect(wanted != 0 and one.task.rc == wanted, words, one)


def _expect_whole(case: Case, one: TaskCase, tally: Tally) -> None:
    """A run that came to its own end has both its lines, and its answer and output are its own."""
    start, end = one.wrote(START, one.task.attempt), one.wrote(END, one.task.attempt)
    tally.expect(len(start) == len(end) == 1, f"the ledger has {len(start)} starts and {len(end)} ends of it", one)
    if start and end:
        ours = {"word": one.seen.job.params.get("word", ""), "run": start[0].mark}
        tally.expect(one.task.response == ours, f"it answered {one.task.response}, its run {ours}", one)
        tally.expect(end[0].word == ours["word"], f"the ledger has the word {end[0].word}", one)
    size = int(one.seen.job.params.get("bytes", "0"))
    tally.expect(one.task.stdout.total == size, f"it wrote {size} bytes, {one.task.stdout.total} are known", one)
    kept = one.seen.output.get(one.task.task)
    if kept is not None and not (case.evidence.troubled_disks and _says_not_kept(one)):
        whole = kept == b"x" * (size - 1) + b"\n" and one.task.stdout.sha256 in (None, hashlib.sha256(kept).hexdigest())
        tally.expect(whole, f"{len(kept)} bytes of its output were kept, and they are not the {size} it wrote", one)


def _says_not_kept(one: TaskCase) -> bool:
    """Whether it is admitted that nothing of a long output is there; a full disk may have that price."""
    return bool(one.task.notes) and not one.task.stdout.spans


def _killed_is_true(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        if one.task.state == "killed":
            score = case.evidence.scores.get(one.seen.job.score)
            overdue = score is not None and float(one.seen.job.params.get("seconds", "0")) >= score.timeout
            tally.expect(_cancelled(one.request) or overdue, "it was killed, and neither cancelled nor overdue", one)


def _never_started_is_true(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        if one.task.state in NEVER_STARTED:
            tally.expect(not one.starts, f"it is {one.task.state}, and was started", one)
            tally.expect(_deserved(case, one), f"it is {one.task.state}, and nothing asked for that", one)


def _deserved(case: Case, one: TaskCase) -> bool:
    request = one.request
    match one.task.state:
        case "cancelled":
            return _cancelled(request) or rollouts.stopped(one)
        case "expired":
            expires = one.seen.job.expires_at
            return expires is not None and one.outcome_at is not None and one.outcome_at >= expires
        case _:
            score = case.evidence.scores.get(one.seen.job.score)
            return case.evidence.troubled_disks or (score is not None and score.somewhere)


def _cancelled(request: Request | None) -> bool:
    return request is None or request.cancelled


# ---- 5 and 6: lost is honest, results are kept


def _lost_is_honest(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        if one.task.state == "lost":
            killed = [attempt for attempt in one.attempts if case.stage_killed(attempt) is not None]
            tally.expect(bool(killed), "it is lost, and no stage was killed while it had one", one)
            started = not one.starts or any(one.wrote(START, attempt.number) for attempt in killed)
            tally.expect(started, "it is lost, and the run that started was not the one whose stage was killed", one)


def _results_are_kept(case: Case, tally: Tally) -> None:
    for one, line in case.wrote(END):
        attempt = next((each for each in one.attempts if each.number == line.attempt), None)
        if attempt is not None and attempt.became:
            told = attempt.became in ("ok", "failed", "killed") or _cut_short(case, attempt, line)
            words = f"attempt {line.attempt} came to its end with its stage alive, and it became {attempt.became}"
            tally.expect(told, words, one)


def _cut_short(case: Case, attempt: Attempt, end: Line) -> bool:
    """Whether the stage was killed before it can have recorded this end."""
    killed = case.stage_killed(attempt)
    longest = RECORDED_WITHIN + (FULL_DISK if case.evidence.troubled_disks else 0)
    return killed is not None and killed <= case.moment(end) + longest


def _over_is_over(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        if one.outcome_at is not None and one.lines:
            late = case.moment(one.lines[-1]) - one.outcome_at
            tally.expect(late <= SLACK, f"it was still at work {late} ms after its outcome", one)


# ---- 7: it heals alone


def _all_terminal(case: Case, tally: Tally) -> None:
    for one in case.tasks:
        tally.expect(one.task.state in OUTCOMES, f"it is still {one.task.state}: {one.task.why}", one)
    for seen in case.final.values():
        job = seen.job.job
        tally.expect(seen.job.ended_at is not None, f"job {job} has not ended", job=job)


def _events_gapless(case: Case, tally: Tally) -> None:
    for seen in case.final.values():
        job = seen.job.job
        numbers = [event.n for event in seen.events]
        whole = numbers == list(range(1, seen.job.last_event + 1))
        tally.expect(whole, f"job {job} has the events {numbers}, its last is {seen.job.last_event}", job=job)
        kinds = [event.kind for event in seen.events]
        framed = kinds[:1] == ["submitted"] and kinds.count("submitted") == 1
        ended = kinds.count("ended") == (seen.job.ended_at is not None)
        tally.expect(framed and ended, f"job {job} has the events {kinds}", job=job)


# ---- the machine


def _work_was_done(case: Case, tally: Tally) -> None:
    names = {target for request in case.evidence.requests for target in request.ask.targets}
    for name in sorted(names) or ["any host"]:
        started = any(line.player.split(".")[0] == name for line in case.evidence.ledger)
        tally.expect(started, f"nothing was started on {name}: this drill proves nothing")


def _nothing_left(case: Case, tally: Tally) -> None:
    remains = case.evidence.remains
    tally.expect(not remains.runs, f"runs were alive when all tasks had ended: {list(remains.runs)}")
    tally.expect(not remains.processes, f"processes were left behind: {list(remains.processes)}")
    tally.expect(not remains.files, f"files were left behind: {list(remains.files)}")


def _askers_are_answered(case: Case, tally: Tally) -> None:
    tally.checked += len(case.evidence.requests)
    for complaint in case.evidence.complaints:
        tally.expect(False, complaint)


def _daemons_live(case: Case, tally: Tally) -> None:
    tally.checked += len(case.evidence.remains.end)
    for end in case.evidence.remains.own_ends:
        tally.expect(False, end)


def _daemons_stay_small(case: Case, tally: Tally) -> None:
    remains = case.evidence.remains
    for now in remains.end:
        for then in _of_role(remains.before, now.role):
            words = f"{now.role} has {now.descriptors} descriptors open, it began with {then.descriptors}"
            tally.expect(now.descriptors <= then.descriptors + MORE_DESCRIPTORS, words)
        for then in _of_role(remains.third, now.role):
            words = f"{now.role} has grown from {then.rss} to {now.rss} kB since a third of the time"
            tally.expect(now.rss <= then.rss * 1.3 + MORE_MEMORY, words)


def _of_role(vitals: tuple[Vitals, ...], role: str) -> list[Vitals]:
    return [one for one in vitals if one.role == role][:1]


PROMISES: Final[dict[str, Callable[[Case, Tally], None]]] = {
    "what was accepted exists, as it was asked for": _accepted_exists,
    "the same request key is the same job": _same_key_same_job,
    "nothing exists that nobody asked for": _nothing_from_nowhere,
    "every task has exactly one outcome": _one_outcome,
    "an outcome never changes": _unchanged,
    "a job's counts and verdict are those of its tasks": _counts,
    "an attempt is started at most once": _started_once,
    "scores with the same lock exclude each other": _locks_exclude,
    "only what was handed out is started, and only there": _started_as_dispatched,
    "what is not idempotent is started at most once": _not_idempotent_once,
    "work goes on elsewhere only after proof": _moved_after_proof,
    "two attempts of a task are never alive together": _no_two_at_once,
    "ok is true: it ran to its end, with that answer": _ok_is_true,
    "failed is true: it ran to its end, with that status": _failed_is_true,
    "killed is true: it was cancelled or overdue": _killed_is_true,
    "never started is true": _never_started_is_true,
    "lost is honest: its stage was killed under it": _lost_is_honest,
    "the result of a run that ended is kept and told": _results_are_kept,
    "nothing is at work after its outcome": _over_is_over,
    "a wave begins when the one before it has ended": rollouts.waves_in_turn,
    "everything ends without an operator": _all_terminal,
    "the events of a job have no gap": _events_gapless,
    "who asks for what can be done gets a proper answer": _askers_are_answered,
    "there was work on every player": _work_was_done,
    "nothing is left behind": _nothing_left,
    "daemons end when they are told to, and only then": _daemons_live,
    "daemons keep their size": _daemons_stay_small,
}
"""Each promise, in a user's words, and what looks after it."""
