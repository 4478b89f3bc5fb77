"""A process is not its number: who got the number of one that is gone is left in peace, and a machine that was started
again is another one."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import log_of, until_logged
from disks import needs_mount
from outside import OutsideOrchestra
from stagehand import PATIENCE, Player, Theatre, alive, end, stranger

from orchestra.audience.client import Ask, Scope
from orchestra.cli import theatre as theatres
from orchestra.cli.theatre import wait_until
from orchestra.core.worklist import REBOOTED_RUNNING
from orchestra.player.sweep import Leader, boot_id, cgroup_of, now, scan, start_of, strike


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Theatre]:
    made = Theatre(tmp_path)
    made.start()
    yield made
    made.close()


@pytest.fixture
def player(stage: Theatre) -> Iterator[Player]:
    made = Player(stage)
    yield made
    made.close()


@pytest.fixture
def innocent() -> Iterator["subprocess.Popen[bytes]"]:
    """Somebody else's process, in a group of its own."""
    with subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as made:
        yield made
        made.kill()


def marked(mark: str) -> list[int]:
    return [one.pid for one in scan() if one.mark == mark]


# ---- numbers that are given away again


@pytest.mark.parametrize("upgraded", [False, True], ids=["", "upgraded"])
def test_who_got_the_number_of_a_run_that_is_being_killed_is_left_alone(
    stage: Theatre, player: Player, tmp_path: Path, upgraded: bool
) -> None:
    """Its first process has gone, another one of it ignores SIGTERM; the number is a stranger's as SIGKILL is due."""
    os.mkfifo(tmp_path / "up")
    deaf = f"trap '' TERM; echo > {tmp_path}/up; while :; do sleep 0.1; done"
    stage.score("brood", f'setsid sh -c "{deaf}" & exec sleep 600', "kill_grace = 4s\n")
    player.perform(1, "brood")
    pid = player.hear("started")[0]["pid"]
    (tmp_path / "up").read_text()
    player.say(type="kill", seq=1, reason="cancelled")
    with stranger(pid) as bystander:
        assert marked(f"{stage.journal}:1"), "too late: nothing is left of the run"
        if upgraded:
            player.say(type="upgrade")
            assert player.hear("upgraded")[0]["reason"] == ""
        outcome, _ = player.ended(1)
        assert outcome["told"] == "killed"
        assert not marked(f"{stage.journal}:1")
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.parametrize(
    ("older", "boot", "spared"), [(0, "", False), (1, "", True), (0, "another-boot", True)], ids=["it", "older", "boot"]
)
def test_who_has_the_number_that_a_dead_stage_recorded_is_left_alone(
    stage: Theatre, player: Player, innocent: "subprocess.Popen[bytes]", older: int, boot: str, spared: bool
) -> None:
    """If it was started at another time, or in another boot; else it is what the record is about, mark or not."""
    stage.score("long", "exec sleep 600")
    player.perform(1, "long")
    pid = player.hear("started")[0]["pid"]
    stage.stages[0].kill()
    stage.stages[0].wait(PATIENCE)
    started = start_of(innocent.pid) - older
    with stage.begun(1).open("r+b") as file:
        leader = Leader(innocent.pid, started - 1, started, boot or boot_id(), cgroup_of(innocent.pid))
        stage.files(1).write_leader(file.fileno(), leader)
    stage.start()
    assert not alive(pid)
    assert alive(innocent.pid) is spared
    assert Player(stage).standing["runs"] == {"1": {"state": "swept"}}


def test_who_is_started_starts_between_two_looks_at_the_clock() -> None:
    """So the stage need not ask when it was."""
    before = now()
    with subprocess.Popen(["/bin/sleep", "600"]) as child:
        assert before <= start_of(child.pid) <= now()
        child.kill()


def test_a_signal_reaches_only_who_was_seen(innocent: "subprocess.Popen[bytes]") -> None:
    """Not who has got the number since."""
    [seen] = [one for one in scan() if one.pid == innocent.pid]
    strike(seen._replace(start=seen.start - 1), signal.SIGTERM)
    strike(seen, signal.SIGKILL)
    assert innocent.wait(PATIENCE) == -signal.SIGKILL  # the first of the two that it got


# ---- a machine that is started again

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def prepare(theatre: theatres.Theatre) -> None:
    theatre.add_score("gated", f"#!/bin/sh\necho up >> {theatre.home}/ledger/l\nexec sleep 600\n", "timeout = 900s\n")


def starts(theatre: theatres.Theatre) -> int:
    ledger = theatre.home / "ledger" / "l"
    return ledger.read_text().count("up\n") if ledger.exists() else 0


@needs_mount
def test_a_reboot_in_mid_run_is_lost(theatre: theatres.Theatre, orchestra: OutsideOrchestra) -> None:
    """All that runs is gone at once, without a word, and so is what the machine calls this boot. The run that was
    under way is lost, started once, and nothing is looked for that could bear an old number."""
    running = orchestra.submit(Ask(score="gated", targets=("b",), scope=Scope.ALL)).job
    wait_until(lambda: starts(theatre) == 1, "the start", theatre.home / "log" / "b.log")
    queued = orchestra.submit(Ask(score="gated", targets=("b",), scope=Scope.ALL)).job
    wait_until(lambda: orchestra.job(queued).counts == {"dispatched": 1}, "the second run", Path())
    since = len(log_of(theatre, "conductor"))
    pull_the_plug(theatre, "b")
    boot(theatre, "b", "00000000-0000-4000-8000-000000000001")
    until_logged(theatre, "conductor", "b.demo.test is online", since=since)
    assert orchestra.wait(running, timeout=20).counts == {"lost": 1}
    [task] = list(orchestra.tasks(running))
    assert task.reason == REBOOTED_RUNNING
    wait_until(lambda: starts(theatre) == 2, "the start of what had waited", theatre.home / "log" / "b.log")
    assert orchestra.job(queued).counts == {"dispatched": 1}
    assert next(iter(orchestra.tasks(queued))).attempt == 2
    orchestra.cancel(queued)
    assert orchestra.wait(queued, timeout=20).counts == {"killed": 1}


def pull_the_plug(theatre: theatres.Theatre, player: str) -> None:
    [journal] = os.listdir(theatre.home / player / "state" / "stage" / "runs")
    theatre.kill(player)
    theatre.kill_stage(player)
    for one in scan():
        if one.mark.startswith(f"{journal}:"):
            end(one.pid)


def boot(theatre: theatres.Theatre, player: str, called: str) -> None:
    """Start the player as on a machine whose boot is ``called`` so; nobody else sees that."""
    name = theatre.home / "boot"
    name.write_text(f"{called}\n")
    mount = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        'mount --bind "$0" "$1" && shift && exec "$@"',
    ]
    twistd = str(Path(sys.executable).with_name("twistd"))
    where = [f"--pidfile={theatre.home}/run/{player}.pid", f"--logfile={theatre.home}/log/{player}.log"]
    command = [*mount, str(name), BOOT_ID, twistd, *where, "player", f"--config={theatre.home}/{player}"]
    subprocess.run(command, check=True, timeout=60, cwd=theatre.home)
