"""The drill's proxy on a network in memory: what it passes on, what it holds, what it cuts, and that it says so to nobody."""

import pytest
from twisted.internet.error import ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from orchestra.drill.proxy import End, Gate, Mode

PORT = 2258
DELAY = 0.1


class Socket(StringTransport):
    """A transport that remembers how it was closed; closing it is told to its protocol when :meth:`gone` is called."""

    def __init__(self, end: End) -> None:
        super().__init__()
        self.end = end
        self.closed = ""

    def loseConnection(self) -> None:
        self.closed = self.closed or "closed"

    def abortConnection(self) -> None:
        self.closed = self.closed or "cut"
        self.gone()

    def gone(self, reason: Failure = connectionDone) -> None:
        """The other machine, or we, have ended it."""
        self.end.connectionLost(reason)

    def setTcpNoDelay(self, enabled: bool) -> None:
        pass


class Network:
    """A gate, and both machines on either side of it."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.gate = Gate(self.reactor, PORT, DELAY)
        self.gate.open()

    def player(self) -> Socket:
        """A player connects."""
        return self._connected(self.reactor.tcpServers[-1][1].buildProtocol(None))

    def conductor(self) -> Socket:
        """The conductor takes the next connection that the proxy makes."""
        host, port, factory, *_ = self.reactor.tcpClients.pop(0)
        assert (host, port) == ("127.0.0.1", PORT)
        return self._connected(factory.buildProtocol(None))

    def no_conductor(self) -> None:
        """Its port is closed."""
        factory = self.reactor.tcpClients.pop(0)[2]
        factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))

    def pair(self) -> tuple[Socket, Socket]:
        near = self.player()
        return near, self.conductor()

    def _connected(self, end: End) -> Socket:
        socket = Socket(end)
        end.makeConnection(socket)
        return socket


@pytest.fixture
def network() -> Network:
    return Network()


def test_bytes_go_both_ways(network: Network) -> None:
    """A good network, to begin with."""
    near, far = network.pair()
    near.end.dataReceived(b"hello")
    far.end.dataReceived(b"welcome")
    assert (far.value(), near.value()) == (b"hello", b"welcome")


def test_it_listens_on_the_loopback_alone(network: Network) -> None:
    """Nobody else's business."""
    assert network.reactor.tcpServers[0][3] == "127.0.0.1"


def test_what_comes_before_the_conductor_is_reached_is_kept(network: Network) -> None:
    """The player speaks first."""
    near = network.player()
    near.end.dataReceived(b"hel")
    near.end.dataReceived(b"lo")
    assert network.conductor().value() == b"hello"


def test_a_conductor_that_is_down_is_a_cut_line(network: Network) -> None:
    """The player hears of it at once, as it would without a proxy."""
    near = network.player()
    network.no_conductor()
    assert near.closed == "cut"
    assert network.gate.passages == 0


@pytest.mark.parametrize("first", ["near", "far"])
def test_the_end_of_one_side_is_told_to_the_other(network: Network, first: str) -> None:
    """After the last bytes."""
    sides = dict(zip(("near", "far"), network.pair(), strict=True))
    other = sides["far" if first == "near" else "near"]
    sides[first].end.dataReceived(b"bye")
    sides[first].gone(Failure(ConnectionDone()))
    assert (other.value(), other.closed) == (b"bye", "closed")
    other.gone()
    assert network.gate.passages == 0


def test_a_player_that_left_before_the_conductor_was_reached_is_not_waited_for(network: Network) -> None:
    """No half of a passage stays behind."""
    near = network.player()
    near.gone()
    assert network.conductor().closed == "cut"
    assert network.gate.passages == 0


@pytest.mark.parametrize(
    ("mode", "up", "down"),
    [(Mode.STALL, b"", b""), (Mode.STALL_UP, b"", b"down"), (Mode.STALL_DOWN, b"up", b"")],
)
def test_a_stalled_line_holds_what_it_was_told_to_hold(network: Network, mode: Mode, up: bytes, down: bytes) -> None:
    """And delivers it, in order, when it is healed."""
    near, far = network.pair()
    network.gate.behave(mode)
    near.end.dataReceived(b"up")
    far.end.dataReceived(b"down")
    assert (far.value(), near.value()) == (up, down)
    network.gate.heal()
    near.end.dataReceived(b"!")
    assert (far.value(), near.value()) == (b"up!", b"down")


def test_the_end_of_a_player_is_not_told_over_a_stalled_line(network: Network) -> None:
    """So the conductor has a connection that is half open."""
    near, far = network.pair()
    network.gate.behave(Mode.STALL)
    near.end.dataReceived(b"last words")
    near.gone(Failure(ConnectionLost()))
    assert (far.value(), far.closed) == (b"", "")
    network.gate.heal()
    assert (far.value(), far.closed) == (b"last words", "closed")


def test_a_connection_that_comes_to_a_stalled_line_stalls_too(network: Network) -> None:
    """It is accepted, and that is all."""
    network.gate.behave(Mode.STALL)
    near, far = network.pair()
    near.end.dataReceived(b"hello")
    assert (far.value(), near.closed) == (b"", "")
    network.gate.heal()
    assert far.value() == b"hello"


def test_a_black_hole_swallows_and_is_cut_when_it_is_healed(network: Network) -> None:
    """What was thrown away cannot come any more, so nobody may go on over that connection."""
    near, far = network.pair()
    untouched, _ = network.pair()
    network.gate.behave(Mode.BLACKHOLE)
    near.end.dataReceived(b"hello")
    assert (far.value(), near.closed, far.closed) == (b"", "", "")
    network.gate.heal()
    assert (far.value(), near.closed, far.closed) == (b"", "cut", "cut")
    assert untouched.closed == ""


def test_the_end_of_one_side_does_not_come_out_of_a_black_hole(network: Network) -> None:
    """Silence, until it is healed."""
    near, far = network.pair()
    network.gate.behave(Mode.BLACKHOLE)
    near.gone()
    assert far.closed == ""
    network.gate.heal()
    assert far.closed == "closed"


def test_a_slow_line_keeps_the_order(network: Network) -> None:
    """Everything comes late, nothing comes before its turn, and the end comes last."""
    near, far = network.pair()
    network.gate.behave(Mode.DELAY)
    near.end.dataReceived(b"one ")
    network.reactor.advance(DELAY / 2)
    near.end.dataReceived(b"two")
    near.gone()
    assert far.value() == b""
    network.reactor.advance(DELAY / 2)
    assert (far.value(), far.closed) == (b"one ", "")
    network.reactor.advance(DELAY / 2)
    assert (far.value(), far.closed) == (b"one two", "closed")
    assert network.reactor.getDelayedCalls() == []


def test_what_a_slow_line_still_holds_comes_when_it_is_healed(network: Network) -> None:
    """Once."""
    near, far = network.pair()
    network.gate.behave(Mode.DELAY)
    near.end.dataReceived(b"one")
    network.gate.heal()
    network.reactor.advance(DELAY)
    assert far.value() == b"one"


def test_a_cut_resets_both_sides_and_the_next_connection_is_served(network: Network) -> None:
    """As when somebody trips over the cable."""
    near, far = network.pair()
    network.gate.cut()
    assert (near.closed, far.closed, network.gate.passages) == ("cut", "cut", 0)
    near, far = network.pair()
    near.end.dataReceived(b"again")
    assert far.value() == b"again"


def test_a_stale_line_is_there_beside_the_new_one(network: Network) -> None:
    """The conductor has two connections of one player; what was under way on the old one comes late."""
    near, far = network.pair()
    network.gate.behave(Mode.STALL)
    near.end.dataReceived(b"old")
    network.gate.sever()
    assert (near.closed, far.closed) == ("cut", "")
    again, later = network.pair()
    again.end.dataReceived(b"new")
    assert (far.value(), later.value()) == (b"", b"new")
    network.gate.heal()
    assert (far.value(), far.closed) == (b"old", "closed")
    assert later.closed == ""


def test_closing_a_gate_cuts_what_is_there(network: Network) -> None:
    """The end of a drill leaves no connection."""
    near, far = network.pair()
    network.gate.close()
    assert (near.closed, far.closed) == ("cut", "cut")
