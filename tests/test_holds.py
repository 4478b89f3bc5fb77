"""Holds in the store: nothing held is claimed, nothing else is hidden by it; and cancels of many jobs in steps."""

from pathlib import Path

import pytest
from storehouse import ANNE, HOUR, Storehouse, report

from orchestra.core.brake import Brake
from orchestra.core.explain import held
from orchestra.core.scheduler import Scheduler, Session
from orchestra.model import Asker, Braking, Choice, Held, Hold, Run, Scope, Started, Told
from orchestra.store import sqlite, statements
from orchestra.store.cancels import NEWEST
from orchestra.store.values import Cancelled

EVERYTHING = Braking()
BOB = Asker(name="bob", uid=1001, login_uid=1002)
AT = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC


@pytest.fixture
def store() -> Storehouse:
    return Storehouse()


def hold(store: Storehouse, braking: Braking = EVERYTHING, reason: str = "migration", who: Asker = ANNE) -> None:
    statements.hold(store.cur, braking.marks, reason, who, AT)


def release(store: Storehouse, braking: Braking = EVERYTHING) -> None:
    statements.release(store.cur, braking.marks)


def scores(runs: tuple[Run, ...]) -> list[str]:
    return [run.score for run in runs]


# ---- the claim


def test_nothing_is_claimed_while_everything_is_held(store: Storehouse) -> None:
    """And all of it once that is released."""
    store.submit([1, 2])
    store.submit([1, 2], Scope.ONE)
    hold(store)
    assert [store.claim(player) for player in (1, 2)] == [(), ()]
    release(store)
    assert len(store.claim(1)) == 2
    assert len(store.claim(2)) == 1


def test_a_held_host_is_given_nothing_and_the_others_are(store: Storehouse) -> None:
    """A one-of task goes to a candidate that is not held."""
    store.submit([1, 2])
    store.submit([1, 2], Scope.ONE, score="other")
    hold(store, Braking(hosts=("web-1",)))
    assert store.claim(1) == ()
    assert scores(store.claim(2)) == ["uptime", "other"]
    release(store, Braking(hosts=("web-1",)))
    assert scores(store.claim(1)) == ["uptime"]


@pytest.mark.parametrize("room", [1, 2, 16])
def test_a_held_score_hides_nothing_that_is_behind_it(store: Storehouse, room: int) -> None:
    """However much of it there is, and whatever its priority."""
    for _ in range(20):
        store.submit([1], score="busy", priority=5)
        store.submit([1, 2], Scope.ONE, score="busy")
    store.submit([1], score="late", expires_at=None)
    hold(store, Braking(scores=("busy",)))
    assert scores(store.claim(1, room)) == ["late"]
    assert store.claim(2, room) == ()
    release(store, Braking(scores=("busy",)))
    assert scores(store.claim(1, room)) == ["busy"] * room


def test_the_release_of_one_hold_leaves_the_others(store: Storehouse) -> None:
    """A task that two holds are on waits for both."""
    store.submit([1])
    hold(store)
    hold(store, Braking(hosts=("web-1",), scores=("uptime",)))
    release(store)
    assert store.claim(1) == ()
    release(store, Braking(scores=("uptime",)))
    assert store.claim(1) == ()
    release(store, Braking(hosts=("web-1",)))
    assert len(store.claim(1)) == 1


def test_what_is_held_expires_all_the_same(store: Storehouse) -> None:
    """A hold stops no clock: nothing starts later than its job allowed."""
    made = store.submit([1], expires_at=HOUR)
    hold(store)
    assert statements.expire(store.cur, HOUR).count == 1
    assert store.state(made) == "expired"
    late = store.submit([1], expires_at=HOUR)
    hold(store, Braking(scores=("uptime",)))
    release(store)
    store.claim(1, now=HOUR)
    assert store.state(late) == "expired"


def test_what_a_player_has_goes_on(store: Storehouse) -> None:
    """Its outcome counts, and what it never started waits again, held like the rest."""
    first, second = store.submit([1]), store.submit([1])
    runs = store.claim(1)
    hold(store)
    store.settle(1, report(runs[0], Told.OK), report(runs[1], Told.NEVER))
    assert (store.state(first), store.state(second)) == ("ok", "pending")
    assert store.claim(1) == ()


# ---- the record


def test_a_hold_says_what_since_when_by_whom_and_why(store: Storehouse) -> None:
    """With the number of whoever asked, and of whoever had logged in."""
    hold(store, Braking(hosts=("web-2",)), "disk swap", BOB)
    assert statements.holds(store.cur) == [
        Hold(kind=Held.HOST, name="web-2", reason="disk swap", at=AT, owner="bob", uid=1001, login_uid=1002)
    ]


def test_a_second_hold_of_the_same_changes_nothing_and_says_so(store: Storehouse) -> None:
    """The first reason stands, with whoever gave it."""
    hold(store)
    again = statements.hold(store.cur, EVERYTHING.marks, "another", BOB, AT + 1)
    assert (again.made, [one.owner for one in again.known]) == ((), ["anne"])
    assert [one.reason for one in statements.holds(store.cur)] == ["migration"]


@pytest.mark.parametrize(
    ("braking", "going_on"), [(EVERYTHING, 2), (Braking(hosts=("web-1",)), 1), (Braking(scores=("other",)), 1)]
)
def test_a_hold_says_how_much_goes_on(store: Storehouse, braking: Braking, going_on: int) -> None:
    """What was handed out before is not called back."""
    store.submit([1])
    store.submit([2], score="other")
    store.submit([1])
    store.claim(1, 1)
    store.claim(2)
    assert statements.hold(store.cur, braking.marks, "x", ANNE, AT).going_on == going_on


def test_a_release_says_what_it_lifted_and_what_is_left(store: Storehouse) -> None:
    """Of what was never held it lifts nothing; without names it lifts all."""
    hold(store)
    hold(store, Braking(hosts=("web-1", "web-2")))
    done = statements.release(store.cur, Braking(hosts=("web-1", "web-9")).marks)
    assert ([one.name for one in done.lifted], [one.name for one in done.left]) == (["web-1"], ["", "web-2"])
    assert len(statements.release(store.cur, None).lifted) == 2
    assert statements.holds(store.cur) == []


def test_a_hold_outlives_the_conductor(tmp_path: Path) -> None:
    """It is on the disk like everything else."""
    for look in (False, True):
        house = sqlite.Store(str(tmp_path))
        house.open()
        connection = house.connect()
        if not look:
            statements.hold(connection.cursor(), EVERYTHING.marks, "night", ANNE, AT)
        found = [one.reason for one in statements.holds(connection.cursor())]
        connection.close()
        house.close()
        assert found == ["night"]


# ---- the minds


def brake(*marks: tuple[Held, str]) -> Brake:
    return Brake(Hold(kind=kind, name=name, reason="r", at=AT, owner="anne", uid=1) for kind, name in marks)


def test_the_widest_hold_is_the_one_that_is_told() -> None:
    """Everything, then the host, then the score."""
    all_three = brake((Held.SCORE, "uptime"), (Held.HOST, "web-1"), (Held.EVERYTHING, ""))
    found = all_three.of("web-1", "uptime")
    assert found is not None
    assert held(found) == "everything is held since 2023-11-14 22:13:20 UTC by anne: r"
    two = brake((Held.SCORE, "uptime"), (Held.HOST, "web-1"))
    told = [two.of("web-1", "uptime"), two.of("web-2", "uptime"), two.of("web-2", "other"), two.of_host("web-1")]
    assert [one and one.name for one in told] == ["web-1", "uptime", None, "web-1"]
    assert two.some_hosts
    assert not brake((Held.SCORE, "uptime")).some_hosts


def test_one_of_work_is_not_offered_to_who_is_held() -> None:
    """Else it would get nothing, and those who could take it would not be asked."""
    scheduler = Scheduler()
    for player in (1, 2):
        session = Session(player, f"web-{player}", 1, 4, {})
        scheduler.opened(session)
        scheduler.welcomed(session)
    scheduler.braked(brake((Held.HOST, "web-1")).of_host)
    assert [wish.player for wish in scheduler.offer(Scope.ONE, (1, 2))] == [2]
    assert scheduler.offer(Scope.ALL, (1,)) == []
    scheduler.braked(brake().of_host)
    assert [wish.player for wish in scheduler.offer(Scope.ALL, (1,))] == [1]


# ---- cancels of many


def in_steps(
    store: Storehouse, choice: Choice, players: list[int] | None = None, up_to: int = NEWEST, limit: int = 2
) -> list[Cancelled]:
    """The whole of a cancel, in steps of ``limit``."""
    done = [statements.cancel_chosen(store.cur, choice, players, up_to, "anne", 5, None, limit)]
    while done[-1].after is not None:
        done.append(statements.cancel_chosen(store.cur, choice, players, up_to, "anne", 5, done[-1].after, limit))
        assert len(done) < 100
    return done


def cancelled(steps: list[Cancelled]) -> tuple[int, int]:
    return sum(step.cancelled for step in steps), sum(step.cancelling for step in steps)


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
def test_everything_is_cancelled_in_steps_that_are_bounded(store: Storehouse, limit: int) -> None:
    """What waits ends, what runs is to be killed, what has ended stays; and the counts were told before."""
    ended = store.submit([1])
    store.settle(1, report(store.claim(1)[0], Told.OK))
    running = store.submit([1, 2, 3])
    seqs = {player: store.claim(player)[0].seq for player in (1, 2)}
    waiting = [store.submit([1, 2, 3]), store.submit([1, 2], Scope.ONE)]
    chosen = statements.choose(store.cur, Choice(everything=True), None)
    assert (chosen.jobs, chosen.pending, chosen.dispatched, chosen.up_to) == (3, 5, 2, waiting[-1])
    steps = in_steps(store, Choice(everything=True), limit=limit)
    assert cancelled(steps) == (5, 2)
    assert all(step.cancelled + step.cancelling <= limit for step in steps)
    assert {player: seq for step in steps for player, seq in step.orders.items()} == {
        player: (seq,) for player, seq in seqs.items()
    }
    assert store.states(ended) == ["ok"]
    assert store.states(running) == ["dispatched", "dispatched", "cancelled"]
    assert [store.states(job) for job in waiting] == [["cancelled"] * 3, ["cancelled"]]


def test_a_choice_is_of_its_score_and_its_owner_only(store: Storehouse) -> None:
    """Both together: jobs that are of both."""
    plain = store.submit([1])
    other = store.submit([1], score="other")
    bobs = store.submit([1], score="other", owner=BOB)
    for choice, jobs in (
        (Choice(score="other"), [other, bobs]),
        (Choice(owner="bob"), [bobs]),
        (Choice(score="uptime", owner="bob"), []),
        (Choice(score="nosuch"), []),
    ):
        assert statements.choose(store.cur, choice, None).jobs == len(jobs)
    assert cancelled(in_steps(store, Choice(score="other", owner="bob"))) == (1, 0)
    assert cancelled(in_steps(store, Choice(score="other"))) == (1, 0)
    assert [store.state(job) for job in (plain, other, bobs)] == ["pending", "cancelled", "cancelled"]


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_all_that_is_on_a_host_is_cancelled_and_nothing_else(store: Storehouse, limit: int) -> None:
    """A one-of task loses that candidate, and ends with its last one."""
    all_of = [store.submit([1, 2]) for _ in range(3)]
    claimed = store.claim(1, 1)[0]
    one = store.submit([1, 2], Scope.ONE, score="other")
    last = store.submit([1], Scope.ONE, score="other")
    choice = Choice(hosts=("web-1",))
    chosen = statements.choose(store.cur, choice, [1])
    assert (chosen.jobs, chosen.pending, chosen.dispatched) == (5, 4, 1)
    steps = in_steps(store, choice, [1], limit=limit)
    assert cancelled(steps) == (3, 1)
    assert [step.orders for step in steps if step.orders] == [{1: (claimed.seq,)}]
    assert [store.states(job) for job in all_of] == [["dispatched", "pending"], *[["cancelled", "pending"]] * 2]
    assert (store.state(one), store.state(last)) == ("pending", "cancelled")
    assert store.claim(1) == ()
    assert "other" in scores(store.claim(2))


def test_jobs_that_came_after_the_question_are_left_alone(store: Storehouse) -> None:
    """What was agreed to was the count of then."""
    before = store.submit([1])
    up_to = statements.choose(store.cur, Choice(everything=True), None).up_to
    later = store.submit([1])
    in_steps(store, Choice(everything=True), up_to=up_to)
    in_steps(store, Choice(hosts=("web-1",)), [1], up_to=up_to)
    assert (store.state(before), store.state(later)) == ("cancelled", "pending")


def test_one_large_job_is_cancelled_in_steps_too(store: Storehouse) -> None:
    """Each goes on where the one before stopped."""
    made = store.submit([1, 2, 3])
    step = statements.cancel(store.cur, made, None, "anne", 0, None, 2)
    assert (step.cancelled, step.after) == (2, (made, 1))
    step = statements.cancel(store.cur, made, None, "anne", 0, step.after, 2)
    assert (step.cancelled, step.after) == (1, None)
    assert store.states(made) == ["cancelled"] * 3


# ---- alarms


def test_an_alarm_is_an_event_of_the_job_and_the_reason_of_its_task(store: Storehouse) -> None:
    """Once, however often it is told; gone when the run has ended after all."""
    made = store.submit([1])
    run = store.claim(1)[0]
    words = Started(run.seq, made, 0, 7, "still alive")
    for expected in ({made}, set()):
        assert statements.alarm(store.cur, 1, store.epochs[1], "conductor-1", [words], 9) == expected
    assert store.kinds(made) == ["submitted", "dispatched", "unkillable"]
    assert statements.task_views(store.cur, made, -1, 1)[0].reason == "still alive"
    assert statements.events(store.cur, made, 2, 1)[0].detail == "still alive"
    store.settle(1, report(run, Told.KILLED, reason="ran too long"))
    assert statements.task_views(store.cur, made, -1, 1)[0].reason == "ran too long"
    assert statements.alarm(store.cur, 1, store.epochs[1], "conductor-1", [words], 9) == set()
