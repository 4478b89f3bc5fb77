"""The player as a service: what conductor and stage say goes to the worklist; what it answers is saved, then done.

At start it settles with its stage what is still running there, and only then connects to a conductor.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from orchestra import __version__
from orchestra.audience.node import Drained, Idle, Killing, NodeStatus
from orchestra.core.worklist import GapInSequence, Judgement, Steps, Worklist
from orchestra.errors import EX_SOFTWARE, NoStage, NoSuchRun, NotSaved, OrchestraError, StoreFailed, UnfitScore
from orchestra.model import (
    PROTOCOL,
    Announce,
    Facts,
    Hello,
    JournalChange,
    JournalEntry,
    Perform,
    Reloaded,
    Report,
    Run,
    Started,
    Welcome,
)
from orchestra.parameters.declared import no_dry_run
from orchestra.parameters.declared import refusal as breach
from orchestra.player import onsite
from orchestra.player.backstage import Backstage, Standing
from orchestra.player.drain import Marker
from orchestra.player.execution import Execution
from orchestra.player.line import Connector, Line
from orchestra.player.repertoire import Repertoire
from orchestra.player.reporting import Reporter
from orchestra.player.scorefile import other_digest
from orchestra.settings import needs_restart
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
NO_FACTS: Final = Facts("", {})
NOT_LOOKED: Final = "it has not been looked for yet"


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
        read_facts: Callable[[], Facts] = lambda: NO_FACTS,
        stale_settings: Callable[[], list[str]] = list,
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
        self._read_facts = read_facts
        self._facts = NO_FACTS
        self._start_stage = start_stage
        self._make_backstage = make_backstage
        self._connector = make_connector(self)
        self._reload_certificates = reload_certificates
        self._stale_settings = stale_settings
        self._warnings = warnings
        self._fail = fail
        self._reserve = Reserve(journal.directory, reserve)
        self._told_note = ""
        self._introduced = ("", "")
        self._reporter = Reporter(reactor, self._fetch, self._reported)
        self._backstage: Backstage
        self._worklist: Worklist
        self._line: Line | None = None
        self._unsaved = 0
        self._waiting_for_stage: list[JournalEntry] = []
        # runs under way that the conductor was not told of yet, and since when (monotonic) we know of them
        self._lasting: dict[int, tuple[Started, float]] = {}
        self._alarms: dict[int, Started] = {}  # runs that should have ended, and do not
        self._marker = Marker(journal.directory)
        self._standing: Standing | None = None
        self._stage_problem = NOT_LOOKED
        self._connected_at: int | None = None
        self._idle: list[Deferred[None]] = []
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
        self._reload_facts()
        for refused in self._repertoire.catalogue.refused:
            self.log.warn("'{score}' refused: {reason}", score=refused.name, reason=refused.reason)
        self._worklist = Worklist(self._journal.entries, self._journal.high, self._slots, self._boot)
        self._backstage = self._make_backstage(self._journal.identity, self)
        self._marker.read()
        if self._marker.drained is not None:
            self.log.warn("{note}", note=onsite.drained_note(self._marker.drained))
            self._later(self._worklist.drain())
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
        saved = self._writer.write(lambda cursor: self._journal.save(cursor, steps.change), brief=True)
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
        if steps.start:
            for entry in steps.start:
                self._start(entry)
            self._backstage.flush()
        for seq in steps.kill:
            self._backstage.kill(seq, "cancelled")
        if steps.forget:
            self._forget_on_stage(steps.forget)
        self._reporter.add(steps.report)
        if not self._worklist.running:
            self._tell_idle()

    def _tell_idle(self) -> None:
        waiting, self._idle = self._idle, []
        for one in waiting:
            one.callback(None)

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
        if self._stage_problem != NOT_LOOKED:
            self.log.info("the stage is there")
        self._standing, self._stage_problem = standing, ""
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
        known, self._standing, self._stage_problem = self._stage_problem, None, str(failure.value)
        if not isinstance(failure.value, OrchestraError):
            self.log.failure("the stage cannot be reached; trying again", failure=failure)
        elif known != self._stage_problem:  # said once, though it is tried every second
            self.log.error("{problem} Trying again.", problem=failure.value.sentence)
        self._reactor.callLater(STAGE_RETRY, self._find_stage)

    def stage_lost(self, reason: str) -> None:
        """The stage's connection is gone: nothing is started until it is settled with the next one."""
        if not self._stopping:
            self.log.error("the stage is gone: {reason}", reason=reason)
            self._standing, self._stage_problem = None, reason
            self._worklist.stage_lost()
            self._lasting.clear()
            self._alarms.clear()
            self._find_stage()

    def stage_upgraded(self, program: str, reason: str) -> None:
        """The stage has become what is on its disk, or could not; work goes on either way."""
        if reason:
            self.log.error("the stage is still {program}: {reason}", program=program, reason=reason)
        else:
            self._standing = self._standing and replace(self._standing, program=program)
            self.log.info("the stage is {program} now", program=program)

    def _start(self, entry: JournalEntry) -> None:
        if self._worklist.asked(entry.seq):
            secrets = self._worklist.secrets(entry.seq)
            self._backstage.perform(entry, self._name, self._execution(entry), secrets)
        elif not self._worklist.stage_up:
            self._waiting_for_stage.append(entry)

    def _execution(self, entry: JournalEntry) -> Execution:
        return Execution(entry, started=self._started, ended=self._ended, alarmed=self._alarmed)

    def _started(self, entry: JournalEntry, at: int) -> None:
        self._lasting[entry.seq] = Started(entry.seq, entry.job, entry.task, at), self._reactor.seconds()

    def _alarmed(self, entry: JournalEntry, words: str) -> None:
        process = self._backstage.process(entry.seq)
        since = process.started_at if process is not None else None
        self._alarms[entry.seq] = Started(entry.seq, entry.job, entry.task, since or self._wall(), words)
        self._say_progress([self._alarms[entry.seq]])

    def _say_progress(self, runs: list[Started]) -> None:
        if runs and self._line is not None:
            self._line.say(commands.PROGRESS, runs).addErrback(lambda _: None)

    def _ended(self, report: Report) -> None:
        self._lasting.pop(report.seq, None)
        self._alarms.pop(report.seq, None)
        self._later(self._worklist.ended(report))

    def _forget_on_stage(self, seqs: tuple[int, ...]) -> None:
        if self._backstage.up:
            self._backstage.forget(seqs)

    async def _fetch(self, seq: int, stream: int, offset: int, size: int) -> bytes:
        return await self._backstage.fetch(seq, stream, offset, size)

    # ---- the conductor

    def hello(self) -> Hello:
        """How we introduce ourselves."""
        note = self._told_note = self._no_work()
        catalogue, facts = self._introduced = self._digests()
        return Hello(
            protocol=PROTOCOL,
            version=__version__,
            journal=self._journal.identity,
            boot=self._boot,
            high=self._worklist.high,
            slots=0 if note else self._slots,
            catalogue=catalogue,
            facts=facts,
            note=note,
        )

    def _digests(self) -> tuple[str, str]:
        return self._repertoire.catalogue.digest, self._facts.digest

    def _no_work(self) -> str:
        """Why we take no work, if we do not."""
        drained = self._marker.drained
        return self._disk_trouble() if drained is None else onsite.drained_note(drained)

    def _disk_trouble(self) -> str:
        self._reserve.look()
        return self._reserve.trouble

    async def welcomed(self, line: Line, welcome: Welcome) -> None:
        """Settle what is open; then report, announce, and start what waits."""
        self._line = line
        self._reporter.connected(line)
        await self._enact(self._worklist.welcomed(welcome))
        self._connected_at = self._wall()
        self._say_progress(list(self._alarms.values()))
        self.log.info("connected to {peer}", peer=line.describe())
        catalogue, facts = (  # they may have changed since Hello
            now in welcome.wanted or now != then for now, then in zip(self._digests(), self._introduced, strict=True)
        )
        if catalogue or facts:
            self._announce(catalogue=catalogue, facts=facts)

    def _announce(self, *, catalogue: bool = False, facts: bool = False) -> None:
        if self._line is not None:
            news = Announce(self._repertoire.catalogue if catalogue else None, self._facts if facts else None)
            self._line.say(commands.ANNOUNCE, news).addErrback(self._not_announced)

    def _not_announced(self, failure: Failure) -> None:
        if self._line is not None and not self._line.closed:
            self.log.error("the conductor did not take our scores and facts: {reason}", reason=failure.value)
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
        if run.trouble:
            return Judgement(refusal=run.trouble)
        try:
            score = self._repertoire.find(run.score)
        except UnfitScore as refusal:
            return Judgement(refusal=refusal.sentence)
        if run.digest and run.digest != score.digest:
            return Judgement(refusal=other_digest(run.score, score.digest, run.digest))
        if problem := breach(score.rules.params, run.params, run.secrets):
            return Judgement(refusal=problem)
        if run.dry_run and not score.rules.dry_run:
            return Judgement(refusal=no_dry_run(run.score))
        return Judgement(concurrency=score.rules.concurrency, lock=score.rules.lock)

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
        before = self._reactor.seconds() - 1.0
        lasting = [run for run, known_at in self._lasting.values() if known_at <= before]
        if self._line is not None:
            for run in lasting:
                del self._lasting[run.seq]
            self._say_progress(lasting)

    def _look_at_disk(self) -> None:
        if self._repertoire.changed_on_disk():
            self._reload_scores()
        if self._line is not None and bool(self._no_work()) != bool(self._told_note):
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
            self._announce(catalogue=True)
        return changes

    def _reload_facts(self) -> list[str]:
        before, self._facts = self._facts, self._read_facts()
        if self._facts.digest == before.digest:
            return []
        for problem in self._facts.problems:
            self.log.error("{problem}", problem=problem)
        changed = sorted(name for name, _ in before.facts.items() ^ self._facts.facts.items())
        lines = [f"facts that are new, gone or other: {', '.join(dict.fromkeys(changed))}"] if changed else []
        for line in lines if before is not NO_FACTS else ():
            self.log.info("{line}", line=line)
        self._announce(facts=True)
        return lines

    # ---- the node's own operator

    def status(self) -> NodeStatus:
        """What we run, what we have yet to report, and whom we can reach."""
        return NodeStatus(
            name=self._name,
            version=__version__,
            slots=self._slots,
            runs=onsite.runs(self._worklist, self._backstage, self._repertoire, self._boot_clock(), self._alarms),
            outcomes=onsite.outcomes(self._worklist),
            unacknowledged=sum(entry.report is not None for entry in self._worklist.entries.values()),
            stage=onsite.stage(self._backstage, self._standing, self._stage_problem),
            reach=onsite.reach(self._connector.reach, self._connected_at),
            drained=self._marker.drained,
            trouble=self._disk_trouble(),
        )

    async def drain(self, by: str, reason: str) -> Idle:
        """Take no more work, from here on and after a restart; what has not started goes back."""
        if self._marker.drained is None:
            self._marker.put(Drained(at=self._wall(), by=by, reason=reason))
            self.log.warn("{by} drains this player: {reason}", by=by, reason=reason or "no reason was given")
            self._introduce_anew()
            await self._enact(self._worklist.drain())
        return self._busy()

    async def undrain(self, by: str) -> bool:
        """Take work again; whether we did not."""
        was = self._marker.drained is not None
        if was:
            self._marker.remove()
            self.log.warn("{by} has this player take work again", by=by)
            self._worklist.undrain()
            self._introduce_anew()
        return was

    def _introduce_anew(self) -> None:
        # what is said from here on is said after the next Welcome, to a conductor that knows
        if self._line is not None:
            self.disconnected(self._line)
        self._connector.anew()

    def _busy(self) -> Idle:
        return Idle(running=self._worklist.running, waiting=self._worklist.waiting)

    async def idle(self, within: float) -> Idle:
        """How much goes on, once nothing runs or after ``within`` seconds."""
        if self._worklist.running:
            nothing_runs: Deferred[None] = Deferred()
            self._idle.append(nothing_runs)
            patience = self._reactor.callLater(within, onsite.fire, nothing_runs, self._idle)
            await nothing_runs
            if patience.active():
                patience.cancel()
        return self._busy()

    def kill(self, by: str, seqs: tuple[int, ...] | None) -> Killing:
        """End these runs now, or all that have started."""
        if not self._backstage.up:
            raise NoStage(socket=self._backstage.socket, problem=self._stage_problem)
        chosen = tuple(self._worklist.entries) if seqs is None else seqs
        started = tuple(seq for seq in chosen if self._worklist.started(seq))
        for seq in () if seqs is None else set(seqs).difference(started):
            raise NoSuchRun(seq=seq, problem=onsite.why_not_running(self._worklist, seq))
        for seq in started:
            self._backstage.kill(seq, f"killed on the node by {by}")
            self.log.warn("{by} kills run {seq}", by=by, seq=seq)
        return Killing(seqs=started, waiting=self._worklist.waiting)

    # ---- reload

    async def reload(self) -> Reloaded:
        """Read scores, facts and certificates again; what cannot be used is refused and the old one stays."""
        changed = [*self._reload_scores(), *self._reload_facts()]
        certificates: list[str] = []
        refused: list[str] = []
        try:
            certificates = self._reload_certificates()
            if stale := self._stale_settings():
                refused.append(needs_restart(stale, "player"))
        except OrchestraError as problem:
            refused.append(problem.sentence)
        for line in refused:
            self.log.error("reload refused: {line}", line=line)
        for line in certificates or ([] if changed or refused else ["nothing has changed"]):
            self.log.info("reload: {line}", line=line)
        self._connector.again()
        return Reloaded(changed=(*changed, *certificates), refused=tuple(refused))
