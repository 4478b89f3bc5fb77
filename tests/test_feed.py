"""Events pushed to watchers: every one, in order, one call at a time, until the job has ended."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.internet.defer import Deferred

from orchestra.conductor.feed import ALL, PAGE, Feed, Watcher
from orchestra.model import Event, JobView

THE_END = JobView(
    job=1,
    score="",
    params={},
    scope="all",
    owner="",
    uid=0,
    login_uid=None,
    request_key=None,
    created_at=0,
    expires_at=None,
    ended_at=1,
    priority=0,
    counts={},
    verdict="ok",
    last_event=1,
)


class Log:
    """The event logs of jobs, as the store has them."""

    def __init__(self) -> None:
        self.jobs: dict[int, list[Event]] = {}
        self.reads = 0
        self.slow: list[Deferred[None]] | None = None

    def add(self, job: int, *kinds: str) -> None:
        events = self.jobs.setdefault(job, [])
        events += [Event(n=len(events) + 1 + i, at=0, kind=kind) for i, kind in enumerate(kinds)]

    async def read(self, job: int, since: int, limit: int) -> tuple[Sequence[Event], JobView | None]:
        found = [event for event in self.jobs.get(job, ()) if event.n > since][:limit]
        last = not found or any(event.kind == "ended" for event in found)
        view = self._ended(job) if last else None
        await self._read()
        return found, view

    async def read_end(self, job: int) -> JobView | None:
        view = self._ended(job)
        await self._read()
        return view

    async def _read(self) -> None:
        self.reads += 1
        if self.slow is not None:
            self.slow.append(Deferred())
            await self.slow[-1]

    def _ended(self, job: int) -> JobView | None:
        return THE_END if any(event.kind == "ended" for event in self.jobs.get(job, ())) else None


class Audience:
    """A listener that takes each call when the test says so, if it is slow."""

    def __init__(self, *, slow: bool = False) -> None:
        self.calls: list[tuple[list[int], bool]] = []
        self.taking: list[Deferred[None]] = []
        self._slow = slow

    async def __call__(self, events: Sequence[Event], job: JobView | None) -> None:
        assert job in (None, THE_END)
        self.calls.append(([event.n for event in events], job is not None))
        if self._slow:
            assert self.taking == [], "a second call while one is on its way"
            self.taking.append(Deferred())
            await self.taking[0]

    def take(self) -> None:
        self.taking.pop().callback(None)

    @property
    def heard(self) -> list[int]:
        return [n for numbers, _ in self.calls for n in numbers]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def feed(log: Log) -> Feed:
    return Feed(log.read, log.read_end)


def test_what_happened_before_the_watch_is_told_at_once(log: Log, feed: Feed) -> None:
    """From the event after ``since`` on."""
    log.add(1, "submitted", "dispatched", "ok")
    audience = Audience()
    feed.watch(1, 1, audience)
    assert audience.calls == [([2, 3], False)]


def test_a_change_is_told_to_who_watches_that_job(log: Log, feed: Feed) -> None:
    """And to nobody else."""
    one, other = Audience(), Audience()
    feed.watch(1, 0, one)
    feed.watch(2, 0, other)
    log.add(1, "submitted")
    feed.touched([1, 3])
    assert (one.calls, other.calls) == ([([1], False)], [])


def test_one_call_at_a_time_and_nothing_between_them_is_lost(log: Log, feed: Feed) -> None:
    """What comes while a slow listener is taking its events is told after that, together."""
    audience = Audience(slow=True)
    log.add(1, "submitted")
    feed.watch(1, 0, audience)
    log.add(1, "dispatched")
    feed.touched([1])
    log.add(1, "ok")
    feed.touched([1])
    assert audience.calls == [([1], False)]
    audience.take()
    assert audience.calls == [([1], False), ([2, 3], False)]
    audience.take()
    assert len(audience.calls) == 2


def test_a_change_during_the_read_is_not_missed(log: Log, feed: Feed) -> None:
    """The read that is on its way has perhaps not seen it."""
    log.slow = []
    audience = Audience()
    feed.watch(1, 0, audience)
    log.add(1, "submitted")
    feed.touched([1])
    while log.slow:
        log.slow.pop(0).callback(None)
    assert audience.calls == [([1], False)]


def test_a_long_log_comes_in_pages(log: Log, feed: Feed) -> None:
    """No answer grows with the job."""
    log.add(1, *["ok"] * (2 * PAGE + 1))
    audience = Audience()
    feed.watch(1, 0, audience)
    assert [len(numbers) for numbers, _ in audience.calls] == [PAGE, PAGE, 1]
    assert audience.heard == list(range(1, 2 * PAGE + 2))


def test_the_watch_is_over_when_the_job_has_ended(log: Log, feed: Feed) -> None:
    """The last call says so; nobody reads on for it."""
    log.add(1, "submitted", "ok", "ended")
    audience = Audience()
    feed.watch(1, 0, audience)
    reads = log.reads
    log.add(1, "late")
    feed.touched([1])
    assert audience.calls == [([1, 2, 3], True)]
    assert log.reads == reads


def test_who_has_seen_the_end_is_told_so_all_the_same(log: Log, feed: Feed) -> None:
    """A watch that begins behind the last event would else never end."""
    log.add(1, "submitted", "ended")
    audience = Audience()
    feed.watch(1, 2, audience)
    assert audience.calls == [([], True)]


def test_who_awaits_the_end_hears_of_nothing_else(log: Log, feed: Feed) -> None:
    """No read, no call, until the job has ended; then one of each."""
    audience = Audience()
    log.add(1, "submitted")
    feed.await_end(1, audience, new=True)
    log.add(1, "dispatched")
    feed.touched([1])
    assert (log.reads, audience.calls) == (0, [])
    log.add(1, "ended")
    feed.touched([1, 2], [1])
    feed.touched([1], [1])
    assert (log.reads, audience.calls) == (1, [([], True)])


def test_the_end_may_come_with_the_news_and_is_not_read_then(log: Log, feed: Feed) -> None:
    """What the commit has seen of the job is told as it is; whoever else awaits another job's end still reads."""
    audience, other = Audience(), Audience()
    feed.await_end(1, audience, new=True)
    feed.await_end(2, other, new=True)
    feed.watch(3, 0, Audience())
    assert feed.awaited([1, 2, 3, 4]) == {1, 2}
    log.add(2, "ended")
    reads = log.reads
    feed.touched([1, 2], [1, 2], {1: THE_END})
    assert (log.reads - reads, audience.calls, other.calls) == (1, [([], True)], [([], True)])
    assert feed.awaited([1, 2]) == frozenset()


def test_the_end_may_have_been_before(log: Log, feed: Feed) -> None:
    """Who does not know that the job is new looks first."""
    early, late = Audience(), Audience()
    feed.await_end(1, early)
    log.add(1, "submitted", "ended")
    feed.await_end(1, late)
    assert (early.calls, late.calls) == ([], [([], True)])
    feed.touched([1], [1])
    assert early.calls == [([], True)]


def test_who_stopped_awaiting_hears_nothing(log: Log, feed: Feed) -> None:
    """Not even what is being read."""
    log.slow = []
    audience = Audience()
    awaiter = feed.await_end(1, audience, new=True)
    log.add(1, "ended")
    feed.touched([1], [1])
    awaiter.stop()
    log.slow.pop().callback(None)
    assert audience.calls == []


def test_who_has_stopped_hears_nothing_more(log: Log, feed: Feed) -> None:
    """Not even what was being read for it."""
    log.slow = []
    log.add(1, "submitted")
    audience = Audience()
    watcher = feed.watch(1, 0, audience)
    watcher.stop()
    watcher.stop()
    log.slow.pop().callback(None)
    feed.touched([1])
    assert (audience.calls, log.reads) == ([], 1)


def test_a_stop_during_a_call_makes_it_the_last(log: Log, feed: Feed) -> None:
    audience = Audience(slow=True)
    log.add(1, *["ok"] * (PAGE + 1))
    watcher = feed.watch(1, 0, audience)
    watcher.stop()
    audience.take()
    assert len(audience.calls) == 1


def test_a_listener_that_fails_is_let_go_and_the_others_stay(log: Log, feed: Feed) -> None:
    """Its connection is gone, most likely."""
    calls: list[Any] = []

    async def broken(events: Sequence[Event], job: JobView | None) -> None:
        calls.append(events)
        raise ConnectionError

    audience = Audience()
    feed.watch(1, 0, broken)
    feed.watch(1, 0, audience)
    for _ in range(2):
        log.add(1, "ok")
        feed.touched([1])
    assert (len(calls), audience.heard) == (1, [1, 2])


def test_a_watcher_may_stop_another_while_both_are_told(log: Log, feed: Feed) -> None:
    """Whoever is told first may end it for the rest."""
    watchers: list[Watcher] = []
    calls: list[int] = []

    async def alone(events: Sequence[Event], job: JobView | None) -> None:
        calls.append(len(events))
        for watcher in watchers:
            watcher.stop()

    watchers += [feed.watch(1, 0, alone), feed.watch(1, 0, alone)]
    log.add(1, "submitted")
    feed.touched([1])
    assert calls == [1]


@given(
    st.lists(st.sampled_from(["event", "take", "read", "end"]), max_size=40),
    st.integers(0, 3),
)
def test_every_event_after_since_is_told_once_and_in_order(moves: list[str], since: int) -> None:
    """Whatever overtakes what."""
    log, audience = Log(), Audience(slow=True)
    feed = Feed(log.read, log.read_end)
    log.slow = []
    feed.watch(1, since, audience)
    for move in moves:
        if move in ("event", "end") and not any(event.kind == "ended" for event in log.jobs.get(1, ())):
            log.add(1, "ended" if move == "end" else "ok")
            feed.touched([1])
        elif move == "take" and audience.taking:
            audience.take()
        elif move == "read" and log.slow:
            log.slow.pop(0).callback(None)
    while log.slow or audience.taking:
        log.slow.pop(0).callback(None) if log.slow else audience.take()
    events = [event for event in log.jobs.get(1, ()) if event.n > since]
    assert audience.heard == [event.n for event in events]
    over = any(event.kind == "ended" for event in log.jobs.get(1, ()))
    assert [ended for _, ended in audience.calls if ended] == [True] * over


def everything(log: Log) -> list[Event]:
    """Events of all jobs, numbered in the order of the jobs."""
    told = [(job, event) for job in sorted(log.jobs) for event in log.jobs[job]]
    return [replace(event, job=job, seq=seq) for seq, (job, event) in enumerate(told, 1)]


def test_who_follows_all_jobs_gets_every_event_once() -> None:
    """From the number on that was said; a job that ends is no end."""
    log, heard = Log(), list[Event]()

    async def listener(events: Sequence[Event], job: JobView | None) -> None:
        assert job is None
        heard.extend(events)

    async def read_all(since: int, limit: int) -> list[Event]:
        return [event for event in everything(log) if event.seq > since][:limit]

    feed = Feed(log.read, log.read_end, read_all)
    log.add(1, "submitted", "ok", "ended")
    watcher = feed.watch(ALL, 1, listener)
    assert [(event.job, event.kind) for event in heard] == [(1, "ok"), (1, "ended")]
    log.add(2, *["submitted"] * (PAGE + 1))
    feed.touched((), ())
    assert len(heard) == 2
    feed.touched([2], [2])
    assert [event.seq for event in heard] == list(range(2, PAGE + 5))
    watcher.stop()
    log.add(3, "submitted")
    feed.touched([3])
    assert len(heard) == PAGE + 3


def test_who_follows_one_job_is_not_woken_by_another() -> None:
    """Nor by those that nobody follows."""
    log, audience = Log(), Audience()
    feed = Feed(log.read, log.read_end)
    feed.watch(1, 0, audience)
    reads = log.reads
    feed.touched([2, 3], [3])
    assert log.reads == reads
