"""What time does: tasks expire, removed players lose theirs, and nobody waits for ever for one that is away."""

from collections.abc import Collection
from sqlite3 import Cursor
from typing import Final

from orchestra.model import State
from orchestra.store import moves
from orchestra.store.ledger import Ledger
from orchestra.store.values import Swept

LIMIT: Final = 10_000
NOT_STARTED: Final = "it had not started when its time was over"
NOBODY_LEFT: Final = "every player that could have run it was removed"
GIVEN_UP: Final = "its player has been away since before its time was over, and nobody can know what became of it"
REMOVED_RUNNING: Final = "its player was removed, and nobody can know what became of it"


def expire(cur: Cursor, now: int, limit: int = LIMIT) -> Swept:
    """End what has waited too long."""
    jobs = cur.execute(
        "SELECT job_id FROM jobs WHERE pending + held > 0 AND expires_at <= ? ORDER BY expires_at LIMIT ?", (now, limit)
    ).fetchall()
    ledger = Ledger(cur, now)
    tasks: list[moves.TaskRow] = []
    for (job,) in jobs:
        tasks += moves.rows(cur, "job_id = ? AND state + 0 IN (0, 2) ORDER BY n LIMIT ?", (job, limit - len(tasks)))
        if len(tasks) >= limit:
            break
    for task in tasks:
        moves.end_waiting(ledger, task, State.EXPIRED, NOT_STARTED)
    return _swept(ledger, len(tasks), len(tasks) >= limit)


def next_expiry(cur: Cursor) -> int | None:
    """When the next task will have waited too long."""
    row = cur.execute("SELECT min(expires_at) FROM jobs WHERE pending + held > 0").fetchone()
    return None if row[0] is None else int(row[0])


def give_up(cur: Cursor, now: int, connected: Collection[int]) -> Swept:
    """End as ``lost`` what a player that is away cannot be running any more, and has not told of."""
    jobs = cur.execute("SELECT job_id FROM jobs WHERE dispatched > 0 AND give_up_at <= ?", (now,)).fetchall()
    ledger = Ledger(cur, now)
    many = 0
    for (job,) in jobs:
        open_tasks = moves.rows(cur, "job_id = ? AND state + 0 = 1 ORDER BY n", (job,))
        many += moves.lose(ledger, [task for task in open_tasks if task.player not in connected], GIVEN_UP)
    return _swept(ledger, many, False)


def sweep_removed(cur: Cursor, now: int, grace: int) -> Swept:
    """End what only players can do that were removed ``grace`` milliseconds ago or earlier. It holds at any time,
    not only at the removal."""
    removed = cur.execute("SELECT player_id FROM players WHERE disabled_at <= ?", (now - grace,)).fetchall()
    ledger = Ledger(cur, now)
    gone = {player for (player,) in removed}
    many = sum(_sweep_player(ledger, player, gone) for player in sorted(gone))
    return _swept(ledger, many, False)


def _sweep_player(ledger: Ledger, player: int, gone: set[int]) -> int:
    many = moves.lose(ledger, moves.open_tasks(ledger.cur, player), REMOVED_RUNNING)
    own = moves.rows(ledger.cur, "player_id = ? AND state = 0", (player,))
    for task in own:
        moves.end_waiting(ledger, task, State.CANCELLED, NOBODY_LEFT)
    return many + len(own) + _sweep_candidate(ledger, player, gone)


def _sweep_candidate(ledger: Ledger, player: int, gone: set[int]) -> int:
    """Strike a removed player from the one-of tasks it might have done; those with nobody left end."""
    waiting = ledger.cur.execute("SELECT job_id, n FROM candidates WHERE player_id = ?", (player,)).fetchall()
    ended = 0
    for job, n in waiting:
        task = moves.rows(ledger.cur, "job_id = ? AND n = ?", (job, n))[0]
        if not set(moves.strike(ledger.cur, task, (player,))) - gone:
            moves.end_waiting(ledger, task, State.CANCELLED, NOBODY_LEFT)
            ended += 1
    return ended


def _swept(ledger: Ledger, many: int, more: bool) -> Swept:
    ended = ledger.close()
    return Swept(ledger.jobs, ended, many, more)
