"""A fleet of emulated players in one process: each with a certificate of its own, all with one key and one context.

When they dial is the player's own way, but for two things: at the start they are so many a second, and at any time
only so many are between dialling and Welcome. Ten thousand machines have the processors for as many handshakes at once;
one process that is all of them would take too long for each, and then for all of them again.
"""

from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from OpenSSL import SSL
from twisted.internet.defer import Deferred, DeferredSemaphore
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IProtocol,
    IProtocolFactory,
    IStreamClientEndpoint,
)
from twisted.internet.task import LoopingCall
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from orchestra.bench.understudy import Understudy
from orchestra.player.line import Connector
from orchestra.security import credentials
from orchestra.security.authority import Authority
from orchestra.security.contexts import ClientCredentials

STEP: Final = 0.05  # seconds between two handfuls that dial
UNDER_WAY: Final = 100  # most between dialling and Welcome; a conductor takes 500 of one address
TICK: Final = 10.0


class Counts(NamedTuple):
    """A fleet in a few numbers."""

    players: int
    connected: int
    performed: int
    losses: int


class Gate:
    """Lets so many players dial at once; the others wait for their turn."""

    def __init__(self, places: int) -> None:
        self._free = DeferredSemaphore(places)
        self._inside: set[Understudy] = set()

    async def enter(self, player: Understudy) -> None:
        """Wait for a place."""
        await self._free.acquire()
        self._inside.add(player)

    def leave(self, player: Understudy) -> None:
        """Give back a player's place, if it has one."""
        if player in self._inside:
            self._inside.remove(player)
            self._free.release()


@implementer(IStreamClientEndpoint)
class InTurn:
    """Dials as ``endpoint`` does, when the player's turn has come. The place is given back by whoever welcomes it, or
    loses its line."""

    def __init__(self, gate: Gate, player: Understudy, endpoint: IStreamClientEndpoint) -> None:
        self._gate = gate
        self._player = player
        self._endpoint = endpoint

    def connect(self, protocolFactory: IProtocolFactory) -> "Deferred[IProtocol]":
        return Deferred.fromCoroutine(self._connect(protocolFactory))

    async def _connect(self, factory: IProtocolFactory) -> IProtocol:
        await self._gate.enter(self._player)
        try:
            return await self._endpoint.connect(factory)
        except BaseException:
            self._gate.leave(self._player)
            raise


class Fleet:
    """All emulated players of a process, and how many of them are there."""

    def __init__(self, reactor: Any, rate: float, complete: Callable[[float], None]) -> None:
        """``rate``: most that dial per second; ``complete`` is called whenever all are there, with the seconds since
        the first of them dialled, or was lost."""
        self._reactor = reactor
        self._per_step = max(1, round(rate * STEP))
        self._complete = complete
        self._connectors: list[Connector] = []
        self._players: list[Understudy] = []
        self.gate = Gate(UNDER_WAY)
        self._there: set[Understudy] = set()
        self._dialled = 0
        self._performed = 0
        self._losses = 0
        self._since = 0.0
        self._loops: list[LoopingCall] = []

    def add(self, player: Understudy, connector: Connector) -> None:
        """One more, before :meth:`start`."""
        self._players.append(player)
        self._connectors.append(connector)

    @property
    def counts(self) -> Counts:
        return Counts(len(self._players), len(self._there), self._performed, self._losses)

    def start(self) -> None:
        """Have them dial, a handful at a time."""
        self._since = self._reactor.seconds()
        self._loop(STEP, self._dial_some)
        self._loop(TICK, self._tick)

    def stop(self) -> None:
        """Have them leave."""
        for loop in self._loops:
            if loop.running:
                loop.stop()
        for connector in self._connectors:
            connector.stop()

    def _loop(self, seconds: float, work: Callable[[], None]) -> LoopingCall:
        loop = LoopingCall(work)
        loop.clock = self._reactor
        self._loops.append(loop)
        loop.start(seconds)
        return loop

    def _dial_some(self) -> None:
        for connector in self._connectors[self._dialled : self._dialled + self._per_step]:
            self._dialled += 1
            connector.start()
        if self._dialled == len(self._connectors):
            self._loops[0].stop()

    def _tick(self) -> None:
        for player in self._players:
            player.tick()

    # ---- the players tell

    def entered(self, player: Understudy) -> None:
        """A player was welcomed."""
        self.gate.leave(player)
        self._there.add(player)
        if len(self._there) == len(self._players):
            self._complete(self._reactor.seconds() - self._since)

    def left(self, player: Understudy) -> None:
        """A player has lost its line, welcomed or not."""
        self.gate.leave(player)
        if player not in self._there:
            return
        if len(self._there) == len(self._players):
            self._since = self._reactor.seconds()
        self._there.discard(player)
        self._losses += 1

    def performed(self, many: int) -> None:
        """So many runs have begun."""
        self._performed += many


# ---- who they are


def names(prefix: str, many: int, domain: str) -> list[str]:
    """What emulated players are called: ``e00001.example.com`` and so on."""
    width = max(5, len(str(many)))
    return [f"{prefix}{number:0{width}d}.{domain}" for number in range(1, many + 1)]


@implementer(IOpenSSLClientConnectionCreator)
class _Dressed:
    """Connects with a certificate of its own on a context that others use too, whose key is that of all."""

    def __init__(self, shared: IOpenSSLClientConnectionCreator, certificate: x509.Certificate) -> None:
        self._shared = shared
        self._certificate = certificate

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection: SSL.Connection = self._shared.clientConnectionForTLS(tlsProtocol)
        connection.use_certificate(self._certificate)
        return connection


class Costume(ClientCredentials):
    """One emulated player's credentials: what all have, but for the certificate. ``replace`` is not for it."""

    def __init__(self, shared: ClientCredentials, certificate: x509.Certificate) -> None:
        self.credentials = shared.credentials
        self._shared = shared
        self._certificate = certificate

    def options(self, conductor_name: str) -> IOpenSSLClientConnectionCreator:
        """What connects to the conductor called ``conductor_name``, as this player."""
        return _Dressed(self._shared.options(conductor_name), self._certificate)


def costumes(authority: Authority, players: Sequence[str]) -> list[Costume]:
    """Credentials for each of ``players``, issued now: certificates of their own, one key for all."""
    with TemporaryDirectory(prefix="orchestra-emulate-") as place:
        issued = authority.issue("player", [players[0]], out=place)
        files = str(issued.certificate), str(issued.key), str(issued.ca)
        shared = ClientCredentials(credentials.load(*files, None, "player"))
    key = shared.credentials.key
    assert isinstance(key, EllipticCurvePrivateKey)
    rest = authority.issue_many("player", players[1:], key.public_key())
    return [Costume(shared, each) for each in (shared.credentials.certificate, *rest)]
