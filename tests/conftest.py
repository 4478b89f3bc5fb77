"""What tests against real daemons share: a theatre for the module, a client in it, and the commands a user types.

A module that wants more than the plain theatre defines ``prepare(theatre)``, which is called before the start.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outside import OutsideOrchestra

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, scores_directory, wait_until
from orchestra.model import JobView, TaskView

Perform = Callable[..., tuple[JobView, list[TaskView]]]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def theatre(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    """A conductor and two players, a and b, that are online; c has all that a player needs and is not started."""
    built = Theatre(tmp_path_factory.mktemp("t"), ["a", "b", "c"])
    built.build(scores_directory())
    getattr(request.module, "prepare", lambda _: None)(built)
    try:
        built.start_conductor()
        built.start_player("a")
        built.start_player("b")
        until_logged(built, "conductor", "a.demo.test is online", "b.demo.test is online")
        yield built
    finally:
        built.close()
        # a score whose stage was killed runs to its own end
        wait_until(lambda: not built.left_behind(), "the end of every process", Path())


@pytest.fixture(scope="module")
def orchestra(theatre: Theatre) -> Iterator[OutsideOrchestra]:
    """A program that asks the conductor."""
    with OutsideOrchestra(str(theatre.socket)) as client:
        yield client


@pytest.fixture
def perform(orchestra: OutsideOrchestra) -> Perform:
    """Submit and wait; the job and its tasks."""

    def submitted(score: str, *targets: str, scope: Scope = Scope.ALL, **params: str) -> tuple[JobView, list[TaskView]]:
        job = orchestra.submit(Ask(score=score, targets=targets, scope=scope, params=params)).job
        return orchestra.wait(job, timeout=60), list(orchestra.tasks(job))

    return submitted


@pytest.fixture
def command(theatre: Theatre) -> Command:
    """Run a command of ours as a user does, with the theatre's conductor."""

    def ran(program: str, *words: object, **more: str) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, "ORCHESTRA_SOCKET": str(theatre.socket), **more}
        line = [str(Path(sys.executable).with_name(program)), *map(str, words)]
        return subprocess.run(
            line, capture_output=True, text=True, env=environment, timeout=60, check=False, cwd=theatre.home
        )

    return ran


def log_of(theatre: Theatre, daemon: str) -> str:
    """All that a daemon has said."""
    path = theatre.home / "log" / f"{daemon}.log"
    return path.read_text() if path.exists() else ""


def until_logged(theatre: Theatre, daemon: str, *sentences: str, since: int = 0) -> None:
    """Wait until a daemon has said all of these, ``since`` so many characters of its log."""
    path = theatre.home / "log" / f"{daemon}.log"
    wait_until(lambda: all(each in log_of(theatre, daemon)[since:] for each in sentences), sentences[0], path)
