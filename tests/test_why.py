"""``orchestra explain`` on real daemons: what keeps a task from starting, all of it, and what would end that."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command, until_logged
from outside import OutsideOrchestra

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.model import Braking

GATED = '#!/bin/sh\nread line < "{go}"\n'


def prepare(theatre: Theatre) -> None:
    """Scores that last until they are let go, b with one slot and a score less."""
    for name, conf in (
        ("gate", ""),
        ("wide", "concurrency = 9\n"),
        ("first", "lock = db\n"),
        ("second", "lock = db\n"),
    ):
        theatre.add_score(name, GATED.format(go=theatre.home / "go"), f"timeout = 60s\n{conf}")
    os.mkfifo(theatre.home / "go")
    other = theatre.home / "other"
    other.mkdir(mode=0o755)
    for name in ("wide", "wide.conf"):
        (other / name).write_text((theatre.scores / name).read_text())
        (other / name).chmod((theatre.scores / name).stat().st_mode)
    theatre.write_player("b.demo.test", theatre.home / "tls", slots=1, scores=other)


@pytest.fixture
def let_go(theatre: Theatre, orchestra: OutsideOrchestra) -> Iterator[None]:
    """Whatever is asked for here ends with the test."""
    yield
    orchestra.release(None)
    for job in orchestra.jobs(unfinished=True):
        orchestra.cancel(job.job)
    wait_until(lambda: not list(orchestra.jobs(unfinished=True)), "the end of all jobs", Path())


def asked(orchestra: OutsideOrchestra, score: str, *hosts: str, scope: Scope = Scope.ALL, **more: object) -> int:
    job: int = orchestra.submit(Ask(score=score, targets=hosts, scope=scope, **more)).job
    return job


def kept(orchestra: OutsideOrchestra, job: int) -> dict[str, list[str]]:
    """The kinds of what keeps a job, by host."""
    return {row.player: [one.kind for one in row.blockers] for row in orchestra.explain(job)}


def until_running(theatre: Theatre, orchestra: OutsideOrchestra, job: int, many: int = 1) -> None:
    def running() -> bool:
        return sum(task.started_at is not None for task in orchestra.tasks(job)) == many

    wait_until(running, "the run", theatre.home / "log" / "conductor.log")


@pytest.mark.usefixtures("let_go")
def test_who_is_away_and_who_is_held_is_said_together(orchestra: OutsideOrchestra, command: Command) -> None:
    """Every hold, and that the host was never seen; hosts that wait alike are one line."""
    orchestra.hold(Braking(scores=("gate",)), "bad release")
    orchestra.hold(Braking(hosts=("a",)), "disk swap")
    job = asked(orchestra, "gate", "a", "c")
    assert kept(orchestra, job) == {"a.demo.test": ["held", "held"], "c.demo.test": ["held", "offline"]}
    said = command("orchestra", "explain", job).stdout
    assert said.startswith(f"job {job}: gate, 2 tasks not started (2 pending), expires ")
    for line in (
        "    the score is held by ",
        "bad release, since ",
        "        until 'orchestra release --score gate'",
        "    the host is held by ",
        "        until 'orchestra release --host'",
        "    never seen yet\n        until it connects",
    ):
        assert line in said
    assert command("orchestra", "explain", job, "a").stdout.count("demo.test") == 1
    status = command("getstatus", job).stdout
    assert "a.demo.test: waits: a.demo.test is held since " in status


@pytest.mark.usefixtures("let_go")
def test_runs_of_the_same_score_are_named(orchestra: OutsideOrchestra, theatre: Theatre, command: Command) -> None:
    """What was handed over waits behind them on the player; what was not, at the conductor."""
    first, second, third = (asked(orchestra, "gate", "a") for _ in range(3))
    until_running(theatre, orchestra, first)
    [there] = orchestra.explain(second)
    [here] = orchestra.explain(third)
    assert (there.state, [one.kind for one in there.blockers]) == ("dispatched", ["concurrency"])
    assert (here.state, [one.kind for one in here.blockers]) == ("pending", ["concurrency"])
    assert [run.job for run in here.blockers[0].runs] == [first, second]
    assert here.blockers[0].runs[0].started_at is not None
    assert f"job {first}, gate: 1 run, 1 of them known to be running" in command("orchestra", "explain", third).stdout
    assert "nothing waits here; what has no outcome runs" in command("orchestra", "explain", first).stderr


@pytest.mark.usefixtures("let_go")
def test_slots_that_are_full_name_what_fills_them(orchestra: OutsideOrchestra, theatre: Theatre) -> None:
    jobs = [asked(orchestra, "wide", "b") for _ in range(3)]
    until_running(theatre, orchestra, jobs[0])
    assert [kept(orchestra, job) for job in jobs[1:]] == [{"b.demo.test": ["slots"]}, {"b.demo.test": ["slots"]}]
    [row] = orchestra.explain(jobs[2])
    assert [run.job for run in row.blockers[0].runs] == jobs[:2]
    assert row.blockers[0].since is not None


@pytest.mark.usefixtures("let_go")
def test_a_lock_names_its_holder(orchestra: OutsideOrchestra, theatre: Theatre) -> None:
    first, second = asked(orchestra, "first", "a"), asked(orchestra, "second", "a")
    until_running(theatre, orchestra, first)
    [row] = orchestra.explain(second)
    assert [(one.kind, one.what, [run.job for run in one.runs]) for one in row.blockers] == [
        ("lock", "the lock 'db' is taken", [first])
    ]


@pytest.mark.usefixtures("let_go")
def test_a_host_without_the_score_and_one_with_another_version_are_told(
    orchestra: OutsideOrchestra, theatre: Theatre
) -> None:
    """Before it is refused there."""
    orchestra.hold(Braking(), "later")
    lacking = asked(orchestra, "gate", "a", "b")
    pinned = asked(orchestra, "wide", "a", "b", pin=True)
    file = theatre.home / "other" / "wide"
    text = file.read_text()
    file.write_text(f"{text}# another\n")
    until_logged(theatre, "b", "score 'wide' changed")
    wait_until(lambda: "drift" in kept(orchestra, pinned)["b.demo.test"], "the conductor", theatre.home)
    assert kept(orchestra, lacking) == {"a.demo.test": ["held"], "b.demo.test": ["held", "no score"]}
    assert kept(orchestra, pinned) == {"a.demo.test": ["held"], "b.demo.test": ["held", "drift"]}
    file.write_text(text)


@pytest.mark.usefixtures("let_go")
def test_of_one_of_work_every_candidate_is_told(orchestra: OutsideOrchestra, command: Command) -> None:
    orchestra.hold(Braking(hosts=("a",)), "disk swap")
    job = asked(orchestra, "gate", "a", "c", scope=Scope.ONE)
    assert kept(orchestra, job) == {"a.demo.test": ["held"], "c.demo.test": ["offline"]}
    found = json.loads(command("orchestra", "explain", job, "--json").stdout)
    assert [(row["task"], row["nth"], row["choice"]) for row in found["waiting"]] == [(0, 0, True), (0, 1, True)]


@pytest.mark.usefixtures("let_go")
def test_a_wave_a_pause_and_a_time_to_begin_are_told(orchestra: OutsideOrchestra, command: Command) -> None:
    """With what ends each; and what keeps the host is told beside it."""
    rolled = command("submitjob", "gate", "a", "c", "--all", "--batch", "1").stdout.strip()
    found = kept(orchestra, int(rolled))
    assert found["c.demo.test"] == ["wave", "offline"]
    command("orchestra", "pause", rolled)
    assert kept(orchestra, int(rolled))["c.demo.test"] == ["paused", "wave", "offline"]
    later = command("submitjob", "gate", "a", "--not-before", "1h").stdout.strip()
    assert kept(orchestra, int(later)) == {"a.demo.test": ["not before"]}
    assert f"until 'orchestra resume {rolled}'" in command("orchestra", "explain", rolled, "c").stdout


def test_a_job_that_has_ended_waits_for_nothing(orchestra: OutsideOrchestra, command: Command) -> None:
    job = asked(orchestra, "uptime", "a")
    orchestra.wait(job, timeout=60)
    said = command("orchestra", "explain", job)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", f"job {job} has ended: ok (1 ok)\n")
    assert command("orchestra", "explain", 10**6).returncode == 64
