"""The house, put together: conductors on one store, players on their machines, and an audience that remembers.

Everything here is the real thing, except what ``network``, ``disks`` and ``machine`` stand in for.
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Final, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.python.failure import Failure
from zope.interface import implementer

from orchestra import settings
from orchestra.audience.node import Drained
from orchestra.conductor.desk import FrontDesk
from orchestra.conductor.dispatch import Dispatch
from orchestra.conductor.feed import Feed
from orchestra.conductor.service import Conductor, Roster
from orchestra.errors import NotSaved, OrchestraError, RequestKeyConflict
from orchestra.model import Ask, Asker, Braking, Catalogue, Choice, JournalEntry, RunState, Scope, ScoreEntry
from orchestra.player.backstage import Backstage
from orchestra.player.line import Connector
from orchestra.player.rules import read_rules
from orchestra.player.scorefile import ScoreFile, no_such_score
from orchestra.player.service import Player
from orchestra.settings import ConductorAddress
from orchestra.store import statements
from orchestra.store.prune import prune
from simulation import disks, machine
from simulation.clockwork import Process, Timeline
from simulation.machine import Machine, Start
from simulation.network import Network

EPOCH: Final = 1_780_000_000_000  # the wall clock at the beginning, milliseconds
EXPIRE: Final = 60_000
BEAT: Final = 4.0
REMOVAL_GRACE: Final = 8_000
ANNE: Final = Asker(name="anne", uid=1000)
SCORES: Final = {"once": False, "again": True, "rare": False}
"""Scores by name, and whether they are idempotent."""
CONCURRENCY: Final = {"once": 2, "again": 1, "rare": 1}
LOCKS: Final = {"again": "tape", "rare": "tape"}
MAX_ATTEMPTS: Final = 3

_journal_entry = msgspec.msgpack.Decoder(JournalEntry)


class _Role(NamedTuple):
    role: str


@implementer(IOpenSSLServerConnectionCreator)
class Papers:
    """Credentials that are never looked at: the network hands identities in."""

    def __init__(self, role: str) -> None:
        self.credentials = self
        self.role = role

    def serverConnectionForTLS(self, protocol: object) -> object:
        raise NotImplementedError  # there is no TLS here

    def stale(self) -> bool:
        return False

    def warnings(self, now: int) -> tuple[str, ...]:
        return ()


@cache
def conductor_settings() -> settings.ConductorSettings:
    """The sample configuration, with shorter times."""
    conf = Path(__file__).parents[2] / "conf"
    return settings.conductor(str(conf))._replace(
        listen=(settings.Listen("conductor", 2258),),
        default_expire=EXPIRE,
        removal_grace=REMOVAL_GRACE,
        beat=int(BEAT * 1000),
        hello_timeout=5_000,
    )


class Shelf:
    """The scores of a node, without a directory."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.catalogue = _catalogue(())

    def reload(self) -> tuple[str, ...]:
        self.catalogue = _catalogue(self.names)
        return ()

    def changed_on_disk(self) -> bool:
        return _catalogue(self.names) is not self.catalogue

    def find(self, name: str) -> ScoreFile:
        if name not in self.names:
            raise no_such_score("/scores", name)
        return _score(name)


@cache
def _score(name: str) -> ScoreFile:
    timeout, grace = int(machine.TIMEOUT * 1000), int(machine.GRACE * 1000)
    rules = read_rules("", "")._replace(
        description=name,
        timeout=timeout,
        kill_grace=grace,
        idempotent=SCORES[name],
        max_attempts=MAX_ATTEMPTS,
        concurrency=CONCURRENCY[name],
        lock=LOCKS.get(name, ""),
    )
    return ScoreFile(name, f"/scores/{name}", rules, hashlib.sha256(name.encode()).hexdigest(), ((), None, True))


@cache
def _catalogue(names: tuple[str, ...]) -> Catalogue:
    entries = []
    for name in names:
        score = _score(name)
        rules = score.rules
        entries.append(
            ScoreEntry(
                name, score.digest, name, "env", rules.timeout, rules.kill_grace, rules.concurrency,
                rules.idempotent, rules.max_attempts,
            )
        )  # fmt: skip
    return Catalogue.of(tuple(entries), ())


class SimPlayer(Player):
    """The player's daemon; how much room its disk has is decided here."""

    node: "Node"

    def _disk_trouble(self) -> str:
        return "the disk is nearly full" if self.node.drive.full or self.node.nearly_full else ""


class Marker:
    """The file that keeps a player from taking work; it is on a disk, so it outlives the player."""

    drained: Drained | None = None

    def read(self) -> None:
        """It is known already."""

    def put(self, drained: Drained) -> None:
        self.drained = drained

    def remove(self) -> None:
        self.drained = None


class Node:
    """A player's daemon, its journal, and the machine they are on."""

    def __init__(self, world: "World", name: str, slots: int, scores: Sequence[str], *, own_stage: bool) -> None:
        self.world = world
        self.name = name
        self.slots = slots
        self.shelf = Shelf(scores)
        self.machine = Machine(world, name)
        self.own_stage = own_stage  # the player starts the stage; otherwise a unit does
        self.journals: list[Connection] = []
        self.journal_names: list[str] = []
        self.drive = disks.Drive(self._new_journal())
        self.process: Process | None = None
        self.player: SimPlayer
        self.marker = Marker()
        self.off = False  # the machine has no power
        self.nearly_full = False  # its disk: it takes no work, and goes on with what it has

    def _new_journal(self) -> Connection:
        identity = f"{self.name}-journal-{len(self.journals)}"
        self.journals.append(disks.new_journal(identity))
        self.journal_names.append(identity)
        return self.journals[-1]

    @property
    def up(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def stage_up(self) -> bool:
        stage = self.machine.stage
        return stage is not None and stage.process.alive

    @property
    def journal_name(self) -> str:
        return self.journal_names[self.journals.index(self.drive.connection)]

    def start(self) -> None:
        """What a supervisor does, if there is nothing running already."""
        if self.off:
            return
        if not self.own_stage and not self.stage_up:
            self.machine.begin_stage()
        if not self.up:
            self._start_player()

    def _start_player(self) -> None:
        world = self.world
        process = self.process = Process(world.timeline, self.name, world.network, self.name)
        self.player = SimPlayer(
            process,
            name=self.name,
            slots=self.slots,
            boot=self.machine.boot,
            boot_clock=self.machine.boot_clock,
            wall=lambda: world.wall(self.name),
            journal=disks.MemoryJournal(self.drive.connection),
            writer=disks.Writer(process, self.drive, lambda _: world.died(process)),  # type: ignore[arg-type]
            repertoire=self.shelf,  # type: ignore[arg-type]
            start_stage=(lambda: self.machine.start_stage(process)) if self.own_stage else None,
            make_backstage=lambda identity, player: Backstage(process, self.machine.path, identity, player),
            make_connector=lambda player: self._connector(process, player),
            reload_certificates=list,
            warnings=list,
            fail=lambda _: world.died(process),
        )
        self.player.node = self
        self.player._marker = self.marker  # type: ignore[assignment]
        process.enter(self.player.startService)

    def _connector(self, process: Process, player: Player) -> Connector:
        world = self.world
        names = [host.name for host in world.conductors]
        world.timeline.random.shuffle(names)
        addresses = [ConductorAddress(name, name, 2258) for name in names]
        dial = world.network.dialler(process)
        return Connector(process, addresses, Papers("player"), player, BEAT, world.timeline.random, dial)  # type: ignore[arg-type]

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def lose_power(self) -> None:
        """The machine is off until somebody switches it on."""
        self.world.lost_power(self)
        if self.process is not None:
            self.process.kill(power=True)
        self.machine.lose_power()
        self.off = True

    def lose_journal(self) -> None:
        """The journal is gone, the machine is not."""
        self.kill()
        self.drive.connection = self._new_journal()

    def old_journal(self) -> bool:
        """Somebody puts an older journal back, if there is one."""
        if len(self.journals) < 2:
            return False
        self.kill()
        self.drive.connection = self.world.timeline.random.choice(self.journals[:-1])
        return True

    def journal_in_force(self) -> None:
        """The journal that the conductor goes by is put back: an older one is refused, for good reason. Of one that it
        never knew it cannot tell that it is older."""
        row = self.world.store.execute("SELECT journal FROM players WHERE name = ?", (self.name,)).fetchone()
        known = row is not None and row[0] in self.journal_names
        right = self.journals[self.journal_names.index(row[0])] if known else self.journals[-1]
        if self.drive.connection is not right:
            self.kill()
            self.drive.connection = right

    def committed(self, seq: int) -> JournalEntry | None:
        """What the journal's disk says of a run."""
        row = self.drive.connection.execute("SELECT body FROM runs WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else _journal_entry.decode(row[0])


class Host:
    """A conductor's daemon, over its lives."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.drive = disks.Drive(world.store)
        self.process: Process | None = None
        self.lives = 0
        self.told: tuple[str, ...] = ()  # the players it knows of
        self.dispatch: Dispatch
        self.desk: FrontDesk
        self.writer: disks.Writer
        self.roster: Roster
        self.service: Conductor

    @property
    def up(self) -> bool:
        """Whether it lets anybody in."""
        return self.process is not None and self.process.alive and self.name in self.world.network.ports

    def start(self) -> None:
        if self.process is not None and self.process.alive:
            return
        world, self.lives = self.world, self.lives + 1
        self.drive.connection = world.store
        process = self.process = Process(world.timeline, self.name, world.network, self.name)
        writer = self.writer = disks.Writer(process, self.drive, lambda _: world.died(process))
        reader = disks.Reader(process, self.drive)
        now = lambda: world.wall("store")  # noqa: E731
        feed = Feed(
            lambda job, since, limit: reader.read(lambda cursor: statements.news(cursor, job, since, limit)),
            lambda job: reader.read(lambda cursor: statements.ended(cursor, job)),
        )
        self.told = tuple(world.listed)
        self.dispatch = Dispatch(writer, process, now, f"{self.name}-{self.lives}", feed)
        self.roster = Roster(self.dispatch, writer, now)
        self.service = Conductor(
            process, conductor_settings, Papers("conductor"), self.dispatch, self.roster, self.told, now,
            lambda _: world.died(process),
        )  # type: ignore[arg-type]  # fmt: skip
        self.desk = self._desk(reader, feed, now)
        process.enter(self.service.startService)

    def _desk(self, reader: disks.Reader, feed: Feed, now: Callable[[], int]) -> FrontDesk:
        return FrontDesk(
            self.dispatch, reader, feed, now=now, started_at=now(), default_domain="", default_expire=EXPIRE,
            audience_group="", gid=None, reload=self.service.reload,
        )  # fmt: skip

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()


class Submission:
    """A request, and what its asker was told of it."""

    def __init__(self, token: str, ask: Ask, host: str) -> None:
        self.token = token
        self.ask = ask
        self.host = host
        self.jobs: list[tuple[int, bool, int]] = []  # job, created, in which era of the store

    def __str__(self) -> str:
        return f"{self.token} ({self.ask.score}, {self.ask.scope} of {','.join(self.ask.targets)})"


class World:
    """All of it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.timeline = Timeline(seed)
        self.network = Network(self.timeline)
        random = self.timeline.random
        self.skew: dict[str, int] = {}  # milliseconds a wall clock is wrong, by whose it is
        self.store = disks.store()
        self.era = 0  # how often the store was put back
        self.copies: list[bytes] = []
        self.kept: dict[int, str] = {}  # jobs that were in the copy that was put back last, and their tokens
        self.gone: dict[str, int] = {}  # tokens of jobs that were pruned before that copy was taken
        self.outside: set[str] = set()  # tokens of requests that a copy did not know: nothing is promised of them
        self.facts: list[tuple[float, str, str]] = []  # (when, what, where): faults that may excuse a loss
        self.widest: dict[str, int] = {"least": EPOCH, "most": EPOCH}  # what the store's clock has ever said
        self.starts: list[Start] = []
        self.violations: list[str] = []
        self.submissions: list[Submission] = []
        self.seen: dict[tuple[int, int, int], str] = {}  # (era, job, task): the outcome a client has seen
        self.logs: dict[tuple[int, int], list[Any]] = {}  # (era, job): the events a client has seen
        self.denied: dict[tuple[str, str], int] = {}  # (token, player): cancelled there, after so many attempts
        self.cancelled: set[str] = set()  # tokens of what somebody has tried to cancel
        self.conductors = [Host(self, name) for name in ("c1", "c2")[: 2 if random.random() < 0.2 else 1]]
        self.nodes = [self._node(name) for name in ("p1", "p2", "p3")[: random.choice((1, 2, 2, 3))]]
        self.listed = [node.name for node in self.nodes]
        self.healed = False

    def _node(self, name: str) -> Node:
        random = self.timeline.random
        scores = [score for score in SCORES if score != "rare" or random.random() < 0.5]
        return Node(self, name, random.choice((1, 2, 4)), scores, own_stage=random.random() < 0.7)

    # ---- what everybody asks

    def wall(self, whose: str) -> int:
        """A wall clock, as wrong as it is now."""
        told = EPOCH + int(self.timeline.now * 1000) + self.skew.get(whose, 0)
        if whose == "store":
            self.widest["least"] = min(self.widest["least"], told)
            self.widest["most"] = max(self.widest["most"], told)
        return told

    def node(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def fact(self, what: str, where: str) -> None:
        """Something happened that a promise may be measured by."""
        self.facts.append((self.timeline.now, what, where))
        self.timeline.note("FAULT: {} ({})", what, where)

    def happened(self, what: str, where: str = "", since: float = 0.0) -> bool:
        return any(w == what and place.startswith(where) and at >= since for at, w, place in self.facts)

    def violate(self, sentence: str) -> None:
        """A promise is broken."""
        self.violations.append(f"at {self.timeline.now:.3f}: {sentence}")
        self.timeline.note("VIOLATION: {}", sentence)

    # ---- what happens

    def started(self, start: Start) -> None:
        """A process was forked for a run: whether it may have been is looked at now."""
        self.timeline.note("started: {}", start)
        entry = self.node(start.node).committed(start.key[1])
        name = self.node(start.node).journal_name
        if name == start.key[0] and (entry is None or entry.state is RunState.ACCEPTED):
            self.violate(f"a process was started before that was on the journal's disk: {start}")
        for other in self.starts:
            if other.token == start.token and other.task == start.task and other.ended_at is None:
                self.violate(f"{start}\n    was started while an earlier run lived: {other}")
        self._room_for(start)
        self.starts.append(start)

    def _room_for(self, start: Start) -> None:
        """As far as the journal goes, a score does not run more often at once than it may, nor beside who has its lock."""
        beside = [one for one in self.starts if one.key[0] == start.key[0] and not one.how]
        if sum(one.score == start.score for one in beside) >= CONCURRENCY[start.score]:
            self.violate(f"{start}\n    was started beside too many of its score: {[str(one) for one in beside]}")
        lock = LOCKS.get(start.score)
        if lock and any(LOCKS.get(one.score) == lock for one in beside):
            self.violate(f"{start}\n    was started while others had its lock: {[str(one) for one in beside]}")

    def died(self, process: Process) -> None:
        """A daemon gave up; its supervisor starts it again by and by."""
        self.timeline.note("{} gives up", process.name)
        self.timeline.later(0, process.kill)

    def lost_power(self, node: Node) -> None:
        self.fact("power", node.name)

    def start_everything(self) -> None:
        """What supervisors do."""
        for daemon in (*self.conductors, *self.nodes):
            daemon.start()

    def supervise(self) -> None:
        """Start what is down, now and for ever, each a while after it went."""
        for daemon in (*self.conductors, *self.nodes):
            down = not daemon.process or not daemon.process.alive
            if isinstance(daemon, Node):
                down = down or (not daemon.own_stage and not daemon.stage_up)
            if down and self.timeline.chance(0.5):
                daemon.start()
        self.tell_rosters()
        if self.healed:
            self._lift_brakes()
        self.timeline.later(1.0, self.supervise)

    def _lift_brakes(self) -> None:
        """What operators have held back goes on, once they see that the faults have stopped."""
        held = self.store.execute("SELECT 1 FROM holds").fetchone() is not None
        paused = "SELECT job_id FROM gates JOIN jobs USING (job_id) WHERE paused_at IS NOT NULL AND ended_at IS NULL"
        jobs = [job for (job,) in self.store.execute(paused).fetchall()]
        for host in self.conductors:
            if host.up and (held or host.dispatch.brake.holds):
                self.release(host)
            for job in jobs if host.up else ():
                self.resume(host, job)
        for node in self.nodes:
            if node.up and node.marker.drained is not None:
                self.on_node(node, lambda node=node: node.player.undrain("anne"))  # type: ignore[misc]

    def tell_rosters(self) -> None:
        """Have every conductor read the list of players that has not, as an operator does until it is taken."""
        for host in self.conductors:
            names = tuple(self.listed)
            if host.up and host.told != names:
                put = self._at(host, lambda host=host, names=names: host.roster.put(names))
                put.addCallbacks(lambda _, host=host, names=names: setattr(host, "told", names), self._refused)

    def poll(self) -> None:
        """Conductors that share a store look for each other's work; today nobody else tells them."""
        for host in self.conductors:
            if host.up:
                sessions = list(host.dispatch.scheduler.sessions.values())
                for session in sessions:
                    session.hungry = True
                assert host.process is not None
                host.process.enter(host.dispatch.claim_for, sessions)
        self.timeline.later(1.0, self.poll)

    def put_back(self, copy: bytes, mend: Callable[[Connection, int], object] | None) -> None:
        """The store is an older copy from now on. ``mend`` is what a restore does to it, given the last job of the store
        that was there; None if nobody says a word."""
        for host in self.conductors:
            host.kill()
        [last] = self.store.execute("SELECT coalesce(max(job_id), 0) FROM jobs").fetchone()
        gone = self.pruned()
        self.store = disks.store(copy)
        self.era += 1
        self.kept = dict(self.store.execute("SELECT job_id, body ->> 'token' FROM job_params").fetchall())
        self.gone = {token: job for token, job in gone.items() if token not in self.kept.values()}
        self.outside |= {one.token for one in self.submissions} - set(self.kept.values())
        if mend is not None:
            mend(self.store, last)

    def pruned(self) -> dict[str, int]:
        """The jobs that are not in the store any more because they were old, by their tokens."""
        found = self.store.execute("SELECT token, job FROM pruned WHERE token IS NOT NULL").fetchall()
        return self.gone | dict(found)

    # ---- the audience

    def ask(self, host: Host, submission: Submission) -> None:
        """Ask for work; the receipt is remembered, if there is one."""
        era = self.era

        def receipt(answer: Any) -> None:
            self.timeline.note("receipt for {}: job {} created {}", submission, answer.job, answer.created)
            submission.jobs.append((answer.job, answer.created, era))

        self._at(host, lambda: host.desk.submit(ANNE, submission.ask)).addCallbacks(receipt, self._refused)

    def ask_otherwise(self, host: Host, submission: Submission) -> None:
        """Ask for something else with a request key that was used: an error, if it is known."""
        era = self.era
        known = any(one[2] == era for one in submission.jobs)
        other = msgspec.structs.replace(submission.ask, priority=submission.ask.priority + 1)

        def answered(answer: Any) -> None:
            if known:
                self.violate(f"the request key of {submission} was taken for another request: job {answer.job}")

        if known:
            self._at(host, lambda: host.desk.submit(ANNE, other)).addCallbacks(answered, self._refused)

    def cancel(self, host: Host, submission: Submission, names: Sequence[str]) -> None:
        """Cancel what was submitted."""
        job, era = self._known(submission), self.era
        if job is None:
            return
        self.cancelled.add(submission.token)

        def done(_: Any) -> None:
            row = self.store.execute("SELECT attempt FROM tasks WHERE job_id = ?", (job,)).fetchone()
            if era == self.era and submission.ask.scope is Scope.ONE and row is not None:
                [attempts] = row
                self.denied |= {(submission.token, name): attempts for name in names}
                self.timeline.note("cancelled: {} on {}", submission, names or "all")

        self._at(host, lambda: host.desk.cancel(ANNE, job, names)).addCallbacks(done, self._refused)

    def cancel_many(self, host: Host, choice: Choice) -> None:
        """Cancel all that is unfinished of a choice."""

        async def in_steps() -> None:
            up_to, after, more = (await host.desk.choose(choice)).up_to, None, True
            self.cancelled |= {one.token for one in self.submissions}
            while more:
                after = (await host.desk.cancel_chosen(ANNE, choice, up_to, after)).after
                more = after is not None

        self._at(host, in_steps).addErrback(self._refused)

    def hold(self, host: Host, braking: Braking) -> None:
        """Have something not handed out."""
        self._at(host, lambda: host.desk.hold(ANNE, braking, "to see what happens")).addErrback(self._refused)

    def release(self, host: Host) -> None:
        """Have everything handed out again."""
        self._at(host, lambda: host.desk.release(ANNE, None)).addErrback(self._refused)

    def pause(self, host: Host, submission: Submission) -> None:
        """Have nothing of a job handed out."""
        job = self._known(submission)
        if job is not None:
            self._at(host, lambda: host.desk.manager.pause(ANNE, job)).addErrback(self._refused)

    def resume(self, host: Host, job: int) -> None:
        """Have it go on."""
        self._at(host, lambda: host.desk.manager.resume(ANNE, job)).addErrback(self._refused)

    def prune(self, host: Host, keep: int, rows: int) -> None:
        """A step of the store's upkeep: what ended more than ``keep`` milliseconds ago goes."""
        now = self.wall("store")

        async def step() -> None:
            await host.writer.write(lambda cursor: prune(cursor, now, keep, 1 << 60, rows))

        self._at(host, step).addErrback(self._refused)

    def on_node(self, node: Node, work: Callable[[], Any]) -> None:
        """What the node's own operator does."""
        assert node.process is not None
        node.process.enter(lambda: Deferred.fromCoroutine(work()).addErrback(self._refused))

    def look(self, host: Host, submission: Submission) -> None:
        """Read how a job stands, and remember what was said."""
        job, era = self._known(submission), self.era
        if job is None:
            return
        self._at(host, lambda: host.desk.tasks(job)).addCallbacks(self._saw, self._refused, (era, job))
        self._at(host, lambda: host.desk.events(job)).addCallbacks(self._heard, self._refused, (era, job))

    def _known(self, submission: Submission) -> int | None:
        """The job that a request has made, unless a store that was put back does not know it."""
        if not submission.jobs:
            return None
        job, _, era = submission.jobs[-1]
        return job if era == self.era or self.kept.get(job) == submission.token else None

    def _saw(self, views: Any, era: int, job: int) -> None:
        for view in views:
            before = self.seen.get((era, job, view.task))
            if before is not None and before != view.state:
                self.violate(f"task {job}/{view.task} was {before} to a client and is {view.state} now")
            if view.state not in ("pending", "dispatched", "held"):
                self.seen[era, job, view.task] = view.state

    def _heard(self, events: Any, era: int, job: int) -> None:
        before = self.logs.get((era, job), [])
        if list(events[: len(before)]) != before:
            self.violate(f"the events of job {job} are not what a client had read")
        self.logs[era, job] = list(events)

    def _at(self, host: Host, work: Callable[[], Any]) -> "Deferred[Any]":
        assert host.process is not None
        return host.process.enter(lambda: Deferred.fromCoroutine(work()))  # type: ignore[no-any-return]

    def _refused(self, failure: Failure) -> None:
        failure.trap(OrchestraError)
        self.timeline.note("refused: {}", failure.value)
        if not isinstance(failure.value, NotSaved | RequestKeyConflict | OrchestraError):
            self.violate(f"an answer that is none: {failure.value!r}")
