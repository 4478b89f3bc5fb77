"""Cancels, of one job or of many: what waits ends, and whoever runs something is to be told.

A cancel goes through the tasks in bounded steps, each a transaction of its own, so that a million of them keep nobody
from the store for long. Where it goes on is told with every step.
"""

from collections.abc import Iterable, Sequence
from sqlite3 import Cursor
from typing import Any, Final

from orchestra.model import Choice, Chosen, State
from orchestra.store import gates, moves, pools
from orchestra.store.ledger import Ledger
from orchestra.store.values import Cancelled
from orchestra.store.views import no_such_job

LIMIT: Final = 1_000  # tasks looked at in one step
NEWEST: Final = 2**62
_BEGIN: Final = (0, -1)

Place = tuple[int, int]
"""A job and a task of it: a step goes on behind that."""


class _Step:
    """One transaction's worth of a cancel."""

    def __init__(self, cur: Cursor, actor: str, now: int) -> None:
        self.ledger = Ledger(cur, now)
        self._cur = cur
        self._actor = actor
        self._states: list[State] = []
        self._orders: dict[int, list[int]] = {}
        self._players: set[int] | None = None
        self._without: dict[int, int] = {}  # job -> how many of its tasks have nobody left, now that these are struck
        self.seen = 0

    def take(self, task: moves.TaskRow, players: set[int] | None) -> None:
        """Cancel a task, unless it is not on any of these ``players``."""
        self.seen += 1
        if players is None or self._concerns(task, players):
            self._states.append(self._cancel(task))

    def _concerns(self, task: moves.TaskRow, players: set[int]) -> bool:
        """Whether a cancel on ``players`` is one of this task. They are struck from the pool of its job, if that has
        one; it is concerned when they had it, or when nobody is left for it."""
        if State(task.state).terminal or not pools.exists(self._cur, task.job):
            return task.player in players
        if players is not self._players:
            self._players, self._without = players, {}
        if task.job not in self._without:
            pools.strike(self._cur, task, players)
            self._without[task.job] = -pools.spare(self._cur, task.job)
        if task.player is not None:
            return task.player in players
        self._without[task.job] -= 1
        return self._without[task.job] >= 0

    def _cancel(self, task: moves.TaskRow) -> State:
        """CANCELLED, LOST, DISPATCHED (its player is to be told) or OK (had ended before)."""
        if State(task.state).terminal:
            return State.OK
        if task.state != State.DISPATCHED:
            return moves.end_waiting(self.ledger, task, State.CANCELLED, f"cancelled by {self._actor}", self._actor)
        if not task.cancel:
            self._cur.execute("UPDATE tasks SET cancel = 1 WHERE job_id = ? AND n = ?", (task.job, task.n))
            self.ledger.note(task.job, "cancelling", task=task.n, player=task.player, actor=self._actor)
        assert task.player is not None
        self._orders.setdefault(task.player, []).append(task.seq)
        return State.DISPATCHED

    def done(self, after: Place | None) -> Cancelled:
        """What this step came to."""
        ended = self.ledger.close()
        return Cancelled(
            jobs=self.ledger.jobs,
            ended=ended,
            cancelled=self._states.count(State.CANCELLED),
            cancelling=self._states.count(State.DISPATCHED),
            finished=self._states.count(State.OK),
            lost=self._states.count(State.LOST),
            orders={player: tuple(sorted(seqs)) for player, seqs in self._orders.items()},
            after=after,
            freed=tuple(self.ledger.freed),
        )


def cancel(
    cur: Cursor,
    job: int,
    players: Iterable[int] | None,
    actor: str,
    now: int,
    after: Place | None = None,
    limit: int = LIMIT,
) -> Cancelled:
    """The next step of cancelling a job, or its tasks on ``players``. What is for one or some of its targets may still
    go to others of them."""
    if cur.execute("SELECT 1 FROM jobs WHERE job_id = ?", (job,)).fetchone() is None:
        raise no_such_job(cur, job)
    chosen = None if players is None else set(players)
    step = _Step(cur, actor, now)
    if chosen is None:
        gates.give_up(cur, job, actor, now)
    tasks = moves.rows(cur, "job_id = ? AND n > ? ORDER BY n LIMIT ?", (job, (after or _BEGIN)[1], limit))
    for task in tasks:
        step.take(task, chosen)
    return step.done((job, tasks[-1].n) if len(tasks) == limit else None)


def cancel_chosen(
    cur: Cursor,
    choice: Choice,
    players: Iterable[int] | None,
    up_to: int,
    actor: str,
    now: int,
    after: Place | None = None,
    limit: int = LIMIT,
) -> Cancelled:
    """The next step of cancelling all that is unfinished of a choice, in jobs up to ``up_to``; ``players``: its
    hosts."""
    if players is not None:
        return _on_players(cur, choice, sorted(players), up_to, actor, now, limit)
    step = _Step(cur, actor, now)
    first, n = after or _BEGIN
    where, values = _of(choice, up_to)
    found = f"SELECT job_id FROM jobs WHERE {where} AND job_id >= ? ORDER BY job_id LIMIT ?"
    jobs = [job for (job,) in cur.execute(found, (*values, first, limit))]
    for job in jobs:
        gates.give_up(cur, job, actor, now)
        behind, left = (n if job == first else -1), limit - step.seen
        tasks = moves.rows(cur, "job_id = ? AND n > ? AND state + 0 < 3 ORDER BY n LIMIT ?", (job, behind, left))
        for task in tasks:
            step.take(task, None)
        if step.seen >= limit:
            return step.done((job, tasks[-1].n))
    return step.done((jobs[-1] + 1, -1) if len(jobs) == limit else None)


def _on_players(
    cur: Cursor, choice: Choice, players: Sequence[int], up_to: int, actor: str, now: int, limit: int
) -> Cancelled:
    """What has been dealt with is not found again, so there is no place to go on from."""
    step = _Step(cur, actor, now)
    for player in players:
        only = {player}
        for task in _tasks_on(cur, choice, player, up_to, limit - step.seen):
            step.take(task, only)
        if step.seen >= limit:
            return step.done(_BEGIN)
    return step.done(None)


def _tasks_on(cur: Cursor, choice: Choice, player: int, up_to: int, limit: int) -> list[moves.TaskRow]:
    where, values = _of(choice, up_to)
    of_these = f"AND job_id IN (SELECT job_id FROM jobs WHERE {where})"
    found: list[moves.TaskRow] = []
    for condition in ("state = 1 AND cancel = 0", "state = 0", "state = 2"):
        mine = f"player_id = ? AND {condition} {of_these} LIMIT ?"
        found += moves.rows(cur, mine, (player, *values, limit - len(found)))
    candidate = f"SELECT job_id FROM candidates WHERE player_id = ? {of_these} LIMIT ?"
    for job in cur.execute(candidate, (player, *values, limit - len(found))).fetchall():
        found += moves.rows(cur, "job_id = ? AND player_id IS NULL AND state + 0 = 0 ORDER BY n LIMIT 1", job)
    return (found + _held_for_one(cur, player, where, values))[:limit]


def _held_for_one(cur: Cursor, player: int, where: str, values: Sequence[Any]) -> list[moves.TaskRow]:
    """The held one-of tasks, in the jobs of this condition, that a player may be given one day."""
    held = moves.held_for_one(cur, player)
    if not held:
        return held
    jobs = {job for (job,) in cur.execute(f"SELECT job_id FROM jobs WHERE {where}", values)}
    return [task for task in held if task.job in jobs]


def choose(cur: Cursor, choice: Choice, players: Iterable[int] | None) -> Chosen:
    """How much a choice is of now."""
    where, values = _of(choice, NEWEST)
    row = cur.execute(
        "SELECT count(*), coalesce(sum(pending + held), 0), coalesce(sum(dispatched), 0), coalesce(max(job_id), 0) "
        f"FROM jobs WHERE {where}",
        values,
    ).fetchone()
    whole = Chosen(*row)
    if players is None:
        return whole
    return _on(cur, players, where, values, whole.up_to)


def _on(cur: Cursor, players: Iterable[int], where: str, values: Sequence[Any], up_to: int) -> Chosen:
    """The part of it that is on these players; a one-of task counts once, however many of them may have it."""
    of_these = f"AND job_id IN (SELECT job_id FROM jobs WHERE {where})"
    pending: set[Place] = set()
    dispatched: set[Place] = set()
    for player in players:
        for found, source in (
            (dispatched, "tasks WHERE player_id = ? AND state = 1"),
            (pending, "tasks WHERE player_id = ? AND state = 0"),
            (pending, "tasks WHERE player_id = ? AND state = 2"),
            (pending, "candidates WHERE player_id = ?"),
        ):
            found.update(cur.execute(f"SELECT job_id, n FROM {source} {of_these}", (player, *values)))
        pending.update((task.job, task.n) for task in _held_for_one(cur, player, where, values))
    return Chosen(len({job for job, _ in pending | dispatched}), len(pending), len(dispatched), up_to)


def _of(choice: Choice, up_to: int) -> tuple[str, list[Any]]:
    """The condition on jobs that a choice is, without its hosts."""
    conditions: list[str] = ["ended_at IS NULL", "job_id <= ?"]
    values: list[Any] = [up_to]
    if choice.score is not None:
        conditions.append("score_id = (SELECT score_id FROM scores WHERE name = ?)")
        values.append(choice.score)
    if choice.owner is not None:
        conditions.append("owner = ?")
        values.append(choice.owner)
    return " AND ".join(conditions), values
