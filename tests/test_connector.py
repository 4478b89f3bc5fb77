"""The player's connector while a connection is on its way: it can be told anything then too."""

from random import Random
from typing import Any

import pytest
import pytest_twisted
from ends import ending
from pki import pki
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock

from orchestra.model import Hello, Perform, Welcome
from orchestra.player.line import Connector, Line
from orchestra.security.contexts import ClientCredentials
from orchestra.settings import ConductorAddress


class Player:
    """Who is behind the line; nobody ever gets as far as to talk to it."""

    def hello(self) -> Hello:
        raise NotImplementedError

    async def welcomed(self, line: Line, welcome: Welcome) -> None:
        raise NotImplementedError

    async def perform(self, line: Line, perform: Perform) -> None:
        raise NotImplementedError

    async def cancel(self, seqs: list[int]) -> None:
        raise NotImplementedError

    def disconnected(self, line: Line) -> None:
        pass


class Patient(Random):
    """Waits as long as ever it may, and then some."""

    def uniform(self, a: float, b: float) -> float:
        return 1000.0


class Silent(Protocol):
    """A conductor that says nothing."""

    def connectionMade(self) -> None:
        self.factory.came.callback(None)  # type: ignore[union-attr]

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.left.callback(None)  # type: ignore[union-attr]


class Listening:
    """Somebody who lets one connection in."""

    def __init__(self) -> None:
        self.factory: Any = Factory.forProtocol(Silent)
        self.factory.came, self.factory.left = Deferred(), Deferred()

    async def open(self) -> Connector:
        """A connector whose conductor this is."""
        self.port: Any = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(self.factory)
        address = ConductorAddress("c.example", "127.0.0.1", self.port.getHost().port)
        tls = ClientCredentials(pki().credentials("player", "p1.example"))
        return Connector(reactor, [address], tls, Player(), 30.0, Patient())

    async def close(self) -> None:
        await self.port.stopListening()


@pytest_twisted.ensureDeferred
async def test_who_is_still_dialling_need_not_introduce_itself_anew() -> None:
    """Its Hello is yet to be made; the connection goes on."""
    listening = Listening()
    connector = await listening.open()
    connector.start()
    connector.anew()
    await listening.factory.came.addTimeout(10, reactor)
    connector.stop()
    await listening.factory.left.addTimeout(10, reactor)
    await listening.close()


@pytest_twisted.ensureDeferred
async def test_who_is_connected_introduces_itself_anew_at_once() -> None:
    """The line that it has is left, and another one made without any back-off."""
    listening = Listening()
    connector = await listening.open()
    connector.start()
    await listening.factory.came.addTimeout(10, reactor)
    listening.factory.came = Deferred()
    while connector._dialling is not None:
        await deferLater(reactor, 0)
    connector.anew()
    await listening.factory.left.addTimeout(10, reactor)
    listening.factory.left = Deferred()
    await listening.factory.came.addTimeout(10, reactor)
    connector.stop()
    await listening.factory.left.addTimeout(10, reactor)
    await listening.close()


@pytest_twisted.ensureDeferred
async def test_a_player_can_be_stopped_while_it_is_dialling() -> None:
    """It lets go of the attempt, and makes no other."""
    listening = Listening()
    connector = await listening.open()
    connector.start()
    connector.stop()
    came = ending(listening.factory.came)
    await listening.close()
    assert came == []
    assert connector.reach.next_try is None


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_is_dialled_without_asking_a_resolver(host: str) -> None:
    """That would be a thread; and who has lost its resolver still finds its conductor."""
    memory: Any = MemoryReactorClock()
    tls = ClientCredentials(pki().credentials("player", "p1.example"))
    connector = Connector(memory, [ConductorAddress("c.example", host, 7712)], tls, Player(), 30.0, Patient())
    connector.start()
    assert [(client[0], client[1]) for client in memory.tcpClients] == [(host, 7712)]
    connector.stop()
