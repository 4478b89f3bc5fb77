"""The player's journal: it says what was written into it, or that it cannot be trusted."""

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestra.errors import AlreadyRunning, SchemaTooNew, StoreUnreadable
from orchestra.model import JournalChange, JournalEntry, Report, RunState, Told
from orchestra.store import journal
from orchestra.store.journal import Journal
from orchestra.store.writer import Inline


def entry(seq: int, state: RunState = RunState.ACCEPTED, **changes: object) -> JournalEntry:
    return JournalEntry(seq=seq, job=7, task=seq, attempt=1, state=state, boot="boot", **changes)  # type: ignore[arg-type]


def opened(directory: Path) -> Journal:
    book = Journal(str(directory))
    book.open()
    return book


def saved(directory: Path, *changes: JournalChange) -> str:
    """A journal into which ``changes`` were written, closed again; its id."""
    book = opened(directory)
    connection = book.connect()
    inline = Inline(connection)
    for change in changes:
        inline.write(lambda cur, change=change: book.save(cur, change))
    connection.close()
    book.close()
    return book.identity


FULL = JournalChange((entry(1, score="uptime", params={"a": "b"}, digest="d", due=9), entry(2)), (), 2)


def test_a_new_journal_has_seen_nothing(tmp_path: Path) -> None:
    """It has an id unlike any other."""
    first, second = opened(tmp_path / "a"), opened(tmp_path / "b")
    assert (first.high, first.entries, first.note) == (0, (), "")
    assert len(first.identity) == 32 and first.identity != second.identity
    first.close()
    second.close()


def test_what_was_saved_is_there_again(tmp_path: Path) -> None:
    """Word for word, with the id and the highest number."""
    done = entry(1, RunState.DONE, report=Report(1, 7, 1, 1, Told.OK, rc=0, response={"k": "v"}))
    identity = saved(tmp_path, FULL, JournalChange((done, entry(3)), (2,), 3))
    book = opened(tmp_path)
    assert (book.identity, book.high, book.note) == (identity, 3, "")
    assert book.entries == (done, entry(3))
    book.close()


def test_the_highest_number_outlives_its_run(tmp_path: Path) -> None:
    """An empty journal that has seen run 2 will not take it for new."""
    saved(tmp_path, FULL, JournalChange((), (1, 2)))
    book = opened(tmp_path)
    assert (book.high, book.entries) == (2, ())
    book.close()


def test_a_journal_is_one_player_s(tmp_path: Path) -> None:
    """A second daemon is told so; afterwards it may have it."""
    book = opened(tmp_path)
    for attempt in (lambda: opened(tmp_path), lambda: journal.try_lock(str(tmp_path))):
        with pytest.raises(AlreadyRunning):
            attempt()
    book.close()
    opened(tmp_path).close()


# ---- damage


def run(sql: str, *parameters: object) -> Callable[[Path], None]:
    """Change the database behind the journal's back."""

    def change(path: Path) -> None:
        connection = sqlite3.connect(path)
        connection.execute(sql, parameters)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    return change


def overwrite(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def cut(path: Path) -> None:
    run("PRAGMA user_version = 1")(path)
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit_of_a_record(path: Path) -> None:
    """As a failing disk does, below all that SQLite checks."""
    run("PRAGMA user_version = 1")(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"uptime")] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "overwritten": overwrite,
    "cut off": cut,
    "a bit flipped": flip_a_bit_of_a_record,
    "another record": run("UPDATE runs SET body = ? WHERE seq = 1", b"nonsense"),
    "a record of another run": run("UPDATE runs SET seq = 9 WHERE seq = 2"),
    "its number changed": run("UPDATE meta SET v = '1' || substr(v, 2) WHERE k = 'high'"),
    "no number": run("DELETE FROM meta WHERE k = 'high'"),
    "no table": run("DROP TABLE runs"),
    "half begun": run("PRAGMA user_version = 0"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_journal_is_put_aside_and_a_new_one_begun(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    """With a new id, so that the conductor knows; and with a note that says where the old one is."""
    identity = saved(tmp_path, FULL)
    damage(tmp_path / journal.FILE)
    book = opened(tmp_path)
    assert (book.high, book.entries) == (0, ())
    assert book.identity != identity
    assert "damaged" in book.note
    assert (tmp_path / f"{journal.FILE}.damaged-1").exists()
    book.close()
    again = opened(tmp_path)
    assert (again.identity, again.note) == (book.identity, "")
    again.close()


def test_nothing_that_was_put_aside_is_overwritten(tmp_path: Path) -> None:
    """The second damaged journal lies beside the first."""
    for _ in range(2):
        saved(tmp_path, FULL)
        overwrite(tmp_path / journal.FILE)
        opened(tmp_path).close()
    assert sorted(
        name for name in os.listdir(tmp_path) if name.count("damaged") and not name.endswith(("-wal", "-shm"))
    ) == [
        f"{journal.FILE}.damaged-1",
        f"{journal.FILE}.damaged-2",
    ]


def test_a_journal_that_cannot_be_read_now_is_not_damaged(tmp_path: Path) -> None:
    """It is left where it is, the daemon is told why, and the directory is free again."""
    identity = saved(tmp_path, FULL)
    path = tmp_path / journal.FILE
    path.rename(tmp_path / "elsewhere")
    path.mkdir()
    with pytest.raises(StoreUnreadable):
        opened(tmp_path)
    path.rmdir()
    (tmp_path / "elsewhere").rename(path)
    book = opened(tmp_path)
    assert (book.identity, book.high) == (identity, 2)
    book.close()


def test_a_journal_that_somebody_else_holds_is_not_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at it with another tool does not make the player forget its runs."""
    identity = saved(tmp_path, FULL)
    monkeypatch.setattr(journal, "connect", impatient)
    other = sqlite3.connect(tmp_path / journal.FILE, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnreadable, match="locked"):
        opened(tmp_path)
    other.close()
    book = opened(tmp_path)
    assert book.identity == identity
    book.close()


def impatient(path: str) -> sqlite3.Connection:
    """A connection that does not wait for a lock."""
    return sqlite3.connect(path, isolation_level=None, timeout=0)


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    """By an older Orchestra, which leaves it as it is."""
    identity = saved(tmp_path, FULL)
    run("PRAGMA user_version = 9")(tmp_path / journal.FILE)
    with pytest.raises(SchemaTooNew):
        opened(tmp_path)
    run("PRAGMA user_version = 1")(tmp_path / journal.FILE)
    book = opened(tmp_path)
    assert book.identity == identity
    book.close()
