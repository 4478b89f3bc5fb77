"""A disk that does not answer: the threads that use it are held, and nothing else is."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stagehand import PATIENCE

from orchestra.drill import slowness
from orchestra.errors import FileProblem

PROGRAM = """
import json, sqlite3, sys, threading
saved = 0
def save():
    global saved
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("CREATE TABLE t (x)")
    while True:
        connection.execute("INSERT INTO t VALUES (1)")
        saved += 1
threading.Thread(target=save, daemon=True).start()
for line in sys.stdin:
    print(json.dumps(saved), flush=True)
"""
"""Saves without end, and says how often when it is asked."""


class Saver:
    """A process with a thread that does nothing but save."""

    def __init__(self, file: Path) -> None:
        command = [sys.executable, "-c", PROGRAM, str(file)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def saved(self) -> int:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline()))

    def until_it_saves(self) -> None:
        before = self.saved
        while self.saved == before:
            pass


@pytest.fixture
def saver(tmp_path: Path) -> Iterator[Saver]:
    try:
        slowness.permitted()
    except FileProblem as problem:
        pytest.skip(problem.sentence)
    made = Saver(tmp_path / "db")
    with made.process:
        made.until_it_saves()
        yield made
        made.process.kill()


@pytest.mark.timeout(PATIENCE)
def test_nothing_is_saved_and_all_else_goes_on(saver: Saver) -> None:
    """Time and again; afterwards it saves as before."""
    for _ in range(20):
        held = slowness.hold(saver.process.pid)
        assert len(held) == 1
        before = saver.saved
        assert [saver.saved for _ in range(100)] == [before] * 100
        slowness.release(held)
        saver.until_it_saves()


@pytest.mark.timeout(PATIENCE)
def test_who_is_killed_meanwhile_is_cleared_away(saver: Saver) -> None:
    """A thread that was held belongs to us too, until it is let go of."""
    held = slowness.hold(saver.process.pid)
    saver.process.kill()
    os.waitid(os.P_PID, held[0], os.WEXITED | os.WNOWAIT | 0x40000000)
    slowness.release(held)
    assert saver.process.wait(PATIENCE) == -9
    slowness.release(held)


def test_who_is_gone_is_not_held(saver: Saver) -> None:
    """Nobody is an error."""
    saver.process.kill()
    saver.process.wait(PATIENCE)
    assert slowness.hold(saver.process.pid) == []
