"""What survives a kill: a store or a journal in memory, and the writer in front of it.

A write waits for its commit, is committed with whatever else waits, and is told of later: a kill may come at each of
these moments, and what was under way then has happened or has not. SQLite commits to the disk (synchronous=FULL), so
what is committed survives a power loss too.
"""

import sqlite3
from collections.abc import Callable
from functools import cache
from sqlite3 import Connection, Cursor
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, fail

from orchestra.errors import NotSaved, StoreFailed
from orchestra.store import journal, sqlite
from orchestra.store.writer import CLOSED, Work, _resolve, commit, look
from simulation.clockwork import Killed, Process

T = TypeVar("T")

_WATCHED = (
    "CREATE TEMP TABLE moved (job INTEGER, task INTEGER, attempt INTEGER, was INTEGER, state INTEGER, held INTEGER)",
    """CREATE TEMP TRIGGER watch AFTER UPDATE OF state ON main.tasks WHEN old.state <> new.state BEGIN
           INSERT INTO moved VALUES (new.job_id, new.n, new.attempt, old.state, new.state, EXISTS (
               SELECT 1 FROM gates WHERE job_id = new.job_id AND paused_at IS NOT NULL
               UNION SELECT 1 FROM holds WHERE kind = 'everything'
               OR kind = 'host' AND name = (SELECT name FROM players WHERE player_id = new.player_id)
               OR kind = 'score' AND name = (SELECT name FROM scores WHERE score_id = new.score_id))); END""",
    "CREATE TEMP TABLE pruned (job INTEGER, token TEXT)",
    """CREATE TEMP TRIGGER forget AFTER DELETE ON main.job_params BEGIN
           INSERT INTO pruned VALUES (old.job_id, old.body ->> 'token'); END""",
    """CREATE TEMP TRIGGER too_soon AFTER DELETE ON main.tasks WHEN old.state < 3 BEGIN
           INSERT INTO pruned VALUES (old.job_id, NULL); END""",
)


@cache
def _empty_store() -> bytes:
    return sqlite.in_memory().serialize()


def store(copy: bytes | None = None) -> Connection:
    """A conductor's store, new or from a copy. What happens to its tasks is written down beside it, if it is
    committed: every move, and whether a hold or a pause was in force; which jobs were pruned."""
    connection = _blank()
    connection.deserialize(copy or _empty_store())
    for statement in _WATCHED:
        connection.execute(statement)
    return connection


def new_journal(identity: str) -> Connection:
    """A player's empty journal, with a name that is the same in every telling."""
    connection = _blank()
    connection.deserialize(_empty_journal())
    connection.execute("UPDATE meta SET v = ? WHERE k = 'id'", (journal._sealed(identity),))
    return connection


@cache
def _empty_journal() -> bytes:
    connection = _blank()
    journal._create(connection)
    return connection.serialize()


def _blank() -> Connection:
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=512)


class MemoryJournal(journal.Journal):
    """A journal whose database is handed in."""

    def __init__(self, connection: Connection) -> None:
        super().__init__("/")
        self._connection = connection

    def open(self) -> None:
        self.read(self._connection)


class Drive:
    """The disk of one daemon, over all its lives: what may go wrong with it, and when."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.full = False
        self.fails = False  # the next sync does
        self.slow = 0.0
        self.kill_at: list[tuple[int, bool]] = []  # so many commits from now, before it or after it; and once more …
        self.commits = 0


class _Troubled:
    """A connection whose next commit goes wrong."""

    def __init__(self, drive: Drive, written: bool) -> None:
        self._drive = drive
        self._written = written  # a sync that fails may have written all the same

    def cursor(self) -> Cursor:
        cursor = self._drive.connection.cursor(_TroubledCursor)
        cursor.drive, cursor.written = self._drive, self._written
        return cursor

    def execute(self, sql: str) -> Any:
        return self._drive.connection.execute(sql)


class _TroubledCursor(Cursor):
    drive: Drive
    written: bool

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        if sql != "COMMIT":
            return super().execute(sql, parameters)
        if self.written:
            super().execute("COMMIT")
        problem = sqlite3.OperationalError("disk I/O error" if self.drive.fails else "database or disk is full")
        problem.sqlite_errorcode = sqlite3.SQLITE_IOERR if self.drive.fails else sqlite3.SQLITE_FULL
        raise problem


class Writer:
    """A daemon's writer thread, as the daemon sees it."""

    def __init__(self, process: Process, drive: Drive, fatal: Callable[[StoreFailed], object]) -> None:
        self._process = process
        self._drive = drive
        self._fatal = fatal
        self._group: list[Work] = []
        self._failed: StoreFailed | None = None
        self._closing = False
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        """It is always ready."""

    def write(self, work: Callable[[Cursor], T], *, brief: bool = False) -> "Deferred[T]":
        """Do ``work`` in the next commit; fires after it, if the process lives to see it."""
        if self._closing:
            return fail(NotSaved(problem=CLOSED))
        done: Deferred[T] = Deferred()
        self._group.append((work, done))
        if len(self._group) == 1:
            random = self._process.timeline.random
            self._process.callLater(self._drive.slow + 0.0005 + 0.002 * random.random(), self._commit)
        return done

    def stop(self) -> "Deferred[None]":
        """Write what was asked for; fires then."""
        if not self._closing:
            self._closing = True
            if not self._group:
                self._stopped.callback(None)
        return self._stopped

    def _commit(self) -> None:
        group, self._group = self._group, []
        if self._failed is not None:
            results = [(done, _failure(self._failed)) for _, done in group]
        else:
            results = self._committed(group)
        self._process.callLater(0.0002, self._tell, results)

    def _committed(self, group: list[Work]) -> Any:
        drive = self._drive
        self._maybe_die(after=False)
        target: Any = drive.connection
        if drive.full or drive.fails:
            target = _Troubled(drive, drive.fails and self._process.timeline.chance(0.5))
        results, problem = commit(target, "the disk", group)
        drive.commits += 1
        drive.fails = False
        self._maybe_die(after=True)
        if problem is None:
            return results
        self._failed = StoreFailed(path="the disk", problem=str(problem))
        self._process.callLater(0, self._fatal, self._failed)
        return [(done, _failure(self._failed)) for _, done in group]

    def _maybe_die(self, *, after: bool) -> None:
        plans = self._drive.kill_at
        if not plans or plans[0][1] is not after:
            return
        if plans[0][0] > 0:
            plans[0] = plans[0][0] - 1, after
            return
        del plans[0]
        self._process.timeline.counts["fault: killed at a save"] += 1
        self._process.kill()
        raise Killed

    def _tell(self, results: Any) -> None:
        _resolve(results)
        if self._closing and not self._group and not self._stopped.called:
            self._stopped.callback(None)


def _failure(problem: Exception) -> Any:
    from twisted.python.failure import Failure

    return Failure(problem)


class Reader:
    """A daemon's reading thread: it sees what is committed when its turn comes."""

    def __init__(self, process: Process, drive: Drive) -> None:
        self._process = process
        self._drive = drive

    def read(self, work: Callable[[Cursor], T]) -> "Deferred[T]":
        done: Deferred[T] = Deferred()
        self._process.callLater(0.0005, self._read, work, done)
        return done

    def _read(self, work: Callable[[Cursor], T], done: "Deferred[T]") -> None:
        try:
            result = look(self._drive.connection, work)
        except Exception:  # whatever it was reaches the one who asked
            done.errback()
        else:
            done.callback(result)
