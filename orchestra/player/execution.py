"""The life of one run, as the player sees it: a ProcessProtocol whose process lives on the stage.

asked -> running -> ended, or asked -> ended when the stage refuses to start it. The outcome is the stage's record.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from orchestra.model import JournalEntry, Report, Stream, Told


class Outcome(Struct, frozen=True):
    """What the stage recorded, with the few bytes that came with it."""

    fields: dict[str, Any]
    stdout: bytes
    stderr: bytes

    def report(self, entry: JournalEntry) -> Report:
        """What the conductor is told of ``entry``."""
        said = self.fields
        return Report(
            seq=entry.seq,
            job=entry.job,
            task=entry.task,
            attempt=entry.attempt,
            told=Told(said["told"]),
            reason=said.get("reason", ""),
            rc=said.get("rc"),
            signal=said.get("signal"),
            started_at=said.get("started_at"),
            ended_at=said.get("ended_at"),
            digest=said.get("digest", ""),
            response=said.get("response"),
            stdout=_stream(said["stdout"], self.stdout),
            stderr=_stream(said["stderr"], self.stderr),
            notes=tuple(said.get("notes", ())),
        )


def _stream(said: dict[str, Any], data: bytes) -> Stream:
    spans = tuple((offset, length) for offset, length in said["spans"])
    return Stream(said["total"], said["sha256"], spans, data)


class Execution(ProcessProtocol):
    """Hears of one run, and tells its two listeners: when it is under way, and what became of it."""

    def __init__(
        self,
        entry: JournalEntry,
        started: Callable[[JournalEntry, int], object],
        ended: Callable[[Report], object],
    ) -> None:
        self.entry = entry
        self._started = started
        self._ended = ended
        self.outcome: Outcome | None = None

    def under_way(self, at: int) -> None:
        """It was started, or found running, ``at`` milliseconds since 1970."""
        self._started(self.entry, at)

    def refused(self, reason: str) -> None:
        """It was not started, and will not be."""
        entry = self.entry
        self._ended(Report(entry.seq, entry.job, entry.task, entry.attempt, Told.REFUSED, reason))

    def processEnded(self, reason: Failure) -> None:
        """It is over, and its outcome is known."""
        if self.outcome is not None:
            self._ended(self.outcome.report(self.entry))
