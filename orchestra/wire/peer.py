"""One end of the line: a strict AMP that hears commands one after another and answers when they are saved.

Strict: it knows only the commands it was given, has no StartTLS, takes at most 32 keys in a box and a bounded
number of unhandled commands, and cuts off a peer that does not take what it is sent. What a command *means* is
left to the door (conductor) and the line (player).
"""

import functools
import itertools
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.protocols import amp
from twisted.python.failure import Failure

from orchestra.errors import NotSaved
from orchestra.wire import batches
from orchestra.wire.commands import NOT_SAVED, Command

MAX_KEYS: Final = 32
MAX_WAITING: Final = 64  # commands heard and not yet handled; an honest peer has about ten
ABORT_AFTER: Final = 5.0  # seconds a polite close may take

CLOSED: Final = Failure(ConnectionDone())

Handler = Callable[[Any], Awaitable[None]]


class Heard(NamedTuple):
    """A whole command, waiting for its turn."""

    handler: Handler
    payload: Any
    answer: "Deferred[amp.Box]"


class Word(NamedTuple):
    """A command that is understood here."""

    command: Command
    handler: Handler


@functools.cache
def _decoder(command: Command) -> "msgspec.msgpack.Decoder[Any]":
    """One for all connections: it is several kilobytes, and slow to make."""
    return msgspec.msgpack.Decoder(command.payload)


class Peer(amp.AMP):
    """An AMP connection that says and hears :class:`~orchestra.wire.commands.Command` payloads."""

    # A dict of AMP's attributes and ours together would be too large for Python to share its keys: 1.4 kB for each.
    __slots__ = (
        *("clock", "heard_at", "last_answer", "closed", "_cap", "_owed", "_words", "_joining", "_waiting", "_busy"),
        "_abort_call",
    )
    log = Logger()
    transport: Any

    def __init__(self, clock: IReactorTime, handlers: Iterable[tuple[Command, Handler]], cap: int) -> None:
        """``cap``: bytes said and not yet answered, past which the peer is cut off."""
        amp.AMP.__init__(self)
        self.clock = clock
        self.heard_at = clock.seconds()
        self.last_answer = clock.seconds()
        self.closed = False
        self._cap = cap
        self._owed = 0
        self._words = {command.name: Word(command, handler) for command, handler in handlers}
        self._joining: dict[bytes, batches.Joiner] = {}  # of those commands whose payload was ever cut
        self._waiting: list[Heard] = []  # few, and mostly none: an empty deque is ten times the size
        self._busy = False
        self._abort_call: IDelayedCall | None = None

    # ---- speaking

    def say(self, command: Command, payload: Any, *, at_once: bool = False) -> "Deferred[None]":
        """Send ``payload``; fires when the peer has answered it. NotSaved: it said so; else the connection's end.

        ``at_once``: before this turn does anything else; otherwise all that it says to this peer leaves together.
        """
        answer: Deferred[None] = Deferred()
        raw = batches.encode(payload)
        if self.closed or not self._take_on(len(raw)):
            answer.errback(ConnectionDone())
            return answer
        for piece, more in batches.chunks(raw):
            box = {"d": piece, "more": b"1"} if more else {"d": piece}
            sent = amp.AMP.callRemoteString(self, command.name, requiresAnswer=command.answered, **box)
            if more and sent is not None:
                sent.addErrback(lambda _: None)  # the last box of the batch fails with the same reason
        if at_once and (flush := getattr(self.transport, "flush", None)) is not None:
            flush()
        if sent is None:
            self._owed -= len(raw)
            answer.callback(None)
        else:
            sent.addBoth(self._answered, len(raw), answer)
        return answer

    def _take_on(self, size: int) -> bool:
        self._owed += size
        if self._owed <= self._cap:
            return True
        self.log.error("{peer} does not take what it is sent: cut off", peer=self.describe())
        self.abort()
        return False

    def _answered(self, result: Any, size: int, answer: "Deferred[None]") -> None:
        self._owed -= size
        self.last_answer = self.clock.seconds()
        if not isinstance(result, Failure):
            answer.callback(None)
        elif isinstance(result.value, amp.RemoteAmpError) and result.value.errorCode == NOT_SAVED:
            answer.errback(NotSaved(problem="the other end could not save it"))
        else:
            answer.errback(result)

    # ---- hearing

    def dataReceived(self, data: bytes) -> None:
        """Hear what came. A box that cannot be, such as an answer to what was not asked, ends the connection."""
        if self.closed:
            return
        try:
            amp.AMP.dataReceived(self, data)
        except (KeyError, ValueError, amp.AmpError) as problem:
            self._distrust(problem)

    def _distrust(self, problem: Exception) -> None:
        self.log.error(
            "{peer} sent what is not our protocol ({problem}): closed", peer=self.describe(), problem=repr(problem)
        )
        self.abort()

    def locateResponder(self, name: bytes) -> Callable[[amp.Box], "Deferred[amp.Box]"] | None:
        """The responder of one of our commands; anything else is answered 'unhandled', StartTLS included."""
        word = self.word(name)
        if word is None:
            return None
        return lambda box: self._heard(word, box)

    def word(self, name: bytes) -> Word | None:
        """What a command is and who hears it; None if it is not understood here."""
        return self._words.get(name)

    def _heard(self, word: Word, box: amp.Box) -> "Deferred[amp.Box]":
        self.heard_at = self.clock.seconds()
        answer: Deferred[amp.Box] = Deferred()
        try:
            whole = self._joined(word.command.name, box[b"d"], b"more" in box)
            payload = None if whole is None else _decoder(word.command).decode(whole)
        except (KeyError, batches.TooMuch, msgspec.DecodeError, msgspec.ValidationError) as problem:
            self._distrust(problem)
            return answer
        if whole is None:
            answer.callback(amp.Box())
            return answer
        self._waiting.append(Heard(word.handler, payload, answer))
        if len(self._waiting) > MAX_WAITING:
            self.log.error("{peer} floods us: closed", peer=self.describe())
            self.abort()
        elif not self._busy:
            self._busy = True
            Deferred.fromCoroutine(self._handle_all())
        return answer

    def _joined(self, name: bytes, piece: bytes, more: bool) -> bytes | None:
        """The whole payload of a command when ``piece`` was its last."""
        joiner = self._joining.get(name)
        if joiner is None:
            if not more:
                return piece
            joiner = self._joining[name] = batches.Joiner()
        return joiner.add(piece, more)

    async def _handle_all(self) -> None:
        try:
            while self._waiting and not self.closed:
                await self._handle(self._waiting.pop(0))
        finally:
            self._busy = False

    async def _handle(self, heard: Heard) -> None:
        try:
            await heard.handler(heard.payload)
        except NotSaved as problem:
            self.log.error("{peer}: {problem}", peer=self.describe(), problem=problem)
            heard.answer.errback(Failure(amp.RemoteAmpError(NOT_SAVED, b"not saved")))
        except Exception:  # noqa: BLE001 - the door: logged once, the connection closed
            self.log.failure("{peer}: its command failed here; the connection is closed", peer=self.describe())
            self.abort()
        else:
            if not self.closed:
                heard.answer.callback(amp.Box())

    # ---- the connection

    def describe(self) -> str:
        """Who is at the other end, for the log."""
        peer = self.transport.getPeer() if self.transport is not None else None
        return str(getattr(peer, "host", peer))

    def makeConnection(self, transport: Any) -> None:
        # past amp.AMP's own, which writes log lines for every connection
        amp.BinaryBoxProtocol.makeConnection(self, transport)

    def connectionMade(self) -> None:
        watch_for_silence(self.transport)

    def proto_value(self, value: bytes) -> str:
        """Take a value, unless the box has too many keys."""
        if self._currentBox is not None and len(self._currentBox) >= MAX_KEYS:
            self.log.error("{peer} sent a box without end: closed", peer=self.describe())
            self.abort()
            return "key"
        return str(amp.BinaryBoxProtocol.proto_value(self, value))

    def unhandledError(self, failure: Failure) -> None:
        """A call nobody looks after has failed: with the connection, which is known, or by a bug."""
        if not self.closed:
            self.log.failure("{peer}: unexpected", failure=failure, peer=self.describe())
            self.abort()

    @property
    def hanging_up(self) -> bool:
        """Whether we have said goodbye; what still comes is not heard."""
        return self._abort_call is not None

    def hang_up(self) -> None:
        """Close politely, and for certain within :data:`ABORT_AFTER` seconds."""
        if self.closed or self._abort_call is not None:
            return
        self._abort_call = self.clock.callLater(ABORT_AFTER, self.abort)
        self.transport.loseConnection()

    def abort(self) -> None:
        """Close now; nothing more is heard or said."""
        if not self.closed:
            self.closed = True
            self.paused = True  # the boxes that came with the one that ended it are not taken either
            self.transport.abortConnection()

    def connectionLost(self, reason: Failure = CLOSED) -> None:
        """The line is gone; whoever awaits an answer learns of it."""
        self.closed = True
        if self._abort_call is not None and self._abort_call.active():
            self._abort_call.cancel()
        self._waiting.clear()
        amp.BinaryBoxProtocol.connectionLost(self, reason)
        self.transport = None


def watch_for_silence(transport: Any) -> None:
    """Have the kernel notice a dead peer within about 35 s, idle or not. Does nothing to what is not TCP."""
    sock = getattr(transport, "socket", None)
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    transport.setTcpKeepAlive(1)
    transport.setTcpNoDelay(1)
    options = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
    for option, value in itertools.chain(options, ((getattr(socket, "TCP_USER_TIMEOUT", 18), 20_000),)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
