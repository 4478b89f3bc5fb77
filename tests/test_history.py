"""What has happened, to all jobs: in the order of the commits, resumed anywhere, right with pruning and restoring."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from hypothesis import given, settings
from hypothesis import strategies as st
from outside import OutsideOrchestra
from storehouse import Storehouse, report

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import NoSuchEvent
from orchestra.model import Event, Told
from orchestra.store import history, sqlite, statements
from orchestra.store.backup import back_up
from orchestra.store.restore import restore


@pytest.fixture
def store() -> Storehouse:
    return Storehouse()


def told(store: Storehouse, since: int = 0, limit: int = 100_000) -> list[Event]:
    return statements.all_events(store.cur, since, limit)


def finish(store: Storehouse, *players: int, now: int = 0) -> None:
    """Everybody runs what there is."""
    for player in players:
        store.settle(player, *(report(run, Told.OK) for run in store.claim(player, now=now)), now=now)


def test_events_of_all_jobs_come_in_the_order_of_their_commits(store: Storehouse) -> None:
    """Each with the job that it is of, and its number there."""
    one, two = store.submit([1]), store.submit([1, 2])
    finish(store, 2, 1)
    assert [(event.seq, event.job, event.n, event.kind) for event in told(store)] == [
        (1, one, 1, "submitted"),
        (2, two, 1, "submitted"),
        (3, two, 2, "dispatched"),
        (4, two, 3, "ok"),
        (5, one, 2, "dispatched"),
        (6, two, 4, "dispatched"),
        (7, one, 3, "ok"),
        (8, one, 4, "ended"),
        (9, two, 5, "ok"),
        (10, two, 6, "ended"),
    ]
    assert statements.last_event(store.cur) == 10
    assert statements.events(store.cur, two, 4, 10) == told(store, 8)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=12), st.data())
def test_whoever_is_broken_off_goes_on_without_a_gap(work: list[tuple[int, bool]], data: st.DataObject) -> None:
    """Wherever it was, and however small its pages are."""
    store = Storehouse()
    for players, end in work:
        store.submit(range(1, players + 1))
        if end:
            finish(store, 1, 2, 3)
    whole = told(store)
    assert [event.seq for event in whole] == list(range(1, len(whole) + 1))
    since = data.draw(st.integers(0, len(whole)))
    limit = data.draw(st.integers(1, 5))
    found: list[Event] = []
    while page := told(store, found[-1].seq if found else since, limit):
        assert len(page) <= limit
        found += page
    assert found == whole[since:]
    store.connection.close()


@pytest.mark.parametrize("rows", [1, 3, 2_000])
def test_pruning_takes_the_events_of_its_jobs_and_no_number_is_given_again(store: Storehouse, rows: int) -> None:
    """However small its steps are, and though the newest event was of a pruned job."""
    old = store.submit([1, 2])
    finish(store, 1, 2)
    kept = store.submit([1], now=10)
    old_too = store.submit([2])
    finish(store, 2)
    newest = statements.last_event(store.cur)
    while statements.prune(store.cur, 100, 50, 1 << 40, rows).more:
        assert {event.job for event in told(store)} <= {kept, old, old_too}
    assert [event.job for event in told(store)] == [kept]
    store.submit([3])
    assert statements.last_event(store.cur) == newest + 1
    changes = store.cur.execute("SELECT job_id FROM changes ORDER BY seq").fetchall()
    assert [job for (job,) in changes if job not in (kept, old_too + 1)] == [old_too]  # the newest one was kept
    assert told(store, 1, 1)[0].job == kept


def test_half_a_pruned_job_is_not_shown(store: Storehouse) -> None:
    """Its row goes first."""
    store.submit([1])
    finish(store, 1)
    statements.prune(store.cur, 100, 50, 1 << 40, 1)
    assert store.cur.execute("SELECT count(*) FROM events").fetchone() != (0,)
    assert told(store) == []


def test_a_number_that_was_never_given_is_refused(store: Storehouse) -> None:
    """Whoever has it was told of it by another store."""
    store.submit([1])
    assert told(store, 1) == []
    with pytest.raises(NoSuchEvent, match="Event 2 is not known here, the newest is 1"):
        told(store, 2)


def test_a_restored_store_gives_no_number_again(tmp_path: Path) -> None:
    """What happened after the backup is gone; what happens now comes after it all the same."""
    store = sqlite.Store(str(tmp_path))
    store.open()
    connection = store.connect()
    statements.sync_players(connection.cursor(), ["web-1"], 0)
    connection.close()
    back_up(store.connect, str(tmp_path / "copy"), lambda: False)
    store.close()
    restore(str(tmp_path / "copy"), str(tmp_path), 0)
    store.open()
    connection = store.connect()
    assert statements.last_event(connection.cursor()) == history.LEAP
    connection.close()
    store.close()


def test_the_reading_of_all_events_scans_nothing(store: Storehouse) -> None:
    """It walks from its number on, and asks for each job by its key."""
    plan = store.cur.execute(f"EXPLAIN QUERY PLAN {history._CHANGES}", (1,)).fetchall()
    assert [row[3] for row in plan] == [
        "SEARCH c USING INTEGER PRIMARY KEY (rowid>?)",
        "SEARCH j USING INTEGER PRIMARY KEY (rowid=?)",
    ]


# ---- real daemons


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


def test_all_jobs_are_followed_over_the_death_of_the_conductor(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command, tmp_path: Path
) -> None:
    """Pushed as it happens; every event once and in order, and the same as the history has afterwards."""
    said = tmp_path / "events"
    before = orchestra.last_event()
    program = str(Path(sys.executable).with_name("orchestra"))
    line = [program, "events", "--follow", "--json", f"--since={before}", f"--socket={theatre.socket}"]
    with open(said, "w") as out, subprocess.Popen(line, stdout=out) as follower:
        try:
            ask = Ask(score="uptime", targets=("a", "b"), scope=Scope.ALL)
            first = orchestra.submit(ask).job
            orchestra.wait(first, timeout=60)
            wait_until(lambda: any(each["kind"] == "ended" for each in lines(said)), "the first end", said)
            theatre.kill("conductor")
            theatre.start_conductor()
            second = orchestra.submit(ask).job
            orchestra.wait(second, timeout=60)
            wait_until(lambda: sum(each["kind"] == "ended" for each in lines(said)) == 2, "the second end", said)
        finally:
            follower.terminate()
    heard = lines(said)
    assert [each["seq"] for each in heard] == list(range(before + 1, before + 1 + len(heard)))
    assert [each for each in heard if each["job"] == second] == events_of(orchestra, second)
    again = command("orchestra", "events", "--json", "--since", before)
    assert [json.loads(each) for each in again.stdout.splitlines()] == heard
    one = command("orchestra", "events", second, "--follow", "--json", "--since", "1")
    assert [json.loads(each) for each in one.stdout.splitlines()] == events_of(orchestra, second)[1:]
    assert {each["job"] for each in heard} == {first, second}


def events_of(orchestra: OutsideOrchestra, job: int) -> list[dict[str, Any]]:
    return [{name: getattr(event, name) for name in event.__struct_fields__} for event in orchestra.events(job)]
