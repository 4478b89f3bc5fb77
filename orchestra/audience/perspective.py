"""The conductor's seat for commands and Python programs: a desk, through Perspective Broker.

    client                                               conductor
      submit({ask}[, watcher])                    ->       ["OK", receipt]; with a watcher, its watch has begun
      perform({ask}, watcher)                     ->       as submit; the watcher hears of the end alone
      secrets_wanted({ask})                       ->       ["OK", names]    of the secrets it would be refused without
      rerun({rerun})                              ->       ["OK", receipt]
      targets({selection, after})                 ->       ["OK", [names, more]]
      plan({ask, after})                          ->       ["OK", [plan, rows, more]]
      job({job})                                  ->       ["OK", job]
      tasks({job, after, limit, states})          ->       ["OK", [rows, more]]    and jobs, events, players, scores
      explain({job, after, limit, hosts})         ->       ["OK", [rows, more]]
      catalogues({after, names})                  ->       ["OK", [rows, more]]    and disks
      output({job, task, stream, offset, limit})  ->       ["OK", [(offset, bytes)…]]
      cancel({job, names}) about({})              ->       ["OK", value]
      reload({accept_removals}) backup({file})    ->       ["OK", value]
      prune_plan({}) prune({})                    ->       ["OK", value]
      pause({job}) resume({job})                  ->       ["OK", value]
      hold({braking, reason}) release({braking})  ->       ["OK", value]    braking None: every hold
      choose({choice})                            ->       ["OK", chosen]
      cancel_chosen({choice, up_to, after})       ->       ["OK", step]     again with its after, until that is None
      watch({job, since}, watcher)                ->       ["OK", None]
      await_end({job}, watcher)                   ->       ["OK", None]
      all_events({since, limit}) last_event({})   ->       ["OK", [rows, more]] ["OK", number]    of all jobs, by seq
      watch_all({since}, watcher)                 ->       ["OK", None]    which no end of a job ends
      watcher.events([event…], None | job)        <-       its answer asks for the next; the job comes when it has ended
      unwatch({}, watcher)                        ->       ["OK", None]

An answer holds at most 500 rows and about 256 kB; ``more`` says to ask again after the last row.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

from msgspec import Meta, Struct
from msgspec.structs import replace
from twisted.application.service import Service
from twisted.internet.interfaces import IReactorUNIX
from twisted.spread import pb

from orchestra.audience import envelope
from orchestra.audience.desk import Desk, Listener, Watch
from orchestra.audience.envelope import MAX_BYTES, MAX_ROWS
from orchestra.audience.seat import Guest, Method, Nothing, Sitter, seat_port
from orchestra.core.scorebook import Disk
from orchestra.errors import BadRequest, TooMany
from orchestra.model import Ask, Braking, Catalogue, Choice, Event, JobView, Receipt, Rerun, Selection, State

MAX_WATCHERS: Final = 32  # per connection
MAX_PRIORITY: Final = 1_000_000
NAMES_PER_ROW: Final = 500

T = TypeVar("T")
Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
JobNumber = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Limit = Annotated[int, Meta(ge=1, le=MAX_ROWS)]
Name = Annotated[str, Meta(max_length=1_000)]


class OneJob(Struct, frozen=True, forbid_unknown_fields=True):
    job: JobNumber


class Tasks(Struct, frozen=True, forbid_unknown_fields=True):
    job: JobNumber
    after: Annotated[int, Meta(ge=-1, le=2**63 - 1)] = -1
    limit: Limit = MAX_ROWS
    states: Annotated[tuple[State, ...], Meta(max_length=len(State))] = ()


class Output(Struct, frozen=True, forbid_unknown_fields=True):
    job: JobNumber
    task: Number
    stream: Annotated[int, Meta(ge=1, le=2)]
    offset: Number = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_BYTES)] = MAX_BYTES


class Explain(Struct, frozen=True, forbid_unknown_fields=True):
    """``after``: task and nth of the last row."""

    job: JobNumber
    after: tuple[int, int] = (-1, 0)
    limit: Limit = MAX_ROWS
    hosts: tuple[Name, ...] = ()


class Jobs(Struct, frozen=True, forbid_unknown_fields=True):
    before: JobNumber | None = None
    limit: Limit = 50
    unfinished: bool = False
    owner: Name | None = None


class Targets(Struct, frozen=True, forbid_unknown_fields=True):
    selection: Selection
    after: Name = ""


class Plans(Struct, frozen=True, forbid_unknown_fields=True):
    ask: Ask
    after: Name = ""


class Events(Struct, frozen=True, forbid_unknown_fields=True):
    job: JobNumber
    since: Number = 0
    limit: Limit = MAX_ROWS


class AllEvents(Struct, frozen=True, forbid_unknown_fields=True):
    since: Number = 0
    limit: Limit = MAX_ROWS


class Players(Struct, frozen=True, forbid_unknown_fields=True):
    after: Name = ""
    limit: Limit = MAX_ROWS
    names: tuple[Name, ...] = ()


class Catalogues(Struct, frozen=True, forbid_unknown_fields=True):
    """``after``: digest and last name of the last row."""

    after: tuple[Name, Name] = ("", "")
    names: tuple[Name, ...] = ()


class Scores(Struct, frozen=True, forbid_unknown_fields=True):
    """``name``: only this one."""

    after: Name = ""
    limit: Limit = MAX_ROWS
    hosts: tuple[Name, ...] = ()
    name: Name = ""


class Disks(Struct, frozen=True, forbid_unknown_fields=True):
    """``after``: digest and last name of the last row."""

    after: tuple[Name, Name] = ("", "")
    hosts: tuple[Name, ...] = ()


class Cancel(Struct, frozen=True, forbid_unknown_fields=True):
    job: JobNumber
    names: tuple[Name, ...] = ()


class Reload(Struct, frozen=True, forbid_unknown_fields=True):
    accept_removals: Number = 0


class Backup(Struct, frozen=True, forbid_unknown_fields=True):
    file: Annotated[str, Meta(max_length=4096, pattern="^/[^\\x00]*$")]


class Chooses(Struct, frozen=True, forbid_unknown_fields=True):
    choice: Choice


class CancelChosen(Struct, frozen=True, forbid_unknown_fields=True):
    choice: Choice
    up_to: Number
    after: tuple[int, int] | None = None


class Holds(Struct, frozen=True, forbid_unknown_fields=True):
    braking: Braking
    reason: Name


class Releases(Struct, frozen=True, forbid_unknown_fields=True):
    braking: Braking | None = None


class OnePlayer(Struct, frozen=True, forbid_unknown_fields=True):
    name: Name


class WatchingAll(Struct, frozen=True, forbid_unknown_fields=True):
    since: Number


class Watching(Struct, frozen=True, forbid_unknown_fields=True):
    job: JobNumber
    since: Number = 0


Watcher = pb.RemoteReference | None


class Perspective:
    """One guest's view of a desk, and the watches of that guest's connection."""

    def __init__(self, desk: Desk, guest: Guest) -> None:
        self._desk = desk
        self._guest = guest
        self._watches: dict[int, Watch] = {}
        self._last: tuple[object, Any] = None, None  # what was asked for page by page, and the whole answer
        self._methods: Mapping[str, Method] = {
            "submit": Method(Ask, self._submit),
            "perform": Method(Ask, self._perform),
            "secrets_wanted": Method(Ask, self._secrets_wanted),
            "rerun": Method(Rerun, self._rerun),
            "targets": Method(Targets, self._targets),
            "plan": Method(Plans, self._plan),
            "job": Method(OneJob, self._job),
            "tasks": Method(Tasks, self._tasks),
            "explain": Method(Explain, self._explain),
            "output": Method(Output, self._output),
            "jobs": Method(Jobs, self._jobs),
            "events": Method(Events, self._events),
            "all_events": Method(AllEvents, self._all_events),
            "last_event": Method(Nothing, self._last_event),
            "players": Method(Players, self._players),
            "catalogues": Method(Catalogues, self._catalogues),
            "scores": Method(Scores, self._scores),
            "disks": Method(Disks, self._disks),
            "cancel": Method(Cancel, self._cancel),
            "choose": Method(Chooses, self._choose),
            "cancel_chosen": Method(CancelChosen, self._cancel_chosen),
            "pause": Method(OneJob, self._pause),
            "resume": Method(OneJob, self._resume),
            "hold": Method(Holds, self._hold),
            "release": Method(Releases, self._release),
            "holds": Method(Nothing, self._holds),
            "reload": Method(Reload, self._reload),
            "forgive": Method(OnePlayer, self._forgive),
            "prune_plan": Method(Nothing, self._prune_plan),
            "prune": Method(Nothing, self._prune),
            "backup": Method(Backup, self._backup),
            "about": Method(Nothing, self._about),
            "watch": Method(Watching, self._watch),
            "watch_all": Method(WatchingAll, self._watch_all),
            "await_end": Method(OneJob, self._await_end),
            "unwatch": Method(Nothing, self._unwatch),
        }

    def methods(self) -> Mapping[str, Method]:
        """All of the desk, for those who are allowed; asked anew each time, for a reload may change that."""
        if not self._desk.allowed(self._guest.asker.uid, self._guest.groups):
            raise self._desk.denial(self._guest.asker.name)
        return self._methods

    def left(self) -> None:
        """Stop every watch of this connection."""
        while self._watches:
            self._watches.popitem()[1].stop()

    async def _submit(self, ask: Ask, watcher: Watcher) -> object:
        receipt = await self._accepted(ask, watcher)
        if watcher is not None:
            self._begin(watcher, lambda listener: self._desk.watch(receipt.job, 0, listener))
        return receipt

    async def _perform(self, ask: Ask, watcher: Watcher) -> object:
        watcher = _needed(watcher, "perform")
        receipt = await self._accepted(ask, watcher)
        self._begin(watcher, lambda listener: self._desk.await_end(receipt.job, listener, new=receipt.created))
        return receipt

    async def _targets(self, of: Targets, _: Watcher) -> object:
        names = await self._whole(of.selection, of.after, lambda: self._desk.planner.targets(of.selection))
        return envelope.page((name for name in names if name > of.after), MAX_ROWS)

    async def _plan(self, of: Plans, _: Watcher) -> object:
        _check_numbers("plan", of.ask.expire, of.ask.priority)
        known = replace(of.ask, private={})
        plan, rows = await self._whole(known, of.after, lambda: self._desk.planner.plan(self._guest.asker, of.ask))
        return plan, *envelope.page((row for row in rows if row.player > of.after), MAX_ROWS)

    async def _whole(self, asked: object, after: str, answer: Callable[[], Awaitable[T]]) -> T:
        """The whole answer, of which a page is wanted; what has changed since the first page is not looked at."""
        if not after or self._last[0] != asked:
            self._last = asked, await answer()
        found: T = self._last[1]
        return found

    async def _rerun(self, wanted: Rerun, _: Watcher) -> object:
        _check_numbers("rerun", wanted.expire, wanted.priority or 0)
        return await self._desk.manager.rerun(self._guest.asker, wanted)

    async def _accepted(self, ask: Ask, watcher: Watcher) -> Receipt:
        _check_numbers("submit", ask.expire, ask.priority)
        if ask.rerun_of is not None:
            await self._desk.job(ask.rerun_of)  # or NoSuchJob
        if watcher is not None:
            self._check_watcher(watcher)
        receipt = await self._desk.submit(self._guest.asker, ask)
        if watcher is not None and not receipt.created:
            await self._desk.job(receipt.job)  # or NoSuchJob: a request key outlives its job
        return receipt

    async def _secrets_wanted(self, ask: Ask, _: Watcher) -> object:
        return await self._desk.secrets_wanted(ask)

    async def _job(self, of: OneJob, _: Watcher) -> object:
        return await self._desk.job(of.job)

    async def _tasks(self, of: Tasks, _: Watcher) -> object:
        return _paged(await self._desk.tasks(of.job, of.after, of.limit, of.states), of.limit)

    async def _explain(self, of: Explain, _: Watcher) -> object:
        return _paged(await self._desk.explain(of.job, of.after, of.limit, of.hosts), of.limit)

    async def _output(self, of: Output, _: Watcher) -> object:
        return await self._desk.output(of.job, of.task, of.stream, of.offset, of.limit)

    async def _jobs(self, of: Jobs, _: Watcher) -> object:
        return _paged(await self._desk.jobs(of.before, of.limit, of.unfinished, of.owner), of.limit)

    async def _events(self, of: Events, _: Watcher) -> object:
        return _paged(await self._desk.events(of.job, of.since, of.limit), of.limit)

    async def _all_events(self, of: AllEvents, _: Watcher) -> object:
        return _paged(await self._desk.manager.events(of.since, of.limit), of.limit)

    async def _last_event(self, _: Nothing, __: Watcher) -> object:
        return await self._desk.manager.last_event()

    async def _players(self, of: Players, _: Watcher) -> object:
        return _paged(await self._desk.players(of.after, of.limit, of.names), of.limit)

    async def _catalogues(self, of: Catalogues, _: Watcher) -> object:
        rows = catalogue_rows(await self._desk.catalogues(of.names))
        return envelope.page((row for row in rows if (row[0].digest, row[1][-1]) > of.after), MAX_ROWS)

    async def _scores(self, of: Scores, _: Watcher) -> object:
        found = await self._desk.scores(of.hosts, of.name)
        return envelope.page((score for score in found if score.name > of.after), of.limit)

    async def _disks(self, of: Disks, _: Watcher) -> object:
        rows = disk_rows(await self._desk.disks(of.hosts))
        return envelope.page((row for row in rows if (row.digest, row.players[-1]) > of.after), MAX_ROWS)

    async def _cancel(self, of: Cancel, _: Watcher) -> object:
        return await self._desk.cancel(self._guest.asker, of.job, of.names)

    async def _choose(self, of: Chooses, _: Watcher) -> object:
        return await self._desk.choose(of.choice)

    async def _cancel_chosen(self, of: CancelChosen, _: Watcher) -> object:
        return await self._desk.cancel_chosen(self._guest.asker, of.choice, of.up_to, of.after)

    async def _pause(self, of: OneJob, _: Watcher) -> object:
        return await self._desk.manager.pause(self._guest.asker, of.job)

    async def _resume(self, of: OneJob, _: Watcher) -> object:
        return await self._desk.manager.resume(self._guest.asker, of.job)

    async def _hold(self, of: Holds, _: Watcher) -> object:
        return await self._desk.hold(self._guest.asker, of.braking, of.reason)

    async def _release(self, of: Releases, _: Watcher) -> object:
        return await self._desk.release(self._guest.asker, of.braking)

    async def _holds(self, _: Nothing, __: Watcher) -> object:
        return await self._desk.holds()

    async def _forgive(self, given: OnePlayer, _: Watcher) -> object:
        return await self._desk.forgive(self._guest.asker, given.name)

    async def _reload(self, how: Reload, _: Watcher) -> object:
        return await self._desk.reload(self._guest.asker, how.accept_removals)

    async def _backup(self, to: Backup, _: Watcher) -> object:
        return await self._desk.backup(self._guest.asker, to.file)

    async def _prune_plan(self, _: Nothing, __: Watcher) -> object:
        return await self._desk.manager.prune_plan()

    async def _prune(self, _: Nothing, __: Watcher) -> object:
        return await self._desk.manager.prune(self._guest.asker)

    async def _about(self, _: Nothing, __: Watcher) -> object:
        return await self._desk.about()

    async def _watch(self, of: Watching, watcher: Watcher) -> object:
        watcher = _needed(watcher, "watch")
        self._check_watcher(watcher)
        await self._desk.job(of.job)  # or NoSuchJob
        self._begin(watcher, lambda listener: self._desk.watch(of.job, of.since, listener))
        return None

    async def _watch_all(self, of: WatchingAll, watcher: Watcher) -> object:
        watcher = _needed(watcher, "watch_all")
        self._check_watcher(watcher)
        await self._desk.manager.events(of.since, 1)  # or NoSuchEvent
        self._begin(watcher, lambda listener: self._desk.manager.watch(of.since, listener))
        return None

    async def _await_end(self, of: OneJob, watcher: Watcher) -> object:
        watcher = _needed(watcher, "await_end")
        self._check_watcher(watcher)
        await self._desk.job(of.job)  # or NoSuchJob
        self._begin(watcher, lambda listener: self._desk.await_end(of.job, listener))
        return None

    async def _unwatch(self, _: Nothing, watcher: Watcher) -> object:
        if watcher is not None and watcher.luid in self._watches:
            self._watches.pop(watcher.luid).stop()
        return None

    def _check_watcher(self, watcher: pb.RemoteReference) -> None:
        if watcher.luid in self._watches:
            raise BadRequest(problem="watch: this watcher is watching already; unwatch first")
        if len(self._watches) >= MAX_WATCHERS:
            raise TooMany(who="This connection", limit=MAX_WATCHERS, what="watches")

    def _begin(self, watcher: pb.RemoteReference, watch: Callable[[Listener], Watch]) -> None:
        if watcher.broker.disconnected:
            return

        async def listener(events: Sequence[Event], job: JobView | None) -> None:
            try:
                await _send(watcher, events, job)
            except BaseException:
                self._watches.pop(watcher.luid, None)
                raise
            if job is not None:
                self._watches.pop(watcher.luid, None)

        self._watches[watcher.luid] = watch(listener)


def _check_numbers(what: str, expire: float | None, priority: int) -> None:
    if expire is not None and not 0 <= expire < 1e12:
        raise BadRequest(problem=f"{what}: expire is a number of seconds from 0 on")
    if abs(priority) > MAX_PRIORITY:
        raise BadRequest(problem=f"{what}: priority is a number from -{MAX_PRIORITY} to {MAX_PRIORITY}")


def _needed(watcher: Watcher, name: str) -> pb.RemoteReference:
    if watcher is None:
        raise BadRequest(problem=f"{name}: takes a watcher")
    return watcher


async def _send(watcher: pb.RemoteReference, events: Sequence[Event], job: JobView | None) -> None:
    batches = list(envelope.pages(events)) or [[]]
    for batch in batches[:-1]:
        await watcher.callRemote("events", envelope.pack(batch), None)
    await watcher.callRemote("events", envelope.pack(batches[-1]), job and envelope.pack(job))


def _paged(rows: Sequence[object], limit: int) -> tuple[list[Any], bool]:
    packed, cut = envelope.page(rows, limit)
    return packed, cut or len(rows) >= limit


Row = tuple[Catalogue, tuple[str, ...]]


def catalogue_rows(found: Sequence[Row]) -> Iterator[Row]:
    """Catalogues by digest, each in rows of at most 500 names; the first row alone has the scores."""
    for catalogue, names in sorted(found, key=lambda row: row[0].digest):
        ordered = sorted(names) or [""]
        for start in range(0, len(ordered), NAMES_PER_ROW):
            yield catalogue, tuple(ordered[start : start + NAMES_PER_ROW])
            catalogue = Catalogue(digest=catalogue.digest, scores=())


def disk_rows(found: Sequence[Disk]) -> Iterator[Disk]:
    """Disks by digest, each in rows of at most 500 players."""
    for disk in sorted(found, key=lambda disk: disk.digest):
        for start in range(0, len(disk.players), NAMES_PER_ROW):
            yield Disk(disk.digest, disk.players[start : start + NAMES_PER_ROW])


def audience_port(reactor: IReactorUNIX, path: str, mode: int, group: str, desk: Desk) -> Service:
    """A service that seats the audience in front of ``desk`` at the unix socket ``path``; ``group`` "" is our own."""

    def seat(guest: Guest) -> Sitter:
        return Perspective(desk, guest)

    return seat_port(reactor, path, seat, mode=mode, group=group, what="conductor")
