"""Claims: what waits for a player becomes its runs, each once, numbered without a hole."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from storehouse import HOUR, OWNER, Storehouse, greet, job, report

from orchestra.model import Run, Scope, Told
from orchestra.store import sqlite, statements
from orchestra.store.values import ClaimAsk

T = TypeVar("T")


@pytest.fixture
def store() -> Storehouse:
    return Storehouse()


def scores(runs: tuple[Run, ...]) -> list[str]:
    return [run.score for run in runs]


def test_a_claim_numbers_runs_from_where_the_last_one_stopped(store: Storehouse) -> None:
    """Every player has its own numbers, strictly rising, without a hole."""
    store.submit([1, 2])
    first = store.submit([1])
    assert [run.seq for run in store.claim(1)] == [1, 2]
    store.submit([1])
    assert [run.seq for run in store.claim(1)] == [3]
    (other,) = store.claim(2)
    assert (other.seq, other.job, other.task, other.attempt) == (1, first - 1, 1, 1)


def test_a_claim_carries_all_that_the_player_needs(store: Storehouse) -> None:
    """A run says what to play, with what, and how long it may wait."""
    made = store.submit([2], score="disk-free", params={"path": "/srv"}, expires_at=5_000)
    assert store.claim(2, now=2_000) == (Run(1, made, 0, 1, "disk-free", {"path": "/srv"}, 3_000),)
    store.submit([2], expires_at=None)
    assert store.claim(2)[0].start_within is None


def test_scores_with_one_lock_share_what_may_be_given(store: Storehouse) -> None:
    """However many of them there are, what waits for the lock leaves room for others."""
    names = [f"apt-{n}" for n in range(12)]
    for name in names:
        store.submit([1], score=name)
    store.submit([1], score="uptime")
    limits, locks = dict.fromkeys(names, 2), dict.fromkeys(names, "apt")
    claimed = store.claimed(1, room=10, limits=limits, locks=locks)
    assert scores(claimed.runs) == ["apt-0", "apt-1", "uptime"]
    assert claimed.more
    assert scores(store.claim(1, room=7, limits=dict.fromkeys(names, 0), locks=locks)) == []


@settings(max_examples=50)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "free"]), max_size=12),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_a_lock_is_never_given_more_than_its_limit(asked: list[str], room: int, limit: int) -> None:
    """And what has no lock is held up by nothing."""
    store = Storehouse(1)
    for score in asked:
        store.submit([1], score=score)
    locks = {"a": "both", "b": "both", "c": "own"}
    given = scores(store.claim(1, room=room, limits={"a": limit, "b": limit, "c": limit, "free": 100}, locks=locks))
    assert given.count("a") + given.count("b") <= limit and given.count("c") <= limit
    wanted = min(limit, sum(score in "ab" for score in asked)) + min(limit, asked.count("c")) + asked.count("free")
    assert len(given) == min(room, wanted)


def test_a_stale_session_is_given_nothing(store: Storehouse) -> None:
    """Neither an older epoch nor another conductor, and these are told why; nor a player that was removed."""
    store.submit([1])
    for stale in (store.claimed(1, epoch=0), store.claimed(1, owner="conductor-2")):
        assert (stale.runs, stale.superseded) == ((), True)
    statements.sync_players(store.cur, ["web-2", "web-3"], 0)
    removed = store.claimed(1)
    assert (removed.runs, removed.superseded) == ((), False)
    statements.sync_players(store.cur, store.names, 0)
    assert len(store.claim(1)) == 1


def test_more_is_said_when_work_is_left(store: Storehouse) -> None:
    """Whether for want of room or because of a score's limit."""
    store.submit([1], score="a")
    store.submit([1], score="a")
    store.submit([1], score="b")
    limited = store.claimed(1, limits={"a": 1})
    assert (scores(limited.runs), limited.more) == (["a", "b"], True)
    full = store.claimed(1, room=0)
    assert (full.runs, full.more) == ((), True)
    rest = store.claimed(1)
    assert (scores(rest.runs), rest.more) == (["a"], False)
    assert store.claimed(1, room=0).more is False


def test_room_below_nothing_gives_nothing(store: Storehouse) -> None:
    """A player whose slots were taken away has less than no room."""
    store.submit([1])
    assert store.claim(1, room=-3) == ()


def test_priority_goes_before_age_and_age_before_the_rest(store: Storehouse) -> None:
    """Whatever the score is called, and however little fits."""
    late = store.submit([1], score="z", priority=5)
    old = store.submit([1], score="y")
    one = store.submit([1, 2], Scope.ONE, score="a")
    young = store.submit([1], score="x", priority=-1)
    assert [store.claim(1, room=1)[0].job for _ in range(4)] == [late, old, one, young]


def test_a_busy_score_hides_nobody(store: Storehouse) -> None:
    """Its limit is used up, and what waits behind a thousand of its tasks is given all the same."""
    for _ in range(1000):
        store.submit([1], score="busy")
    other = store.submit([1], score="other")
    runs = store.claim(1, room=4, limits={"busy": 2, "other": 2})
    assert scores(runs) == ["busy", "busy", "other"]
    assert runs[-1].job == other


def test_a_one_of_task_goes_to_one_player_only(store: Storehouse) -> None:
    """Whoever claims first has it."""
    store.submit([1, 2, 3], Scope.ONE)
    assert len(store.claim(2)) == 1
    assert store.claim(1) == store.claim(3) == ()


def test_a_one_of_task_that_never_started_may_go_to_anybody_again(store: Storehouse) -> None:
    """The player that proved so included."""
    made = store.submit([1, 3], Scope.ONE)
    (run,) = store.claim(1)
    settled = store.settle(1, report(run, Told.NEVER))
    assert [(f.job, f.n, f.player, f.candidates) for f in settled.freed] == [(made, 0, None, (1, 3))]
    (again,) = store.claim(3)
    assert (again.job, again.attempt) == (made, 2)


def test_a_one_of_task_is_not_offered_again_to_who_refused(store: Storehouse) -> None:
    """And is refused when nobody is left."""
    made = store.submit([1, 3], Scope.ONE)
    (run,) = store.claim(1)
    store.settle(1, report(run, Told.REFUSED, reason="no such score here"))
    assert store.claim(1) == ()
    (again,) = store.claim(3)
    settled = store.settle(3, report(again, Told.REFUSED))
    assert (store.state(made), settled.freed, settled.ended) == ("refused", (), {made})


def test_overdue_work_hides_nothing(store: Storehouse) -> None:
    """It ends on the spot, and what is behind it is given in the same claim."""
    dead = [store.submit([1], expires_at=1_000) for _ in range(50)]
    live = store.submit([1], expires_at=HOUR)
    claimed = store.claimed(1, room=2, now=1_000, default_limit=2)
    assert [run.job for run in claimed.runs] == [live]
    assert {store.state(one) for one in dead} == {"expired"}
    assert claimed.jobs == {*dead, live}
    assert claimed.more is False


def test_a_claim_of_many_players_gives_each_its_own(store: Storehouse) -> None:
    """In ascending order of player, whatever the order they were named in."""
    made = store.submit([1, 2, 3])
    claimed = statements.claim(store.cur, [store.ask(3), store.ask(1), store.ask(2)], 0)
    assert [(one.player, [run.task for run in one.runs]) for one in claimed] == [(1, [0]), (2, [1]), (3, [2])]
    assert store.kinds(made) == ["submitted", "dispatched", "dispatched", "dispatched"]


# ---- races


def test_a_cancel_that_commits_first_leaves_no_hole(store: Storehouse) -> None:
    """Numbers go only to what was still pending."""
    jobs = [store.submit([1]) for _ in range(4)]
    statements.cancel(store.cur, jobs[1], None, "anne", 0)
    assert [(run.job, run.seq) for run in store.claim(1)] == [(jobs[0], 1), (jobs[2], 2), (jobs[3], 3)]
    assert store.cur.execute("SELECT next_seq FROM players WHERE player_id = 1").fetchone() == (4,)


def test_conductors_and_a_cancel_that_race_claim_nothing_twice(tmp_path: Path) -> None:
    """Three connections, three threads: a task is given once, or cancelled, and numbers have no hole."""
    house = sqlite.Store(str(tmp_path))
    house.open()
    setup = house.connect()
    _transaction(setup, lambda cur: statements.sync_players(cur, ["web-1", "web-2"], 0))
    for player in (1, 2):
        _transaction(setup, lambda cur, player=player: greet(cur, player))
    jobs = [_transaction(setup, lambda cur: statements.submit(cur, job([1, 2], Scope.ONE), 0)).job for _ in range(60)]
    start, given = threading.Barrier(3), {1: list[Run](), 2: list[Run]()}
    threads = [
        threading.Thread(target=_claim_all, args=(house, start, 1, given[1])),
        threading.Thread(target=_claim_all, args=(house, start, 2, given[2])),
        threading.Thread(target=_cancel_all, args=(house, start, jobs[::-1])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = [run.job for runs in given.values() for run in runs]
    states = [statements.job_view(setup.cursor(), one).counts for one in jobs]
    assert len(taken) == len(set(taken)) == states.count({"dispatched": 1})
    assert states.count({"cancelled": 1}) == 60 - len(taken)
    assert all([run.seq for run in runs] == list(range(1, len(runs) + 1)) for runs in given.values())
    setup.close()
    house.close()


def _claim_all(house: sqlite.Store, start: threading.Barrier, player: int, given: list[Run]) -> None:
    connection, more = house.connect(), True
    ask = ClaimAsk(player, 1, OWNER, 2, {}, 2)
    start.wait()
    while more:
        (claimed,) = _transaction(connection, lambda cur: statements.claim(cur, [ask], 0))
        given += claimed.runs
        more = claimed.more
    connection.close()


def _cancel_all(house: sqlite.Store, start: threading.Barrier, jobs: list[int]) -> None:
    connection = house.connect()
    start.wait()
    for one in jobs:
        _transaction(connection, lambda cur, one=one: statements.cancel(cur, one, None, "anne", 0))
    connection.close()


def _transaction(connection: sqlite3.Connection, work: Callable[[sqlite3.Cursor], T]) -> T:
    cur = connection.cursor()
    cur.execute("BEGIN IMMEDIATE")
    result = work(cur)
    cur.execute("COMMIT")
    return result


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(-1, 1), st.sets(st.integers(1, 3), min_size=1), st.booleans()),
        max_size=12,
    ),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 3)), max_size=12),
)
@example([("a", 0, {1}, True), ("a", 1, {1}, True), ("b", 0, {1}, True), ("c", -1, {1}, True)], [(1, 3, 1)])
@example(
    [("a", 0, {1}, False), ("a", 1, {1}, False), ("b", 0, {1}, False), ("c", -1, {1}, False), ("c", -1, {1}, True)],
    [(1, 3, 1)],
)
@settings(max_examples=60, deadline=None)
def test_a_claim_gives_the_best_that_fits(
    jobs: list[tuple[str, int, set[int], bool]], claims: list[tuple[int, int, int]]
) -> None:
    """By priority, then age, each task once, within room and limits: the same as walking a sorted list."""
    store = Storehouse()
    waiting: list[tuple[int, int, int, set[int], str]] = []
    for name, priority, players, one in jobs:
        targets = sorted(players)
        made = store.submit(targets, Scope.ONE if one else Scope.ALL, score=name, priority=priority)
        tasks = [set(targets)] if one else [{player} for player in targets]
        waiting += [(-priority, made, n, who, name) for n, who in enumerate(tasks)]
    numbers = dict.fromkeys((1, 2, 3), 0)
    for player, room, limit in claims:
        expected = _walk(sorted(waiting, key=lambda task: task[:3]), player, room, limit)
        waiting = [task for task in waiting if task not in expected]
        claimed = store.claimed(player, room, default_limit=limit)
        assert [(run.job, run.task) for run in claimed.runs] == [task[1:3] for task in expected]
        assert [run.seq for run in claimed.runs] == list(
            range(numbers[player] + 1, numbers[player] + 1 + len(expected))
        )
        assert claimed.more == any(player in task[3] for task in waiting)
        numbers[player] += len(expected)


def _walk(
    waiting: list[tuple[int, int, int, set[int], str]], player: int, room: int, limit: int
) -> list[tuple[int, int, int, set[int], str]]:
    left: dict[str, int] = {}
    chosen = []
    for task in waiting:
        if player in task[3] and len(chosen) < room and left.setdefault(task[4], limit) > 0:
            left[task[4]] -= 1
            chosen.append(task)
    return chosen


# ---- what a claim costs


def steps(store: Storehouse, work: Callable[[], object]) -> int:
    """How many steps SQLite's machine takes for ``work``."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    store.connection.set_progress_handler(count, 1)
    work()
    store.connection.set_progress_handler(None, 1)
    return counted


def test_twelve_thousand_tasks_of_an_absent_player_slow_nobody() -> None:
    """Nor do ten thousand of another score of one's own, nor a thousand one-of tasks that others are at."""
    empty, full = Storehouse(), Storehouse()
    for store in (empty, full):
        store.submit([2], score="zz")
        store.submit([2, 3], Scope.ONE, score="zz")
    full.submit([1] * 12_000)
    full.submit([2] * 10_000, score="busy")
    for _ in range(1000):
        full.submit([2, 3], Scope.ONE, score="aa")
    assert len(full.claim(3, room=2000, limits={"zz": 0}, default_limit=2000)) == 1000

    def work(store: Storehouse) -> Callable[[], object]:
        return lambda: store.claim(2, room=4, limits={"busy": 0})

    few = steps(empty, work(empty))
    assert steps(full, work(full)) < 2 * few
    assert full.claimed(2, limits={"busy": 0}).runs == ()
