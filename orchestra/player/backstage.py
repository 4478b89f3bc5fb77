"""The player's way to its stage: asks for runs, hears what becomes of them, and starts a stage where there is none.

It offers a run's ProcessProtocol what a reactor's ``spawnProcess`` would: a transport with a pid, and the end.
"""

import json
import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from msgspec import Struct
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.interfaces import IProcessTransport
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.utils import getProcessOutputAndValue
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from orchestra.errors import NoStage, StageNotStarted
from orchestra.model import JournalEntry
from orchestra.player import stage as stage_program
from orchestra.player.execution import Execution, Outcome
from orchestra.player.frames import MOST_TO_PLAYER, VERSION, BadFrame, Frames, encode
from orchestra.settings import PlayerSettings

ANSWER_WITHIN: Final = 10  # seconds
LINGER: Final = 60  # seconds a stage that we started stays without us and without work


class Standing(Struct, frozen=True):
    """What a stage has of our journal's runs."""

    running: Mapping[int, int]  # seq -> started_at
    done: Mapping[int, Outcome]
    swept: frozenset[int]


class Listener(Protocol):
    """Who is told when the stage is gone."""

    def stage_lost(self, reason: str) -> None: ...


@implementer(IProcessTransport)
class Performed:
    """A run on the stage, as its ProcessProtocol's transport."""

    def __init__(self, backstage: "Backstage", seq: int) -> None:
        self._backstage = backstage
        self._seq = seq
        self.pid: int | None = None

    def signalProcess(self, signalID: str | int) -> None:
        """End it; the stage knows only one way, and its own grace."""
        self._backstage.kill(self._seq, f"it was sent {signalID}")

    def loseConnection(self) -> None:
        self._backstage.kill(self._seq, "it was let go")

    def closeStdin(self) -> None: ...
    def closeStdout(self) -> None: ...
    def closeStderr(self) -> None: ...
    def closeChildFD(self, descriptor: int) -> None: ...
    def writeToChild(self, childFD: int, data: bytes) -> None: ...


class Backstage:
    """The connection to the stage, anew after each :meth:`connect`."""

    log = Logger()

    def __init__(self, reactor: Any, socket_path: str, journal: str, listener: Listener) -> None:
        self._reactor = reactor
        self._path = socket_path
        self._journal = journal
        self._listener = listener
        self._wire: _Wire | None = None
        self._executions: dict[int, Execution] = {}
        self._fetches: dict[tuple[int, int, int], Deferred[bytes]] = {}
        self._introduced: Deferred[Standing] | None = None

    @property
    def up(self) -> bool:
        return self._wire is not None

    async def connect(self) -> Standing:
        """Introduce ourselves to the stage; NoStage if none answers."""
        endpoint = UNIXClientEndpoint(self._reactor, self._path, timeout=ANSWER_WITHIN)
        wire = _Wire(self)
        try:
            await endpoint.connect(Factory.forProtocol(lambda: wire))
        except Exception as problem:  # noqa: BLE001 - whatever the socket says is the reason
            raise NoStage(socket=self._path, problem=problem) from None
        self._wire = wire
        self._introduced = Deferred()
        introduced = self._introduced
        introduced.addTimeout(ANSWER_WITHIN, self._reactor)
        self._say({"type": "hello", "journal": self._journal, "version": VERSION})
        try:
            return await introduced
        except Exception as problem:  # noqa: BLE001 - it hung up, or said nothing in time
            self.stop()
            raise NoStage(socket=self._path, problem=f"it did not introduce itself ({problem})") from None

    def stop(self) -> None:
        """Let go; what runs goes on."""
        wire, self._wire = self._wire, None
        if wire is not None and wire.transport is not None:
            wire.transport.abortConnection()  # type: ignore[attr-defined]  # a unix transport has it
        self._executions.clear()

    # ---- asking

    def perform(self, entry: JournalEntry, player: str, execution: Execution) -> None:
        """Have a run started, once."""
        self._executions[entry.seq] = execution
        execution.makeConnection(Performed(self, entry.seq))
        self._say(
            {
                "type": "perform",
                "seq": entry.seq,
                "job": entry.job,
                "task": entry.task,
                "attempt": entry.attempt,
                "score": entry.score,
                "params": entry.params,
                "player": player,
                "digest": entry.digest,
            }
        )

    def adopt(self, seq: int, execution: Execution, started_at: int) -> None:
        """Hear of a run that an earlier player daemon had started."""
        self._executions[seq] = execution
        execution.makeConnection(Performed(self, seq))
        execution.under_way(started_at)

    def kill(self, seq: int, reason: str) -> None:
        """End a run: TERM, its grace, KILL."""
        self._say({"type": "kill", "seq": seq, "reason": reason})

    def forget(self, seqs: Iterable[int]) -> None:
        """The stage may remove every trace of these."""
        self._say({"type": "forget", "seqs": list(seqs)})

    def fetch(self, seq: int, stream: int, offset: int, size: int) -> "Deferred[bytes]":
        """Kept output from ``offset`` of the stream on; NoStage if it cannot be had."""
        key = (seq, stream, offset)
        waiting: Deferred[bytes] = Deferred()
        if self._wire is None or key in self._fetches:
            waiting.errback(NoStage(socket=self._path, problem="it is not connected"))
            return waiting
        self._fetches[key] = waiting
        self._say({"type": "fetch", "seq": seq, "stream": stream, "offset": offset, "size": size})
        return waiting

    def _say(self, message: Mapping[str, object]) -> None:
        if self._wire is not None and self._wire.transport is not None:
            self._wire.transport.write(encode(message))

    # ---- hearing

    def heard(self, text: bytes, body: bytes) -> None:
        """A message of the stage."""
        message = json.loads(text)
        kind = message["type"]
        if kind == "ended":
            self._ended(int(message["seq"]), _outcome(message["outcome"], body)[0])
        elif kind == "started":
            self._started(int(message["seq"]), int(message["pid"]), int(message["at"]))
        elif kind == "refused":
            execution = self._executions.pop(int(message["seq"]), None)
            if execution is not None:
                execution.refused(str(message["reason"]))
        elif kind == "piece":
            self._piece(message, body)
        elif kind == "stage":
            introduced, self._introduced = self._introduced, None
            if introduced is not None:
                introduced.callback(_standing(message["runs"], body))
        elif kind == "alarm":
            self.log.critical("run {seq} survives SIGKILL: {reason}", seq=message["seq"], reason=message["reason"])

    def _started(self, seq: int, pid: int, at: int) -> None:
        execution = self._executions.get(seq)
        if execution is not None:
            transport: Any = execution.transport
            transport.pid = pid
            execution.under_way(at)

    def _ended(self, seq: int, outcome: Outcome) -> None:
        execution = self._executions.pop(seq, None)
        if execution is None:
            return
        execution.outcome = outcome
        rc, number = outcome.fields.get("rc"), outcome.fields.get("signal")
        reason = Failure(ProcessDone(0) if rc == 0 else ProcessTerminated(rc, number))
        execution.processExited(reason)
        execution.processEnded(reason)

    def _piece(self, message: Mapping[str, Any], body: bytes) -> None:
        waiting = self._fetches.pop((message["seq"], message["stream"], message["offset"]), None)
        if waiting is None:
            return
        if message["gone"]:
            waiting.errback(NoStage(socket=self._path, problem="it does not have that output any more"))
        else:
            waiting.callback(body)

    def lost(self, wire: "_Wire", reason: Failure) -> None:
        """The connection is gone."""
        if wire is not self._wire:
            return
        self._wire = None
        self._executions.clear()
        fetches, self._fetches = self._fetches, {}
        for waiting in fetches.values():
            waiting.errback(NoStage(socket=self._path, problem="its connection is gone"))
        introduced, self._introduced = self._introduced, None
        if introduced is not None:
            introduced.errback(reason)
        else:
            self._listener.stage_lost(reason.getErrorMessage())


class _Wire(TwistedProtocol):
    def __init__(self, backstage: Backstage) -> None:
        self._backstage = backstage
        self._frames = Frames(MOST_TO_PLAYER)

    def dataReceived(self, data: bytes) -> None:
        try:
            for text, body in self._frames.feed(data):
                self._backstage.heard(text, body)
        except BadFrame:
            assert self.transport is not None
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._backstage.lost(self, reason)


def _outcome(said: dict[str, Any], body: bytes) -> tuple[Outcome, bytes]:
    """The outcome, and the bytes that belong to the next one."""
    first = said["stdout"].get("inline") or 0
    second = first + (said["stderr"].get("inline") or 0)
    return Outcome(said, body[:first], body[first:second]), body[second:]


def _standing(runs: Mapping[str, Mapping[str, Any]], body: bytes) -> Standing:
    running: dict[int, int] = {}
    done: dict[int, Outcome] = {}
    swept: set[int] = set()
    for seq, run in runs.items():
        if run["state"] == "running":
            running[int(seq)] = run["started_at"]
        elif run["state"] == "swept":
            swept.add(int(seq))
        else:
            done[int(seq)], body = _outcome(run["outcome"], body)
    return Standing(running, done, frozenset(swept))


async def start_stage(reactor: Any, chosen: PlayerSettings) -> None:
    """Start a stage that outlives us; returns when it is ready. StageNotStarted says why not."""
    os.makedirs(chosen.stage_dir, mode=0o700, exist_ok=True)
    arguments = ["-I", "-S", "-X", "utf8", os.path.abspath(stage_program.__file__)]
    arguments += ["--socket", chosen.stage, "--dir", chosen.stage_dir, "--scores", chosen.scores]
    arguments += ["--score-user", chosen.score_user, "--log", os.path.join(chosen.stage_dir, "stage.log")]
    arguments += ["--linger", str(LINGER), "--detach"]
    _, err, status = await getProcessOutputAndValue(sys.executable, arguments, env={}, reactor=reactor)
    if status:
        raise StageNotStarted(problem=err.decode(errors="replace").strip()[-500:])
