"""A small TCP proxy between a player and its conductor, which can be told to behave as bad networks do.

    player ---near---> Gate ---far---> conductor

A :class:`Gate` has a port of its own for one player. What it does not pass on at once it holds, and delivers when it is
healed; only a blackhole swallows, and what it has damaged is cut when it is healed. Nothing here knows what is said.
"""

import enum
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.protocol import ClientFactory, Factory, Protocol, connectionDone
from twisted.python.failure import Failure

DIAL_WITHIN: Final = 5.0
LOOPBACK: Final = "127.0.0.1"


class Mode(enum.Enum):
    """What becomes of bytes on their way."""

    OPEN = "open"
    STALL = "stall"  # nothing gets through, and nobody is told so
    STALL_UP = "stall up"  # nothing from player to conductor
    STALL_DOWN = "stall down"  # nothing from conductor to player
    BLACKHOLE = "blackhole"  # all is taken, and thrown away
    DELAY = "delay"  # everything comes late


_HELD: Final = {Mode.STALL: ("near", "far"), Mode.STALL_UP: ("near",), Mode.STALL_DOWN: ("far",)}
"""Which ends are not listened to: what comes from there is held."""


class End(Protocol):
    """One of the two connections of a passage; ``name`` is near or far."""

    def __init__(self, passage: "Passage", name: str) -> None:
        self._passage = passage
        self.name = name

    def connectionMade(self) -> None:
        self._transport.setTcpNoDelay(True)
        self._passage.made(self)

    def dataReceived(self, data: bytes) -> None:
        self._passage.heard(self, data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._passage.lost(self)

    def say(self, data: bytes) -> None:
        """Pass this on."""
        self._transport.write(data)

    def leave(self) -> None:
        """Close when all that was said has left."""
        self._transport.loseConnection()

    def cut(self) -> None:
        """Close at once, with a reset."""
        self._transport.abortConnection()

    @property
    def _transport(self) -> Any:
        return self.transport


class Passage:
    """A player's connection and the one that was made to the conductor for it."""

    def __init__(self, gate: "Gate", mode: Mode) -> None:
        self._gate = gate
        self._ends: dict[str, End] = {}
        self._held: dict[str, deque[bytes]] = {"near": deque(), "far": deque()}
        self._left: set[str] = set()  # ends that are closed, the other one not told yet
        self._damaged = False
        self.mode = mode

    def made(self, end: End) -> None:
        """One of the two connections is there."""
        self._ends[end.name] = end
        if end.name == "near":
            self._gate.dial(self)
        elif "near" in self._left:
            end.cut()
        else:
            self._flush()

    def heard(self, end: End, data: bytes) -> None:
        """Bytes from one end, on their way to the other."""
        if self.mode is Mode.BLACKHOLE:
            self._damaged = True
            return
        self._held[end.name].append(data)
        if self.mode is Mode.DELAY:
            self._gate.later(self._flush_one, end.name)
        else:
            self._flush()

    def lost(self, end: End) -> None:
        """One of the two connections is gone; the other one hears of it when bytes would get through."""
        self._ends.pop(end.name, None)
        self._left.add(end.name)
        if self.mode is Mode.DELAY:
            self._gate.later(self._flush)
        else:
            self._flush()
        if not self._ends:
            self._gate.over(self)

    def not_reached(self) -> None:
        """The conductor's port is closed."""
        self._left.add("far")
        self.cut()

    def heal(self) -> None:
        """From now on everything gets through; what was damaged is cut."""
        self.mode = Mode.OPEN
        if self._damaged:
            self.cut()
        else:
            self._flush()

    def cut(self) -> None:
        """Reset both connections."""
        ends, self._ends = list(self._ends.values()), {}
        for end in ends:
            end.cut()

    def sever(self) -> None:
        """Reset the player's connection; the conductor's stays, and hears what is under way only when it is healed."""
        self.mode = Mode.STALL
        if "near" in self._ends:
            self._ends["near"].cut()

    def _flush(self) -> None:
        for source, target in (("near", "far"), ("far", "near")):
            if source not in _HELD.get(self.mode, ()) and self.mode is not Mode.BLACKHOLE:
                self._pass_on(source, target)

    def _pass_on(self, source: str, target: str) -> None:
        end, held = self._ends.get(target), self._held[source]
        while end is not None and held:
            end.say(held.popleft())
        if end is not None and source in self._left:
            end.leave()

    def _flush_one(self, source: str) -> None:
        target = self._ends.get("far" if source == "near" else "near")
        if target is not None and self._held[source] and self.mode is not Mode.BLACKHOLE:
            target.say(self._held[source].popleft())


class Gate:
    """The proxy's door for one player: every connection that comes in goes on to ``port``."""

    def __init__(self, reactor: Any, port: int, delay: float = 0.1) -> None:
        self._reactor = reactor
        self._target = port
        self._delay = delay
        self._passages: set[Passage] = set()
        self._listening: Any = None
        self.mode = Mode.OPEN

    def open(self) -> int:
        """Listen; the port that was found."""
        factory = Factory.forProtocol(self._arrived)
        factory.noisy = False
        self._listening = self._reactor.listenTCP(0, factory, interface=LOOPBACK)
        port: int = self._listening.getHost().port
        return port

    def close(self) -> Any:
        """Stop listening and cut everything; fires when the port is closed."""
        self.cut()
        return self._listening.stopListening()

    def behave(self, mode: Mode) -> None:
        """Be like this to every connection that is there and to those that come."""
        self.mode = mode
        for passage in self._passages:
            passage.mode = mode

    def heal(self) -> None:
        """Be a good network again."""
        self.mode = Mode.OPEN
        for passage in list(self._passages):
            passage.heal()

    def cut(self) -> None:
        """Reset every connection; new ones are served."""
        for passage in list(self._passages):
            passage.cut()

    def sever(self) -> None:
        """Reset every connection on the player's side alone; new ones are served beside what is left."""
        self.mode = Mode.OPEN
        for passage in list(self._passages):
            passage.sever()

    @property
    def passages(self) -> int:
        return len(self._passages)

    # ---- for its passages

    def dial(self, passage: Passage) -> None:
        """Connect a passage to the conductor."""
        self._reactor.connectTCP(LOOPBACK, self._target, _Dialler(passage), timeout=DIAL_WITHIN)

    def later(self, work: Callable[..., None], *arguments: object) -> None:
        """Do this after the delay of a slow network."""
        self._reactor.callLater(self._delay, work, *arguments)

    def over(self, passage: Passage) -> None:
        """Both its connections are gone."""
        self._passages.discard(passage)

    def _arrived(self) -> End:
        passage = Passage(self, self.mode)
        self._passages.add(passage)
        return End(passage, "near")


class _Dialler(ClientFactory):
    noisy = False

    def __init__(self, passage: Passage) -> None:
        self._passage = passage

    def buildProtocol(self, addr: object) -> End:
        return End(self._passage, "far")

    def clientConnectionFailed(self, connector: object, reason: Failure) -> None:
        self._passage.not_reached()
