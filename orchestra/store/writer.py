"""The store's threads: one writes and commits in groups, one reads.

A group is whatever has come in while the last commit was on its way: one work when idle, many under load. Each work
has a savepoint of its own, or the transaction to itself, so a work that fails takes nothing with it. What could not be
committed was not done; after a failed fsync nothing is tried again.

Waking a thread and being woken by it costs more than a quick disk's sync. So a brief work that comes alone, while
nothing is under way and the disk is quick, is committed by the reactor's thread itself.
"""

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from sqlite3 import Connection, Cursor
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from orchestra.errors import NotSaved, OrchestraError, StoreFailed
from orchestra.store.checkpoint import Checkpointer, lengthen, log_size, passes
from orchestra.store.sqlite import BUSY_TIMEOUT

T = TypeVar("T")
Work = tuple[Callable[[Cursor], Any], "Deferred[Any]"]
Group = Sequence[Work]
Done = tuple["Deferred[Any]", Any]

GROUP: Final = 2000  # works in one commit, or what one turn asks for
FOLD_WITHIN: Final = 100  # milliseconds for which a commit waits for readers of the log
LOG_LIMIT: Final = 64 << 20  # bytes of log past which the writer itself folds it in, and waits for that
LONG: Final = 16 << 20  # bytes by which it grows until that is tried again
QUICK: Final = 0.003  # seconds for which a commit may keep the reactor, of late and on average
OF_LATE: Final = 16  # commits
SLOW_FOR: Final = 1.0  # seconds for which a disk that was not quick is left to the thread
BUSY_FOR: Final = 0.05  # and for which there is likely more to be committed together
_OURS: Final = (
    *(sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE),
    *(sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISUSE, 0),
)
"""What SQLite says of a wrong statement: our bug, not the disk's."""
CLOSED: Final = "the daemon is stopping"


class Writer:
    """One thread, one connection, group commit."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        deliver: Callable[..., object],
        fatal: Callable[[StoreFailed], object],
        name: str,
        after_turn: Callable[[Callable[[], None]], object] = lambda do: do(),
    ) -> None:
        """``deliver``: reactor.callFromThread; ``fatal`` is called once, in the reactor, when the disk failed.

        ``after_turn`` does something when the reactor's present turn is over. What a turn asks for is handed to the
        thread then, together: awake sooner, it would only take the interpreter from the turn, again and again.
        """
        self._connect = connect
        self._deliver = deliver
        self._fatal = fatal
        self._name = name
        self._after_turn = after_turn
        self._asked: list[Work] = []  # in this turn
        self._brief = True  # all of them
        self._queue: queue.SimpleQueue[list[Work] | None] = queue.SimpleQueue()
        self._connection: Connection | None = None  # used by one thread at a time
        self._under_way = 0  # turns whose works the thread has
        self._takes = 0.0  # seconds, as a commit by the reactor does of late
        self._apart_until = 0.0  # monotonic; till then all is the thread's
        self._thread: threading.Thread | None = None
        self._closing = False
        self._stopped: Deferred[None] = Deferred()
        self._path = name
        self._checkpointer: Checkpointer | None = None
        self._fold_at = LOG_LIMIT
        self._failing = threading.Lock()
        self._failed: StoreFailed | None = None

    def start(self) -> None:
        """Begin to write what was asked for."""
        self._thread = threading.Thread(target=self._run, name=f"{self._name} writer", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[Cursor], T], *, brief: bool = False) -> "Deferred[T]":
        """Do ``work`` in the next transaction; fires after its commit. NotSaved: nothing was done.

        ``brief``: it takes no longer than the disk's sync.
        """
        if self._closing:
            return fail(NotSaved(problem=CLOSED))
        done: Deferred[T] = Deferred()
        self._asked.append((work, done))
        self._brief = self._brief and brief
        if len(self._asked) == 1:
            self._after_turn(self._hand_over)
        return done

    def _hand_over(self) -> None:
        if not self._asked:
            return
        asked, self._asked = self._asked, []
        brief, self._brief = self._brief, True
        if not (brief and self._is_quiet(len(asked)) and self._commit_here(asked)):
            self._under_way += 1
            self._queue.put(asked)

    def _is_quiet(self, many: int) -> bool:
        """Whether a commit now keeps nobody waiting, who could otherwise be served or share it."""
        now = time.monotonic()
        if many > 1:
            self._apart_until = max(self._apart_until, now + BUSY_FOR)
        return not self._under_way and self._connection is not None and now >= self._apart_until

    def _commit_here(self, asked: Group) -> bool:
        """Commit without the thread; False if the log is not to be written to just now."""
        assert self._checkpointer is not None
        if not self._checkpointer.shut.acquire(blocking=False):
            return False
        begun = time.monotonic()
        try:
            results = self._commit(asked)
        finally:
            self._checkpointer.shut.release()
        ended = time.monotonic()
        self._takes += (ended - begun - self._takes) / OF_LATE
        if self._takes > QUICK or self._log_is_long():
            self._takes, self._apart_until = 0.0, ended + SLOW_FOR
        _resolve(results)
        return True

    def _committed(self, turns: int, results: Sequence[Done]) -> None:
        self._under_way -= turns
        _resolve(results)

    def stop(self) -> "Deferred[None]":
        """Write what was asked for, close; fires then."""
        if not self._closing:
            self._closing = True
            self._hand_over()
            if self._thread is None:
                self._stopped.callback(None)
            else:
                self._queue.put(None)
        return self._stopped

    # ---- in the thread

    def _run(self) -> None:
        self._connection = self._open()
        going = True
        while going:
            turns, group, going = _next_group(self._queue)
            if group:
                results = self._commit(group)
                self._fold()  # before that is said: the connection may be the reactor's then
                self._deliver(self._committed, turns, results)
        if self._checkpointer is not None:
            self._checkpointer.stop()
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                if self._failed is None:
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                connection.close()
        self._deliver(self._stopped.callback, None)

    def _open(self) -> Connection | None:
        try:
            connection = self._connect()
            self._path = connection.execute("PRAGMA database_list").fetchone()[2]
        except (sqlite3.Error, OSError, OrchestraError) as problem:
            self._fail(problem)
            return None
        lengthen(self._path)
        self._checkpointer = Checkpointer(self._connect, self._path, self._name, self._fail)
        return connection

    # ---- in either thread

    def _commit(self, group: Group) -> list[Done]:
        connection = self._connection
        if connection is None or self._failed is not None:
            return [(done, Failure(self._failed)) for _, done in group]
        results, problem = commit(connection, self._path, group)
        if problem is not None:
            failed = self._fail(problem)
            return [(done, Failure(failed)) for _, done in group]
        assert self._checkpointer is not None
        self._checkpointer.wrote()
        return results

    def _fail(self, problem: Exception) -> StoreFailed:
        """The disk cannot be trusted any more: say so once, and refuse everything from here on."""
        with self._failing:
            if self._failed is None:
                self._failed = StoreFailed(path=self._path, problem=str(problem))
                self._deliver(self._fatal, self._failed)
            return self._failed

    def _log_is_long(self) -> bool:
        return log_size(self._path) >= self._fold_at

    def _fold(self) -> None:
        """Fold in a log that has grown too long, here and now: in the thread, for it takes its time."""
        connection = self._connection
        if connection is None or self._failed is not None or not self._log_is_long():
            return
        try:
            # a backup reads for long: nobody's commit is to wait for that
            connection.execute(f"PRAGMA busy_timeout = {FOLD_WITHIN}")
            busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            lengthen(self._path)
            self._fold_at = self._fold_at + LONG if busy else LOG_LIMIT
        except sqlite3.Error as problem:
            if not passes(problem):
                self._fail(problem)
            self._fold_at += LONG
        finally:
            connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")


def _next_group(works: "queue.SimpleQueue[list[Work] | None]") -> tuple[int, list[Work], bool]:
    """Wait for work; returns of how many turns it is, what has come in, and whether more may come."""
    group: list[Work] = []
    turns = 0
    asked = works.get()
    while asked is not None:
        turns += 1
        group += asked
        if len(group) >= GROUP:
            return turns, group, True
        try:
            asked = works.get_nowait()
        except queue.Empty:
            return turns, group, True
    return turns, group, False


# ---- one transaction


def commit(connection: Connection, path: str, group: Group) -> tuple[list[Done], sqlite3.Error | None]:
    """Do all works in one transaction. What each came to, or why the disk can no longer be trusted."""
    cursor = connection.cursor()
    try:
        cursor.execute("BEGIN IMMEDIATE")
        if len(group) == 1:
            work, done = group[0]
            result = _result(cursor, work, undo="ROLLBACK")
            if not isinstance(result, Failure):
                cursor.execute("COMMIT")
            return [(done, result)], None
        results = [(done, _attempt(cursor, work)) for work, done in group]
        cursor.execute("COMMIT")
    except sqlite3.Error as problem:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        refusal = NotSaved(problem=f"{path}: {problem}")
        return [(done, Failure(refusal)) for _, done in group], None if passes(problem) else problem
    return results, None


def _code(problem: sqlite3.Error) -> int:
    return getattr(problem, "sqlite_errorcode", 0) & 0xFF


def _attempt(cursor: Cursor, work: Callable[[Cursor], Any]) -> Any:
    """The result of ``work``, or its failure with everything it did taken back, and nothing else."""
    cursor.execute("SAVEPOINT work")
    result = _result(cursor, work, undo="ROLLBACK TO work")
    cursor.execute("RELEASE work")
    return result


def _result(cursor: Cursor, work: Callable[[Cursor], Any], undo: str) -> Any:
    """The result of ``work``, or its failure, undone. A failing disk is everybody's, and raised."""
    try:
        return work(cursor)
    except Exception as problem:  # whatever it was reaches the one who asked
        if isinstance(problem, sqlite3.Error) and _code(problem) not in _OURS:
            raise
        failure = Failure()
        cursor.execute(undo)
        return failure


def _resolve(results: Sequence[Done]) -> None:
    for done, result in results:
        done.callback(result)


# ---- reading


class Reader:
    """A second thread that reads what was committed."""

    def __init__(self, connect: Callable[[], Connection], deliver: Callable[..., object]) -> None:
        self._connect = connect
        self._deliver = deliver
        self._queue: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._stopped: Deferred[None] = Deferred()

    def start(self) -> None:
        """Begin to answer."""
        self._thread = threading.Thread(target=self._run, name="store reader", daemon=True)
        self._thread.start()

    def read(self, work: Callable[[Cursor], T]) -> "Deferred[T]":
        """Do ``work``, which changes nothing, on what is committed now."""
        if self._closing:
            return fail(NotSaved(problem=CLOSED))
        done: Deferred[T] = Deferred()
        self._queue.put((work, done))
        return done

    def stop(self) -> "Deferred[None]":
        """Answer what was asked, close; fires then."""
        if not self._closing:
            self._closing = True
            if self._thread is None:
                self._stopped.callback(None)
            else:
                self._queue.put(None)
        return self._stopped

    def _run(self) -> None:
        connection: Connection | None = None
        while (item := self._queue.get()) is not None:
            work, done = item
            try:
                connection = connection or _read_only(self._connect)
                result = look(connection, work)
            except Exception:  # noqa: BLE001 - the one who asked is told, and the next one may have more luck
                result = Failure()
            self._deliver(_resolve, [(done, result)])
        if connection is not None:
            connection.close()
        self._deliver(self._stopped.callback, None)


def _read_only(connect: Callable[[], Connection]) -> Connection:
    connection = connect()
    connection.execute("PRAGMA query_only = ON")
    return connection


def look(connection: Connection, work: Callable[[Cursor], T]) -> T:
    """Do ``work`` on one snapshot."""
    cursor = connection.cursor()
    cursor.execute("BEGIN")
    try:
        return work(cursor)
    finally:
        cursor.execute("ROLLBACK")


# ---- without threads


class Inline:
    """Writer and reader on the calling thread: the Deferreds it returns have fired. For tests and simulation."""

    def __init__(self, connection: Connection, fatal: Callable[[StoreFailed], object] = lambda _: None) -> None:
        self._connection = connection
        self._fatal = fatal
        self._failed: StoreFailed | None = None

    def write(self, work: Callable[[Cursor], T], *, brief: bool = False) -> "Deferred[T]":
        """Do ``work`` now."""
        if self._failed is not None:
            return fail(self._failed)
        done: Deferred[T] = Deferred()
        results, problem = commit(self._connection, "the store", [(work, done)])
        if problem is not None:
            self._failed = StoreFailed(path="the store", problem=str(problem))
            self._fatal(self._failed)
            return fail(self._failed)
        _resolve(results)
        return done

    def read(self, work: Callable[[Cursor], T]) -> "Deferred[T]":
        """Do ``work`` now."""
        done: Deferred[T] = Deferred()
        try:
            done.callback(look(self._connection, work))
        except Exception:  # noqa: BLE001 - whatever it was reaches the one who asked
            done.errback()
        return done
