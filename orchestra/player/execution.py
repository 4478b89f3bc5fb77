"""The life of one run as its player sees it: what the stage says becomes a report, once.

    asked ----begun----> running ----over----> ended
      '-----refused----> ended

A run that is adopted after a restart begins at once. A lost stage ends nothing: the execution is dropped, and
settling with the next stage makes another.
"""

import enum
from collections.abc import Callable

from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from orchestra.errors import NotStarted
from orchestra.model import JournalEntry, Report, Told
from orchestra.player.backstage import Outcome, StageProcess


class Life(enum.Enum):
    """How far a run has come."""

    ASKED = "asked"
    RUNNING = "running"
    ENDED = "ended"


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
        self._started, self._ended, self._alarmed = started, ended, alarmed
        self._life = Life.ASKED
        self._process: StageProcess | None = None

    def makeConnection(self, transport: StageProcess) -> None:
        """It runs on the stage."""
        self._move(Life.ASKED, Life.RUNNING)
        self._process = transport
        if transport.started_at is not None:
            self._started(self._entry, transport.started_at)

    def childDataReceived(self, childFD: int, data: bytes) -> None:
        """The stage worries about it."""
        words = data.decode()
        self.log.error("run {seq} of {score}: {words}", seq=self._entry.seq, score=self._entry.score, words=words)
        self._alarmed(self._entry, words)

    def processEnded(self, reason: Failure) -> None:
        """It is over, or was never begun."""
        if self._process is not None and self._process.outcome is not None:
            self._move(Life.RUNNING, Life.ENDED)
            self._ended(self._process.outcome.report(self._entry))
        elif isinstance(reason.value, NotStarted):
            self._move(Life.ASKED, Life.ENDED)
            self._ended(Outcome(Told.REFUSED, reason.value.sentence).report(self._entry))

    def _move(self, here: Life, there: Life) -> None:
        if self._life is not here:
            raise ValueError(f"run {self._entry.seq} is {self._life.value}, and {there.value} comes after {here.value}")
        self._life = there
