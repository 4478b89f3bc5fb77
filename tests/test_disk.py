"""Disks that are full, cannot be written, fail, or have lost what was on them: refused with a sentence, never a lie, and
after the cure everything goes on. The disks are real, and so are the daemons."""

import contextlib
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Command, log_of, until_logged
from disks import SmallDisk, needs_mount
from outside import OutsideOrchestra
from stagehand import Player as Caller
from stagehand import Theatre as StageTheatre
from stagehand import alive
from storehouse import job as request
from twisted.internet.defer import Deferred

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import DiskRefuses, NotSaved, OrchestraError, StoreDamaged, StoreUnreadable
from orchestra.store import sqlite, statements
from orchestra.store.journal import Journal
from orchestra.store.reserve import Reserve
from orchestra.store.writer import commit

RESERVE = 4 << 20
DISKS: dict[str, SmallDisk] = {}


def prepare(theatre: Theatre) -> None:
    """The conductor's store and the journals of a and c lie each on a disk of 24 MB; c keeps nothing free of its own."""
    theatre.add_score("count", f"#!/bin/sh\necho run >> {theatre.home}/ledger/l\nsleep $ORC_seconds\n", "")
    gate = f"#!/bin/sh\necho run >> {theatre.home}/ledger/l\nwhile [ ! -e {theatre.home}/gate ]; do sleep 0.05; done\n"
    theatre.add_score("gated", gate, "")
    theatre.add_score("bulky", f"#!/bin/sh\necho run >> {theatre.home}/ledger/l\n", "concurrency = 9\n")
    for conf in (theatre.home / "conductor.conf", theatre.home / "a" / "player.conf"):
        conf.write_text(conf.read_text() + f"reserve = {RESERVE >> 20}M\n")
    if needs_mount.args[0]:
        return
    conf = theatre.home / "c" / "player.conf"
    conf.write_text(f"{conf.read_text()}reserve = 0\n")
    for name in ("conductor", "a", "c"):
        DISKS[name] = SmallDisk(theatre.home / name / "state", 24)


@pytest.fixture(scope="module", autouse=True)
def unmounted() -> Iterator[None]:
    """Set up before the daemons, so that it ends after them."""
    yield
    while DISKS:
        DISKS.popitem()[1].unmount()


def small(name: str) -> SmallDisk:
    return DISKS[name]


def conductor_log(theatre: Theatre) -> Path:
    return theatre.home / "log" / "conductor.log"


def submitted(orchestra: OutsideOrchestra, seconds: float = 0, target: str = "a", **more: Any) -> int:
    ask = Ask(score="count", targets=(target,), scope=Scope.ALL, params={"seconds": str(seconds)}, **more)
    return int(orchestra.submit(ask).job)


def counts(orchestra: OutsideOrchestra, job: int) -> dict[str, int]:
    return dict(orchestra.job(job).counts)


def until_counts(theatre: Theatre, orchestra: OutsideOrchestra, job: int, wanted: dict[str, int]) -> None:
    wait_until(lambda: counts(orchestra, job) == wanted, f"{wanted}", conductor_log(theatre))


# ---- the reserve


def test_a_disk_that_ran_low_recovers_by_a_margin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies between the two is neither news nor an end of it."""
    room = [0]
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 0, 0, room[0], 0, 0, 0, 0, 0)))
    reserve = Reserve(str(tmp_path), 800)
    seen = []
    for room[0] in (800, 799, 850, 899, 900, 850, 800, 799):
        seen.append((reserve.look(), reserve.low))
    assert [low for _, low in seen] == [False, True, True, True, False, False, False, True]
    assert [news for news, _ in seen] == [False, True, False, False, True, False, False, True]
    assert str(tmp_path) in reserve.trouble


def test_another_reserve_is_gone_by_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The margin is for a disk that fills and empties; whoever asks for less, or for more, means it. The same again is
    no reason to forget the margin."""
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 0, 0, 850, 0, 0, 0, 0, 0)))
    reserve = Reserve(str(tmp_path), 100)
    seen = [(reserve.demand(least), reserve.low) for least in (851, 850, 900, 800, 800)]
    assert seen == [(True, True), (True, False), (True, True), (True, False), (False, False)]
    assert not reserve.trouble
    reserve.demand(900)
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((1, 1, 0, 0, 950, 0, 0, 0, 0, 0)))
    assert not reserve.demand(900) and reserve.low


def test_a_disk_that_cannot_be_asked_is_low() -> None:
    """Whatever is the matter with it."""
    reserve = Reserve("/no/such/place", 1)
    assert reserve.look() and reserve.low


@needs_mount
def test_below_its_reserve_a_conductor_takes_nothing_new_and_finishes_the_rest(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """Submits are refused as to be tried again, nothing is handed out; outcomes, cancels, holds and reloads are saved.
    It goes on by itself."""
    running = submitted(orchestra, 3)
    waiting, unwanted = (submitted(orchestra, target="c"), submitted(orchestra, target="c"))
    until_counts(theatre, orchestra, running, {"dispatched": 1})
    since = len(log_of(theatre, "conductor"))
    small("conductor").fill(leave=RESERVE - (1 << 20))
    until_logged(theatre, "conductor", "nothing new is accepted or handed out", since=since)
    refused = command("submitjob", "count", "a", "seconds=0")
    assert refused.returncode == 75, refused
    assert "accepts nothing new for now" in refused.stderr and "MB free" in refused.stderr
    assert "trouble: the disk of" in command("orchestra", "about").stdout
    assert "nothing is handed out" in next(iter(orchestra.tasks(waiting))).why
    assert command("orchestra", "hold", "--score", "uptime", "--reason", "full").returncode == 0
    assert command("orchestra", "release", "--score", "uptime").returncode == 0
    assert command("orchestra", "cancel", unwanted).returncode == 0
    assert command("orchestra", "reload").returncode == 0
    assert orchestra.wait(running, timeout=60).verdict == "ok"
    since = len(log_of(theatre, "conductor"))
    theatre.start_player("c")
    until_logged(theatre, "conductor", "c.demo.test is online", since=since)
    assert counts(orchestra, waiting) == {"pending": 1}
    small("conductor").empty()
    until_logged(theatre, "conductor", "has room again", since=since)
    assert orchestra.wait(waiting, timeout=60).verdict == "ok"
    theatre.stop("c")
    assert orchestra.about().troubles == ()


@needs_mount
def test_a_conductor_that_starts_below_its_reserve_takes_nothing_at_all(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """Not even during its first second."""
    theatre.stop("conductor")
    small("conductor").fill(leave=RESERVE - (1 << 20))
    theatre.start_conductor()
    refused = command("submitjob", "count", "c", "seconds=0")
    small("conductor").empty()
    assert (refused.returncode, "MB free" in refused.stderr) == (75, True), refused
    wait_until(lambda: orchestra.about().troubles == (), "its recovery", conductor_log(theatre))
    assert orchestra.wait(submitted(orchestra), timeout=60).verdict == "ok"


@needs_mount
def test_a_player_below_its_reserve_takes_no_work_and_says_why(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """orchestra players shows it, and so does a task that waits for it; with room again, it runs."""
    small("a").fill(leave=RESERVE - (1 << 20))
    log = theatre.home / "log" / "a.log"
    wait_until(lambda: "MB free" in command("orchestra", "players", "a").stdout, "the note", log)
    [player] = list(orchestra.players(("a",)))
    assert (player.status, player.slots) == ("online", 0)
    job = submitted(orchestra)
    assert "MB free" in next(iter(orchestra.tasks(job))).why
    small("a").empty()
    assert orchestra.wait(job, timeout=60).verdict == "ok"


@needs_mount
@pytest.mark.parametrize("left", [RESERVE - (1 << 20), 300_000], ids=["low", "hardly any"])
def test_the_brake_on_the_node_works_below_the_reserve(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command, left: int
) -> None:
    """It is looked at, drained and not, and its runs are killed; their outcomes are saved and told. Nothing has died."""
    pid = theatre.pid("a")
    place = {"ORCHESTRA_CONFIG": str(theatre.home / "a")}
    job = submitted(orchestra, 600)
    wait_until(
        lambda: '"running"' in command("orchestra", "player", "status", "--json", **place).stdout, "a run", Path()
    )
    small("a").fill(leave=left)
    try:
        assert "MB free" in command("orchestra", "player", "status", **place).stdout
        drained = command("orchestra", "player", "drain", "--reason", "full", **place)
        assert drained.stdout == "drained; 1 run is still going on\n", drained
        assert command("orchestra", "player", "kill", "--all", **place).returncode == 0
        assert orchestra.wait(job, timeout=60).counts == {"killed": 1}
        assert command("orchestra", "player", "undrain", **place).stdout == "takes work again\n"
    finally:
        small("a").empty()
    assert theatre.pid("a") == pid and alive(pid)
    assert orchestra.wait(submitted(orchestra), timeout=60).verdict == "ok"


# ---- a disk that is full


@needs_mount
def test_a_conductor_on_a_full_disk_lives_and_loses_nothing(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """Not a byte is left: what ends meanwhile is reported until it can be saved."""
    pid = theatre.pid("conductor")
    jobs = [submitted(orchestra, 2) for _ in range(3)]
    small("conductor").fill()
    with pytest.raises(OrchestraError):
        for _ in range(2000):
            submitted(orchestra, target="c")
    small("conductor").empty()
    for one in jobs:
        assert orchestra.wait(one, timeout=60).verdict == "ok"
    assert theatre.pid("conductor") == pid and alive(pid)
    for one in orchestra.jobs(unfinished=True):
        orchestra.cancel(one.job)


@needs_mount
def test_a_full_disk_takes_a_commit_back_and_the_next_one_is_done(tmp_path: Path) -> None:
    """Also where the log's index cannot grow, which SQLite calls an input/output error."""
    disk = SmallDisk(tmp_path / "disk", 48)
    try:
        store = sqlite.Store(str(disk.place))
        store.open()
        connection = store.connect()
        statements.sync_players(connection.cursor(), ["web-1"], 0)
        refusals = []
        for leave in (0, 4096, 16384, 65536, 300_000, 1 << 20, 8 << 20):
            disk.fill(leave)
            refusals.append(fill_with_jobs(connection, store.path))
            disk.empty()
            assert fill_with_jobs(connection, store.path, most=1) == ""
        assert all("full" in refusal or "I/O" in refusal for refusal in refusals)
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        connection.close()
        store.close()
    finally:
        disk.unmount()


def fill_with_jobs(connection: sqlite3.Connection, path: str, most: int = 100_000) -> str:
    """Submit until that is refused; why it was."""
    for n in range(most):
        done: Deferred[Any] = Deferred()
        work = lambda cur: statements.submit(cur, request([1], params={"x": "y" * 16_000}), 0)  # noqa: E731
        [(_, result)], fatal = commit(connection, path, [(work, done)])
        assert fatal is None, fatal
        if hasattr(result, "value"):
            assert isinstance(result.value, NotSaved)
            return str(result.value)
        if n % 100 == 0:
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
    return ""


@needs_mount
def test_a_run_that_ends_while_its_players_disk_is_full_is_not_lost(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """The player stops rather than say what it cannot keep; the stage keeps the outcome, and it is started again."""
    pid, ledger = theatre.pid("a"), theatre.home / "ledger" / "l"
    before = ledger.read_text()
    job = submitted(orchestra, 2)
    until_counts(theatre, orchestra, job, {"dispatched": 1})
    small("a").fill()
    wait_until(
        lambda: not alive(pid) or counts(orchestra, job) == {"ok": 1}, "the end of it", theatre.home / "log" / "a.log"
    )
    small("a").empty()
    if not alive(pid):
        (theatre.home / "run" / "a.pid").unlink(missing_ok=True)
        theatre.start_player("a")
    assert orchestra.wait(job, timeout=60).verdict == "ok"
    assert ledger.read_text() == before + "run\n"


@needs_mount
def test_a_player_that_cannot_save_what_it_is_given_stops_and_starts_none_of_it(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """It knows more than its disk then. Started again with room, it has each of them once."""
    ledger, since = theatre.home / "ledger" / "l", len(log_of(theatre, "conductor"))
    before = ledger.read_text()
    theatre.start_player("c")
    until_logged(theatre, "conductor", "c.demo.test is online", since=since)
    pid = theatre.pid("c")
    small("c").fill()
    ask = {f"x{n}": "y" * 16_000 for n in range(3)}
    jobs = [
        int(orchestra.submit(Ask(score="bulky", targets=("c",), scope=Scope.ALL, params=ask)).job) for _ in range(9)
    ]
    wait_until(lambda: not alive(pid), "the end of the player", theatre.home / "log" / "c.log")
    assert ledger.read_text() == before
    small("c").empty()
    (theatre.home / "run" / "c.pid").unlink(missing_ok=True)
    theatre.start_player("c")
    assert [orchestra.wait(job, timeout=60).verdict for job in jobs] == ["ok"] * len(jobs)
    assert ledger.read_text() == before + "run\n" * len(jobs)
    theatre.stop("c")


@needs_mount
def test_a_stage_on_a_full_disk_refuses_with_a_sentence(tmp_path: Path) -> None:
    """What it cannot begin a directory for is not begun; with room again it is."""
    stage = StageTheatre(tmp_path)
    disk = SmallDisk(stage.state, 4, inodes=40)
    try:
        stage.score("uptime", "echo up")
        stage.start()
        caller = Caller(stage)
        assert caller.outcome(1, "uptime")["told"] == "ok"
        taken = 0
        with contextlib.suppress(OSError):
            while True:
                (disk.place / f"file-{taken}").touch()
                taken += 1
        caller.perform(2, "uptime")
        refused, _ = caller.hear("refused", 2)
        assert refused["reason"] == "the stage cannot write to its directory: No space left on device"
        for n in range(taken):
            (disk.place / f"file-{n}").unlink()
        assert caller.outcome(3, "uptime")["told"] == "ok"
        caller.close()
    finally:
        stage.close()
        disk.unmount()


# ---- a disk that cannot be written


@needs_mount
@pytest.mark.parametrize("room", [Journal, sqlite.Store])
def test_a_disk_that_cannot_be_written_is_no_wrong_configuration(
    tmp_path: Path, room: Callable[[str], Journal | sqlite.Store]
) -> None:
    """To be tried again (75): a supervisor goes on starting the daemon until the disk is well."""
    disk = SmallDisk(tmp_path / "disk", 4)
    try:
        book = room(str(disk.place))
        book.open()
        book.close()
        disk.remount("ro")
        with pytest.raises(DiskRefuses, match="Read-only") as refused:
            book.open()
        assert refused.value.status == 75
        disk.remount("rw")
        book.open()
        book.close()
    finally:
        disk.unmount()


@needs_mount
@pytest.mark.parametrize("room", [Journal, sqlite.Store])
def test_a_full_disk_at_the_start_is_told_and_forgotten(
    tmp_path: Path, room: Callable[[str], Journal | sqlite.Store]
) -> None:
    """It is not damage: nothing is put aside, and after the cure it is the same journal, or store."""
    disk = SmallDisk(tmp_path / "disk", 4)
    try:
        book = room(str(disk.place))
        book.open()
        book.close()
        files = sorted(os.listdir(disk.place))
        disk.fill()
        with pytest.raises(DiskRefuses) as refused:
            book.open()
        assert refused.value.status == 75
        disk.empty()
        book.open()
        book.close()
        assert sorted(os.listdir(disk.place)) == files
    finally:
        disk.unmount()


# ---- a disk that fails


def test_a_conductor_whose_disk_fails_stops_and_starts_again_from_what_is_kept(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """Its writes fail past 64 kB, with an error that is none of a full disk: it stops at once, with its status; what it
    had accepted is there, looked through, when it is started again."""
    pid = theatre.pid("conductor")
    since = len(log_of(theatre, "conductor"))
    accepted = [submitted(orchestra, target="c", request_key="before")]
    most = os.path.getsize(conductor_log(theatre)) + (64 << 10)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))
    with pytest.raises(OrchestraError):
        for n in range(2000):
            accepted.append(submitted(orchestra, target="c", request_key=f"key-{n}"))
    wait_until(lambda: not alive(pid), "the end of the conductor", conductor_log(theatre))
    until_logged(theatre, "conductor", "failed: disk I/O error", since=since)
    (theatre.home / "run" / "conductor.pid").unlink(missing_ok=True)
    theatre.start_conductor()
    for one in accepted:
        assert counts(orchestra, one) == {"pending": 1}
    assert submitted(orchestra, target="c", request_key="before") == accepted[0]
    for one in accepted:
        orchestra.cancel(one)


def test_a_player_whose_disk_fails_stops_and_starts_again_from_what_is_kept(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """It says no outcome that it could not save: the stage keeps that, and whoever starts the player again has it."""
    ledger = theatre.home / "ledger" / "l"
    before = ledger.read_text() if ledger.exists() else ""
    pid, since = theatre.pid("b"), len(log_of(theatre, "b"))
    job = int(orchestra.submit(Ask(score="gated", targets=("b",), scope=Scope.ALL)).job)
    wait_until(lambda: ledger.exists() and ledger.read_text() == before + "run\n", "the start", Path())
    # less than its log is long already, and than its journal: nothing can be written any more
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, 1))
    (theatre.home / "gate").touch()
    wait_until(lambda: not alive(pid), "the end of the player", theatre.home / "log" / "b.log")
    assert counts(orchestra, job) == {"dispatched": 1}
    (theatre.home / "run" / "b.pid").unlink(missing_ok=True)
    theatre.start_player("b")
    assert orchestra.wait(job, timeout=60).verdict == "ok"
    assert ledger.read_text() == before + "run\n"
    assert "was damaged" not in log_of(theatre, "b")[since:]


# ---- what is on it is damaged


def kept(directory: Path, jobs: int = 50) -> sqlite.Store:
    """A store with some jobs in it, closed in good order."""
    store = sqlite.Store(str(directory))
    store.open()
    connection = store.connect()
    statements.sync_players(connection.cursor(), ["web-1"], 0)
    for _ in range(jobs):
        statements.submit(connection.cursor(), request([1], params={"x": "y" * 5_000}), 0)
    connection.close()
    store.close()
    return store


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100_000:140_000] = b"\xff" * 40_000
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage, says",
    [
        (cut, "bytes long, and should be"),
        (lambda path: os.truncate(path, 0), "empty or gone"),
        (Path.unlink, "empty or gone"),
        (lambda path: path.write_bytes(b"x" * 100_000), "not a database"),
    ],
    ids=["cut off", "empty", "gone", "overwritten"],
)
def test_a_damaged_store_is_refused_and_left_as_it_is(
    tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    """After a stop in good order too: no look through it is needed to see that. Nothing is begun anew in its place."""
    store = kept(tmp_path)
    path = Path(store.path)
    damage(path)
    before = path.read_bytes() if path.exists() else None
    for _ in range(2):
        with pytest.raises(StoreDamaged, match=says) as refused:
            store.open()
        assert "orchestra restore" in refused.value.sentence
        assert (path.read_bytes() if path.exists() else None) == before


def test_after_an_unclean_stop_the_store_is_looked_through(tmp_path: Path) -> None:
    """What a clean start would come upon some day is found then; and again at the next start."""
    store = kept(tmp_path)
    spoil(Path(store.path))
    store.open()  # nobody has looked
    store.doubted = True  # its disk failed
    store.close()
    for _ in range(2):
        with pytest.raises(StoreDamaged):
            store.open()


def test_a_large_store_is_looked_through_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its conductor starts at once; until that was done, a stop does not count as clean."""
    store = kept(tmp_path)
    monkeypatch.setattr(sqlite, "CHECKED_AT_ONCE", 1000)
    store.open()
    store.doubted = True
    store.close()
    store.doubted = False
    for _ in range(2):
        store.open()
        assert store.unchecked
        store.close()
    store.open()
    store.unchecked = False
    store.close()
    store.open()
    assert not store.unchecked
    store.close()


def test_a_database_of_somebody_else_is_not_damage(tmp_path: Path) -> None:
    """It is not told to be restored over."""
    connection = sqlite3.connect(tmp_path / sqlite.FILE)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    with pytest.raises(StoreUnreadable) as refused:
        sqlite.Store(str(tmp_path)).open()
    assert not isinstance(refused.value, StoreDamaged)


def test_a_conductor_does_not_start_on_a_damaged_store(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """Whoever starts it is told what and where, and what to do; a backup mends it."""
    file = theatre.home / "backup.sqlite"
    job = submitted(orchestra, target="c")
    assert command("orchestra", "backup", file).returncode == 0
    theatre.stop("conductor")
    store = theatre.home / "conductor" / "state" / sqlite.FILE
    cut(store)
    done = command("twistd", "--pidfile=", "-n", "conductor", f"--config={theatre.home}")
    assert done.returncode == 78
    assert "is damaged" in done.stderr and str(store) in done.stderr and "orchestra restore" in done.stderr
    assert command("orchestra", "restore", file, "--config", theatre.home).returncode == 0
    theatre.start_conductor()
    assert counts(orchestra, job) == {"pending": 1}
    orchestra.cancel(job)


def test_a_player_whose_journal_is_damaged_begins_a_new_one(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """What it had is lost, and the damaged journal is there to be looked at; then it works."""
    job = submitted(orchestra, 50, target="b")
    # dispatched is not enough: the conductor says so before its player has anything in its journal
    wait_until(lambda: next(iter(orchestra.tasks(job))).started_at, "the start", conductor_log(theatre))
    theatre.kill("b")
    journal = theatre.home / "b" / "state" / "journal.sqlite"
    connection = sqlite3.connect(journal)
    assert connection.execute("UPDATE runs SET crc = crc + 1").rowcount == 1
    connection.commit()
    connection.close()
    since = len(log_of(theatre, "b"))
    theatre.start_player("b")
    until_logged(theatre, "b", "was damaged", "journal.sqlite.damaged-1", since=since)
    assert orchestra.wait(job, timeout=60).counts == {"lost": 1}
    assert Path(f"{journal}.damaged-1").exists()
    assert orchestra.wait(submitted(orchestra, target="b"), timeout=60).verdict == "ok"
