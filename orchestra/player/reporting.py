"""Outcomes on their way to the conductor: batched, one batch unanswered at a time, long output ahead of its report.

Only what the journal holds on disk is handed in here. What was not answered when the line went down is handed in
again after the next Welcome; nothing is kept beyond a connection.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

from msgspec.structs import replace
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.logger import Logger
from twisted.python.failure import Failure

from orchestra.core.worklist import output_is_apart
from orchestra.errors import NotSaved, OutputGone
from orchestra.model import Piece, Report
from orchestra.player.line import Line
from orchestra.wire import commands
from orchestra.wire.batches import portion

PIECE: Final = 32 * 1024
WINDOW: Final = 4  # pieces unanswered at once
MOST: Final = 500  # reports looked at for one batch
RETRY: Final = 5.0

Fetch = Callable[[int, int, int, int], Awaitable[bytes]]
"""(seq, stream, offset, size) -> bytes of a kept span, from the stage."""


class Reporter:
    """Reports over one line after another."""

    log = Logger()

    def __init__(self, clock: Any, fetch: Fetch, answered: Callable[[list[int]], object]) -> None:
        self._clock = clock
        self._fetch = fetch
        self._answered = answered
        self._line: Line | None = None
        self._queue: dict[int, Report] = {}
        self._ahead: set[int] = set()  # reports whose output is being sent
        self._in_flight: set[int] = set()
        self._flush: Any = None

    def connected(self, line: Line) -> None:
        """Report over ``line`` from now on; everything unanswered is handed in anew."""
        self.disconnected()
        self._line = line

    def disconnected(self) -> None:
        """Forget what was on its way."""
        self._line = None
        self._queue, self._ahead, self._in_flight = {}, set(), set()
        if self._flush is not None and self._flush.active():
            self._flush.cancel()

    def add(self, reports: Iterable[Report]) -> None:
        """Send these; without a line they wait in the journal."""
        line = self._line
        if line is None:
            return
        for report in reports:
            if report.seq in self._in_flight or report.seq in self._ahead:
                continue
            if output_is_apart(report):
                self._ahead.add(report.seq)
                Deferred.fromCoroutine(self._send_ahead(line, report)).addErrback(self._ahead_failed, line, report)
            else:
                self._queue[report.seq] = report
        self._soon(0)

    def _soon(self, seconds: float) -> None:
        if self._queue and (self._flush is None or not self._flush.active()):
            self._flush = self._clock.callLater(seconds, self._send)

    def _send(self) -> None:
        line = self._line
        if line is None or self._in_flight or not self._queue:
            return
        some = [report for report, _ in zip(self._queue.values(), range(MOST), strict=False)]
        some = some[: portion(some)]
        self._in_flight = {report.seq for report in some}
        for report in some:
            del self._queue[report.seq]
        said = line.say(commands.REPORT, some, at_once=True)
        said.addCallbacks(self._taken, self._not_taken, (line, some), {}, (line, some), {})

    def _taken(self, _: None, line: Line, reports: list[Report]) -> None:
        if line is self._line:
            self._in_flight = set()
            self._answered([report.seq for report in reports])
            self._send()

    def _not_taken(self, failure: Failure, line: Line, reports: list[Report]) -> None:
        if line is not self._line:
            return
        self._in_flight = set()
        if failure.check(NotSaved):
            self._queue.update((report.seq, report) for report in reports)
            self._soon(RETRY)
        elif not line.closed:
            self.log.error("the conductor did not take our reports: {reason}", reason=failure.value)
            line.hang_up()

    # ---- long output

    async def _send_ahead(self, line: Line, report: Report) -> None:
        try:
            await self._send_pieces(line, report)
        except OutputGone:
            nothing = {name: replace(getattr(report, name), spans=()) for name in ("stdout", "stderr")}
            report = replace(report, **nothing, notes=(*report.notes, "its output was lost on the player"))
        if line is self._line:
            self._ahead.discard(report.seq)
            self._queue[report.seq] = report
            self._soon(0)

    async def _send_pieces(self, line: Line, report: Report) -> None:
        window = DeferredSemaphore(WINDOW)
        failures: list[Failure] = []
        for number, offset, size in _pieces(report):
            await window.acquire()
            if failures:
                break
            data = await self._fetch(report.seq, number, offset, size)
            said = line.say(commands.OUTPUT, [Piece(report.seq, report.attempt, number, offset, data)])
            said.addErrback(failures.append).addBoth(_release, window)
        else:
            for _ in range(WINDOW):  # all of them back: every piece is answered
                await window.acquire()
        if failures:
            failures[0].raiseException()

    def _ahead_failed(self, failure: Failure, line: Line, report: Report) -> None:
        if line is not self._line or line.closed:
            return
        self._ahead.discard(report.seq)
        self.log.error("output of run {seq} could not be sent: {reason}", seq=report.seq, reason=failure.value)
        self._clock.callLater(RETRY, self._retry, line, report)

    def _retry(self, line: Line, report: Report) -> None:
        if line is self._line:
            self.add([report])


def _pieces(report: Report) -> Iterator[tuple[int, int, int]]:
    """(stream, offset, size) of all the kept output that the report does not carry."""
    for number, stream in ((1, report.stdout), (2, report.stderr)):
        for offset, size in () if stream.data else stream.spans:
            for at in range(0, size, PIECE):
                yield number, offset + at, min(PIECE, size - at)


def _release(result: Any, window: DeferredSemaphore) -> Any:
    window.release()
    return result
