"""Folding a database's log back into it, on a thread and a connection of its own, so that no commit waits for it."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from sqlite3 import Connection
from typing import Final

QUIET: Final = 0.25  # seconds without a commit after which the log is folded in
LONG: Final = 16 << 20  # bytes of log that are folded in, quiet or not
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


class Checkpointer:
    """Asleep until something was written, and again when everything is in the database."""

    def __init__(
        self, connect: Callable[[], Connection], path: str, name: str, failed: Callable[[Exception], object]
    ) -> None:
        """``failed`` is called on this thread when the disk refused; nothing is tried again then."""
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
            try:
                while self._next():
                    self._fold(connection)
            finally:
                connection.close()
        except sqlite3.Error as problem:
            self._failed(problem)

    def _next(self) -> bool:
        """Wait until there is something to do, and nobody would mind; False to stop."""
        self._wrote.wait()
        self._wrote.clear()
        while not self._stopping.wait(QUIET):
            if time.monotonic() - self._last >= QUIET or log_size(self._path) >= LONG:
                return True
        return False

    def _fold(self, connection: Connection) -> None:
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.OperationalError as problem:
            if not passes(problem):
                raise
