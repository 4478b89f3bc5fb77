"""The player's side of the stage: asks for runs, hears what became of them, takes over what runs there already.

A run looks like a process of the reactor's: its protocol gets a transport when it has started, and
``processExited`` and ``processEnded`` when it is over. What is said is in :mod:`orchestra.player.frames`. When the
connection ends, everything that was under way is simply dropped here: the next :meth:`Backstage.connect` tells anew.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import msgspec
from msgspec import Struct
from twisted.internet.defer import Deferred, TimeoutError, fail
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError, ProcessDone, ProcessTerminated
from twisted.internet.protocol import Factory, ProcessProtocol, connectionDone
from twisted.internet.protocol import Protocol as ConnectionProtocol
from twisted.python.failure import Failure

from orchestra.errors import NoStage, NotStarted, OutputGone, StageNotStarted
from orchestra.model import JournalEntry, Report, Stream, Told
from orchestra.player import frames
from orchestra.settings import PlayerSettings
from orchestra.wire.prompt import send_now

CONNECT_TIMEOUT: Final = 5.0
ANSWER_TIMEOUT: Final = 30.0  # a stage that is busy with slow disks may be late
START_TIMEOUT: Final = 30.0  # a new stage first sweeps up after a dead one


class Kept(Struct, frozen=True):
    """What the stage has of a stream."""

    total: int = 0
    sha256: str | None = None
    spans: tuple[tuple[int, int], ...] = ()


class Outcome(Struct, frozen=True):
    """What became of a run, in the stage's words."""

    told: Told
    reason: str = ""
    rc: int | None = None
    signal: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    digest: str = ""
    response: dict[str, Any] | None = None
    stdout: Kept = Kept()
    stderr: Kept = Kept()
    inline: bool = True  # the kept output is in body: stdout's, then stderr's
    notes: tuple[str, ...] = ()
    cpu_ms: float | None = None
    maxrss: int | None = None  # KiB
    body: bytes = b""

    @property
    def kept_ahead(self) -> bool:
        """Whether kept output is to be fetched."""
        return not self.inline

    def report(self, entry: JournalEntry) -> Report:
        """What the player keeps and says of the run. Output that is kept ahead is not in it."""
        cut = _size(self.stdout)
        return Report(
            seq=entry.seq,
            job=entry.job,
            task=entry.task,
            attempt=entry.attempt,
            told=self.told,
            reason=self.reason,
            rc=self.rc,
            signal=self.signal,
            started_at=self.started_at,
            ended_at=self.ended_at,
            digest=self.digest,
            response=self.response,
            stdout=_stream(self.stdout, self.body[:cut]),
            stderr=_stream(self.stderr, self.body[cut:]),
            notes=self.notes,
        )


class Running(Struct, frozen=True):
    """A run under way on the stage. Without a pid it is what a dead stage left and cannot be killed yet."""

    pid: int | None = None
    started_at: int | None = None
    alarm: str = ""  # it should have ended, and does not


class Standing(Struct, frozen=True):
    """What a stage says it has of our runs."""

    pid: int
    boot: str
    version: str
    program: str  # Orchestra's version
    running: dict[int, Running]
    done: dict[int, Outcome]
    swept: frozenset[int]  # had started under a stage that died; nothing of them lives any more


class Listener(Protocol):
    """Who uses a :class:`Backstage`."""

    def stage_lost(self, reason: str) -> None:
        """The connection has ended, though nobody asked for that."""

    def stage_upgraded(self, program: str, reason: str) -> None:
        """The stage is this version of Orchestra now; or still, for this reason."""


# ---- what the stage says


class _Known(Struct, frozen=True):
    state: str
    pid: int | None = None
    started_at: int | None = None
    alarm: str = ""
    outcome: Outcome | None = None


class _Stage(Struct, frozen=True, tag_field="type", tag="stage"):
    boot: str
    pid: int
    version: str
    runs: dict[int, _Known]
    program: str = ""


class _Started(Struct, frozen=True, tag_field="type", tag="started"):
    seq: int
    pid: int
    at: int


class _Refused(Struct, frozen=True, tag_field="type", tag="refused"):
    seq: int
    reason: str


class _Repeated(Struct, frozen=True, tag_field="type", tag="repeated"):
    seq: int


class _Ended(Struct, frozen=True, tag_field="type", tag="ended"):
    seq: int
    outcome: Outcome


class _Piece(Struct, frozen=True, tag_field="type", tag="piece"):
    seq: int
    stream: int
    offset: int
    gone: bool


class _Alarm(Struct, frozen=True, tag_field="type", tag="alarm"):
    seq: int
    reason: str


class _Upgraded(Struct, frozen=True, tag_field="type", tag="upgraded"):
    program: str
    reason: str = ""


_Said = _Stage | _Started | _Refused | _Repeated | _Ended | _Piece | _Alarm | _Upgraded
_decode = msgspec.json.Decoder(_Said).decode
_encode = msgspec.json.encode


class StageProcess:
    """A run on the stage, as its protocol sees it: the transport of a process that takes no input."""

    def __init__(self, backstage: "Backstage", seq: int, pid: int | None, started_at: int | None) -> None:
        self.seq = seq
        self.pid = pid
        self.started_at = started_at
        self.outcome: Outcome | None = None  # set before the protocol hears that it has ended
        self._backstage = backstage

    def signalProcess(self, signalID: str | int) -> None:
        """Any signal means: end it, kindly at first."""
        self._backstage.kill(self.seq, "ended by the player")

    def loseConnection(self) -> None:
        """A run's descriptors are the stage's, and stay open."""


class _Talk(ConnectionProtocol):
    """The connection: frames in, frames out."""

    def __init__(self, heard: Callable[[Any, bytes], None], lost: Callable[["_Talk", str], None]) -> None:
        self.answer: Deferred[tuple[_Stage, bytes]] = Deferred()
        self._frames = frames.Frames(frames.MOST_TO_PLAYER)
        self._heard = heard
        self._lost = lost

    def say(self, message: dict[str, Any]) -> None:
        assert self.transport is not None
        self.transport.write(frames.pack(_encode(message)))  # what is written in one turn leaves in one go

    def flush(self) -> None:
        send_now(self.transport)

    def dataReceived(self, data: bytes) -> None:
        try:
            said = [(_decode(text), body) for text, body in self._frames.feed(data)]
        except (frames.BadFrame, msgspec.DecodeError) as nonsense:
            self.leave(f"it said something that makes no sense: {nonsense}")
            return
        for message, body in said:
            if isinstance(message, _Stage):
                self.answer.callback((message, body))
            else:
                self._heard(message, body)

    def leave(self, reason: str) -> None:
        """End the connection, for this reason."""
        assert self.transport is not None
        self._lost(self, reason)
        self.transport.abortConnection()  # type: ignore[attr-defined]  # a stream transport has it

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._lost(self, reason.getErrorMessage())


class Backstage:
    """A player's view of its stage. Without a connection (``up``) nothing is sent: the next one settles it all."""

    def __init__(self, reactor: Any, socket_path: str, journal_id: str, listener: Listener) -> None:
        self._reactor = reactor
        self._socket_path = socket_path
        self._journal = journal_id
        self._listener = listener
        self._talk: _Talk | None = None
        self._wanted: object = None  # the attempt to connect that still matters
        self._protocols: dict[int, ProcessProtocol] = {}
        self._processes: dict[int, StageProcess] = {}
        self._adoptable: dict[int, Running] = {}
        self._early: dict[int, tuple[_Ended, bytes]] = {}  # ends of runs that are yet to be adopted
        self._fetching: deque[Deferred[bytes]] = deque()
        self._hears: dict[type[Any], Callable[[Any, bytes], None]] = {
            _Started: self._started,
            _Refused: self._refused,
            _Repeated: self._repeated,
            _Ended: self._ended,
            _Piece: self._piece,
            _Alarm: self._alarm,
            _Upgraded: lambda message, body: listener.stage_upgraded(message.program, message.reason),
        }

    @property
    def up(self) -> bool:
        """Whether there is a stage to talk to."""
        return self._talk is not None

    @property
    def socket(self) -> str:
        """Where the stage is looked for."""
        return self._socket_path

    def process(self, seq: int) -> StageProcess | None:
        """A run as the stage knows it, once it has started."""
        return self._processes.get(seq)

    async def connect(self) -> Standing:
        """Find the stage; what it has of our runs. :class:`NoStage` if it does not answer."""
        self.stop()
        self._wanted = wanted = object()
        endpoint = UNIXClientEndpoint(self._reactor, self._socket_path, timeout=CONNECT_TIMEOUT)
        try:
            talk: _Talk = await endpoint.connect(Factory.forProtocol(lambda: _Talk(self._heard, self._lost)))
        except (ConnectError, OSError) as problem:
            number = problem.osError if isinstance(problem, ConnectError) else problem.errno  # Twisted's is the errno
            raise self._no_stage(os.strerror(number) if isinstance(number, int) else str(problem)) from None
        if self._wanted is not wanted:
            talk.leave("the player left")
            raise self._no_stage("the player left")
        self._talk = talk
        talk.say({"type": "hello", "journal": self._journal, "version": frames.VERSION})
        try:
            said, body = await talk.answer.addTimeout(ANSWER_TIMEOUT, self._reactor)
        except TimeoutError:
            self.stop()
            raise self._no_stage(f"it accepts connections, but is silent for {ANSWER_TIMEOUT:.0f} s") from None
        standing = _standing(said, body)
        self._adoptable = dict(standing.running)
        return standing

    def perform(
        self, entry: JournalEntry, player_name: str, protocol: ProcessProtocol, secrets: Mapping[str, str] | None = None
    ) -> None:
        """Have a run started. ``protocol`` gets a :class:`StageProcess` when it is, and its end; of a run that was
        refused it gets only the end, with :class:`NotStarted`."""
        self._protocols[entry.seq] = protocol
        order = {
            "type": "perform",
            "seq": entry.seq,
            "job": entry.job,
            "task": entry.task,
            "attempt": entry.attempt,
            "score": entry.score,
            "params": entry.params,
            "player": player_name,
            "digest": entry.digest,
        }
        if secrets:
            order["secrets"] = secrets
        if entry.dry_run:
            order["dry_run"] = True
        self._say(order)

    def flush(self) -> None:
        """Send at once what was asked for in this turn."""
        if self._talk is not None:
            self._talk.flush()

    def adopt(self, seq: int, protocol: ProcessProtocol) -> None:
        """Take over a run that the stage has said is running; ``protocol`` goes on as if it had started it. If the
        run has ended since, it hears that at once."""
        running = self._adoptable.pop(seq, None)
        if running is None:
            return  # that connection is gone, and the next one tells anew
        self._protocols[seq] = protocol
        self._connect_process(seq, running.pid, running.started_at)
        if running.alarm:
            protocol.childDataReceived(-1, running.alarm.encode())
        if seq in self._early:
            self._ended(*self._early.pop(seq))

    def kill(self, seq: int, reason: str) -> None:
        """Have a run ended: SIGTERM, its grace, SIGKILL. Of one that is over this does nothing."""
        self._say({"type": "kill", "seq": seq, "reason": reason})

    def forget(self, seqs: Iterable[int]) -> None:
        """The journal has the outcomes of these for good; the stage may remove them."""
        self._say({"type": "forget", "seqs": list(seqs)})

    def fetch(self, seq: int, stream: int, offset: int, size: int) -> "Deferred[bytes]":
        """Kept output of stream 1 or 2 from its true ``offset`` on, which lies in a kept span; at most ``size`` bytes
        and not past the end of that span. :class:`OutputGone` if the stage does not have it."""
        if self._talk is None:
            return fail(self._no_stage("not connected"))
        waiting: Deferred[bytes] = Deferred()
        self._fetching.append(waiting)
        self._say({"type": "fetch", "seq": seq, "stream": stream, "offset": offset, "size": size})
        return waiting

    def upgrade(self) -> None:
        """Have the stage become the program that is on its disk now; what runs goes on, and the connection stays."""
        self._say({"type": "upgrade"})

    def stop(self) -> None:
        """Leave. What runs goes on."""
        self._wanted = None
        talk, self._talk = self._talk, None
        if talk is not None:
            self._drop("the player left")
            if not talk.answer.called:
                talk.answer.errback(self._no_stage("the player left"))
            assert talk.transport is not None
            talk.transport.loseConnection()

    # ---- what is heard

    def _say(self, message: dict[str, Any]) -> None:
        if self._talk is not None:
            self._talk.say(message)

    def _heard(self, message: Any, body: bytes) -> None:
        if self._talk is not None:
            self._hears[type(message)](message, body)

    def _started(self, message: _Started, body: bytes) -> None:
        self._connect_process(message.seq, message.pid, message.at)

    def _connect_process(self, seq: int, pid: int | None, at: int | None) -> None:
        process = self._processes[seq] = StageProcess(self, seq, pid, at)
        self._protocols[seq].makeConnection(process)

    def _refused(self, message: _Refused, body: bytes) -> None:
        _finish(self._protocols.pop(message.seq), NotStarted(reason=message.reason))

    def _ended(self, message: _Ended, body: bytes) -> None:
        protocol, process = self._protocols.pop(message.seq, None), self._processes.pop(message.seq, None)
        if protocol is None or process is None:
            self._early[message.seq] = message, body
            return
        process.outcome = outcome = msgspec.structs.replace(message.outcome, body=body)
        well = outcome.rc == 0 and not outcome.signal
        _finish(protocol, ProcessDone(0) if well else ProcessTerminated(outcome.rc, outcome.signal))

    def _repeated(self, message: _Repeated, body: bytes) -> None:
        # it was begun before, by whom and how far we do not know from here: only settling tells
        if self._talk is not None:
            self._talk.leave(f"it has begun run {message.seq} before")

    def _piece(self, message: _Piece, body: bytes) -> None:
        waiting = self._fetching.popleft()
        if waiting.called:
            return  # given up by who asked
        if message.gone:
            waiting.errback(OutputGone(seq=message.seq))
        else:
            waiting.callback(body)

    def _alarm(self, message: _Alarm, body: bytes) -> None:
        protocol = self._protocols.get(message.seq)
        if protocol is not None:
            protocol.childDataReceived(-1, message.reason.encode())

    # ---- the end of a connection

    def _lost(self, talk: _Talk, reason: str) -> None:
        if talk is not self._talk:
            return
        self._talk = None
        self._drop(reason)
        if talk.answer.called:
            self._listener.stage_lost(reason)
        else:
            talk.answer.errback(self._no_stage(reason))

    def _drop(self, reason: str) -> None:
        self._protocols, self._processes, self._adoptable, self._early = {}, {}, {}, {}
        fetching, self._fetching = self._fetching, deque()
        for waiting in fetching:
            if not waiting.called:
                waiting.errback(self._no_stage(reason))

    def _no_stage(self, problem: str) -> NoStage:
        return NoStage(socket=self._socket_path, problem=problem.rstrip("."))


def _finish(protocol: ProcessProtocol, how: Exception) -> None:
    reason = Failure(how)
    protocol.processExited(reason)
    protocol.processEnded(reason)


def _standing(said: _Stage, body: bytes) -> Standing:
    """The answer to hello, with the short outputs given back to their outcomes; they come in the same order."""
    running: dict[int, Running] = {}
    done: dict[int, Outcome] = {}
    swept = set()
    at = 0
    for seq, known in said.runs.items():
        if known.outcome is not None:
            size = _size(known.outcome.stdout) + _size(known.outcome.stderr) if known.outcome.inline else 0
            done[seq] = msgspec.structs.replace(known.outcome, body=body[at : at + size])
            at += size
        elif known.state == "running":
            running[seq] = Running(known.pid, known.started_at, known.alarm)
        else:
            swept.add(seq)
    return Standing(said.pid, said.boot, said.version, said.program, running, done, frozenset(swept))


def _size(kept: Kept) -> int:
    return sum(length for _, length in kept.spans)


def _stream(kept: Kept, data: bytes) -> Stream:
    return Stream(kept.total, kept.sha256, kept.spans, data)


# ---- starting a stage


def stage_command(python: str, chosen: PlayerSettings, player_uid: int) -> list[str]:
    """The command line of a stage that serves a player with these settings."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "stage.py")
    command = [python, "-I", "-S", "-X", "utf8", program, "--socket", chosen.stage, "--dir", chosen.stage_dir]
    command += ["--scores", chosen.scores, "--player-uid", str(player_uid)]
    return command + (["--score-user", chosen.score_user] if chosen.score_user else [])


def start_stage(reactor: Any, chosen: PlayerSettings) -> "Deferred[None]":
    """Start a stage that outlives us; fires when it answers, fails with :class:`StageNotStarted` and its complaint."""
    command = stage_command(sys.executable, chosen, os.geteuid())
    command += ["--log", os.path.join(chosen.stage_dir, "stage.log"), "--detach"]
    launcher = _Launcher(reactor)
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
    try:
        reactor.spawnProcess(launcher, command[0], command, env=environment)
    except OSError as problem:
        return fail(StageNotStarted(problem=f"{command[0]}: {problem.strerror}"))
    return launcher.ready


class _Launcher(ProcessProtocol):
    """The process that goes away when the stage is ready, or cannot be."""

    def __init__(self, reactor: Any) -> None:
        self.ready: Deferred[None] = Deferred()
        self._words = bytearray()
        self._patience = reactor.callLater(START_TIMEOUT, self._give_up)

    def errReceived(self, data: bytes) -> None:
        self._words += data[:4096]

    def processEnded(self, reason: Failure) -> None:
        if self._patience.active():
            self._patience.cancel()
        if reason.check(ProcessDone):
            self.ready.callback(None)
        else:
            words = self._words.decode(errors="replace").strip()
            self.ready.errback(StageNotStarted(problem=words or reason.getErrorMessage()))

    def _give_up(self) -> None:
        assert self.transport is not None
        self._words += b"it was not ready within %d seconds" % START_TIMEOUT
        self.transport.signalProcess("KILL")
