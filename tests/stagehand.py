"""A real stage in a temporary directory, scores for it, and a player that talks to it over a plain socket."""

import json
import os
import pwd
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

import orchestra.player.stage
from orchestra.player.frames import MOST_TO_PLAYER, Frames, encode, pack
from orchestra.player.records import RunFiles
from orchestra.player.sweep import start_of

PATIENCE = 20.0
IMPATIENT = """\
import sys
sys.path.append({house!r})
from orchestra.player import running, stage
running.UNKILLABLE_AFTER = {seconds}
{more}
sys.exit(stage.main(sys.argv[1:]))
"""
"""A stage that raises its alarm sooner."""
ME = pwd.getpwuid(os.geteuid()).pw_name


class Theatre:
    """Where a stage lives: its scores, its directory, its socket, and the stages that were started there."""

    def __init__(self, home: Path) -> None:
        self.scores = home / "scores"
        self.state = home / "stage"
        self.socket = home / "socket"
        self.log = home / "log"
        self.program = Path(orchestra.player.stage.__file__)
        self.journal = secrets.token_hex(8)  # processes are told apart by it
        self.scores.mkdir(mode=0o755)
        self.stages: list[subprocess.Popen[bytes]] = []

    def score(self, name: str, text: str, conf: str = "", mode: int = 0o755) -> Path:
        """A score of these lines of shell."""
        file = self.scores / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(mode)
        (self.scores / f"{name}.conf").write_text(conf)
        (self.scores / f"{name}.conf").chmod(0o644)
        return file

    def command(self, *more: str, user: str | None = ME) -> list[str]:
        program = [sys.executable, "-I", "-S", "-X", "utf8", str(self.program)]
        where = ["--socket", str(self.socket), "--dir", str(self.state), "--scores", str(self.scores)]
        return [*program, *where, *(["--score-user", user] if user else []), *more]

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        """A stage that is ready."""
        return self.run(self.command(*more))

    def run(self, command: list[str], **more: Any) -> subprocess.Popen[bytes]:
        """A stage started by this command, and ready."""
        stage = subprocess.Popen(command, stderr=subprocess.PIPE, **more)
        self.stages.append(stage)
        assert stage.stderr
        while (line := _line(stage.stderr)) and b"ready" not in line:
            pass
        assert line, "the stage ended before it was ready"
        return stage

    def close(self) -> None:
        """End every stage, and with it what it runs."""
        for stage in self.stages:
            if stage.poll() is None:
                stage.kill()
            stage.wait(PATIENCE)
            assert stage.stderr
            stage.stderr.close()
        if self.stages and (self.state / "runs").exists():
            sweeper = self.start()  # kills what a killed stage left running
            sweeper.terminate()
            sweeper.wait(PATIENCE)
            assert sweeper.stderr
            sweeper.stderr.close()

    def begun(self, seq: int) -> Path:
        """The file that says that a run was begun."""
        return self.state / "runs" / self.journal / str(seq)

    def files(self, seq: int) -> RunFiles:
        """What is on disk about a run."""
        return RunFiles(str(self.state), self.journal, seq)

    def age(self, seq: int) -> None:
        """What is on disk about a run becomes what an earlier stage would have written."""
        kept, leader = self.files(seq).done(), self.files(seq).leader()
        self.begun(seq).unlink()
        self.begun(seq).touch()
        if leader:
            os.symlink(
                f"{leader.pid} {start_of(leader.pid)} {leader.boot} {leader.cgroup}", f"{self.begun(seq)}.leader"
            )
        if kept:
            frame = pack(kept.text.encode(), kept.body)
            Path(f"{self.begun(seq)}.done").write_bytes(zlib.crc32(frame).to_bytes(4, "big") + frame)


class Player:
    """The far end of the stage's socket."""

    def __init__(self, theatre: Theatre, journal: str = "") -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(str(theatre.socket))
        self.frames = Frames(MOST_TO_PLAYER)
        self.read: list[tuple[dict[str, Any], bytes]] = []
        self.say(type="hello", journal=journal or theatre.journal, version="1")
        self.standing, self.body = self.hear("stage")

    def say(self, **message: Any) -> None:
        self.socket.sendall(encode(message))

    def perform(self, seq: int, score: str, **more: Any) -> None:
        order = {"job": 7, "task": 0, "attempt": 1, "params": {}, "player": "web1.example.com", "digest": ""}
        self.say(**{"type": "perform", "seq": seq, "score": score, **order, **more})

    def hear(self, kind: str | None = None, seq: int | None = None) -> tuple[dict[str, Any], bytes]:
        """The next message, of this kind and about this run if they are given; others are skipped."""
        while True:
            while not self.read:
                data = self.socket.recv(65536)
                if not data:
                    raise EOFError
                self.read += [(json.loads(text), body) for text, body in self.frames.feed(data)]
            message, body = self.read.pop(0)
            if kind in (None, message["type"]) and seq in (None, message.get("seq")):
                return message, body

    def ended(self, seq: int) -> tuple[dict[str, Any], bytes]:
        """How a run ended, and its short output."""
        message, body = self.hear("ended", seq)
        return message["outcome"], body

    def outcome(self, seq: int, score: str, **more: Any) -> dict[str, Any]:
        """Perform, and wait for the end."""
        self.perform(seq, score, **more)
        return self.ended(seq)[0]

    def closed(self) -> bool:
        """Whether the stage has closed the connection, once it has said everything."""
        try:
            while True:
                self.hear()
        except (EOFError, ConnectionResetError):
            return True

    def close(self) -> None:
        self.socket.close()


def read_fifo(path: Path) -> bytes:
    """All that is written to a named pipe, until every writer has closed it; waits for the first."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN | select.POLLHUP)
        data = b""
        while poll.poll(PATIENCE * 1000):
            piece = os.read(handle, 65536)
            if not piece:
                return data
            data += piece
        raise TimeoutError(path)
    finally:
        os.close(handle)


def wait_until_gone(pid: int) -> None:
    """Returns when the process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(PATIENCE * 1000), f"process {pid} is still there"
    finally:
        os.close(handle)


def alive(pid: int) -> bool:
    """Whether the process lives, zombies left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def stranger(pid: int) -> "subprocess.Popen[bytes]":
    """A process that has nothing to do with us and bears this number, which somebody bore before, or still does; skips
    the test where nobody may choose it."""
    for _ in range(2000):
        try:
            Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
        except OSError:
            pytest.skip("this test chooses the number of a process, and may not do that here")
        found = subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
        if found.pid == pid:
            return found
        found.kill()
        found.wait()
    raise TimeoutError(f"nobody gets the number {pid}")


def end(pid: int) -> None:
    """Kill a process that a test has left behind."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _line(stream: Any) -> bytes:
    ready, _, _ = select.select([stream], [], [], PATIENCE)
    assert ready, "the stage says nothing"
    line: bytes = stream.readline()
    return line


def public_theatre(home: Path) -> Theatre:
    """A theatre that every user can enter, with a copy of the program that every user can read."""
    home.chmod(0o755)
    made = Theatre(home)
    package = Path(orchestra.player.stage.__file__).parents[1]
    shutil.copytree(package, home / "lib" / "orchestra", ignore=shutil.ignore_patterns("__pycache__"))
    made.program = home / "lib" / "orchestra" / "player" / "stage.py"
    return made


def python_for_all() -> str:
    """A Python that every user may run, new enough for the stage; skips the test if there is none."""
    new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([python, "-c", new_enough], check=True, user=65534, group=65534, extra_groups=[], cwd="/")
            return python
        except (OSError, subprocess.CalledProcessError):
            continue
    return pytest.skip("no Python that another user could run")


NO_SIGKILL = """
import os, signal
def unheard(send):
    return lambda whom, number: None if number == signal.SIGKILL else send(whom, number)
os.killpg, signal.pidfd_send_signal = unheard(os.killpg), unheard(signal.pidfd_send_signal)
"""
"""A kernel that lets nobody be killed, as one that waits for a dead disk does."""


def impatient(command: list[str], seconds: float, more: str = "") -> list[str]:
    """The same stage, with less patience; ``more``: and upon another kernel."""
    program = next(n for n, word in enumerate(command) if word.endswith("stage.py"))
    house = str(Path(command[program]).parents[2])
    text = IMPATIENT.format(house=house, seconds=seconds, more=more)
    return [*command[:program], "-c", text, *command[program + 1 :]]
