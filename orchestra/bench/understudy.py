"""An emulated player: it knows every part and performs none.

Everything between the conductor and the worklist is the player's own code: line, reporter, worklist. Left out are the
disk (its journal is memory: a new process is a new journal, and the conductor is told so) and the stage (a run ends
after a given time, or at once, and is ``ok``, or ``failed`` if it was told to fail).
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from orchestra import __version__
from orchestra.core.worklist import GapInSequence, Judgement, Steps, Worklist
from orchestra.errors import OutputGone
from orchestra.model import (
    PROTOCOL,
    Announce,
    Catalogue,
    Hello,
    JournalEntry,
    Perform,
    Report,
    Run,
    ScoreEntry,
    Told,
    Welcome,
)
from orchestra.player.line import Line
from orchestra.player.reporting import Reporter
from orchestra.wire import commands

BOOT: Final = "emulated"
HOUR: Final = 3_600_000


class Crowd(Protocol):
    """Who counts the emulated players and what they do."""

    def entered(self, understudy: "Understudy") -> None: ...
    def left(self, understudy: "Understudy") -> None: ...
    def performed(self, many: int) -> None: ...


def catalogue(scores: tuple[str, ...], slots: int) -> Catalogue:
    """What every emulated player has on its disk, or would have."""
    entries = tuple(
        ScoreEntry(
            name=name,
            digest="emulated",
            description="Emulated: ends well, without a process",
            interface="env",
            timeout=HOUR,
            kill_grace=10_000,
            concurrency=slots,
            idempotent=False,
            max_attempts=1,
        )
        for name in sorted(scores)
    )
    return Catalogue.of(entries, ())


class Understudy:
    """One emulated player; a :class:`~orchestra.player.line.Listener`."""

    log = Logger()

    def __init__(
        self,
        clock: Any,
        journal: str,
        repertoire: Catalogue,
        slots: int,
        seconds: float,
        crowd: Crowd,
        wall: Callable[[], int],
        fails: bool = False,
    ) -> None:
        """``journal``: its id; ``seconds``: how long a run lasts; ``wall``: milliseconds since 1970."""
        self._clock = clock
        self._journal = journal
        self._repertoire = repertoire
        self._scores = {entry.name: entry for entry in repertoire.scores}
        self._slots = slots
        self._seconds = seconds
        self._crowd = crowd
        self._wall = wall
        self._end = Told.FAILED if fails else Told.OK
        self._line: Line | None = None
        self._worklist = Worklist((), 0, slots, BOOT)
        self._worklist.settled({}, ())
        self._reporter = Reporter(clock, self._no_output, self._answered)
        self._running: dict[int, tuple[JournalEntry, int, IDelayedCall]] = {}

    # ---- the conductor

    def hello(self) -> Hello:
        """How it introduces itself."""
        return Hello(
            protocol=PROTOCOL,
            version=__version__,
            journal=self._journal,
            boot=BOOT,
            high=self._worklist.high,
            slots=self._slots,
            catalogue=self._repertoire.digest,
        )

    async def welcomed(self, line: Line, welcome: Welcome) -> None:
        """Settle what is open, as a player does, and report what was not acknowledged."""
        self._line = line
        self._reporter.connected(line)
        self._do(self._worklist.welcomed(welcome))
        if self._repertoire.digest in welcome.wanted:
            line.say(commands.ANNOUNCE, Announce(self._repertoire)).addErrback(lambda _: line.hang_up())
        self._crowd.entered(self)

    async def perform(self, line: Line, perform: Perform) -> None:
        """Accept runs."""
        if line is not self._line:
            return
        try:
            steps = self._worklist.perform(perform, self._judge, self._wall())
        except GapInSequence:
            self.log.error("{peer} skipped a number: the connection is closed", peer=line.describe())
            line.abort()
            return
        self._do(steps)

    def _judge(self, run: Run) -> Judgement:
        entry = self._scores.get(run.score)
        if entry is None:
            return Judgement(refusal=f"an emulated player has no score '{run.score}'")
        return Judgement(concurrency=entry.concurrency)

    async def cancel(self, seqs: list[int]) -> None:
        """End runs: what runs is killed at once."""
        self._do(self._worklist.cancelled(seqs))

    def disconnected(self, line: Line) -> None:
        """The line is down; what runs goes on."""
        if line is self._line:
            self._line = None
            self._worklist.disconnected()
            self._reporter.disconnected()
        self._crowd.left(self)

    def tick(self) -> None:
        """What could not start in time never will."""
        if self._worklist.waiting:
            self._do(self._worklist.tick(self._wall()))

    def _answered(self, seqs: list[int]) -> None:
        self._worklist.reported(seqs)

    async def _no_output(self, seq: int, stream: int, offset: int, size: int) -> bytes:
        raise OutputGone(seq=seq)

    # ---- the run that is none

    def _do(self, steps: Steps) -> None:
        ahead = deque([steps])
        while ahead:
            step = ahead.popleft()
            self._reporter.add(step.report)
            ahead.extend(self._killed(seq) for seq in step.kill)
            ahead.extend(self._begun(step.start))

    def _begun(self, entries: Iterable[JournalEntry]) -> Iterator[Steps]:
        started = [entry for entry in entries if self._worklist.asked(entry.seq)]
        self._crowd.performed(len(started))
        now = self._wall()
        for entry in started:
            if self._seconds:
                call = self._clock.callLater(self._seconds, self._over, entry.seq)
                self._running[entry.seq] = entry, now, call
            else:
                yield self._ended(entry, now, self._end)

    def _over(self, seq: int) -> None:
        entry, begun, _ = self._running.pop(seq)
        self._do(self._ended(entry, begun, self._end))

    def _killed(self, seq: int) -> Steps:
        entry, begun, call = self._running.pop(seq)
        call.cancel()
        return self._ended(entry, begun, Told.KILLED)

    def _ended(self, entry: JournalEntry, begun: int, told: Told) -> Steps:
        report = Report(
            *(entry.seq, entry.job, entry.task, entry.attempt, told),
            rc={Told.OK: 0, Told.FAILED: 1}.get(told),
            started_at=begun,
            ended_at=self._wall(),
            digest=self._scores[entry.score].digest,
        )
        return self._worklist.ended(report)
