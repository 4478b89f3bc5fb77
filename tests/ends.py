"""Two ends of a line in memory. Nothing is faked but the network, which also remembers what went over it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, globalLogPublisher
from twisted.test.iosim import FakeTransport, connectedServerAndClient

from orchestra.wire.commands import Command
from orchestra.wire.peer import Handler, Peer

P = TypeVar("P", bound=Peer)


class Wire(FakeTransport):
    """One end's transport: all that was written to it, and whether it was cut."""

    def __init__(self, protocol: Any, isServer: bool) -> None:
        super().__init__(protocol, isServer)
        self.written = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data
        super().write(data)

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()


class Ends(Generic[P]):
    """``ours``, the end under test, and ``theirs``, connected over a network that moves when told to."""

    def __init__(self, ours: Callable[[Clock], P], theirs: Callable[[Clock], Peer]) -> None:
        self.clock = Clock()
        self.theirs: Peer
        self.ours: P
        self.theirs, self.ours, self._pump = connectedServerAndClient(
            lambda: ours(self.clock),
            lambda: theirs(self.clock),
            lambda end: Wire(end, isServer=False),
            lambda end: Wire(end, isServer=True),
            clock=self.clock,
        )
        self.wire: Wire = self._pump.serverIO
        self.their_wire: Wire = self._pump.clientIO

    def flush(self) -> None:
        """Carry everything to the other end, and what it causes back again."""
        self._pump.flush()

    def after(self, seconds: float) -> None:
        """Let time pass; then carry everything."""
        self.clock.advance(seconds)
        self.flush()


def pair(*handlers: tuple[Command, Handler], cap: int = 1 << 20) -> Ends[Peer]:
    """Two plain peers; ours hears ``handlers``, and ``cap`` is theirs."""
    return Ends(lambda clock: Peer(clock, handlers, 1 << 20), lambda clock: Peer(clock, (), cap))


class Hearing:
    """A handler that keeps what it hears and returns at once, or when the test says so."""

    def __init__(self, *, slow: bool = False) -> None:
        self.heard: list[Any] = []
        self.under_way: list[Deferred[None]] = []
        self._slow = slow

    async def __call__(self, payload: Any) -> None:
        self.heard.append(payload)
        if self._slow:
            self.under_way.append(Deferred())
            await self.under_way[-1]

    def finish(self) -> None:
        """Let the oldest one under way return."""
        self.under_way.pop(0).callback(None)

    def fail(self, problem: Exception) -> None:
        """Let the oldest one under way raise ``problem``."""
        self.under_way.pop(0).errback(problem)


def ending(deferred: Deferred[Any]) -> list[Any]:
    """What became of ``deferred``: nothing yet, [None], or [the failure]."""
    became: list[Any] = []
    deferred.addBoth(became.append)
    return became


@contextmanager
def complaints() -> Iterator[list[LogEvent]]:
    """Whatever is logged as an error meanwhile."""
    heard: list[LogEvent] = []

    def hear(event: LogEvent) -> None:
        if event["log_level"] >= LogLevel.error:
            heard.append(event)

    globalLogPublisher.addObserver(hear)
    try:
        yield heard
    finally:
        globalLogPublisher.removeObserver(hear)


def box(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A box as it goes over the wire, whatever is in it."""
    words = [word for field in fields for word in field]
    return b"".join(len(word).to_bytes(2, "big") + word for word in words) + b"\0\0"
