"""The event log: of each job numbered from 1 without a gap, and of all jobs in the order in which they were committed.

An event's ``seq`` is its place in the second order. It is given where the event is written, and only one transaction
writes at a time: so whoever has read all events up to a number will never see another one below it. ``changes`` has
one row for what a transaction wrote of one job, by its last ``seq``.
"""

from collections.abc import Sequence
from sqlite3 import Cursor
from typing import Final

from orchestra.errors import NoSuchEvent
from orchestra.model import Event

EventRow = tuple[str, str, int | None, int | None, str]
"""kind, actor, task, player, detail"""

LEAP: Final = 1 << 40  # numbers that are passed over when a store is put back from a backup
_CHANGE: Final = (
    "INSERT INTO changes (seq, job_id, first, last) VALUES ((SELECT coalesce(max(seq), 0) FROM changes) + ?, ?, ?, ?)"
)
_EVENT: Final = (
    "INSERT INTO events (job_id, n, at, kind, actor, task, player_id, detail, seq) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_CHANGES: Final = (
    "SELECT c.seq, c.job_id, c.first, c.last FROM changes c CROSS JOIN jobs j ON j.job_id = c.job_id "
    "WHERE c.seq > ? ORDER BY c.seq"
)
_READ: Final = (
    "SELECT e.job_id, e.n, e.at, e.kind, e.actor, e.task, p.name, e.detail, e.seq FROM events e "
    "LEFT JOIN players p ON p.player_id = e.player_id WHERE e.job_id = ? AND e.n > ? {more} ORDER BY e.n LIMIT ?"
)


def write(cur: Cursor, job: int, first: int, at: int, events: Sequence[EventRow]) -> None:
    """Write down the next events of a job, which begin with number ``first``."""
    many = len(events)
    seq: int = cur.execute(_CHANGE, (many, job, first, first + many - 1)).lastrowid  # type: ignore[assignment]  # it is one
    ahead = seq - many + 1 - first
    cur.executemany(_EVENT, [(job, n, at, *event, ahead + n) for n, event in enumerate(events, first)])


def of_job(cur: Cursor, job: int, since: int, limit: int) -> list[Event]:
    """Events of a job with n > ``since``, oldest first."""
    return [_event(row) for row in cur.execute(_READ.format(more=""), (job, since, limit))]


def of_all(cur: Cursor, since: int, limit: int) -> list[Event]:
    """Events of all jobs with seq > ``since``, in the order in which they were committed. Those of pruned jobs are
    gone."""
    newest = last(cur)
    if since > newest:
        raise NoSuchEvent(seq=since, last=newest)
    found: list[Event] = []
    for seq, job, first, end in cur.connection.execute(_CHANGES, (since,)):
        after = max(first - 1, end - (seq - since))
        rows = cur.execute(_READ.format(more="AND e.n <= ?"), (job, after, end, limit - len(found))).fetchall()
        found += [_event(row) for row in rows]
        if len(found) >= limit:
            break
    return found


def last(cur: Cursor) -> int:
    """The ``seq`` of the newest event; 0 if there was none."""
    return int(cur.execute("SELECT coalesce(max(seq), 0) FROM changes").fetchone()[0])


def leap(cur: Cursor) -> None:
    """Pass over numbers: this store was put back, and somebody may have been told of events that it does not have."""
    cur.execute("INSERT INTO changes (seq, job_id, first, last) VALUES (?, 0, 1, 0)", (last(cur) + LEAP,))


def _event(row: Sequence[object]) -> Event:
    job, n, at, kind, actor, task, player, detail, seq = row
    given: dict[str, object] = {"job": job, "n": n, "at": at, "kind": kind, "actor": actor, "task": task}
    return Event(player=player, detail=detail, seq=seq, **given)  # type: ignore[arg-type]  # the table is STRICT
