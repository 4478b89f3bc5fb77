"""A seat: Perspective Broker on a unix socket, for whoever the kernel says is calling.

What may be called is said by the one who opens the port (:mod:`orchestra.audience.perspective` for a conductor).
Here is what all seats share: who the guest is, strict arguments, envelopes, limits, and that no exception's text
ever crosses.
"""

import os
import pwd
import socket
import struct
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from msgspec import Struct
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorUNIX
from twisted.logger import Logger
from twisted.spread import pb
from zope.interface import implementer

from orchestra.audience import envelope
from orchestra.audience.port import Door, SeatPort
from orchestra.errors import BadRequest, InternalError, OrchestraError, TooMany
from orchestra.model import Asker

log = Logger()

MAX_CONNECTIONS: Final = 1_000
MAX_CONNECTIONS_EACH: Final = 64  # per uid; root has no such limit, so that it can always look
MAX_CALLS: Final = 64  # unanswered, per connection: with more, nothing further is read from it
MOST_CALLS: Final = 4_096  # and past these, which one read may bring, they are refused
NO_LOGIN: Final = 0xFFFFFFFF


class Guest(Struct, frozen=True, kw_only=True):
    """Who is at the other end of a unix socket, as the kernel says."""

    asker: Asker
    groups: tuple[int, ...]


class Nothing(Struct, frozen=True, forbid_unknown_fields=True):
    """No arguments."""


class Method(NamedTuple):
    """What a call takes, and who answers it: with the arguments, and the watcher if the caller sent one."""

    takes: type[Struct]
    answer: Callable[[Any, pb.RemoteReference | None], Awaitable[object]]


class Sitter(Protocol):
    """What one connection's guest may call, and what is to be done when the guest has left."""

    def methods(self) -> Mapping[str, Method]:
        """The calls by name; raises the :class:`OrchestraError` that every call of this guest is answered with."""

    def left(self) -> None:
        """The connection is gone."""


class Plain(NamedTuple):
    """A sitter with nothing to clear up."""

    table: Mapping[str, Method]

    def methods(self) -> Mapping[str, Method]:
        return self.table

    def left(self) -> None:
        pass


def guest_of(connection: socket.socket) -> Guest:
    """The guest at the other end of ``connection``."""
    size = struct.calcsize("iII")
    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    try:
        name = pwd.getpwuid(uid).pw_name
        groups = tuple(os.getgrouplist(name, gid))
    except KeyError:
        name, groups = str(uid), (gid,)
    return Guest(asker=Asker(name=name, uid=uid, login_uid=_login_uid(pid)), groups=groups)


def _login_uid(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/loginuid") as file:
            uid = int(file.read())
    except (OSError, ValueError):
        return None
    return None if uid == NO_LOGIN else uid


class Seat(pb.Referenceable):
    """The root object of one connection. The guest is identified at the first call: before, there is no transport."""

    def __init__(self, broker: pb.Broker, house: "House") -> None:
        self._broker = broker
        self._house = house
        self._guest: Guest | None = None
        self._sitter: Sitter | None = None
        self._calls = 0
        self._valve: _Valve | None = None

    def connected(self) -> None:
        """Read no more requests while this guest does not read the answers."""
        transport: Any = self._broker.transport
        self._valve = _Valve(transport)
        transport.registerProducer(self._valve, True)

    def remoteMessageReceived(self, broker: pb.Broker, message: str, args: Any, kw: Any) -> Any:
        """Answer a call with an envelope, whatever it is and whatever happens."""
        # Overridden as a whole: PB's own sends the text of every exception to the caller.
        try:
            arguments = broker.unserialize(args), broker.unserialize(kw)
        except Exception:  # noqa: BLE001 - whatever a hostile message breaks
            arguments = None
        return broker.serialize(Deferred.fromCoroutine(self._answer(message, arguments)))

    async def _answer(self, name: str, arguments: Any) -> list[Any]:
        if self._calls >= MOST_CALLS:
            return envelope.refusal(TooMany(who="This connection", limit=MOST_CALLS, what="unanswered requests"))
        self._count(1)
        try:
            return envelope.answer(await self._call(name, arguments))
        except OrchestraError as error:
            return envelope.refusal(error)
        except Exception:  # noqa: BLE001 - this is the door: logged once
            number = uuid.uuid4().hex[:8]
            log.failure("bug {number}: the call '{name}' failed", number=number, name=name)
            return envelope.refusal(InternalError(number=number))
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self._calls += change
        if self._valve is not None:
            self._valve.flooded(self._calls >= MAX_CALLS)

    async def _call(self, name: str, arguments: Any) -> object:
        if self._sitter is None:
            self._sitter = self._house.seat(self._identified())
        method = self._sitter.methods().get(name)
        if method is None:
            raise BadRequest(problem=f"there is no request '{name[:40]}'; this daemon may be older than your command")
        given, watcher = _arguments(name, arguments)
        return await method.answer(envelope.unpack(given, method.takes, name), watcher)

    def _identified(self) -> Guest:
        if self._guest is None:
            transport: Any = self._broker.transport
            self._guest = guest_of(transport.socket)
            self._house.arrived(self._guest)
        self._house.check(self._guest)
        return self._guest

    def disconnected(self) -> None:
        """The guest has left."""
        self._house.left(self._guest)
        if self._sitter is not None:
            self._sitter.left()


def _arguments(name: str, arguments: Any) -> tuple[object, pb.RemoteReference | None]:
    match arguments:
        case ((), {}):
            return _NOTHING, None
        case ((given,), {}):
            return given, None
        case ((given, pb.RemoteReference() as watcher), {}):
            return given, watcher
    raise BadRequest(problem=f"{name}: takes one value, and a watcher")


_NOTHING: Final = envelope.pack({})


@implementer(IPushProducer)
class _Valve:
    """Stands for the producer of our answers: the requests. They come while the answers are read, and few wait."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._unread = self._flooded = False

    def pauseProducing(self) -> None:
        """Answers pile up."""
        self._set(True, self._flooded)

    def resumeProducing(self) -> None:
        """They are read again."""
        self._set(False, self._flooded)

    def stopProducing(self) -> None:
        pass

    def flooded(self, flooded: bool) -> None:
        """Whether too many requests wait for their answers."""
        self._set(self._unread, flooded)

    def _set(self, unread: bool, flooded: bool) -> None:
        was_shut, shut = self._unread or self._flooded, unread or flooded
        self._unread, self._flooded = unread, flooded
        if shut and not was_shut:
            self._transport.pauseProducing()
        elif was_shut and not shut:
            self._transport.resumeProducing()


@implementer(pb.IPBRoot)
class House:
    """All the seats behind one socket, and who sits there."""

    def __init__(self, seat: Callable[[Guest], Sitter]) -> None:
        self.seat = seat
        self.brokers: set[pb.Broker] = set()
        self._guests: Counter[int] = Counter()

    def rootObject(self, broker: pb.Broker) -> Seat:
        """A seat for a connection that has just been accepted."""
        seat = Seat(broker, self)
        self.brokers.add(broker)
        broker.notifyOnConnect(seat.connected)
        broker.notifyOnDisconnect(seat.disconnected)
        broker.notifyOnDisconnect(lambda: self.brokers.discard(broker))
        return seat

    def arrived(self, guest: Guest) -> None:
        """This connection is this guest's."""
        self._guests[guest.asker.uid] += 1

    def check(self, guest: Guest) -> None:
        """Refuse a guest who has too many connections."""
        if guest.asker.uid and self._guests[guest.asker.uid] > MAX_CONNECTIONS_EACH:
            raise TooMany(who=guest.asker.name, limit=MAX_CONNECTIONS_EACH, what="connections")

    def left(self, guest: Guest | None) -> None:
        """The connection is gone; nobody is known if it never asked."""
        if guest is not None:
            self._guests[guest.asker.uid] -= 1
            self._guests += Counter()  # forget who has none


class _Factory(pb.PBServerFactory):
    noisy = False

    def __init__(self, house: House) -> None:
        super().__init__(house, security=envelope.security())  # type: ignore[no-untyped-call]  # Twisted's
        self._house = house

    def buildProtocol(self, addr: Any) -> Any:
        full = len(self._house.brokers) >= MAX_CONNECTIONS
        return None if full else super().buildProtocol(addr)  # type: ignore[no-untyped-call]  # Twisted's

    def dismiss(self) -> None:
        for broker in list(self._house.brokers):
            transport: Any = broker.transport
            if transport is not None:
                transport.unregisterProducer()  # else loseConnection waits for it
                transport.loseConnection()


def door(seat: Callable[[Guest], Sitter]) -> Door:
    """Behind it every guest is seated at what ``seat`` returns for them."""
    made: Any = _Factory(House(seat))
    found: Door = made
    return found


def seat_port(
    reactor: IReactorUNIX,
    path: str,
    seat: Callable[[Guest], Sitter],
    *,
    mode: int = 0o660,
    group: str = "",
    what: str = "daemon",
) -> Service:
    """A service that seats every guest of the unix socket ``path`` at what ``seat`` returns for them."""
    return SeatPort(reactor, path, door(seat), mode=mode, group=group, what=what)
