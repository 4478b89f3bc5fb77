"""Where the audience is served: requests are checked here, and the answers get their reasons.

What is asked is described in :mod:`orchestra.audience.desk`. Nothing is decided twice: targets are resolved by
:mod:`orchestra.core.targets`, reasons are worded by :mod:`orchestra.core.explain`, the work is done by the dispatch.
"""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from sqlite3 import Cursor
from typing import Final

from msgspec.structs import replace

from orchestra import __version__, parameters
from orchestra.audience.desk import (
    About,
    BackedUp,
    Cancelling,
    CancelStep,
    Holding,
    Listener,
    Released,
    Watch,
)
from orchestra.conductor.dispatch import Dispatch
from orchestra.conductor.explaining import Explainer
from orchestra.conductor.feed import Feed
from orchestra.conductor.managing import Manager, beginning, waves_of
from orchestra.conductor.planning import Planner, Weighed
from orchestra.conductor.reasons import UNFINISHED, Reasons, in_words
from orchestra.conductor.shelf import Shelf
from orchestra.conductor.targeting import Targeting, scope_of, wording
from orchestra.conductor.upkeep import Upkeep
from orchestra.conductor.vetting import Vetted, vetted, wanted
from orchestra.core import drift, plan
from orchestra.core.blockers import Standstill
from orchestra.core.scorebook import Disk, ScoreView
from orchestra.errors import BackupFailed, BadRequest, Denied, OrchestraError, OwnerOnly, ScoreNotRun, UnknownScore
from orchestra.model import (
    Ask,
    Asker,
    Braking,
    Catalogue,
    Choice,
    Chosen,
    Event,
    Held,
    Hold,
    JobView,
    NewJob,
    PlayerView,
    Receipt,
    Reloaded,
    Scope,
    ScoreEntry,
    State,
    TaskView,
    Wait,
)
from orchestra.store import gates, statements
from orchestra.store.saver import Loader
from orchestra.store.values import PlayerRow

HOUR: Final = 3_600_000
GIVE_UP_UNKNOWN: Final = HOUR + 10_000  # the default timeout and grace of a score nobody has told us of
MOST_WAITS: Final = 100
LONGEST_REASON: Final = 500
LONGEST_EXPIRY: Final = 3650 * 24 * HOUR


class FrontDesk:
    """A :class:`~orchestra.audience.desk.Desk` in front of a dispatch and a store."""

    def __init__(
        self,
        dispatch: Dispatch,
        reader: Loader,
        feed: Feed,
        *,
        now: Callable[[], int],
        started_at: int,
        default_domain: str,
        default_expire: int | None,
        audience_group: str,
        gid: int | None,
        reload: Callable[[int], Awaitable[Reloaded]],
        upkeep: Upkeep | None = None,
        troubles: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._dispatch = dispatch
        self._reader = reader
        self._shelf = Shelf(reader)
        self._reasons = Reasons(dispatch)
        self._explainer = Explainer(dispatch, reader)
        self._feed = feed
        self._now = now
        self._started_at = started_at
        self._default_expire = default_expire
        self._group = audience_group
        self._gid = gid
        self._reload = reload
        self._upkeep = upkeep
        self._troubles = troubles
        self.targeting = Targeting(dispatch, reader, default_domain)
        self.planner = Planner(dispatch, reader, self.targeting, self._reasons, self.weigh, now)
        self.manager = Manager(dispatch, reader, feed, self.submit, upkeep)

    # ---- who may

    def allowed(self, uid: int, groups: Sequence[int]) -> bool:
        """Root, our own user, and the audience group."""
        return uid in (0, os.geteuid()) or (self._gid is not None and self._gid in groups)

    def denial(self, who: str) -> Exception:
        """What somebody who may not is told."""
        return Denied(who=who, group=self._group or "set as 'audience_group' in conductor.conf")

    # ---- submit

    async def submit(self, asker: Asker, ask: Ask) -> Receipt:
        """Check the request, save it, and say which of its targets will not start at once."""
        weighed = await self.weigh(asker, ask)
        if weighed.unfit is not None and ask.private:
            raise weighed.unfit  # which of it was secret is not known, so neither is whether this was asked before
        new, players = weighed.new, weighed.players
        changed = plan.check(ask.expect, weighed.token) if ask.expect else None
        if refusal := weighed.unfit or weighed.refusal or changed:
            return await self._made_before(new, refusal)
        waits = await self._waits(new, {player: players[player] for player in gates.at_once(new, self._now())})
        submitted = await self._dispatch.submit(new)
        return Receipt(
            job=submitted.job,
            created=submitted.created,
            targets=len(players),
            waits=tuple(waits[:MOST_WAITS]),
            waiting=len(waits),
            warnings=weighed.warnings,
        )

    async def weigh(self, asker: Asker, ask: Ask) -> Weighed:
        """What a request comes to; nothing is done yet."""
        players, scores = await self._targets(ask)
        unfit: OrchestraError | None = None
        fit = Vetted(ask.params, {})
        try:
            self._check(ask.score, players, scores)
            told = {players[player]: entry for player, entry in scores.items()}
            unseen = len(players) - len(scores)
            fit = vetted(ask, told, self._dispatch.repertoires.elsewhere(ask.score), unseen)
        except OrchestraError as problem:
            unfit = problem
        agreed = drift.agreed(
            ask, players, scores, lambda player: self._dispatch.repertoires.refusal(player, ask.score)
        )
        entries = [entry for entry in scores.values() if entry]
        # waves go by name; otherwise the order says nothing
        order = tuple(players) if ask.rolling is not None else tuple(sorted(players))
        new = replace(self._new_job(asker, ask, order, entries, fit), digest=agreed.digest)
        return Weighed(new, players, scores, fit, unfit, agreed.refusal, agreed.warnings + fit.warnings)

    async def _made_before(self, new: NewJob, refusal: OrchestraError) -> Receipt:
        """The job that this request has made when it was not refused yet: its key still stands for that."""
        before = None
        if new.request_key is not None:
            before = await self._reader.read(lambda cursor: statements.made_before(cursor, new))
        if before is None:
            raise refusal
        return Receipt(job=before.job, created=False, targets=len(new.players))

    async def secrets_wanted(self, ask: Ask) -> tuple[str, ...]:
        """The secret parameters that a request would be refused without."""
        players, scores = await self._targets(ask)
        self._check(ask.score, players, scores)
        return wanted(ask, [entry for entry in scores.values() if entry])

    async def _targets(self, ask: Ask) -> tuple[dict[int, str], dict[int, ScoreEntry | None]]:
        """The players a request is for, and the score on each of them whose disk is known."""
        names = await self.targeting.select(ask.selection)
        problem = parameters.problem(ask.params | ask.private)
        if problem:
            raise BadRequest(problem=problem)
        players = {self._dispatch.ids[name]: name for name in names}
        book = self._dispatch.repertoires
        return players, {player: book.entry(player, ask.score) for player in players if book.seen(player)}

    def _check(self, score: str, players: Mapping[int, str], scores: Mapping[int, ScoreEntry | None]) -> None:
        """An error if all of the targets' disks are known and none has the score."""
        if len(scores) == len(players) and not any(scores.values()):
            for player, name in players.items():
                if reason := self._dispatch.repertoires.refusal(player, score):
                    raise ScoreNotRun(score=score[:80], player=name, reason=reason)
            raise UnknownScore(score=score[:80])

    def _new_job(
        self, asker: Asker, ask: Ask, players: tuple[int, ...], scores: list[ScoreEntry], fit: Vetted
    ) -> NewJob:
        ends = [entry.timeout + entry.kill_grace for entry in scores]
        begins = beginning(ask, self._now())
        return NewJob(
            owner=asker,
            request_key=ask.request_key,
            score=ask.score,
            params=fit.params,
            scope=scope_of(ask, len(players)),
            players=players,
            idempotent=bool(scores) and all(entry.idempotent for entry in scores),
            max_attempts=min((entry.max_attempts for entry in scores), default=1),
            priority=ask.priority,
            expires_at=self._expires_at(ask.expire, begins or 0),
            give_up_after=max(ends, default=GIVE_UP_UNKNOWN),
            secrets=self._dispatch.seal(ask.score, fit.secrets) if fit.secrets else None,
            dry_run=ask.dry_run,
            not_before=begins,
            waves=waves_of(ask, len(players)),
            rerun_of=ask.rerun_of,
            count=ask.count,
            wording=wording(ask.selection),
        )

    def _expires_at(self, seconds: float | None, begins: int) -> int | None:
        now = max(self._now(), begins)
        if seconds is None:
            return None if self._default_expire is None else now + self._default_expire
        if seconds == 0:
            return None
        if not 0 < seconds * 1000 <= LONGEST_EXPIRY:
            raise BadRequest(problem="'expire' is a number of seconds up to ten years, or 0 for never")
        return now + int(seconds * 1000)

    async def _waits(self, new: NewJob, players: Mapping[int, str]) -> list[Wait]:
        """Who will not start at once, and why. Of a job for some, nobody waits while enough can start."""
        away = [
            player
            for player, name in players.items()
            if player not in self._dispatch.doors or self._dispatch.brake.of(name, new.score)
        ]
        if not away or (new.scope is not Scope.ALL and len(players) - len(away) >= new.count):
            return []
        names = [players[player] for player in away]
        rows = await self._reader.read(
            lambda cursor: statements.player_rows(cursor, "", MOST_WAITS, names[:MOST_WAITS])
        )
        seen = {row.player: row.view.since for row in rows}
        return [Wait(player=players[p], why=self._reasons.away(p, players[p], seen.get(p), new)) for p in away]

    # ---- read

    async def job(self, job: int) -> JobView:
        """A job and its counts."""
        return await self._reader.read(lambda cursor: statements.job_view(cursor, job))

    async def jobs(
        self, before: int | None = None, limit: int = 50, unfinished: bool = False, owner: str | None = None
    ) -> list[JobView]:
        """Jobs, newest first."""
        return await self._reader.read(lambda cursor: statements.job_views(cursor, before, limit, unfinished, owner))

    async def tasks(self, job: int, after: int = -1, limit: int = 500, states: Sequence[State] = ()) -> list[TaskView]:
        """Tasks of a job, each with its reason while it has no outcome."""

        def look(cursor: Cursor) -> tuple[JobView, list[TaskView], dict[str, PlayerRow]]:
            tasks = statements.task_views(cursor, job, after, limit, states)
            waiting = [task.player for task in tasks if task.player and task.state in UNFINISHED]
            rows = statements.player_rows(cursor, "", len(waiting), waiting) if waiting else []
            return statements.job_view(cursor, job), tasks, {row.view.name: row for row in rows}

        view, tasks, rows = await self._reader.read(look)
        return [self._reasons.told(task, view, rows) for task in tasks]

    async def explain(
        self, job: int, after: tuple[int, int] = (-1, 0), limit: int = 500, hosts: Sequence[str] = ()
    ) -> list[Standstill]:
        """What has not started of a job, and why."""
        named = self._named(hosts)
        only = None if named is None else frozenset(self._dispatch.ids[name] for name in named)
        return await self._explainer.explain(job, after, limit, only)

    async def output(
        self, job: int, task: int, stream: int, offset: int = 0, limit: int = 262_144
    ) -> list[tuple[int, bytes]]:
        """Kept pieces of a task's output."""
        return await self._reader.read(
            lambda cursor: statements.output_pieces(cursor, job, task, stream, offset, limit)
        )

    async def events(self, job: int, since: int = 0, limit: int = 500) -> list[Event]:
        """Events of a job after ``since``."""
        return await self._reader.read(lambda cursor: statements.events(cursor, job, since, limit))

    async def players(self, after: str = "", limit: int = 500, names: Sequence[str] = ()) -> list[PlayerView]:
        """Players by name, with what only the connection knows."""
        rows = await self.targeting.rows(names, after, limit)
        views = [self._view(row) for row in rows]
        return await self.targeting.with_facts(views) if names else views

    def _view(self, row: PlayerRow) -> PlayerView:
        session = self._dispatch.scheduler.sessions.get(row.player)
        held = in_words(self._dispatch.brake.of_host(row.view.name))
        if session is None:
            stale = "offline" if row.view.status == "online" else row.view.status
            return replace(row.view, status=stale, held=held)
        return replace(
            row.view,
            status="online",
            held=held,
            since=self._dispatch.online_since.get(row.player),
            version=session.version,
            address=self._dispatch.doors[row.player].address,
            slots=session.slots,
            open_runs=len(session.open),
            note=session.note,
        )

    async def catalogues(self, names: Sequence[str] = ()) -> list[tuple[Catalogue, tuple[str, ...]]]:
        """Every catalogue in use, with the names of the players that have it."""
        wanted = set(self.targeting.hosts(names)) if names else self._dispatch.ids.keys()
        called = {player: name for name, player in self._dispatch.ids.items()}
        found = await self._reader.read(statements.catalogues_in_use)
        rows = [(cat, tuple(sorted(called[p] for p in ids if called.get(p) in wanted))) for cat, ids in found]
        return [(cat, holders) for cat, holders in rows if holders]

    async def scores(self, hosts: Sequence[str] = (), name: str = "") -> list[ScoreView]:
        """Every score, or one, as these hosts have it, or all."""
        return await self._shelf.scores(self._named(hosts), name)

    async def disks(self, hosts: Sequence[str] = ()) -> list[Disk]:
        """Who has which catalogue, of these hosts or of all."""
        return await self._shelf.disks(self._named(hosts))

    def _named(self, hosts: Sequence[str]) -> tuple[str, ...] | None:
        return self.targeting.hosts(hosts) if hosts else None

    async def about(self) -> About:
        """The conductor in a few numbers."""
        totals = await self._reader.read(statements.totals)
        return About(
            version=__version__,
            started_at=self._started_at,
            players=totals.players,
            online=len(self._dispatch.doors),
            pending=totals.pending,
            dispatched=totals.dispatched,
            troubles=self._troubles(),
            holds=self._dispatch.brake.holds,
            held=totals.held,
        )

    def watch(self, job: int, since: int, listener: Listener) -> Watch:
        """Have ``listener`` called with the events of a job, until it has ended."""
        return self._feed.watch(job, since, listener)

    def await_end(self, job: int, listener: Listener, *, new: bool = False) -> Watch:
        """Have ``listener`` called once, when a job has ended."""
        return self._feed.await_end(job, listener, new=new)

    # ---- change

    async def cancel(self, asker: Asker, job: int, names: Sequence[str] = ()) -> Cancelling:
        """Cancel a job, or its tasks on some hosts."""
        players = self.targeting.ids(names) if names else None
        steps = await self._dispatch.cancel(job, players, asker.name)
        return Cancelling(
            job=job,
            cancelled=sum(step.cancelled for step in steps),
            cancelling=sum(step.cancelling for step in steps),
            ended=sum(step.finished for step in steps),
            lost=sum(step.lost for step in steps),
        )

    async def choose(self, choice: Choice) -> Chosen:
        """How many jobs and tasks a choice is of now."""
        players = self._on(choice)
        return await self._reader.read(lambda cursor: statements.choose(cursor, choice, players))

    async def cancel_chosen(
        self, asker: Asker, choice: Choice, up_to: int, after: tuple[int, int] | None = None
    ) -> CancelStep:
        """One bounded step of cancelling all that is unfinished of a choice."""
        done = await self._dispatch.cancel_chosen(choice, self._on(choice), up_to, asker.name, after)
        return CancelStep(cancelled=done.cancelled, cancelling=done.cancelling, lost=done.lost, after=done.after)

    def _on(self, choice: Choice) -> list[int] | None:
        """The players a choice is of, or None: whichever."""
        said = choice.score is not None or choice.owner is not None or bool(choice.hosts)
        if said == choice.everything:
            raise BadRequest(problem="say which jobs: by score, owner or hosts, or else everything, and not both")
        return self.targeting.ids(choice.hosts) if choice.hosts else None

    # ---- the brake

    async def hold(self, asker: Asker, braking: Braking, reason: str) -> Holding:
        """Hand out nothing of these until they are released."""
        if not reason.strip() or not reason.isprintable() or len(reason) > LONGEST_REASON:
            raise BadRequest(problem=f"a hold needs a reason: one line of at most {LONGEST_REASON} characters")
        hosts = self.targeting.hosts(braking.hosts) if braking.hosts else ()
        marks = replace(braking, hosts=hosts).marks
        done = await self._dispatch.hold(marks, reason.strip(), asker)
        unknown = [name for kind, name in marks if kind is Held.SCORE and not self._dispatch.repertoires.anywhere(name)]
        warnings = tuple(
            f"no player has a score '{name[:80]}' today; the hold is of whoever gets one" for name in unknown
        )
        return Holding(made=done.made, known=done.known, going_on=done.going_on, warnings=warnings)

    async def release(self, asker: Asker, braking: Braking | None) -> Released:
        """Lift these holds, or all."""
        marks = None
        if braking is not None:
            marks = replace(braking, hosts=self.targeting.named(braking.hosts)).marks
        done = await self._dispatch.release(marks, asker)
        return Released(lifted=done.lifted, left=done.left)

    async def holds(self) -> tuple[Hold, ...]:
        """What is held."""
        return self._dispatch.brake.holds

    async def forgive(self, asker: Asker, name: str) -> int:
        """Accept a player's retired journals again."""
        if asker.uid not in (0, os.geteuid()):
            raise OwnerOnly(who=asker.name, daemon="conductor")
        [full] = self.targeting.hosts([name])
        return await self._dispatch.forgive(full, asker.name)

    async def backup(self, asker: Asker, file: str) -> BackedUp:
        """Copy the store."""
        if asker.uid not in (0, os.geteuid()):
            raise OwnerOnly(who=asker.name, daemon="conductor")
        if self._upkeep is None:
            raise BackupFailed(file=file, problem="this conductor has its store in memory")
        return await self._upkeep.back_up(file, asker.name)

    async def reload(self, asker: Asker, accept_removals: int = 0) -> Reloaded:
        """Read players, certificates and CRL again."""
        if asker.uid not in (0, os.geteuid()):
            raise OwnerOnly(who=asker.name, daemon="conductor")
        return await self._reload(accept_removals)
