"""The player's journal: what it has accepted, what it has begun, what it has yet to report.

One row per run, each with a checksum over what it says. A journal that cannot be trusted is put aside and a new one
with a new id is begun: then the conductor takes what was open for lost, which is the truth.
"""

import os
import sqlite3
import uuid
import zlib
from collections.abc import Sequence
from itertools import count
from sqlite3 import Connection, Cursor
from typing import Final

import msgspec

from orchestra.errors import SchemaTooNew
from orchestra.model import JournalChange, JournalEntry
from orchestra.store.sqlite import Lock, connect, refused, sync_directory

FILE: Final = "journal.sqlite"
APPLICATION: Final = 0x4F52434A
VERSION: Final = 1
_SCHEMA: Final = (
    "CREATE TABLE meta (k TEXT NOT NULL PRIMARY KEY, v TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE runs (seq INTEGER PRIMARY KEY, body BLOB NOT NULL, crc INTEGER NOT NULL) STRICT",
)
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(JournalEntry).decode


class Damaged(Exception):
    """The journal does not say what was written into it."""


def try_lock(directory: str) -> None:
    """Raise AlreadyRunning if a player uses ``directory``; holds nothing."""
    Lock(directory, "player").release()


class Journal:
    """The journal in ``directory``; :meth:`open` reads it."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.path = os.path.join(directory, FILE)
        self.identity = ""
        self.high = 0
        self.entries: tuple[JournalEntry, ...] = ()
        self.note = ""
        self._lock: Lock | None = None

    def open(self) -> None:
        """Lock the directory, and read what is there; ``note`` says if it had to be begun anew."""
        self._lock = Lock(self.directory, "player")
        try:
            self._read_or_begin_anew()
        except (sqlite3.Error, OSError) as problem:
            self.close()
            raise refused(self.path, problem) from None
        except BaseException:
            self.close()
            raise

    def _read_or_begin_anew(self) -> None:
        try:
            self._read()
        except (sqlite3.DatabaseError, msgspec.MsgspecError, Damaged) as problem:
            if not _is_damage(problem):
                raise
            aside = self._put_aside()
            self.note = (
                f"{self.path} was damaged ({problem}) and is now {aside}; "
                "a new journal is begun, and what was open in the old one is lost"
            )
            self._read()

    def connect(self) -> Connection:
        """A connection for the writer."""
        return connect(self.path)

    def close(self) -> None:
        """Let somebody else have it."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def save(self, cursor: Cursor, change: JournalChange) -> None:
        """Write one change."""
        if change.drops:
            cursor.executemany("DELETE FROM runs WHERE seq = ?", [(seq,) for seq in change.drops])
        if change.puts:
            cursor.executemany("INSERT OR REPLACE INTO runs (seq, body, crc) VALUES (?, ?, ?)", _rows(change.puts))
        if change.high is not None:
            cursor.execute("UPDATE meta SET v = ? WHERE k = 'high'", (_sealed(str(change.high)),))

    def _read(self) -> None:
        connection = connect(self.path)
        try:
            self.read(connection)
        finally:
            connection.close()
        sync_directory(self.directory)

    def read(self, connection: Connection) -> None:
        """Take in what an open database says, which is made a journal first if it is empty."""
        _prepare(connection, self.path)
        problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise Damaged(problem)
        meta = {key: _unsealed(value) for key, value in connection.execute("SELECT k, v FROM meta")}
        rows = connection.execute("SELECT seq, body, crc FROM runs ORDER BY seq").fetchall()
        if "id" not in meta or "high" not in meta:
            raise Damaged("its identity is missing")
        self.entries = tuple(_entry(*row) for row in rows)
        self.identity, self.high = meta["id"], int(meta["high"])
        if rows and rows[-1][0] > self.high:
            raise Damaged(f"it holds run {rows[-1][0]}, but has seen only {self.high}")

    def _put_aside(self) -> str:
        numbered = (f"{self.path}.damaged-{n}" for n in count(1))
        aside = next(path for path in numbered if not os.path.exists(path))
        for ending in ("-wal", "-shm", ""):
            if os.path.exists(self.path + ending):
                os.rename(self.path + ending, aside + ending)
        sync_directory(self.directory)
        return aside


def _is_damage(problem: Exception) -> bool:
    """Whether the journal says something else than was written, rather than that the disk is full or not ours."""
    if not isinstance(problem, sqlite3.Error):
        return True
    code = getattr(problem, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def _prepare(connection: Connection, path: str) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found > VERSION:
        raise SchemaTooNew(path=path, found=found, known=VERSION)
    if found == 0:
        _create(connection)


def _create(connection: Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        connection.execute(statement)
    values = {"id": uuid.uuid4().hex, "high": "0"}
    connection.executemany("INSERT INTO meta (k, v) VALUES (?, ?)", [(k, _sealed(v)) for k, v in values.items()])
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("COMMIT")


def _rows(entries: Sequence[JournalEntry]) -> list[tuple[int, bytes, int]]:
    return [(entry.seq, body, zlib.crc32(body)) for entry in entries for body in (_encode(entry),)]


def _entry(seq: int, body: bytes, crc: int) -> JournalEntry:
    entry = _decode(body) if zlib.crc32(body) == crc else None
    if entry is None or entry.seq != seq:
        raise Damaged(f"the record of run {seq} is not what was written")
    return entry


def _sealed(value: str) -> str:
    return f"{value} {zlib.crc32(value.encode()):08x}"


def _unsealed(sealed: str) -> str:
    value = sealed.rpartition(" ")[0]
    if _sealed(value) != sealed:
        raise Damaged("its head is not what was written")
    return value
