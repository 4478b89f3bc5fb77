"""Events of jobs, pushed to whoever watches.

A watcher is a cursor into a job's event log in the store, or into that of all jobs. A change wakes it, it reads on
from its cursor and hands over what it found, one call at a time: nothing is queued in memory and nothing can be lost.
Who only awaits a job's end is left alone until then; the job comes with the news that it has ended, or is read.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from orchestra.audience.desk import Listener
from orchestra.model import Event, JobView

PAGE: Final = 200
ALL: Final = 0
"""In the place of a job's number: every job."""
NOTHING_KNOWN: Final[Mapping[int, JobView]] = MappingProxyType({})

ReadNews = Callable[[int, int, int], Awaitable[tuple[Sequence[Event], JobView | None]]]
"""(job, since, limit) -> the events after ``since``, and with the last of them the job, if it has ended."""
ReadAll = Callable[[int, int], Awaitable[Sequence[Event]]]
"""(since, limit) -> the events of all jobs after the ``since``-th of all."""
ReadEnd = Callable[[int], Awaitable[JobView | None]]
"""The job, if it has ended."""


async def nothing(since: int, limit: int) -> Sequence[Event]:
    """For a feed that nobody can follow all jobs with."""
    return ()


class Watcher:
    """One listener's place in the event log of one job, or of all."""

    log = Logger()

    def __init__(self, feed: "Feed", job: int, since: int, listener: Listener) -> None:
        self.job = job
        self._feed = feed
        self._since = since
        self._listener = listener
        self._busy = False
        self._stirred = False
        self._over = False

    def stop(self) -> None:
        """No more calls, at once."""
        self._over = True
        self._feed.forget(self)

    def wake(self, ended: bool, job: JobView | None = None) -> None:
        """The job has changed: read on, now or after the call that is on its way."""
        self._stirred = True
        if not self._busy and not self._over:
            self._busy = True
            Deferred.fromCoroutine(self._read_on()).addErrback(self._failed)

    async def _read_on(self) -> None:
        try:
            while self._stirred and not self._over:
                self._stirred = False
                await self._hand_over()
        finally:
            self._busy = False

    async def _hand_over(self) -> None:
        while not self._over:
            events, job = await self._news()
            if self._over or not (events or job):
                return
            if events:
                self._since = events[-1].seq if self.job == ALL else events[-1].n
            await self._listener(events, job)
            if job:
                self.stop()

    async def _news(self) -> tuple[Sequence[Event], JobView | None]:
        if self.job == ALL:
            return await self._feed.read_all(self._since, PAGE), None
        return await self._feed.read(self.job, self._since, PAGE)

    def _failed(self, failure: object) -> None:
        self.stop()
        self.log.debug("a watcher of job {job} is gone: {failure}", job=self.job, failure=failure)


class Awaiter:
    """One listener that is called once, when its job has ended."""

    log = Logger()

    def __init__(self, feed: "Feed", job: int, listener: Listener) -> None:
        self.job = job
        self._feed = feed
        self._listener = listener
        self._over = False

    def stop(self) -> None:
        """No call any more."""
        self._over = True
        self._feed.forget(self)

    def wake(self, ended: bool, job: JobView | None = None) -> None:
        """The job has changed."""
        if ended:
            Deferred.fromCoroutine(self._tell(job)).addErrback(self._failed)

    async def _tell(self, job: JobView | None) -> None:
        if job is None:
            job = await self._feed.read_end(self.job)
        if job is not None and not self._over:
            self.stop()
            await self._listener((), job)

    def _failed(self, failure: object) -> None:
        self.stop()
        self.log.debug("who awaited job {job} is gone: {failure}", job=self.job, failure=failure)


class Feed:
    """All watchers, by job."""

    def __init__(self, read: ReadNews, read_end: ReadEnd, read_all: ReadAll = nothing) -> None:
        self.read = read
        self.read_end = read_end
        self.read_all = read_all
        self._watchers: dict[int, set[Watcher | Awaiter]] = {}

    def watch(self, job: int, since: int, listener: Listener) -> Watcher:
        """Have ``listener`` called with every event of ``job`` after ``since``, until the job has ended; of ALL jobs,
        with every event whose ``seq`` is above it."""
        watcher = Watcher(self, job, since, listener)
        self._watchers.setdefault(job, set()).add(watcher)
        watcher.wake(False)
        return watcher

    def await_end(self, job: int, listener: Listener, *, new: bool = False) -> Awaiter:
        """Have ``listener`` called once, when ``job`` has ended; ``new``: it surely has not yet."""
        awaiter = Awaiter(self, job, listener)
        self._watchers.setdefault(job, set()).add(awaiter)
        awaiter.wake(not new)
        return awaiter

    def awaited(self, jobs: Iterable[int]) -> frozenset[int]:
        """Those of ``jobs`` whose end somebody awaits."""
        there = self._watchers
        return frozenset(job for job in jobs if any(isinstance(one, Awaiter) for one in there.get(job, ())))

    def touched(
        self, jobs: Iterable[int], ended: Iterable[int] = (), known: Mapping[int, JobView] = NOTHING_KNOWN
    ) -> None:
        """These jobs have new events, committed; those in ``ended`` with them have ended, some of them as ``known``."""
        if self._watchers:
            over = frozenset(ended)
            some = tuple(jobs)
            for job in (*some, ALL) if some else ():
                for watcher in tuple(self._watchers.get(job, ())):
                    watcher.wake(job in over, known.get(job))

    def forget(self, watcher: Watcher | Awaiter) -> None:
        """A watcher has stopped."""
        there = self._watchers.get(watcher.job)
        if there is not None:
            there.discard(watcher)
            if not there:
                del self._watchers[watcher.job]
