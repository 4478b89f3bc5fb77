"""Two players with different disks: what the catalogue shows, what a pin refuses, and what runs, with real daemons."""

import json
import shutil
from typing import Any

import pytest
from conftest import Command, Perform, until_logged
from outside import OutsideOrchestra

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import NotPinned

SAME = '#!/bin/sh\necho "ran=$0"\n'


def prepare(theatre: Theatre) -> None:
    """b has scores of its own: ``deploy`` is another there, ``local`` is missing, ``closed`` is not fit to be run."""
    for name in ("deploy", "local", "closed", "same"):
        theatre.add_score(name, SAME, f"description = Does {name}\ninterface = pipe\ntimeout = 30s\n")
    other = theatre.home / "other"
    shutil.copytree(theatre.scores, other)
    (other / "deploy").write_text('#!/bin/sh\necho "ran=other"\n')
    (other / "local").unlink()
    (other / "local.conf").unlink()
    (other / "closed").chmod(0o775)
    theatre.write_player("b.demo.test", theatre.home / "tls", scores=other)


def digests(orchestra: OutsideOrchestra, name: str) -> dict[str, str]:
    """Who has which form of a score."""
    disks = orchestra.disks()
    [score] = orchestra.scores((), name)
    return {host: form.entry.digest for form in score.forms for disk in form.disks for host in disks.get(disk, ())}


def test_the_catalogue_shows_who_differs_who_lacks_and_who_refuses(command: Command) -> None:
    """With the reason; what all have alike is not in it, and who was never seen is said apart."""
    said = command("orchestra", "scores", "--drift")
    assert said.returncode == 0, said.stderr
    names = [line for line in said.stdout.splitlines() if not line.startswith(" ")]
    assert names == ["closed", "deploy", "local"]
    assert "refused by b.demo.test (1 player): " in said.stdout
    assert "writable by group" in said.stdout
    assert "lacking on b.demo.test (1 player)" in said.stdout
    assert said.stdout.count(" on a.demo.test (1 player)") == 3
    assert "of 1 player nothing is known yet: c.demo.test" in said.stderr
    assert "uptime" in command("orchestra", "scores").stdout


def test_the_catalogue_of_some_hosts_is_theirs(command: Command) -> None:
    said = command("orchestra", "scores", "--drift", "a")
    assert (said.stdout, said.stderr) == ("", "every score is the same everywhere\n")
    assert command("orchestra", "scores", "b", "--json").stdout.count('"name":"local"') == 0
    assert command("orchestra", "scores", "nosuch").returncode == 64


def test_programs_get_all_of_it(command: Command) -> None:
    """Which catalogues have which form, and whose those are."""
    found = json.loads(command("orchestra", "scores", "--drift", "--json").stdout)
    assert [score["name"] for score in found["scores"]] == ["closed", "deploy", "local"]
    deploy = found["scores"][1]
    hosts = [[host for disk in form["disks"] for host in found["disks"][disk]] for form in deploy["forms"]]
    assert sorted(hosts) == [["a.demo.test"], ["b.demo.test"]]
    assert deploy["forms"][0]["description"] == "Does deploy"
    assert found["disks"][""] == ["c.demo.test"]


def test_help_on_a_score_says_where_it_is(command: Command) -> None:
    said = command("orchestra", "score", "same").stdout
    assert said.startswith("same: Does same\n")
    assert (
        "on [a-b].demo.test (2 players), the same everywhere" in said or "a.demo.test,b.demo.test (2 players)" in said
    )
    assert "submitjob same a.demo.test --wait" in said
    assert "not the same everywhere" in command("orchestra", "score", "show", "deploy").stdout
    assert json.loads(command("orchestra", "score", "--json", "deploy").stdout)["score"]["drifts"] is True


def test_a_pin_on_targets_that_differ_is_refused_and_says_who_has_what(
    orchestra: OutsideOrchestra, command: Command
) -> None:
    """Nothing is queued; without the pin it is a warning."""
    before = orchestra.about()
    said = command("submitjob", "deploy", "a", "b", "--all", "--pin")
    assert said.returncode == 64
    found = digests(orchestra, "deploy")
    for host in ("a.demo.test", "b.demo.test"):
        assert f"{found[host][:12]} on {host}" in said.stderr
    assert orchestra.about().pending == before.pending
    for lacking in ("local", "closed"):
        assert "no such score on b.demo.test" in command("submitjob", lacking, "a", "b", "--all", "--pin").stderr
    assert "nothing known yet on c.demo.test" in command("submitjob", "same", "a", "c", "--all", "--pin").stderr
    loose = command("submitjob", "deploy", "a", "b", "--all", "--wait")
    assert (loose.returncode, "warning: 'deploy' is not the same on all targets: " in loose.stderr) == (0, True)


def test_a_pinned_job_runs_what_it_was_pinned_to(orchestra: OutsideOrchestra, theatre: Theatre) -> None:
    """From the stage's own copy, on each of them; the job and its tasks say which."""
    receipt = orchestra.submit(Ask(score="same", targets=("a", "b"), scope=Scope.ALL, pin=True))
    job = orchestra.wait(receipt.job, timeout=60)
    found = digests(orchestra, "same")
    assert (job.verdict, job.digest) == ("ok", found["a.demo.test"])
    for task in orchestra.tasks(receipt.job):
        assert task.digest == job.digest
        assert f"/stage/pins/{job.digest}.same/same" in task.response["ran"]


def test_a_host_on_which_it_was_changed_refuses(orchestra: OutsideOrchestra, theatre: Theatre) -> None:
    """The job was accepted when all had the same; a held one may wait for long."""
    from orchestra.model import Braking

    for name in ("a", "b"):
        assert digests(orchestra, "same")[f"{name}.demo.test"]
    pinned = digests(orchestra, "same")["b.demo.test"]
    orchestra.hold(Braking(hosts=("b",)), "disk swap")
    job = orchestra.submit(Ask(score="same", targets=("b",), scope=Scope.ALL, pin=True)).job
    other = theatre.home / "other" / "same"
    text = other.read_text()
    other.write_text("#!/bin/sh\necho changed\n")
    orchestra.release(None)
    assert orchestra.wait(job, timeout=60).counts == {"refused": 1}
    [task] = orchestra.tasks(job)
    assert "is not the one that was asked for" in task.reason
    assert pinned[:12] in task.reason
    other.write_text(text)


def test_a_retried_request_is_its_job_whatever_has_happened_to_the_disks(
    orchestra: OutsideOrchestra, theatre: Theatre
) -> None:
    """The key stands for what was accepted then."""
    ask = Ask(score="uptime", targets=("a", "b"), scope=Scope.ALL, pin=True, request_key="pinned")
    first = orchestra.submit(ask)
    (theatre.home / "other" / "uptime").write_text("#!/bin/sh\necho changed\n")
    theatre_log = "score 'uptime' changed"
    until_logged(theatre, "b", theatre_log)
    wait_until(lambda: len(set(digests(orchestra, "uptime").values())) == 2, "the conductor", theatre.home)
    again = orchestra.submit(ask)
    assert (again.job, again.created) == (first.job, False)
    with pytest.raises(NotPinned):
        orchestra.submit(Ask(score="uptime", targets=("a", "b"), scope=Scope.ALL, pin=True, request_key="another"))


def test_one_of_is_pinned_too(perform: Perform, orchestra: OutsideOrchestra) -> None:
    """Wherever it goes, it is the same."""
    with pytest.raises(NotPinned):
        orchestra.submit(Ask(score="deploy", targets=("a", "b"), scope=Scope.ONE, pin=True))
    receipt: Any = orchestra.submit(Ask(score="fail", targets=("a", "b"), scope=Scope.ONE, pin=True))
    assert orchestra.wait(receipt.job, timeout=60).counts == {"failed": 1}
