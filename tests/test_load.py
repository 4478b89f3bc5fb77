"""When too much comes at once, it is slowed or turned away, and the rest goes on: storms of players, floods of requests."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_twisted
from ends import Ends, Hearing
from pki import pki
from test_dispatch import UPTIME, WEB1, House
from test_perspective import Line as Guest
from test_perspective import dial
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, gatherResults, succeed
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from zope.interface import implementer

from orchestra.audience import envelope, seat
from orchestra.audience.port import SeatPort
from orchestra.audience.seat import Method, Nothing, Plain, seat_port
from orchestra.conductor.door import Limits, Porch
from orchestra.model import Hello, Perform, Welcome
from orchestra.player.line import Connector, Line
from orchestra.security.contexts import ClientCredentials, ServerCredentials
from orchestra.settings import ConductorAddress
from orchestra.wire import commands
from orchestra.wire.peer import CLOSED, Peer

READ = 65_536  # bytes that Twisted takes from a socket at a time

# ---- all players at once


@pytest.mark.parametrize(("players", "spread"), [(2, 5.0), (3000, 5.0), (10_000, 10_000 / 600), (60_000, 100.0)])
def test_a_welcome_says_over_how_long_a_fleet_of_this_size_spreads_its_return(players: int, spread: float) -> None:
    """Six hundred a second, whatever the size."""
    house = House()
    house.dispatch.ids = {f"web-{number}": number for number in range(1, players + 1)}
    one = house.player(WEB1)
    one.arrive(UPTIME)
    assert one.welcomes.heard[0].spread == pytest.approx(spread)


class Player:
    """Who is behind a line."""

    def hello(self) -> Hello:
        return Hello(protocol=1, version="1", journal="j", boot="b", high=0, slots=1, catalogue="")

    async def welcomed(self, line: Line, welcome: Welcome) -> None:
        pass

    async def perform(self, line: Line, perform: Perform) -> None:
        pass

    async def cancel(self, seqs: list[int]) -> None:
        pass

    def disconnected(self, line: Line) -> None:
        pass


class Dice(Random):
    """Always falls on the highest number, and remembers between which it was asked to fall."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[float, float]] = []

    def uniform(self, a: float, b: float) -> float:
        self.asked.append((a, b))
        return b


@implementer(IStreamClientEndpoint)
class Network:
    """Reaches a conductor while there is one."""

    def __init__(self) -> None:
        self.up = True
        self.ends: Ends[Line]

    def connect(self, factory: Any) -> "Deferred[Any]":
        if not self.up:
            return fail(ConnectionRefusedError())
        line = factory.buildProtocol(None)
        self.ends = Ends(lambda _: line, lambda clock: Peer(clock, ((commands.HELLO, Hearing()),), 1 << 20))
        return succeed(line)


def test_who_loses_the_conductor_comes_back_somewhen_within_the_spread_and_then_backs_off() -> None:
    """Anywhere in it, so that a fleet arrives evenly; never later than twice as long."""
    clock, dice, network = Clock(), Dice(), Network()
    address = ConductorAddress("c.example", "127.0.0.1", 1)
    tls = ClientCredentials(pki().credentials("player", "p1.example"))
    connector = Connector(clock, [address], tls, Player(), 30.0, dice, lambda *_: network)
    connector.start()
    network.ends.ours.handshakeCompleted()
    network.ends.theirs.say(commands.WELCOME, Welcome(1, 1, 40.0, (), ())).addErrback(lambda _: None)
    network.ends.flush()
    network.up = False
    network.ends.theirs.abort()
    network.ends.flush()
    assert dice.asked == [(0, 40.0)]
    for _ in range(8):
        clock.advance(dice.asked[-1][1])
    assert [most for _, most in dice.asked] == [40.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 80.0, 80.0]
    connector.stop()


class Storm:
    """Connections that want in, of whom nobody finishes a handshake."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        credentials = ServerCredentials(pki().credentials("conductor", "c.example"))
        self.porch = Porch(self.clock, credentials, House().dispatch, Limits(**limits))

    def dial(self, host: str) -> Any:
        """Its end at the conductor, or None if it was closed at once."""
        protocol = self.porch.buildProtocol(IPv4Address("TCP", host, 1))
        if protocol is not None:
            protocol.makeConnection(StringTransport())
        return protocol


def test_so_many_handshakes_are_under_way_at_once() -> None:
    """In all and from one address; what is beyond that costs nothing, and a place that is free again is given away."""
    storm = Storm(handshakes=5, per_address=2)
    inside = [storm.dial(host) for host in ("10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3")]
    assert None not in inside
    assert storm.dial("10.0.0.1") is None
    assert storm.dial("10.0.0.4") is not None
    assert storm.dial("10.0.0.5") is None
    inside[0].connectionLost(CLOSED)
    assert storm.dial("10.0.0.1") is not None
    assert storm.dial("10.0.0.5") is None


def test_a_handshake_that_takes_too_long_is_cut_off() -> None:
    """Its place is needed."""
    storm = Storm(handshake=10.0)
    connection = storm.dial("10.0.0.1")
    storm.clock.advance(9.9)
    assert not connection.transport.disconnected
    storm.clock.advance(0.2)
    assert connection.transport.disconnected


# ---- a flood of requests


class Counter:
    """A seat whose one request is answered when the test says so, with ``size`` bytes."""

    def __init__(self, tmp_path: Path) -> None:
        self.waiting: list[Deferred[None]] = []
        self.heard = 0
        self.most = 0
        self.slow = True
        self.size = 0
        self.path = str(tmp_path / "s.pb")
        table = {"count": Method(Nothing, self._count)}
        port = seat_port(reactor, self.path, lambda guest: Plain(table))
        assert isinstance(port, SeatPort)
        self.port = port
        self.door: Any = port._door

    async def _count(self, _: Nothing, __: object) -> bytes:
        self.heard += 1
        if self.slow:
            self.waiting.append(Deferred())
            self.most = max(self.most, len(self.waiting))
            await self.waiting[-1]
        return bytes(self.size)

    def answer(self) -> None:
        waiting, self.waiting = self.waiting, []
        for one in waiting:
            one.callback(None)

    @property
    def reading(self) -> bool:
        """Whether the one guest's requests are read."""
        [broker] = self.door._house.brokers
        return broker.transport in reactor.getReaders()  # type: ignore[attr-defined]  # every real reactor has it

    async def until(self, done: Callable[[], bool]) -> None:
        while not done():
            await deferLater(reactor, 0)


@pytest_twisted.async_yield_fixture
async def counter(tmp_path: Path) -> Any:
    counter = Counter(tmp_path)
    counter.port.startService()
    yield counter
    await counter.port.stopService()


def ask(guest: Guest, many: int) -> "list[Deferred[Any]]":
    return [guest.root.callRemote("count", envelope.pack({})).addTimeout(30, reactor) for _ in range(many)]


async def all_of(answers: "list[Awaitable[Any]]") -> list[Any]:
    found: list[Any] = await gatherResults(answers, consumeErrors=True)  # type: ignore[arg-type]
    return found


async def test_a_flood_is_slowed_and_none_of_it_is_refused(counter: Counter) -> None:
    """While enough requests wait, no more are read: they stay with whoever sends them, and are answered in turn."""
    guest = await dial(counter.path)
    answers = ask(guest, 5_000)
    await counter.until(lambda: counter.heard >= seat.MAX_CALLS and not counter.reading)
    while counter.heard < 5_000:
        counter.answer()
        await deferLater(reactor, 0)
    counter.answer()
    assert {answer[0] for answer in await all_of(answers)} == {"OK"}
    assert counter.most <= seat.MAX_CALLS + READ // 32  # no request is smaller
    assert counter.reading
    await guest.hang_up()


async def test_what_one_read_brings_too_much_of_is_refused(counter: Counter, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is an end to what is kept for one connection."""
    monkeypatch.setattr(seat, "MOST_CALLS", 10)
    guest = await dial(counter.path)
    answers = ask(guest, 12)
    await counter.until(lambda: counter.heard == 10)
    refused = await all_of(answers[10:])
    assert [answer[0] for answer in refused] == ["TOO_MANY"] * 2
    counter.answer()
    assert [answer[0] for answer in await all_of(answers[:10])] == ["OK"] * 10
    await guest.hang_up()


async def test_who_does_not_read_its_answers_is_not_read_from_and_others_are(counter: Counter) -> None:
    """Until it reads again: then everything is answered."""
    counter.slow, counter.size = False, 200_000
    guest = await dial(counter.path)
    guest.root.broker.transport.pauseProducing()
    answers = ask(guest, 2_000)
    await counter.until(lambda: not counter.reading)
    assert counter.heard < 1_900
    other = await dial(counter.path)
    counter.size = 0
    assert (await other.ask("count", {}))[0] == "OK"
    await other.hang_up()
    guest.root.broker.transport.resumeProducing()
    assert {answer[0] for answer in await all_of(answers)} == {"OK"}
    await guest.hang_up()
