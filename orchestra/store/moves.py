"""How a task moves: one compare-and-set, and who may claim it, if it is not one player's alone."""

from collections.abc import Iterable, Sequence
from sqlite3 import Cursor
from typing import TYPE_CHECKING, Final, NamedTuple

from orchestra.model import MOVES, Move, Report, State, unstarted
from orchestra.store import pools

if TYPE_CHECKING:
    from orchestra.store.ledger import Ledger


class TaskRow(NamedTuple):
    """The part of a task's row that moves look at; it is what the compare-and-set compares."""

    job: int
    n: int
    player: int | None
    score_id: int
    rank: int
    state: int
    attempt: int
    losses: int
    seq: int
    cancel: int
    maybe_ran: int


TASK: Final = "job_id, n, player_id, score_id, rank, state, attempt, losses, seq, cancel, maybe_ran"
"""The columns of a :class:`TaskRow`."""

NOT_STARTED: Final = "it had not started when its time was over"
_SET = "UPDATE tasks SET state = ?, player_id = ?, seq = ?, losses = ?, maybe_ran = ?, reason = ?, changed_at = ? "
_WHERE = "WHERE job_id = ? AND n = ? AND coalesce(player_id, 0) = ? AND attempt = ? AND seq = ? AND state + 0 = ?"
_FINISH: Final = (
    "UPDATE tasks SET state = ?, reason = ?, changed_at = ? "
    "WHERE job_id = ? AND n = ? AND player_id = ? AND attempt = ? AND seq = ? AND state + 0 = 1"
)


def move(ledger: "Ledger", task: TaskRow, to: Move, reason: str, actor: str = "") -> bool:
    """Move a task whose row is still as given; whether it was. A return to pending leaves one that has a pool
    unassigned, unless it stays."""
    if to.state not in MOVES.get(State(task.state), frozenset()):
        raise ValueError(f"task {task.job}/{task.n} cannot go from {State(task.state).label} to {to.state.label}")
    back = to.state is State.PENDING
    pooled = (task.player is None or (back and not to.stays)) and pools.exists(ledger.cur, task.job)
    player = None if back and pooled else task.player
    values = (to.state, player, 0 if back else task.seq, to.losses, to.maybe_ran, reason, ledger.now)
    where = (task.job, task.n, task.player or 0, task.attempt, task.seq, task.state)
    if ledger.cur.execute(_SET + _WHERE, (*values, *where)).rowcount != 1:
        return False
    if pooled and back:
        pools.came_back(ledger.cur, task)
    elif pooled:
        pools.went(ledger.cur, (task.rank, task.score_id, task.job))
    ledger.count(task.job, State(task.state), to.state)
    ledger.note(task.job, to.state.label, task=task.n, player=task.player, detail=reason, actor=actor)
    return True


def finish(ledger: "Ledger", player: int, run: Report, to: State) -> bool:
    """End the task that waits for just this run, in one statement; whether it did. For outcomes of a run that has
    ended on its player: where those lead depends on nothing else, and nobody is a candidate any more."""
    values = (to, run.reason, ledger.now, run.job, run.task, player, run.attempt, run.seq)
    if ledger.cur.execute(_FINISH, values).rowcount != 1:
        return False
    ledger.count(run.job, State.DISPATCHED, to)
    ledger.note(run.job, to.label, task=run.task, player=player, detail=run.reason)
    return True


def end_waiting(ledger: "Ledger", task: TaskRow, state: State, reason: str, actor: str = "") -> State:
    """End a task that no player has: ``state``, or ``lost`` if an earlier attempt may have run."""
    state = unstarted(state, bool(task.maybe_ran))
    move(ledger, task, Move(state, bool(task.maybe_ran), task.losses), reason, actor)
    return state


def lose(ledger: "Ledger", tasks: Iterable[TaskRow], reason: str) -> int:
    """End tasks as ``lost``, for ever; returns how many."""
    return sum(move(ledger, task, Move(State.LOST, True, task.losses), reason) for task in list(tasks))


def rows(cur: Cursor, where: str, parameters: Sequence[object]) -> list[TaskRow]:
    """Tasks by a condition."""
    return [TaskRow._make(row) for row in cur.execute(f"SELECT {TASK} FROM tasks WHERE {where}", parameters)]


def open_tasks(cur: Cursor, player: int) -> list[TaskRow]:
    """What a player is held to, by seq."""
    return rows(cur, "player_id = ? AND state = 1 ORDER BY seq", (player,))


def held_for_one(cur: Cursor, player: int) -> list[TaskRow]:
    """The held tasks that this player may be given one day, and others too. There are few: they are of jobs that begin
    later, or are paused."""
    held = rows(cur, "player_id IS NULL AND state = 2 ORDER BY job_id, n", ())
    theirs = {job for job in {task.job for task in held} if player in pools.members(cur, job)}
    return [task for task in held if task.job in theirs]
