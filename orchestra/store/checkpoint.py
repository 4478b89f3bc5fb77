"""Folding a database's log back into it, on a thread and a connection of its own, so that no commit waits for it.

The log keeps its length and is written over from its beginning once all of it is folded in: to sync what was written
over costs half of what it costs to sync a file that has grown.
"""

import contextlib
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from sqlite3 import Connection
from typing import Final

QUIET: Final = 0.25  # seconds without a commit after which the log is folded in
OFTEN: Final = 1.0  # seconds after which it is folded in, quiet or not
BEGIN_AGAIN: Final = 1000  # pages of log after which commits are to write over it from its beginning
WITHIN: Final = 50  # milliseconds for which readers of the log may hinder that
AT_FIRST: Final = 4 << 20  # bytes of log that are there before anything is written
TO_SPARE: Final = 16  # times as much as that is to be free
WORLD: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
"""What passes by itself: the next checkpoint does this one's work too."""


def passes(problem: sqlite3.Error) -> bool:
    """Whether it is the world that is in the way, and not a disk that has failed."""
    code: int = getattr(problem, "sqlite_errorcode", 0)
    # the log's index, which is made anew at every start, could not grow: so it is said of a full disk
    return code & 0xFF in WORLD or code == sqlite3.SQLITE_IOERR_SHMSIZE


def log_size(path: str) -> int:
    """Bytes in the log of the database at ``path``."""
    try:
        return os.stat(f"{path}-wal").st_size
    except OSError:
        return 0


def lengthen(path: str) -> None:
    """Give the log of the database at ``path`` the length that it has at least. What is beyond what SQLite has written
    there means nothing to it. To be called while nobody writes; on a disk without room to spare the log just grows."""
    with contextlib.suppress(OSError):
        log = os.open(f"{path}-wal", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lengthen(log, os.fstat(log).st_size)
        finally:
            os.close(log)


def _lengthen(log: int, there: int) -> None:
    missing = AT_FIRST - there
    if missing > 0 and shutil.disk_usage(log).free > TO_SPARE * missing:
        if os.pwrite(log, bytes(missing), there) < missing:
            os.ftruncate(log, there)
        os.fsync(log)


class Checkpointer:
    """Asleep until something was written, and again when everything is in the database."""

    def __init__(
        self, connect: Callable[[], Connection], path: str, name: str, failed: Callable[[Exception], object]
    ) -> None:
        """``failed`` is called on this thread when the disk refused; nothing is tried again then."""
        self.shut = threading.Lock()  # held while a commit would have to wait for us
        self._connect = connect
        self._path = path
        self._failed = failed
        self._wrote = threading.Event()
        self._stopping = threading.Event()
        self._last = 0.0
        self._thread = threading.Thread(target=self._run, name=f"{name} checkpoints", daemon=True)
        self._thread.start()

    def wrote(self) -> None:
        """Something was committed."""
        self._last = time.monotonic()
        if not self._wrote.is_set():
            self._wrote.set()

    def stop(self) -> None:
        """Finish what is under way; the thread is gone when this returns."""
        self._stopping.set()
        self._wrote.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            connection = self._connect()
            connection.execute(f"PRAGMA busy_timeout = {WITHIN}")
            try:
                while self._next():
                    self._fold(connection)
            finally:
                connection.close()
        except sqlite3.Error as problem:
            self._failed(problem)

    def _next(self) -> bool:
        """Wait until there is something to do, and nobody would mind, or it is time; False to stop."""
        self._wrote.wait()
        self._wrote.clear()
        latest = time.monotonic() + OFTEN
        while not self._stopping.wait(QUIET):
            now = time.monotonic()
            if now - self._last >= QUIET or now >= latest:
                return True
        return False

    def _fold(self, connection: Connection) -> None:
        try:
            _, pages, folded = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            if folded < pages and pages >= BEGIN_AGAIN:
                # few pages are left to be folded in, so that a commit which comes just now waits for a moment only
                with self.shut:
                    connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        except sqlite3.OperationalError as problem:
            if not passes(problem):
                raise
