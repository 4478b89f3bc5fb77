"""The life of one run as its player sees it: what the stage says becomes a report, once.

    asked ----begun----> running ----over----> ended
      '-----refused----> ended

A run that is adopted after a restart begins at once. A lost stage ends nothing: the execution is dropped, and
settling with the next stage makes another.
"""

from collections.abc import Callable
from typing import Protocol

from automat import TypeMachineBuilder
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from orchestra.errors import NotStarted
from orchestra.model import JournalEntry, Report, Told
from orchestra.player.backstage import Outcome, StageProcess


class _Life(Protocol):
    """What can happen to a run."""

    def begun(self, at: int | None) -> None: ...
    def refused(self, reason: str) -> None: ...
    def over(self, outcome: Outcome) -> None: ...


class _Tell:
    """What is known of the run, and whom to tell."""

    def __init__(
        self,
        entry: JournalEntry,
        started: Callable[[JournalEntry, int], None],
        ended: Callable[[Report], None],
    ) -> None:
        self.entry = entry
        self.started = started
        self.ended = ended


_machine = TypeMachineBuilder(_Life, _Tell)
_asked = _machine.state("asked")
_running = _machine.state("running")
_ended = _machine.state("ended")


@_asked.upon(_Life.begun).to(_running)
def _begin(life: _Life, tell: _Tell, at: int | None) -> None:
    if at is not None:
        tell.started(tell.entry, at)


@_asked.upon(_Life.refused).to(_ended)
def _refuse(life: _Life, tell: _Tell, reason: str) -> None:
    tell.ended(Outcome(Told.REFUSED, reason).report(tell.entry))


@_running.upon(_Life.over).to(_ended)
def _report(life: _Life, tell: _Tell, outcome: Outcome) -> None:
    tell.ended(outcome.report(tell.entry))


_live = _machine.build()


class Execution(ProcessProtocol):
    """One run. ``started`` is told the wall time, at most once; ``ended`` gets the report, exactly once unless the
    stage is lost before. ``alarmed`` hears that it should have ended, and does not."""

    log = Logger()

    def __init__(
        self,
        entry: JournalEntry,
        *,
        started: Callable[[JournalEntry, int], None],
        ended: Callable[[Report], None],
        alarmed: Callable[[JournalEntry, str], None] = lambda entry, words: None,
    ) -> None:
        self._entry = entry
        self._alarmed = alarmed
        self._life = _live(_Tell(entry, started, ended))
        self._process: StageProcess | None = None

    def makeConnection(self, transport: StageProcess) -> None:
        """It runs on the stage."""
        self._process = transport
        self._life.begun(transport.started_at)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """The stage worries about it."""
        words = data.decode()
        self.log.error("run {seq} of {score}: {words}", seq=self._entry.seq, score=self._entry.score, words=words)
        self._alarmed(self._entry, words)

    def processEnded(self, reason: Failure) -> None:
        """It is over, or was never begun."""
        if self._process is not None and self._process.outcome is not None:
            self._life.over(self._process.outcome)
        elif isinstance(reason.value, NotStarted):
            self._life.refused(reason.value.sentence)
