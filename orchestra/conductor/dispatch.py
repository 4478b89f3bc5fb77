"""Work on its way out and outcomes on their way in: save, then speak.

The dispatch takes what doors and desk bring, has the store commit it in one transaction (a submit and its first
claim together; a report and the next claim together), and only then tells the players and the watchers.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from sqlite3 import Cursor
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from orchestra import __version__
from orchestra.conductor.door import Door, NotThere
from orchestra.conductor.feed import NOTHING_KNOWN, Feed
from orchestra.conductor.together import Said, Together
from orchestra.core.brake import Brake
from orchestra.core.scheduler import Scheduler, Session, Wish
from orchestra.errors import (
    BadRequest,
    DiskNearlyFull,
    NotAPlayer,
    NotSaved,
    OrchestraError,
    RetiredJournal,
    StoreFailed,
    Superseded,
    Unconfirmed,
)
from orchestra.model import (
    PROTOCOL,
    Announce,
    Asker,
    Catalogue,
    Choice,
    Facts,
    Hello,
    Hold,
    JobView,
    NewJob,
    Perform,
    Piece,
    Report,
    Run,
    Scope,
    ScoreEntry,
    Secrets,
    Started,
    Welcome,
)
from orchestra.security.vault import Vault, unsealed
from orchestra.store import gates, statements
from orchestra.store.holds import Mark
from orchestra.store.saver import Saver
from orchestra.store.values import (
    Batch,
    Cancelled,
    ClaimAsk,
    Claimed,
    Freed,
    Greeting,
    HeldBack,
    Lifted,
    Settled,
    Submitted,
    Swept,
)
from orchestra.wire import commands

RETRY: Final = 1.0  # seconds until a claim that could not be saved is tried again
SPREAD_LEAST: Final = 5.0  # seconds; a larger fleet spreads its reconnections further
PER_SECOND: Final = 600  # reconnections a conductor takes in its stride
AWAY: Final = 60.0  # seconds after which a player counts as away; one that reconnects has something to tell
AT_ONCE: Final = 500  # players for which one commit claims after a release
FEW: Final = 8  # tasks that are saved, or reports, faster than the disk syncs


class Change(Protocol):
    """What something did to jobs."""

    @property
    def jobs(self) -> frozenset[int]: ...
    @property
    def ended(self) -> frozenset[int]: ...
    @property
    def freed(self) -> tuple[Freed, ...]: ...


T = TypeVar("T")
C = TypeVar("C", bound=Change)


class News(NamedTuple):
    """The jobs that have changed, of these those that have ended, and of these those that somebody awaits."""

    jobs: Iterable[int] = ()
    ended: Iterable[int] = ()
    views: Mapping[int, JobView] = NOTHING_KNOWN


class Repertoires:
    """What every player can run, by the digest of its catalogue; players with one disk share one."""

    def __init__(self) -> None:
        self.of: dict[int, str] = {}  # player -> digest
        self._scores: dict[str, dict[str, ScoreEntry]] = {"": {}}
        self._limits: dict[str, dict[str, int]] = {"": {}}
        self._locks: dict[str, dict[str, str]] = {}
        self._refused: dict[str, dict[str, str]] = {}

    def learn(self, catalogue: Catalogue) -> None:
        self._scores[catalogue.digest] = {entry.name: entry for entry in catalogue.scores}
        self._limits[catalogue.digest] = {
            entry.name: 2 if entry.lock else entry.concurrency + 1 for entry in catalogue.scores
        }
        self._locks[catalogue.digest] = {entry.name: entry.lock for entry in catalogue.scores if entry.lock}
        self._refused[catalogue.digest] = {refused.name: refused.reason for refused in catalogue.refused}

    def knows(self, digest: str) -> bool:
        return digest in self._scores

    def limits(self, digest: str) -> Mapping[str, int]:
        """Most open runs of each score: one more than may run, so that the next is there when one ends."""
        return self._limits.get(digest, {})

    def locks(self, digest: str) -> Mapping[str, str]:
        """The lock of each score that has one."""
        return self._locks.get(digest, {})

    def elsewhere(self, score: str) -> Iterator[ScoreEntry]:
        """The score of that name wherever anybody has, or had, one."""
        return (scores[score] for scores in self._scores.values() if score in scores)

    def anywhere(self, score: str) -> bool:
        """Whether anybody has, or had, a score of that name."""
        return any(score in scores for scores in self._scores.values())

    def entry(self, player: int, score: str) -> ScoreEntry | None:
        """A player's score, or None: it has none of that name, or has never been seen."""
        return self._scores.get(self.of.get(player, ""), {}).get(score)

    def refusal(self, player: int, score: str) -> str:
        """Why a player will not run what it has under that name, or anything at all; nothing if it would."""
        refused = self._refused.get(self.of.get(player, ""), {})
        whole = (reason for name, reason in refused.items() if name.startswith("/"))  # the scores' directory
        return refused.get(score) or next(whole, "")

    def seen(self, player: int) -> bool:
        """Whether the player's catalogue is known at all."""
        return bool(self.of.get(player))


class Dispatch:
    """The conductor's traffic with its players."""

    log = Logger()

    def __init__(
        self,
        writer: Saver,
        clock: IReactorTime,
        now: Callable[[], int],
        owner: str,
        feed: Feed,
        vault: Vault | None = None,
    ) -> None:
        """``now``: the store's wall clock in milliseconds; ``owner``: this process, unlike any other. Without a
        ``vault`` no secret parameters are taken."""
        self.scheduler = Scheduler()
        self.doors: dict[int, Door] = {}
        self.ids: dict[str, int] = {}  # players in the players file
        self.repertoires = Repertoires()
        self.brake = Brake()
        self.online_since: dict[int, int] = {}
        self.trouble = ""  # why nothing new is accepted or handed out
        self._writer = writer
        self._clock = clock
        self._now = now
        self._owner = owner
        self._feed = feed
        self._vault = vault
        self._reports = Together(self._settle)
        self._arrived: list[Session] = []  # nothing was claimed for them yet
        self._welcoming = False  # a claim for others that arrived is under way
        self._began = clock.seconds()
        self._left_at: dict[int, float] = {}

    def player_id(self, name: str) -> int | None:
        """A player's id, if it is in the players file."""
        return self.ids.get(name)

    @property
    def spread(self) -> float:
        return max(SPREAD_LEAST, len(self.ids) / PER_SECOND)

    # ---- new work

    async def submit(self, new: NewJob) -> Submitted:
        """Save a job, and claim at once for the players that are free."""
        if self.trouble:
            raise DiskNearlyFull(problem=self.trouble)
        now = self._now()
        wishes = self.scheduler.offer(new.scope, gates.at_once(new, now), new.score, new.count)
        few = len(new.players) <= FEW
        return await self._claiming(
            wishes, now, lambda cursor: statements.submit(cursor, new, now), _one_job, brief=few, at_once=few
        )

    async def _claiming(
        self,
        wishes: list[Wish],
        now: int,
        work: Callable[[Cursor], T],
        news: Callable[[T], News],
        *,
        brief: bool = False,
        at_once: bool = False,
    ) -> T:
        """Do ``work``, which may be ``brief``, and the claims in one commit; then tell players and watchers. Players
        hear ``at_once``, or together with what else this turn has for them."""
        asks = [self._ask(wish) for wish in wishes]

        def both(cursor: Cursor) -> tuple[T, Sequence[Claimed]]:
            return work(cursor), (statements.claim(cursor, asks, now) if asks else ())

        try:
            done, claims = await self._writer.write(both, brief=brief and len(asks) <= FEW)
        except BaseException as problem:
            again = self.scheduler.not_claimed(wishes)
            if again and not isinstance(problem, StoreFailed):
                self._clock.callLater(RETRY if isinstance(problem, NotSaved) else 0, self.claim_for, again)
            raise
        self._hand_out(claims, {wish.player: wish.epoch for wish in wishes}, at_once)
        self._feed.touched(*news(done))
        return done

    def _ask(self, wish: Wish) -> ClaimAsk:
        return ClaimAsk(wish.player, wish.epoch, self._owner, wish.room, wish.limits, locks=wish.locks)

    def claim_for(self, sessions: Iterable[Session]) -> None:
        """Ask the store for work for those of ``sessions`` that are still here and hungry."""
        self._claim(self.scheduler.wishes(s for s in sessions if self.scheduler.current(s)))

    def _claim(self, wishes: list[Wish]) -> None:
        if wishes:
            claim = self._claiming(wishes, self._now(), lambda _: None, lambda _: News())
            self._background(claim, "claim work")

    def _hand_out(self, claims: Iterable[Claimed], epochs: Mapping[int, int], at_once: bool) -> None:
        overtaken: list[Wish] = []
        jobs: set[int] = set()
        over: set[int] = set()
        braked = False
        for claimed in claims:
            session = self.scheduler.claimed(claimed.player, epochs[claimed.player], claimed.runs, claimed.more)
            jobs |= claimed.jobs
            over |= claimed.ended
            if session is None:
                continue
            if claimed.superseded:  # by another conductor: on this connection nothing would ever come
                self.doors[claimed.player].abort()
                continue
            if claimed.runs:
                self._perform(self.doors[claimed.player], Perform(session.epoch, self._unsealed(claimed)), at_once)
            braked = braked or session.held
            overtaken += self.scheduler.stirred(session)
        self._feed.touched(jobs, over)
        self._claim(overtaken)
        if braked:  # what was meant for it may be somebody else's to take
            self.claim_for(tuple(self.scheduler.sessions.values()))

    def seal(self, score: str, values: Mapping[str, str]) -> Secrets:
        """Secret parameters, as the store may have them."""
        if self._vault is None:
            raise BadRequest(problem="this conductor takes no secret parameters: it has no key")
        return self._vault.seal(score, values)

    def _unsealed(self, claimed: Claimed) -> tuple[Run, ...]:
        """The runs, with their secret parameters if they have any."""
        if not claimed.sealed:
            return claimed.runs
        return tuple(unsealed(self._vault, run, claimed.sealed.get(run.job)) for run in claimed.runs)

    def _perform(self, door: Door, perform: Perform, at_once: bool) -> None:
        door.say(commands.PERFORM, perform, at_once=at_once).addErrback(self._not_taken, door)

    def _not_taken(self, failure: Failure, door: Door) -> None:
        # what it was given is settled at its next Welcome
        if not door.closed:
            self.log.error("{peer} did not take its work: {reason}", peer=door.describe(), reason=failure.value)
            door.hang_up()

    # ---- players come and go

    async def hello(self, door: Door, hello: Hello) -> None:
        """Admit a player: it is ours from this commit on, and a connection it had before is closed."""
        assert door.player is not None
        player = door.player
        if not PROTOCOL - 1 <= hello.protocol <= PROTOCOL:
            speaks = f"this conductor ({__version__}) speaks protocol {PROTOCOL} and the one before"
            door.dismiss(f"{door.name} ({hello.version}) speaks protocol {hello.protocol}; {speaks}", 600.0)
            return
        try:
            greeting = await self._admitted(door, player, hello)
        except (RetiredJournal, NotAPlayer) as problem:
            door.dismiss(str(problem), 300.0)
            return
        except NotSaved as problem:
            door.dismiss(str(problem), 30.0)
            return
        except NotThere:
            door.abort()
            return
        self._feed.touched(greeting.jobs, greeting.ended)
        self.offer_again(greeting.freed)
        for note in greeting.notes:
            self.log.warn("{peer}: {note}", peer=door.describe(), note=note)
        before = self.scheduler.sessions.get(player)
        if before is not None and before.epoch > greeting.epoch:
            door.abort()
            return
        self._replace(player)
        if door.closed:
            self._say_goodbye(player, greeting.epoch)
            return
        session = Session(player, door.name, greeting.epoch, hello.slots, greeting.open_scores)
        session.note, session.version = hello.note, hello.version
        door.session = session
        session.held = self.brake.of_host(door.name) is not None
        self.scheduler.opened(session)
        self.doors[player] = door
        self.online_since[player] = self._now()
        if hello.catalogue and hello.catalogue not in greeting.wanted:
            self._has_catalogue(session, hello.catalogue)
        welcome = Welcome(greeting.epoch, greeting.next_seq, self.spread, greeting.open, greeting.wanted)
        door.say(commands.WELCOME, welcome).addCallbacks(
            lambda _: self._settled(session), lambda failure: self._not_taken(failure, door)
        )

    async def _admitted(self, door: Door, player: int, hello: Hello) -> Greeting:
        """What the store says to a Hello; the catalogue that it has for it is known here then. One with a new journal
        ends runs and retires the journal before, so its player must show that it is there: a Hello of a connection that
        died may come late."""
        known = self.repertoires.knows(hello.catalogue)

        def admit(cursor: Cursor, confirmed: bool) -> tuple[Greeting, Catalogue | None]:
            now = self._now()
            greeting = statements.hello(cursor, player, hello, self._owner, now, door.address, confirmed=confirmed)
            return greeting, None if known else statements.catalogue(cursor, hello.catalogue)

        try:
            greeting, catalogue = await self._writer.write(lambda cursor: admit(cursor, False))
        except Unconfirmed:
            await door.is_there()
            greeting, catalogue = await self._writer.write(lambda cursor: admit(cursor, True))
        if catalogue is not None:
            self.repertoires.learn(catalogue)
        return greeting

    def _replace(self, player: int) -> None:
        older = self.doors.pop(player, None)
        if older is not None:
            if older.session is not None:
                self.scheduler.closed(older.session)
            self.log.info("{peer} has connected anew; its older connection is closed", peer=older.describe())
            older.abort()

    def _settled(self, session: Session) -> None:
        """Welcome was answered: from now on it may be given work, once its catalogue is known."""
        session.settled = True
        self._ready(session)

    def _ready(self, session: Session) -> None:
        if session.settled and session.catalogue and not session.ready and self.scheduler.current(session):
            self.scheduler.welcomed(session)
            self.log.info("{player} is online, {slots} slots", player=session.name, slots=session.slots)
            self._arrived.append(session)
            self._claim_for_arrived()

    def _claim_for_arrived(self) -> None:
        """Claim for who has arrived; for all who arrive while that is under way, together after it."""
        while self._arrived and not self._welcoming:
            some, self._arrived = self._arrived[:AT_ONCE], self._arrived[AT_ONCE:]
            wishes = self.scheduler.wishes(filter(self.scheduler.current, some))
            if wishes:
                self._welcoming = True
                claim = self._claiming(wishes, self._now(), lambda _: None, lambda _: News())
                self._background(claim, "claim work").addBoth(self._claimed_for_some)

    def _claimed_for_some(self, _: object) -> None:
        self._welcoming = False
        self._claim_for_arrived()

    def _has_catalogue(self, session: Session, digest: str) -> None:
        self.repertoires.of[session.player] = digest
        session.catalogue = digest
        session.limits = self.repertoires.limits(digest)
        session.locks = self.repertoires.locks(digest)

    async def announce(self, door: Door, announce: Announce) -> None:
        """A player's scores, or what is known of its machine, new or changed."""
        session = door.session
        if session is None:
            return
        # made here, not believed: a player could otherwise say what others have
        if announce.facts is not None:
            facts = Facts.of(announce.facts.facts, announce.facts.problems)
            await self._writer.write(lambda cursor: statements.announce_facts(cursor, session.player, facts))
        if announce.catalogue is not None:
            catalogue = Catalogue.of(announce.catalogue.scores, announce.catalogue.refused)
            now = self._now()
            await self._writer.write(lambda cursor: statements.announce(cursor, session.player, catalogue, now))
            if not self.repertoires.knows(catalogue.digest):
                self.repertoires.learn(catalogue)
            self._has_catalogue(session, catalogue.digest)
            self._ready(session)
            self.claim_for([session])

    def left(self, door: Door) -> None:
        """A connection is gone. Nothing is requeued; the store learns when the player was last seen."""
        session = door.session
        if session is None or self.doors.get(session.player) is not door:
            return
        del self.doors[session.player]
        self.scheduler.closed(session)
        self.online_since.pop(session.player, None)
        self._left_at[session.player] = self._clock.seconds()
        self.log.info("{player} is offline", player=session.name)
        self._say_goodbye(session.player, session.epoch)

    def _say_goodbye(self, player: int, epoch: int) -> None:
        now = self._now()
        gone = self._writer.write(lambda cursor: statements.goodbye(cursor, player, epoch, now))
        gone.addErrback(lambda _: None)  # the next Hello says more than this would

    def sweep_silent(self, seconds: float) -> None:
        """Cut off players that were not heard for so long."""
        oldest = self._clock.seconds() - seconds
        for door in [door for door in self.doors.values() if door.heard_at < oldest]:
            self.log.warn("{peer} was silent for {seconds} s: cut off", peer=door.describe(), seconds=seconds)
            door.abort()

    async def give_up(self) -> None:
        """End as lost what cannot be running any more on players that are away, and not for a moment only."""
        now, awhile = self._clock.seconds(), max(AWAY, 2 * self.spread)
        if now < self._began + awhile:
            return  # who was here before us may be on the way
        self._left_at = {player: at for player, at in self._left_at.items() if at > now - awhile}
        here = self.doors.keys() | self._left_at.keys()
        await self.sweep(lambda cursor, at: statements.give_up(cursor, at, here))

    # ---- outcomes

    async def report(self, door: Door, reports: list[Report]) -> None:
        """Save outcomes, and claim for the slots they free, in one commit. Returning is the acknowledgement."""
        session = door.session
        assert session is not None
        ended = self.scheduler.ended(session, (report.seq for report in reports))
        try:
            await self._reports.add(session, reports)
        except Superseded:
            door.abort()
        except OrchestraError:
            self.scheduler.reopened(session, ended)
            raise

    async def _settle(self, some: Sequence[Said]) -> frozenset[tuple[int, int]]:
        batches = [Batch(said.session.player, said.session.epoch, said.reports) for said in some]
        wishes = self.scheduler.wishes(said.session for said in some if self.scheduler.current(said.session))
        awaited = self._feed.awaited({report.job for said in some for report in said.reports})
        now = self._now()

        def settle(cursor: Cursor) -> tuple[Settled, dict[int, JobView]]:
            settled = statements.settle_all(cursor, self._owner, batches, now)
            return settled, {job: statements.job_view(cursor, job) for job in settled.ended & awaited}

        brief = sum(len(said.reports) for said in some) <= FEW
        settled, _ = await self._claiming(
            wishes, now, settle, lambda done: News(done[0].jobs, done[0].ended, done[1]), brief=brief
        )
        if settled.unknown:
            who = ", ".join(sorted({said.session.name for said in some})[:5])
            self.log.warn(
                "{many} reported runs are of jobs that are not here any more ({who})", many=settled.unknown, who=who
            )
        self.offer_again(settled.freed)
        return settled.superseded

    def offer_again(self, freed: Iterable[Freed]) -> None:
        """These tasks may be handed out from now on."""
        wishes: list[Wish] = []
        for task in freed:
            if task.player is not None:
                wishes += self.scheduler.offer(Scope.ALL, (task.player,))
            else:
                wishes += self.scheduler.offer(Scope.ONE, task.candidates, task.score)
        self._claim_in_turn(sorted(wishes, key=lambda wish: wish.player))

    def _claim_in_turn(self, wishes: list[Wish]) -> None:
        for start in range(0, len(wishes), AT_ONCE):
            self._claim(wishes[start : start + AT_ONCE])

    async def output(self, door: Door, pieces: list[Piece]) -> None:
        """Save kept output that goes ahead of its report."""
        session = door.session
        assert session is not None
        try:
            await self._writer.write(
                lambda cursor: statements.save_pieces(cursor, session.player, session.epoch, self._owner, pieces)
            )
        except Superseded:
            door.abort()

    def progress(self, door: Door, started: list[Started]) -> None:
        """Runs that last are under way; kept in memory only, but for alarms, which become part of the history."""
        session = door.session
        if session is None:
            return
        for run in started:
            if run.seq in session.open:
                session.started[run.seq] = (run.job, run.task, run.started_at)
        alarms = [run for run in started if run.alarm]
        if alarms:
            self._background(self._alarm(session, alarms), "keep an alarm")

    async def _alarm(self, session: Session, runs: list[Started]) -> None:
        for run in runs:
            self.log.error(
                "{player}: job {job}: {words}", player=session.name, job=run.job, task=run.task, words=run.alarm
            )
        player, epoch, owner, now = session.player, session.epoch, self._owner, self._now()
        jobs = await self._writer.write(lambda cursor: statements.alarm(cursor, player, epoch, owner, runs, now))
        self._feed.touched(jobs, ())

    # ---- a disk that runs full

    def pause(self, trouble: str) -> None:
        """Accept nothing new and hand out nothing, for this reason; all else goes on."""
        self.trouble, self.scheduler.paused = trouble, True

    def resume(self) -> None:
        """Go on where :meth:`pause` stopped."""
        self.trouble, self.scheduler.paused = "", False
        self.claim_for(tuple(self.scheduler.sessions.values()))

    # ---- the brake

    async def learn_holds(self) -> None:
        """What was held when a conductor ran last, is."""
        self._brake(await self._writer.write(statements.holds))

    def _brake(self, holds: Iterable[Hold]) -> None:
        self.brake = Brake(holds)
        self.scheduler.braked(self.brake.of_host)

    async def hold(self, marks: Sequence[Mark], reason: str, who: Asker) -> HeldBack:
        """Hand out nothing of these from this commit on; what runs goes on."""
        now = self._now()

        def both(cursor: Cursor) -> tuple[HeldBack, list[Hold]]:
            return statements.hold(cursor, marks, reason, who, now), statements.holds(cursor)

        done, holds = await self._writer.write(both)
        self._brake(holds)
        for one in done.made:
            self._say_braked("{who} (uid {uid}) holds {what}: {reason}", one, who, reason=reason)
        return done

    async def release(self, marks: Sequence[Mark] | None, who: Asker) -> Lifted:
        """Lift these holds, or all; what waited for that is handed out now."""
        done = await self._writer.write(lambda cursor: statements.release(cursor, marks))
        self._brake(done.left)
        for one in done.lifted:
            self._say_braked("{who} (uid {uid}) releases {what}", one, who)
        if done.lifted:
            self._claim_in_turn(self.scheduler.offer(Scope.ALL, tuple(self.scheduler.sessions)))
        return done

    def _say_braked(self, sentence: str, hold: Hold, who: Asker, **more: str) -> None:
        self.log.warn(sentence, who=who.name, uid=who.uid, what=f"{hold.kind} {hold.name}".rstrip(), **more)

    async def cancel(self, job: int, players: Sequence[int] | None, actor: str) -> list[Cancelled]:
        """Cancel tasks of a job, in bounded steps; who runs one is told, now or when it is back."""
        return await self._in_steps(
            lambda cursor, now, after: statements.cancel(cursor, job, players, actor, now, after)
        )

    async def _in_steps(self, step: Callable[[Cursor, int, tuple[int, int] | None], Cancelled]) -> list[Cancelled]:
        done: list[Cancelled] = []
        while not done or done[-1].after is not None:
            done.append(await self._one_step(step, done[-1].after if done else None))
        return done

    async def cancel_chosen(
        self, choice: Choice, players: Sequence[int] | None, up_to: int, actor: str, after: tuple[int, int] | None
    ) -> Cancelled:
        """One step of cancelling many jobs."""
        return await self._one_step(
            lambda cursor, now, after: statements.cancel_chosen(cursor, choice, players, up_to, actor, now, after),
            after,
        )

    async def _one_step(
        self, step: Callable[[Cursor, int, tuple[int, int] | None], Cancelled], after: tuple[int, int] | None
    ) -> Cancelled:
        done = await self.change(lambda cursor, now: step(cursor, now, after))
        for player, seqs in done.orders.items():
            door = self.doors.get(player)
            if door is not None:
                # not answered: its next Welcome carries the cancel
                door.say(commands.CANCEL, list(seqs)).addErrback(lambda _: None)
        return done

    async def forgive(self, name: str, actor: str) -> int:
        """Accept a player's retired journals again, on somebody's word."""
        player = self.ids[name]
        many = await self._writer.write(lambda cursor: statements.forgive(cursor, player))
        self.log.warn("{actor} forgave {name}: {many} retired journals", actor=actor, name=name, many=many)
        return many

    async def sweep(self, work: Callable[[Cursor, int], Swept]) -> None:
        """Let time pass over the store: expiries, removals, what begins now. Bounded steps until done."""
        while (await self.change(work)).more:
            pass

    async def change(self, work: Callable[[Cursor, int], C]) -> C:
        """Do something to jobs; then tell their watchers, and hand out what may be handed out with it."""
        now = self._now()
        done = await self._writer.write(lambda cursor: work(cursor, now))
        self._feed.touched(done.jobs, done.ended)
        self.offer_again(done.freed)
        return done

    def _background(self, work: Awaitable[Any], purpose: str) -> "Deferred[Any]":
        def failed(failure: Failure) -> None:
            if isinstance(failure.value, OrchestraError):
                self.log.error("could not {purpose}: {reason}", purpose=purpose, reason=failure.value)
            else:
                self.log.failure("could not {purpose}", failure=failure, purpose=purpose)

        return Deferred.fromCoroutine(work).addErrback(failed)  # type: ignore[arg-type]


def _one_job(submitted: Submitted) -> News:
    return News((submitted.job,))
