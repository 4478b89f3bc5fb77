"""Who may still be given a task of a job that is for one or for some of its targets.

Such a job has one pool, however many tasks it has: while they wait they are all alike. In ``choices`` are its members,
the targets that have not been struck. Free is a member that has no task of the job. In ``candidates`` are the free
ones, exactly while a task is pending. Both are kept under the number of the first task.

A player that may have started a task of the job, and from which that task was taken, is struck. So no player ever
starts two of them, and there are never more tasks waiting than players free.
"""

from collections.abc import Collection, Iterable, Sequence
from sqlite3 import Cursor
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from orchestra.store.moves import TaskRow

POOL: Final = 0

_ids = msgspec.msgpack.Decoder(tuple[int, ...])
_OPEN: Final = (
    "INSERT INTO candidates (player_id, rank, score_id, job_id, n) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
)
_CLOSE: Final = "DELETE FROM candidates WHERE player_id = ? AND rank = ? AND score_id = ? AND job_id = ? AND n = ?"
_PENDING: Final = (  # all of an index's columns, so that a thousand tasks that have started are not looked through
    "SELECT n FROM tasks WHERE player_id IS NULL AND rank = ? AND score_id = ? AND job_id = ? AND state = 0 "
    "ORDER BY n LIMIT ?"
)

Lane = tuple[int, int, int]
"""Where the candidates of a job stand: its rank, its score's number, its own."""


def make(cur: Cursor, job: int, players: Sequence[int]) -> None:
    """Write down who may be given a task of the job at all."""
    cur.execute(
        "INSERT INTO choices (job_id, n, players) VALUES (?, ?, ?) "
        "ON CONFLICT (job_id, n) DO UPDATE SET players = excluded.players",
        (job, POOL, msgspec.msgpack.encode(tuple(sorted(players)))),
    )


def exists(cur: Cursor, job: int) -> bool:
    """Whether a job has a pool; one for all of its targets has none."""
    return cur.execute("SELECT 1 FROM choices WHERE job_id = ? AND n = ?", (job, POOL)).fetchone() is not None


def members(cur: Cursor, job: int) -> tuple[int, ...]:
    """Who has not been struck, ascending."""
    row = cur.execute("SELECT players FROM choices WHERE job_id = ? AND n = ?", (job, POOL)).fetchone()
    return () if row is None else _ids.decode(row[0])


def free(cur: Cursor, job: int) -> tuple[int, ...]:
    """Who may be given a task, ascending."""
    busy = {player for (player,) in cur.execute("SELECT player_id FROM tasks WHERE job_id = ?", (job,))}
    return tuple(player for player in members(cur, job) if player not in busy)


def spare(cur: Cursor, job: int) -> int:
    """How many are free beyond what waits for them; below 0, so many tasks will never have anybody."""
    waits = "SELECT count(*) FROM tasks WHERE job_id = ? AND player_id IS NULL AND state + 0 IN (0, 2)"
    (waiting,) = cur.execute(waits, (job,)).fetchone()
    return len(free(cur, job)) - int(waiting)


def strike(cur: Cursor, task: "TaskRow", players: Iterable[int]) -> None:
    """Give these no task of the job from now on; what they have, they keep."""
    gone, before = set(players), members(cur, task.job)
    if not gone.isdisjoint(before):
        make(cur, task.job, [player for player in before if player not in gone])
        _close(cur, _lane(task), gone.intersection(before))


# Tasks that begin and cease to be pending


def next_pending(cur: Cursor, lane: Lane) -> int | None:
    """The first task that nobody has been given."""
    row = cur.execute(_PENDING, (*lane, 1)).fetchone()
    return None if row is None else int(row[0])


def may_claim(cur: Cursor, lane: Lane, player: int) -> bool:
    """Whether a player is free while a task is pending: looked at anew by who claims, as the task's own row is."""
    here = "SELECT 1 FROM candidates WHERE player_id = ? AND rank = ? AND score_id = ? AND job_id = ? AND n = ?"
    return cur.execute(here, (player, *lane, POOL)).fetchone() is not None


def open_to(cur: Cursor, task: "TaskRow", players: Iterable[int]) -> None:
    """Let ``players``, who are free, claim a pending task of the job."""
    cur.executemany(_OPEN, [(player, *_lane(task), POOL) for player in players])


def came_back(cur: Cursor, task: "TaskRow") -> None:
    """A task is pending again: whoever is free may claim it, also the player that had it."""
    players = free(cur, task.job)
    only = len(cur.execute(_PENDING, (*_lane(task), 2)).fetchall()) < 2
    open_to(cur, task, players if only else (player for player in players if player == task.player))


def went(cur: Cursor, lane: Lane, player: int | None = None) -> None:
    """A task is not pending any more, since ``player`` has claimed it, if that is said. With the last one, nobody may
    claim anything."""
    if next_pending(cur, lane) is None:
        close(cur, lane)
    elif player is not None:
        _close(cur, lane, (player,))


def close(cur: Cursor, lane: Lane) -> None:
    """No task of the job is pending any more: nobody may claim anything."""
    _close(cur, lane, members(cur, lane[2]))


def _close(cur: Cursor, lane: Lane, players: Collection[int]) -> None:
    cur.executemany(_CLOSE, [(player, *lane, POOL) for player in players])


def _lane(task: "TaskRow") -> Lane:
    return task.rank, task.score_id, task.job
