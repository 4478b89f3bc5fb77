"""What time does: tasks expire, removed players lose theirs, and nobody waits for ever for one that is away."""

from collections.abc import Collection
from sqlite3 import Cursor
from typing import Final

from orchestra.model import State
from orchestra.store import gates, moves, pools
from orchestra.store.ledger import Ledger
from orchestra.store.values import Swept

LIMIT: Final = 10_000
OPENED_AT_ONCE: Final = 20  # jobs in one step
NOBODY_LEFT: Final = "every player that could have run it was removed"
GIVEN_UP: Final = "its time is over, its player is away, and nobody can know what became of it"
REMOVED_RUNNING: Final = "its player was removed, and nobody can know what became of it"


# A player that was removed is one for ever, so most of them have nothing left that could end.
_REMOVED: Final = (
    "SELECT player_id FROM players p WHERE disabled_at <= ? AND ("
    "EXISTS (SELECT 1 FROM tasks t WHERE t.player_id = p.player_id AND t.state = 1) OR "
    "EXISTS (SELECT 1 FROM tasks t WHERE t.player_id = p.player_id AND t.state = 0) OR "
    "EXISTS (SELECT 1 FROM tasks t WHERE t.player_id = p.player_id AND t.state = 2) OR "
    "EXISTS (SELECT 1 FROM candidates c WHERE c.player_id = p.player_id)) ORDER BY disabled_at"
)

_GONE: Final = "SELECT player_id FROM players WHERE disabled_at <= ?"


def expire(cur: Cursor, now: int, limit: int = LIMIT) -> Swept:
    """End what has waited too long."""
    jobs = cur.execute(
        "SELECT job_id FROM jobs WHERE ended_at IS NULL AND expires_at <= ? AND pending + held > 0 "
        "ORDER BY expires_at LIMIT ?",
        (now, limit),
    ).fetchall()
    ledger = Ledger(cur, now)
    tasks: list[moves.TaskRow] = []
    for (job,) in jobs:
        tasks += moves.rows(cur, "job_id = ? AND state + 0 IN (0, 2) ORDER BY n LIMIT ?", (job, limit - len(tasks)))
        if len(tasks) >= limit:
            break
    for task in tasks:
        moves.end_waiting(ledger, task, State.EXPIRED, moves.NOT_STARTED)
    return _swept(ledger, len(tasks), len(tasks) >= limit)


def open_due(cur: Cursor, now: int, limit: int = OPENED_AT_ONCE) -> Swept:
    """Let go what is a matter of time: jobs that begin now, waves after a pause, the end of what was stopped."""
    due = "SELECT job_id FROM gates WHERE due_at <= ? AND paused_at IS NULL ORDER BY due_at LIMIT ?"
    jobs = cur.execute(due, (now, limit)).fetchall()
    ledger = Ledger(cur, now)
    many = 0
    for (job,) in jobs:
        gate = gates.gate_of(cur, job)
        assert gate is not None
        many += (gates.cancel_rest if gate.stopped else gates.open_next)(ledger, gate)
    # what was stopped may be larger than one step
    return _swept(ledger, many, bool(jobs))


def next_expiry(cur: Cursor) -> int | None:
    """When the next task will have waited too long."""
    row = cur.execute(
        "SELECT expires_at FROM jobs WHERE ended_at IS NULL AND expires_at IS NOT NULL AND pending + held > 0 "
        "ORDER BY expires_at LIMIT 1"
    ).fetchone()
    return None if row is None else int(row[0])


def give_up(cur: Cursor, now: int, connected: Collection[int], limit: int = LIMIT) -> Swept:
    """End as ``lost`` what a player that is away cannot be running any more, and has not told of."""
    here = frozenset(connected)
    jobs = cur.execute(
        "SELECT job_id FROM jobs WHERE ended_at IS NULL AND give_up_at <= ? AND dispatched > 0 ORDER BY give_up_at",
        (now,),
    ).fetchall()
    tasks: list[moves.TaskRow] = []
    for (job,) in jobs:
        open_tasks = moves.rows(cur, "job_id = ? AND state + 0 = 1 ORDER BY n", (job,))
        tasks += [task for task in open_tasks if task.player not in here]
        if len(tasks) >= limit:
            break
    ledger = Ledger(cur, now)
    return _swept(ledger, moves.lose(ledger, tasks[:limit], GIVEN_UP), len(tasks) >= limit)


def sweep_removed(cur: Cursor, now: int, grace: int, limit: int = LIMIT) -> Swept:
    """End what only players can do that were removed ``grace`` milliseconds ago or earlier. It holds at any time,
    not only at the removal."""
    removed = cur.execute(_REMOVED, (now - grace,)).fetchall()
    ledger = Ledger(cur, now)
    ended = looked_at = 0
    for (player,) in removed:
        lost = moves.lose(ledger, moves.open_tasks(cur, player), REMOVED_RUNNING)
        gone = _end_pending(ledger, player, limit - looked_at)
        struck, over = _strike_candidate(ledger, player, limit - looked_at - gone)
        ended += lost + gone + over
        looked_at += gone + struck
        if looked_at >= limit:
            break
    return _swept(ledger, ended, looked_at >= limit)


def strike_removed(cur: Cursor, now: int, grace: int) -> Swept:
    """As :func:`sweep_removed`, for those one-of and some-of tasks that nobody may be given yet; there are few."""
    ledger = Ledger(cur, now)
    held = {task.job: task for task in moves.rows(cur, "player_id IS NULL AND state = 2", ())}
    removed = {player for (player,) in cur.execute(_GONE, (now - grace,))} if held else set()
    ended = 0
    for job in sorted(held) if removed else ():
        pools.strike(cur, held[job], removed)
        ended += _end_surplus(ledger, job)
    return _swept(ledger, ended, False)


def _end_pending(ledger: Ledger, player: int, limit: int) -> int:
    own = moves.rows(ledger.cur, "player_id = ? AND state = 0 LIMIT ?", (player, limit))
    own += moves.rows(ledger.cur, "player_id = ? AND state = 2 LIMIT ?", (player, limit - len(own)))
    for task in own:
        moves.end_waiting(ledger, task, State.CANCELLED, NOBODY_LEFT)
    return len(own)


def _strike_candidate(ledger: Ledger, player: int, limit: int) -> tuple[int, int]:
    """Strike a removed player from the jobs of which it might be given a task; from how many, and how many tasks ended
    because nobody was left for them."""
    rows = ledger.cur.execute("SELECT job_id FROM candidates WHERE player_id = ? LIMIT ?", (player, limit))
    jobs = [job for (job,) in rows.fetchall()]
    ended = 0
    for job in jobs:
        pools.strike(ledger.cur, moves.rows(ledger.cur, "job_id = ? AND n = 0", (job,))[0], (player,))
        ended += _end_surplus(ledger, job)
    return len(jobs), ended


def _end_surplus(ledger: Ledger, job: int) -> int:
    """End what waits for somebody of a job's pool and will have nobody any more; how many tasks."""
    nobody = max(0, -pools.spare(ledger.cur, job))
    where = "job_id = ? AND player_id IS NULL AND state + 0 IN (0, 2) ORDER BY n LIMIT ?"
    for task in moves.rows(ledger.cur, where, (job, nobody)):
        moves.end_waiting(ledger, task, State.CANCELLED, NOBODY_LEFT)
    return nobody


def _swept(ledger: Ledger, many: int, more: bool) -> Swept:
    ended = ledger.close()
    return Swept(ledger.jobs, ended, many, more, tuple(ledger.freed))
