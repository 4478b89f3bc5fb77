"""The Python library: ask a conductor for work, from a Twisted program or from a plain script.

In a Twisted program::

    from orchestra.audience.client import Ask, Orchestra, Scope

    async with await Orchestra.connect(reactor) as orchestra:
        receipt = await orchestra.submit(Ask(score="uptime", targets=("web1", "web2"), scope=Scope.ALL))
        job = await orchestra.wait(receipt.job)
        async for task in orchestra.tasks(receipt.job):
            print(task.player, task.state, task.response)

In a script, with no reactor in sight: :class:`BlockingOrchestra`.

What the conductor refuses is raised as the class of :mod:`orchestra.errors` that has its code.
"""

import errno
import functools
import grp
import os
import pwd
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Final, Self, TypeVar

from twisted.internet.defer import Deferred, DeferredLock, TimeoutError
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.task import deferLater
from twisted.internet.threads import blockingCallFromThread
from twisted.python.failure import Failure
from twisted.python.threadable import isInIOThread
from twisted.spread import pb

from orchestra import parameters
from orchestra.audience import envelope
from orchestra.audience.desk import (
    About,
    BackedUp,
    Cancelling,
    CancelStep,
    Cleared,
    Holding,
    Pausing,
    Released,
    Resuming,
)
from orchestra.core.blockers import Standstill
from orchestra.core.scorebook import Disk, ScoreView
from orchestra.errors import BadRequest, Denied, GaveUpWaiting, NoConductor, OrchestraError, Unanswered, Unreadable
from orchestra.model import (
    MAX_SOCKET_PATH,
    Ask,
    Braking,
    Catalogue,
    Choice,
    Chosen,
    Event,
    Hold,
    JobView,
    Plan,
    PlanRow,
    PlayerView,
    PrunePlan,
    Receipt,
    Reloaded,
    Rerun,
    Rolling,
    Scope,
    Selection,
    State,
    TaskView,
)

__all__ = ["DEFAULT_SOCKET", "Ask", "BlockingOrchestra", "Orchestra", "Rerun", "Rolling", "Scope", "State"]

DEFAULT_SOCKET: Final = "/run/orchestra/audience.pb"
ANSWER_WITHIN: Final = 60.0  # seconds
BACKUP_WITHIN: Final = 86_400.0  # seconds; it is as long as the store is large
PATIENCE: Final = 60.0  # seconds for which a wait looks for a conductor that went away
RETRY: Final = 0.5  # seconds
MAX_WORD: Final = 1_000

T = TypeVar("T")
Progress = Callable[[Sequence[Event]], Awaitable[None] | None]
"""Called with the next events of a job; while what it returns is not done, no more come."""


class Orchestra:
    """A conductor, at the other end of its socket.

    Calls may be made at any time and several at once; a lost connection is made anew by the next call. A call that
    was sent and never answered is an :class:`~orchestra.errors.Unanswered`; only ``wait`` goes on by itself.
    """

    def __init__(self, reactor: Any, socket: str = DEFAULT_SOCKET, answer_within: float = ANSWER_WITHIN) -> None:
        self._reactor = reactor
        self._socket = socket
        self._answer_within = answer_within
        self._lock = DeferredLock()
        self._root: pb.RemoteReference | None = None

    @classmethod
    async def connect(cls, reactor: Any, socket: str = DEFAULT_SOCKET, answer_within: float = ANSWER_WITHIN) -> Self:
        """A client that is connected; :class:`~orchestra.errors.NoConductor` if nobody is there."""
        client = cls(reactor, socket, answer_within)
        await client._connected()
        return client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; watches end with the connection."""
        root, self._root = self._root, None
        if root is not None and not root.broker.disconnected:
            transport: Any = root.broker.transport
            transport.loseConnection()

    # asking for work

    async def submit(self, ask: Ask) -> Receipt:
        """Have a request accepted; once this returns, it is on the conductor's disk."""
        return await self._call(Receipt, "submit", _checked(ask))

    async def rerun(self, wanted: Rerun) -> Receipt:
        """Have a job run once more, where it ended in one of these ways: a job of its own, that knows of the first."""
        return await self._call(Receipt, "rerun", wanted)

    async def perform(
        self,
        ask: Ask,
        accepted: Callable[[Receipt], None] = lambda receipt: None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> JobView:
        """Submit and wait, as ``submit`` and ``wait`` would, with a round trip less."""
        watcher = _Watcher(progress)
        receipt = await self._call(Receipt, "submit" if progress else "perform", _checked(ask), watcher)
        accepted(receipt)
        return await self._waited(receipt.job, watcher, timeout, watching=True)

    async def wait(
        self, job: int, progress: Progress | None = None, timeout: float | None = None, since: int = 0
    ) -> JobView:
        """The job, once it has ended; ``progress`` is given every event of it, also those that were before, but for the
        first ``since``.

        A conductor that goes away meanwhile is looked for for a minute. :class:`~orchestra.errors.GaveUpWaiting`
        after ``timeout`` seconds; the job goes on.
        """
        return await self._waited(job, _Watcher(progress, since), timeout, watching=False)

    async def secrets_wanted(self, ask: Ask) -> tuple[str, ...]:
        """The secret parameters that ``ask`` would be refused without; they go into its ``private``."""
        return await self._call(tuple[str, ...], "secrets_wanted", _checked(ask))

    async def cancel(self, job: int, names: Sequence[str] = ()) -> Cancelling:
        """Cancel a job, or its part on some hosts."""
        return await self._call(Cancelling, "cancel", {"job": job, "names": list(names)})

    async def choose(self, choice: Choice) -> Chosen:
        """How many jobs and tasks a choice is of now, before they are cancelled."""
        return await self._call(Chosen, "choose", {"choice": choice})

    async def cancel_chosen(
        self, choice: Choice, up_to: int, progress: Callable[[CancelStep], None] = lambda step: None
    ) -> CancelStep:
        """Cancel all that is unfinished of a choice, in jobs up to number ``up_to``, step by step; what it came to.
        ``progress`` is given the sum so far. What breaks off in the middle has cancelled that much; ask again."""
        done = CancelStep(cancelled=0, cancelling=0, lost=0, after=None)
        while True:
            arguments = {"choice": choice, "up_to": up_to, "after": done.after}
            step = await self._call(CancelStep, "cancel_chosen", arguments)
            sums = {name: getattr(done, name) + getattr(step, name) for name in ("cancelled", "cancelling", "lost")}
            done = CancelStep(**sums, after=step.after)
            progress(done)
            if step.after is None:
                return done

    async def pause(self, job: int) -> Pausing:
        """Have nothing of a job handed out until it is resumed; what runs goes on."""
        return await self._call(Pausing, "pause", {"job": job})

    async def resume(self, job: int) -> Resuming:
        """Have handed out again what is to be handed out of a job."""
        return await self._call(Resuming, "resume", {"job": job})

    async def hold(self, braking: Braking, reason: str) -> Holding:
        """Have nothing of these handed out until they are released; what runs goes on."""
        return await self._call(Holding, "hold", {"braking": braking, "reason": reason})

    async def release(self, braking: Braking | None) -> Released:
        """Lift these holds, or all for None; what waited for that starts."""
        return await self._call(Released, "release", {"braking": braking})

    # looking

    def targets(self, selection: Selection) -> AsyncIterator[str]:
        """The names of the players that are meant."""
        arguments = {"selection": selection}
        return _flat(self._pages(str, "targets", arguments, "after", "", lambda name: name))

    async def plan(self, ask: Ask) -> tuple[Plan, list[PlanRow]]:
        """What would become of a request now, and on each of its targets; nothing is asked for."""
        rows: list[PlanRow] = []
        more = True
        _checked(ask)
        while more:
            arguments = {"ask": ask, "after": rows[-1].player if rows else ""}
            plan, page, more = await self._call(tuple[Plan, list[PlanRow], bool], "plan", arguments)
            rows += page
        return plan, rows

    async def holds(self) -> tuple[Hold, ...]:
        """What is held."""
        return await self._call(tuple[Hold, ...], "holds", {})

    async def job(self, job: int) -> JobView:
        """A job and its counts."""
        return await self._call(JobView, "job", {"job": job})

    def tasks(self, job: int, states: Sequence[State] = (), after: int = -1) -> AsyncIterator[TaskView]:
        """Everything known of each task of a job, in order."""
        return _flat(self.task_pages(job, states, after))

    def explain(self, job: int, hosts: Sequence[str] = ()) -> AsyncIterator[Standstill]:
        """Every task of a job that has not started, on these hosts or on all, with everything that keeps it."""
        arguments = {"job": job, "hosts": list(hosts)}
        return _flat(self._pages(Standstill, "explain", arguments, "after", (-1, 0), lambda row: (row.task, row.nth)))

    async def output(self, job: int, task: int, stream: int = 1, offset: int = 0) -> list[tuple[int, bytes]]:
        """The next kept pieces (offset, bytes) of stream 1 or 2 from ``offset`` on; none: that was all."""
        arguments = {"job": job, "task": task, "stream": stream, "offset": offset}
        return await self._call(list[tuple[int, bytes]], "output", arguments)

    def jobs(
        self, unfinished: bool = False, owner: str | None = None, before: int | None = None
    ) -> AsyncIterator[JobView]:
        """Jobs, newest first."""
        return _flat(self.job_pages(unfinished, owner, before))

    def events(self, job: int, since: int = 0) -> AsyncIterator[Event]:
        """What has happened to a job, from the event after ``since`` on."""
        return _flat(self.event_pages(job, since))

    def all_events(self, since: int = 0) -> AsyncIterator[Event]:
        """What has happened to all jobs, in the order in which it was committed, from the event ``since`` on."""
        return _flat(self.all_event_pages(since))

    async def last_event(self) -> int:
        """The ``seq`` of the newest event of all; 0 if there was none."""
        return await self._call(int, "last_event", {})

    async def follow(self, progress: Progress, since: int | None = None) -> None:
        """Have ``progress`` given every event of any job after ``since``, or from now on, until this is cancelled. A
        conductor that goes away meanwhile is looked for for a minute, and nothing is missed."""
        start = await self.last_event() if since is None else since
        await self._followed(0, _AllWatcher(progress, start), watching=False)

    def players(self, names: Sequence[str] = ()) -> AsyncIterator[PlayerView]:
        """Players by name; all, if no names are given."""
        return _flat(self.player_pages(names))

    async def catalogues(self, names: Sequence[str] = ()) -> list[tuple[Catalogue, tuple[str, ...]]]:
        """Every catalogue in use, with the names of the players that have it."""
        found: dict[str, tuple[Catalogue, tuple[str, ...]]] = {}
        after, more = ("", ""), True
        while more:
            arguments = {"names": list(names), "after": after}
            rows, more = await self._call(tuple[list[tuple[Catalogue, tuple[str, ...]]], bool], "catalogues", arguments)
            for catalogue, players in rows:
                whole, others = found.get(catalogue.digest, (catalogue, ()))
                found[catalogue.digest] = whole, others + tuple(name for name in players if name)
                after = catalogue.digest, players[-1]
        return list(found.values())

    def scores(self, hosts: Sequence[str] = (), name: str = "") -> AsyncIterator[ScoreView]:
        """Every score by name, or this one: its forms, and the catalogues with them; ``disks`` says whose these are."""
        arguments = {"hosts": list(hosts), "name": name}
        return _flat(self._pages(ScoreView, "scores", arguments, "after", "", lambda row: row.name))

    async def disks(self, hosts: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
        """Who has which catalogue, by its digest; "" is one that is not known yet."""
        found: dict[str, tuple[str, ...]] = {}
        arguments = {"hosts": list(hosts)}
        pages = self._pages(Disk, "disks", arguments, "after", ("", ""), lambda row: (row.digest, row.players[-1]))
        async for disk in _flat(pages):
            found[disk.digest] = found.get(disk.digest, ()) + disk.players
        return found

    async def about(self) -> About:
        """The conductor in a few numbers."""
        return await self._call(About, "about", {})

    async def forgive(self, name: str) -> int:
        """Have the conductor accept a player's retired journals again; how many there were."""
        return await self._call(int, "forgive", {"name": name})

    async def backup(self, file: str) -> BackedUp:
        """Have the conductor copy its store to the new ``file``, an absolute path on its machine."""
        return await self._call(BackedUp, "backup", {"file": file}, within=BACKUP_WITHIN)

    async def prune_plan(self) -> PrunePlan:
        """What pruning would remove now."""
        return await self._call(PrunePlan, "prune_plan", {}, within=BACKUP_WITHIN)

    async def prune(self) -> Cleared:
        """Have it removed."""
        return await self._call(Cleared, "prune", {}, within=BACKUP_WITHIN)

    async def reload(self, accept_removals: int = 0) -> Reloaded:
        """Have configuration, certificates and lists read again; what changed and what was refused. A conductor may be
        told that so many players are meant to be removed."""
        return await self._call(Reloaded, "reload", {"accept_removals": accept_removals} if accept_removals else {})

    # pages, for those who show them as they come

    def task_pages(self, job: int, states: Sequence[State] = (), after: int = -1) -> AsyncIterator[list[TaskView]]:
        """``tasks``, in the pages they come in."""
        arguments = {"job": job, "states": [int(state) for state in states]}
        return self._pages(TaskView, "tasks", arguments, "after", after, lambda row: row.task)

    def job_pages(
        self, unfinished: bool = False, owner: str | None = None, before: int | None = None, limit: int = 50
    ) -> AsyncIterator[list[JobView]]:
        """``jobs``, in the pages they come in."""
        arguments = {"unfinished": unfinished, "owner": owner, "limit": limit}
        return self._pages(JobView, "jobs", arguments, "before", before, lambda row: row.job)

    def event_pages(self, job: int, since: int = 0) -> AsyncIterator[list[Event]]:
        """``events``, in the pages they come in."""
        return self._pages(Event, "events", {"job": job}, "since", since, lambda row: row.n)

    def all_event_pages(self, since: int = 0) -> AsyncIterator[list[Event]]:
        """``all_events``, in the pages they come in."""
        return self._pages(Event, "all_events", {}, "since", since, lambda row: row.seq)

    def player_pages(self, names: Sequence[str] = ()) -> AsyncIterator[list[PlayerView]]:
        """``players``, in the pages they come in."""
        return self._pages(PlayerView, "players", {"names": list(names)}, "after", "", lambda row: row.name)

    async def _pages(
        self, kind: type[T], name: str, arguments: dict[str, Any], key: str, start: Any, cursor: Callable[[T], Any]
    ) -> AsyncIterator[list[T]]:
        more = True
        while more:
            page: Any = tuple[list[kind], bool]  # type: ignore[valid-type]  # made at run time
            rows, more = await self._call(page, name, arguments | {key: start})
            if rows:
                yield rows
                start = cursor(rows[-1])

    # the connection

    async def ask(self, kind: type[T], name: str, arguments: dict[str, Any]) -> T:
        """Any request that the seat at the other end knows; it may be another daemon's than a conductor's."""
        return await self._call(kind, name, arguments)

    async def _call(
        self,
        kind: type[T],
        name: str,
        arguments: Ask | Rerun | dict[str, Any],
        *watcher: pb.Referenceable,
        within: float | None = None,
    ) -> T:
        packed = envelope.pack(arguments, name)
        root = await self._connected()
        calling = root.callRemote(name, packed, *watcher).addTimeout(within or self._answer_within, self._reactor)
        try:
            answer = await calling
        except (pb.PBConnectionLost, pb.DeadReferenceError, ConnectionClosed, TimeoutError):
            self._forget(root)
            raise Unanswered(what=f"'{name}'") from None
        value = envelope.opened(answer)
        try:
            return envelope.unpack(value, kind, "the answer")
        except BadRequest as problem:
            raise Unreadable(what=f"'{name}'", problem=problem.sentence) from None

    def _forget(self, root: pb.RemoteReference) -> None:
        if self._root is root:
            self.close()

    async def _connected(self) -> pb.RemoteReference:
        await self._lock.acquire()
        try:
            if self._root is None or self._root.broker.disconnected:
                self._root = await self._connect()
            return self._root
        finally:
            self._lock.release()

    async def _connect(self) -> pb.RemoteReference:
        if len(os.fsencode(self._socket)) > MAX_SOCKET_PATH:
            # Twisted itself stumbles over this
            problem = f"the kernel allows a socket path of {MAX_SOCKET_PATH} bytes"
            raise NoConductor(socket=self._socket, problem=problem)
        factory: Any = pb.PBClientFactory(security=envelope.security())
        factory.noisy = False
        # Not an endpoint: importing those takes a fifth of a command's whole time.
        self._reactor.connectUNIX(self._socket, factory, timeout=10)
        try:
            root: pb.RemoteReference = await factory.getRootObject().addTimeout(self._answer_within, self._reactor)
        except ConnectError as problem:
            raise self._unreachable(problem) from None
        except (ConnectionClosed, pb.PBConnectionLost):
            raise NoConductor(socket=self._socket, problem="the connection was closed at once") from None
        except TimeoutError:
            factory.disconnect()
            raise NoConductor(socket=self._socket, problem="it accepts connections, but says nothing") from None
        return root

    def _unreachable(self, problem: ConnectError) -> OrchestraError:
        number = problem.osError  # despite its name, Twisted puts the errno there
        if number in (errno.EACCES, errno.EPERM):
            return Denied(who=_our_name(), group=_group_of(self._socket))
        text = os.strerror(number) if isinstance(number, int) else str(problem)
        return NoConductor(socket=self._socket, problem=text)

    # waiting

    async def _waited(self, job: int, watcher: "_Watcher", timeout: float | None, watching: bool) -> JobView:
        done = Deferred.fromCoroutine(self._followed(job, watcher, watching))
        if timeout is not None:
            done.addTimeout(timeout, self._reactor)
        try:
            return await done
        except TimeoutError:
            raise GaveUpWaiting(job=job) from None

    async def _followed(self, job: int, watcher: "_Watcher", watching: bool) -> JobView:
        """Until the job has ended: watch it, and again wherever that broke off."""
        give_up: float | None = None
        while True:
            try:
                if not watching:
                    await self._watch(job, watcher)
                give_up = None
                if ended := await self._ended(watcher):
                    return ended
            except (NoConductor, Unanswered):
                if give_up is not None and self._reactor.seconds() > give_up:
                    raise
            watching = False
            give_up = give_up or self._reactor.seconds() + PATIENCE
            await deferLater(self._reactor, RETRY)

    async def _ended(self, watcher: "_Watcher") -> JobView | None:
        """The job when it has ended, None when the connection has."""
        if self._root is None or self._root.broker.disconnected:
            return watcher.ended
        root = self._root
        done = watcher.follow()
        root.notifyOnDisconnect(watcher.disconnected)
        try:
            return await done
        finally:
            if not root.broker.disconnected:
                root.dontNotifyOnDisconnect(watcher.disconnected)
                if not watcher.ended:
                    self._unwatch(watcher)

    def _watch(self, job: int, watcher: "_Watcher") -> "Deferred[None]":
        """Ask to be told of a job. Who gives up before the answer is there lets go once it has come."""
        answer: Deferred[None] = Deferred()

        def told(result: None) -> None:
            self._unwatch(watcher) if answer.called else answer.callback(result)

        def failed(failure: Failure) -> None:
            if not answer.called:
                answer.errback(failure)

        Deferred.fromCoroutine(self._call(type(None), *watcher.request(job), watcher)).addCallbacks(told, failed)
        return answer

    def _unwatch(self, watcher: "_Watcher") -> None:
        if self._root is not None and not self._root.broker.disconnected:
            self._root.callRemote("unwatch", envelope.pack({}), watcher).addErrback(lambda _: None)


class _Watcher(pb.Referenceable):
    """Is called by the conductor with the events of one job."""

    def __init__(self, progress: Progress | None, since: int = 0) -> None:
        self._progress = progress
        self._seen = since
        self.ended: JobView | None = None
        self._failure: Failure | None = None
        self._done: Deferred[JobView | None] | None = None

    def request(self, job: int) -> tuple[str, dict[str, Any]]:
        """What to ask for: every event that is still to be told, or the end alone if nobody wants to know more."""
        return ("watch", {"job": job, "since": self._seen}) if self._progress else ("await_end", {"job": job})

    def number(self, event: Event) -> int:
        """What ``since`` is counted in."""
        return event.n

    def follow(self) -> Deferred[JobView | None]:
        """Fires with the job when it has ended, with None when the connection has."""
        done = self._done = Deferred()
        if self._failure is not None:
            self._finish(self._failure)
        elif self.ended:
            self._finish(self.ended)
        return done

    def disconnected(self, _: object = None) -> None:
        """The connection is gone."""
        self._finish(None)

    def remote_events(self, batch: Any, ended: Any) -> Deferred[None]:
        """The next events, and the job when it has ended; answering asks for more."""
        return Deferred.fromCoroutine(self._take(batch, ended))

    async def _take(self, batch: Any, ended: Any) -> None:
        if self._failure is not None:
            return
        try:
            job = None if ended is None else envelope.unpack(ended, JobView, "the job")
            told = envelope.unpack(batch, list[Event], "events")
            events = [event for event in told if self.number(event) > self._seen]
            if events and self._progress:
                self._seen = self.number(events[-1])
                taken = self._progress(events)
                if taken is not None:
                    await taken
        except Exception:  # noqa: BLE001 - it belongs to whoever waits, not to the conductor
            self._failure = Failure()
            self._finish(self._failure)
            return
        self.ended = job
        if job is not None:
            self._finish(job)

    def _finish(self, result: JobView | Failure | None) -> None:
        done, self._done = self._done, None
        if done is None:
            return
        if isinstance(result, Failure):
            done.errback(result)
        else:
            done.callback(result)


class _AllWatcher(_Watcher):
    """Is called by the conductor with the events of all jobs."""

    def request(self, job: int) -> tuple[str, dict[str, Any]]:
        return "watch_all", {"since": self._seen}

    def number(self, event: Event) -> int:
        return event.seq


class BlockingOrchestra:
    """A conductor, for a plain program::

        from orchestra.audience.client import Ask, BlockingOrchestra, Scope

        with BlockingOrchestra() as orchestra:
            receipt = orchestra.submit(Ask(score="uptime", targets=("web1", "web2"), scope=Scope.ALL))
            job = orchestra.wait(receipt.job, timeout=600)
            print(job.verdict, job.counts)
            for task in orchestra.tasks(receipt.job):
                print(task.player, task.state, task.response)

    Every call blocks the thread that makes it; several threads may share one. Callbacks (``progress``,
    ``accepted``) are called in the reactor's thread, which is started when first needed and ends with the program:
    they must not block, nor call this object.
    """

    def __init__(self, socket: str = DEFAULT_SOCKET, answer_within: float = ANSWER_WITHIN) -> None:
        self._reactor = running_reactor()
        self._client: Orchestra = self._do(Orchestra.connect(self._reactor, socket, answer_within))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave; watches end with the connection."""
        self._reactor.callFromThread(self._client.close)

    def submit(self, ask: Ask) -> Receipt:
        """Have a request accepted; once this returns, it is on the conductor's disk."""
        return self._do(self._client.submit(ask))

    def rerun(self, wanted: Rerun) -> Receipt:
        """Have a job run once more, where it ended in one of these ways."""
        return self._do(self._client.rerun(wanted))

    def perform(
        self,
        ask: Ask,
        accepted: Callable[[Receipt], None] = lambda receipt: None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> JobView:
        """Submit and wait."""
        return self._do(self._client.perform(ask, accepted, progress, timeout))

    def wait(self, job: int, progress: Progress | None = None, timeout: float | None = None) -> JobView:
        """The job, once it has ended; see :meth:`Orchestra.wait`."""
        return self._do(self._client.wait(job, progress, timeout))

    def secrets_wanted(self, ask: Ask) -> tuple[str, ...]:
        """As :meth:`Orchestra.secrets_wanted`."""
        return self._do(self._client.secrets_wanted(ask))

    def cancel(self, job: int, names: Sequence[str] = ()) -> Cancelling:
        """Cancel a job, or its part on some hosts."""
        return self._do(self._client.cancel(job, names))

    def choose(self, choice: Choice) -> Chosen:
        """How many jobs and tasks a choice is of now, before they are cancelled."""
        return self._do(self._client.choose(choice))

    def cancel_chosen(
        self, choice: Choice, up_to: int, progress: Callable[[CancelStep], None] = lambda step: None
    ) -> CancelStep:
        """Cancel all that is unfinished of a choice; see :meth:`Orchestra.cancel_chosen`."""
        return self._do(self._client.cancel_chosen(choice, up_to, progress))

    def pause(self, job: int) -> Pausing:
        """Have nothing of a job handed out until it is resumed; what runs goes on."""
        return self._do(self._client.pause(job))

    def resume(self, job: int) -> Resuming:
        """Have handed out again what is to be handed out of a job."""
        return self._do(self._client.resume(job))

    def hold(self, braking: Braking, reason: str) -> Holding:
        """Have nothing of these handed out until they are released; what runs goes on."""
        return self._do(self._client.hold(braking, reason))

    def release(self, braking: Braking | None) -> Released:
        """Lift these holds, or all for None; what waited for that starts."""
        return self._do(self._client.release(braking))

    def targets(self, selection: Selection) -> list[str]:
        """The names of the players that are meant."""
        return self._do(_all(self._client.targets(selection)))

    def plan(self, ask: Ask) -> tuple[Plan, list[PlanRow]]:
        """What would become of a request now, and on each of its targets; nothing is asked for."""
        return self._do(self._client.plan(ask))

    def holds(self) -> tuple[Hold, ...]:
        """What is held."""
        return self._do(self._client.holds())

    def job(self, job: int) -> JobView:
        """A job and its counts."""
        return self._do(self._client.job(job))

    def tasks(self, job: int, states: Sequence[State] = (), after: int = -1) -> Iterator[TaskView]:
        """Everything known of each task of a job, in order."""
        return self._each(self._client.task_pages(job, states, after))

    def explain(self, job: int, hosts: Sequence[str] = ()) -> list[Standstill]:
        """Every task of a job that has not started, on these hosts or on all, with everything that keeps it."""
        return self._do(_all(self._client.explain(job, hosts)))

    def output(self, job: int, task: int, stream: int = 1, offset: int = 0) -> list[tuple[int, bytes]]:
        """The next kept pieces (offset, bytes) of stream 1 or 2 from ``offset`` on; none: that was all."""
        return self._do(self._client.output(job, task, stream, offset))

    def jobs(self, unfinished: bool = False, owner: str | None = None, before: int | None = None) -> Iterator[JobView]:
        """Jobs, newest first."""
        return self._each(self._client.job_pages(unfinished, owner, before))

    def events(self, job: int, since: int = 0) -> Iterator[Event]:
        """What has happened to a job, from the event after ``since`` on."""
        return self._each(self._client.event_pages(job, since))

    def all_events(self, since: int = 0) -> Iterator[Event]:
        """What has happened to all jobs, in the order in which it was committed, from the event ``since`` on."""
        return self._each(self._client.all_event_pages(since))

    def last_event(self) -> int:
        """The ``seq`` of the newest event of all; 0 if there was none."""
        return self._do(self._client.last_event())

    def players(self, names: Sequence[str] = ()) -> Iterator[PlayerView]:
        """Players by name; all, if no names are given."""
        return self._each(self._client.player_pages(names))

    def catalogues(self, names: Sequence[str] = ()) -> list[tuple[Catalogue, tuple[str, ...]]]:
        """Every catalogue in use, with the names of the players that have it."""
        return self._do(self._client.catalogues(names))

    def scores(self, hosts: Sequence[str] = (), name: str = "") -> list[ScoreView]:
        """Every score by name, or this one; see :meth:`Orchestra.scores`."""
        return self._do(_all(self._client.scores(hosts, name)))

    def disks(self, hosts: Sequence[str] = ()) -> dict[str, tuple[str, ...]]:
        """Who has which catalogue, by its digest; "" is one that is not known yet."""
        return self._do(self._client.disks(hosts))

    def about(self) -> About:
        """The conductor in a few numbers."""
        return self._do(self._client.about())

    def forgive(self, name: str) -> int:
        """Have the conductor accept a player's retired journals again; how many there were."""
        return self._do(self._client.forgive(name))

    def prune_plan(self) -> PrunePlan:
        """What pruning would remove now."""
        return self._do(self._client.prune_plan())

    def prune(self) -> Cleared:
        """Have it removed."""
        return self._do(self._client.prune())

    def reload(self) -> Reloaded:
        """Have configuration, certificates and lists read again; what changed and what was refused."""
        return self._do(self._client.reload())

    def _each(self, pages: AsyncIterator[list[T]]) -> Iterator[T]:
        while (page := self._do(_next(pages))) is not None:
            yield from page

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return blocking(self._reactor, work)


def blocking(reactor: Any, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns, run in the thread of ``reactor`` while this one waits."""
    if isInIOThread():
        work.close()
        raise RuntimeError("BlockingOrchestra is for other threads than the reactor's; use Orchestra there")
    call: Any = Deferred.fromCoroutine
    result: T = blockingCallFromThread(reactor, call, work)
    return result


_starting = threading.Lock()


def running_reactor() -> Any:
    """The process's reactor; if nobody runs it, a thread does from now on."""
    from twisted.internet import reactor as chosen  # only here: a program may choose another one first

    reactor: Any = chosen
    with _starting:
        if not reactor.running:
            ready = threading.Event()
            reactor.callWhenRunning(ready.set)
            run = functools.partial(reactor.run, installSignalHandlers=False)
            threading.Thread(target=run, name="orchestra-reactor", daemon=True).start()
            ready.wait()
    return reactor


async def _next(pages: AsyncIterator[list[T]]) -> list[T] | None:
    return await anext(pages, None)


def _checked(ask: Ask) -> Ask:
    """``ask``, if it can be sent at all."""
    wrong = parameters.problem(ask.params | ask.private)
    if wrong:
        raise BadRequest(problem=wrong)
    for word in (ask.score, *ask.targets, *ask.exclude, ask.expect, ask.request_key or ""):
        if len(word) > MAX_WORD or not word.isprintable():
            raise BadRequest(problem=f"{word[:80]!a} is no name: it is too long, or holds unprintable characters")
    return ask


async def _all(rows: AsyncIterator[T]) -> list[T]:
    return [row async for row in rows]


async def _flat(pages: AsyncIterator[list[T]]) -> AsyncIterator[T]:
    async for page in pages:
        for row in page:
            yield row


def _our_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"


def _group_of(path: str) -> str:
    try:
        return grp.getgrgid(os.stat(path).st_gid).gr_name
    except (OSError, KeyError):
        return f"that owns {path}"
