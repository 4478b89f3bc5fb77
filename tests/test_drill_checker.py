"""The drill's checker, alone: hand-made evidence of every kind of broken promise, and each is named."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from orchestra.drill.checker import PROMISES, check
from orchestra.drill.evidence import Answer, Evidence, Glance, Remains, Request, Seen, StageKill, Vitals
from orchestra.drill.ledger import SCORES, Line, parse
from orchestra.errors import FileProblem
from orchestra.model import Ask, Event, JobView, Rolling, Scope, Stream, TaskView

AT = 1_000_000  # milliseconds: when the job was submitted; attempt n is dispatched AT + 1000 n, and lasts 500
WORK = "there was work on every player"
Attempts = Sequence[tuple[str, str]]


def events(attempts: Attempts, task: int = 0, *more: tuple[str, int]) -> list[tuple[int, str, int | None, str | None]]:
    found: list[tuple[int, str, int | None, str | None]] = []
    for n, (player, became) in enumerate(attempts, 1):
        found += [(AT + 1000 * n, "dispatched", task, player), (AT + 1000 * n + 500, became, task, player)]
    return found + [(at, kind, task, None) for kind, at in more]


def numbered(rows: Sequence[tuple[int, str, int | None, str | None]], ended: bool = True) -> tuple[Event, ...]:
    whole = [(AT, "submitted", None, None), *sorted(rows, key=lambda row: row[0])]
    whole += [(whole[-1][0], "ended", None, None)] * ended
    return tuple(Event(n=n, at=at, kind=k, task=t, player=p) for n, (at, k, t, p) in enumerate(whole, 1))


def seen(
    attempts: Attempts = (("a", "ok"),),
    score: str = "once",
    scope: Scope = Scope.ALL,
    key: str | None = "k",
    job: int = 1,
    expires: int | None = None,
    happened: tuple[tuple[str, int], ...] = (),
    params: dict[str, str] | None = None,
) -> Seen:
    """A job of one task as a truthful conductor tells it."""
    state = happened[-1][0] if happened else attempts[-1][1]
    rc = {"ok": 0, "failed": int((params or {}).get("status", "0"))}.get(state)
    size = int((params or {}).get("bytes", "0"))
    task = TaskView(
        task=0,
        player=attempts[-1][0] if attempts else "a",
        state=state,
        attempt=len(attempts),
        rc=rc,
        response={"word": "w", "run": f"j:{len(attempts)}"} if rc is not None else None,
        stdout=Stream(total=size),
    )
    story = numbered(events(attempts, 0, *happened), ended=state not in ("pending", "dispatched"))
    view = JobView(
        job=job,
        score=score,
        params={"word": "w", **(params or {})},
        scope=scope,
        owner="root",
        uid=0,
        login_uid=None,
        request_key=key,
        created_at=AT,
        expires_at=expires,
        ended_at=story[-1].at if story[-1].kind == "ended" else None,
        priority=0,
        counts={state: 1},
        verdict={"ok": "ok"}.get(state, "failed"),
        last_event=len(story),
    )
    return Seen(job=view, tasks=(task,), events=story)


def lines(*words: str) -> tuple[Line, ...]:
    """``start 1`` is the start of attempt 1 of job 1 on a, 100 ms after its dispatch; ``end 1`` 300 ms after that."""
    found = []
    for word in words:
        kind, attempt, *rest = word.split()
        fields = dict(part.split("=") for part in rest)
        at = 1000 + int(attempt) + {"start": 0.1, "end": 0.4}[kind]
        job, player, up = fields.get("job", "1"), fields.get("on", "a"), float(fields.get("up", at))
        mark, said = fields.get("mark", f"j:{attempt}"), fields.get("word", "w")
        found.append(f"{kind} {job} {player} {attempt} {mark} {said} {up}")
    return parse(found)


def asked(one: Seen, **more: Any) -> Request:
    targets = ("a", "b") if one.job.scope == Scope.ONE else tuple(task.player or "a" for task in one.tasks)
    ask = Ask(
        score=one.job.score,
        targets=targets,
        scope=Scope(one.job.scope),
        params=one.job.params,
        request_key=one.job.request_key,
    )
    return Request(ask=ask, **{"answers": (Answer(one.job.job, True),), **more})


def evidence(one: Seen, ledger: tuple[Line, ...] = (), request: Request | None = None, **more: Any) -> Evidence:
    found: dict[str, Any] = {"requests": (request or asked(one),), "ledger": ledger, "glances": (), "scores": SCORES}
    found["looks"] = ({one.job.job: one}, {one.job.job: one})
    return Evidence(**{**found, **more})


def broken(found: Evidence) -> dict[str, list[str]]:
    """By promise, what is wrong. That one job alone does not give work to every player is left out."""
    named = {one.promise: [v.what for v in one.violations] for one in check(found) if one.violations}
    return {promise: what for promise, what in named.items() if promise != WORK or not found.requests}


WHOLE = lines("start 1", "end 1")
SOME = seen(scope=Scope.SOME)
KILL = (StageKill("a", AT + 1200, AT + 1210),)


def changed(one: Seen, **of_task: Any) -> Seen:
    return replace(one, tasks=(replace(one.tasks[0], **of_task),))


GOOD = {
    "ok": evidence(seen(), WHOLE),
    "ok, with output": evidence(replace(seen(params={"bytes": "9"}), output={0: b"xxxxxxxx\n"}), WHOLE),
    "failed": evidence(seen((("a", "failed"),), params={"status": "3"}), WHOLE),
    "killed by its timeout": evidence(
        seen((("a", "killed"),), score="brief", params={"seconds": "20"}), lines("start 1")
    ),
    "killed by a cancel, before its first line": evidence(
        seen((("a", "killed"),)), (), asked(seen((("a", "killed"),)), cancelled=True)
    ),
    "cancelled": evidence(seen((), happened=(("cancelled", AT + 5),)), (), asked(seen(), cancelled=True)),
    "expired": evidence(seen((), expires=AT + 5, happened=(("expired", AT + 6),))),
    "refused where the score is not": evidence(seen((("a", "refused"),), score="somewhere")),
    "refused for a full disk": evidence(seen((("a", "refused"),)), troubled_disks=True),
    "ok on a full disk, with no room for its output": evidence(
        changed(replace(seen(params={"bytes": "9000"}), output={0: b""}), notes=("the output could not be kept",)),
        WHOLE,
        troubled_disks=True,
    ),
    "lost, handed out while the stage was looked for that was to be killed": evidence(
        seen((("a", "lost"),)), lines("start 1"), stage_kills=(StageKill("a", AT + 990, AT + 1010),)
    ),
    "lost": evidence(seen((("a", "lost"),)), lines("start 1"), stage_kills=KILL),
    "lost at its very end": evidence(seen((("a", "lost"),)), WHOLE, stage_kills=KILL),
    "lost, and again": evidence(
        seen((("a", "pending"), ("a", "ok")), score="again"), lines("start 1", "start 2", "end 2"), stage_kills=KILL
    ),
    "never started there, and elsewhere": evidence(
        seen((("a", "pending"), ("b", "ok")), scope=Scope.ONE), lines("start 2 on=b", "end 2 on=b")
    ),
    "one of some, never started there, and elsewhere": evidence(
        seen((("a", "pending"), ("b", "ok")), scope=Scope.SOME), lines("start 2 on=b", "end 2 on=b")
    ),
    "lost before, then cancelled": evidence(
        seen((("a", "pending"),), score="again", happened=(("lost", AT + 5000),)), lines("start 1"), stage_kills=KILL
    ),
    "a job without a key whose asker heard nothing": evidence(
        seen(key=None), WHOLE, asked(seen(key=None), answers=(), unanswered=1)
    ),
    "a key that was sent twice": evidence(
        seen(), WHOLE, asked(seen(), answers=(Answer(1, True), Answer(1, False)), conflicts=("REQUEST_KEY_CONFLICT",))
    ),
}


def test_scores_with_one_lock_one_after_the_other_are_well() -> None:
    promise = "scores with the same lock exclude each other"
    found = {one.promise: one for one in check(locked(*LEFT, *RIGHT))}[promise]
    assert (found.checked, found.violations) == (1, ())


@pytest.mark.parametrize("name", GOOD)
def test_what_is_well_is_not_complained_of(name: str) -> None:
    """Every outcome can be reached with all promises kept."""
    assert broken(GOOD[name]) == {}


def of_job(one: Seen, **of_job: Any) -> Seen:
    return replace(one, job=replace(one.job, **of_job))


def again(second: Seen) -> Evidence:
    return evidence(seen(), WHOLE, looks=({1: seen()}, {second.job.job: second}))


def grown(**more: int) -> Remains:
    young = Vitals(role="conductor", pid=1, rss=50_000, descriptors=20, age=1.0)
    return Remains(before=(young,), third=(young,), end=(replace(young, **more),))


def late_event(kind: str) -> Seen:
    one = seen()
    happened = numbered([*events((("a", "ok"),)), (AT + 9000, kind, 0, "a")])
    return of_job(replace(one, events=happened), last_event=len(happened))


def locked(*words: str) -> Evidence:
    """Two jobs on one player, of two scores with one lock."""
    left, right = seen(score="left"), seen(score="right", job=2, key="k2")
    looks = ({1: left, 2: right},) * 2
    return evidence(left, lines(*words), looks=looks, requests=(asked(left), asked(right)))


LEFT, RIGHT = ("start 1", "end 1"), ("start 1 job=2 mark=j:9", "end 1 job=2 mark=j:9")
BAD: dict[str, tuple[Evidence, str, str]] = {
    "two scores with one lock at once": (
        locked(LEFT[0], RIGHT[0], LEFT[1], RIGHT[1]),
        "scores with the same lock exclude each other",
        "it began before job 1, which has the lock 'both' too, had ended",
    ),
    "an accepted job is gone": (
        evidence(seen(), looks=({}, {})),
        "what was accepted exists",
        "job 1 was accepted and is gone",
    ),
    "an accepted job asks for something else": (
        evidence(seen(), WHOLE, asked(seen(score="again"))),
        "what was accepted exists",
        "it was asked for",
    ),
    "a key made two jobs": (
        evidence(seen(), WHOLE, asked(seen(), answers=(Answer(1, True), Answer(2, True)))),
        "the same request key",
        "was answered with the jobs [1, 2]",
    ),
    "a key was taken for other work": (
        evidence(seen(), WHOLE, asked(seen(), conflicts=("",))),
        "the same request key",
        "was used for something else",
    ),
    "a job was made twice, and its asker knows of one": (
        evidence(seen(), WHOLE, looks=({1: seen(), 2: seen(job=2)},) * 2),
        "nothing exists that nobody asked for",
        "key k has made 2 jobs",
    ),
    "a job that nobody asked for": (
        evidence(seen(), WHOLE, requests=()),
        "nothing exists that nobody asked for",
        "nobody has asked for job 1",
    ),
    "a run of no job": (
        evidence(seen(), (*WHOLE, *lines("start 1 job=9 mark=j:9"))),
        "nothing exists that nobody asked for",
        "a run of no task",
    ),
    "a run on a host that was not asked for": (
        evidence(seen(), (*WHOLE, *lines("start 1 on=z mark=j:9"))),
        "nothing exists that nobody asked for",
        "a run of no task",
    ),
    "a task has two outcomes": (evidence(late_event("failed"), WHOLE), "exactly one outcome", "['ok', 'failed']"),
    "a task goes on after its outcome": (
        evidence(late_event("pending"), WHOLE),
        "exactly one outcome",
        "went on to pending",
    ),
    "a task's state is not its event's": (
        evidence(of_job(changed(seen(), state="lost"), counts={"lost": 1}, verdict="failed"), WHOLE, stage_kills=KILL),
        "exactly one outcome",
        "it is lost, its events say ['ok']",
    ),
    "an outcome changes between the last looks": (
        again(changed(seen(), state="failed")),
        "an outcome never changes",
        "a later look at it says failed",
    ),
    "a job is gone at the last look": (
        again(seen(job=2)),
        "an outcome never changes",
        "a later look at it says None",
    ),
    "a job appears at the last look": (
        evidence(seen(), WHOLE, looks=({1: seen()}, {1: seen(), 2: seen(job=2)})),
        "an outcome never changes",
        "the jobs [2] appeared",
    ),
    "an event is another at the last look": (
        again(replace(seen(), events=seen().events[:-1])),
        "an outcome never changes",
        "other events",
    ),
    "an outcome changed since it was looked at": (
        evidence(seen(), WHOLE, glances=(Glance(1, 0, "failed"),)),
        "an outcome never changes",
        "it was failed when it was looked at before, and is ok",
    ),
    "a job's counts are not its tasks'": (
        evidence(of_job(seen(), counts={"ok": 2}), WHOLE),
        "counts and verdict",
        "counts {'ok': 2}",
    ),
    "a job's verdict is not its tasks'": (
        evidence(of_job(seen(), verdict="failed"), WHOLE),
        "counts and verdict",
        "verdict is 'failed', not ok",
    ),
    "a target has no task": (
        evidence(seen(), WHOLE, replace(asked(seen()), ask=replace(asked(seen()).ask, targets=("a", "b")))),
        "counts and verdict",
        "has 1 tasks for 2 targets",
    ),
    "an attempt starts twice": (
        evidence(seen(score="again"), lines("start 1", "start 1 mark=j:7", "end 1")),
        "an attempt is started at most once",
        "attempt 1 was started 2 times",
    ),
    "one run starts twice": (
        evidence(seen(), lines("start 1", "start 1", "end 1")),
        "an attempt is started at most once",
        "run j:1 was started 2 times",
    ),
    "an attempt starts that was never handed out": (
        evidence(seen(score="again"), lines("start 1", "end 1", "start 2 up=1001.5")),
        "only what was handed out",
        "attempt 2 was started and never handed out",
    ),
    "an attempt starts elsewhere": (
        evidence(seen(scope=Scope.ONE), lines("start 1 on=b", "end 1 on=b")),
        "only what was handed out",
        "was handed to a and started on b",
    ),
    "a start comes before its dispatch": (
        evidence(seen(), lines("start 1 up=998", "end 1")),
        "only what was handed out",
        "attempt 1 started 3000 ms before",
    ),
    "a player has two tasks of a job for some": (
        evidence(replace(SOME, tasks=(SOME.tasks[0], replace(SOME.tasks[0], task=1))), WHOLE),
        "counts and verdict",
        "job 1 has several tasks on one player: ['a', 'a']",
    ),
    "a score that is not idempotent starts again": (
        evidence(seen((("a", "pending"), ("a", "ok"))), lines("start 1", "start 2", "end 2"), stage_kills=KILL),
        "what is not idempotent",
        "was started 2 times",
    ),
    "work moves on though it had started": (
        evidence(
            seen((("a", "pending"), ("b", "ok")), scope=Scope.ONE), lines("start 1", "start 2 on=b", "end 2 on=b")
        ),
        "only after proof",
        "attempt 1 had started on a, and was handed out again",
    ),
    "an idempotent score starts again and its stage was alive": (
        evidence(seen((("a", "pending"), ("a", "ok")), score="again"), lines("start 1", "start 2", "end 2")),
        "only after proof",
        "attempt 1 had started on a",
    ),
    "two attempts live at once": (
        evidence(
            seen((("a", "pending"), ("a", "ok")), score="again"),
            lines("start 1", "start 2", "end 1", "end 2"),
            stage_kills=KILL,
        ),
        "never alive together",
        "attempt 1 was alive when attempt 2 had started",
    ),
    "ok without a start": (evidence(seen()), "ok is true", "0 starts and 0 ends"),
    "ok without an end": (evidence(seen(), lines("start 1")), "ok is true", "1 starts and 0 ends"),
    "ok with the answer of another run": (
        evidence(changed(seen(), response={"word": "w", "run": "j:5"}), WHOLE),
        "ok is true",
        "it answered",
    ),
    "ok with the parameters of another job": (
        evidence(seen(), lines("start 1", "end 1 word=v")),
        "ok is true",
        "the ledger has the word v",
    ),
    "ok though it was to fail": (
        evidence(of_job(seen(), params={"word": "w", "status": "3"}), WHOLE),
        "ok is true",
        "was to end with 3",
    ),
    "ok with a part of its output": (
        evidence(replace(seen(params={"bytes": "9"}), output={0: b"xxxx\n"}), WHOLE),
        "ok is true",
        "5 bytes of its output were kept",
    ),
    "ok on a full disk, and silent about its output": (
        evidence(replace(seen(params={"bytes": "9000"}), output={0: b""}), WHOLE, troubled_disks=True),
        "ok is true",
        "0 bytes of its output were kept",
    ),
    "ok with room enough, and without its output": (
        evidence(changed(replace(seen(params={"bytes": "9000"}), output={0: b""}), notes=("not kept",)), WHOLE),
        "ok is true",
        "0 bytes of its output were kept",
    ),
    "ok with a wrong count of its output": (
        evidence(changed(seen(params={"bytes": "9"}), stdout=Stream(total=8)), WHOLE),
        "ok is true",
        "it wrote 9 bytes, 8 are known",
    ),
    "failed with a status of its own": (
        evidence(changed(seen((("a", "failed"),), params={"status": "3"}), rc=4), WHOLE),
        "failed is true",
        "was to end with 3",
    ),
    "failed and was to be ok": (
        evidence(changed(seen((("a", "failed"),)), rc=1), WHOLE),
        "failed is true",
        "was to end with 0",
    ),
    "killed and nobody wanted that": (
        evidence(seen((("a", "killed"),)), lines("start 1")),
        "killed is true",
        "neither cancelled nor overdue",
    ),
    "cancelled and had started": (
        evidence(seen((("a", "cancelled"),)), lines("start 1"), asked(seen((("a", "cancelled"),)), cancelled=True)),
        "never started is true",
        "it is cancelled, and was started",
    ),
    "expired and had started": (
        evidence(seen((("a", "expired"),), expires=AT + 5), lines("start 1")),
        "never started is true",
        "it is expired, and was started",
    ),
    "refused and had started": (
        evidence(seen((("a", "refused"),), score="somewhere"), lines("start 1")),
        "never started is true",
        "it is refused, and was started",
    ),
    "cancelled by nobody": (
        evidence(seen((), happened=(("cancelled", AT + 5),))),
        "never started is true",
        "nothing asked for that",
    ),
    "expired before its time": (
        evidence(seen((), expires=AT + 50, happened=(("expired", AT + 6),))),
        "never started is true",
        "nothing asked for that",
    ),
    "refused where the score is": (
        evidence(seen((("a", "refused"),))),
        "never started is true",
        "nothing asked for that",
    ),
    "lost and its stage was alive": (
        evidence(seen((("a", "lost"),)), lines("start 1")),
        "lost is honest",
        "no stage was killed while it had one",
    ),
    "lost and another stage was killed": (
        evidence(seen((("a", "lost"),)), lines("start 1"), stage_kills=(StageKill("b", AT + 1200, AT + 1210),)),
        "lost is honest",
        "no stage was killed",
    ),
    "lost and its stage was killed before": (
        evidence(seen((("a", "lost"),)), lines("start 1"), stage_kills=(StageKill("a", AT + 900, AT + 910),)),
        "lost is honest",
        "no stage was killed",
    ),
    "lost by the stage of another attempt": (
        evidence(
            seen((("a", "pending"), ("a", "lost")), score="again"),
            lines("start 2"),
            stage_kills=KILL,
        ),
        "lost is honest",
        "not the one whose stage was killed",
    ),
    "the result of a finished run is lost": (
        evidence(seen((("a", "lost"),)), WHOLE),
        "the result of a run that ended",
        "attempt 1 came to its end with its stage alive, and it became lost",
    ),
    "a result that a stage had long recorded is lost": (
        evidence(
            seen((("a", "pending"), ("a", "ok")), score="again"),
            lines("start 1 up=995", "end 1 up=996", "start 2", "end 2"),
            stage_kills=KILL,
        ),
        "the result of a run that ended",
        "it became pending",
    ),
    "work goes on after its outcome": (
        evidence(
            seen((("a", "killed"),)),
            lines("start 1", "end 1 up=1009"),
            asked(seen((("a", "killed"),)), cancelled=True),
        ),
        "nothing is at work after its outcome",
        "still at work 7500 ms after",
    ),
    "a task is never done": (
        evidence(seen((("a", "pending"),))),
        "everything ends without an operator",
        "it is still pending",
    ),
    "a job is never done": (
        evidence(of_job(seen(), ended_at=None), WHOLE),
        "everything ends without an operator",
        "job 1 has not ended",
    ),
    "an event is missing": (
        evidence(replace(seen(), events=(*seen().events[:1], *seen().events[2:])), WHOLE),
        "have no gap",
        "job 1 has the events [1, 3, 4]",
    ),
    "the last events are missing": (
        evidence(of_job(seen(), last_event=5), WHOLE),
        "have no gap",
        "its last is 5",
    ),
    "a job ends twice": (
        evidence(late_event("ended"), WHOLE),
        "have no gap",
        "'ended', 'ended'",
    ),
    "nothing was ever asked for": (
        evidence(seen(), looks=({}, {}), requests=()),
        "work on every player",
        "nothing was started on any host: this drill proves nothing",
    ),
    "an asker gets nonsense": (evidence(seen(), WHOLE, complaints=("oh",)), "a proper answer", "oh"),
    "a run is alive at the end": (evidence(seen(), WHOLE, remains=Remains(runs=("7",))), "left behind", "runs were"),
    "a process is left": (evidence(seen(), WHOLE, remains=Remains(processes=("7",))), "left behind", "processes were"),
    "a file is left": (evidence(seen(), WHOLE, remains=Remains(files=("f",))), "left behind", "files were"),
    "a daemon dies": (evidence(seen(), WHOLE, remains=Remains(own_ends=("died",))), "daemons end when", "died"),
    "descriptors leak": (evidence(seen(), WHOLE, remains=grown(descriptors=40)), "keep their size", "40 descriptors"),
    "memory leaks": (evidence(seen(), WHOLE, remains=grown(rss=99_000)), "keep their size", "to 99000 kB"),
}


def rolled(*kinds: tuple[str, int], cancelled: bool = False, **waves: Any) -> Evidence:
    """A job for a, b and c that rolls one by one; what happened, in order, to whom."""
    players = "abc"
    story = numbered([(AT + n, kind, task, players[task]) for n, (kind, task) in enumerate(kinds, 1)])
    states = {task: kind for kind, task in kinds}
    first = seen().tasks[0]
    runs = [f"j:{task}" for task in range(3)]
    tasks = tuple(
        replace(first, task=task, player=players[task], state=state, response={"word": "w", "run": runs[task]})
        if state == "ok"
        else TaskView(task=task, player=players[task], state=state, attempt=int(("dispatched", task) in kinds),
                      rc={"failed": 3}.get(state), response={"word": "w", "run": runs[task]})
        for task, state in sorted(states.items())
    )  # fmt: skip
    counts = dict(Counter(states.values()))
    good = counts.get("ok", 0)
    verdict = "ok" if good == 3 else "partial" if good else "failed"
    params = {"word": "w"} | ({"status": "3"} if "failed" in counts else {})
    view = replace(seen().job, counts=counts, verdict=verdict, last_event=len(story), ended_at=AT, params=params)
    one = Seen(job=view, tasks=tasks, events=story)
    ledger = lines(*(
        f"{kind} 1 on={players[task]} mark=j:{task} up={(AT + 2) / 1000}"
        for task, state in states.items() if state in ("ok", "failed") for kind in ("start", "end")
    ))  # fmt: skip
    rolling = Rolling(**({"batch": "1"} | waves))
    request = asked(one, cancelled=cancelled)
    return evidence(one, ledger, replace(request, ask=replace(request.ask, rolling=rolling)))


TURNS = [(kind, task) for task in range(3) for kind in ("dispatched", "ok")]
STOPPED = [("dispatched", 0), ("failed", 0), ("cancelled", 1), ("cancelled", 2)]


def test_a_job_that_rolls_as_it_should_is_fine() -> None:
    """Wave by wave; stopped at the first failure; stopped because of a canary."""
    assert broken(rolled(*TURNS)) == {}
    assert broken(rolled(*STOPPED)) == {}
    assert broken(rolled(*STOPPED, canary=1, max_failures="9")) == {}
    assert broken(rolled(("cancelled", 0), *TURNS[2:], cancelled=True)) == {}


@pytest.mark.parametrize(
    ("found", "promise", "what"),
    [
        (rolled(*TURNS[:1], *TURNS[2:3], *TURNS[1:2], *TURNS[3:]), "a wave begins", "wave 2 of job 1 began with event [3]"),
        (rolled(*TURNS[2:], *TURNS[:2]), "a wave begins", "wave 2 of job 1 began with event [2]"),
        (rolled(*STOPPED[:2], *TURNS[2:]), "a wave begins", "job 1 went on after event 3"),
        (rolled(*STOPPED, max_failures="1"), "never started is true", "it is cancelled, and nothing asked for that"),
        (rolled(*TURNS[:2], *STOPPED[2:], canary=1), "never started is true", "it is cancelled, and nothing asked for that"),
    ],
)  # fmt: skip
def test_a_job_that_rolls_as_it_should_not_is_named(found: Evidence, promise: str, what: str) -> None:
    """Out of turn, past its limit, stopped for nothing."""
    named = [(p, w) for p, all_of_it in broken(found).items() for w in all_of_it]
    assert any(promise in p and what in w for p, w in named), named


@pytest.mark.parametrize("name", BAD)
def test_a_broken_promise_is_named(name: str) -> None:
    """Which promise, and what is wrong."""
    found, promise, what = BAD[name]
    named = [(p, w) for p, all_of_it in broken(found).items() for w in all_of_it]
    assert any(promise in p and what in w for p, w in named), named


def test_every_promise_is_broken_here_once() -> None:
    """No check is without its evidence."""
    tried = {promise for promise in PROMISES for _, words, _ in BAD.values() if words in promise}
    tried |= {promise for promise in PROMISES if "a wave begins" in promise}
    assert tried == set(PROMISES)


def test_a_violation_tells_its_story() -> None:
    """Job, task, its events and its ledger lines: enough to begin to look."""
    found = BAD["ok without an end"][0]
    [violation, *_] = [v for one in check(found) for v in one.violations]
    assert (violation.job, violation.task) == (1, 0)
    told = "\n".join(violation.story)
    assert "once (all of), word=w; key k" in told
    assert "dispatched a" in told
    assert "start job 1 on a, attempt 1" in told


def test_every_promise_counts_what_it_has_looked_at() -> None:
    """A promise that was held against nothing is seen to have been."""
    counts = {one.promise: one.checked for one in check(GOOD["ok"])}
    assert counts["an attempt is started at most once"] == 2
    assert counts["lost is honest: its stage was killed under it"] == 0


@pytest.mark.parametrize("line", ["start 1 a 1 j:1 w", "middle 1 a 1 j:1 w 2.0", "start one a 1 j:1 w 2.0", ""])
def test_a_line_that_no_score_has_written_is_an_error(line: str) -> None:
    """A torn or foreign line is no evidence."""
    with pytest.raises(FileProblem):
        parse([line])
