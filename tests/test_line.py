"""A player's way to its conductor: dialling, and letting go at any moment of it."""

from random import Random
from typing import Any, cast

from pki import pki
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from orchestra.player.line import Connector
from orchestra.security.contexts import ClientCredentials
from orchestra.settings import ConductorAddress


class Dials:
    """Every dial, and whether it was given up."""

    def __init__(self) -> None:
        self.under_way: list[Deferred[Any]] = []
        self.given_up = 0

    def connect(self, factory: object) -> "Deferred[Any]":
        dial: Deferred[Any] = Deferred(self._give_up)
        self.under_way.append(dial)
        return dial

    def _give_up(self, _: object) -> None:
        self.given_up += 1


def test_a_player_that_stops_while_it_dials_gives_the_dial_up() -> None:
    """There is no connection yet that could be cut; nothing is dialled afterwards."""
    clock, dials = Clock(), Dials()
    tls = ClientCredentials(pki().credentials("player", "p1.example"))
    addresses = [ConductorAddress("c.example", "127.0.0.1", 1)]
    connector = Connector(clock, addresses, tls, cast(Any, None), 30.0, Random(1), lambda *_: cast(Any, dials))
    connector.start()
    connector.stop()
    assert (len(dials.under_way), dials.given_up) == (1, 1)
    assert clock.getDelayedCalls() == []
