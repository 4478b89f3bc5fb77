"""A copy of the store, made while it is used: one moment of it, page by page, checked, and only then given its name."""

import contextlib
import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from sqlite3 import Connection
from typing import Final

from orchestra.errors import BackupExists, BackupFailed, StoreDamaged
from orchestra.store.reserve import free
from orchestra.store.sqlite import check, sync_directory

PAGES: Final = 2_000  # copied at a time; then it is asked whether to stop
PAUSE: Final = 0.001  # seconds, for others to reach the disk
PART: Final = ".part"
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)  # a file system without hard links


class Stopped(Exception):
    """Somebody wants the copy to be broken off."""


def back_up(connect: Callable[[], Connection], target: str, stopping: Callable[[], bool]) -> int:
    """Copy the store to the new file ``target``, which is on the disk when this returns; its size. What goes wrong
    leaves no file there."""
    if not os.path.isabs(target):
        raise BackupFailed(file=target, problem="it is not an absolute path")
    if os.path.lexists(target):
        raise BackupExists(file=target)
    try:
        with _part(target + PART) as part:
            _copy(connect, part, stopping)
            _sync(part)
            _name(part, target)
            sync_directory(os.path.dirname(target))
            return os.path.getsize(target)
    except FileExistsError:
        raise BackupExists(file=target) from None
    except (OSError, sqlite3.Error, StoreDamaged, Stopped) as problem:
        raise BackupFailed(file=target, problem=_reason(problem)) from None


def _name(part: str, target: str) -> None:
    try:
        os.link(part, target)  # unlike a rename it replaces nothing
    except OSError as problem:
        if problem.errno not in _NO_LINKS or os.path.lexists(target):
            raise
        os.rename(part, target)


def _reason(problem: Exception) -> str:
    if isinstance(problem, OSError):
        return os.strerror(problem.errno or 0)
    return "the conductor is being stopped" if isinstance(problem, Stopped) else str(problem).rstrip(".")


@contextlib.contextmanager
def _part(path: str) -> Iterator[str]:
    """A new file that only we may read, and that is gone afterwards."""
    fd = _create(path)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield path
    finally:
        for name in (path, f"{path}-wal", f"{path}-shm", f"{path}-journal"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        os.close(fd)


def _create(path: str) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileExistsError:
        _remove_stale(path)
        return os.open(path, flags, 0o600)


def _remove_stale(path: str) -> None:
    """Remove what a backup that was killed has left; nobody holds its lock."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        raise BackupFailed(file=path, problem="another backup is being written there") from None
    finally:
        os.close(fd)


def _copy(connect: Callable[[], Connection], part: str, stopping: Callable[[], bool]) -> None:
    def progress(status: int, remaining: int, total: int) -> None:
        if stopping():
            raise Stopped
        time.sleep(PAUSE)

    with closing(connect()) as source, closing(sqlite3.connect(part, isolation_level=None)) as copy:
        source.execute("BEGIN")  # one moment: else each commit would make it begin anew
        _check_room(source, os.path.dirname(part))
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        source.backup(copy, pages=PAGES, progress=progress)
        source.execute("ROLLBACK")
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, which can be read where nothing can be written
        check(copy, part)


def _check_room(source: Connection, directory: str) -> None:
    pages, each = (source.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size"))
    room = free(directory)
    if room < pages * each:
        raise sqlite3.OperationalError(f"it takes {pages * each} bytes, and there is room for {room}")


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
