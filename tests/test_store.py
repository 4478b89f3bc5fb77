"""The conductor's store: what it promises of jobs, reports, sessions and sweeps, and its file."""

import os
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from storehouse import ANNE, HOUR, OWNER, Storehouse, greet, report

from orchestra.errors import (
    AlreadyRunning,
    NoSuchJob,
    NotAPlayer,
    RequestKeyConflict,
    RetiredJournal,
    SchemaTooNew,
    StoreUnreadable,
    Superseded,
)
from orchestra.model import Asker, Catalogue, Move, Piece, Run, Scope, ScoreEntry, State, Stream, Told
from orchestra.store import moves, sqlite, statements
from orchestra.store.ledger import Ledger


@pytest.fixture
def store() -> Storehouse:
    return Storehouse()


def run_of(store: Storehouse, player: int = 1, now: int = 0) -> Run:
    """The one run that waits for a player."""
    (run,) = store.claim(player, now=now)
    return run


# ---- players


def test_a_player_keeps_its_id_for_ever(store: Storehouse) -> None:
    """Removed, it is not one of the players; back again, it is the one it was."""
    gone = statements.sync_players(store.cur, ["web-1", "db-1"], 5)
    assert (gone.added, gone.removed, gone.returned) == (("db-1",), ("web-2", "web-3"), ())
    assert gone.ids == {"web-1": 1, "db-1": 4}
    back = statements.sync_players(store.cur, ["web-1", "web-2"], 6)
    assert (back.added, back.removed, back.returned) == ((), ("db-1",), ("web-2",))
    assert statements.roster(store.cur) == {
        "web-1": (1, True),
        "web-2": (2, True),
        "web-3": (3, False),
        "db-1": (4, False),
    }


def test_a_hello_begins_a_session_and_ends_the_one_before(store: Storehouse) -> None:
    """The newest connection of a player wins; what an older one says is refused."""
    store.submit([1])
    run = run_of(store)
    old = store.epochs[1]
    greeting = greet(store.cur, 1, 7)
    assert (greeting.epoch, greeting.next_seq, greeting.open_scores) == (old + 1, 2, {1: "uptime"})
    assert [(o.seq, o.job, o.task, o.attempt, o.cancel) for o in greeting.open] == [(1, run.job, 0, 1, False)]
    with pytest.raises(Superseded):
        store.settle(1, report(run, Told.OK))
    with pytest.raises(Superseded):
        statements.save_pieces(store.cur, 1, old, OWNER, ())


def test_another_conductor_takes_a_player_over(store: Storehouse) -> None:
    """The epoch alone is not enough: it is the owner's."""
    taken = greet(store.cur, 1, owner="conductor-2")
    with pytest.raises(Superseded):
        statements.settle(store.cur, 1, taken.epoch, OWNER, (), 0)


def test_a_stranger_is_not_let_in(store: Storehouse) -> None:
    """Nor is a player that was removed."""
    statements.sync_players(store.cur, ["web-2"], 0)
    for player in (1, 99):
        with pytest.raises(NotAPlayer):
            greet(store.cur, player)


def test_a_new_journal_loses_what_was_open_and_retires_the_old_one(store: Storehouse) -> None:
    """Even an idempotent score is not run again: nobody knows whether the earlier run lives."""
    open_job = store.submit([1], idempotent=True)
    run = run_of(store)
    waiting = store.submit([1])
    greeting = greet(store.cur, 1, journal="another")
    assert greeting.journal_is_new and greeting.open == () and greeting.next_seq == 2
    assert (greeting.jobs, greeting.ended) == ({open_job}, {open_job})
    assert (store.state(open_job), store.state(waiting)) == ("lost", "pending")
    with pytest.raises(RetiredJournal):
        greet(store.cur, 1)
    store.epochs[1] = greeting.epoch
    assert store.settle(1, report(run, Told.OK)).late == 1
    assert store.state(open_job) == "lost"


def test_a_store_that_went_back_in_time_is_found_out(store: Storehouse) -> None:
    """The journal has seen numbers that the store has not given: all of that player's tasks are lost."""
    dispatched = store.submit([1, 2], idempotent=True)
    run_of(store)
    waiting = store.submit([1])
    greeting = greet(store.cur, 1, high=2)
    assert greeting.next_seq == 3
    assert store.states(dispatched) == ["lost", "pending"]
    assert store.state(waiting) == "lost"
    assert len(greeting.notes) == 1 and "earlier state" in greeting.notes[0]


def test_a_journal_that_two_players_share_is_remarked_on(store: Storehouse) -> None:
    """A cloned disk."""
    greeting = greet(store.cur, 2, journal="journal-1")
    assert any("web-1" in note for note in greeting.notes)


def test_goodbye_ends_the_session_it_is_of(store: Storehouse) -> None:
    """A newer one goes on."""

    def online() -> list[str]:
        return [row.view.status for row in statements.player_rows(store.cur, "", 10, ["web-1"])]

    statements.goodbye(store.cur, 1, store.epochs[1] - 1, 5)
    assert online() == ["online"]
    statements.goodbye(store.cur, 1, store.epochs[1], 5)
    assert online() == ["offline"]


def test_a_catalogue_is_kept_once_for_all_that_share_it(store: Storehouse) -> None:
    """And is asked for only when its body is not here."""
    one = Catalogue("d1", (ScoreEntry("uptime", "x", "", "env", 1, 1, 1, False, 3),))
    assert greet(store.cur, 1, catalogue="d1").wanted == ("d1",)
    statements.announce(store.cur, 1, one, 0)
    assert greet(store.cur, 2, catalogue="d1").wanted == ()
    assert statements.catalogues_in_use(store.cur) == [(one, (1, 2))]
    assert statements.player_catalogues(store.cur) == {1: "d1", 2: "d1"}
    assert statements.player_rows(store.cur, "web-1", 1)[0].view.scores == 1
    statements.announce(store.cur, 1, Catalogue("d2", ()), 0)
    assert statements.catalogue(store.cur, "d1") == one
    statements.announce(store.cur, 2, Catalogue("d2", ()), 0)
    assert statements.catalogue(store.cur, "d1") is None
    assert statements.catalogue(store.cur, "d2") == Catalogue("d2", ())


# ---- submits


def test_a_request_key_makes_one_job(store: Storehouse) -> None:
    """The same request again is the same job; another request under that key is an error."""
    first = store.submitted([1, 2], request_key="k")
    again = store.submitted([1, 2], now=9, request_key="k", expires_at=25 * HOUR)
    assert (first.created, again.created) == (True, False)
    assert (again.job, again.tasks) == (first.job, 2)
    others: list[dict[str, Any]] = [{"params": {}}, {"score": "x"}, {"priority": 1}, {"expires_at": None}]
    for changes in others:
        with pytest.raises(RequestKeyConflict):
            store.submit([1, 2], request_key="k", **changes)
    with pytest.raises(RequestKeyConflict):
        store.submit([1, 2], Scope.ONE, request_key="k")
    with pytest.raises(RequestKeyConflict):
        store.submit([1], request_key="k")


def test_request_keys_are_everybody_s_own(store: Storehouse) -> None:
    """Two people may use the same one."""
    assert store.submit([1], request_key="k") != store.submit([1], request_key="k", owner=Asker(name="bob", uid=2))


def test_a_job_shows_what_was_asked(store: Storehouse) -> None:
    """And where it stands."""
    made = store.submit([1, 3], now=4, priority=2, owner=Asker(name="anne", uid=7, login_uid=8), request_key="k")
    view = statements.job_view(store.cur, made)
    assert (view.score, view.params, view.scope, view.owner) == ("uptime", {"path": "/"}, "all", "anne")
    assert (view.uid, view.login_uid, view.request_key, view.priority) == (7, 8, "k", 2)
    assert (view.created_at, view.expires_at, view.ended_at) == (4, 24 * HOUR, None)
    assert (view.counts, view.verdict, view.last_event) == ({"pending": 2}, "", 1)
    assert [t.player for t in statements.task_views(store.cur, made, -1, 10)] == ["web-1", "web-3"]


def test_job_numbers_only_rise(store: Storehouse) -> None:
    """Even when the newest job is gone."""
    made = store.submit([1])
    store.cur.execute("DELETE FROM jobs WHERE job_id = ?", (made,))
    assert store.submit([1]) == made + 1


# ---- reports


@pytest.mark.parametrize("told", [Told.OK, Told.FAILED, Told.KILLED, Told.REFUSED])
def test_a_report_is_the_outcome(store: Storehouse, told: Told) -> None:
    """With all that the player knows of it."""
    made = store.submit([1])
    said = report(
        run_of(store, now=2),
        told,
        reason="because",
        rc=3,
        started_at=3,
        ended_at=4,
        digest="d",
        response={"a": "b"},
        stdout=Stream(5, "sha", ((0, 5),), b"hello"),
        notes=("a note",),
    )
    settled = store.settle(1, said, now=5)
    assert (settled.jobs, settled.ended, settled.freed, settled.late) == ({made}, {made}, (), 0)
    (view,) = statements.task_views(store.cur, made, -1, 10)
    assert (view.state, view.reason, view.rc, view.dispatched_at) == (told.value, "because", 3, 2)
    assert (view.started_at, view.ended_at, view.digest, view.response) == (3, 4, "d", {"a": "b"})
    assert (view.stdout, view.notes) == (said.stdout, ("a note",))
    assert store.kinds(made) == ["submitted", "dispatched", told.value, "ended"]


def test_a_report_heard_twice_counts_once(store: Storehouse) -> None:
    """The answer to the first may have been lost; the second changes nothing, not even the log."""
    made = store.submit([1])
    said = report(run_of(store), Told.OK, rc=0)
    store.settle(1, said)
    before = store.kinds(made)
    again = store.settle(1, said, said)
    assert (again.jobs, again.late, store.kinds(made)) == (frozenset(), 0, before)


def test_a_never_heard_twice_counts_once(store: Storehouse) -> None:
    """Though the task has gone on meanwhile."""
    made = store.submit([1])
    said = report(run_of(store), Told.NEVER)
    store.settle(1, said)
    run_of(store)
    assert store.settle(1, said).late == 0
    assert store.state(made) == "dispatched"


def test_a_report_of_another_run_is_only_an_event(store: Storehouse) -> None:
    """It has to match on player, attempt and number; the outcome stays what it is."""
    made = store.submit([1, 2])
    run = run_of(store)
    for wrong in ({"seq": run.seq + 1}, {"attempt": 2}):
        asked = {"seq": run.seq, "attempt": 1} | wrong
        other = Run(asked["seq"], made, 0, asked["attempt"], "uptime", {}, None)
        assert store.settle(1, report(other, Told.OK)).late == 1
    assert store.settle(2, report(run, Told.OK)).late == 1
    assert store.states(made) == ["dispatched", "pending"]
    assert store.settle(1, report(run, Told.FAILED)).late == 0
    assert store.settle(1, report(run, Told.OK, rc=0)).late == 1
    assert store.states(made) == ["failed", "pending"]
    assert store.kinds(made).count("late") == 4


def test_a_report_of_a_pruned_job_is_only_counted(store: Storehouse) -> None:
    """There is nothing left to settle, and the player may forget it."""
    settled = store.settle(1, report(Run(1, 77, 0, 1, "x", {}, None), Told.OK))
    assert (settled.unknown, settled.late, settled.jobs) == (1, 0, frozenset())


def test_what_never_started_is_free_again(store: Storehouse) -> None:
    """For the player it is of; that is no attempt lost."""
    made = store.submit([1])
    (freed,) = store.settle(1, report(run_of(store), Told.NEVER)).freed
    assert (freed.job, freed.n, freed.player, freed.candidates) == (made, 0, 1, ())
    assert run_of(store).attempt == 2


def test_an_idempotent_score_runs_again_until_its_attempts_are_used_up(store: Storehouse) -> None:
    """Only losses count."""
    made = store.submit([1], idempotent=True, max_attempts=2)
    store.settle(1, report(run_of(store), Told.NEVER))
    store.settle(1, report(run_of(store), Told.LOST))
    assert store.state(made) == "pending"
    store.settle(1, report(run_of(store), Told.LOST))
    assert store.state(made) == "lost"


@pytest.mark.parametrize("ending", ["cancel", "expire", "refuse", "cancel first", "never, too late"])
def test_what_may_have_run_is_never_said_not_to_have_started(store: Storehouse, ending: str) -> None:
    """A cancel, an expiry or a refusal of a later attempt says lost."""
    made = store.submit([1], idempotent=True, expires_at=1000)
    store.settle(1, report(run_of(store), Told.LOST))
    if ending == "cancel":
        done = statements.cancel(store.cur, made, None, "anne", 0)
        assert (done.cancelled, done.lost) == (0, 1)
    elif ending == "expire":
        statements.expire(store.cur, 1000)
    else:
        run = run_of(store)
        if ending == "cancel first":
            statements.cancel(store.cur, made, None, "anne", 0)
        told = Told.REFUSED if ending == "refuse" else Told.NEVER
        store.settle(1, report(run, told), now=1000 if ending == "never, too late" else 0)
    assert store.state(made) == "lost"


def test_what_is_ahead_of_its_report_is_found_with_it(store: Storehouse) -> None:
    """Pieces that came twice are kept once; those of a run that is not open are dropped."""
    made = store.submit([1])
    run = run_of(store)
    pieces = [Piece(run.seq, 1, 1, 0, b"head"), Piece(run.seq, 1, 1, 100, b"the tail"), Piece(run.seq, 1, 2, 0, b"err")]
    strangers = [Piece(run.seq + 1, 1, 1, 0, b"x"), Piece(run.seq, 2, 1, 50, b"x")]
    for batch in (pieces, pieces, strangers):
        statements.save_pieces(store.cur, 1, store.epochs[1], OWNER, batch)
    store.settle(1, report(run, Told.OK, stdout=Stream(108, None, ((0, 4), (100, 8)))))
    statements.save_pieces(store.cur, 1, store.epochs[1], OWNER, [Piece(run.seq, 1, 1, 50, b"late")])
    assert statements.output_pieces(store.cur, made, 0, 1, 0, 1000) == [(0, b"head"), (100, b"the tail")]
    assert statements.output_pieces(store.cur, made, 0, 1, 2, 5) == [(2, b"ad"), (100, b"the")]
    assert statements.output_pieces(store.cur, made, 0, 2, 0, 1000) == [(0, b"err")]


def test_short_output_comes_with_its_report(store: Storehouse) -> None:
    """Cut into the pieces that were kept of the stream."""
    made = store.submit([1])
    store.settle(1, report(run_of(store), Told.OK, stdout=Stream(20, None, ((0, 3), (18, 2)), b"abcyz")))
    assert statements.output_pieces(store.cur, made, 0, 1, 0, 1000) == [(0, b"abc"), (18, b"yz")]
    assert statements.output_pieces(store.cur, made, 0, 2, 0, 1000) == []


def test_a_task_is_moved_only_from_where_it_is(store: Storehouse) -> None:
    """What was read of it is compared with what is there; and a move that is not in the table is our bug."""
    made = store.submit([1])
    (seen,) = moves.rows(store.cur, "job_id = ?", (made,))
    run_of(store)
    ledger = Ledger(store.cur, 0)
    assert moves.move(ledger, seen, Move(State.CANCELLED, False, 0), "") is False
    (task,) = moves.rows(store.cur, "job_id = ?", (made,))
    for stale in ({"seq": 9}, {"attempt": 9}, {"player": 2}):
        assert moves.move(ledger, task._replace(**stale), Move(State.OK, False, 0), "") is False
    with pytest.raises(ValueError, match="cannot go"):
        moves.move(ledger, task, Move(State.HELD, False, 0), "")
    assert store.state(made) == "dispatched"


# ---- cancels


def test_a_cancel_ends_what_waits_and_tells_who_plays(store: Storehouse) -> None:
    """And leaves what has ended."""
    made = store.submit([1, 2, 3])
    running = run_of(store, 1)
    store.settle(2, report(run_of(store, 2), Told.OK))
    done = statements.cancel(store.cur, made, None, "anne", 3)
    assert (done.cancelled, done.cancelling, done.finished, done.lost) == (1, 1, 1, 0)
    assert (done.orders, done.jobs, done.ended) == ({1: (running.seq,)}, {made}, frozenset())
    assert store.states(made) == ["dispatched", "ok", "cancelled"]
    assert statements.task_views(store.cur, made, -1, 1)[0].cancelling
    assert [o.cancel for o in greet(store.cur, 1).open] == [True]


def test_a_second_cancel_tells_again_and_logs_nothing(store: Storehouse) -> None:
    """The order may have been lost on its way."""
    made = store.submit([1])
    run = run_of(store)
    statements.cancel(store.cur, made, None, "anne", 3)
    before = store.kinds(made)
    again = statements.cancel(store.cur, made, None, "anne", 3)
    assert (again.orders, again.jobs, store.kinds(made)) == ({1: (run.seq,)}, frozenset(), before)


def test_a_cancelled_run_that_never_started_is_cancelled(store: Storehouse) -> None:
    """One that went on to its end is what it was; one that died is lost, idempotent or not."""
    outcomes = []
    for told in (Told.NEVER, Told.OK, Told.KILLED, Told.LOST):
        made = store.submit([1], idempotent=True)
        run = run_of(store)
        statements.cancel(store.cur, made, None, "anne", 3)
        store.settle(1, report(run, told))
        outcomes.append(store.state(made))
    assert outcomes == ["cancelled", "ok", "killed", "lost"]


def test_a_cancel_on_some_hosts_leaves_the_others(store: Storehouse) -> None:
    """A one-of task loses those candidates, and ends with its last one."""
    made = store.submit([1, 2])
    statements.cancel(store.cur, made, [2], "anne", 0)
    assert store.states(made) == ["pending", "cancelled"]
    one = store.submit([1, 2], Scope.ONE, score="other")
    statements.cancel(store.cur, one, [2], "anne", 0)
    assert store.claim(2) == ()
    assert store.state(one) == "pending"
    statements.cancel(store.cur, one, [1], "anne", 0)
    assert store.state(one) == "cancelled"


def test_there_is_no_job_that_there_is_not(store: Storehouse) -> None:
    """Whatever is asked of it."""
    asked: list[Callable[[], object]] = [
        lambda: statements.cancel(store.cur, 9, None, "anne", 0),
        lambda: statements.job_view(store.cur, 9),
        lambda: statements.task_views(store.cur, 9, -1, 1),
        lambda: statements.events(store.cur, 9, 0, 1),
        lambda: statements.output_pieces(store.cur, 9, 0, 1, 0, 1),
    ]
    for ask in asked:
        with pytest.raises(NoSuchJob):
            ask()


# ---- sweeps


def test_what_waited_too_long_expires(store: Storehouse) -> None:
    """Not before, and not what is being played; in bounded steps."""
    made = store.submit([1, 2, 3], expires_at=10)
    later = store.submit([2], expires_at=20)
    run_of(store, 1)
    assert statements.next_expiry(store.cur) == 10
    assert statements.expire(store.cur, 9).count == 0
    first = statements.expire(store.cur, 10, limit=1)
    assert (first.count, first.more, first.jobs) == (1, True, {made})
    statements.expire(store.cur, 10)
    assert store.states(made) == ["dispatched", "expired", "expired"]
    assert store.state(later) == "pending"
    assert statements.next_expiry(store.cur) == 20


def test_nobody_waits_for_ever_for_a_player_that_is_away(store: Storehouse) -> None:
    """Past expiry, time limit and grace its runs are lost; those of a player that is here are not."""
    made = store.submit([1, 2], expires_at=10, give_up_after=5, idempotent=True)
    run_of(store, 1)
    run_of(store, 2)
    assert statements.give_up(store.cur, 14, [2]).count == 0
    swept = statements.give_up(store.cur, 15, [2])
    assert (swept.count, swept.jobs, store.states(made)) == (1, {made}, ["lost", "dispatched"])
    unlimited = store.submit([3], expires_at=None)
    run_of(store, 3)
    assert statements.give_up(store.cur, 1 << 60, [2]).count == 0
    assert store.state(unlimited) == "dispatched"


def test_removal_is_a_standing_condition(store: Storehouse) -> None:
    """Once the grace is over, whatever only a removed player can do ends, in bounded steps, whenever it came."""
    running = store.submit([1])
    run_of(store, 1)
    waiting = store.submit([1, 2])
    shared = store.submit([1, 2], Scope.ONE)
    alone = store.submit([1], Scope.ONE)
    statements.sync_players(store.cur, ["web-2", "web-3"], 100)
    assert statements.sweep_removed(store.cur, 104, 5).count == 0
    while statements.sweep_removed(store.cur, 105, 5, limit=1).more:
        pass
    assert (store.state(running), store.states(waiting)) == ("lost", ["cancelled", "pending"])
    assert (store.state(shared), store.state(alone)) == ("pending", "cancelled")
    assert {run.job for run in store.claim(2)} == {waiting, shared}


def test_a_player_that_is_back_before_the_grace_is_over_was_never_gone(store: Storehouse) -> None:
    """Nothing has happened."""
    made = store.submit([1])
    statements.sync_players(store.cur, ["web-2"], 100)
    statements.sync_players(store.cur, store.names, 104)
    statements.sweep_removed(store.cur, 1000, 5)
    assert store.state(made) == "pending"


# ---- views


def test_jobs_are_listed_newest_first(store: Storehouse) -> None:
    """All, or one owner's, or those that have not ended; by pages."""
    ids = [store.submit([1], owner=Asker(name=name, uid=1)) for name in ("anne", "bob", "anne", "bob")]
    statements.cancel(store.cur, ids[2], None, "anne", 0)

    def listed(
        before: int | None = None, limit: int = 50, unfinished: bool = False, owner: str | None = None
    ) -> list[int]:
        return [view.job for view in statements.job_views(store.cur, before, limit, unfinished, owner)]

    assert listed() == ids[::-1]
    assert listed(before=ids[3], limit=2) == [ids[2], ids[1]]
    assert listed(unfinished=True) == [ids[3], ids[1], ids[0]]
    assert listed(unfinished=True, owner="anne") == [ids[0]]


def test_tasks_are_listed_by_pages_and_states(store: Storehouse) -> None:
    """In ascending order."""
    made = store.submit([1, 2, 3])
    run_of(store, 2)
    assert [v.task for v in statements.task_views(store.cur, made, 0, 1)] == [1]
    assert [v.task for v in statements.task_views(store.cur, made, -1, 9, [State.PENDING])] == [0, 2]


def test_players_are_listed_with_what_they_have_to_do(store: Storehouse) -> None:
    """By name; the removed ones say so."""
    store.submit([1, 2])
    store.submit([1, 2])
    store.claim(1, room=1)
    statements.sync_players(store.cur, ["web-1", "web-2", "web-4"], 50)
    rows = {row.view.name: row.view for row in statements.player_rows(store.cur, "", 10)}
    assert [(v.status, v.open_runs, v.pending) for v in rows.values()] == [
        ("online", 1, 1),
        ("online", 0, 2),
        ("removed", 0, 0),
        ("never seen", 0, 0),
    ]
    assert (rows["web-1"].address, rows["web-1"].slots, rows["web-3"].since) == ("192.0.2.1", 8, 50)
    totals = statements.totals(store.cur)
    assert (totals.players, totals.pending, totals.dispatched) == (3, 3, 1)


def test_events_say_who_did_what_to_whom(store: Storehouse) -> None:
    """From any number on."""
    made = store.submit([1, 2], now=1)
    store.settle(1, report(run_of(store, now=2), Told.FAILED, reason="exit status 1"), now=3)
    statements.cancel(store.cur, made, None, "bob", 4)
    events = [(e.n, e.at, e.kind, e.actor, e.task, e.player) for e in statements.events(store.cur, made, 0, 100)]
    assert events == [
        (1, 1, "submitted", "anne", None, None),
        (2, 2, "dispatched", "", 0, "web-1"),
        (3, 3, "failed", "", 0, "web-1"),
        (4, 4, "cancelled", "bob", 1, "web-2"),
        (5, 4, "ended", "", None, None),
    ]
    assert [e.n for e in statements.events(store.cur, made, 3, 1)] == [4]


# ---- how questions are answered


class Recording(sqlite3.Cursor):
    """A cursor that remembers what it was asked."""

    asked: dict[str, int]

    def execute(self, sql: str, parameters: Any = ()) -> "Recording":
        self.asked[sql] = len(parameters)
        return super().execute(sql, parameters)  # type: ignore[return-value]

    def executemany(self, sql: str, parameters: Any) -> "Recording":
        rows = list(parameters)
        if rows:
            self.asked[sql] = len(rows[0])
        return super().executemany(sql, rows)  # type: ignore[return-value]


SCANNED = {
    "SELECT state, many FROM totals",  # three rows
    "SELECT count(*) FROM players WHERE disabled_at IS NULL",
    "SELECT kind, name FROM holds",  # a handful
}


def test_no_hot_statement_reads_a_whole_table(store: Storehouse) -> None:
    """Nor does any sort: they are range scans of an index."""
    plans = plans_of_a_day(store)
    assert len(plans) > 30
    slow = {sql: plan for sql, plan in plans.items() if "SCAN" in plan.replace("SCAN (subquery", "") or "TEMP" in plan}
    assert slow == {}
    of_one_task = [plan for sql, plan in plans.items() if "tasks" in sql and "job_id = ? AND n = ?" in sql]
    assert of_one_task and all("PRIMARY KEY (job_id=? AND n=?)" in plan for plan in of_one_task)


def plans_of_a_day(store: Storehouse) -> dict[str, str]:
    """How SQLite answers what it is asked many times a second."""
    cur = store.connection.cursor(Recording)
    cur.asked, store.cur = {}, cur
    everyday_life(store)
    return {
        sql: " | ".join(row[3] for row in store.connection.execute(f"EXPLAIN QUERY PLAN {sql}", (None,) * many))
        for sql, many in cur.asked.items()
        if sql not in SCANNED
    }


def everyday_life(store: Storehouse) -> None:
    """What happens many times a second."""
    made = store.submit([1, 2], request_key="k", idempotent=True)
    store.submit([1, 2], Scope.ONE)
    runs = [store.claim(1, room=room, default_limit=5) for room in (2, 5, 100)]
    for batch in runs:
        store.settle(1, *(report(run, told) for run, told in zip(batch, [*Told] * 9, strict=False)))
        store.settle(1, *(report(run, Told.OK) for run in batch))
    statements.save_pieces(store.cur, 1, store.epochs[1], OWNER, [Piece(1, 1, 1, 0, b"x")])
    statements.cancel(store.cur, made, None, "anne", 0)
    greet(store.cur, 2)
    statements.goodbye(store.cur, 3, store.epochs[3], 0)
    statements.next_expiry(store.cur)
    statements.expire(store.cur, 24 * HOUR)
    statements.give_up(store.cur, 48 * HOUR, [])
    statements.sweep_removed(store.cur, 0, 0)
    statements.totals(store.cur)
    statements.job_view(store.cur, made)
    statements.task_views(store.cur, made, -1, 500, [State.LOST])
    statements.events(store.cur, made, 0, 500)
    statements.output_pieces(store.cur, made, 0, 1, 0, 500)
    for unfinished in (False, True):
        for owner in (None, ANNE.name):
            statements.job_views(store.cur, None, 50, unfinished, owner)
    statements.player_rows(store.cur, "", 500)


# ---- the file


def test_a_store_is_one_conductor_s(tmp_path: Path) -> None:
    """A second one is told so; afterwards it may have it."""
    first, second = sqlite.Store(str(tmp_path)), sqlite.Store(str(tmp_path))
    sqlite.try_lock(str(tmp_path))
    first.open()
    for attempt in (second.open, lambda: sqlite.try_lock(str(tmp_path))):
        with pytest.raises(AlreadyRunning):
            attempt()
    first.close()
    second.open()
    second.close()


def test_a_store_is_nobody_else_s_to_read(tmp_path: Path) -> None:
    """It has everybody's parameters and output in it."""
    house = sqlite.Store(str(tmp_path / "state"))
    house.open()
    connection = house.connect()
    connection.execute("INSERT INTO meta VALUES ('x', 'y')")
    files = ["", *(f"state/{name}" for name in os.listdir(house.directory))]
    for path in [house.directory, *(str(tmp_path / file) for file in files[1:])]:
        assert stat.S_IMODE(os.stat(path).st_mode) & 0o077 == 0, path
    assert len(files) >= 4
    connection.close()
    house.close()


def test_what_is_not_a_store_is_left_alone(tmp_path: Path) -> None:
    """A file of something else, or another program's database."""
    garbage = tmp_path / "garbage"
    garbage.mkdir()
    (garbage / sqlite.FILE).write_bytes(b"not a database at all, though it is long enough to be looked at" * 100)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    with sqlite3.connect(foreign / sqlite.FILE) as other:
        other.execute("CREATE TABLE jobs (x)")
    other.close()
    for directory in (garbage, foreign):
        before = (directory / sqlite.FILE).read_bytes()[100:]
        with pytest.raises(StoreUnreadable, match="database"):
            sqlite.Store(str(directory)).open()
        assert (directory / sqlite.FILE).read_bytes()[100:] == before
        sqlite.try_lock(str(directory))


def test_a_store_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    """Not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnreadable, match=r"Not a directory|File exists"):
        sqlite.Store(str(tmp_path / "file" / "state")).open()


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    """By the older Orchestra, with a sentence that says what to do; and it lets go of the directory."""
    house = sqlite.Store(str(tmp_path))
    house.open()
    connection = house.connect()
    connection.execute("PRAGMA user_version = 999")
    connection.close()
    house.close()
    with pytest.raises(SchemaTooNew, match="999"):
        house.open()
    sqlite.try_lock(str(tmp_path))


def test_an_older_store_is_upgraded_and_a_copy_put_aside(tmp_path: Path) -> None:
    """Every missing step in one transaction; a step that fails leaves it as it was, to be tried again."""
    house = sqlite.Store(str(tmp_path))
    house.open()
    steps = sqlite.schemas()
    connection = house.connect()
    good = (901, "CREATE TABLE fresh (x INTEGER) STRICT;")
    with pytest.raises(sqlite3.OperationalError):
        sqlite.migrate(connection, house.path, [*steps, good, (902, "CREATE TABLE fresh (y INTEGER) STRICT;")])
    assert connection.execute("PRAGMA user_version").fetchone() == (steps[-1][0],)
    assert connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'fresh'").fetchone() == (0,)
    sqlite.migrate(connection, house.path, [*steps, good, (902, "ALTER TABLE fresh ADD COLUMN y INTEGER;")])
    assert connection.execute("PRAGMA user_version").fetchone() == (902,)
    connection.execute("SELECT x, y FROM fresh")
    connection.close()
    house.close()
    copy = sqlite3.connect(f"{house.path}.before-902")
    assert copy.execute("PRAGMA user_version").fetchone() == (steps[-1][0],)
    assert len(copy.execute("SELECT v FROM meta WHERE k = 'store_id'").fetchone()[0]) == 32
    copy.close()


def test_a_store_says_the_same_after_it_was_closed(tmp_path: Path) -> None:
    """Opened again, it has its jobs and its identity."""
    house = sqlite.Store(str(tmp_path))
    ids = []
    for _ in range(2):
        house.open()
        connection = house.connect()
        ids.append(connection.execute("SELECT v FROM meta WHERE k = 'store_id'").fetchone())
        connection.close()
        house.close()
    assert ids[0] == ids[1] is not None


def test_commits_go_to_the_disk(tmp_path: Path) -> None:
    """Not to a cache, and the file can shrink again."""
    house = sqlite.Store(str(tmp_path))
    house.open()
    connection = house.connect()
    pragmas = ("journal_mode", "synchronous", "auto_vacuum", "wal_autocheckpoint")
    assert [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas] == ["wal", 2, 2, 0]
    connection.close()
    house.close()
