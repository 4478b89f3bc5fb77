"""Everything that keeps a task from starting, not only the first thing; told together where it is the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storehouse import Storehouse, report

from orchestra.cli.explain import MOST_JOBS, group_lines, run_lines
from orchestra.core.blockers import (
    Ahead,
    Blocker,
    Facts,
    Standstill,
    conductors_disk,
    grouped,
    of_handed_over,
    of_pending,
)
from orchestra.core.brake import Brake
from orchestra.model import Held, Hold, Scope, ScoreEntry, Told
from orchestra.store import statements

AT = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC
ENTRY = ScoreEntry("deploy", "a" * 64, "", "env", 1, 1, 1, False, 1)


def there(**more: Any) -> Facts:
    """A player that is online, has the score, and has room."""
    return Facts(**{"online": True, "since": AT, "entry": ENTRY, "slots": 2} | more)


def away(**more: Any) -> Facts:
    return Facts(**{"online": False, "since": AT, "entry": ENTRY} | more)


def ahead(seq: int, score: str = "deploy", **more: Any) -> Ahead:
    return Ahead(seq, 100 + seq, score, AT + seq, **more)


def hold(kind: Held, name: str) -> Hold:
    return Hold(kind=kind, name=name, reason="disk swap", at=AT, owner="anne", uid=1)


def kinds(blockers: tuple[Blocker, ...]) -> list[str]:
    return [one.kind for one in blockers]


# ---- what waits to be handed out


@pytest.mark.parametrize(
    ("player", "kind", "what", "since"),
    [
        (there(), "next", "about to be handed over", None),
        (away(), "offline", "offline", AT),
        (away(since=None, known=False), "offline", "never seen yet", None),
        (there(note="its disk is full"), "takes no work", "takes no work: its disk is full", None),
        (there(known=False, entry=None), "unknown", "its scores are not known yet", AT),
        (there(entry=None), "no score", "has no such score", None),
        (there(entry=None, refusal="not executable"), "unfit", "does not run the score: not executable", None),
    ],
)
def test_each_thing_is_said(player: Facts, kind: str, what: str, since: int | None) -> None:
    """With the time since which it is so, where that is known."""
    [found] = of_pending("deploy", "", (), player)
    assert (found.kind, found.what, found.since) == (kind, what, since)
    assert found.until


def test_everything_that_keeps_it_is_said_at_once() -> None:
    """Whoever mends the first thing need not find the next."""
    player = away(removed_at=AT - 5, entry=None)
    holds = [hold(Held.EVERYTHING, ""), hold(Held.HOST, "web1"), hold(Held.SCORE, "deploy")]
    found = of_pending("deploy", "", holds, player, [conductors_disk("its disk is nearly full")])
    assert [(one.kind, one.what, one.until) for one in found] == [
        ("conductor", "nothing is handed out: its disk is nearly full", "that is mended on the conductor"),
        ("held", "everything is held by anne: disk swap", "'orchestra release'"),
        ("held", "the host is held by anne: disk swap", "'orchestra release --host'"),
        ("held", "the score is held by anne: disk swap", "'orchestra release --score deploy'"),
        (
            "removed",
            "not in the players file any more",
            "it is in the players file again, or the task ends: removal_grace in conductor.conf",
        ),
        ("offline", "offline", "it connects"),
        ("no score", "has no such score", "it is installed there; handed over before that, it is refused"),
    ]


def test_another_version_than_the_pinned_one_is_drift() -> None:
    [found] = of_pending("deploy", "b" * 64, (), there())
    assert (found.kind, found.what) == ("drift", "has aaaaaaaaaaaa, and the job is pinned to bbbbbbbbbbbb")
    assert kinds(of_pending("deploy", "a" * 64, (), there())) == ["next"]
    assert kinds(of_pending("deploy", "b" * 64, (), away())) == ["offline", "drift"]


def test_slots_that_are_full_name_the_runs() -> None:
    """Twice the slots are given; it is so since the last of them came."""
    runs = tuple(ahead(seq, "sleep") for seq in range(1, 5))
    [found] = of_pending("deploy", "", (), there(open=runs))
    assert (found.kind, found.since, found.runs, found.until) == ("slots", AT + 4, runs, "one of them ends")
    assert found.what == "has 4 runs, as many as it takes: 2 at once, and as many waiting"
    assert kinds(of_pending("deploy", "", (), there(open=runs[:3]))) == ["next"]


def test_runs_of_the_score_itself_are_its_concurrency() -> None:
    """One more than may run is given, and no more."""
    runs = (ahead(1), ahead(2, "sleep"), ahead(3))
    [found] = of_pending("deploy", "", (), there(slots=8, open=runs))
    assert (found.kind, found.what) == ("concurrency", "2 runs of deploy before it, and 1 may run at once")
    assert found.runs == (runs[0], runs[2])
    wide = ScoreEntry("deploy", "a" * 64, "", "env", 1, 1, 3, False, 1)
    assert kinds(of_pending("deploy", "", (), there(slots=8, open=runs, entry=wide))) == ["next"]


def test_a_lock_names_who_has_it() -> None:
    """Whichever scores those are runs of."""
    locks = {"deploy": "db", "vacuum": "db", "sleep": "other"}
    runs = (ahead(1, "vacuum"), ahead(2, "sleep"), ahead(3, "vacuum"))
    [found] = of_pending("deploy", "", (), there(slots=8, open=runs, locks=locks))
    assert (found.kind, found.what, found.runs) == (
        "lock",
        "the lock 'db' is taken, and others wait for it",
        (runs[0], runs[2]),
    )


def test_of_who_is_away_nobody_knows_how_busy_it_is() -> None:
    assert kinds(of_pending("deploy", "", (), away(open=tuple(ahead(seq) for seq in range(9))))) == ["offline"]


# ---- what was handed out and has not started


def test_what_was_handed_over_waits_for_what_is_before_it() -> None:
    """Slots, the score's own concurrency, a lock: each that is so."""
    locks = {"deploy": "db", "vacuum": "db"}
    runs = (ahead(1, "vacuum"), ahead(2), ahead(3))
    found = of_handed_over(3, "deploy", there(open=runs, locks=locks))
    assert [(one.kind, one.what, [run.seq for run in one.runs]) for one in found] == [
        ("concurrency", "1 run of deploy before it, and 1 may run at once", [2]),
        ("lock", "the lock 'db' is taken", [1, 2]),
        ("slots", "2 runs before it on the player, which runs 2 at once", [1, 2]),
    ]


def test_what_was_handed_over_and_has_nothing_before_it_may_have_started() -> None:
    """Nobody has said so yet; since when it is there is known."""
    [found] = of_handed_over(2, "deploy", there(open=(ahead(1, "sleep"), ahead(2))))
    assert (found.kind, found.since) == ("handed over", AT + 2)


def test_what_was_handed_to_who_is_away_may_have_run() -> None:
    [found] = of_handed_over(2, "deploy", away())
    assert (found.kind, found.what) == ("offline", "offline, and may have started it")


# ---- together


def row(task: int, player: str, *blockers: Blocker, choice: bool = False) -> Standstill:
    return Standstill(task=task, nth=0, player=player, state="pending", blockers=blockers, choice=choice)


def offline(since: int) -> Blocker:
    return Blocker(kind="offline", what="offline", since=since, until="it connects")


def full(*runs: Ahead) -> Blocker:
    return Blocker(kind="slots", what="full", since=AT, until="one of them ends", runs=runs)


def test_hosts_that_wait_alike_are_one_group() -> None:
    """Whenever it began for each; the largest group first."""
    rows = [row(0, "db1", full(ahead(1))), *(row(n, f"web{n}", offline(AT + n * 1000)) for n in range(1, 4))]
    first, second = grouped(rows)
    assert (first.players, first.blockers, first.latest) == (
        ("web1", "web2", "web3"),
        (offline(AT + 1000),),
        (AT + 3000,),
    )
    assert second.players == ("db1",)
    assert list(group_lines(first)) == [
        "web[1-3] (3 hosts)",
        "    offline, since 2023-11-14 22:13:21 UTC to 2023-11-14 22:13:23 UTC",
        "        until it connects",
    ]


def test_runs_in_the_way_are_told_by_job() -> None:
    rows = [
        row(n, f"web{n}", full(Ahead(n, 7, "sleep", AT, AT if n else None), Ahead(n, 8, "wait", AT))) for n in range(3)
    ]
    [group] = grouped(rows)
    assert run_lines(group.blockers[0].runs) == [
        "job 7, sleep: 3 runs, 2 of them known to be running",
        "job 8, wait: 3 runs",
    ]
    many = run_lines([ahead(seq) for seq in range(MOST_JOBS + 2)])
    assert (len(many), many[-1]) == (MOST_JOBS + 1, "and of 2 more jobs")


def test_any_one_of_the_candidates_is_enough() -> None:
    rows = [row(0, f"web{n}", offline(AT), choice=True) for n in range(2)]
    [group] = grouped(rows)
    assert next(group_lines(group)) == "any one of web[0-1] (2 hosts)"


def test_ten_thousand_hosts_that_wait_are_a_few_lines() -> None:
    rows = [row(n, f"web{n:05d}", offline(AT + n)) for n in range(10_000)]
    assert sum(len(list(group_lines(group))) for group in grouped(rows)) == 3


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from("abc"), st.booleans()), max_size=30))
def test_no_host_is_lost_by_grouping(given_rows: list[tuple[int, str, bool]]) -> None:
    """Every host is in just the groups of what it waits for."""
    rows = [
        row(n, f"h{n}", Blocker(kind=what, what=what, until="x", since=n), choice=choice)
        for n, what, choice in given_rows
    ]
    found = {(player, group.choice, group.blockers[0].kind) for group in grouped(rows) for player in group.players}
    assert found == {(f"h{n}", choice, what) for n, what, choice in given_rows}


# ---- what the store and the brake know


def test_every_hold_of_a_task_is_found() -> None:
    """The one line says the first; each has to be released."""
    everything = [
        hold(Held.EVERYTHING, ""),
        hold(Held.HOST, "web1"),
        hold(Held.SCORE, "deploy"),
        hold(Held.HOST, "web2"),
    ]
    assert Brake(everything).all_of("web1", "deploy") == tuple(everything[:3])
    assert Brake(everything[1:]).all_of("web3", "sleep") == ()


def test_tasks_without_an_outcome_are_read_in_pages() -> None:
    house = Storehouse(4)
    job = house.submit([1, 2, 3, 4])
    [run] = house.claim(1)
    house.settle(1, report(run, Told.OK))
    house.claim(3)
    found = statements.waiting(house.cur, job, (-1, 0), 2)
    assert [(one.task, one.player, one.state) for one in found] == [(1, 2, 0), (2, 3, 1)]
    [last] = statements.waiting(house.cur, job, found[-1][:2], 2)
    assert (last.task, last.player, last.choice) == (3, 4, False)
    assert [one.player for one in statements.waiting(house.cur, job, (-1, 0), 2, {4})] == [4]
    assert statements.waiting(house.cur, job, last[:2], 2) == []


def test_candidates_are_read_one_by_one() -> None:
    house = Storehouse(3)
    job = house.submit([1, 2, 3], Scope.ONE)
    found = statements.waiting(house.cur, job, (-1, 0), 2)
    assert [(one.task, one.nth, one.player, one.choice) for one in found] == [(0, 0, 1, True), (0, 1, 2, True)]
    assert [one.player for one in statements.waiting(house.cur, job, found[-1][:2], 2)] == [3]


def test_what_players_are_held_to_is_read_for_all_of_them_at_once() -> None:
    house = Storehouse(2)
    first, second = house.submit([1, 2]), house.submit([1])
    house.claim(1)
    house.claim(2, now=5)
    runs = statements.open_runs(house.cur, [1, 2])
    assert [(run.seq, run.job, run.score) for run in runs[1]] == [(1, first, "uptime"), (2, second, "uptime")]
    assert [(run.job, run.dispatched_at) for run in runs[2]] == [(first, 5)]
    assert statements.open_runs(house.cur, []) == {}
    assert statements.seen_players(house.cur, [2])[2].name == "web-2"
