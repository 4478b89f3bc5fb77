"""The store's threads: one writes and commits in groups, one reads.

A group is whatever has come in while the last commit was on its way: one work when idle, many under load. Each work
has its own savepoint, so a work that fails takes nothing with it. What could not be committed was not done; after a
failed fsync nothing is tried again.
"""

import contextlib
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from sqlite3 import Connection, Cursor
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from orchestra.errors import NotSaved, StoreFailed

T = TypeVar("T")
Work = tuple[Callable[[Cursor], Any], "Deferred[Any]"]
Done = tuple["Deferred[Any]", Any]

GROUP: Final = 2000
WAL_LIMIT: Final = 64 << 20
_OURS: Final = (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE, 0)
"""What SQLite says of a wrong statement: our bug, not the disk's."""
IDLE: Final = 1.0  # seconds without work after which the log is folded into the database


class Writer:
    """One thread, one connection, group commit."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        deliver: Callable[..., object],
        fatal: Callable[[StoreFailed], object],
        name: str,
    ) -> None:
        """``deliver``: reactor.callFromThread; ``fatal`` is called once, in the reactor, when the disk failed."""
        self._connect = connect
        self._deliver = deliver
        self._fatal = fatal
        self._name = name
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed: StoreFailed | None = None
        self._stopped: Deferred[None] = Deferred()
        self._path = ""

    def start(self) -> None:
        """Begin to write what was asked for."""
        self._thread = threading.Thread(target=self._run, name=f"{self._name} writer", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[Cursor], T]) -> "Deferred[T]":
        """Do ``work`` in the next transaction; fires after its commit. NotSaved: nothing was done."""
        done: Deferred[T] = Deferred()
        self._queue.put((work, done))
        return done

    def stop(self) -> "Deferred[None]":
        """Write what is left, close; fires then."""
        if self._thread is None:
            self._stopped.callback(None)
        else:
            self._queue.put(None)
        return self._stopped

    # ---- in the thread

    def _run(self) -> None:
        connection = self._connect()
        self._path = connection.execute("PRAGMA database_list").fetchone()[2]
        going = True
        while going:
            group, going = self._next_group(connection)
            if group:
                self._deliver(_resolve, self._commit(connection, group))
        with contextlib.suppress(sqlite3.Error):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        self._deliver(self._stopped.callback, None)

    def _next_group(self, connection: Connection) -> tuple[list[Work], bool]:
        try:
            first = self._queue.get(timeout=IDLE)
        except queue.Empty:
            self._checkpoint(connection, "PASSIVE", 1)
            return [], True
        group: list[Work] = []
        item: Work | None = first
        while item is not None:
            group.append(item)
            try:
                item = self._queue.get_nowait() if len(group) < GROUP else None
            except queue.Empty:
                return group, True
        return group, len(group) >= GROUP

    def _commit(self, connection: Connection, group: list[Work]) -> list[Done]:
        if self._failed is not None:
            return [(done, Failure(self._failed)) for _, done in group]
        cursor = connection.cursor()
        try:
            cursor.execute("BEGIN IMMEDIATE")
            results = [(done, _attempt(cursor, work)) for work, done in group]
            cursor.execute("COMMIT")
        except sqlite3.Error as problem:
            return self._not_committed(connection, group, problem)
        self._checkpoint(connection, "RESTART", WAL_LIMIT)
        return results

    def _not_committed(self, connection: Connection, group: list[Work], problem: sqlite3.Error) -> list[Done]:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            refusal = NotSaved(problem=f"{self._path}: {problem}")
            return [(done, Failure(refusal)) for _, done in group]
        self._failed = StoreFailed(path=self._path, problem=str(problem))
        self._deliver(self._fatal, self._failed)
        return [(done, Failure(self._failed)) for _, done in group]

    def _checkpoint(self, connection: Connection, mode: str, least: int) -> None:
        with contextlib.suppress(OSError, sqlite3.Error):
            if os.stat(f"{self._path}-wal").st_size >= least:
                connection.execute(f"PRAGMA wal_checkpoint({mode})")


def _attempt(cursor: Cursor, work: Callable[[Cursor], Any]) -> Any:
    """The result of ``work``, or its failure with everything it did taken back. A failing disk is everybody's."""
    cursor.execute("SAVEPOINT work")
    try:
        result = work(cursor)
    except sqlite3.Error as problem:
        if getattr(problem, "sqlite_errorcode", 0) & 0xFF not in _OURS:
            raise
        return _take_back(cursor)
    except Exception:  # noqa: BLE001 - whatever it was reaches the one who asked
        return _take_back(cursor)
    cursor.execute("RELEASE work")
    return result


def _take_back(cursor: Cursor) -> Failure:
    failure = Failure()
    cursor.execute("ROLLBACK TO work")
    cursor.execute("RELEASE work")
    return failure


def _resolve(results: list[Done]) -> None:
    for done, result in results:
        done.callback(result)


class Reader:
    """A second thread that reads what was committed."""

    def __init__(self, connect: Callable[[], Connection], deliver: Callable[..., object]) -> None:
        self._connect = connect
        self._deliver = deliver
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=self._run, name="store reader", daemon=True)
        self._thread.start()

    def read(self, work: Callable[[Cursor], T]) -> "Deferred[T]":
        """Do ``work``, which changes nothing, on what is committed now."""
        done: Deferred[T] = Deferred()
        self._queue.put((work, done))
        return done

    def stop(self) -> "Deferred[None]":
        """Answer what is left, close; fires then."""
        if self._thread is None:
            self._stopped.callback(None)
        else:
            self._queue.put(None)
        return self._stopped

    def _run(self) -> None:
        connection = self._connect()
        connection.execute("PRAGMA query_only = ON")
        while (item := self._queue.get()) is not None:
            work, done = item
            self._deliver(_resolve, [(done, _look(connection, work))])
        connection.close()
        self._deliver(self._stopped.callback, None)


def _look(connection: Connection, work: Callable[[Cursor], Any]) -> Any:
    cursor = connection.cursor()
    cursor.execute("BEGIN")
    try:
        return work(cursor)
    except Exception:  # noqa: BLE001 - whatever it was reaches the one who asked
        return Failure()
    finally:
        cursor.execute("ROLLBACK")


class Inline:
    """Writer and reader without threads: every work is committed before the call returns. For tests and simulation."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def write(self, work: Callable[[Cursor], T]) -> "Deferred[T]":
        """Do ``work`` now; the Deferred has fired."""
        done: Deferred[T] = Deferred()
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        result = _attempt(cursor, work)
        cursor.execute("COMMIT")
        done.callback(result)
        return done

    def read(self, work: Callable[[Cursor], T]) -> "Deferred[T]":
        """Do ``work`` now; the Deferred has fired."""
        done: Deferred[T] = Deferred()
        done.callback(_look(self._connection, work))
        return done
