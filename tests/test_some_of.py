"""A job for some of its targets: so many tasks, each on another player, and none that waits for nobody."""

from collections import Counter

import pytest
from storehouse import ANNE, HOUR, Storehouse, report

from orchestra.model import Choice, Run, Scope, State, Told
from orchestra.store import pools, statements


@pytest.fixture
def store() -> Storehouse:
    return Storehouse(4)


def some(store: Storehouse, players: tuple[int, ...], count: int, **changes: object) -> int:
    return store.submit(players, Scope.SOME, count=count, **changes)


def claim(store: Storehouse, player: int) -> Run:
    [run] = store.claim(player)
    return run


def states(store: Storehouse, job: int) -> Counter[str]:
    return Counter(task.state for task in statements.task_views(store.cur, job, -1, 100))


def candidates(store: Storehouse, job: int) -> list[int]:
    rows = store.cur.execute("SELECT player_id FROM candidates WHERE job_id = ? ORDER BY player_id", (job,))
    return [player for (player,) in rows]


def test_each_task_goes_to_another_player(store: Storehouse) -> None:
    """A player that asks again is given no second one; with the last task nobody is a candidate any more."""
    job = some(store, (1, 2, 3, 4), 2)
    assert claim(store, 3).task == 0
    assert store.claim(3) == ()
    assert candidates(store, job) == [1, 2, 4]
    assert claim(store, 1).task == 1
    assert candidates(store, job) == []
    assert store.claim(2) == ()


def test_one_ask_is_given_one_task_however_much_room_there_is(store: Storehouse) -> None:
    first, second = some(store, (1, 2), 2), some(store, (1, 2), 2)
    assert [(run.job, run.task) for run in store.claim(1)] == [(first, 0), (second, 0)]


def test_who_proved_that_it_never_started_may_be_given_another(store: Storehouse) -> None:
    job = some(store, (1, 2, 3), 2)
    run = claim(store, 1)
    claim(store, 2)
    settled = store.settle(1, report(run, Told.NEVER))
    assert [(one.n, one.player, one.candidates) for one in settled.freed] == [(0, None, (1, 3))]
    assert candidates(store, job) == [1, 3]
    assert claim(store, 3).task == 0
    assert states(store, job) == {"dispatched": 2}


def test_who_refuses_is_struck_for_all_of_them(store: Storehouse) -> None:
    job = some(store, (1, 2, 3), 2)
    store.settle(1, report(claim(store, 1), Told.REFUSED))
    assert store.claim(1) == ()
    assert (claim(store, 2).task, claim(store, 3).task) == (0, 1)
    assert states(store, job) == {"dispatched": 2}


def test_what_nobody_is_left_for_ends_as_refused(store: Storehouse) -> None:
    """At once, and only as many as there are too few players."""
    job = some(store, (1, 2, 3), 3)
    store.settle(2, report(claim(store, 2), Told.REFUSED))
    assert states(store, job) == {"pending": 2, "refused": 1}
    store.settle(1, report(claim(store, 1), Told.OK))
    store.settle(3, report(claim(store, 3), Told.OK))
    view = statements.job_view(store.cur, job)
    assert (view.verdict, view.counts) == ("partial", {"ok": 2, "refused": 1})


def test_a_refusal_after_one_that_may_have_run_is_lost(store: Storehouse) -> None:
    job = some(store, (1, 2), 1, idempotent=True)
    store.settle(1, report(claim(store, 1), Told.LOST))
    store.settle(2, report(claim(store, 2), Told.REFUSED))
    assert states(store, job) == {"lost": 1}


def test_who_may_have_started_one_is_given_no_other(store: Storehouse) -> None:
    """An idempotent one that was lost goes to somebody else, as long as there is somebody to spare."""
    job = some(store, (1, 2, 3), 2, idempotent=True)
    store.settle(1, report(claim(store, 1), Told.LOST))
    assert candidates(store, job) == [2, 3]
    assert store.claim(1) == ()
    claim(store, 2)
    claim(store, 3)
    assert states(store, job) == {"dispatched": 2}


def test_a_lost_one_stays_with_its_player_when_all_others_are_needed(store: Storehouse) -> None:
    """It may have it again, this one and no other; and what it then proves never to have begun stays with it."""
    job = some(store, (1, 2), 2, idempotent=True)
    lost = claim(store, 1)
    settled = store.settle(1, report(lost, Told.LOST))
    assert [(one.n, one.player) for one in settled.freed] == [(lost.task, 1)]
    assert candidates(store, job) == [2]
    again = claim(store, 1)
    assert (again.task, again.attempt) == (lost.task, 2)
    store.settle(1, report(again, Told.NEVER))
    assert claim(store, 2).task == 1
    assert claim(store, 1).task == lost.task


def test_a_removed_player_leaves_the_pool_and_what_nobody_is_left_for_ends(store: Storehouse) -> None:
    job = some(store, (1, 2, 3), 2)
    statements.sync_players(store.cur, ["web-3", "web-4"], 0)
    statements.sweep_removed(store.cur, 2 * HOUR, HOUR)
    assert states(store, job) == {"pending": 1, "cancelled": 1}
    assert candidates(store, job) == [3]


def test_a_cancel_on_some_hosts_leaves_what_others_can_do(store: Storehouse) -> None:
    job = some(store, (1, 2, 3, 4), 3)
    run = claim(store, 1)
    done = statements.cancel(store.cur, job, [1, 2], "anne", 0)
    assert (done.cancelled, done.cancelling, done.orders) == (0, 1, {1: (run.seq,)})
    store.settle(1, report(run, Told.NEVER))
    assert states(store, job) == {"pending": 2, "cancelled": 1}
    assert candidates(store, job) == [3, 4]
    assert statements.cancel(store.cur, job, [3], "anne", 0).cancelled == 1
    assert claim(store, 4).job == job


def test_all_that_is_on_a_host_can_be_cancelled(store: Storehouse) -> None:
    """One task at most would have gone to that host."""
    job = some(store, (1, 2), 2)
    choice = Choice(hosts=("web-1",))
    assert statements.choose(store.cur, choice, [1]).pending == 1
    assert statements.cancel_chosen(store.cur, choice, [1], job, "anne", 0).cancelled == 1
    assert states(store, job) == {"pending": 1, "cancelled": 1}
    assert candidates(store, job) == [2]
    assert statements.cancel_chosen(store.cur, choice, [1], job, "anne", 0).cancelled == 0


def test_what_is_overdue_when_it_is_claimed_expires_whole(store: Storehouse) -> None:
    job = some(store, (1, 2, 3), 2, expires_at=HOUR)
    assert store.claim(1, now=HOUR) == ()
    assert states(store, job) == {"expired": 2}
    assert candidates(store, job) == []


def test_a_paused_job_is_set_aside_whole_and_goes_on(store: Storehouse) -> None:
    job = some(store, (1, 2, 3), 3)
    run = claim(store, 1)
    statements.pause(store.cur, job, ANNE, 0)
    assert store.claim(2) == ()
    assert (states(store, job), candidates(store, job)) == ({"dispatched": 1, "held": 2}, [])
    store.settle(1, report(run, Told.NEVER))
    assert candidates(store, job) == [1, 2, 3]
    statements.resume(store.cur, job, ANNE, 0)
    assert [claim(store, player).task for player in (2, 3, 1)] == [0, 1, 2]


def test_a_job_that_begins_later_opens_to_all_of_its_targets(store: Storehouse) -> None:
    job = some(store, (1, 2, 3), 2, not_before=HOUR, expires_at=None)
    assert (states(store, job), candidates(store, job)) == ({"held": 2}, [])
    opened = statements.open_due(store.cur, HOUR)
    assert [(one.n, one.player, one.candidates) for one in opened.freed] == [(0, None, (1, 2, 3)), (1, None, (1, 2, 3))]
    assert candidates(store, job) == [1, 2, 3]


def test_a_rerun_is_for_those_that_can_do_what_ended_badly(store: Storehouse) -> None:
    """Not for who did another task of it well."""
    job = some(store, (1, 2, 3, 4), 2)
    store.settle(1, report(claim(store, 1), Told.OK))
    store.settle(2, report(claim(store, 2), Told.FAILED))
    again = statements.again(store.cur, job, [State.FAILED])
    assert (again.names, again.count) == (("web-2", "web-3", "web-4"), 1)


def test_the_next_task_is_found_in_an_index_alone(store: Storehouse) -> None:
    """A thousand that have started are not looked through for the next that waits."""
    plan = store.cur.execute(f"EXPLAIN QUERY PLAN {pools._PENDING}", (0, 1, 1, 1)).fetchall()
    assert [row[3] for row in plan] == [
        "SEARCH tasks USING COVERING INDEX tasks_pending (player_id=? AND rank=? AND score_id=? AND job_id=?)"
    ]
