"""Putting a backup in the place of the store, so that the promises hold: what happened after the backup is not known.

A one-of task that had not ended may have run on anybody: it is ``lost``. Another may have run on its own player; that
player's journal knows. This is why ``next_seq`` stays as it is: whoever has seen that number, or a later one, shows at
its Hello that the store went back in time. Ids that were given out after the backup are not given out again.
"""

import contextlib
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from sqlite3 import Connection, Cursor
from typing import Final
from urllib.parse import quote

from orchestra.errors import BackupUnusable, SchemaTooNew, StoreDamaged, StoreUnreadable
from orchestra.store import history, moves, sqlite
from orchestra.store.ledger import Ledger
from orchestra.store.reserve import free
from orchestra.store.sqlite import AT_REST, FILE, Lock, refused, restoring, sync_directory
from orchestra.store.values import Restored

SKIPPED: Final = 1_000_000  # job ids, at least
STEP: Final = 10_000  # tasks in one transaction
REASON: Final = "the store was put back from a backup, and nobody can know what became of it since"
_UNFINISHED: Final = "state + 0 IN (0, 1, 2)"
_ENDINGS: Final = ("", "-wal", "-shm")


def restore(file: str, directory: str, now: int) -> Restored:
    """Put the backup ``file`` in the place of the store in ``directory``, which nobody may be using. The store that was
    there is kept beside it; until the last step, nothing of it is touched."""
    lock = Lock(directory, "conductor")
    store = os.path.join(directory, FILE)
    fresh = f"{store}.restored"
    try:
        _remove(fresh)
        _fetch(file, fresh)
        done = _turn_back(file, fresh, _last_job(store), now)
        _give(directory, fresh, os.path.join(directory, "lock"))
        aside = _switch(directory, store, fresh, now)
        lock.remember(AT_REST)
        return Restored(**done, aside=aside)
    except (OSError, sqlite3.Error) as problem:
        raise refused(fresh, problem) from None
    finally:
        with contextlib.suppress(OSError):
            _remove(fresh)
        lock.release()


def _remove(path: str) -> None:
    for ending in _ENDINGS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + ending)


def _fetch(file: str, fresh: str) -> None:
    """A copy of the backup, with the log that somebody who copied a store by hand may have left beside it."""
    try:
        wanted = sum(os.path.getsize(file + ending) for ending in _ENDINGS[:2] if os.path.exists(file + ending))
        with open(file, "rb"):
            pass
    except OSError as problem:
        raise BackupUnusable(file=file, problem=os.strerror(problem.errno or 0)) from None
    if not os.path.isfile(file):
        raise BackupUnusable(file=file, problem="it is not a file")
    if (room := free(os.path.dirname(fresh))) < wanted:
        raise BackupUnusable(file=file, problem=f"it takes {wanted} bytes, and {fresh} has room for {room}")
    for ending in _ENDINGS[:2]:
        if os.path.exists(file + ending):
            os.close(os.open(fresh + ending, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            shutil.copyfile(file + ending, fresh + ending)


def _turn_back(file: str, fresh: str, last_job: int, now: int) -> dict[str, int]:
    """Make the copy a store that knows it was put back; what that came to."""
    try:
        sqlite.check_length(fresh, used_before=True)
        with closing(sqlite.connect(fresh)) as connection:
            _check(connection, file)
            done = _forget(connection, last_job, now)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except sqlite3.DatabaseError as problem:
        if isinstance(refusal := refused(file, problem), StoreDamaged):
            raise BackupUnusable(file=file, problem=str(problem)) from None
        raise refusal from None
    except (StoreUnreadable, SchemaTooNew) as problem:
        said = str(problem.fields.get("problem") or problem.sentence).rstrip(".")
        raise BackupUnusable(file=file, problem=said) from None
    fd = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return done


def _check(connection: Connection, file: str) -> None:
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    if found != "ok":
        raise StoreUnreadable(path=file, problem=f"it is damaged: {' '.join(found.split())}")
    if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
        raise StoreUnreadable(path=file, problem="it is not a conductor's store")
    sqlite.migrate(connection, file, sqlite.schemas(), put_aside=False)


def _last_job(store: str) -> int:
    """The last job id that the store in place has given out, if it can be read; it may be what is damaged. Its log is
    passed over, so that nothing is written: that never holds as many jobs as are skipped."""
    if not os.path.exists(store):
        return 0
    try:
        with closing(sqlite3.connect(f"file:{quote(store)}?immutable=1", uri=True)) as connection:
            row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
            return int(row[0]) if row else 0
    except sqlite3.Error:
        return 0


def _forget(connection: Connection, last_job: int, now: int) -> dict[str, int]:
    cur = connection.cursor()
    lost = 0
    while step := _in_one(cur, lambda: _lose_one_of(cur, now)):
        lost += step
    doubtful = _in_one(cur, lambda: _doubt(cur, now))
    first = _in_one(cur, lambda: _renew(cur, last_job, now))
    return {"lost": lost, "doubtful": doubtful, "next_job": first}


def _in_one(cur: Cursor, work: Callable[[], int]) -> int:
    cur.execute("BEGIN IMMEDIATE")
    done = work()
    cur.execute("COMMIT")
    return done


def _lose_one_of(cur: Cursor, now: int) -> int:
    ledger = Ledger(cur, now)
    where = f"{_UNFINISHED} AND job_id IN (SELECT job_id FROM jobs WHERE scope <> 'all' AND ended_at IS NULL) LIMIT ?"
    many = moves.lose(ledger, moves.rows(cur, where, (STEP,)), REASON)
    ledger.close()
    return many


def _doubt(cur: Cursor, now: int) -> int:
    """What has not ended may have run, and so never ends as if it surely had not. What was with a player then is not
    tried again, whatever that player says: it may speak of a run whose end it had told us after the backup."""
    ledger = Ledger(cur, now)
    for (job,) in cur.execute("SELECT job_id FROM jobs WHERE ended_at IS NULL ORDER BY job_id").fetchall():
        ledger.note(job, "restored", detail="the store was put back from a backup")
    ledger.close()
    cur.execute(
        "UPDATE tasks SET losses = max(losses, (SELECT max_attempts FROM jobs WHERE jobs.job_id = tasks.job_id)) "
        "WHERE state = 1"
    )
    return cur.execute(f"UPDATE tasks SET maybe_ran = 1 WHERE {_UNFINISHED}").rowcount


def _renew(cur: Cursor, last_job: int, now: int) -> int:
    """Be another store: an id of its own, no sessions, past all job ids that were given out; the next of these."""
    cur.execute("UPDATE meta SET v = ? WHERE k = 'store_id'", (uuid.uuid4().hex,))
    cur.execute("UPDATE players SET owner = '', epoch = epoch + ?", (SKIPPED,))
    row = cur.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
    given = row[0] if row else 0
    last = max(given, last_job) + SKIPPED
    if row is None:
        cur.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('jobs', 0)")
    cur.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'jobs'", (last,))
    history.leap(cur)
    cur.execute("INSERT INTO skipped (first, last, at) VALUES (?, ?, ?)", (given + 1, last, now))
    return int(last) + 1


def _give(directory: str, *files: str) -> None:
    """Let the owner of the directory have what we made in it: root restores, the conductor's user goes on."""
    about = os.stat(directory)
    if os.geteuid() == 0:
        for file in files:
            os.chown(file, about.st_uid, about.st_gid)


def _switch(directory: str, store: str, fresh: str, now: int) -> str:
    """The store aside, the fresh one in its place; where it is now, "" if there was none. A conductor that starts in
    between is refused."""
    os.close(os.open(restoring(directory), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    sync_directory(directory)
    aside = ""
    if os.path.exists(store):
        aside = f"{store}.replaced-{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now // 1000))}"
        for ending in reversed(_ENDINGS):
            if os.path.exists(store + ending):
                os.rename(store + ending, aside + ending)
    else:
        _remove(store)  # a log without its database
    os.rename(fresh, store)
    sync_directory(directory)
    os.unlink(restoring(directory))
    sync_directory(directory)
    return aside
