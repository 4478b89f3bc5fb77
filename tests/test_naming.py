"""Hosts named in every way there is, with real daemons."""

import json
import os
import signal
from pathlib import Path

import pytest
from conftest import Command, log_of, until_logged
from outside import OutsideOrchestra

from orchestra.cli.theatre import NotStarted, Theatre, wait_until
from orchestra.model import Ask, Scope

GROUPS = "ab: a b\neverybody: @ab,c\nrest: @all!@ab\n"


ROLES = {"a": "web", "b": "db"}


def prepare(theatre: Theatre) -> None:
    (theatre.home / "groups").write_text(GROUPS)
    for short, role in ROLES.items():
        facts = theatre.home / short / "facts.d"
        facts.mkdir(mode=0o755)
        (facts / "role.conf").write_text(f"role = {role}\n")
        (facts / "role.conf").chmod(0o644)


def ran_on(orchestra: OutsideOrchestra, job: int) -> list[str]:
    orchestra.wait(job, timeout=60)
    return sorted(str(task.player).partition(".")[0] for task in orchestra.tasks(job))


@pytest.mark.parametrize(
    ("words", "hosts"),
    [
        (("@ab", "--all"), ["a", "b"]),
        (("a,b", "--all"), ["a", "b"]),
        (("@everybody", "--exclude", "@rest", "--all"), ["a", "b"]),
        (("@all", "--limit", "2", "--all"), ["a", "b"]),
        (("@everybody", "--limit", "1"), ["a"]),
        (("@ab", "--some", "2"), ["a", "b"]),
        (("@ab", "--where", "role=db and cores>=1"), ["b"]),
        (("@ab", "--where", "not role in (mail, db)"), ["a"]),
        (("@ab", "--where", "role!=mail", "--limit", "1"), ["a"]),
    ],
)
def test_a_job_goes_to_whom_it_names(
    command: Command, orchestra: OutsideOrchestra, words: tuple[str, ...], hosts: list[str]
) -> None:
    done = command("submitjob", "uptime", *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert ran_on(orchestra, int(done.stdout)) == hosts


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("@ab",), "2 targets: say --all"),
        (("@ab", "--some", "3"), "3 of 2 targets cannot be had"),
        (("@ab", "--exclude", "@all", "--all"), "No target is left: all 2 of them are excluded"),
        (("@evrybody", "--all"), "There is no group '@evrybody'; did you mean @everybody?"),
        (("x[1-3]", "--all"), "Not in the players file: x1.demo.test"),
        (("a", "--exclude", "nobody"), "Not in the players file: nobody.demo.test"),
        (
            ("@all", "--where", "role=db"),
            "Nobody can know of 1 of 3 targets whether --where is true: role of c.demo.test",
        ),
        (("@ab", "--where", "rolle=db"), "no target has a fact 'rolle'; did you mean 'role'?"),
        (("@ab", "--where", "role=mail"), "--where is true of none of the 2: role is web (1), db (1)"),
        (("@ab", "--where", "role<3"), "role, which is 'web', of a.demo.test"),
        (("@ab", "--where", "role="), "--where cannot be understood: it ends where a value is expected"),
    ],
)
def test_what_cannot_be_meant_is_refused(command: Command, words: tuple[str, ...], says: str) -> None:
    done = command("submitjob", "uptime", *words)
    assert done.returncode == 64
    assert says in done.stderr


def test_what_is_known_of_a_machine_is_shown_and_told_anew(theatre: Theatre, command: Command) -> None:
    shown = command("orchestra", "players", "b").stdout
    assert "role     db" in shown
    assert "python " in shown
    file = theatre.home / "b" / "facts.d" / "role.conf"
    try:
        file.write_text("role = mail\nos = plan9\n")
        told = command("orchestra", "reload", "player", f"--config={theatre.home / 'b'}")
        assert told.stdout == "facts that are new, gone or other: role\n"
        wait_until(lambda: "role     mail" in command("orchestra", "players", "b").stdout, "new facts", Path())
        assert f"no fact: {file}, line 2: the fact 'os' is built in" in command("orchestra", "players", "b").stderr
    finally:
        file.write_text("role = db\n")
        command("orchestra", "reload", "player", f"--config={theatre.home / 'b'}")
        wait_until(lambda: "role     db" in command("orchestra", "players", "b").stdout, "the old facts", Path())


def test_a_group_can_be_held_and_released_and_looked_at(command: Command) -> None:
    held = command("orchestra", "hold", "--host", "@ab", "--reason", "a new kernel")
    assert [line.split()[0] for line in held.stdout.splitlines()] == ["a.demo.test", "b.demo.test"]
    waiting = command("submitjob", "uptime", "@ab", "--all", "--expire", "1h")
    assert "a.demo.test is held since" in waiting.stderr
    gone = command("orchestra", "cancel", "--host", "@ab", "--yes")
    assert gone.stdout == "2 cancelled\n"
    players = json.loads(command("orchestra", "players", "@ab", "--json").stdout)
    assert [(one["name"], bool(one["held"])) for one in players] == [("a.demo.test", True), ("b.demo.test", True)]
    assert command("orchestra", "release", "--host", "@ab").stdout.count("released") == 2


def test_a_reload_reads_the_groups_and_a_bad_file_leaves_the_old_ones(
    theatre: Theatre, command: Command, orchestra: OutsideOrchestra
) -> None:
    groups = theatre.home / "groups"
    try:
        groups.write_text("ab: a b\nab: c\n")
        refused = command("orchestra", "reload")
        assert (refused.returncode, refused.stdout) == (78, "")
        assert f"{groups}, line 2: the group 'ab' is already written on line 1" in refused.stderr
        assert len(orchestra.players(("@everybody",))) == 3
        groups.write_text(GROUPS + "only: b\n")
        since = len(log_of(theatre, "conductor"))
        os.kill(theatre.pid("conductor"), signal.SIGHUP)
        until_logged(theatre, "conductor", "groups read again, 4 of them", since=since)
        job = orchestra.submit(Ask(score="uptime", targets=("@only",), scope=Scope.ALL)).job
        assert ran_on(orchestra, job) == ["b"]
        assert command("orchestra", "reload").stdout == "nothing has changed\n"
    finally:
        groups.write_text(GROUPS)
        command("orchestra", "reload")


def test_the_same_request_is_the_same_job_when_its_group_has_changed(
    theatre: Theatre, command: Command, orchestra: OutsideOrchestra
) -> None:
    """A request key stands for what was asked for, not for who that was."""
    ask = Ask(score="uptime", targets=("@ab",), scope=Scope.ALL, request_key="again")
    job = orchestra.submit(ask).job
    try:
        (theatre.home / "groups").write_text("ab: b\n")
        assert command("orchestra", "reload").returncode == 0
        again = orchestra.submit(ask)
        assert (again.job, again.created) == (job, False)
        assert ran_on(orchestra, job) == ["a", "b"]
    finally:
        (theatre.home / "groups").write_text(GROUPS)
        command("orchestra", "reload")


def test_a_conductor_does_not_start_with_groups_that_cannot_be_used(tmp_path: Path) -> None:
    """It says which line, and ends as its supervisor knows not to try again."""
    other = Theatre(tmp_path, ["a"])
    other.build(None)
    (tmp_path / "groups").write_text("web: a\nweb: @web\n")
    with pytest.raises(NotStarted) as caught:
        other.start_conductor()
    assert f"{tmp_path}/groups, line 2: the group 'web' is already written on line 1" in caught.value.sentence
