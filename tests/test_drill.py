"""``orchestra drill`` as a user runs it: short ones that pass, and some that must not, because something is broken."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from orchestra.cli.theatre import Theatre, wait_until
from orchestra.drill.checker import PROMISES
from orchestra.drill.plan import KINDS

SOURCE = Path(__file__).parent.parent
PATIENCE = 240

pytestmark = pytest.mark.timeout(PATIENCE + 30)


class Drill:
    """A drill under way in ``place``, an own directory for temporary files."""

    def __init__(self, place: Path, *words: object, **environment: str) -> None:
        self.place = place
        command = [str(Path(sys.executable).with_name("orchestra")), "drill", *map(str, words)]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(place), **environment},
        )

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def ended(self) -> "subprocess.CompletedProcess[str]":
        """Its exit status and all that it has said."""
        out, err = self._process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess(self._process.args, self._process.returncode, out, err)

    @property
    def home(self) -> Path:
        """The one directory it makes."""
        wait_until(lambda: list(self.place.glob("orchestra-drill-*")), "the drill's directory", Path())
        return next(self.place.glob("orchestra-drill-*"))

    def until_it_has_run(self, many: int) -> Path:
        """Wait until the ledger has so many lines."""
        ledger = self.home / "ledger" / "drill"
        wait_until(lambda: ledger.exists() and len(ledger.read_text().splitlines()) >= many, "work", Path())
        return ledger


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("d")  # short: sockets have short names


@pytest.fixture
def drill(place: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run a drill to its end."""
    return lambda *words, **environment: Drill(place, *words, **environment).ended()


def left_in(place: Path) -> list[int]:
    """Processes that name this directory in their command lines, or have it as their directory for temporary files."""
    return Theatre(place, []).left_behind()


def violated(certificate: dict[str, Any]) -> set[str]:
    return {check["promise"].split(":")[0] for check in certificate["checks"] if check["violations"]}


@pytest.mark.parametrize("seed", [101, 202, 303])
def test_a_drill_keeps_every_promise_and_leaves_nothing(
    drill: Callable[..., "subprocess.CompletedProcess[str]"], place: Path, seed: int
) -> None:
    """Exit status 0, a certificate with something of everything, and an empty directory."""
    done = drill("--seconds", 8, "--seed", seed, "--json", "-")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    certificate = json.loads(done.stdout)
    assert violated(certificate) == set()
    assert (certificate["seed"], certificate["seconds"], certificate["players"]) == (seed, 8, 3)
    assert sum(certificate["faults"].values()) >= 3
    assert set(certificate["faults"]) <= set(KINDS)
    assert [check["promise"] for check in certificate["checks"]] == list(PROMISES)
    assert certificate["jobs"] >= 20
    assert certificate["tasks"] == sum(certificate["outcomes"].values()) >= certificate["starts"] * 0.8 > 0
    assert {one["role"] for one in certificate["end"]} >= {"conductor", "player a", "stage c"}
    assert list(place.iterdir()) == []
    assert left_in(place) == []


def test_the_certificate_is_for_people_too(
    drill: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path
) -> None:
    """Faults by kind, work, outcomes, each promise with its count, and the last line says it all."""
    done = drill(
        "--seconds",
        2,
        "--seed",
        5,
        "--players",
        1,
        "--only",
        "cut line",
        "--only",
        "kill player",
        "--json",
        tmp_path / "c",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "c").read_text())["seed"] == 5
    assert "drill with seed 5" in done.stdout
    assert "a conductor and 1 players" in done.stdout
    assert all(promise in done.stdout for promise in PROMISES)
    assert done.stdout.strip().splitlines()[-1].startswith("No violation in ")
    assert done.stderr == ""


def test_what_cannot_be_tried_here_is_left_out_and_named(
    drill: Callable[..., "subprocess.CompletedProcess[str]"], place: Path
) -> None:
    """Where no disk can be mounted, none is filled."""
    done = drill("--seconds", 1, "--seed", 5, "--players", 1, "--only", "full disk player", PATH=str(place))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Faults       0: none" in done.stdout
    assert "Left out     full disks: this user may not mount a disk here" in done.stdout


def test_where_nobody_may_be_held_no_disk_is_slow(
    drill: Callable[..., "subprocess.CompletedProcess[str]"], place: Path
) -> None:
    """As where there is not even a shell."""
    done = drill("--seconds", 1, "--seed", 5, "--players", 1, "--only", "slow disk player", PATH=str(place))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Faults       0: none" in done.stdout
    assert "Left out     slow disks: this user may not hold a thread here" in done.stdout


def test_full_disks_harm_nobody(drill: Callable[..., "subprocess.CompletedProcess[str]"], place: Path) -> None:
    """Conductor and players without a byte of room, again and again; no mount is left."""
    done = drill(
        "--seconds", 6, "--seed", 6, "--only", "full disk player", "--only", "full disk conductor", "--json", "-"
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    certificate = json.loads(done.stdout)
    assert bool(certificate["faults"]) != bool(certificate["left_out"])
    assert str(place) not in Path("/proc/mounts").read_text()
    assert list(place.iterdir()) == []


def test_a_certificate_that_cannot_be_written_is_said_before_the_drill(
    drill: Callable[..., "subprocess.CompletedProcess[str]"], place: Path
) -> None:
    """Not after an hour of it."""
    done = drill("--json", place / "nowhere" / "certificate")
    assert (done.returncode, done.stdout) == (78, "")
    assert done.stderr == f"orchestra: {place}/nowhere/certificate: No such file or directory\n"
    assert list(place.iterdir()) == []


def test_a_fault_that_does_not_exist_is_a_usage_error(drill: Callable[..., "subprocess.CompletedProcess[str]"]) -> None:
    """And the ones that do are named."""
    done = drill("--only", "earthquake")
    assert done.returncode == 64
    assert "there is no fault 'earthquake'; there are: kill conductor" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_drill_leaves_nothing(place: Path, number: int) -> None:
    """Daemons that are stopped go on and end, runs too; the directory is gone."""
    running = Drill(place, "--seconds", 60, "--seed", 1, "--only", "pause conductor", "--only", "pause player")
    running.until_it_has_run(20)
    running.signal(number)
    done = running.ended()
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert left_in(place) == []
    assert list(place.iterdir()) == []


def test_meddling_is_found(place: Path) -> None:
    """An outcome that is changed behind the conductor's back, a start too many, a daemon that dies though nobody was to
    kill it, a file that stays: exit status 1, all of it named, and the directory is left to be looked at."""
    running = Drill(place, "--seconds", 5, "--seed", 1, "--only", "full disk player", "--json", "-")
    ledger = running.until_it_has_run(30)
    with open(ledger, "a") as file:
        file.write(next(line for line in ledger.read_text().splitlines(True) if line.startswith("start ")))
    [store] = (running.home / "conductor" / "state").glob("*.sqlite")
    with closing(sqlite3.connect(store, timeout=20)) as connection, connection:
        changed = connection.execute(
            "UPDATE tasks SET state = 4 WHERE (job_id, n) = (SELECT job_id, n FROM tasks WHERE state = 3 LIMIT 1)"
        )
        assert changed.rowcount == 1
    os.kill(int((running.home / "run" / "b.pid").read_text()), signal.SIGKILL)
    (running.home / "tmp" / "forgotten").touch()
    done = running.ended()
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr
    assert violated(json.loads(done.stdout)) >= {
        "every task has exactly one outcome",
        "an attempt is started at most once",
        "daemons end when they are told to, and only then",
        "nothing is left behind",
    }
    assert f"The logs and stores are in {running.home}." in done.stderr
    for file in ("log/conductor.log", "conductor/state/store.sqlite", "a/state/journal.sqlite"):
        assert (running.home / file).is_file()  # also what was on a disk of memory
    assert str(place) not in Path("/proc/mounts").read_text()
    assert left_in(place) == []


PLANTED = {
    "what is not idempotent is done again": (
        "model.py",
        "again = task.idempotent and losses",
        "again = losses",
        "what is not idempotent is started at most once",
    ),
    "a run whose stage died is said to have never started": (
        "core/worklist.py",
        "self._done(_ended(entry, Told.LOST, reason))",
        "self._done(_ended(entry, Told.NEVER, reason))",
        "work goes on elsewhere only after proof",
    ),
    "every run that ends is ok": (
        "player/running.py",
        '"failed" if code else "ok"',
        '"ok" if code else "ok"',
        "ok is true",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(place: Path, tmp_path: Path, name: str) -> None:
    """The daemons are those of a copy of the house in which one line is wrong; the drill finds it out."""
    file, right, wrong, promise = PLANTED[name]
    for part in ("orchestra", "twisted"):
        shutil.copytree(SOURCE / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__", "dropin.cache"))
    planted = tmp_path / "orchestra" / file
    source = planted.read_text()
    assert source.count(right) == 1
    planted.write_text(source.replace(right, wrong))
    done = Drill(
        place, "--seconds", 6, "--seed", 3, "--only", "kill stage", "--json", "-", PYTHONPATH=str(tmp_path)
    ).ended()
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr
    assert promise in violated(json.loads(done.stdout))
    assert left_in(place) == []
