"""What is to be known of the tasks of a job that may not have started, and of their players. Nothing here changes
anything."""

from collections.abc import Collection, Iterable, Iterator
from sqlite3 import Cursor
from typing import NamedTuple

from orchestra.store import pools


class Waiting(NamedTuple):
    """A task and a player that has it, or may be given it: the ``nth`` of who is free."""

    task: int
    nth: int
    player: int
    state: int
    seq: int
    choice: bool


class Seen(NamedTuple):
    """What the store knows of a player."""

    name: str
    seen_at: int | None
    disabled_at: int | None


class OpenRun(NamedTuple):
    """A run that a player is held to."""

    player: int
    seq: int
    job: int
    task: int
    score: str
    dispatched_at: int


def waiting(
    cur: Cursor, job: int, after: tuple[int, int], limit: int, only: Collection[int] | None = None
) -> list[Waiting]:
    """The tasks of a job that have no outcome, with their players or candidates, ``limit`` at most, past ``after``
    (task, nth); ``only`` of these players."""
    found: list[Waiting] = []
    for row in _rows(cur, job, after[0], limit):
        for one in _of(cur, job, row):
            if (one.task, one.nth) > after and (only is None or one.player in only):
                found.append(one)
                if len(found) >= limit:
                    return found
    return found


Row = tuple[int, int | None, int, int]


def _rows(cur: Cursor, job: int, task: int, some: int) -> Iterator[Row]:
    """From ``task`` on, read ``some`` at a time: the cursor is used for their candidates in between."""
    more = True
    while more:
        rows = cur.execute(
            "SELECT n, player_id, state, seq FROM tasks WHERE job_id = ? AND n >= ? AND state + 0 < 3 "
            "ORDER BY n LIMIT ?",
            (job, task, some),
        ).fetchall()
        yield from rows
        more = len(rows) == some
        task = rows[-1][0] + 1 if rows else task


def _of(cur: Cursor, job: int, row: Row) -> Iterator[Waiting]:
    task, player, state, seq = row
    if player is not None:
        yield Waiting(task, 0, player, state, seq, False)
        return
    for nth, candidate in enumerate(pools.free(cur, job)):
        yield Waiting(task, nth, candidate, state, 0, True)


def seen_players(cur: Cursor, players: Iterable[int]) -> dict[int, Seen]:
    """What is known of these players."""
    wanted = sorted(set(players))
    rows = cur.execute(
        f"SELECT player_id, name, seen_at, disabled_at FROM players WHERE player_id IN ({_marks(wanted)})", wanted
    )
    return {player: Seen(*rest) for player, *rest in rows}


def last_seen(cur: Cursor) -> dict[str, int | None]:
    """When each player that is not removed was last seen, by name."""
    return dict(cur.execute("SELECT name, seen_at FROM players WHERE disabled_at IS NULL").fetchall())


def open_runs(cur: Cursor, players: Iterable[int]) -> dict[int, list[OpenRun]]:
    """What these players are held to, each's by seq."""
    wanted = sorted(set(players))
    rows = cur.execute(
        "SELECT t.player_id, t.seq, t.job_id, t.n, s.name, coalesce(t.dispatched_at, 0) FROM tasks t "
        f"JOIN scores s ON s.score_id = t.score_id WHERE t.player_id IN ({_marks(wanted)}) AND t.state = 1 "
        "ORDER BY t.player_id, t.seq",
        wanted,
    )
    found: dict[int, list[OpenRun]] = {}
    for row in rows:
        run = OpenRun(*row)
        found.setdefault(run.player, []).append(run)
    return found


def _marks(values: Collection[int]) -> str:
    return ", ".join("?" * len(values))
