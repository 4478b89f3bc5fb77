"""The player as a service: what conductor and stage say goes to the worklist; what it answers is saved, then done.

At start it settles with its stage what is still running there, and only then connects to a conductor.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from orchestra import __version__, parameters
from orchestra.audience.desk import Reloaded
from orchestra.core.worklist import GapInSequence, Judgement, Steps, Worklist
from orchestra.errors import EX_SOFTWARE, NotSaved, OrchestraError, StoreFailed, UnfitScore
from orchestra.model import (
    PROTOCOL,
    Announce,
    Hello,
    JournalChange,
    JournalEntry,
    Perform,
    Report,
    Run,
    Started,
    Welcome,
)
from orchestra.player.backstage import Backstage, Standing
from orchestra.player.execution import Execution
from orchestra.player.line import Connector, Line
from orchestra.player.repertoire import Repertoire
from orchestra.player.reporting import Reporter
from orchestra.store.journal import Journal
from orchestra.store.reserve import Reserve
from orchestra.store.writer import Writer
from orchestra.wire import commands

TICK: Final = 1.0
LOOK_AT_DISK: Final = 10.0
LOOK_AT_CERTIFICATES: Final = 60.0
WARN_EVERY: Final = 86_400.0
NOTHING: Final = JournalChange()
STAGE_RETRY: Final = 1.0


class Player(Service):
    """One node's player."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        *,
        name: str,
        slots: int,
        boot: str,
        boot_clock: Callable[[], int],
        wall: Callable[[], int],
        journal: Journal,
        writer: Writer,
        repertoire: Repertoire,
        start_stage: Callable[[], Awaitable[None]] | None,
        make_backstage: Callable[[str, "Player"], Backstage],
        make_connector: Callable[["Player"], Connector],
        reload_certificates: Callable[[], list[str]],
        warnings: Callable[[], list[str]],
        fail: Callable[[int], object],
        reserve: int = 32 << 20,
    ) -> None:
        """``start_stage`` is None when the stage has a unit of its own; the rest is made by the tap."""
        self._reactor = reactor
        self._name = name
        self._slots = slots
        self._boot = boot
        self._boot_clock = boot_clock
        self._wall = wall
        self._journal = journal
        self._writer = writer
        self._repertoire = repertoire
        self._start_stage = start_stage
        self._make_backstage = make_backstage
        self._connector = make_connector(self)
        self._reload_certificates = reload_certificates
        self._warnings = warnings
        self._fail = fail
        self._reserve = Reserve(journal.directory, reserve)
        self._told_note = ""
        self._reporter = Reporter(reactor, self._fetch, self._reported)
        self._backstage: Backstage
        self._worklist: Worklist
        self._line: Line | None = None
        self._unsaved = 0
        self._waiting_for_stage: list[JournalEntry] = []
        self._lasting: dict[int, Started] = {}  # runs under way that the conductor was not told of yet
        self._loops: list[LoopingCall] = []
        self._stopping = False

    # ---- start and stop

    def startService(self) -> None:
        """Read the journal, find the stage, then the conductor."""
        Service.startService(self)
        if not self._journal.identity:
            self._journal.open()
        if self._journal.note:
            self.log.error("{note}", note=self._journal.note)
        self._writer.start()
        self._repertoire.reload()
        self._worklist = Worklist(self._journal.entries, self._journal.high, self._slots, self._boot)
        self._backstage = self._make_backstage(self._journal.identity, self)
        self._loop(TICK, self._tick)
        self._loop(LOOK_AT_DISK, self._look_at_disk)
        self._loop(LOOK_AT_CERTIFICATES, self._look_at_certificates)
        self._loop(WARN_EVERY, self._warn)
        self._warn()
        version = __version__
        self.log.info("player {name} {version} is running", name=self._name, version=version)
        self._find_stage()

    def _loop(self, seconds: float, work: Callable[[], None]) -> None:
        loop = LoopingCall(work)
        loop.clock = self._reactor
        self._loops.append(loop)
        loop.start(seconds, now=False).addErrback(lambda failure: self._bug("a regular task failed", failure))

    def stopService(self) -> "Deferred[Any]":
        """Leave the conductor and the stage; what runs goes on there."""
        Service.stopService(self)
        self._stopping = True
        for loop in self._loops:
            if loop.running:
                loop.stop()
        self._connector.stop()
        self._reporter.disconnected()
        self._backstage.stop()
        return self._writer.stop().addCallback(lambda _: self._journal.close())

    def _bug(self, what: str, failure: Failure) -> None:
        """Going on could be a lie: the supervisor starts us again from the journal."""
        if self._stopping:
            return
        self.log.failure("{what}; the player stops", failure=failure, what=what)
        self._give_up()

    def _give_up(self) -> None:
        self._stopping = True
        self._fail(EX_SOFTWARE)

    # ---- save, then do

    def _enact(self, steps: Steps) -> "Deferred[None]":
        """Have the journal keep what changed, then do the rest; fires when it is on disk."""
        if steps.change == NOTHING and not self._unsaved:
            self._do(steps)
            return succeed(None)
        self._unsaved += 1
        saved = self._writer.write(lambda cursor: self._journal.save(cursor, steps.change))
        return saved.addCallbacks(self._saved, self._not_saved, (steps,))

    def _saved(self, _: None, steps: Steps) -> None:
        self._unsaved -= 1
        if not self._stopping:
            self._do(steps)

    def _not_saved(self, failure: Failure) -> Failure:
        # the mind is ahead of the disk now
        if not self._stopping:
            if failure.check(NotSaved, StoreFailed):
                self.log.critical("{problem} The player stops.", problem=failure.value)
                self._give_up()
            else:
                self._bug("the journal could not be written", failure)
        return failure

    def _do(self, steps: Steps) -> None:
        for entry in steps.adopt:
            self._backstage.adopt(entry.seq, self._execution(entry))
        for entry in steps.start:
            self._start(entry)
        for seq in steps.kill:
            self._backstage.kill(seq, "cancelled")
        if steps.forget:
            self._forget_on_stage(steps.forget)
        self._reporter.add(steps.report)

    def _later(self, steps: Steps) -> None:
        """Enact something nobody waits for; its failure has stopped us already."""
        self._enact(steps).addErrback(lambda _: None)

    # ---- the stage

    def _find_stage(self) -> None:
        if not self._stopping:
            Deferred.fromCoroutine(self._settle_with_stage()).addErrback(self._no_stage)

    async def _settle_with_stage(self) -> None:
        try:
            standing = await self._backstage.connect()
        except OrchestraError:
            if self._start_stage is None:
                raise
            await self._start_stage()
            standing = await self._backstage.connect()
        if standing.program != __version__:
            self.log.info("the stage is {theirs}, we are {ours}", theirs=standing.program, ours=__version__)
            self._backstage.upgrade()
        self._worklist.stage_lost()
        steps = self._worklist.settled(self._there(standing), standing.swept)
        await self._enact(steps)
        waiting, self._waiting_for_stage = self._waiting_for_stage, []
        for entry in waiting:
            self._start(entry)
        self._connector.start()

    def _there(self, standing: Standing) -> dict[int, Report | None]:
        there: dict[int, Report | None] = dict.fromkeys(standing.running)
        for seq, outcome in standing.done.items():
            entry = self._worklist.entries.get(seq)
            if entry is not None:
                there[seq] = outcome.report(entry)
            else:
                self._forget_on_stage((seq,))
        return there

    def _no_stage(self, failure: Failure) -> None:
        if self._stopping:
            return
        if isinstance(failure.value, OrchestraError):
            self.log.error("{problem} Trying again.", problem=failure.value.sentence)
        else:
            self.log.failure("the stage cannot be reached; trying again", failure=failure)
        self._reactor.callLater(STAGE_RETRY, self._find_stage)

    def stage_lost(self, reason: str) -> None:
        """The stage's connection is gone: nothing is started until it is settled with the next one."""
        if not self._stopping:
            self.log.error("the stage is gone: {reason}", reason=reason)
            self._worklist.stage_lost()
            self._lasting.clear()
            self._find_stage()

    def stage_upgraded(self, program: str, reason: str) -> None:
        """The stage has become what is on its disk, or could not; work goes on either way."""
        if reason:
            self.log.error("the stage is still {program}: {reason}", program=program, reason=reason)
        else:
            self.log.info("the stage is {program} now", program=program)

    def _start(self, entry: JournalEntry) -> None:
        if self._worklist.asked(entry.seq):
            self._backstage.perform(entry, self._name, self._execution(entry))
        elif not self._worklist.stage_up:
            self._waiting_for_stage.append(entry)

    def _execution(self, entry: JournalEntry) -> Execution:
        return Execution(entry, started=self._started, ended=self._ended)

    def _started(self, entry: JournalEntry, at: int) -> None:
        self._lasting[entry.seq] = Started(entry.seq, entry.job, entry.task, at)

    def _ended(self, report: Report) -> None:
        self._lasting.pop(report.seq, None)
        self._later(self._worklist.ended(report))

    def _forget_on_stage(self, seqs: tuple[int, ...]) -> None:
        if self._backstage.up:
            self._backstage.forget(seqs)

    async def _fetch(self, seq: int, stream: int, offset: int, size: int) -> bytes:
        return await self._backstage.fetch(seq, stream, offset, size)

    # ---- the conductor

    def hello(self) -> Hello:
        """How we introduce ourselves."""
        note = self._told_note = self._disk_trouble()
        return Hello(
            protocol=PROTOCOL,
            version=__version__,
            journal=self._journal.identity,
            boot=self._boot,
            high=self._worklist.high,
            slots=0 if note else self._slots,
            catalogue=self._repertoire.catalogue.digest,
            note=note,
        )

    def _disk_trouble(self) -> str:
        self._reserve.look()
        return self._reserve.trouble

    async def welcomed(self, line: Line, welcome: Welcome) -> None:
        """Settle what is open; then report, announce, and start what waits."""
        self._line = line
        self._reporter.connected(line)
        await self._enact(self._worklist.welcomed(welcome))
        self.log.info("connected to {peer}", peer=line.describe())
        if self._repertoire.catalogue.digest in welcome.wanted:
            self._announce()

    def _announce(self) -> None:
        if self._line is not None:
            self._line.say(commands.ANNOUNCE, Announce(self._repertoire.catalogue)).addErrback(self._not_announced)

    def _not_announced(self, failure: Failure) -> None:
        if self._line is not None and not self._line.closed:
            self.log.error("the conductor did not take our list of scores: {reason}", reason=failure.value)
            self._line.hang_up()

    async def perform(self, line: Line, perform: Perform) -> None:
        """Accept runs; returning means that they are on disk."""
        if line is not self._line:
            return
        try:
            steps = self._worklist.perform(perform, self._judge, self._boot_clock())
        except GapInSequence:
            self.log.error("{peer} skipped a number: the connection is closed", peer=line.describe())
            line.abort()
            return
        await self._enact(steps)

    def _judge(self, run: Run) -> Judgement:
        problem = parameters.problem(run.params)
        if problem:
            return Judgement(refusal=problem)
        try:
            score = self._repertoire.find(run.score)
        except UnfitScore as refusal:
            return Judgement(refusal=refusal.sentence)
        if run.digest and run.digest != score.digest:
            return Judgement(
                refusal=f"the score '{run.score}' here is not the one that was asked for (digest {score.digest[:12]})"
            )
        return Judgement(concurrency=score.rules.concurrency)

    async def cancel(self, seqs: list[int]) -> None:
        """Cancel runs; returning means: settled, or being killed."""
        await self._enact(self._worklist.cancelled(seqs))

    def disconnected(self, line: Line) -> None:
        """The line is down; what runs goes on."""
        if line is self._line:
            self._line = None
            self._worklist.disconnected()
            self._reporter.disconnected()

    def _reported(self, seqs: list[int]) -> None:
        steps = self._worklist.reported(seqs)
        if steps.forget:
            self._forget_on_stage(steps.forget)

    # ---- time

    def _tick(self) -> None:
        self._later(self._worklist.tick(self._boot_clock()))
        before = self._wall() - 1000
        lasting = [run for run in self._lasting.values() if run.started_at <= before]
        if lasting and self._line is not None:
            for run in lasting:
                del self._lasting[run.seq]
            self._line.say(commands.PROGRESS, lasting).addErrback(lambda _: None)

    def _look_at_disk(self) -> None:
        if self._repertoire.changed_on_disk():
            self._reload_scores()
        if self._line is not None and bool(self._disk_trouble()) != bool(self._told_note):
            self.log.warn("the room on the journal's disk has changed: saying Hello anew")
            self._line.hang_up()

    def _look_at_certificates(self) -> None:
        try:
            for line in self._reload_certificates():
                self.log.info("{line}", line=line)
        except OrchestraError as problem:
            self.log.error("{problem} The certificates read before stay in force.", problem=problem.sentence)

    def _warn(self) -> None:
        for warning in self._warnings():
            self.log.warn("{warning}", warning=warning)

    def _reload_scores(self) -> list[str]:
        before = self._repertoire.catalogue.digest
        changes = list(self._repertoire.reload())
        for line in changes:
            self.log.info("{line}", line=line)
        if self._repertoire.catalogue.digest != before:
            self._announce()
        return changes

    async def reload(self) -> Reloaded:
        """Read scores and certificates again; what cannot be used is refused and the old one stays."""
        changed = self._reload_scores()
        try:
            certificates = self._reload_certificates()
        except OrchestraError as problem:
            self.log.error("reload refused: {problem}", problem=problem.sentence)
            return Reloaded(changed=tuple(changed), refused=(problem.sentence,))
        for line in certificates or ([] if changed else ["nothing has changed"]):
            self.log.info("reload: {line}", line=line)
        self._connector.again()
        return Reloaded(changed=(*changed, *certificates))
