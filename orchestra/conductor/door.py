"""One player's connection, on the conductor's side; and the porch where connections wait for their handshake.

A door knows who is there (from the verified certificate alone) and how long it may take. What is said and heard is
handed to the dispatch; the door only keeps the connection honest.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from cryptography.x509 import Certificate
from twisted.internet.interfaces import IAddress, IDelayedCall, IHandshakeListener, IReactorTime
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from orchestra.core.scheduler import Session
from orchestra.errors import OrchestraError
from orchestra.model import Announce, Hello, Piece, Report, Started
from orchestra.security.contexts import ServerCredentials, peer_certificate
from orchestra.security.names import player_name
from orchestra.wire import commands
from orchestra.wire.peer import CLOSED, Peer, Word
from orchestra.wire.tls import over_tls

NOT_LISTED: Final = "is not in the conductor's players file"


class NotThere(Exception):
    """A player has said something and cannot be reached."""


class Limits(NamedTuple):
    """How long and how much a connection may take. Times in seconds, sizes in bytes."""

    handshake: float = 10.0
    hello: float = 30.0
    handshakes: int = 2000
    per_address: int = 1000
    queue: int = 8 << 20


class Dispatch(Protocol):
    """What a door hands things to."""

    def player_id(self, name: str) -> int | None: ...
    async def hello(self, door: "Door", hello: Hello) -> None: ...
    async def announce(self, door: "Door", announce: Announce) -> None: ...
    async def report(self, door: "Door", reports: list[Report]) -> None: ...
    async def output(self, door: "Door", pieces: list[Piece]) -> None: ...
    def progress(self, door: "Door", started: list[Started]) -> None: ...
    def left(self, door: "Door") -> None: ...


@implementer(IHandshakeListener)
class Door(Peer):
    """The connection of one player; ``session`` exists from its Hello on."""

    __slots__ = ("_deadline", "_dispatch", "_inside", "_limits", "address", "name", "player", "session")

    def __init__(self, clock: IReactorTime, dispatch: Dispatch, limits: Limits, inside: Callable[[], None]) -> None:
        """``inside`` is called once: the handshake is over, one way or the other."""
        super().__init__(clock, (), limits.queue)
        self.name = ""
        self.player: int | None = None
        self.address = ""
        self.session: Session | None = None
        self._dispatch = dispatch
        self._limits = limits
        self._inside: Callable[[], None] | None = inside
        self._deadline: IDelayedCall | None = None

    def describe(self) -> str:
        """Who is at the other end, for the log."""
        return f"{self.name or 'somebody'} at {self.address or super().describe()}"

    @property
    def certificate(self) -> Certificate:
        """The player's certificate, while it is connected. OpenSSL has it; kept here it would be 4 kB more."""
        return peer_certificate(self.transport)

    # ---- the connection

    def connectionMade(self) -> None:
        """The handshake may take this long."""
        super().connectionMade()
        self.address = super().describe()
        self._within(self._limits.handshake, "did not finish its TLS handshake")

    def handshakeCompleted(self) -> None:
        """We know who it is; Hello may take this long."""
        self._leave_porch()
        self._within(self._limits.hello, "did not say Hello")
        try:
            self.name = player_name(self.certificate)
        except OrchestraError as problem:
            self.dismiss(str(problem), 600.0)
            return
        self.player = self._dispatch.player_id(self.name)
        if self.player is None:
            self.dismiss(f"{self.name} {NOT_LISTED}", 15.0)

    async def is_there(self) -> None:
        """Return when the player has answered something; :class:`NotThere` if the connection ends without that."""
        try:
            await self.say(commands.BEAT, 0)
        except Exception:  # noqa: BLE001 - whatever it is, nobody has answered
            raise NotThere from None

    def dismiss(self, reason: str, retry_after: float) -> None:
        """Say why we will not talk on, and close."""
        self.log.warn("{peer} is turned away: {reason}", peer=self.describe(), reason=reason)
        self.say(commands.DISMISS, commands.Dismissal(reason, retry_after)).addErrback(lambda _: None)
        self.hang_up()

    def connectionLost(self, reason: Failure = CLOSED) -> None:
        """Whoever it was has left."""
        self._leave_porch()
        self._no_deadline()
        if not self.name:
            self.log.debug("{peer} left before it was known: {reason}", peer=self.describe(), reason=reason.value)
        super().connectionLost(reason)
        self._dispatch.left(self)

    def _leave_porch(self) -> None:
        inside, self._inside = self._inside, None
        if inside is not None:
            inside()

    def _within(self, seconds: float, failing: str) -> None:
        self._no_deadline()
        self._deadline = self.clock.callLater(seconds, self._too_slow, failing, seconds)

    def _no_deadline(self) -> None:
        deadline, self._deadline = self._deadline, None
        if deadline is not None and deadline.active():
            deadline.cancel()

    def _too_slow(self, failing: str, seconds: float) -> None:
        self.log.warn(
            "{peer} {failing} within {seconds} s: cut off", peer=self.describe(), failing=failing, seconds=seconds
        )
        self.abort()

    # ---- what the player says

    def word(self, name: bytes) -> Word | None:
        """Looked up in one table for all doors: one of its own would be a kilobyte for each."""
        command, handler = _WORDS.get(name, (None, ""))
        return Word(command, getattr(self, handler)) if command else None

    async def _hello(self, hello: Hello) -> None:
        if self.hanging_up:
            return  # an abort now could overtake the reason on its way
        if self.player is None or self.session is not None:
            self.abort()
            return
        await self._dispatch.hello(self, hello)
        self._no_deadline()

    async def _announce(self, announce: Announce) -> None:
        if self._known():
            await self._dispatch.announce(self, announce)

    async def _report(self, reports: list[Report]) -> None:
        if self._known():
            await self._dispatch.report(self, reports)

    async def _output(self, pieces: list[Piece]) -> None:
        if self._known():
            await self._dispatch.output(self, pieces)

    async def _progress(self, started: list[Started]) -> None:
        if self._known():
            self._dispatch.progress(self, started)

    async def _beat(self, epoch: int) -> None:
        if self._known() and self.session is not None and self.session.epoch != epoch:
            self.abort()

    def _known(self) -> bool:
        """Whether it has introduced itself; who has not and speaks all the same is cut off."""
        if self.session is None and not self.hanging_up:
            self.abort()
        return self.session is not None


_WORDS: Final[dict[bytes, tuple[commands.Command, str]]] = {
    command.name: (command, handler)
    for command, handler in (
        (commands.HELLO, "_hello"),
        (commands.ANNOUNCE, "_announce"),
        (commands.REPORT, "_report"),
        (commands.OUTPUT, "_output"),
        (commands.PROGRESS, "_progress"),
        (commands.BEAT, "_beat"),
    )
}


class Porch(Factory):
    """Lets connections in, so many unfinished handshakes at a time, in total and per address."""

    def __init__(self, clock: IReactorTime, credentials: ServerCredentials, dispatch: Dispatch, limits: Limits) -> None:
        self._waiting: Counter[str] = Counter()
        self._total = 0
        self._limits = limits
        doors = _Doors(clock, dispatch, limits, self)
        self._tls = over_tls(credentials, False, doors)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """A new connection's protocol, or None: then it is closed at once."""
        host = str(getattr(addr, "host", ""))
        if self._total >= self._limits.handshakes or self._waiting[host] >= self._limits.per_address:
            return None
        self._waiting[host] += 1
        self._total += 1
        return self._tls.buildProtocol(addr)

    def inside(self, host: str) -> None:
        """A handshake from ``host`` is over."""
        self._total -= 1
        self._waiting[host] -= 1
        if not self._waiting[host]:
            del self._waiting[host]

    def doStart(self) -> None:
        self._tls.doStart()

    def doStop(self) -> None:
        self._tls.doStop()


class _Doors(Factory):
    noisy = False

    def __init__(self, clock: IReactorTime, dispatch: Dispatch, limits: Limits, porch: Porch) -> None:
        self._clock = clock
        self._dispatch = dispatch
        self._limits = limits
        self._porch = porch

    def buildProtocol(self, addr: IAddress | None) -> Any:
        host = str(getattr(addr, "host", ""))
        door = Door(self._clock, self._dispatch, self._limits, lambda: self._porch.inside(host))
        door.factory = self
        return door
