"""The conductor's mind: one claim at a time per player, within its room, and no wake-up is lost."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestra.core.scheduler import Scheduler, Session, Wish
from orchestra.model import Run, Scope


def session(player: int, slots: int = 1, open_runs: dict[int, str] | None = None) -> Session:
    one = Session(player, f"p{player}", 1, slots, open_runs or {})
    one.limits = {"s": 5}
    return one


def ready(*sessions: Session) -> Scheduler:
    scheduler = Scheduler()
    for one in sessions:
        scheduler.opened(one)
        scheduler.welcomed(one)
        one.hungry = False
    return scheduler


def runs(first: int, many: int) -> tuple[Run, ...]:
    return tuple(Run(first + n, 1, 0, 1, "s", {}, None) for n in range(many))


def test_new_work_is_claimed_for_who_is_there_in_ascending_order() -> None:
    """Who is away is not asked for; who is there is, by number."""
    scheduler = ready(session(3), session(1))
    assert [wish.player for wish in scheduler.offer(Scope.ALL, (3, 2, 1))] == [1, 3]


def test_before_welcome_was_answered_nothing_is_claimed() -> None:
    """A player that has not settled its journal gets no work."""
    scheduler = Scheduler()
    scheduler.opened(session(1))
    assert scheduler.offer(Scope.ALL, (1,)) == []


def test_one_of_work_goes_to_the_least_busy() -> None:
    """The others stay hungry, and take it if that one does not."""
    busy, idle = session(1, open_runs={7: "s"}), session(2)
    scheduler = ready(busy, idle)
    assert [wish.player for wish in scheduler.offer(Scope.ONE, (1, 2))] == [2]
    assert busy.hungry


def test_work_that_comes_during_a_claim_is_claimed_after_it() -> None:
    """No wake-up is lost."""
    one = session(1)
    scheduler = ready(one)
    assert scheduler.offer(Scope.ALL, (1,))
    assert scheduler.offer(Scope.ALL, (1,)) == []
    assert scheduler.claimed(1, 1, (), False) is one
    assert [wish.player for wish in scheduler.stirred(one)] == [1]
    assert scheduler.stirred(one) == []


def test_work_that_cannot_be_given_now_is_not_asked_for_in_a_loop() -> None:
    """It is asked for again when a run ends."""
    one = session(1)
    scheduler = ready(one)
    scheduler.offer(Scope.ALL, (1,))
    scheduler.claimed(1, 1, runs(1, 1), True)
    assert scheduler.stirred(one) == []
    scheduler.ended(one, [1])
    assert [wish.player for wish in scheduler.wishes([one])] == [1]


def test_a_claim_of_an_older_session_is_nobodys() -> None:
    """What it claimed is settled at the next Welcome."""
    scheduler = ready(session(1))
    assert scheduler.claimed(1, 0, runs(1, 1), False) is None


def test_the_score_s_limit_counts_what_is_open() -> None:
    """A slow score is given one run more than may run, not the whole room."""
    one = session(1, slots=8, open_runs={1: "s", 2: "s", 3: "unheard"})
    assert dict(one.remaining()) == {"s": 3, "unheard": 1}


def test_scores_with_one_lock_have_one_limit() -> None:
    """Open runs of one leave less for the others of its lock, and nothing less for the rest."""
    one = session(1, 8, {1: "install", 2: "s"})
    one.limits = {"install": 2, "remove": 2, "s": 4}
    one.locks = {"install": "apt", "remove": "apt"}
    assert one.remaining() == {"install": 1, "remove": 1, "s": 3}
    assert one.fits("remove")
    one.open[3] = "remove"
    assert one.remaining() == {"install": 0, "remove": 0, "s": 3}
    assert not one.fits("install") and one.fits("s")


def test_an_end_that_was_not_saved_leaves_the_run_open() -> None:
    """Room is freed by what is on disk."""
    one = session(1, open_runs={1: "s"})
    scheduler = ready(one)
    gone = scheduler.ended(one, [1, 9])
    assert one.room == 2
    scheduler.reopened(one, gone)
    assert one.open == {1: "s"}


def test_one_of_work_goes_to_who_may_still_run_its_score() -> None:
    """The least busy player is no help while a slow score fills what it may be given of that."""
    full, fuller = session(1, 8, {1: "s", 2: "s"}), session(2, 8, dict.fromkeys((1, 2, 3), "other"))
    full.limits = fuller.limits = {"s": 2, "other": 4}
    scheduler = ready(full, fuller)
    assert [wish.player for wish in scheduler.offer(Scope.ONE, (1, 2), "s")] == [2]
    assert full.hungry


def test_one_of_work_that_nobody_may_run_now_waits_without_a_claim() -> None:
    """Whoever ends a run of it first claims it."""
    one = session(1, 8, {1: "s"})
    one.limits = {"s": 1}
    scheduler = ready(one)
    assert scheduler.offer(Scope.ONE, (1,), "s") == []
    scheduler.ended(one, [1])
    assert [wish.player for wish in scheduler.wishes([one])] == [1]


def test_a_new_session_supersedes_and_the_old_one_s_end_changes_nothing() -> None:
    """The newest connection of a player wins."""
    old, new = session(1), session(1)
    scheduler = ready(old)
    scheduler.opened(new)
    scheduler.closed(old)
    assert (scheduler.current(old), scheduler.current(new)) == (False, True)
    scheduler.closed(new)
    assert scheduler.sessions == {}


def test_since_when_a_task_runs_is_known_until_it_ends() -> None:
    one = session(1, open_runs={7: "s"})
    one.started[7] = (3, 4, 99)
    assert (one.started_at(3, 4), one.started_at(3, 5)) == (99, None)
    ready(one).ended(one, [7])
    assert one.started_at(3, 4) is None


@pytest.mark.parametrize(
    ("slots", "open_runs", "room"),
    [(0, {}, 0), (0, {1: "s"}, -1), (1, {}, 2), (8, {1: "s"}, 15), (1, {1: "s", 2: "s"}, 0)],
)
def test_a_player_is_given_twice_its_slots(slots: int, open_runs: dict[int, str], room: int) -> None:
    """No claim is made without room, none at all for a player that says it has no slots."""
    one = session(1, slots, open_runs)
    assert one.room == room
    assert bool(ready(one).offer(Scope.ALL, (1,))) is (room > 0)


def test_claims_that_could_not_be_made_are_still_wanted() -> None:
    """Who left meanwhile, or has come back anew, is not asked for again."""
    stays, leaves, again = session(1), session(2), session(3)
    scheduler = ready(stays, leaves, again)
    wishes = scheduler.offer(Scope.ALL, (1, 2, 3))
    scheduler.closed(leaves)
    scheduler.opened(Session(3, "p3", 2, 1, {}))
    assert scheduler.not_claimed(wishes) == [stays]
    assert [wish.player for wish in scheduler.wishes([stays])] == [1]


class Transaction(NamedTuple):
    """What the store is asked to do in one commit: new tasks, each with who may have it, and claims."""

    new: list[frozenset[int]]
    wishes: list[Wish]


class Store(NamedTuple):
    """The plainest store: pending tasks in the order they came, and the newest epoch of each player."""

    pending: list[frozenset[int]]
    epochs: dict[int, int]
    seqs: Iterator[int]

    def claim(self, wish: Wish) -> tuple[list[Run], bool]:
        if self.epochs[wish.player] != wish.epoch:
            return [], False
        mine = [task for task in self.pending if wish.player in task]
        fits = mine[: min(wish.room, wish.limits["s"])]
        for task in fits:
            self.pending.remove(task)
        return [Run(next(self.seqs), 1, 0, 1, "s", {}, None) for _ in fits], len(fits) < len(mine)


PLAYERS = (1, 2)
ANY_PLAYER, SOME_PLAYERS = st.sampled_from(PLAYERS), st.sets(st.sampled_from(PLAYERS), min_size=1)


class Conductor(RuleBasedStateMachine):
    """A conductor around the scheduler: commits come one after another, some fail, players come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.mind = Scheduler()
        self.store = Store([], dict.fromkeys(PLAYERS, 0), itertools.count(1))
        self.queue: list[Transaction] = []

    def ask(self, wishes: list[Wish], *new: frozenset[int]) -> None:
        assert [wish.player for wish in wishes] == sorted({wish.player for wish in wishes})
        assert all(wish.room > 0 and self.mind.sessions[wish.player].ready for wish in wishes)
        if wishes or new:
            self.queue.append(Transaction([*new], wishes))

    @initialize()
    def all_are_there(self) -> None:
        for player in PLAYERS:
            self.connects(player, 2)
            self.is_welcomed(player)
        self.drain()

    @rule(player=ANY_PLAYER, slots=st.integers(0, 2))
    def connects(self, player: int, slots: int) -> None:
        self.drain()  # Hello is a commit too, behind all others
        self.store.epochs[player] += 1
        one = Session(player, f"p{player}", self.store.epochs[player], slots, {})
        one.limits = {"s": 3}
        self.mind.opened(one)

    @rule(player=ANY_PLAYER)
    def is_welcomed(self, player: int) -> None:
        one = self.mind.sessions.get(player)
        if one is not None and not one.ready:
            self.mind.welcomed(one)
            self.ask(self.mind.wishes([one]))

    @rule(player=ANY_PLAYER)
    def leaves(self, player: int) -> None:
        if player in self.mind.sessions:
            self.mind.closed(self.mind.sessions[player])

    @rule(players=SOME_PLAYERS)
    def all_of(self, players: set[int]) -> None:
        self.ask(self.mind.offer(Scope.ALL, players), *(frozenset({player}) for player in players))

    @rule(players=SOME_PLAYERS)
    def one_of(self, players: set[int]) -> None:
        free = [
            s
            for p in players
            if (s := self.mind.sessions.get(p)) and s.ready and not s.claiming and s.room > 0 and len(s.open) < 3
        ]
        wishes = self.mind.offer(Scope.ONE, players, "s")
        least = min((len(s.open), s.player) for s in free)[1:] if free else ()
        assert tuple(wish.player for wish in wishes) == least
        self.ask(wishes, frozenset(players))

    @rule(player=ANY_PLAYER, saved=st.booleans())
    def a_run_ends(self, player: int, saved: bool) -> None:
        one = self.mind.sessions.get(player)
        if one is None or not one.open:
            return
        ended = self.mind.ended(one, [min(one.open)])
        if saved:
            self.ask(self.mind.wishes([one]))
        else:
            self.mind.reopened(one, ended)

    @precondition(lambda self: self.queue)
    @rule(many=st.integers(1, 4))
    def commit(self, many: int) -> None:
        for _ in self.queue[:many]:
            self.commits()

    def commits(self) -> None:
        new, wishes = self.queue.pop(0)
        self.store.pending.extend(new)
        for wish in wishes:
            runs, more = self.store.claim(wish)
            one = self.mind.claimed(wish.player, wish.epoch, runs, more)
            if one is not None:
                self.ask(self.mind.stirred(one))

    @precondition(lambda self: self.queue)
    @rule()
    def is_not_saved(self) -> None:
        _, wishes = self.queue.pop(0)
        self.ask(self.mind.wishes(self.mind.not_claimed(wishes)))

    def drain(self) -> None:
        while self.queue:
            self.commits()

    @invariant()
    def one_claim_of_a_session_is_in_flight_and_no_room_is_overdrawn(self) -> None:
        flying = [(wish.player, wish.epoch) for each in self.queue for wish in each.wishes]
        assert len(flying) == len(set(flying))
        for one in self.mind.sessions.values():
            assert one.claiming is ((one.player, one.epoch) in flying)
            assert len(one.open) <= max(2 * one.slots, 0)

    def teardown(self) -> None:
        """Once the store has caught up, nobody who could take a task of its own is idle."""
        self.drain()
        for one in self.mind.sessions.values():
            if one.ready and one.room > 0 and one.fits("s"):
                assert frozenset({one.player}) not in self.store.pending


TestConductor = Conductor.TestCase
TestConductor.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
