"""The conductor's store as an SQLite file: its lock, its pragmas, its schema and the way to the next one."""

import contextlib
import errno
import fcntl
import os
import sqlite3
import uuid
from collections.abc import Sequence
from sqlite3 import Connection
from typing import Final

from orchestra.errors import AlreadyRunning, DiskRefuses, SchemaTooNew, StoreDamaged, StoreUnreadable

FILE: Final = "store.sqlite"
APPLICATION: Final = 0x4F524348  # "ORCH", so that file(1) and we know our own
OLDEST: Final = (3, 37, 0)  # RETURNING, STRICT


CHECKED_AT_ONCE: Final = 256 << 20  # bytes that are looked through in less than a second
BUSY_TIMEOUT: Final = 10_000  # milliseconds
CACHE: Final = 32_768  # KiB of pages that a connection keeps; the system's cache has the rest
IN_USE: Final = b"in use"
AT_REST: Final = b"at rest"
_WORD: Final = 16  # bytes, with blanks after it: no other length is written, so a full disk need not have room
_HEADER: Final = 100  # bytes (SQLite's file format, 1.3)
_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_DISK: Final = (
    *(sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED),
)
_DISK_ERRNO: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def refused(path: str, problem: sqlite3.Error | OSError) -> StoreUnreadable:
    """What to say of a file that could not be used: it is damaged, its disk is in trouble, or it is not ours to use."""
    if isinstance(problem, OSError):
        kind = DiskRefuses if problem.errno in _DISK_ERRNO else StoreUnreadable
        return kind(path=path, problem=os.strerror(problem.errno or 0))
    code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
    if code in _DAMAGE:
        return StoreDamaged(path=path, problem=str(problem))
    return (DiskRefuses if code in _DISK else StoreUnreadable)(path=path, problem=str(problem))


class Lock:
    """An exclusive lock on a directory, for as long as this process lives or until :meth:`release`. It remembers a
    word, which outlives the process."""

    def __init__(self, directory: str, what: str) -> None:
        self._path = os.path.join(directory, "lock")
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as problem:
            raise refused(directory, problem) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            os.close(self._fd)
            if isinstance(problem, BlockingIOError):
                raise AlreadyRunning(what=what, path=directory) from None
            raise refused(self._path, problem) from None
        self.word = os.pread(self._fd, _WORD, 0).strip()

    def remember(self, word: bytes) -> None:
        """Keep ``word`` for whoever has the lock next."""
        try:
            os.pwrite(self._fd, word.ljust(_WORD), 0)
            os.fsync(self._fd)
        except OSError as problem:
            raise refused(self._path, problem) from None

    def release(self) -> None:
        os.close(self._fd)


def try_lock(directory: str) -> None:
    """Raise AlreadyRunning if a conductor uses ``directory``; holds nothing."""
    Lock(directory, "conductor").release()


def connect(path: str) -> Connection:
    """A connection that commits to the disk, not to a cache. The file is its owner's alone."""
    if sqlite3.sqlite_version_info < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise StoreUnreadable(path=path, problem=f"it needs SQLite {wanted}, this is {sqlite3.sqlite_version}")
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as problem:
        raise refused(path, problem) from None
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=512)
    try:
        _set_up(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _set_up(connection: Connection) -> None:
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT}")
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute(f"PRAGMA cache_size = -{CACHE}")


class Store:
    """The store in ``directory``."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.path = os.path.join(directory, FILE)
        self.unchecked = False  # it was not closed in good order, and is too large to be looked through at the start
        self.doubted = False  # its disk has failed us: it is to be looked through before it is used again
        self._lock: Lock | None = None

    def open(self) -> None:
        """Lock the directory, see that the store is whole, and bring its schema up to date."""
        self._lock = Lock(self.directory, "conductor")
        try:
            self._open(self._lock)
        except (sqlite3.Error, OSError) as problem:
            self._give_up()
            raise refused(self.path, problem) from None
        except BaseException:
            self._give_up()
            raise

    def _open(self, lock: Lock) -> None:
        if os.path.exists(restoring(self.directory)):
            raise StoreUnreadable(path=self.path, problem="a restore was broken off; run 'orchestra restore' again")
        check_length(self.path, used_before=lock.word in (IN_USE, AT_REST))
        connection = connect(self.path)
        try:
            if lock.word == IN_USE:
                self.unchecked = os.path.getsize(self.path) > CHECKED_AT_ONCE
                if not self.unchecked:
                    check(connection, self.path)
            migrate(connection, self.path, schemas())
        finally:
            connection.close()
        sync_directory(self.directory)
        lock.remember(IN_USE)

    def connect(self) -> Connection:
        """A further connection, for a thread."""
        return connect(self.path)

    def close(self) -> None:
        """Let somebody else have it; to be called when nobody is connected any more."""
        if self._lock is not None and not self.doubted and not self.unchecked:
            with contextlib.suppress(StoreUnreadable):  # then it is looked through at the next start
                self._lock.remember(AT_REST)
        self._give_up()

    def _give_up(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def restoring(directory: str) -> str:
    """The file that is there while a store is being put in the place of another."""
    return os.path.join(directory, "restoring")


def check_length(path: str, used_before: bool) -> None:
    """See that the database has the length that it says, if there is no log that could still give it that."""
    if _says_something(f"{path}-wal"):
        return
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER)
            length = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        head, length = b"", 0
    if not length:
        if used_before:
            raise StoreDamaged(path=path, problem="it is empty or gone, and there was a store here")
        return
    page = int.from_bytes(head[16:18], "big")
    wanted = int.from_bytes(head[28:32], "big") * (65536 if page == 1 else page)
    if head.startswith(b"SQLite format 3") and head[24:28] == head[92:96] and length < wanted:
        raise StoreDamaged(path=path, problem=f"it is {length} bytes long, and should be {wanted}")


def _says_something(log: str) -> bool:
    """Whether SQLite has written to a log, which may have its length before that."""
    try:
        with open(log, "rb") as file:
            return any(file.read(4))
    except FileNotFoundError:
        return False


def check(connection: Connection, path: str) -> None:
    """Look the database through, and raise StoreDamaged if it is not whole. This takes about 3 s for a gigabyte."""
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreDamaged(path=path, problem=" ".join(found.split()))


def in_memory() -> Connection:
    """A store that lives as long as its one connection, for tests and simulation."""
    connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=512)
    migrate(connection, ":memory:", schemas())
    return connection


def schemas() -> list[tuple[int, str]]:
    """Every step of the schema, by its number."""
    from importlib import resources  # a journal has no such steps, and this is half as large as a journal's code

    directory = resources.files("orchestra.store") / "schema"
    files = sorted((entry.name, entry) for entry in directory.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.split(".")[0]), entry.read_text()) for name, entry in files]


def migrate(connection: Connection, path: str, steps: Sequence[tuple[int, str]], *, put_aside: bool = True) -> None:
    """Take the steps that are missing in one transaction; a copy is put aside before an older store changes."""
    known = steps[-1][0]
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    _check_ours(connection, path, found)
    if found > known:
        raise SchemaTooNew(path=path, found=found, known=known)
    if 0 < found < known and put_aside:
        _back_up(connection, f"{path}.before-{known}")
    if found < known:
        _upgrade(connection, found, steps)


def _check_ours(connection: Connection, path: str, found: int) -> None:
    mark = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if (mark, bool(found)) not in ((APPLICATION, True), (0, False)) or bool(tables) != bool(found):
        raise StoreUnreadable(path=path, problem="it is a database, but not one that a conductor has made")


def _back_up(connection: Connection, path: str) -> None:
    """A copy that is on the disk when this returns. One that is there is of an upgrade that did not come to pass."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection.execute("VACUUM INTO ?", (path,))
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_directory(os.path.dirname(path))


def _upgrade(connection: Connection, found: int, steps: Sequence[tuple[int, str]]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        for _, text in (step for step in steps if step[0] > found):
            for statement in _statements(text):
                connection.execute(statement)
        if found == 0:
            connection.execute("INSERT INTO meta (k, v) VALUES ('store_id', ?)", (uuid.uuid4().hex,))
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {steps[-1][0]}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _statements(text: str) -> list[str]:
    found: list[str] = []
    part = ""
    for line in text.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            found.append(part)
            part = ""
    return found


def sync_directory(directory: str) -> None:
    """What was created or renamed in ``directory`` stays so through a power loss."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
