"""The conductor's mind: one claim at a time per player, within its room, and no wake-up is lost."""

from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.scheduler import Scheduler, Session
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


def test_an_end_that_was_not_saved_leaves_the_run_open() -> None:
    """Room is freed by what is on disk."""
    one = session(1, open_runs={1: "s"})
    scheduler = ready(one)
    gone = scheduler.ended(one, [1, 9])
    assert one.room == 2
    scheduler.reopened(one, gone)
    assert one.open == {1: "s"}


@given(st.lists(st.sampled_from(["offer", "claimed", "failed", "end"]), max_size=50))
def test_one_claim_in_flight_never_more_than_the_room_and_no_work_forgotten(events: list[str]) -> None:
    """Against the plainest model: a number of pending tasks."""
    one = session(1, slots=2)
    scheduler = ready(one)
    pending = claims = 0
    room, next_seq = 0, 1
    for event in events:
        wishes = []
        if event == "offer":
            pending += 1
            wishes = scheduler.offer(Scope.ALL, (1,))
        elif event == "claimed" and claims:
            claims, many = 0, min(room, pending)
            pending -= many
            scheduler.claimed(1, 1, runs(next_seq, many), pending > 0)
            next_seq += many
            wishes = scheduler.stirred(one)
        elif event == "failed" and claims:
            claims = 0
            wishes = scheduler.wishes(s for s in scheduler.not_claimed([_wish(one)]))
        elif event == "end" and one.open:
            scheduler.ended(one, [min(one.open)])
            wishes = scheduler.wishes([one])
        assert len(wishes) + claims <= 1
        if wishes:
            claims, room = 1, wishes[0].room
        assert len(one.open) <= 4
        assert claims or not pending or one.room == 0 or one.hungry


def _wish(one: Session) -> object:
    from orchestra.core.scheduler import Wish

    return Wish(one)
