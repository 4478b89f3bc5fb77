"""What is old, or too much, goes: in small steps, the oldest first, and never what has not ended."""

import itertools
from pathlib import Path

import pytest
from conftest import Command, until_logged
from outside import OutsideOrchestra
from storehouse import Storehouse, report

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import JobPruned, NoSuchJob
from orchestra.model import Piece, Run, Told
from orchestra.store import sqlite, statements
from orchestra.store.prune import KEYS_OUTLIVE
from orchestra.store.pruneplan import plan

KEEP = 1_000
LARGE = 1 << 40


@pytest.fixture
def store() -> Storehouse:
    return Storehouse()


def ended(store: Storehouse, at: int, output: int = 0, players: tuple[int, ...] = (1,), **changes: object) -> int:
    """A job that has ended then, with ``output`` rows of it beside the report."""
    job = store.submit(players, now=at, **changes)
    for player in players:
        [run] = store.claim(player, now=at)
        keep_output(store, player, run, output)
        store.settle(player, report(run, Told.OK), now=at)
    return job


def keep_output(store: Storehouse, player: int, run: Run, rows: int) -> None:
    pieces = [Piece(run.seq, run.attempt, 1, n * 30_000, b"x" * 30_000) for n in range(rows)]
    statements.save_pieces(store.cur, player, store.epochs[player], "conductor-1", pieces)


def prune(store: Storehouse, now: int, keep: int | None = KEEP, keep_size: int = LARGE, rows: int = 2_000) -> int:
    """Prune until nothing is left to do; how many steps it took."""
    for step in itertools.count(1):
        if not statements.prune(store.cur, now, keep, keep_size, rows).more:
            return step
    raise AssertionError


def kept(store: Storehouse) -> list[int]:
    return [view.job for view in reversed(statements.job_views(store.cur, None, 100, False, None))]


def rows(store: Storehouse) -> dict[str, int]:
    """How many rows of jobs there are."""
    tables = (
        "jobs",
        "job_params",
        "tasks",
        "candidates",
        "choices",
        "results",
        "outputs",
        "events",
        "pruning",
        "gates",
    )
    return {table: store.cur.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


def test_what_has_ended_long_ago_goes_and_leaves_nothing(store: Storehouse) -> None:
    """The younger one stays whole."""
    young_only = Storehouse()
    ended(young_only, 2_000, output=2)
    ended(store, 0, output=3, players=(1, 2))
    young = ended(store, 2_000, output=2)
    prune(store, 2_000)
    assert kept(store) == [young]
    assert rows(store) == rows(young_only)


def test_what_has_not_ended_stays_for_ever(store: Storehouse) -> None:
    """Pending, with a player, and half ended; whatever size and age say."""
    half = store.submit([1, 2], expires_at=None)
    [run] = store.claim(1)
    keep_output(store, 1, run, 5)
    store.settle(1, report(run, Told.OK))
    running, waiting = store.submit([1], expires_at=None), store.submit([2, 3], Scope.ONE, expires_at=None)
    [run] = store.claim(1)
    before = rows(store)
    prune(store, 1 << 50, keep=0, keep_size=0)
    assert (kept(store), rows(store)) == ([half, running, waiting], before)
    assert store.settle(1, report(run, Told.OK)).unknown == 0


def test_no_step_removes_more_than_it_may(store: Storehouse) -> None:
    """Even of one job of many tasks; nobody sees half of it, and it is all gone in the end."""
    wide = Storehouse(40)
    ended(wide, 0, output=1, players=tuple(range(1, 41)))
    steps = 0
    more = True
    while more:
        before = sum(rows(wide).values())
        more = statements.prune(wide.cur, 5_000, KEEP, LARGE, 10).more
        assert before - sum(rows(wide).values()) <= 10 + 3  # the job itself is three rows
        with pytest.raises(JobPruned):
            statements.job_view(wide.cur, 1)
        steps += 1
    assert steps > 15
    assert set(rows(wide).values()) == {0}


def test_nobody_sees_what_is_left_of_a_job(store: Storehouse) -> None:
    """While its rows go a few at a time it has gone already, with its history and its output."""
    made = ended(store, 0, output=3)
    parts = (
        (lambda: statements.events(store.cur, made, 0, 9)),
        (lambda: statements.output_pieces(store.cur, made, 0, 1, 0, 9)),
    )
    assert all(part() for part in parts)
    statements.prune(store.cur, 5_000, KEEP, LARGE, 2)
    assert all(rows(store)[table] for table in ("tasks", "results", "outputs", "events"))
    for part in parts:
        with pytest.raises(JobPruned):
            part()


def test_forever_is_until_the_store_is_too_large(store: Storehouse) -> None:
    """Its output goes first, the oldest first; then jobs, the oldest first."""
    jobs = [ended(store, at, output=20) for at in range(5)]
    prune(store, 1 << 50, keep=None)
    assert kept(store) == jobs

    def with_output() -> list[int]:
        return [job for (job,) in store.cur.execute("SELECT DISTINCT job_id FROM outputs ORDER BY job_id")]

    prune(store, 10, keep=None, keep_size=statements.size(store.cur) - 1_000_000)
    assert (kept(store), with_output()) == (jobs, jobs[2:])
    prune(store, 10, keep=None, keep_size=0)
    assert (kept(store), with_output()) == ([], [])


def test_the_output_of_a_job_that_has_not_ended_is_passed_over(store: Storehouse) -> None:
    """However old."""
    store.submit([1, 2], expires_at=None)
    [run] = store.claim(1)
    keep_output(store, 1, run, 20)
    young = ended(store, 5, output=20, players=(3,))
    statements.prune(store.cur, 10, None, 0)
    assert [job for (job,) in store.cur.execute("SELECT DISTINCT job_id FROM outputs")] == [1]
    assert young in kept(store)


def test_a_request_key_outlives_its_job_by_30_days(store: Storehouse) -> None:
    """Until then the same key is the same job, that was pruned; afterwards it is free."""
    made = ended(store, 0, request_key="k")
    prune(store, 5_000)
    again = store.submitted([1], request_key="k", now=6_000)
    assert (again.job, again.created) == (made, False)
    prune(store, 5_000 + KEYS_OUTLIVE - 1)
    assert not store.submitted([1], request_key="k").created
    prune(store, 5_000 + KEYS_OUTLIVE)
    assert store.submitted([1], request_key="k").created


def test_a_pruned_job_is_said_to_be_pruned(store: Storehouse) -> None:
    """By whatever asks for it; one that never was is told apart."""
    made = ended(store, 0)
    prune(store, 5_000)
    for ask in (
        lambda job: statements.job_view(store.cur, job),
        lambda job: statements.task_views(store.cur, job, -1, 9),
        lambda job: statements.events(store.cur, job, 0, 9),
        lambda job: statements.output_pieces(store.cur, job, 0, 1, 0, 9),
        lambda job: statements.cancel(store.cur, job, None, "anne", 0),
    ):
        with pytest.raises(JobPruned, match=f"Job {made} has ended, and was pruned"):
            ask(made)
        with pytest.raises(NoSuchJob) as never:
            ask(made + 1)
        assert type(never.value) is NoSuchJob


def test_a_report_of_a_pruned_job_is_answered(store: Storehouse) -> None:
    """It changes nothing: it came after an operator had removed the player, and the job's time was over."""
    store.submit([1])
    [run] = store.claim(1)
    statements.sync_players(store.cur, ["web-2"], 0)
    statements.sweep_removed(store.cur, 10, 5)
    prune(store, 5_000)
    before = rows(store)
    settled = store.settle(1, report(run, Told.OK), now=6_000)
    assert (settled.unknown, settled.late, settled.jobs) == (1, 0, frozenset())
    assert rows(store) == before


def test_the_disk_gets_its_room_back(tmp_path: Path) -> None:
    """In bounded steps, until little is left."""
    house = sqlite.Store(str(tmp_path))
    house.open()
    connection = house.connect()
    cur = connection.cursor()
    data = [(n, b"x" * 50_000) for n in range(200)]
    cur.executemany("INSERT INTO outputs VALUES (1, 1, 1, 1, ?, ?)", data)
    full = cur.execute("PRAGMA page_count").fetchone()[0]
    cur.execute("DELETE FROM outputs")
    steps = 1
    while statements.give_back(cur, 500):
        steps += 1
    assert steps >= 4
    assert cur.execute("PRAGMA page_count").fetchone()[0] < full / 5
    connection.close()
    house.close()


# ---- the plan


def test_a_plan_says_what_would_go_and_how_much_room_that_is(store: Storehouse) -> None:
    """What is old, however large the store; it is what pruning then does, and the plan itself does nothing."""
    for at in range(40):
        ended(store, at, output=3, players=(1, 2))
    half = store.submit([1, 2])
    before = store.connection.total_changes
    planned = plan(store.cur, 1_020, KEEP, LARGE)
    assert (planned.old, planned.outputs, planned.more, planned.output_bytes, planned.more_bytes) == (21, 0, 0, 0, 0)
    assert store.connection.total_changes == before
    prune(store, 1_020)
    assert len(kept(store)) == 40 - planned.old + 1
    freed = planned.size - statements.size(store.cur)
    assert abs(freed - planned.old_bytes) < 0.1 * freed
    assert half in kept(store)
    assert plan(store.cur, 1_020, KEEP, LARGE).old == 0


def test_a_plan_knows_what_is_too_much(store: Storehouse) -> None:
    """Output first, the oldest first; then whole jobs, as many as it takes."""
    for at in range(40):
        ended(store, at, output=3, players=(1, 2))
    size = statements.size(store.cur)
    some = plan(store.cur, 0, None, size - 1_000_000)
    assert (some.old, some.outputs, some.more) == (0, 6, 0)
    assert abs(some.output_bytes - 1_080_000) < 20_000
    all_of_it = plan(store.cur, 0, None, 0)
    assert (all_of_it.outputs, all_of_it.more) == (40, 40)
    assert plan(store.cur, 0, None, size).outputs == 0


# ---- real daemons


def test_a_conductor_prunes_by_itself(theatre: Theatre, orchestra: OutsideOrchestra, command: Command) -> None:
    """getstatus says what has become of the job; its request key still stands for it."""
    ask = Ask(score="uptime", targets=("a",), scope=Scope.ALL, request_key="once")
    job = orchestra.submit(ask).job
    assert orchestra.wait(job, timeout=60).verdict == "ok"
    conf = theatre.home / "conductor.conf"
    conf.write_text(conf.read_text() + "keep = 1ms\n")
    assert any("keep" in line for line in orchestra.reload().changed)
    until_logged(theatre, "conductor", "pruned 1 jobs")
    done = command("getstatus", job)
    assert (done.returncode, "has ended, and was pruned" in done.stderr) == (64, True), done
    assert (orchestra.submit(ask).job, orchestra.submit(ask).created) == (job, False)
    waited = command("submitjob", "uptime", "a", "--request-key", "once", "--wait")
    assert (waited.returncode, "was pruned" in waited.stderr) == (64, True), waited
    wait_until(lambda: orchestra.about().pending == 0, "nothing to do", theatre.home / "log" / "conductor.log")


def test_what_would_go_is_said_and_goes_when_it_is_told_to(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """By whoever asks, and by the conductor's own user; a store that needs no pruning says so."""
    conf = theatre.home / "conductor.conf"
    conf.write_text(conf.read_text().replace("keep = 1ms\n", ""))
    orchestra.reload()
    job = orchestra.submit(Ask(score="uptime", targets=("a",), scope=Scope.ALL)).job
    orchestra.wait(job, timeout=60)
    said = command("orchestra", "prune", "--plan")
    assert (said.returncode, said.stdout.splitlines()[1:]) == (0, ["nothing would go"])
    assert "keep_size is 10.0 GB" in said.stdout
    assert orchestra.prune_plan().old == 0
    done = command("orchestra", "prune")
    assert done.stdout.startswith("0 jobs and 0 pieces of output of others are gone"), done
    assert orchestra.job(job).verdict == "ok"
