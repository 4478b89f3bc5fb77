"""The store's threads: what a Deferred's firing means, and what happens when the disk does not play along."""

import os
import queue
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from orchestra.errors import NotSaved, StoreFailed, UsageError
from orchestra.store import checkpoint, sqlite, writer
from orchestra.store.checkpoint import log_size
from orchestra.store.writer import Inline, Reader, Writer

PATIENCE = 20.0  # seconds after which a thread that should have answered is hung


class Reactor:
    """What a thread sees of the reactor: calls are made when the test says so."""

    def __init__(self) -> None:
        self._calls: queue.Queue[tuple[Callable[..., object], tuple[Any, ...]]] = queue.Queue()

    def deliver(self, call: Callable[..., object], *args: Any) -> None:
        self._calls.put((call, args))

    def turn(self) -> None:
        """Make the next call; wait for it."""
        call, args = self._calls.get(timeout=PATIENCE)
        call(*args)

    def until(self, done: "Deferred[Any]") -> Any:
        """Make calls until ``done`` has fired; its result, or its exception raised."""
        results: list[Any] = []
        done.addBoth(results.append)
        while not results:
            self.turn()
        if hasattr(results[0], "raiseException"):
            results[0].raiseException()
        return results[0]


class Disk:
    """Connections to one database, whose statements fail as they are told to."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "test.sqlite")
        self.failing: dict[str, int] = {}  # start of a statement -> SQLite's code
        self.executed: list[str] = []
        self.checkpointed = threading.Event()
        connection = sqlite.connect(self.path)
        connection.execute("CREATE TABLE t (x UNIQUE)")
        connection.close()

    def connect(self) -> Any:
        return _Connection(self, sqlite.connect(self.path))

    def execute(self, real: Any, sql: str, parameters: Any) -> Any:
        self.executed.append(sql)
        for start, code in self.failing.items():
            if sql.startswith(start):
                problem = sqlite3.OperationalError("disk I/O error")
                problem.sqlite_errorcode = code
                raise problem
        result = real.execute(sql, parameters)
        if "wal_checkpoint(PASSIVE)" in sql:
            self.checkpointed.set()
        return result

    def values(self) -> list[Any]:
        connection = sqlite.connect(self.path)
        rows = connection.execute("SELECT x FROM t ORDER BY rowid").fetchall()
        connection.close()
        return [x for (x,) in rows]


class _Connection:
    def __init__(self, disk: Disk, real: sqlite3.Connection) -> None:
        self._disk = disk
        self._real = real

    def cursor(self) -> "_Connection":
        return _Connection(self._disk, self._real.cursor())  # type: ignore[arg-type]

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        return self._disk.execute(self._real, sql, parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class Bench:
    """A writer at work on a disk, and the reactor it answers to."""

    def __init__(self, directory: Path) -> None:
        self.disk = Disk(directory)
        self.reactor = Reactor()
        self.fatal: list[StoreFailed] = []
        self.writer = Writer(self.disk.connect, self.reactor.deliver, self.fatal.append, "test")

    def put(self, x: object) -> "Deferred[Any]":
        return self.writer.write(lambda cur: cur.execute("INSERT INTO t VALUES (?)", (x,)).rowcount)

    def grouped(self, works: Callable[[], list["Deferred[Any]"]]) -> list["Deferred[Any]"]:
        """Have all that ``works`` asks for done in one commit: they come in while another is under way."""
        under_way, go_on = threading.Event(), threading.Event()
        first = self.writer.write(lambda _: (under_way.set(), go_on.wait(PATIENCE)))
        under_way.wait(PATIENCE)
        asked = works()
        go_on.set()
        self.reactor.until(first)
        return asked

    def stop(self) -> None:
        self.reactor.until(self.writer.stop())


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    bench.writer.start()
    yield bench
    bench.stop()


def outcome(done: "Deferred[Any]") -> Any:
    """What a Deferred has fired with."""
    results: list[Any] = []
    done.addBoth(results.append)
    return results[0].value if hasattr(results[0], "value") else results[0]


def test_a_work_is_committed_when_its_deferred_fires(bench: Bench) -> None:
    """Another connection sees it, and it has its result."""
    assert bench.reactor.until(bench.put("a")) == 1
    assert bench.disk.values() == ["a"]


def test_works_that_come_in_meanwhile_share_a_commit_and_an_answer(bench: Bench) -> None:
    """They are done, and their Deferreds fire, in the order they came."""
    order: list[int] = []
    commits = bench.disk.executed.count("COMMIT")
    asked = bench.grouped(lambda: [bench.put(n).addCallback(lambda _, n=n: order.append(n)) for n in range(50)])
    assert not any(done.called for done in asked)
    bench.reactor.turn()
    assert order == bench.disk.values() == list(range(50))
    assert bench.disk.executed.count("COMMIT") - commits == 2


def test_what_one_turn_asks_for_is_one_commit(tmp_path: Path) -> None:
    """It is handed over when the turn is over, and then at once; a stop does not wait for that."""
    bench, turns = Bench(tmp_path), list[Callable[[], None]]()
    bench.writer = Writer(bench.disk.connect, bench.reactor.deliver, bench.fatal.append, "test", turns.append)
    bench.writer.start()
    asked = [bench.put(n) for n in range(50)]
    [over] = turns
    over()
    assert bench.reactor.until(asked[-1]) == 1
    assert bench.disk.executed.count("COMMIT") == 1
    last = bench.put("last")
    assert len(turns) == 2
    bench.stop()
    assert outcome(last) == 1
    assert bench.disk.values() == [*range(50), "last"]


@pytest.mark.parametrize("problem", [UsageError(problem="no"), KeyError("a bug")])
def test_a_work_that_fails_is_taken_back_alone(bench: Bench, problem: Exception) -> None:
    """Whoever asked for it is told; the others of its commit are done."""

    def failing(cur: sqlite3.Cursor) -> None:
        cur.execute("INSERT INTO t VALUES ('bad')")
        raise problem

    asked = bench.grouped(lambda: [bench.put("a"), bench.writer.write(failing), bench.put("b")])
    bench.reactor.turn()
    assert [outcome(done) for done in asked] == [1, problem, 1]
    assert bench.disk.values() == ["a", "b"]


def test_a_wrong_statement_is_a_bug_and_not_a_failing_disk(bench: Bench) -> None:
    """A constraint, a misspelt name, a wrong number of parameters."""
    statements = [("INSERT INTO t VALUES ('a')", ()), ("SELEKT", ()), ("SELECT ?", (1, 2)), ("SELECT ?", (object(),))]
    bench.reactor.until(bench.put("a"))
    for sql, parameters in statements:
        with pytest.raises(sqlite3.Error):
            bench.reactor.until(bench.writer.write(lambda cur, s=sql, p=parameters: cur.execute(s, p)))
    assert bench.reactor.until(bench.put("b")) == 1
    assert bench.fatal == []


def test_a_full_disk_refuses_and_life_goes_on(tmp_path: Path) -> None:
    """Everything of that commit was not done, and says so; what fits is done again afterwards."""
    bench = Bench(tmp_path)
    connect = bench.disk.connect

    def small() -> Any:
        connection = connect()
        connection.execute("PRAGMA max_page_count = 20")
        return connection

    bench.writer = Writer(small, bench.reactor.deliver, bench.fatal.append, "test")
    bench.writer.start()
    asked = bench.grouped(lambda: [bench.put("a"), bench.put("x" * 500_000), bench.put("b")])
    with pytest.raises(NotSaved, match="full"):
        bench.reactor.until(asked[2])
    assert [type(outcome(done)) for done in asked[:2]] == [NotSaved, NotSaved]
    assert bench.reactor.until(bench.put("c")) == 1
    assert bench.disk.values() == ["c"]
    assert bench.fatal == []
    bench.stop()


def test_a_database_that_somebody_else_locks_is_no_failure(bench: Bench) -> None:
    """It is said, and can be tried again."""
    bench.disk.failing = {"BEGIN": sqlite3.SQLITE_BUSY}
    with pytest.raises(NotSaved):
        bench.reactor.until(bench.put("a"))
    bench.disk.failing = {}
    assert bench.reactor.until(bench.put("a")) == 1


def test_a_failed_fsync_is_never_tried_again(bench: Bench) -> None:
    """Nobody knows what is on the disk then: the daemon is told to stop, once, and everything is refused."""
    bench.disk.failing = {"COMMIT": sqlite3.SQLITE_IOERR_FSYNC}
    first = bench.put("a")
    with pytest.raises(StoreFailed):
        bench.reactor.until(first)
    bench.disk.failing = {}
    commits = bench.disk.executed.count("COMMIT")
    for x in ("b", "c"):
        with pytest.raises(StoreFailed):
            bench.reactor.until(bench.put(x))
    assert bench.disk.executed.count("COMMIT") == commits
    assert len(bench.fatal) == 1 and bench.disk.path in bench.fatal[0].sentence
    assert bench.disk.values() == []


def test_a_disk_that_fails_under_a_work_fails_for_all(bench: Bench) -> None:
    """Not only for the one that came upon it."""
    bench.disk.failing = {"INSERT": sqlite3.SQLITE_IOERR_READ}
    asked = bench.grouped(lambda: [bench.writer.write(lambda _: 1), bench.put("a"), bench.writer.write(lambda _: 2)])
    with pytest.raises(StoreFailed):
        bench.reactor.until(asked[2])
    assert [type(outcome(done)) for done in asked[:2]] == [StoreFailed, StoreFailed]


def test_a_database_that_cannot_be_opened_is_fatal(tmp_path: Path) -> None:
    """And leaves nobody waiting."""
    bench = Bench(tmp_path)
    bench.disk.failing = {"PRAGMA database_list": sqlite3.SQLITE_CANTOPEN}
    bench.writer.start()
    with pytest.raises(StoreFailed):
        bench.reactor.until(bench.put("a"))
    assert len(bench.fatal) == 1
    bench.stop()


def test_stopping_does_what_was_asked_for_and_nothing_more(tmp_path: Path) -> None:
    """And leaves everything in the database, with no log beside it."""
    bench = Bench(tmp_path)
    bench.writer.start()
    last = bench.put("last")
    stopped = bench.writer.stop()
    with pytest.raises(NotSaved):
        bench.reactor.until(bench.put("later"))
    bench.reactor.until(stopped)
    assert outcome(last) == 1
    assert not os.path.exists(f"{bench.disk.path}-wal")
    assert bench.disk.values() == ["last"]


def test_stopping_what_never_began_is_done_at_once(tmp_path: Path) -> None:
    """A daemon that could not start stops all the same."""
    bench = Bench(tmp_path)
    reader = Reader(bench.disk.connect, bench.reactor.deliver)
    assert outcome(bench.writer.stop()) is outcome(reader.stop()) is None


# ---- without the thread


def brief(bench: Bench, x: object) -> "Deferred[Any]":
    return bench.writer.write(lambda cur: cur.execute("INSERT INTO t VALUES (?)", (x,)).rowcount, brief=True)


def test_a_brief_work_that_comes_alone_is_committed_at_once(bench: Bench) -> None:
    """By whoever asks, once the thread has opened the database; it is on the disk then, as ever."""
    bench.reactor.until(bench.put("opens"))
    done = brief(bench, "a")
    assert outcome(done) == 1
    assert bench.disk.values() == ["opens", "a"]


def test_a_brief_work_does_not_overtake_what_is_under_way(bench: Bench) -> None:
    """Commits keep their order; so does what is told of them."""
    bench.reactor.until(bench.put("opens"))
    under_way, go_on = threading.Event(), threading.Event()
    first = bench.writer.write(lambda _: (under_way.set(), go_on.wait(PATIENCE)))
    assert under_way.wait(PATIENCE)
    second = brief(bench, "a")
    assert not second.called
    go_on.set()
    bench.reactor.until(second)
    assert first.called
    assert outcome(brief(bench, "b")) == 1


def test_what_comes_together_is_left_to_the_thread(tmp_path: Path) -> None:
    """There is more where that came from, and a commit is shared best when nobody waits for it."""
    bench, turns = Bench(tmp_path), list[Callable[[], None]]()
    bench.writer = Writer(bench.disk.connect, bench.reactor.deliver, bench.fatal.append, "test", turns.append)
    bench.writer.start()
    opens = bench.put("opens")
    turns.pop()()
    bench.reactor.until(opens)
    both = [brief(bench, x) for x in ("a", "b")]
    turns.pop()()
    assert not any(done.called for done in both)
    bench.reactor.until(both[1])
    bench.stop()


def test_a_disk_that_is_slow_is_left_to_the_thread(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reactor has others to serve meanwhile."""
    bench.reactor.until(bench.put("opens"))
    monkeypatch.setattr(writer, "QUICK", 0.0)  # no disk is
    assert brief(bench, "a").called
    later = brief(bench, "b")
    assert not later.called
    assert bench.reactor.until(later) == 1


def test_a_brief_work_does_not_wait_for_the_log(bench: Bench) -> None:
    """While that begins again, commits wait, and the reactor is not to."""
    bench.reactor.until(bench.put("opens"))
    checkpointer = bench.writer._checkpointer
    assert checkpointer is not None
    with checkpointer.shut:
        later = brief(bench, "a")
        assert not later.called
    assert bench.reactor.until(later) == 1


def test_a_brief_work_that_fails_is_taken_back(bench: Bench) -> None:
    """And the next one finds nothing of it."""
    bench.reactor.until(bench.put("opens"))

    def failing(cur: sqlite3.Cursor) -> None:
        cur.execute("INSERT INTO t VALUES ('bad')")
        raise KeyError

    assert isinstance(outcome(bench.writer.write(failing, brief=True)), KeyError)
    assert outcome(brief(bench, "a")) == 1
    assert bench.disk.values() == ["opens", "a"]


def test_a_disk_that_fails_under_a_brief_work_is_fatal(bench: Bench) -> None:
    """By whatever thread."""
    bench.reactor.until(bench.put("opens"))
    bench.disk.failing = {"COMMIT": sqlite3.SQLITE_IOERR_FSYNC}
    assert isinstance(outcome(brief(bench, "a")), StoreFailed)
    bench.disk.failing = {}
    assert isinstance(outcome(brief(bench, "b")), StoreFailed)
    bench.reactor.turn()
    assert len(bench.fatal) == 1


# ---- the log


def test_the_log_is_written_over_and_keeps_its_length(bench: Bench) -> None:
    """To sync what was written over is quicker than to sync a file that has grown."""
    bench.reactor.until(bench.put("a"))
    length = log_size(bench.disk.path)
    assert length >= checkpoint.AT_FIRST
    for n in range(20):
        bench.reactor.until(bench.put(n))
    assert log_size(bench.disk.path) == length


def test_a_log_that_is_longer_than_what_it_says_is_read_as_far_as_it_says(tmp_path: Path) -> None:
    """After a kill -9 somebody else reads what was committed, and nothing else."""
    path = str(tmp_path / "test.sqlite")
    connection = sqlite.connect(path)
    connection.execute("CREATE TABLE t (x)")
    checkpoint.lengthen(path)
    connection.execute("INSERT INTO t VALUES ('a')")
    for ending in ("", "-wal"):  # as a killed process leaves them
        shutil.copy(path + ending, str(tmp_path / "left.sqlite") + ending)
    connection.close()
    left = sqlite.connect(str(tmp_path / "left.sqlite"))
    assert left.execute("SELECT x FROM t").fetchall() == [("a",)]
    assert left.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    left.close()


@pytest.mark.parametrize("free", [0, 60 << 20])
def test_a_disk_without_room_to_spare_has_a_short_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """It is only quicker so; nothing is taken from what is left."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    checkpoint.lengthen(str(tmp_path / "test.sqlite"))
    assert log_size(str(tmp_path / "test.sqlite")) == 0


def test_a_disk_that_fills_meanwhile_gets_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could only be written in part is taken away again."""
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda log, data, at: write(log, data[:1000], at))
    checkpoint.lengthen(str(tmp_path / "test.sqlite"))
    assert log_size(str(tmp_path / "test.sqlite")) == 0


def test_the_log_begins_again_though_somebody_is_always_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be folded in at first is, and the next commit writes over what is in the log."""
    monkeypatch.setattr(checkpoint, "BEGIN_AGAIN", 10)
    path = str(tmp_path / "test.sqlite")
    reader, author, folder = sqlite.connect(path), sqlite.connect(path), sqlite.connect(path)
    author.execute("CREATE TABLE t (x)")
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM t")  # what is committed from here on stays in the log
    for _ in range(20):
        author.execute("INSERT INTO t VALUES (?)", ("x" * 3000,))

    class Folder:
        def execute(self, sql: str) -> sqlite3.Cursor:
            if "RESTART" in sql:
                reader.execute("ROLLBACK")
            return folder.execute(sql)

    checkpointer = checkpoint.Checkpointer(lambda: sqlite.connect(path), path, "test", lambda _: None)
    checkpointer._fold(Folder())  # type: ignore[arg-type]
    checkpointer.stop()
    author.execute("INSERT INTO t VALUES ('last')")
    assert author.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1] < 10
    for connection in (reader, author, folder):
        connection.close()


def test_the_log_is_folded_in_when_it_is_quiet(bench: Bench) -> None:
    """By another thread, unasked."""
    bench.reactor.until(bench.put("a"))
    assert bench.disk.checkpointed.wait(PATIENCE)


def test_a_log_that_has_grown_too_long_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy it is."""
    monkeypatch.setattr(writer, "LOG_LIMIT", 200_000)
    monkeypatch.setattr(checkpoint, "AT_FIRST", 50_000)
    bench = Bench(tmp_path)
    bench.writer.start()
    longest = 0
    for n in range(40):
        bench.reactor.until(bench.put(f"{n}" + "x" * 20_000))
        longest = max(longest, log_size(bench.disk.path))
    assert 0 < longest < 300_000
    cuts = bench.disk.executed.count("PRAGMA wal_checkpoint(TRUNCATE)")
    assert 2 <= cuts <= 10
    bench.stop()


def test_a_disk_that_fails_while_the_log_is_folded_in_is_fatal(bench: Bench) -> None:
    """The same rule as for a commit."""
    bench.disk.failing = {"PRAGMA wal_checkpoint(PASSIVE)": sqlite3.SQLITE_IOERR_FSYNC}
    bench.reactor.until(bench.put("a"))
    while not bench.fatal:
        bench.reactor.turn()
    with pytest.raises(StoreFailed):
        bench.reactor.until(bench.put("b"))


# ---- reading


def test_a_reader_sees_what_was_committed_and_changes_nothing(bench: Bench) -> None:
    """Its failures reach the one who asked, and it goes on."""
    reader = Reader(bench.disk.connect, bench.reactor.deliver)
    reader.start()
    bench.reactor.until(bench.put("a"))

    def count(cur: sqlite3.Cursor) -> Any:
        return cur.execute("SELECT count(*) FROM t").fetchone()[0]

    assert bench.reactor.until(reader.read(count)) == 1
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        bench.reactor.until(reader.read(lambda cur: cur.execute("DELETE FROM t")))
    assert bench.reactor.until(reader.read(count)) == 1
    bench.reactor.until(reader.stop())
    with pytest.raises(NotSaved):
        bench.reactor.until(reader.read(count))


def test_a_question_that_comes_while_the_database_cannot_be_opened_is_answered(tmp_path: Path) -> None:
    """With what is wrong; the next one may have more luck."""
    bench = Bench(tmp_path)
    bench.disk.failing = {"PRAGMA query_only": sqlite3.SQLITE_CANTOPEN}
    reader = Reader(bench.disk.connect, bench.reactor.deliver)
    reader.start()
    with pytest.raises(sqlite3.OperationalError):
        bench.reactor.until(reader.read(lambda _: 1))
    bench.disk.failing = {}
    assert bench.reactor.until(reader.read(lambda _: 1)) == 1
    bench.reactor.until(reader.stop())


# ---- without threads


def test_inline_does_as_the_writer_does(tmp_path: Path) -> None:
    """At once: done, taken back, not saved, failed for ever."""
    disk = Disk(tmp_path)
    fatal: list[StoreFailed] = []
    inline = Inline(disk.connect(), fatal.append)

    def put(x: str) -> Any:
        return outcome(inline.write(lambda cur: cur.execute("INSERT INTO t VALUES (?)", (x,)).rowcount))

    assert put("a") == 1
    assert isinstance(put("a"), sqlite3.IntegrityError)
    disk.failing = {"COMMIT": sqlite3.SQLITE_FULL}
    assert isinstance(put("b"), NotSaved)
    disk.failing = {}
    assert put("c") == 1
    assert outcome(inline.read(lambda cur: cur.execute("SELECT x FROM t").fetchall())) == [("a",), ("c",)]
    disk.failing = {"COMMIT": sqlite3.SQLITE_IOERR_FSYNC}
    assert isinstance(put("d"), StoreFailed)
    disk.failing = {}
    assert isinstance(put("e"), StoreFailed)
    assert len(fatal) == 1 and disk.values() == ["a", "c"]
