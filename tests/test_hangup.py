"""SIGHUP reaches the daemon once it is asked for, never kills it, and no two reloads overlap."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, LogLevel, globalLogPublisher

from orchestra.errors import FileProblem
from orchestra.hangup import Hangup


class Turn:
    """A reactor's thread call, run when the test says."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def callFromThread(self, call: Callable[[], object]) -> None:
        self.calls.append(call)

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()


class Reloads:
    """Counts the reloads; each is under way until the test ends it."""

    def __init__(self) -> None:
        self.begun: list[Deferred[None]] = []

    def __call__(self) -> Deferred[None]:
        self.begun.append(Deferred())
        return self.begun[-1]


@pytest.fixture
def turn() -> Turn:
    return Turn()


@pytest.fixture
def reloads() -> Reloads:
    return Reloads()


@pytest.fixture
def hangup(turn: Turn, reloads: Reloads) -> Iterator[Hangup]:
    before = signal.getsignal(signal.SIGHUP)
    service = Hangup(turn, reloads)
    yield service
    signal.signal(signal.SIGHUP, before)


@pytest.fixture
def events() -> Iterator[list[LogEvent]]:
    heard: list[LogEvent] = []
    globalLogPublisher.addObserver(heard.append)
    yield heard
    globalLogPublisher.removeObserver(heard.append)


def hup() -> None:
    os.kill(os.getpid(), signal.SIGHUP)


def test_an_early_hup_is_kept_for_the_reactor(hangup: Hangup, turn: Turn, reloads: Reloads) -> None:
    """A HUP before the service has started does not kill, and is answered when the reactor runs."""
    hup()
    assert reloads.begun == []
    hangup.startService()
    turn.turn()
    assert len(reloads.begun) == 1


def test_hups_during_a_reload_are_one_more(hangup: Hangup, turn: Turn, reloads: Reloads) -> None:
    """Reloads never overlap; what was heard meanwhile is answered by one more, and no further one."""
    hangup.startService()
    for _ in range(3):
        hup()
        turn.turn()
    assert len(reloads.begun) == 1
    reloads.begun[0].callback(None)
    assert len(reloads.begun) == 2
    reloads.begun[1].callback(None)
    assert len(reloads.begun) == 2
    hup()
    turn.turn()
    assert len(reloads.begun) == 3


@pytest.mark.parametrize(
    ("problem", "level"),
    [(FileProblem(file="players", problem="is gone"), LogLevel.error), (ValueError("bug"), LogLevel.critical)],
)
def test_a_reload_that_fails_is_logged_and_the_next_one_happens(
    hangup: Hangup, turn: Turn, reloads: Reloads, events: list[LogEvent], problem: Exception, level: object
) -> None:
    """What an operator can mend is an error with its sentence; anything else is critical, with its traceback."""
    hangup.hear()
    reloads.begun[0].errback(problem)
    assert [event["log_level"] for event in events] == [level]
    hup()
    turn.turn()
    assert len(reloads.begun) == 2


def test_the_former_handler_is_back_after_the_stop(turn: Turn, reloads: Reloads) -> None:
    """A stopped service hears nothing, and what it did to the signal is undone."""
    heard: list[int] = []
    before = signal.signal(signal.SIGHUP, lambda signum, _: heard.append(signum))
    try:
        service = Hangup(turn, reloads)
        service.startService()
        service.stopService()
        hup()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (heard, turn.calls) == ([signal.SIGHUP], [])


def test_a_stop_breaks_off_the_reload_and_hears_no_more(hangup: Hangup, turn: Turn, reloads: Reloads) -> None:
    """A reload under way is cancelled at the stop; a HUP the reactor hands over afterwards does nothing."""
    hangup.startService()
    hangup.hear()
    cancelled = reloads.begun[0]
    hup()
    hangup.stopService()
    assert cancelled.called
    turn.turn()
    assert len(reloads.begun) == 1
