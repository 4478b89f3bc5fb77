"""The guide's chapters on jobs are true: what they show is run, with real daemons, and the recipe makes one job."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import until_logged
from outside import OutsideOrchestra

from orchestra.cli.main import COMMANDS
from orchestra.cli.theatre import Theatre, scores_directory, wait_until

GUIDE = (Path(__file__).parents[1] / "docs" / "guide.rst").read_text()
BLOCK = re.compile(r"\.\. code-block:: (\w+)\n(?:   :class: (\w+)\n)?\n((?:   .*\n|\n)+)")


def blocks(language: str, kind: str = "") -> list[str]:
    """The blocks of a language and class, their indentation removed."""
    found = [text for one, two, text in BLOCK.findall(GUIDE) if (one, two) == (language, kind)]
    return [re.sub(r"^   ", "", text, flags=re.M).strip() for text in found]


@pytest.fixture(scope="module")
def guided(tmp_path_factory: pytest.TempPathFactory) -> Theatre:
    """A conductor and the three players that the guide speaks of."""
    built = Theatre(tmp_path_factory.mktemp("g"), ["web1", "web2", "web3"])
    built.build(scores_directory())
    try:
        built.start_conductor()
        for player in ("web1", "web2", "web3"):
            built.start_player(player)
        until_logged(built, "conductor", *(f"web{n}.demo.test is online" for n in (1, 2, 3)))
        yield built
    finally:
        built.close()
        wait_until(lambda: not built.left_behind(), "the end of every process", Path())


@pytest.fixture
def asker(guided: Theatre) -> OutsideOrchestra:
    with OutsideOrchestra(str(guided.socket)) as client:
        yield client


def shell(theatre: Theatre, text: str) -> str:
    """Run it as a user does; what it says."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ORCHESTRA_SOCKET": str(theatre.socket)}
    done = subprocess.run(
        ["sh", "-ec", text], capture_output=True, text=True, env=environment, timeout=60, check=False, cwd=theatre.home
    )
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def test_what_is_said_of_rolling_out_can_be_done(guided: Theatre, asker: OutsideOrchestra) -> None:
    """In the words of the guide."""
    waves, paused, again = blocks("sh", "rollout")
    said = shell(guided, waves)
    assert said.count("ok (3 ok)") == 2
    assert [job.course.waves.canary for job in asker.jobs()] == [1, 0]
    said = shell(guided, paused)
    assert "the job is paused since" in said
    assert "rolling: wave 1 of 3 (1 at a time, at most 0 failed, 1 h 00 min between waves)" in said
    shell(guided, again)
    rerun, failed, *_ = asker.jobs()
    assert (rerun.rerun_of, failed.counts, failed.reruns) == (failed.job, {"failed": 3}, (rerun.job,))


def test_what_is_said_of_events_can_be_seen(guided: Theatre, asker: OutsideOrchestra) -> None:
    """And every kind of event that is told of is one."""
    history, pruning = blocks("sh", "events")
    said = shell(guided, history)
    assert re.search(r"^6 .* ended .*ok$", said, flags=re.M)
    assert re.search(r'^\{"n":3,', said, flags=re.M)
    assert "nothing would go" in shell(guided, pruning)
    table = GUIDE[GUIDE.index("``submitted``, ``begun``") :].split("====")[0]
    told = set(re.findall(r"``(\w+)``", table))
    assert {event.kind for event in asker.all_events()} <= told


def timers() -> tuple[str, str]:
    """The command of the service, and that of the crontab, as systemd and cron hand them to a shell."""
    service = next(text for text in blocks("ini") if "ExecStart" in text)
    program, flag, command = shlex.split(service.partition("ExecStart=")[2].splitlines()[0].replace("%%", "%"))
    assert (program, flag) == ("/bin/sh", "-c")
    line = blocks("text")[0]
    return command, line.split(maxsplit=5)[5].replace("\\%", "%")


def test_a_timer_that_fires_twice_makes_one_job(guided: Theatre, asker: OutsideOrchestra) -> None:
    """Whoever it is: systemd, systemd again, cron. The key is of the day."""
    by_systemd, by_cron = timers()
    before = len(asker.jobs())
    first, again = shell(guided, by_systemd), shell(guided, by_systemd)
    job = int(first)
    assert again == f"{job}\njob {job} was made by this request key before; nothing new was asked for\n"
    shell(guided, by_cron)
    assert len(asker.jobs()) == before + 1
    assert re.fullmatch(r"nightly-check \d{4}-\d\d-\d\d", asker.job(job).request_key)
    shell(guided, by_cron.replace("+%F", "-d tomorrow +%F"))
    assert len(asker.jobs()) == before + 2


@pytest.mark.parametrize("command", ["submit", "rerun", "events", "pause", "resume", "prune"])
def test_help_names_every_option_that_the_guide_uses(command: str) -> None:
    """It is enough to use the command alone."""
    assert command in COMMANDS
    program = str(Path(sys.executable).with_name("orchestra"))
    said = subprocess.run([program, command, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    name = "submitjob" if command == "submit" else f"orchestra {command}"
    shown = "\n".join(text for kind in ("rollout", "events") for text in blocks("sh", kind))
    used = {option for line in shown.splitlines() if name in line for option in re.findall(r"(--[a-z-]+)", line)}
    assert {option for option in used if option not in said and option not in ("--limit", "--json")} == set()
