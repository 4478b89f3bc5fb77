"""Players that leave the players file: how many may at once, who decides, and what becomes of their work."""

import os
import signal
from collections.abc import Callable

import pytest
from conftest import Command, log_of, until_logged
from outside import OutsideOrchestra
from storehouse import Storehouse, greet, report

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import NotAPlayer, TooManyRemoved
from orchestra.model import Told
from orchestra.settings import share
from orchestra.store import statements
from orchestra.store.values import Removals

GRACE = 5


def allowed(most: str = "10%", accepted: int = 0) -> Removals:
    return Removals("players", share(most).of, accepted)


def prepare(theatre: Theatre) -> None:
    theatre.add_score("long", f"#!/bin/sh\ntouch {theatre.home}/long\nexec sleep 90\n", "timeout = 2m\n")


# ---- how many


@pytest.mark.parametrize(
    "players, removed, most, accepted, lets",
    [
        (30, 3, "10%", 0, True),
        (30, 4, "10%", 0, False),
        (5, 1, "10%", 0, True),  # at least one
        (5, 2, "10%", 0, False),
        (5, 2, "2", 0, True),
        (5, 3, "2", 0, False),
        (1, 1, "10%", 0, False),  # none would be left
        (5, 5, "100%", 0, False),
        (5, 4, "100%", 0, True),
        (5, 4, "10%", 4, True),
        (5, 4, "10%", 3, False),
        (5, 5, "10%", 5, True),
        (5, 0, "10%", 0, True),
    ],
)
def test_so_many_may_go_at_once(players: int, removed: int, most: str, accepted: int, lets: bool) -> None:
    """More is refused, and then nothing is changed: nobody is removed, and nobody added."""
    store = Storehouse(players)
    names = store.names[removed:] + (["new"] if removed < players else [])
    before = statements.roster(store.cur)
    if lets:
        assert len(statements.sync_players(store.cur, names, 1, allowed(most, accepted)).removed) == removed
    else:
        with pytest.raises(TooManyRemoved, match=f"would remove {removed} of {players} players .web-"):
            statements.sync_players(store.cur, names, 1, allowed(most, accepted))
        assert statements.roster(store.cur) == before


def test_the_refusal_counts_and_names_some() -> None:
    """And says what to do, whichever rule it was."""
    store = Storehouse(30)

    def refusal(names: list[str], accepted: int = 0) -> str:
        with pytest.raises(TooManyRemoved) as refused:
            statements.sync_players(store.cur, names, 1, allowed(accepted=accepted))
        return refused.value.sentence

    some = refusal(store.names[:23])
    assert "7 of 30 players (web-24, web-25, web-26, web-27, web-28, and 2 more)" in some
    assert "'removal_limit' lets 3 go at once" in some and "--accept-removals 7" in some
    assert "would leave none" in refusal([])
    assert "6 were accepted" in refusal(store.names[:23], 6)


# ---- what becomes of their work


@pytest.fixture
def store() -> Storehouse:
    return Storehouse()


def remove(store: Storehouse, *names: str, now: int = 100) -> None:
    statements.sync_players(store.cur, [name for name in store.names if name not in names], now)


def sweep(store: Storehouse, now: int = 100 + GRACE) -> int:
    return statements.sweep_removed(store.cur, now, GRACE).count


def test_removal_is_a_condition_and_not_a_moment(store: Storehouse) -> None:
    """What comes to wait for removed players alone long after their removal ends as well: here, because the one that
    is left has refused."""
    made = store.submit([1, 2, 3], Scope.ONE)
    [run] = store.claim(1)
    remove(store, "web-2", "web-3")
    assert sweep(store) == 0
    assert store.state(made) == "dispatched"
    store.settle(1, report(run, Told.REFUSED, reason="no"), now=10_000)
    assert store.state(made) == "pending"
    assert sweep(store, 10_000) == 1
    assert store.state(made) == "cancelled"


def test_what_may_have_run_is_lost_and_not_cancelled(store: Storehouse) -> None:
    """Its first attempt was lost, the second waited when its player was removed."""
    made = store.submit([1], idempotent=True)
    [run] = store.claim(1)
    store.settle(1, report(run, Told.LOST))
    assert store.state(made) == "pending"
    remove(store, "web-1")
    sweep(store)
    assert store.state(made) == "lost"


def test_what_a_removed_player_was_running_is_lost_at_the_end_of_the_grace(store: Storehouse) -> None:
    """Not before; and another player's share of the job goes on."""
    made = store.submit([1, 2])
    store.claim(1)
    remove(store, "web-1")
    assert sweep(store, 100 + GRACE - 1) == 0
    assert store.states(made) == ["dispatched", "pending"]
    assert sweep(store) == 1
    assert store.states(made) == ["lost", "pending"]


def test_nothing_new_goes_to_a_removed_player(store: Storehouse) -> None:
    """During the grace neither: it may not even come in."""
    store.submit([1])
    remove(store, "web-1")
    assert store.claim(1) == ()
    with pytest.raises(NotAPlayer):
        greet(store.cur, 1)


def test_back_within_the_grace_nothing_has_happened(store: Storehouse) -> None:
    """Its run is open at its Hello, and its report counts."""
    made = store.submit([1])
    [run] = store.claim(1)
    remove(store, "web-1")
    sweep(store, 100 + GRACE - 1)
    statements.sync_players(store.cur, store.names, 104)
    sweep(store, 10_000)
    store.epochs[1] = greet(store.cur, 1, high=1).epoch
    assert store.settle(1, report(run, Told.OK)).late == 0
    assert store.state(made) == "ok"


def test_back_after_the_grace_its_report_is_an_event(store: Storehouse) -> None:
    """The outcome stays, the history has both."""
    made = store.submit([1])
    [run] = store.claim(1)
    remove(store, "web-1")
    sweep(store)
    statements.sync_players(store.cur, store.names, 200)
    greeting = greet(store.cur, 1, high=1)
    store.epochs[1] = greeting.epoch
    assert greeting.open == ()
    assert store.settle(1, report(run, Told.OK)).late == 1
    assert store.state(made) == "lost"
    assert store.kinds(made)[-1] == "late"


def test_those_that_were_removed_long_ago_cost_nothing(store: Storehouse) -> None:
    """A sweep asks for those with something left to end, in one statement."""
    asked: list[str] = []
    remove(store, "web-1", "web-2", "web-3")
    store.connection.set_trace_callback(asked.append)
    sweep(store)
    store.connection.set_trace_callback(None)
    assert len([each for each in asked if each.startswith("SELECT")]) == 1


# ---- real daemons


@pytest.fixture
def listed(theatre: Theatre, orchestra: OutsideOrchestra) -> Callable[[str], None]:
    """Writes the players file; at the end of the test all three are back."""

    def write(text: str) -> None:
        (theatre.home / "players").write_text("".join(f"{name}.demo.test\n" for name in text))

    yield write  # type: ignore[misc]
    write("abc")
    orchestra.reload()


def statuses(orchestra: OutsideOrchestra) -> dict[str, str]:
    return {player.name[0]: player.status for player in orchestra.players()}


def test_a_reload_that_would_remove_too_many_leaves_the_old_list(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command, listed: Callable[[str], None]
) -> None:
    """By command, and by SIGHUP; conductor.conf's limit is read again with it."""
    listed("c")
    refused = command("orchestra", "reload")
    assert refused.returncode == 78
    assert "would remove 2 of 3 players (a.demo.test, b.demo.test)" in refused.stderr
    assert "trouble:" in command("orchestra", "about").stdout
    since = len(log_of(theatre, "conductor"))
    os.kill(theatre.pid("conductor"), signal.SIGHUP)
    until_logged(theatre, "conductor", "reload refused:", "would remove 2 of 3", since=since)
    assert statuses(orchestra)["a"] == statuses(orchestra)["b"] == "online"
    conf = theatre.home / "conductor.conf"
    before = conf.read_text()
    conf.write_text(f"{before}removal_limit = 2\n")
    done = command("orchestra", "reload")
    conf.write_text(before)
    assert (done.returncode, "player a.demo.test removed" in done.stdout) == (0, True), done
    assert statuses(orchestra)["a"] == "removed"
    assert orchestra.about().troubles == ()


def test_an_operator_may_accept_exactly_so_many(
    orchestra: OutsideOrchestra, command: Command, listed: Callable[[str], None]
) -> None:
    """One fewer is refused; all of them may go, if that is what was said."""
    listed("")
    assert "would leave none" in command("orchestra", "reload").stderr
    assert "2 were accepted" in command("orchestra", "reload", "--accept-removals", 2).stderr
    done = command("orchestra", "reload", "--accept-removals", 3)
    assert done.returncode == 0, done
    assert set(statuses(orchestra).values()) == {"removed"}
    assert command("orchestra", "reload", "player", "--accept-removals", 3).returncode == 64


def test_what_a_removed_player_had_ends_by_itself(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command, listed: Callable[[str], None]
) -> None:
    """After the grace, at the next look: what waited is cancelled, what ran is lost. Nobody has to do anything."""
    theatre.stop("a")  # another test may have removed it, and then it does not come back for a minute
    theatre.start_player("a")
    running = orchestra.submit(Ask(score="long", targets=("a",), scope=Scope.ALL)).job
    waiting = orchestra.submit(Ask(score="uptime", targets=("c",), scope=Scope.ALL)).job
    wait_until((theatre.home / "long").exists, "the start", theatre.home / "log" / "a.log")
    conf = theatre.home / "conductor.conf"
    before = conf.read_text()
    conf.write_text(f"{before}removal_grace = 1s\nremoval_limit = 2\n")
    listed("b")
    done = command("orchestra", "reload")
    conf.write_text(before)
    assert done.returncode == 0, done
    assert orchestra.wait(waiting, timeout=60).counts == {"cancelled": 1}
    assert orchestra.wait(running, timeout=60).counts == {"lost": 1}
    assert "removed" in next(iter(orchestra.tasks(running))).reason


def test_a_start_with_a_shrunken_file_removes_nobody(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command, listed: Callable[[str], None]
) -> None:
    """The players are those of before, they are let in, and every start says so until somebody has decided."""
    theatre.stop("a")
    theatre.stop("conductor")
    listed("")
    since = len(log_of(theatre, "conductor"))
    theatre.start_conductor()
    theatre.start_player("a")
    until_logged(
        theatre, "conductor", "Until then the players are those of before", "a.demo.test is online", since=since
    )
    assert "trouble:" in command("orchestra", "about").stdout
    job = orchestra.submit(Ask(score="uptime", targets=("a",), scope=Scope.ALL)).job
    assert orchestra.wait(job, timeout=60).verdict == "ok"
