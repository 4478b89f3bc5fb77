"""A small honest desk, all in memory: jobs are kept, events are numbered, and a test says what became of a task."""

from collections.abc import Sequence

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from orchestra.audience.desk import (
    About,
    BackedUp,
    Cancelling,
    CancelStep,
    Holding,
    Listener,
    Pausing,
    Released,
    Resuming,
)
from orchestra.conductor.targeting import scope_of
from orchestra.conductor.vetting import wanted
from orchestra.core.scorebook import Disk, ScoreView, bind
from orchestra.core.targets import resolve
from orchestra.errors import Denied, NoSuchJob, RequestKeyConflict, SecretsWanted, UnknownScore
from orchestra.model import (
    Ask,
    Asker,
    Braking,
    Catalogue,
    Choice,
    Chosen,
    Event,
    Hold,
    JobView,
    Paused,
    PlayerView,
    Receipt,
    Reloaded,
    Scope,
    ScoreEntry,
    State,
    Stream,
    TaskView,
    Wait,
    verdict,
)

NOW = 1_780_000_000_000


def score(name: str) -> ScoreEntry:
    """A score with the defaults."""
    return ScoreEntry(name, f"digest-of-{name}", f"does {name}", "env", 3_600_000, 10_000, 1, False, 3)


class MemoryDesk:
    """A :class:`~orchestra.audience.desk.Desk`; players whose name begins with ``down`` are offline."""

    def __init__(self, players: Sequence[str] = ("web1", "web2", "web3", "down1"), domain: str = "") -> None:
        self.names = frozenset(players)
        self.domain = domain
        self.admitted = True
        self.asks: dict[int, Ask] = {}
        self.askers: dict[int, Asker] = {}
        self.by_key: dict[str, int] = {}
        self.by_task: dict[int, list[TaskView]] = {}
        self.log: dict[int, list[Event]] = {}
        self.kept: dict[tuple[int, int, int], list[tuple[int, bytes]]] = {}
        self.watches: set[MemoryWatch] = set()
        self.catalogue = Catalogue("d1", (score("uptime"), score("sleep")))
        self.reloaded = Reloaded(changed=("players: 1 added",))
        self.broken: Exception | None = None
        self.held: dict[tuple[str, str], Hold] = {}
        self.paused: dict[int, Paused] = {}
        self.history: list[Event] = []  # of all jobs
        self.manager = MemoryManager(self)

    # who may

    def allowed(self, uid: int, groups: Sequence[int]) -> bool:
        return self.admitted

    def denial(self, who: str) -> Exception:
        return Denied(who=who, group="operators")

    # what a test says

    def end(self, job: int, player: str, state: State, **known: object) -> None:
        """The task of ``player`` in ``job`` has its outcome."""
        tasks = self.by_task[job]
        n = next(task.task for task in tasks if task.player in (player, None))
        tasks[n] = replace(tasks[n], player=player, state=state.label, why="", ended_at=NOW + 2_000, **known)
        self.tell(job, Event(n=len(self.log[job]) + 1, at=NOW, kind=state.label, task=n, player=player))

    def keep(self, job: int, player: str, stdout: bytes) -> None:
        """The kept output of a task; short output is in its view too."""
        tasks = self.by_task[job]
        n = next(task.task for task in tasks if task.player == player)
        short = stdout if len(stdout) <= 8_000 else b""
        tasks[n] = replace(tasks[n], stdout=Stream(len(stdout), None, ((0, len(stdout)),), short))
        self.kept[job, n, 1] = [(0, stdout)]

    def tell(self, job: int, *events: Event) -> None:
        """Something has happened to ``job``."""
        self._write(job, *events)
        if self._verdict(job) and self.log[job][-1].kind != "ended":
            self._write(job, Event(n=len(self.log[job]) + 1, at=NOW, kind="ended"))
        for watch in list(self.watches):
            watch.wake()

    def _write(self, job: int, *events: Event) -> None:
        for event in events:
            self.history.append(replace(event, job=job, seq=len(self.history) + 1))
            self.log[job].append(self.history[-1])

    # the desk

    async def submit(self, asker: Asker, ask: Ask) -> Receipt:
        if self.broken:
            raise self.broken
        names = resolve(ask.targets, self.names, self.domain)
        scope = scope_of(ask, len(names))
        if ask.score not in {entry.name for entry in self.catalogue.scores}:
            raise UnknownScore(score=ask.score)
        if ask.request_key in self.by_key:
            job = self.by_key[ask.request_key]
            if self.asks[job] != ask:
                raise RequestKeyConflict(key=ask.request_key, job=job)
            return Receipt(job=job, created=False, targets=len(names))
        if missing := await self.secrets_wanted(ask):
            raise SecretsWanted(names=" and ".join(f"'{name}'" for name in missing))
        job = len(self.asks) + 1
        self.asks[job], self.askers[job] = ask, asker
        if ask.request_key:
            self.by_key[ask.request_key] = job
        why = "waits: offline since yesterday, never expires"
        chosen = names if scope is Scope.ALL else (None,) * ask.count
        self.by_task[job] = [
            TaskView(
                task=n, player=name, state="pending", attempt=0, why=why if (name or "").startswith("down") else ""
            )
            for n, name in enumerate(chosen)
        ]
        self.log[job] = []
        self._write(job, Event(n=1, at=NOW, kind="submitted", actor=asker.name))
        waits = tuple(Wait(player=name, why=why) for name in names if name.startswith("down"))
        return Receipt(job=job, created=True, targets=len(names), waits=waits, waiting=len(waits))

    def _counts(self, job: int) -> dict[State, int]:
        states = [State[task.state.upper()] for task in self._tasks_of(job)]
        return {state: states.count(state) for state in State if state in states}

    def _verdict(self, job: int) -> str:
        return verdict(self.asks[job].scope or Scope.ALL, self._counts(job))

    def _tasks_of(self, job: int) -> list[TaskView]:
        if job not in self.by_task:
            raise NoSuchJob(job=job)
        return self.by_task[job]

    async def secrets_wanted(self, ask: Ask) -> tuple[str, ...]:
        return wanted(ask, [entry for entry in self.catalogue.scores if entry.name == ask.score])

    async def job(self, job: int) -> JobView:
        self._tasks_of(job)
        ask, asker = self.asks[job], self.askers[job]
        return JobView(
            job=job,
            score=ask.score,
            params=ask.params,
            secrets=tuple(ask.private),
            dry_run=ask.dry_run,
            scope=(ask.scope or Scope.ALL).value,
            owner=asker.name,
            uid=asker.uid,
            login_uid=asker.login_uid,
            request_key=ask.request_key,
            created_at=NOW,
            expires_at=None,
            ended_at=NOW + 3_000 if self._verdict(job) else None,
            priority=ask.priority,
            counts={state.label: many for state, many in self._counts(job).items()},
            verdict=self._verdict(job),
            last_event=len(self.log[job]),
            paused=self.paused.get(job),
        )

    async def tasks(self, job: int, after: int = -1, limit: int = 500, states: Sequence[State] = ()) -> list[TaskView]:
        wanted = {state.label for state in states or State}
        return [task for task in self._tasks_of(job) if task.task > after and task.state in wanted][:limit]

    async def output(
        self, job: int, task: int, stream: int, offset: int = 0, limit: int = 262_144
    ) -> list[tuple[int, bytes]]:
        for start, data in self.kept.get((job, task, stream), []):
            if start + len(data) > offset:
                skip = max(0, offset - start)
                return [(start + skip, data[skip : skip + limit])]
        return []

    async def jobs(
        self, before: int | None = None, limit: int = 50, unfinished: bool = False, owner: str | None = None
    ) -> list[JobView]:
        views = [await self.job(job) for job in sorted(self.asks, reverse=True) if before is None or job < before]
        return [v for v in views if (owner in (None, v.owner)) and not (unfinished and v.verdict)][:limit]

    async def events(self, job: int, since: int = 0, limit: int = 500) -> list[Event]:
        self._tasks_of(job)
        return self.log[job][since : since + limit]

    async def players(self, after: str = "", limit: int = 500, names: Sequence[str] = ()) -> list[PlayerView]:
        found = sorted(name for name in map(str.lower, names or self.names) if name > after)
        status = {True: "offline", False: "online"}
        return [PlayerView(name=name, status=status[name.startswith("down")], since=NOW) for name in found][:limit]

    async def catalogues(self, names: Sequence[str] = ()) -> list[tuple[Catalogue, tuple[str, ...]]]:
        return [(self.catalogue, tuple(sorted(self.names & set(names or self.names))))]

    async def scores(self, hosts: Sequence[str] = (), name: str = "") -> list[ScoreView]:
        players = {self.catalogue.digest: len(self.names & set(hosts or self.names))}
        return bind([self.catalogue], players, name)

    async def disks(self, hosts: Sequence[str] = ()) -> list[Disk]:
        return [Disk(self.catalogue.digest, tuple(sorted(self.names & set(hosts or self.names))))]

    async def cancel(self, asker: Asker, job: int, names: Sequence[str] = ()) -> Cancelling:
        waiting = [t for t in self._tasks_of(job) if t.state == "pending" and (not names or t.player in names)]
        for task in waiting:
            self.end(job, task.player or "web1", State.CANCELLED)
        return Cancelling(job=job, cancelled=len(waiting), cancelling=0, ended=len(self._tasks_of(job)) - len(waiting))

    async def choose(self, choice: Choice) -> Chosen:
        waiting = self._waiting_of(choice)
        return Chosen(len({job for job, _ in waiting}), len(waiting), 0, len(self.asks))

    async def cancel_chosen(
        self, asker: Asker, choice: Choice, up_to: int, after: tuple[int, int] | None = None
    ) -> CancelStep:
        """One task a step."""
        waiting = [one for one in self._waiting_of(choice) if one[0] <= up_to]
        for job, player in waiting[:1]:
            self.end(job, player, State.CANCELLED)
        return CancelStep(cancelled=len(waiting[:1]), cancelling=0, lost=0, after=(1, 0) if waiting[1:] else None)

    def _waiting_of(self, choice: Choice) -> list[tuple[int, str]]:
        return [
            (job, task.player or "web1")
            for job, ask in self.asks.items()
            for task in self.by_task[job]
            if task.state == "pending"
            and choice.score in (None, ask.score)
            and choice.owner in (None, self.askers[job].name)
            and (not choice.hosts or task.player in choice.hosts)
        ]

    async def hold(self, asker: Asker, braking: Braking, reason: str) -> Holding:
        before = dict(self.held)
        for kind, name in braking.marks:
            made = Hold(kind=kind, name=name, reason=reason, at=NOW, owner=asker.name, uid=asker.uid)
            self.held.setdefault((kind, name), made)
        found = [self.held[mark] for mark in braking.marks]
        known = tuple(one for one in found if (one.kind, one.name) in before)
        return Holding(made=tuple(one for one in found if one not in known), known=known, going_on=1)

    async def release(self, asker: Asker, braking: Braking | None) -> Released:
        marks = list(self.held) if braking is None else list(braking.marks)
        lifted = [self.held.pop(mark) for mark in marks if mark in self.held]
        return Released(lifted=tuple(lifted), left=tuple(self.held.values()))

    async def holds(self) -> tuple[Hold, ...]:
        return tuple(self.held.values())

    async def reload(self, asker: Asker, accept_removals: int = 0) -> Reloaded:
        self.accepted_removals = accept_removals
        return self.reloaded

    async def backup(self, asker: Asker, file: str) -> BackedUp:
        return BackedUp(file=file, size=4096, took=1500)

    async def about(self) -> About:
        return About(version="1", started_at=NOW, players=len(self.names), online=3, pending=0, dispatched=0)

    def watch(self, job: int, since: int, listener: Listener) -> "MemoryWatch":
        watch = MemoryWatch(self, job, since, listener)
        self.watches.add(watch)
        watch.wake()
        return watch

    def await_end(self, job: int, listener: Listener, *, new: bool = False) -> "MemoryWatch":
        async def at_the_end(_: Sequence[Event], view: JobView | None) -> None:
            if view:
                await listener((), view)

        return self.watch(job, 0, at_the_end)


class MemoryManager:
    """A :class:`~orchestra.audience.desk.Manager` of a memory desk's jobs."""

    def __init__(self, desk: MemoryDesk) -> None:
        self._desk = desk

    async def pause(self, asker: Asker, job: int) -> Pausing:
        await self._desk.job(job)
        new = job not in self._desk.paused
        self._desk.paused.setdefault(job, Paused(at=NOW, owner=asker.name, uid=asker.uid))
        return Pausing(job=job, paused=self._desk.paused[job], new=new, going_on=1)

    async def resume(self, asker: Asker, job: int) -> Resuming:
        await self._desk.job(job)
        return Resuming(job=job, was=self._desk.paused.pop(job, None), freed=0)

    async def events(self, since: int, limit: int = 500) -> list[Event]:
        """They are numbered as they were told."""
        return self._desk.history[since : since + limit]

    async def last_event(self) -> int:
        return len(self._desk.history)


class MemoryWatch:
    """One call of the listener at a time; what comes meanwhile is read from the log after it."""

    def __init__(self, desk: MemoryDesk, job: int, since: int, listener: Listener) -> None:
        self._desk = desk
        self._job = job
        self._seen = since
        self._listener = listener
        self._call: Deferred[None] | None = None

    def stop(self) -> None:
        self._desk.watches.discard(self)

    def wake(self) -> None:
        """Tell the listener, unless it is still busy or nothing is new."""
        log = self._desk.log[self._job]
        events, ended = log[self._seen :], any(event.kind == "ended" for event in log)
        if self._call is not None or self not in self._desk.watches or not (events or ended):
            return
        self._seen += len(events)
        call = self._call = Deferred.fromCoroutine(self._told(events, ended))
        call.addCallbacks(lambda _: self._after(ended), lambda _: self.stop())

    async def _told(self, events: Sequence[Event], ended: bool) -> None:
        await self._listener(events, await self._desk.job(self._job) if ended else None)

    def _after(self, ended: bool) -> None:
        self._call = None
        if ended:
            self.stop()
        else:
            self.wake()
