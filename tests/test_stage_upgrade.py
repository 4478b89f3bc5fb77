"""A stage becomes the program that is on its disk, busy or not: nobody who runs on it, or talks to it, notices."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import log_of, until_logged
from outside import OutsideOrchestra
from stagehand import PATIENCE, Player, Theatre, alive, end, wait_until_gone

import orchestra.player.stage
from orchestra import __version__, settings
from orchestra.audience.client import Ask, Scope
from orchestra.cli import theatre as theatres
from orchestra.player.backstage import stage_command
from orchestra.player.streams import Answers, Kept


class Disk:
    """A copy of the program, to be replaced by another version."""

    def __init__(self, home: Path) -> None:
        self._package = home / "lib" / "orchestra"
        shutil.copytree(
            Path(orchestra.player.stage.__file__).parents[1],
            self._package,
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        self.stage = self._package / "player" / "stage.py"

    def install(self, version: str) -> None:
        """Another version is on the disk from now on."""
        self._write("__init__.py", f'__version__ = "{version}"\n')

    def change(self, file: str, old: str, new: str) -> None:
        """Another text is in a file of the program."""
        source = (self._package / file).read_text()
        assert old in source
        self._write(file, source.replace(old, new, 1))

    def _write(self, file: str, text: str) -> None:
        path = self._package / file
        path.write_text(text)
        # a file of the same size and second would be taken for the compiled one
        shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    made = Disk(tmp_path)
    made.install("1.0")
    return made


@pytest.fixture
def stage(tmp_path: Path, disk: Disk) -> Iterator[Theatre]:
    made = Theatre(tmp_path)
    made.program = disk.stage
    made.start()
    yield made
    made.program = Path(orchestra.player.stage.__file__)
    made.close()


@pytest.fixture
def player(stage: Theatre) -> Iterator[Player]:
    made = Player(stage)
    yield made
    made.close()


def upgraded(player: Player) -> dict[str, Any]:
    """Ask for the upgrade; the answer. What was said before it is still to be heard."""
    player.say(type="upgrade")
    before = []
    while (heard := player.hear())[0]["type"] != "upgraded":
        before.append(heard)
    player.read[:0] = before
    return heard[0]


def gate(stage: Theatre, name: str) -> Path:
    """A named pipe for a score to wait at."""
    path = stage.state.parent / name
    os.mkfifo(path)
    return path


def open_gate(path: Path) -> None:
    """Let the score go on that waits there."""
    path.write_text("go\n")


def test_what_runs_goes_on_and_loses_nothing(disk: Disk, stage: Theatre, player: Player) -> None:
    """The same process, the same connection; output, answers and checksum are whole."""
    wait, said = gate(stage, "wait"), gate(stage, "said")
    stage.score(
        "slow",
        f"echo before; echo a=1; printf 'half a '; echo > {said}; read x < {wait}; echo line; echo b=2; echo >&2 end",
        "interface = pipe",
    )
    player.perform(1, "slow")
    started, _ = player.hear("started")
    said.read_text()
    disk.install("2.0")
    assert upgraded(player) == {"type": "upgraded", "program": "2.0", "reason": ""}
    open_gate(wait)
    outcome, body = player.ended(1)
    assert (outcome["told"], outcome["response"]) == ("ok", {"a": "1", "b": "2"})
    assert body == b"before\nhalf a line\nend\n"
    assert outcome["stdout"]["sha256"] == hashlib.sha256(b"before\nhalf a line\n").hexdigest()
    assert outcome["started_at"] == started["at"]
    again = Player(stage).standing
    assert (again["program"], again["pid"]) == ("2.0", stage.stages[0].pid)
    assert again["runs"]["1"]["outcome"] == outcome


def test_bytes_are_counted_over_several_upgrades(stage: Theatre, player: Player) -> None:
    """What was dropped before an upgrade leaves the count exact, and the checksum unknown rather than wrong."""
    gates = [gate(stage, f"gate{n}") for n in range(3)]
    said = gate(stage, "said")
    steps = "; ".join(f"head -c 3000000 /dev/zero; echo > {said}; read x < {one}" for one in gates)
    stage.score("loud", steps, "output_limit = 64k")
    player.perform(1, "loud")
    for one in gates:
        said.read_text()
        assert upgraded(player)["reason"] == ""
        open_gate(one)
    outcome, _ = player.ended(1)
    assert outcome["stdout"] == {
        "total": 9_000_000,
        "sha256": None,
        "spans": [[0, 16384], [9_000_000 - 49152, 49152]],
    }


def test_a_timeout_is_kept_by_the_next_program(stage: Theatre, player: Player) -> None:
    """Counted from the start of the run, not from the upgrade."""
    stage.score("long", "exec sleep 60", "timeout = 1s")
    player.perform(1, "long")
    player.hear("started")
    assert upgraded(player)["reason"] == ""
    outcome, _ = player.ended(1)
    assert (outcome["told"], outcome["reason"]) == ("killed", "ran longer than its timeout of 1s")
    assert 1000 <= outcome["ended_at"] - outcome["started_at"] < 5000


def test_a_run_that_is_being_killed_is_killed(stage: Theatre, player: Player) -> None:
    """Its grace ends under the next program; the reason is the one that was given."""
    said = gate(stage, "said")
    stage.score("deaf", f"trap '' TERM; echo > {said}; while :; do sleep 0.05; done", "kill_grace = 2s")
    player.perform(1, "deaf")
    said.read_text()
    player.say(type="kill", seq=1, reason="cancelled")
    assert upgraded(player)["reason"] == ""
    outcome, _ = player.ended(1)
    assert (outcome["told"], outcome["reason"], outcome["signal"]) == ("killed", "cancelled", signal.SIGKILL)


def test_a_daemon_that_holds_a_pipe_of_a_run_that_is_over_lives_on(stage: Theatre, player: Player) -> None:
    """Its pipe is carried along: a closed one would kill it at its next word."""
    wait, said = gate(stage, "wait"), gate(stage, "said")
    stage.score("restart", f"(read x < {wait}; echo word; echo > {said}) & echo $!")
    player.perform(1, "restart")
    _, body = player.ended(1)
    daemon = int(body)
    try:
        assert upgraded(player)["reason"] == ""
        assert alive(daemon)
        open_gate(wait)
        assert said.read_text() == "\n"
        wait_until_gone(daemon)
    finally:
        end(daemon)


def test_short_runs_over_a_storm_of_upgrades_end_once_each(stage: Theatre, player: Player) -> None:
    """No exit is overlooked, no message is lost, whenever the change comes."""
    stage.score("quick", "echo $ORC_n", "concurrency = 8")
    seqs = range(1, 121)
    ended: list[int] = []
    for seq in seqs:
        player.perform(seq, "quick", params={"n": str(seq)})
        if seq % 6 == 0:
            os.kill(stage.stages[0].pid, signal.SIGHUP)
            message, body = player.hear("ended")
            assert body == f"{message['seq']}\n".encode()
            ended.append(message["seq"])
    while len(ended) < len(seqs):
        message, body = player.hear("ended")
        assert (message["outcome"]["told"], body) == ("ok", f"{message['seq']}\n".encode())
        ended.append(message["seq"])
    assert sorted(ended) == list(seqs)
    assert set(Player(stage).standing["runs"]) == set(map(str, seqs))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("player/sweep.py", "import os", "this is no Python"),
        ("player/handover.py", "FORMAT: Final = 3", "FORMAT: Final = 99"),
        ("player/stage.py", "def main(", "os.kill(os.getpid(), 9)\ndef main("),
    ],
)
def test_a_program_that_cannot_take_over_is_not_become(
    disk: Disk, stage: Theatre, player: Player, file: str, old: str, new: str
) -> None:
    """The stage stays what it is, says why, and goes on performing."""
    wait = gate(stage, "wait")
    stage.score("slow", f"read x < {wait}; echo done")
    player.perform(1, "slow")
    player.hear("started")
    disk.change(file, old, new)
    disk.install("2.0")
    answer = upgraded(player)
    assert answer["program"] == "1.0"
    assert "does not load, or cannot take over" in answer["reason"]
    open_gate(wait)
    assert player.ended(1)[1] == b"done\n"


def test_a_program_that_is_gone_is_not_become(stage: Theatre, player: Player, disk: Disk) -> None:
    """An upgrade that is half done on the disk harms nothing."""
    disk.stage.unlink()
    assert "does not load" in upgraded(player)["reason"]
    stage.score("greet", "echo hello")
    assert player.outcome(1, "greet")["told"] == "ok"


def test_it_stays_alone_in_its_directory(stage: Theatre, player: Player) -> None:
    """The lock is never let go of, and the scores do not get it, nor anything else."""
    assert upgraded(player)["reason"] == ""
    second = subprocess.run(stage.command(), check=False, capture_output=True, timeout=PATIENCE)
    assert second.returncode == 78
    stage.score("handles", "ls -l /proc/self/fd | grep -c '[0-9]* -> '")
    player.perform(1, "handles")
    assert player.ended(1)[1] == b"4\n"  # three, and the directory that ls looks at


def test_it_stops_when_told_to_after_an_upgrade(stage: Theatre, player: Player) -> None:
    """Signals that came meanwhile were held back, not lost."""
    stage.score("long", "exec sleep 60")
    player.perform(1, "long")
    player.hear("started")
    assert upgraded(player)["reason"] == ""
    stage.stages[0].terminate()
    assert player.ended(1)[0]["told"] == "killed"
    assert stage.stages[0].wait(PATIENCE) == 0
    assert not stage.socket.exists()


def test_a_signal_that_comes_during_the_change_is_heard_after_it(
    disk: Disk, stage: Theatre, player: Player, tmp_path: Path
) -> None:
    """It would end the new program before that listens, and the runs with it."""
    said, wait = gate(stage, "said"), gate(stage, "wait")
    pause = f"    open({str(said)!r}, 'w').close(); open({str(wait)!r}).read()\n"
    disk.change("player/stage.py", "    state = handover.handed", pause + "    state = handover.handed")
    stage.score("long", "exec sleep 60")
    player.perform(1, "long")
    player.hear("started")
    player.say(type="upgrade")
    said.read_text()
    stage.stages[0].terminate()
    open_gate(wait)
    assert player.ended(1)[0]["reason"] == "the stage was stopped"
    assert stage.stages[0].wait(PATIENCE) == 0


def test_a_signal_that_was_caught_and_not_looked_at_is_not_lost() -> None:
    """The pipe it was written to does not outlive the change, so it is sent again and waits, blocked."""
    code = """if True:
        import os, signal
        from orchestra.player.loop import Loop
        loop = Loop(lambda: None)
        loop.catch([signal.SIGCHLD], print)
        os.kill(os.getpid(), signal.SIGCHLD)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        print(signal.sigpending())
        loop.give_back()
        print(signal.sigpending())
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.splitlines() == ["set()", "{<Signals.SIGCHLD: 17>}"]


def test_an_older_connection_is_still_the_older_one(stage: Theatre, player: Player) -> None:
    """Who connects after an upgrade takes over, as ever."""
    assert upgraded(player)["reason"] == ""
    Player(stage)
    assert player.closed()


def test_what_is_kept_of_a_stream_is_handed_over_whole() -> None:
    """Through the memory file and back: the same bytes, and the checksum where it can be made again."""
    for text in (b"", b"short", b"x" * 100, b"y" * 300_000):
        before, after = Kept(64), Kept(64)
        before.feed(text)
        after.take_over(json.loads(json.dumps(before.handed())))
        for kept in (before, after):
            kept.feed(b"more")
            kept.close()
        assert (after.total, after.spans, after.data) == (before.total, before.spans, before.data)
        assert after.sha256 in (None, before.sha256)
        assert (after.sha256 is None) == (len(text) > 64 + 256 * 1024)


def test_a_line_that_is_half_there_is_handed_over() -> None:
    """Also one that is too long to be an answer."""
    for text in (b"key=val", b"z" * 70_000 + b"=", b"a=1\nb="):
        before, after = Answers(Kept(1 << 20)), Answers(Kept(1 << 20))
        before.feed(text)
        after.take_over(json.loads(json.dumps(before.handed())))
        after.output.take_over(json.loads(json.dumps(before.output.handed())))
        for answers in (before, after):
            answers.feed(b"ue\nlast=1\n")
            answers.close()
        assert after.response == before.response
        assert after.output.data == before.output.data


# ---- with the daemons


def test_a_player_that_is_newer_than_its_stage_has_it_upgraded_in_mid_run(
    theatre: theatres.Theatre, orchestra: OutsideOrchestra, tmp_path: Path
) -> None:
    """Stopped, upgraded and started while a score runs: the run goes on, its outcome is ok."""
    old = Disk(tmp_path)
    old.install("0.0.1")
    chosen = settings.player(str(theatre.home / "c"))
    command = stage_command(sys.executable, chosen, os.geteuid())
    command[command.index("--socket") - 1] = str(old.stage)
    subprocess.run([*command, "--log", str(theatre.home / "log" / "c.stage.log"), "--detach"], check=True, timeout=60)
    theatre.add_score("gated", f"#!/bin/sh\necho here > {tmp_path}/here\nread x < {tmp_path}/gate\necho $x\n", "")
    for name in ("here", "gate"):
        os.mkfifo(tmp_path / name)
    theatre.start_player("c")
    until_logged(theatre, "c", "the stage is 0.0.1 now")
    job = orchestra.submit(Ask(score="gated", targets=("c",), scope=Scope.ALL)).job
    assert (tmp_path / "here").read_text() == "here\n"
    theatre.stop("c")
    old.install(__version__)
    since = len(log_of(theatre, "c"))
    theatre.start_player("c")
    until_logged(theatre, "c", f"the stage is {__version__} now", since=since)
    (tmp_path / "gate").write_text("on\n")
    assert orchestra.wait(job, timeout=30).verdict == "ok"
    [task] = list(orchestra.tasks(job))
    assert (task.attempt, task.stdout.data) == (1, b"on\n")
