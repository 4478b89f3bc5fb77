"""Connections in memory that keep TCP's promise and no other: in order, if at all, and the end is noticed, or not."""

from collections import deque
from collections.abc import Callable
from functools import cache
from math import inf
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from pki import pki
from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener
from twisted.python.failure import Failure

from simulation.clockwork import Process, Timeline

DIALLING: Final = 15.0


class Shown:
    """The certificate a player of this name would have shown, as a TLS transport hands it out."""

    def __init__(self, name: str) -> None:
        self._certificate = x509.load_pem_x509_certificate(Path(pki().files("player", name).certificate).read_bytes())

    def to_cryptography(self) -> x509.Certificate:
        return self._certificate


certificate = cache(Shown)


class End:
    """One end of a connection: the transport of its protocol."""

    def __init__(self, network: "Network", process: Process, label: str, shown: Any = None) -> None:
        self.network = network
        self.process = process
        self.label = label
        self.protocol: Any = None
        self.other: End
        self.shown = shown  # the certificate of the far end
        self.open = True
        self.leaving = False
        self.bare = False  # without TLS
        self.deaf_until = 0.0  # nothing arrives here before
        self._arriving: deque[tuple[str, bytes]] = deque()
        self._last_due = 0.0

    # ---- as a transport

    def write(self, data: bytes) -> None:
        if self.open and not self.leaving:
            self.other.expect("data", data)

    def loseConnection(self) -> None:
        if self.open and not self.leaving:
            self.leaving = True
            self.other.expect("fin")

    def abortConnection(self) -> None:
        if self.open:
            self.open = False
            self.other.interrupted()
            self.process.callLater(0, self.protocol.connectionLost, Failure(error.ConnectionAborted()))

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", self.other.label, 1)

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self.label, 1)

    def getPeerCertificate(self) -> Any:
        return self.shown

    # ---- what is under way to this end

    def expect(self, kind: str, data: bytes = b"") -> None:
        """Something was sent here; it arrives when chance will have it, behind what was sent before."""
        if kind == "data" and self._arriving and self._arriving[-1][0] == "data" and self.network.chance(0.4):
            self._arriving[-1] = "data", self._arriving[-1][1] + data
            return
        self._arriving.append((kind, data))
        now = self.process.seconds()
        self._last_due = max(self._last_due, now + self.network.latency())
        self.process.callLater(self._last_due - now, self._arrive)

    def latest(self) -> bytes:
        """What was sent here last."""
        return self._arriving[-1][1] if self._arriving else b""

    def interrupted(self) -> None:
        """The far end is gone. What it had sent of late arrives, or only a part of it; then comes its end."""
        if self._arriving and self.network.chance(0.5):
            keep = self.network.timeline.random.randrange(len(self._arriving) + 1)
            while len(self._arriving) > keep:
                kind, data = self._arriving.pop()
                if len(self._arriving) == keep and kind == "data" and len(data) > 1:
                    self._arriving.append((kind, data[: self.network.timeline.random.randrange(1, len(data))]))
                    break
        self.expect("gone")

    def _arrive(self) -> None:
        if not self._arriving:
            return
        if self.protocol is None:  # nobody has taken the connection yet
            self.process.callLater(0.001, self._arrive)
            return
        if self.deaf_until > self.process.seconds():
            if self.deaf_until < inf:
                self.process.callLater(self.deaf_until - self.process.seconds(), self._arrive)
            return
        kind, data = self._arriving.popleft()
        if self.open:
            getattr(self, f"_{kind}")(data)

    def _data(self, data: bytes) -> None:
        if not (self.leaving and self.bare):  # a bare socket that is being closed is read no more; TLS is
            self.process.hear()
            self.protocol.dataReceived(data)

    def _hand(self, _: bytes) -> None:
        self.protocol.handshakeCompleted()

    def _fin(self, _: bytes) -> None:
        self.open = False
        self.other.expect("gone")
        self.protocol.connectionLost(Failure(error.ConnectionDone()))

    def _gone(self, _: bytes) -> None:
        self.open = False
        reason = error.ConnectionDone() if self.leaving else error.ConnectionLost()
        self.protocol.connectionLost(Failure(reason))


class Port:
    """Where a conductor listens."""

    def __init__(self, network: "Network", process: Process, factory: Any) -> None:
        self.network = network
        self.process = process
        self.factory = factory

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", self.process.host, 2258)

    def stopListening(self) -> None:
        self.network.ports.pop(self.process.host, None)


class Network:
    """All connections between daemons, and between players and their stages."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.ports: dict[str, Port] = {}  # by the conductor's name
        self.stages: dict[str, Any] = {}  # by path: a stage that answers
        self.ends: list[End] = []  # the players' ends of their lines
        self.unreachable: dict[str, float] = {}  # hosts that get no new connection before
        self.hellos: dict[str, bytes] = {}  # what a player said first, of late
        self._everything: list[End] = []

    def chance(self, probability: float) -> bool:
        return self.timeline.random.random() < probability

    def latency(self) -> float:
        """Mostly a moment, sometimes long enough to matter."""
        draw = self.timeline.random.random()
        return 0.0002 + draw * 0.004 if draw < 0.9 else (draw - 0.9) * 3 if draw < 0.995 else (draw - 0.99) * 400

    def listen(self, process: Process, factory: Any) -> Port:
        port = self.ports[process.host] = Port(self, process, factory)
        return port

    def died(self, process: Process, *, power: bool) -> None:
        """A process is gone: its kernel says so to its peers, if it can."""
        for end in [end for end in self._everything if end.process is process]:
            if end.open:
                end.open = False
                if power:
                    end.other.deaf_until = inf
                else:
                    end.other.interrupted()
        self._everything = [end for end in self._everything if end.process.alive and (end.open or end.other.open)]
        self.ends = [end for end in self.ends if end.open and end.process.alive]
        if process.host in self.ports and self.ports[process.host].process is process:
            del self.ports[process.host]

    def _pair(self, here: End, there: End) -> None:
        here.other, there.other = there, here
        self._everything += here, there

    # ---- players and conductors

    def dialler(self, process: Process) -> Callable[..., "Dial"]:
        """How a player's process reaches a conductor."""
        return lambda reactor, address, tls: Dial(self, process, address.name)

    def accept(self, port: Port, client: Process | None, connected: Callable[[End], None], name: str) -> None:
        """Let a connection in; ``connected`` is called with the client's end when it is made."""
        wrapped = port.factory.buildProtocol(IPv4Address("TCP", name, 1))
        server = End(self, port.process, port.process.host, certificate(name))
        server.protocol = wrapped.wrappedProtocol  # the door; its TLS stays unused
        here = End(self, client or port.process, name)
        self._pair(here, server)
        server.protocol.makeConnection(server)
        server.expect("hand")
        here.process.callLater(self.latency(), connected, here)

    # ---- players and stages

    def dial_stage(self, process: Process, path: str, factory: Any) -> None:
        """As a unix socket: there at once, or refused at once."""
        process.callLater(0.0001, self._reach_stage, process, path, factory)

    def _reach_stage(self, process: Process, path: str, factory: Any) -> None:
        stage = self.stages.get(path)
        if stage is None or not stage.process.alive:
            factory.clientConnectionFailed(None, Failure(error.ConnectionRefusedError()))
            return
        here, there = End(self, process, process.host), End(self, stage.process, path)
        here.bare = there.bare = True
        self._pair(here, there)
        there.protocol = stage.accepted(there)
        here.protocol = factory.buildProtocol(None)
        here.protocol.makeConnection(here)


class Dial:
    """The endpoint a player dials."""

    def __init__(self, network: Network, process: Process, name: str) -> None:
        self._network = network
        self._process = process
        self._name = name

    def connect(self, factory: Any) -> "Deferred[Any]":
        done: Deferred[Any] = Deferred()
        self._process.callLater(self._network.latency(), self._reach, factory, done)
        return done

    def _reach(self, factory: Any, done: "Deferred[Any]") -> None:
        until = max(self._network.unreachable.get(host, 0.0) for host in (self._process.host, self._name))
        port = self._network.ports.get(self._name)
        if until > self._process.seconds():
            self._process.callLater(DIALLING, done.errback, error.TimeoutError())
        elif port is None:
            done.errback(error.ConnectionRefusedError())
        else:
            connected = lambda here: self._connected(factory, done, here)  # noqa: E731
            port.process.callLater(
                self._network.latency(), self._network.accept, port, self._process, connected, self._process.host
            )
            self._process.callLater(DIALLING, self._too_late, done)

    def _too_late(self, done: "Deferred[Any]") -> None:
        if not done.called:
            done.errback(error.TimeoutError())

    def _connected(self, factory: Any, done: "Deferred[Any]", here: End) -> None:
        if done.called:
            here.open = False
            here.other.interrupted()
            return
        here.protocol = factory.buildProtocol(None)
        self._network.ends.append(here)
        here.protocol.makeConnection(here)
        done.callback(here.protocol)
        if IHandshakeListener.providedBy(here.protocol) and here.open:
            here.protocol.handshakeCompleted()
            self._network.hellos[here.label] = here.other.latest()
