"""Backups are made while the store is used; a store that is put back knows that it was, and the promises hold."""

import os
import shutil
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Command, until_logged
from outside import OutsideOrchestra
from storehouse import HOUR, Storehouse, greet, report

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre
from orchestra.errors import AlreadyRunning, BackupExists, BackupFailed, BackupUnusable, JobSkipped, StoreUnreadable
from orchestra.model import Told
from orchestra.store import sqlite, statements
from orchestra.store.backup import back_up
from orchestra.store.restore import SKIPPED, restore

NOW = 1_800_000_000_000


class Kept(Storehouse):
    """A Storehouse on a disk."""

    def __init__(self, directory: Path) -> None:
        self.store = sqlite.Store(str(directory))
        self.store.open()
        super().__init__()
        memory, self.connection = self.connection, self.store.connect()
        memory.backup(self.connection)
        memory.close()
        self.cur = self.connection.cursor()

    def backup(self, target: Path) -> int:
        return back_up(self.store.connect, str(target), lambda: False)

    def close(self) -> None:
        self.connection.close()
        self.store.close()


class Back(Storehouse):
    """A store that was put back from ``backup``; nobody has said Hello to it."""

    def __init__(self, backup: Path, directory: Path) -> None:
        self.done = restore(str(backup), str(directory), NOW)
        self.store = sqlite.Store(str(directory))
        self.store.open()
        self.connection = self.store.connect()
        self.cur = self.connection.cursor()
        self.epochs = {}

    def hello(self, player: int, high: int) -> None:
        self.greeting = greet(self.cur, player, NOW, high=high)
        self.epochs[player] = self.greeting.epoch


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "state")


@pytest.fixture
def put_back(kept: Kept, tmp_path: Path) -> Callable[[], Back]:
    """Restores the backup that is made when the test asks for it first."""

    def again() -> Back:
        kept.close()
        return Back(tmp_path / "backup", tmp_path / "state")

    return again


# ---- backup


def test_a_backup_holds_one_moment_and_the_writer_goes_on(kept: Kept, tmp_path: Path) -> None:
    """Commits are made between two pieces of the copy; none of them is in it, and it is not begun anew for them."""
    for _ in range(300):
        kept.submit([1, 2, 3], params={"x": "y" * 5_000})
    before = kept.cur.execute("SELECT count(*) FROM jobs").fetchone()[0]
    asked = []

    def commit_meanwhile() -> bool:
        asked.append(kept.submit([1]))
        return False

    size = back_up(kept.store.connect, str(tmp_path / "copy"), commit_meanwhile)
    copy = sqlite3.connect(tmp_path / "copy")
    assert copy.execute("SELECT count(*) FROM jobs").fetchone()[0] == before
    assert copy.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    copy.close()
    assert asked and len(asked) < 5
    assert size == os.path.getsize(tmp_path / "copy")
    kept.close()


def test_a_backup_is_one_file_that_only_its_owner_reads(kept: Kept, tmp_path: Path) -> None:
    """With no log beside it, nor anything else."""
    there = tmp_path / "there"
    there.mkdir()
    kept.backup(there / "copy")
    assert os.listdir(there) == ["copy"]
    assert stat.S_IMODE((there / "copy").stat().st_mode) == 0o600
    (there / "copy").chmod(0o400)
    ours = sqlite3.connect(f"file:{there / 'copy'}?immutable=1", uri=True)
    assert ours.execute("PRAGMA journal_mode").fetchone()[0] == "delete"
    ours.close()
    kept.close()


def test_a_backup_overwrites_nothing(kept: Kept, tmp_path: Path) -> None:
    """Neither a file nor a link to one, nor what another backup is writing; but what a dead one has left."""
    (tmp_path / "copy").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("copy", "link"):
        with pytest.raises(BackupExists):
            kept.backup(tmp_path / name)
    assert (tmp_path / "copy").read_text() == "mine"
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / "fresh.part").write_text("left behind")
    under_way, go_on = threading.Event(), threading.Event()
    other = threading.Thread(
        target=back_up,
        args=(kept.store.connect, str(tmp_path / "fresh"), lambda: under_way.set() or go_on.wait(60) is None),
    )
    other.start()
    assert under_way.wait(60)
    with pytest.raises(BackupFailed, match="another backup"):
        kept.backup(tmp_path / "fresh")
    go_on.set()
    other.join(60)
    assert (tmp_path / "fresh").exists() and not (tmp_path / "fresh.part").exists()
    kept.close()


@pytest.mark.parametrize("target", ["no/such/directory/copy", "relative"])
def test_a_backup_that_cannot_be_made_says_why_and_leaves_nothing(kept: Kept, tmp_path: Path, target: str) -> None:
    """Where it was to be, and what was in the way."""
    with pytest.raises(BackupFailed, match=r"No such file|absolute"):
        back_up(kept.store.connect, target if target == "relative" else str(tmp_path / target), lambda: False)
    kept.close()


def test_a_backup_is_broken_off_when_the_conductor_stops(kept: Kept, tmp_path: Path) -> None:
    """And leaves nothing that could be taken for one."""
    with pytest.raises(BackupFailed, match="being stopped"):
        back_up(kept.store.connect, str(tmp_path / "copy"), lambda: True)
    assert sorted(os.listdir(tmp_path)) == ["state"]
    kept.close()


def test_a_damaged_store_gives_no_backup(kept: Kept, tmp_path: Path) -> None:
    """Whoever restored it would find out too late."""
    for _ in range(200):
        kept.submit([1], params={"x": "y" * 5_000})
    kept.close()
    path = tmp_path / "state" / sqlite.FILE
    content = bytearray(path.read_bytes())
    content[8192 : len(content) - 8192] = b"\xff" * (len(content) - 16384)
    path.write_bytes(content)
    with pytest.raises(BackupFailed):
        back_up(lambda: sqlite.connect(str(path)), str(tmp_path / "copy"), lambda: False)
    assert not (tmp_path / "copy").exists()


# ---- restore: what it does at once


def test_one_of_tasks_are_lost_and_others_may_have_run(
    kept: Kept, put_back: Callable[[], Back], tmp_path: Path
) -> None:
    """Whatever they stood at; what had ended stays as it was."""
    waiting_one, running_one = kept.submit([1, 2], Scope.ONE), kept.submit([3], Scope.ONE)
    kept.claim(3)
    running, over = kept.submit([2]), kept.submit([3])
    kept.claim(2, room=1)
    waiting = kept.submit([1])
    kept.settle(3, report(kept.claim(3)[0], Told.OK))
    kept.backup(tmp_path / "backup")
    back = put_back()
    states = {job: back.state(job) for job in (waiting_one, running_one, running, over, waiting)}
    assert (states[running_one], states[over], states[waiting]) == ("lost", "ok", "pending")
    assert sorted((states[waiting_one], states[running])) in (["dispatched", "lost"], ["lost", "pending"])
    doubtful = [view for job in (running, waiting) for view in statements.task_views(back.cur, job, -1, 9)]
    assert [view.maybe_ran for view in doubtful if view.state != "lost"] == [True, True]
    assert (back.done.lost, back.done.doubtful) == (2, 2)
    assert "restored" in back.kinds(waiting) and "restored" not in back.kinds(over)
    totals = statements.totals(back.cur)
    assert totals.pending + totals.dispatched == 2
    back.store.close()


def test_a_restored_store_is_another_store(kept: Kept, put_back: Callable[[], Back], tmp_path: Path) -> None:
    """An id of its own, no sessions; no job id that was given out after the backup is given out again."""
    first = kept.submit([1])
    kept.backup(tmp_path / "backup")
    later = [kept.submit([1]) for _ in range(3)][-1]
    old = dict(kept.cur.execute("SELECT k, v FROM meta"))
    back = put_back()
    assert dict(back.cur.execute("SELECT k, v FROM meta"))["store_id"] != old["store_id"]
    assert {owner for (owner,) in back.cur.execute("SELECT owner FROM players")} == {""}
    assert back.submit([1]) == back.done.next_job == later + SKIPPED + 1
    with pytest.raises(JobSkipped, match="put back from a backup on 2027-01-15"):
        statements.job_view(back.cur, later)
    assert statements.job_view(back.cur, first).job == first
    back.store.close()


def test_the_replaced_store_is_kept_whole(kept: Kept, put_back: Callable[[], Back], tmp_path: Path) -> None:
    """Under a dated name, with what was in its log."""
    kept.backup(tmp_path / "backup")
    later = kept.submit([1])
    back = put_back()
    assert back.done.aside.endswith("store.sqlite.replaced-20270115-080000")
    replaced = sqlite3.connect(back.done.aside)
    assert replaced.execute("SELECT max(job_id) FROM jobs").fetchone()[0] == later
    replaced.close()
    assert not os.path.exists(tmp_path / "state" / "restoring")
    back.store.close()


def test_a_backup_may_be_restored_where_there_is_no_store(kept: Kept, tmp_path: Path) -> None:
    """A new machine; and the backup is not touched by it."""
    made = kept.submit([1])
    kept.backup(tmp_path / "backup")
    kept.close()
    before = (tmp_path / "backup").read_bytes()
    back = Back(tmp_path / "backup", tmp_path / "new")
    assert (back.done.aside, back.state(made)) == ("", "pending")
    assert back.done.next_job == made + SKIPPED + 1
    assert (tmp_path / "backup").read_bytes() == before
    back.store.close()


def test_a_store_that_was_copied_by_hand_with_its_log_can_be_restored(kept: Kept, tmp_path: Path) -> None:
    """What is only in the log counts."""
    made = kept.submit([1])
    for ending in ("", "-wal"):
        shutil.copy(kept.store.path + ending, f"{tmp_path}/hand{ending}")
    kept.close()
    back = Back(tmp_path / "hand", tmp_path / "new")
    assert back.state(made) == "pending"
    back.store.close()


# ---- restore: what it refuses


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:40960] = b"\xff" * 32768
    path.write_bytes(content)


def from_the_future(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()


REFUSED: dict[str, Callable[[Path], object]] = {
    "should be": cut,
    "damaged|malformed": spoil,
    "a newer Orchestra": from_the_future,
    "No such file": Path.unlink,
    "not a database": lambda path: path.write_bytes(b"nonsense" * 1000),
    "empty": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_is_no_sound_backup_is_refused_and_the_store_stays(kept: Kept, tmp_path: Path, says: str) -> None:
    """With the reason; nothing is left behind."""
    made = kept.submit([1], params={"x": "y" * 50_000})
    kept.backup(tmp_path / "backup")
    kept.close()
    REFUSED[says](tmp_path / "backup")
    with pytest.raises(BackupUnusable, match=says):
        restore(str(tmp_path / "backup"), str(tmp_path / "state"), NOW)
    assert sorted(os.listdir(tmp_path / "state")) == ["lock", "store.sqlite"]
    kept.store.open()
    connection = kept.store.connect()
    assert statements.job_view(connection.cursor(), made).job == made
    connection.close()
    kept.store.close()


def test_a_store_that_is_used_is_not_replaced(kept: Kept, tmp_path: Path) -> None:
    """Its conductor is to be stopped first."""
    kept.backup(tmp_path / "backup")
    with pytest.raises(AlreadyRunning):
        restore(str(tmp_path / "backup"), str(tmp_path / "state"), NOW)
    kept.close()


def test_a_conductor_does_not_start_on_half_a_restore(kept: Kept, tmp_path: Path) -> None:
    """Killed between the two renames, a restore would leave nothing there, and a conductor would begin anew."""
    kept.backup(tmp_path / "backup")
    kept.close()
    (tmp_path / "state" / "restoring").touch()
    os.rename(kept.store.path, tmp_path / "aside")
    with pytest.raises(StoreUnreadable, match="run 'orchestra restore' again"):
        kept.store.open()
    back = Back(tmp_path / "backup", tmp_path / "state")
    assert back.done.aside == ""
    back.store.close()


# ---- restore: players come back


def test_a_player_that_ran_more_since_shows_it_and_its_tasks_are_lost(
    kept: Kept, put_back: Callable[[], Back], tmp_path: Path
) -> None:
    """Its journal has seen numbers that this store has not given: what it waits for may have run. New work runs."""
    waiting = kept.submit([1], expires_at=None)
    kept.backup(tmp_path / "backup")
    [run] = kept.claim(1)
    kept.settle(1, report(run, Told.OK))
    back = put_back()
    back.hello(1, high=run.seq)
    assert back.state(waiting) == "lost"
    assert back.greeting.next_seq == run.seq + 1
    fresh = back.submit([1], expires_at=NOW + HOUR)
    [again] = back.claim(1, now=NOW)
    assert (again.job, again.seq) == (fresh, run.seq + 1)
    back.store.close()


def test_a_player_that_ran_nothing_since_goes_on(kept: Kept, put_back: Callable[[], Back], tmp_path: Path) -> None:
    """What was with it is settled by its journal, what waited for it is given to it."""
    running, waiting = kept.submit([1], expires_at=None), kept.submit([1], expires_at=None)
    [run] = kept.claim(1, room=1)
    kept.backup(tmp_path / "backup")
    back = put_back()
    back.hello(1, high=run.seq)
    assert [one.seq for one in back.greeting.open] == [run.seq]
    back.settle(1, report(run, Told.OK), now=NOW)
    assert (back.state(running), back.state(waiting)) == ("ok", "pending")
    [next_run] = back.claim(1, now=NOW)
    assert (next_run.job, next_run.seq) == (waiting, run.seq + 1)
    back.store.close()


def test_what_was_with_a_player_is_not_run_again(kept: Kept, put_back: Callable[[], Back], tmp_path: Path) -> None:
    """An idempotent run whose end had been acknowledged after the backup: its player has forgotten it, and says lost."""
    made = kept.submit([1], idempotent=True, expires_at=None)
    [run] = kept.claim(1)
    kept.backup(tmp_path / "backup")
    back = put_back()
    back.hello(1, high=run.seq)
    back.settle(1, report(run, Told.LOST), now=NOW)
    assert back.state(made) == "lost"
    back.store.close()


@pytest.mark.parametrize("what", ["cancelled", "expired"])
def test_nothing_restored_is_said_to_have_never_started(
    kept: Kept, put_back: Callable[[], Back], tmp_path: Path, what: str
) -> None:
    """Its player stays away for ever."""
    made = kept.submit([1], expires_at=NOW + 5)
    kept.backup(tmp_path / "backup")
    back = put_back()
    if what == "cancelled":
        statements.cancel(back.cur, made, None, "anne", NOW)
    else:
        statements.expire(back.cur, NOW + 5)
    assert back.state(made) == "lost"
    back.store.close()


def test_a_session_from_before_the_restore_is_none(kept: Kept, put_back: Callable[[], Back], tmp_path: Path) -> None:
    """Its epoch is never given again."""
    kept.backup(tmp_path / "backup")
    later = [greet(kept.cur, 1).epoch for _ in range(5)][-1]
    back = put_back()
    back.hello(1, high=0)
    assert back.greeting.epoch > later
    assert back.claim(1) == () and back.greeting.open == ()
    back.store.close()


# ---- real daemons


def test_a_conductor_is_backed_up_lost_and_restored(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """What ran after the backup does not run again, what was waiting is honest, and new jobs run."""
    theatre.add_score("count", f"#!/bin/sh\necho run >> {theatre.home}/ledger/l\n", "")
    for player in "ab":
        until_logged(theatre, player, "count")
    theatre.stop("a")
    waits = orchestra.submit(Ask(score="count", targets=("a",), scope=Scope.ALL)).job
    nobody = orchestra.submit(Ask(score="count", targets=("a", "c"), scope=Scope.ONE)).job
    file = theatre.home / "backup.sqlite"
    done = command("orchestra", "backup", "backup.sqlite")
    assert (done.returncode, done.stdout.startswith(str(file))) == (0, True), done
    assert command("orchestra", "backup", file).returncode == 64
    theatre.start_player("a")
    assert orchestra.wait(waits, timeout=60).verdict == orchestra.wait(nobody, timeout=60).verdict == "ok"
    refused = command("orchestra", "restore", file, "--config", theatre.home)
    assert (refused.returncode, "stop it first" in refused.stderr) == (78, True), refused
    theatre.kill("conductor")
    done = command("orchestra", "restore", file, "--config", theatre.home)
    assert done.returncode == 0, done
    assert "1 tasks of one-of jobs are lost" in done.stdout and "replaced-" in done.stdout
    theatre.start_conductor()
    assert orchestra.wait(waits, timeout=60).counts == orchestra.wait(nobody, timeout=60).counts == {"lost": 1}
    [task] = list(orchestra.tasks(waits))
    assert "put back to an earlier state" in task.reason
    fresh = orchestra.submit(Ask(score="count", targets=("a",), scope=Scope.ALL)).job
    assert fresh > nobody + SKIPPED
    assert orchestra.wait(fresh, timeout=60).verdict == "ok"
    assert (theatre.home / "ledger" / "l").read_text() == "run\n" * 3
    assert "put back from a backup" in command("getstatus", nobody + 1).stderr


def test_the_store_of_a_stopped_conductor_is_backed_up_too(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """By the command itself."""
    theatre.stop("conductor")
    try:
        done = command("orchestra", "backup", "stopped.sqlite", "--config", theatre.home)
        assert done.returncode == 0, done
        assert (theatre.home / "stopped.sqlite").stat().st_size > 0
    finally:
        theatre.start_conductor()
    assert orchestra.about().players == 3
