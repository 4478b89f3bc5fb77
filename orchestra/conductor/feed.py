"""Events of jobs, pushed to whoever watches.

A watcher is a cursor into a job's event log in the store. A change wakes it, it reads on from its cursor and hands
over what it found, one call at a time: nothing is queued in memory and nothing can be lost.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from orchestra.audience.desk import Listener
from orchestra.model import Event

PAGE: Final = 200

ReadEvents = Callable[[int, int, int], Awaitable[Sequence[Event]]]
"""(job, since, limit) -> the events after ``since``."""


class Watcher:
    """One listener's place in one job's event log."""

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

    def wake(self) -> None:
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
            events = await self._feed.read(self.job, self._since, PAGE)
            if not events or self._over:
                return
            self._since = events[-1].n
            ended = any(event.kind == "ended" for event in events)
            await self._listener(events, ended)
            if ended:
                self.stop()

    def _failed(self, failure: object) -> None:
        self.stop()
        self.log.debug("a watcher of job {job} is gone: {failure}", job=self.job, failure=failure)


class Feed:
    """All watchers, by job."""

    def __init__(self, read: ReadEvents) -> None:
        self.read = read
        self._watchers: dict[int, set[Watcher]] = {}

    def watch(self, job: int, since: int, listener: Listener) -> Watcher:
        """Have ``listener`` called with every event of ``job`` after ``since``, until the job has ended."""
        watcher = Watcher(self, job, since, listener)
        self._watchers.setdefault(job, set()).add(watcher)
        watcher.wake()
        return watcher

    def touched(self, jobs: Iterable[int]) -> None:
        """These jobs have new events, committed."""
        if self._watchers:
            for job in jobs:
                for watcher in tuple(self._watchers.get(job, ())):
                    watcher.wake()

    def forget(self, watcher: Watcher) -> None:
        """A watcher has stopped."""
        there = self._watchers.get(watcher.job)
        if there is not None:
            there.discard(watcher)
            if not there:
                del self._watchers[watcher.job]
