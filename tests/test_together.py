"""Reports of many players are one commit while the store is busy, and one that is alone waits for nothing."""

from collections.abc import Sequence

import pytest
from ends import ending
from storehouse import OWNER, Storehouse, report
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from orchestra.conductor.together import MOST, UNDER_WAY, Said, Together
from orchestra.core.scheduler import Session
from orchestra.errors import NotSaved, Superseded
from orchestra.model import Report, Told
from orchestra.store import statements
from orchestra.store.values import Batch


def session(player: int) -> Session:
    return Session(player, f"web-{player}", 7, 8, {})


class Store:
    """Commits when the test says so."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.commits: list[Deferred[frozenset[tuple[int, int]]]] = []
        self.together = Together(self.settle)
        self.poison: set[int] = set()

    async def settle(self, some: Sequence[Said]) -> frozenset[tuple[int, int]]:
        players = [said.session.player for said in some]
        self.asked.append(players)
        if self.poison.intersection(players):
            raise ValueError("a bug")
        self.commits.append(Deferred())
        return await self.commits[-1]

    def add(self, *players: int) -> list[list[object]]:
        return [ending(self.together.add(session(player), [Report(1, 1, 1, 1, Told.OK)])) for player in players]

    def commit(self, *superseded: tuple[int, int]) -> None:
        self.commits.pop(0).callback(frozenset(superseded))


def test_an_idle_store_is_asked_at_once_and_answers_after_the_commit() -> None:
    """Nobody hears that it is saved before it is."""
    store = Store()
    [done] = store.add(1)
    assert (store.asked, done) == ([[1]], [])
    store.commit()
    assert done == [None]


def test_what_comes_meanwhile_is_one_commit() -> None:
    """However many players: the store is asked once for all of them."""
    store = Store()
    store.add(*range(1, UNDER_WAY + 1))
    later = store.add(10, 11, 12)
    assert store.asked == [[n] for n in range(1, UNDER_WAY + 1)]
    store.commit()
    assert store.asked[UNDER_WAY:] == [[10, 11, 12]]
    for _ in range(UNDER_WAY):
        store.commit()
    assert later == [[None]] * 3


def test_a_commit_is_bounded() -> None:
    """A submit need not wait for ten thousand reports."""
    store = Store()
    store.add(*range(UNDER_WAY + MOST + 1))
    store.commit()
    store.commit()
    assert [len(some) for some in store.asked] == [*[1] * UNDER_WAY, MOST, 1]


def test_a_session_that_was_superseded_is_told_and_the_others_are_not() -> None:
    """Each hears what became of its own."""
    store = Store()
    store.add(*range(90, 90 + UNDER_WAY))
    first, second = store.add(1, 2)
    store.commit()
    store.commit()
    store.commit((2, 7))
    assert first == [None]
    assert isinstance(second[0], Failure) and second[0].check(Superseded)


def test_all_of_a_commit_that_failed_keep_what_they_said() -> None:
    """A full disk: each is told that nothing was saved, and the next is tried."""
    store = Store()
    store.add(*range(90, 90 + UNDER_WAY))
    ended = store.add(1, 2)
    store.commit()
    store.commit()
    store.commits.pop(0).errback(NotSaved(problem="full"))
    assert [isinstance(one[0], Failure) and bool(one[0].check(NotSaved)) for one in ended] == [True, True]
    [good] = store.add(3)
    store.commit()
    assert good == [None]


def test_a_bug_that_one_of_them_brings_to_light_is_no_harm_to_the_others() -> None:
    """They are tried one by one."""
    store = Store()
    store.poison = {2}
    store.add(*range(90, 90 + UNDER_WAY))
    first, second, third = store.add(1, 2, 3)
    for _ in range(UNDER_WAY + 2):
        store.commit()
    assert (first, third) == ([None], [None])
    assert isinstance(second[0], Failure) and second[0].check(ValueError)


# ---- in the store


@pytest.fixture
def store() -> Storehouse:
    return Storehouse()


def test_a_job_is_counted_and_numbered_once_for_all_who_report(store: Storehouse) -> None:
    """Its events follow each other without a gap, and its end is the last of them."""
    job = store.submit([1, 2, 3])
    runs = {player: store.claim(player) for player in (1, 2, 3)}
    batches = [Batch(p, store.epochs[p], [report(run, Told.OK) for run in some]) for p, some in runs.items()]
    settled = statements.settle_all(store.cur, OWNER, batches, 5)
    assert (settled.jobs, settled.ended, settled.superseded) == ({job}, {job}, frozenset())
    assert store.kinds(job) == ["submitted", *["dispatched"] * 3, *["ok"] * 3, "ended"]
    assert [event.n for event in statements.events(store.cur, job, 0, 100)] == list(range(1, 9))


def test_only_the_batch_of_a_superseded_session_is_left_out(store: Storehouse) -> None:
    """Its player tells it again at its next Welcome."""
    job = store.submit([1, 2])
    runs = {player: store.claim(player) for player in (1, 2)}
    epochs = {1: store.epochs[1] - 1, 2: store.epochs[2]}
    batches = [Batch(p, epochs[p], [report(run, Told.FAILED) for run in some]) for p, some in runs.items()]
    settled = statements.settle_all(store.cur, OWNER, batches, 5)
    assert settled.superseded == {(1, epochs[1])}
    assert store.states(job) == ["dispatched", "failed"]
