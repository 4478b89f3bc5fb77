"""Wall clocks that jump by hours, in either direction: nothing freezes, and nothing expires that should not."""

import os
from pathlib import Path

import pytest
from conftest import log_of, until_logged
from outside import OutsideOrchestra

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.conductor.clock import BELIEVED_AFTER, JUMP, StoreClock
from orchestra.model import TaskView

HOUR = 3_600_000
DAY = 1_700_000_000_000

SET_BY_FILE = """\
import time
_wall = time.time_ns
def _set_by_file():
    try:
        with open({file!r}) as file:
            return _wall() + int(file.read() or 0) * 10**9
    except FileNotFoundError:
        return _wall()
time.time_ns = _set_by_file
time.time = lambda: _set_by_file() / 1e9
"""
"""A machine's wall clock, as far as a Python program can tell."""


HASTE = 30
HASTY = """\
import time
_slow, _begun = time.monotonic, time.monotonic()
time.monotonic = lambda: _begun + {haste} * (_slow() - _begun)
"""
"""A machine on which a minute passes in two seconds, as far as timers can tell."""


# ---- the store's clock


class Clocks:
    """A wall clock that somebody sets, and one that nobody does."""

    def __init__(self) -> None:
        self.steady = 5_000
        self.ahead = 0
        self.now = StoreClock(lambda: DAY + self.steady + self.ahead, lambda: self.steady)

    def after(self, milliseconds: int) -> int:
        """The time so much later, by the store's clock; how far it is from what it was at first."""
        self.steady += milliseconds
        return self.now() - DAY - self.steady


@pytest.mark.parametrize("hours", [6, -6])
def test_a_jump_is_not_believed_at_once(hours: int) -> None:
    """Put right within the quarter of an hour, nothing has happened."""
    clocks = Clocks()
    clocks.ahead = hours * HOUR
    assert {clocks.after(1000) for _ in range(600)} == {0}
    clocks.ahead = 0
    assert clocks.after(1000) == 0
    clocks.ahead = hours * HOUR
    assert clocks.after(BELIEVED_AFTER // 2) == 0


@pytest.mark.parametrize("hours", [6, -6])
def test_a_jump_that_lasts_is_believed(hours: int) -> None:
    """Else a machine that came up with a wrong time would have it until its next restart."""
    clocks = Clocks()
    clocks.ahead = hours * HOUR
    assert clocks.after(0) == 0
    assert clocks.after(BELIEVED_AFTER - 1) == 0
    assert clocks.after(1) == hours * HOUR
    clocks.ahead = 0
    assert clocks.after(1000) == hours * HOUR


def test_another_jump_begins_anew() -> None:
    """It is the last one that has to last."""
    clocks = Clocks()
    clocks.ahead = HOUR
    clocks.after(0)
    clocks.ahead = 2 * HOUR
    assert clocks.after(BELIEVED_AFTER) == 0
    assert clocks.after(BELIEVED_AFTER) == 2 * HOUR


def test_a_clock_that_is_set_a_little_or_drifts_is_followed() -> None:
    """What every machine's clock does all day."""
    clocks = Clocks()
    for _ in range(100):
        clocks.ahead += JUMP - 1
        assert clocks.after(1000) == clocks.ahead


# ---- real daemons


def prepare(theatre: Theatre) -> None:
    """The daemons are started with a clock that a file sets."""
    place = theatre.home / "clock"
    place.mkdir()
    (place / "sitecustomize.py").write_text(SET_BY_FILE.format(file=str(place / "ahead")))
    theatre.environment["PYTHONPATH"] = os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])
    gate = f"#!/bin/sh\nwhile [ ! -e {theatre.home}/gate ]; do sleep 0.05; done\n"
    theatre.add_score("gated", gate, "timeout = 300s\nconcurrency = 1\n")
    hasty = theatre.home / "hasty"
    hasty.mkdir()
    (hasty / "sitecustomize.py").write_text(HASTY.format(haste=HASTE))
    theatre.add_score("overdue", "#!/bin/sh\nexec sleep 600\n", "timeout = 5s\nkill_grace = 1s\n")
    theatre.add_score("late", "#!/bin/sh\nexec sleep 600\n", "timeout = 1s\n")


def jump(theatre: Theatre, hours: int) -> None:
    new = theatre.home / "clock" / "new"
    new.write_text(str(hours * 3600))
    new.rename(theatre.home / "clock" / "ahead")


def task(orchestra: OutsideOrchestra, job: int) -> TaskView:
    found: TaskView = next(iter(orchestra.tasks(job)))
    return found


@pytest.mark.parametrize("hours", [6, -6])
def test_daemons_whose_clocks_jump_go_on(theatre: Theatre, orchestra: OutsideOrchestra, hours: int) -> None:
    """What waits goes on waiting, what is asked for starts, timeouts are kept, what has waited too long expires, on
    either side, nobody is taken for silent, and it is told what runs since when."""
    waiting = orchestra.submit(Ask(score="uptime", targets=("c",), scope=Scope.ALL, expire=7200)).job
    logs = {daemon: len(log_of(theatre, daemon)) for daemon in ("conductor", "a", "b")}
    jump(theatre, hours)
    try:
        until_logged(theatre, "conductor", f"the wall clock jumped by {hours * 3600:+} s", since=logs["conductor"])
        assert orchestra.wait(_submit(orchestra, "uptime", "a", "b"), timeout=20).verdict == "ok"
        assert orchestra.wait(_submit(orchestra, "late", "a"), timeout=20).counts == {"killed": 1}
        lasting = _submit(orchestra, "gated", "a")
        wait_until(lambda: "running since" in task(orchestra, lasting).why, "the news that it runs", Path())
        for target, score in (("c", "uptime"), ("a", "gated")):  # it waits here, and behind the other run there
            overdue = _submit(orchestra, score, target, expire=2)
            assert orchestra.wait(overdue, timeout=20).counts == {"expired": 1}
        assert orchestra.job(waiting).counts == {"pending": 1}
        orchestra.cancel(lasting)
        assert orchestra.wait(lasting, timeout=20).counts == {"killed": 1}
    finally:
        jump(theatre, 0)
    until_logged(theatre, "conductor", "the wall clock is back", since=logs["conductor"])
    assert orchestra.job(waiting).counts == {"pending": 1}
    assert "offline" not in log_of(theatre, "conductor")[logs["conductor"] :]
    orchestra.cancel(waiting)


def test_a_run_on_a_player_that_never_comes_back_is_given_up(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """By itself, when its time is over and the player was away for a while: nobody knows what became of it."""
    usual = theatre.environment["PYTHONPATH"]
    theatre.stop("conductor")
    theatre.environment["PYTHONPATH"] = os.pathsep.join([str(theatre.home / "hasty"), os.environ.get("PYTHONPATH", "")])
    theatre.start_conductor()
    theatre.environment["PYTHONPATH"] = usual
    since = len(log_of(theatre, "conductor"))
    theatre.start_player("c")
    until_logged(theatre, "conductor", "c.demo.test is online", since=since)
    job = _submit(orchestra, "overdue", "c", expire=2)
    wait_until(lambda: orchestra.job(job).counts == {"dispatched": 1}, "the run", Path())
    theatre.kill("c")
    assert orchestra.wait(job, timeout=60).counts == {"lost": 1}
    assert "its player is away" in task(orchestra, job).reason


def _submit(orchestra: OutsideOrchestra, score: str, *targets: str, expire: float | None = None) -> int:
    job: int = orchestra.submit(Ask(score=score, targets=targets, scope=Scope.ALL, expire=expire)).job
    return job
