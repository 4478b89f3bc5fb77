"""Bugs, planted one at a time into the real code, to see that the checker finds them.

A plant edits the source of one function or of a few, and fails loudly when the code it edits has changed. Four concern
what only a stage does (the directory made after the fork, old requests that are not fenced, adoption by pid alone,
and what a restore forgets lives in the store): those of the stage are planted in the simulated stage, which keeps the
real one's rules; the real one has tests with real processes.
"""

import inspect
import textwrap
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from sqlite3 import Cursor
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred

from orchestra.conductor.dispatch import Dispatch
from orchestra.conductor.door import Door
from orchestra.core.worklist import Worklist
from orchestra.model import Move, State
from orchestra.player.service import Player
from orchestra.store import cancels, claims, gates, moves, players, reports, restore, statements, sweeps
from orchestra.store.ledger import Ledger
from orchestra.store.values import Swept
from simulation.machine import Stage


class Edit(NamedTuple):
    """A change of a function's source: ``old`` must be there once."""

    owner: Any
    name: str
    old: str
    new: str
    names: dict[str, Any] = {}

    @contextmanager
    def planted(self) -> Iterator[None]:
        function = vars(self.owner)[self.name]
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.old) != 1:
            raise ValueError(f"{self.name} has changed: {self.old!r} is there {source.count(self.old)} times")
        scope = {**function.__globals__, **self.names}
        exec(compile(source.replace(self.old, self.new), inspect.getfile(function), "exec"), scope)
        setattr(self.owner, self.name, scope[self.name])
        try:
            yield
        finally:
            setattr(self.owner, self.name, function)


class Switch(NamedTuple):
    """Something that is otherwise while the bug is there."""

    owner: Any
    name: str
    value: Any

    @contextmanager
    def planted(self) -> Iterator[None]:
        before = vars(self.owner)[self.name]
        setattr(self.owner, self.name, self.value)
        try:
            yield
        finally:
            setattr(self.owner, self.name, before)


# ---- what the planted code does instead


def back_to_pending(cursor: Cursor, now: int, where: str, parameters: tuple[Any, ...]) -> None:
    """Hand dispatched tasks to somebody else, on no proof at all."""
    ledger = Ledger(cursor, now)
    for task in moves.rows(cursor, f"state + 0 = 1 AND {where}", parameters):
        moves.move(ledger, task, Move(State.PENDING, bool(task.maybe_ran), task.losses), "nobody answers")
    ledger.close()


_real_expire = statements.expire


def impatient(cursor: Cursor, now: int, limit: int = sweeps.LIMIT) -> Swept:
    """Move one-of tasks on whose player has been away for two seconds."""
    where = """dispatched_at < ? AND EXISTS (SELECT 1 FROM choices WHERE choices.job_id = tasks.job_id AND choices.n = tasks.n)
               AND player_id IN (SELECT player_id FROM players WHERE owner = '')"""
    back_to_pending(cursor, now, where, (now - 2000,))
    return _real_expire(cursor, now, limit)


class Stale:
    """What every player's claim has looked at before: READ COMMITTED may show a claim such rows."""

    def __init__(self) -> None:
        self.seen: dict[int, list[Any]] = {}

    def look(self, turn: Any, chosen: tuple[list[Any], bool]) -> tuple[list[Any], bool]:
        now, more = chosen
        before = [item for item in self.seen.get(turn.player, ()) if item not in now and self._may(turn, item)]
        self.seen[turn.player] = now[:6]
        return before[:2] + now, more

    def _may(self, turn: Any, item: Any) -> bool:
        """Work that is still this player's: another row than that was rechecked."""
        row = turn.books.cur.execute("SELECT player_id FROM tasks WHERE job_id = ? AND n = ?", item[1:3]).fetchone()
        return row is not None and row[0] == turn.player


@contextmanager
def stale_look() -> Iterator[None]:
    """Let a claim see rows as they were, which the recheck must make harmless: no bug yet."""
    honest = claims._Turn._choose
    stale = Stale()
    with Switch(claims._Turn, "_choose", lambda turn: stale.look(turn, honest(turn))).planted():
        yield


class _StaleLook:
    def planted(self) -> AbstractContextManager[None]:
        return stale_look()


Part = Edit | Switch | _StaleLook

PLANTS: Final[dict[str, tuple[Part, ...]]] = {
    "answer_before_commit": (
        Edit(
            Door,
            "_report",
            "await self._dispatch.report(self, reports)",
            "Deferred.fromCoroutine(self._dispatch.report(self, reports)).addErrback(lambda _: None)",
            {"Deferred": Deferred},
        ),
    ),
    "requeue_on_disconnect": (
        Edit(
            Dispatch,
            "_say_goodbye",
            "gone = self._writer.write(",
            "self._writer.write(lambda cursor: back(cursor, now, 'player_id = ?', (player,))).addErrback(lambda _: None)\n"
            "    gone = self._writer.write(",
            {"back": back_to_pending},
        ),
    ),
    "no_epoch_check_and_no_seq_fence": (
        Edit(claims, "_claim_for", "row is not None and row[1:3] != (ask.epoch, ask.owner)", "False"),
        Edit(Worklist, "perform", "if [run.seq for run in fresh] != ", "if False and [] != "),
    ),
    "seq_before_recheck": (
        _StaleLook(),
        Edit(
            claims._Turn,
            "_give",
            "elif (run := _take(self.books, self.player, self.next_seq, item)) is not None:",
            "elif (run := _take(self.books, self.player, self.next_seq, item)) is None:\n"
            "            self.next_seq += 1\n"
            "        else:",
        ),
    ),
    "no_tombstone": (
        Edit(
            Worklist,
            "welcomed",
            "unacknowledged = [entry.report for entry in self.entries.values() if entry.report is not None]",
            "unacknowledged = [entry.report for entry in self.entries.values() if entry.report is not None]\n"
            "    for entry in touched:\n"
            "        if entry.report.reason == UNHEARD:\n"
            "            del self.entries[entry.seq]",
        ),
    ),
    "result_matched_without_attempt": (
        Edit(
            reports._Settling,
            "settle",
            "(task.player, task.attempt, task.seq) == (self.player, report.attempt, report.seq)",
            "task.player == self.player",
        ),
    ),
    "high_bumped_in_the_loop": (
        Edit(
            Worklist,
            "welcomed",
            "touched.append(self._done(_ended(run, told, reason)))",
            "touched.append(self._done(_ended(run, told, reason)))\n"
            "            known_to = max(known_to, welcome.next_seq - 1)",
        ),
    ),
    "retired_journal_accepted": (
        Edit(players, "_admit", "if retired is not None and retired[0] is not None:", "if False:"),
    ),
    "cancelled_after_lost": (Switch(moves, "unstarted", lambda state, maybe_ran: state),),
    "one_of_moved_on_a_time_out": (Switch(statements, "expire", impatient),),
    "struck_candidate_not_rechecked": (
        Edit(
            cancels._Step,
            "_concerns",
            "pools.strike(self._cur, task, players)",
            "pass",
        ),
    ),
    "directory_after_the_fork": (Switch(Stage, "DIRECTORY_FIRST", False),),
    "old_stage_requests_not_fenced": (Switch(Stage, "FENCES", False),),
    "forgotten_before_the_fsync": (
        Edit(
            Player,
            "_ended",
            "self._later(",
            "self._forget_on_stage((report.seq,))\n    self._later(",
        ),
    ),
    "spawn_before_save": (
        Edit(
            Player,
            "_enact",
            "self._unsaved += 1",
            "self._unsaved += 1\n    for entry in steps.start:\n        self._start(entry)",
        ),
    ),
    "removal_forgets_maybe_ran": tuple(
        Edit(
            sweeps,
            name,
            "moves.end_waiting(ledger, task, State.CANCELLED, NOBODY_LEFT)",
            "moves.move(ledger, task, Move(State.CANCELLED, False, task.losses), NOBODY_LEFT)",
            {"Move": Move},
        )
        for name in ("_end_pending", "_end_surplus")
    ),
    "restore_forgets_maybe_ran": (
        Edit(restore, "_doubt", "UPDATE tasks SET maybe_ran = 1 WHERE", "UPDATE tasks SET maybe_ran = maybe_ran WHERE"),
    ),
    "wave_let_go_too_soon": (
        Edit(gates, "follow", "not (pending or dispatched or gate.paused)", "not (pending or gate.paused)"),
    ),
    "adoption_by_pid_alone": (Switch(Stage, "BY_MARK", False),),
}
"""Every bug the contract names, and how it is planted."""


@contextmanager
def plant(name: str) -> Iterator[None]:
    """Have a bug, for a while."""
    with ExitStack() as stack:
        for part in PLANTS[name]:
            stack.enter_context(part.planted())
        yield
