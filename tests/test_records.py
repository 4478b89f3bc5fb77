"""What is on disk about a run is whole or counts as nothing, at whatever step a stage died and whatever was there."""

import os
import zlib
from pathlib import Path

import pytest

from orchestra.player.frames import pack
from orchestra.player.keeping import Keeper
from orchestra.player.loop import Loop
from orchestra.player.records import Done, RunFiles, done, every_run
from orchestra.player.sweep import Leader

LEADER = Leader(77, 1000, 1001, "0f0e-boot", "abcd1234")
FIRST = done({"told": "ok", "rc": 0, "inline": True}, b"a rather long output of the run before\n" * 20)
SECOND = done({"told": "failed", "rc": 3, "inline": True}, b"short\n")


@pytest.fixture
def spare(tmp_path: Path) -> str:
    """The file of a run that led, ended, and was forgotten."""
    files = RunFiles(str(tmp_path), "j", 1)
    with os.fdopen(files.create()) as file:
        files.write_leader(file.fileno(), LEADER._replace(pid=66))
    files.write_done(FIRST)
    assert files.done() == FIRST
    files.become(str(tmp_path / "spare"))
    return str(tmp_path / "spare")


def begun(files: RunFiles, spare: str, leader: Leader | None = None) -> None:
    with os.fdopen(files.begin_in(spare)) as file:
        if leader:
            files.write_leader(file.fileno(), leader)


def test_a_run_is_begun_once(tmp_path: Path, spare: str) -> None:
    files = RunFiles(str(tmp_path), "j", 2)
    os.close(files.create())
    for begin in (files.create, lambda: files.begin_in(spare)):
        with pytest.raises(FileExistsError):
            begin()
    assert list(every_run(str(tmp_path))) == [("j", 2)]


def test_what_a_spare_file_holds_is_not_the_runs(tmp_path: Path, spare: str) -> None:
    """At each step: begun; its leader written; its end written, which is shorter than the one before."""
    files = RunFiles(str(tmp_path), "j", 2)
    begun(files, spare)
    assert (files.leader(), files.done()) == (None, None)
    files.remove(alone=True)
    begun(files, spare, LEADER)
    assert (files.leader(), files.done()) == (LEADER, None)
    files.write_done(SECOND)
    assert (files.leader(), files.done()) == (LEADER, SECOND)


def test_a_record_that_is_cut_anywhere_counts_as_none(tmp_path: Path, spare: str) -> None:
    """Over nothing, and over the rest of another run's."""
    fresh, used = RunFiles(str(tmp_path), "j", 2), RunFiles(str(tmp_path), "j", 3)
    with os.fdopen(fresh.create()) as file:
        fresh.write_leader(file.fileno(), LEADER)
    fresh.write_done(SECOND)
    whole = Path(fresh.path).read_bytes()
    begun(used, spare, LEADER)
    before = Path(used.path).read_bytes()
    used.write_done(SECOND)
    after = Path(used.path).read_bytes()
    end = max(at for at in range(len(after)) if after[at] != before[at]) + 1
    for at in range(len(whole)):
        Path(fresh.path).write_bytes(whole[:at])
        assert fresh.done() is None
        assert fresh.leader() in (None, LEADER)
    for at in range(end):
        Path(used.path).write_bytes(after[:at] + before[at:])
        assert used.done() is None
    Path(used.path).write_bytes(after[:end] + before[end:])
    assert used.done() == SECOND


def test_a_name_that_still_leads_to_anothers_file_has_no_outcome(tmp_path: Path, spare: str) -> None:
    """A power failure may bring back the name of a forgotten run, though its file serves the next one."""
    old, new = RunFiles(str(tmp_path), "j", 1), RunFiles(str(tmp_path), "j", 2)
    begun(new, spare, LEADER)
    new.write_done(SECOND)
    os.link(new.path, old.path)
    assert (old.leader(), old.done()) == (None, None)


def test_the_files_of_an_earlier_stage_are_read_and_removed(tmp_path: Path) -> None:
    files = RunFiles(str(tmp_path), "j", 1)
    os.close(files.create())
    os.symlink("77 1000 0f0e-boot abcd1234", f"{files.path}.leader")
    assert files.done() is None
    frame = pack(FIRST.text.encode(), FIRST.body)
    Path(f"{files.path}.done").write_bytes(zlib.crc32(frame).to_bytes(4, "big") + frame)
    assert files.leader() == LEADER._replace(last=1000)
    assert files.done() == FIRST
    files.sync()
    files.remove(alone=False)
    assert os.listdir(tmp_path / "runs" / "j") == []


def test_a_run_that_an_earlier_stage_began_ends_as_any_other(tmp_path: Path) -> None:
    """It was handed over while it ran."""
    files = RunFiles(str(tmp_path), "j", 1)
    os.close(files.create())
    os.symlink("77 1000 0f0e-boot abcd1234", f"{files.path}.leader")
    files.write_done(SECOND)
    assert (files.leader(), files.done()) == (LEADER._replace(last=1000), SECOND)


# ---- who keeps them


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return successor(tmp_path)


def successor(home: Path) -> Keeper:
    made = Keeper(str(home), Loop(lambda: None), print)
    made.recover()
    return made


def end(keeper: Keeper, seq: int, kept: Done = SECOND) -> int:
    """A run begins and ends; the number of its file."""
    os.close(keeper.begin(("j", seq)))
    keeper.keep(("j", seq), kept, heard=True)
    return os.stat(keeper.files(("j", seq)).path).st_ino


def forget(keeper: Keeper, *seqs: int) -> None:
    for seq in seqs:
        keeper.forget(("j", seq))
    keeper.tidy()


def test_a_file_serves_one_run_at_a_time(keeper: Keeper) -> None:
    first, second = end(keeper, 1), end(keeper, 2)
    assert first != second
    forget(keeper, 1)
    assert end(keeper, 3) == first
    assert end(keeper, 4) not in (first, second)
    forget(keeper, 2, 3)
    assert {end(keeper, 5), end(keeper, 6)} == {first, second}


def test_what_is_forgotten_and_not_removed_yet_is_not_begun_again(keeper: Keeper) -> None:
    end(keeper, 1)
    keeper.forget(("j", 1))
    with pytest.raises(FileExistsError):
        keeper.begin(("j", 1))
    keeper.tidy()
    os.close(keeper.begin(("j", 1)))


def test_the_file_of_a_run_that_was_begun_before_is_lent_to_nobody(keeper: Keeper) -> None:
    """The spare file that was meant for it stays a spare one."""
    spare = end(keeper, 1)
    end(keeper, 2)
    forget(keeper, 1)
    with pytest.raises(FileExistsError):
        keeper.begin(("j", 2))
    assert end(keeper, 3) == spare


def test_a_successor_begins_without_spare_files_and_removes_all_of_a_run(tmp_path: Path, keeper: Keeper) -> None:
    """It finds what was not forgotten, in whichever file, and forgets it without a trace."""
    end(keeper, 1)
    forget(keeper, 1)
    end(keeper, 2, FIRST)
    os.close(keeper.begin(("j", 3)))
    later = Keeper(str(tmp_path), Loop(lambda: None), print)
    assert later.recover() == {("j", 3)}
    assert later.done == {("j", 2): FIRST}
    assert os.listdir(tmp_path / "spare") == []
    forget(later, 2, 3)
    assert os.listdir(tmp_path / "runs" / "j") == []


def test_runs_are_begun_where_no_file_can_be_spared(tmp_path: Path) -> None:
    """Spare files are for speed only."""
    (tmp_path / "spare").write_text("in the way")
    keeper = successor(tmp_path)
    for seq in (1, 2):
        end(keeper, seq)
        forget(keeper, seq)
    assert os.listdir(tmp_path / "runs" / "j") == []
