"""The player's line to a conductor: dial, say Hello, keep beating, and dial again when it is gone.

Reconnecting is our own: a connection counts only when Welcome has come, because in TLS 1.3 a rejected client first
believes that it is connected. What is said over the line is the player service's.
"""

import itertools
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final, Protocol

from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.interfaces import IAddress, IDelayedCall, IHandshakeListener, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from orchestra.audience.node import Reach
from orchestra.model import Hello, Perform, Welcome
from orchestra.security.contexts import ClientCredentials, explain
from orchestra.settings import ConductorAddress
from orchestra.wire import commands
from orchestra.wire.peer import CLOSED, Peer
from orchestra.wire.tls import Dial

GREETING: Final = 45.0  # seconds from TCP to Welcome
DIALLING: Final = 15
CAP: Final = 16 << 20
FIRST_SPREAD: Final = 5.0


class Listener(Protocol):
    """What hears the conductor."""

    def hello(self) -> Hello: ...
    async def welcomed(self, line: "Line", welcome: Welcome) -> None: ...
    async def perform(self, line: "Line", perform: Perform) -> None: ...
    async def cancel(self, seqs: list[int]) -> None: ...
    def disconnected(self, line: "Line") -> None: ...


@implementer(IHandshakeListener)
class Line(Peer):
    """One connection to a conductor. ``epoch`` is 0 until Welcome."""

    def __init__(self, clock: Any, listener: Listener, beat: float, gone: Callable[["Line", Failure], None]) -> None:
        handlers = (
            (commands.WELCOME, self._welcome),
            (commands.PERFORM, self._perform),
            (commands.CANCEL, self._cancel),
            (commands.BEAT, self._beat_of_theirs),
            (commands.DISMISS, self._dismissed),
        )
        super().__init__(clock, handlers, CAP)
        self.epoch = 0
        self.spread = FIRST_SPREAD
        self.dismissal: commands.Dismissal | None = None
        self._listener = listener
        self._beat = beat
        self._gone = gone
        self._deadline: IDelayedCall | None = None
        self._heart: LoopingCall | None = None

    def describe(self) -> str:
        return f"the conductor at {super().describe()}"

    def connectionMade(self) -> None:
        """The conductor has this long to welcome us."""
        super().connectionMade()
        self._deadline = self.clock.callLater(GREETING, self.abort)

    def handshakeCompleted(self) -> None:
        """Introduce ourselves. Whether the conductor likes our certificate we learn from its answer."""
        self.say(commands.HELLO, self._listener.hello()).addErrback(self._unanswered)

    def _unanswered(self, failure: Failure) -> None:
        if not self.closed:
            self.hang_up()

    async def _welcome(self, welcome: Welcome) -> None:
        self.spread = welcome.spread
        await self._listener.welcomed(self, welcome)
        self.epoch = welcome.epoch
        self._no_deadline()
        self._heart = LoopingCall(self._say_beat)
        self._heart.clock = self.clock
        self._heart.start(self._beat, now=False)

    def _say_beat(self) -> None:
        self.say(commands.BEAT, self.epoch).addErrback(lambda _: None)
        if self.clock.seconds() - self.last_answer > 3 * self._beat:
            self.log.warn("{peer} was silent for {seconds} s: left", peer=self.describe(), seconds=3 * self._beat)
            self.abort()

    async def _perform(self, perform: Perform) -> None:
        await self._listener.perform(self, perform)

    async def _cancel(self, seqs: list[int]) -> None:
        await self._listener.cancel(seqs)

    async def _beat_of_theirs(self, _: int) -> None:
        """Answering is all that is wanted."""

    async def _dismissed(self, dismissal: commands.Dismissal) -> None:
        self.dismissal = dismissal
        self.hang_up()

    def _no_deadline(self) -> None:
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()

    def connectionLost(self, reason: Failure = CLOSED) -> None:
        self._no_deadline()
        if self._heart is not None and self._heart.running:
            self._heart.stop()
        super().connectionLost(reason)
        self._listener.disconnected(self)
        self._gone(self, reason)


def over_tls(reactor: Any, address: ConductorAddress, tls: ClientCredentials) -> IStreamClientEndpoint:
    """The way to a conductor: TCP, and TLS that accepts only who bears the conductor's name."""
    return Dial(tls.options(address.name), _over_tcp(reactor, address.address, address.port))


def _over_tcp(reactor: Any, host: str, port: int) -> IStreamClientEndpoint:
    # an address needs no resolver, which is a thread
    if isIPAddress(host):
        return TCP4ClientEndpoint(reactor, host, port, DIALLING)
    if isIPv6Address(host):
        return TCP6ClientEndpoint(reactor, host, port, DIALLING)
    return HostnameEndpoint(reactor, host.encode("idna"), port, timeout=DIALLING)


class _Only(Factory):
    """Makes the protocol of one line, and writes no log lines about that."""

    noisy = False

    def __init__(self, line: Line) -> None:
        self._line = line

    def buildProtocol(self, addr: IAddress | None) -> Line:
        return self._line


class Connector:
    """Keeps one line up, to whichever conductor answers."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        addresses: Sequence[ConductorAddress],
        tls: ClientCredentials,
        listener: Listener,
        beat: float,
        random: Random,
        endpoint: Callable[[Any, ConductorAddress, ClientCredentials], IStreamClientEndpoint] | None = None,
    ) -> None:
        """``endpoint`` says how an address is dialled: over TLS, if nothing else is asked for."""
        self._reactor = reactor
        self._addresses = itertools.cycle(addresses)
        self._address = next(self._addresses)
        self._tls = tls
        self._listener = listener
        self._beat = beat
        self._random = random
        self._endpoint = endpoint or over_tls
        self._spread = FIRST_SPREAD
        self._failures = 0
        self._said = ""
        self._why = ""  # the last connection ended, or did not come about
        self._at_once = False
        self._waiting: IDelayedCall | None = None
        self._dialling: Deferred[Any] | None = None
        self._line: Line | None = None
        self._running = False

    def start(self) -> None:
        """Dial now, and again for ever."""
        if not self._running:
            self._running = True
            self._dial()

    def stop(self) -> None:
        """Let go; nothing is dialled any more."""
        self._running = False
        if self._waiting is not None and self._waiting.active():
            self._waiting.cancel()
        if self._dialling is not None:
            self._dialling.cancel()
        elif self._line is not None:
            self._line.abort()

    def again(self) -> None:
        """Dial now if we are waiting: the configuration has changed, say."""
        if self._waiting is not None and self._waiting.active():
            self._waiting.reset(0)

    def anew(self) -> None:
        """Introduce ourselves anew, at once: what we say of ourselves has changed."""
        if self._line is not None and self._dialling is None:  # one that is still dialled has said nothing yet
            self._at_once = True
            self._line.hang_up()
        self.again()

    @property
    def reach(self) -> Reach:
        """Where the conductor is; since when the line is up is known to who uses it."""
        if self._line is not None and self._line.epoch:
            return Reach(conductor=f"{self._address.name}, {self._line.describe()}")
        if not self._running:
            return Reach(conductor=self._address.name, problem="it is not tried before the stage has answered")
        if self._waiting is not None and self._waiting.active():
            left = max(0.0, self._waiting.getTime() - self._reactor.seconds())
            return Reach(conductor=self._address.name, problem=self._why, next_try=left)
        return Reach(conductor=self._address.name, problem=self._why or "being tried for the first time")

    def _dial(self) -> None:
        address = self._address
        line = Line(self._reactor, self._listener, self._beat, self._gone)
        self._line = line
        endpoint = self._endpoint(self._reactor, address, self._tls)
        self._dialling = endpoint.connect(_Only(line))
        self._dialling.addBoth(self._dialled).addErrback(self._not_connected)

    def _dialled(self, result: Any) -> Any:
        self._dialling = None
        return result

    def _not_connected(self, failure: Failure) -> None:
        self._again(explain(failure, self._tls.credentials), welcomed=False, retry_after=0.0)

    def _gone(self, line: Line, reason: Failure) -> None:
        welcomed = line.epoch > 0
        self._spread = line.spread if welcomed else self._spread
        if line.dismissal is not None:
            self._again(line.dismissal.reason, welcomed=welcomed, retry_after=line.dismissal.retry_after)
        else:
            self._again(explain(reason, self._tls.credentials), welcomed=welcomed, retry_after=0.0)

    def _again(self, why: str, *, welcomed: bool, retry_after: float) -> None:
        self._line, self._why = None, why
        if not self._running:
            return
        self._failures = 0 if welcomed else self._failures + 1
        most = self._spread if welcomed else min(2 * self._spread, 2.0**self._failures)
        delay = self._random.uniform(retry_after / 2, retry_after) if retry_after else self._random.uniform(0, most)
        if self._at_once:
            self._at_once, delay = False, 0.0
        name = self._address.name
        self._address = next(self._addresses)
        if welcomed or why != self._said:
            self.log.warn("not connected to {name}: {why} (trying again)", name=name, why=why)
        self._said = "" if welcomed else why
        self._waiting = self._reactor.callLater(delay, self._dial)
