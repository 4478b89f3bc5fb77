"""Jobs that roll, begin later or are paused: the waves by ==, and the store that lets them go."""

from collections import Counter
from typing import Any

import pytest
from storehouse import ANNE, HOUR, Storehouse, greet, report

from orchestra import rolling
from orchestra.errors import JobOver, RequestKeyConflict
from orchestra.model import Asker, Choice, Rolling, Run, Scope, State, Told, Waves
from orchestra.store import gates, statements
from orchestra.store.cancels import NEWEST

BOB = Asker(name="bob", uid=1001)
TEN = Waves(tasks=10, batch=3, canary=2, max_failures=1)


# ---- pure


@pytest.mark.parametrize(
    ("asked", "tasks", "waves"),
    [
        (Rolling(batch="10"), 200, Waves(tasks=200, batch=10, max_failures=0)),
        (Rolling(batch="10%"), 25, Waves(tasks=25, batch=2, max_failures=0)),
        (Rolling(batch="1%"), 25, Waves(tasks=25, batch=1, max_failures=0)),
        (Rolling(batch="300%"), 25, None),
        (Rolling(batch="0"), 25, None),
        (Rolling(batch="ten"), 25, None),
        (Rolling(batch="1", max_failures="10%"), 25, Waves(tasks=25, batch=1, max_failures=2)),
        (Rolling(batch="1", max_failures="-1"), 25, None),
        (Rolling(canary=3), 25, Waves(tasks=25, batch=25, canary=3, max_failures=0)),
        (Rolling(canary=30), 25, Waves(tasks=25, batch=25, canary=25, max_failures=0)),
        (Rolling(canary=-1), 25, None),
        (Rolling(max_failures="5"), 25, Waves(tasks=25, batch=25, max_failures=5)),
        (Rolling(batch="5", pause=1.5), 25, Waves(tasks=25, batch=5, max_failures=0, pause=1500)),
        (Rolling(max_failures="5", pause=1.5), 25, None),
        (Rolling(batch="5", pause=float("inf")), 25, None),
        (Rolling(batch="5", pause=float("nan")), 25, None),
    ],
)
def test_the_waves_of_a_request(asked: Rolling, tasks: int, waves: Waves | None) -> None:
    """Shares are rounded down, a batch is at least one; what cannot be is refused."""
    if waves is None:
        with pytest.raises(ValueError, match=r"batch|canary|max_failures|pause"):
            rolling.planned(asked, tasks)
    else:
        assert rolling.planned(asked, tasks) == waves


def test_waves_go_by_the_number_of_the_task() -> None:
    """Canaries first, then batches, the last one what is left."""
    assert [rolling.reach(TEN, wave) for wave in range(6)] == [0, 2, 5, 8, 10, 10]
    assert [rolling.wave_of(TEN, task) for task in range(10)] == [1, 1, 2, 2, 2, 3, 3, 3, 4, 4]
    assert rolling.how_many(TEN) == 4
    assert rolling.how_many(Waves(tasks=10, batch=3)) == 4
    assert rolling.how_many(Waves(tasks=2, batch=2, canary=2)) == 1


CANARIES = "every canary must be ok: "


@pytest.mark.parametrize(
    ("wave", "counts", "over", "says"),
    [
        (1, {State.OK: 2}, True, ""),
        (1, {State.FAILED: 1, State.PENDING: 1}, False, f"{CANARIES}1 failed"),
        (1, {State.CANCELLED: 1, State.DISPATCHED: 1}, False, ""),
        (1, {State.CANCELLED: 1, State.OK: 1}, True, f"{CANARIES}1 cancelled"),
        (1, {State.OK: 2, State.CANCELLED: 3}, True, ""),
        (2, {State.FAILED: 1}, True, ""),
        (2, {State.FAILED: 1, State.LOST: 1}, False, "1 failed, 1 lost: that is more than max_failures, 1"),
        (2, {State.EXPIRED: 1, State.REFUSED: 1}, False, "1 expired, 1 refused: that is more than max_failures, 1"),
        (2, {State.KILLED: 2, State.CANCELLED: 5}, True, "2 killed: that is more than max_failures, 1"),
        (2, {State.CANCELLED: 5}, True, ""),
    ],
)
def test_what_stops_a_job(wave: int, counts: dict[State, int], over: bool, says: str) -> None:
    """Any canary that is not ok; more failures than allowed; a cancel is no failure."""
    assert rolling.trouble(TEN, wave, counts, over) == says


def test_without_a_limit_nothing_stops_a_job() -> None:
    """One that only begins later, or is paused."""
    assert rolling.trouble(Waves(tasks=2, batch=2), 1, {State.FAILED: 2}, True) == ""


# ---- in the store


@pytest.fixture
def store() -> Storehouse:
    return Storehouse(6)


def roll(store: Storehouse, many: int = 6, **waves: Any) -> int:
    asked: dict[str, Any] = {"tasks": many, "batch": 2, "max_failures": 0} | waves
    return store.submit(range(1, many + 1), waves=Waves(**asked))


def run_all(store: Storehouse, told: Told = Told.OK, now: int = 0) -> list[int]:
    """Everybody takes what there is and ends it so; who that was."""
    given = [(player, run) for player in sorted(store.epochs) for run in store.claim(player, now=now)]
    for player, run in given:
        store.settle(player, report(run, told), now=now)
    return [player for player, _ in given]


def kinds(store: Storehouse, job: int, *wanted: str) -> list[str]:
    return [event.detail for event in statements.events(store.cur, job, 0, 100_000) if event.kind in wanted]


def check_books(store: Storehouse) -> None:
    """Counts are those of the tasks, here and in the totals."""
    rows = store.cur.execute("SELECT job_id, state, count(*) FROM tasks GROUP BY 1, 2").fetchall()
    totals: Counter[int] = Counter()
    for job, state, many in rows:
        totals[state] += many
        assert statements.job_view(store.cur, job).counts[State(state).label] == many
    kept = dict(store.cur.execute("SELECT state, many FROM totals").fetchall())
    assert kept == {state: totals[state] for state in (0, 1, 2)}


def test_the_last_outcome_of_a_wave_lets_the_next_one_go(store: Storehouse) -> None:
    """In its own transaction, and not before."""
    job = roll(store)
    assert store.states(job) == ["pending"] * 2 + ["held"] * 4
    (one,), (two,) = store.claim(1), store.claim(2)
    assert [store.claim(player) for player in (3, 4, 5, 6)] == [()] * 4
    store.settle(1, report(one, Told.OK))
    assert store.claim(3) == ()
    done = store.settle(2, report(two, Told.OK))
    assert [(task.n, task.player, task.score) for task in done.freed] == [(2, 3, "uptime"), (3, 4, "uptime")]
    assert store.states(job) == ["ok", "ok", "pending", "pending", "held", "held"]
    assert (run_all(store), run_all(store)) == ([3, 4], [5, 6])
    view = statements.job_view(store.cur, job)
    assert (view.verdict, view.counts, view.ended_at) == ("ok", {"ok": 6}, 0)
    assert kinds(store, job, "wave") == [f"wave {n} of 3: 2 tasks" for n in (1, 2, 3)]
    check_books(store)


@pytest.mark.parametrize("told", [Told.FAILED, Told.KILLED, Told.REFUSED, Told.LOST])
def test_more_failures_than_allowed_cancel_the_rest(store: Storehouse, told: Told) -> None:
    """At once, and it says why; what a player has goes on."""
    job = roll(store, batch=3)
    [bad], [going_on] = store.claim(1), store.claim(2)
    done = store.settle(1, report(bad, told))
    said = f"stopped: 1 {told}: that is more than max_failures, 0"
    assert store.states(job) == [told.value, "dispatched", *["cancelled"] * 4]
    assert {view.reason for view in statements.task_views(store.cur, job, 1, 10)} == {said}
    assert (done.freed, kinds(store, job, "stopped")) == ((), [said])
    course = statements.job_view(store.cur, job).course
    assert course is not None
    assert course.stopped == said
    store.settle(2, report(going_on, Told.OK))
    assert statements.job_view(store.cur, job).verdict == "partial"
    check_books(store)


def test_a_failure_that_is_allowed_stops_nothing(store: Storehouse) -> None:
    """Failures are counted over all waves."""
    job = roll(store, batch=1, max_failures=2)
    for player in (1, 2):
        [run] = store.claim(player)
        store.settle(player, report(run, Told.FAILED))
    assert store.states(job)[2] == "pending"
    [run] = store.claim(3)
    store.settle(3, report(run, Told.FAILED))
    assert store.states(job) == ["failed"] * 3 + ["cancelled"] * 3


def test_what_comes_back_to_a_stopped_job_is_not_started_again(store: Storehouse) -> None:
    """Though it never was: the next attempt would be a start after the stop."""
    job = roll(store, batch=3)
    [bad], [never] = store.claim(1), store.claim(2)
    store.settle(1, report(bad, Told.FAILED))
    store.settle(2, report(never, Told.NEVER))
    assert store.states(job) == ["failed", *["cancelled"] * 5]
    check_books(store)


def test_what_may_have_run_is_lost_when_its_job_is_stopped(store: Storehouse) -> None:
    """An earlier attempt of it did start."""
    job = store.submit([1, 2], waves=Waves(tasks=2, batch=2, max_failures=0), idempotent=True)
    [one] = store.claim(1)
    store.settle(1, report(one, Told.LOST))
    [two] = store.claim(2)
    store.settle(2, report(two, Told.FAILED))
    assert store.states(job) == ["lost", "failed"]


def test_every_canary_must_be_ok(store: Storehouse) -> None:
    """One that was cancelled has proved nothing."""
    job = roll(store, canary=2, max_failures=5)
    statements.cancel(store.cur, job, [1], "anne", 0)
    assert run_all(store) == [2]
    assert store.states(job) == ["cancelled", "ok", *["cancelled"] * 4]
    assert kinds(store, job, "stopped") == ["stopped: every canary must be ok: 1 cancelled"]


def test_canaries_that_were_cancelled_before_they_could_begin_are_not_passed_over(store: Storehouse) -> None:
    """Nobody has proved anything."""
    job = roll(store, canary=2)
    later = store.submit(range(1, 7), waves=Waves(tasks=6, batch=2, canary=1, max_failures=0), not_before=HOUR)
    statements.cancel(store.cur, later, [1], "anne", 0)
    statements.cancel(store.cur, job, [6], "anne", 0)
    statements.open_due(store.cur, HOUR)
    assert store.states(later) == ["cancelled"] * 6
    assert [run_all(store, now=HOUR) for _ in range(3)] == [[1, 2], [3, 4], [5]]
    check_books(store)


def test_a_wave_that_is_cancelled_is_passed_over(store: Storehouse) -> None:
    """A cancel on hosts is not one of the job."""
    job = roll(store)
    statements.cancel(store.cur, job, [3, 4], "anne", 0)
    done = statements.cancel(store.cur, job, [1, 2], "anne", 0)
    assert store.states(job) == ["cancelled"] * 4 + ["pending"] * 2
    assert [task.player for task in done.freed] == [5, 6]
    assert kinds(store, job, "wave") == ["wave 1 of 3: 2 tasks", "wave 2 of 3: 0 tasks", "wave 3 of 3: 2 tasks"]
    assert run_all(store) == [5, 6]
    check_books(store)


def test_a_cancel_of_the_job_lets_no_wave_go(store: Storehouse) -> None:
    """However small its steps are; one that is broken off is carried on by the sweep."""
    job = roll(store)
    step = statements.cancel(store.cur, job, None, "anne", 0, limit=2)
    assert (step.cancelled, step.freed) == (2, ())
    assert store.states(job) == ["cancelled"] * 2 + ["held"] * 4
    again = statements.cancel(store.cur, job, None, "bob", 0, step.after)
    assert (again.cancelled, again.ended) == (4, {job})
    other = roll(store)
    statements.cancel_chosen(store.cur, Choice(everything=True), None, NEWEST, "anne", 0, limit=2)
    assert [store.claim(player) for player in store.epochs] == [()] * 6
    assert statements.open_due(store.cur, gates.CANCELLER - 1).count == 0
    assert statements.open_due(store.cur, gates.CANCELLER).ended == {other}
    assert {view.reason for view in statements.task_views(store.cur, other, -1, 10)} == {"cancelled by anne"}
    check_books(store)


def test_cancels_on_hosts_find_what_is_held(store: Storehouse) -> None:
    """Of all-of and of one-of jobs."""
    job = roll(store)
    later = store.submit([5, 6], Scope.ONE, not_before=HOUR)
    choice = Choice(hosts=("web-5",))
    assert statements.choose(store.cur, choice, [5]).pending == 2
    done = statements.cancel_chosen(store.cur, choice, [5], NEWEST, "anne", 0)
    assert (done.cancelled, store.states(job)[4], store.state(later)) == (1, "cancelled", "held")
    assert statements.choose(store.cur, choice, [5]).pending == 0
    statements.cancel_chosen(store.cur, Choice(hosts=("web-6",)), [6], NEWEST, "anne", 0)
    assert (store.states(job)[5], store.state(later)) == ("cancelled", "cancelled")
    check_books(store)


def test_between_two_waves_there_may_be_a_pause(store: Storehouse) -> None:
    """By the store's clock, kept by the sweep."""
    job = roll(store, pause=30_000)
    run_all(store, now=1_000)
    assert store.states(job) == ["ok"] * 2 + ["held"] * 4
    course = statements.job_view(store.cur, job).course
    assert course is not None
    assert course.next_at == 31_000
    assert statements.open_due(store.cur, 30_999).count == 0
    assert [task.player for task in statements.open_due(store.cur, 31_000).freed] == [3, 4]
    assert run_all(store, now=32_000) == [3, 4]
    assert kinds(store, job, "waiting") == ["30 s until wave 2", "30 s until wave 3"]
    check_books(store)


def test_what_is_large_is_stopped_in_steps() -> None:
    """The first at once, the others by the sweep; nothing is handed out meanwhile."""
    store = Storehouse(1)
    job = store.submit([1] * 2_500, waves=Waves(tasks=2_500, batch=2_400, max_failures=0))
    run, *others = store.claim(1, 3)
    store.settle(1, report(run, Told.FAILED))
    assert statements.job_view(store.cur, job).counts == {
        "failed": 1, "dispatched": 2, "cancelled": 1_000, "pending": 1_397, "held": 100,
    }  # fmt: skip
    assert store.claim(1) == ()
    assert statements.open_due(store.cur, 0).more
    while statements.open_due(store.cur, 0).more:
        pass
    assert statements.job_view(store.cur, job).counts == {"failed": 1, "dispatched": 2, "cancelled": 2_497}
    for other in others:
        store.settle(1, report(other, Told.NEVER))
    assert statements.job_view(store.cur, job).verdict == "failed"
    check_books(store)


def test_a_rolling_job_expires_as_others_do(store: Storehouse) -> None:
    """What is held expires with what waits, and nothing else becomes of it on the way."""
    job = store.submit(range(1, 7), waves=Waves(tasks=6, batch=2, max_failures=0), expires_at=HOUR)
    [run] = store.claim(1)
    store.settle(1, report(run, Told.OK))
    statements.expire(store.cur, HOUR, limit=1)
    assert store.states(job) == ["ok", "expired", *["held"] * 4]
    assert store.claim(2, now=HOUR) == ()
    statements.expire(store.cur, HOUR)
    assert store.states(job) == ["ok", *["expired"] * 5]
    check_books(store)


def test_a_removed_player_holds_no_wave_up(store: Storehouse) -> None:
    """Held tasks of it end as pending ones do."""
    job = roll(store)
    statements.sync_players(store.cur, [name for name in store.names if name not in ("web-1", "web-3")], 0)
    statements.sweep_removed(store.cur, 1, 1)
    assert store.states(job) == ["cancelled", "pending", "cancelled", "held", "held", "held"]
    assert (run_all(store), run_all(store)) == ([2], [4])
    check_books(store)


def test_a_one_of_job_that_begins_later_ends_when_no_candidate_is_left(store: Storehouse) -> None:
    """As one that waits now."""
    job = store.submit([1, 2], Scope.ONE, not_before=HOUR)
    for gone in (["web-1"], ["web-1", "web-2"]):
        assert store.state(job) == "held"
        statements.sync_players(store.cur, [name for name in store.names if name not in gone], 0)
        statements.strike_removed(store.cur, 1, 1)
    assert store.state(job) == "cancelled"
    check_books(store)


def test_a_player_that_is_further_than_the_store_loses_what_is_held_for_it_too(store: Storehouse) -> None:
    """That wave may have been let go in what the store has forgotten."""
    job = roll(store, max_failures=6)
    greeting = greet(store.cur, 3, high=9)
    assert store.states(job)[2] == "lost"
    assert greeting.jobs == {job}


def test_a_new_journal_may_end_a_wave(store: Storehouse) -> None:
    """And lets the next one go in the same commit."""
    job = roll(store, batch=1, max_failures=6)
    store.claim(1)
    greeting = greet(store.cur, 1, journal="another")
    assert store.states(job)[:2] == ["lost", "pending"]
    assert [task.player for task in greeting.freed] == [2]


# ---- later


@pytest.mark.parametrize("scope", [Scope.ALL, Scope.ONE])
def test_a_job_may_begin_later(store: Storehouse, scope: Scope) -> None:
    """Until then nobody is given it; a moment that has passed is no reason to wait."""
    job = store.submit([1, 2], scope, not_before=HOUR)
    assert [store.claim(player) for player in (1, 2)] == [(), ()]
    assert statements.open_due(store.cur, HOUR - 1).count == 0
    done = statements.open_due(store.cur, HOUR)
    assert {task.player or task.candidates for task in done.freed} == ({1, 2} if scope is Scope.ALL else {(1, 2)})
    assert len(run_all(store, now=HOUR)) == (2 if scope is Scope.ALL else 1)
    assert statements.job_view(store.cur, job).verdict == "ok"
    assert kinds(store, job, "begun") == [""]
    late = store.submit([1, 2], scope, not_before=HOUR, now=HOUR)
    assert statements.job_view(store.cur, late).counts == {"pending": 2 if scope is Scope.ALL else 1}
    check_books(store)


def test_a_rolling_job_may_begin_later(store: Storehouse) -> None:
    """With its first wave."""
    job = store.submit(range(1, 7), waves=Waves(tasks=6, batch=4, max_failures=0), not_before=HOUR)
    statements.open_due(store.cur, HOUR)
    assert store.states(job) == ["pending"] * 4 + ["held"] * 2
    assert (run_all(store, now=HOUR), run_all(store, now=HOUR)) == ([1, 2, 3, 4], [5, 6])


# ---- paused


def test_nothing_of_a_paused_job_is_handed_out(store: Storehouse) -> None:
    """What a player has goes on; what waits does so until it is resumed, and hides nothing behind it."""
    job = store.submit([1, 2])
    [run] = store.claim(1)
    done = statements.pause(store.cur, job, ANNE, 5)
    assert (done.new, done.going_on, done.paused.owner, done.paused.at) == (True, 1, "anne", 5)
    behind = store.submit([2], now=6)
    assert [run.job for run in store.claim(2, 1)] == [behind]
    assert store.states(job) == ["dispatched", "held"]
    store.settle(1, report(run, Told.OK))
    again = statements.pause(store.cur, job, BOB, 7)
    assert (again.new, again.paused) == (False, done.paused)
    assert statements.job_view(store.cur, job).paused == done.paused
    back = statements.resume(store.cur, job, BOB, 8)
    assert (back.was, [task.player for task in back.freed]) == (done.paused, [2])
    assert [run.job for run in store.claim(2)] == [job]
    assert statements.resume(store.cur, job, BOB, 9).was is None
    assert [kind for kind in store.kinds(job) if kind.startswith(("pau", "res"))] == ["paused", "resumed"]
    check_books(store)


def test_a_paused_one_of_job_goes_to_nobody_and_then_to_any(store: Storehouse) -> None:
    """Its candidates are what they were."""
    job = store.submit([1, 2], Scope.ONE)
    statements.pause(store.cur, job, ANNE, 0)
    assert [store.claim(player) for player in (1, 2)] == [(), ()]
    assert store.cur.execute("SELECT count(*) FROM candidates").fetchone() == (0,)
    [freed] = statements.resume(store.cur, job, ANNE, 0).freed
    assert (freed.player, freed.candidates) == (None, (1, 2))
    assert len(store.claim(2)) == 1
    check_books(store)


def test_a_wave_that_ends_while_the_job_is_paused_lets_none_go(store: Storehouse) -> None:
    """The resume does."""
    job = roll(store)
    given = [(player, run) for player in (1, 2) for run in store.claim(player)]
    statements.pause(store.cur, job, ANNE, 0)
    for player, run in given:
        store.settle(player, report(run, Told.OK))
    assert store.states(job)[2:] == ["held"] * 4
    assert [task.player for task in statements.resume(store.cur, job, ANNE, 0).freed] == [3, 4]
    check_books(store)


def test_canaries_that_were_set_aside_are_no_failure(store: Storehouse) -> None:
    """They have yet to run."""
    job = roll(store, canary=2)
    statements.pause(store.cur, job, ANNE, 0)
    assert run_all(store) == []
    assert store.states(job) == ["held"] * 6
    statements.resume(store.cur, job, ANNE, 0)
    assert [run_all(store) for _ in range(3)] == [[1, 2], [3, 4], [5, 6]]


def test_a_pause_outlasts_the_hour_at_which_a_job_was_to_begin(store: Storehouse) -> None:
    """It begins when it is resumed, and is not looked for meanwhile."""
    job = store.submit([1], not_before=10)
    statements.pause(store.cur, job, ANNE, 0)
    swept = statements.open_due(store.cur, 20)
    assert (swept.count, swept.more) == (0, False)
    statements.resume(store.cur, job, ANNE, 30)
    statements.open_due(store.cur, 30)
    assert run_all(store, now=30) == [1]


def test_a_pause_stops_no_clock(store: Storehouse) -> None:
    """What has not started in time expires; it can be cancelled, too."""
    job, other = store.submit([1], expires_at=HOUR), store.submit([1])
    for each in (job, other):
        statements.pause(store.cur, each, ANNE, 0)
    statements.cancel(store.cur, other, None, "bob", 0)
    statements.expire(store.cur, HOUR)
    assert (store.state(job), store.state(other)) == ("expired", "cancelled")
    for ask in (statements.pause, statements.resume):
        with pytest.raises(JobOver, match=f"Job {job} has ended"):
            ask(store.cur, job, ANNE, HOUR)
    check_books(store)


def test_failures_stop_a_job_that_is_paused(store: Storehouse) -> None:
    """And then there is nothing left to resume."""
    job = roll(store, batch=3)
    [run], _ = store.claim(1), store.claim(2)
    statements.pause(store.cur, job, ANNE, 0)
    store.settle(1, report(run, Told.FAILED))
    assert store.states(job) == ["failed", "dispatched", *["cancelled"] * 4]
    with pytest.raises(JobOver, match="stopped: 1 failed"):
        statements.resume(store.cur, job, ANNE, 0)


# ---- with the rest of the store


def test_a_request_key_knows_how_a_job_rolls(store: Storehouse) -> None:
    """The same waves are the same job; other ones, or none, are another request. When it begins may differ."""
    same: dict[str, Any] = {"request_key": "k", "waves": Waves(tasks=2, batch=1, max_failures=0)}
    made = store.submitted([1, 2], **same, not_before=HOUR)
    assert store.submitted([1, 2], **same, not_before=2 * HOUR, now=3 * HOUR).job == made.job
    for other in ({"waves": None}, {"waves": Waves(tasks=2, batch=1, max_failures=1)}, {"not_before": None}):
        with pytest.raises(RequestKeyConflict):
            store.submitted([1, 2], **({"not_before": HOUR} | same | other))


def test_a_pruned_job_leaves_no_gate(store: Storehouse) -> None:
    """Its row goes with the job's."""
    roll(store)
    statements.cancel(store.cur, 1, None, "anne", 0)
    statements.prune(store.cur, 10, 1, 1 << 40)
    assert store.cur.execute("SELECT count(*) FROM gates").fetchone() == (0,)


def test_a_plain_job_never_asks_for_a_gate(store: Storehouse) -> None:
    """What does not roll costs nothing."""
    asked: list[str] = []
    store.connection.set_trace_callback(asked.append)
    job = store.submit([1, 2])
    runs: list[Run] = [*store.claim(1), *store.claim(2)]
    for player, run in enumerate(runs, 1):
        store.settle(player, report(run, Told.OK))
    store.connection.set_trace_callback(None)
    assert store.states(job) == ["ok", "ok"]
    assert [sql for sql in asked if "gates" in sql or "state = 2" in sql] == []
