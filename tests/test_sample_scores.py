"""The sample scores, really run, each with an environment built from nothing."""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from orchestra.parameters import environment
from orchestra.player.repertoire import Repertoire
from orchestra.player.scorefile import load

SAMPLES = Path(__file__).parent.parent / "scores"
NAMES = ["checksum", "disk-free", "fail", "reboot-later", "sleep", "uptime"]
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
HOSTILE = [
    "$(touch pwned)",
    "`touch pwned`",
    "; touch pwned",
    "1; touch pwned",
    "' \" \\",
    "-n",
    "--help",
    "*",
    "1\n2",
    "%s%n",
]


def perform(
    name: str, params: Mapping[str, str] = {}, *, cwd: Path, path: str = PATH, **extra: str
) -> subprocess.CompletedProcess[bytes]:
    """The score, run as a player would: no shell, its parameters in ``ORC_*``, hardly anything else."""
    env = {"PATH": path, **environment(params), **extra}
    return subprocess.run(
        [SAMPLES / name], check=False, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )


def response(done: subprocess.CompletedProcess[bytes]) -> dict[str, str]:
    """What the pipe interface makes of stdout."""
    assert (done.returncode, done.stderr) == (0, b"")
    return dict(line.split("=", 1) for line in done.stdout.decode().splitlines())


def refusal(done: subprocess.CompletedProcess[bytes], status: int = 1) -> str:
    """The one line on stderr of a score that refused."""
    assert (done.returncode, done.stdout) == (status, b"")
    return done.stderr.decode().rstrip("\n")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The samples as a careful administrator installs them."""
    target = tmp_path / "installed"
    target.mkdir(mode=0o755)
    for source in SAMPLES.iterdir():
        shutil.copyfile(source, target / source.name)
        (target / source.name).chmod(0o644 if source.suffix == ".conf" else 0o755)
    return target


def tool(directory: Path, name: str, script: str) -> Path:
    """A directory to be searched alone, with one command in it."""
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)
    return directory


def test_every_sample_is_fit_and_described(installed: Path) -> None:
    repertoire = Repertoire(str(installed), {os.getuid()})
    assert repertoire.reload() == tuple(f"score '{name}' added" for name in NAMES)
    assert all(score.description for score in repertoire.catalogue.scores)
    pipes = {score.name for score in repertoire.catalogue.scores if score.interface == "pipe"}
    assert pipes == {"checksum", "disk-free"}


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_ready_to_run_from_a_checkout(name: str) -> None:
    """It has its x bit and its .conf, and asks for nothing but a POSIX shell."""
    assert os.access(SAMPLES / name, os.X_OK)
    assert (SAMPLES / f"{name}.conf").is_file()
    assert (SAMPLES / name).read_bytes().startswith(b"#!/bin/sh\n")


def test_a_reboot_is_never_retried(installed: Path) -> None:
    rules = load(str(installed), "reboot-later", {os.getuid()}).rules
    assert (rules.idempotent, rules.concurrency) == (False, 1)


def test_uptime_tells_time_and_load(tmp_path: Path) -> None:
    done = perform("uptime", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    told = re.fullmatch(rb"up (\d+) days (\d+) hours (\d+) minutes, load( \d+\.\d+){3}\n", done.stdout)
    assert told
    seconds = float(Path("/proc/uptime").read_text().split()[0])
    minutes = (int(told[1]) * 24 + int(told[2])) * 60 + int(told[3])
    assert 0 <= seconds / 60 - minutes < 2


def test_disk_free_answers_for_the_root(tmp_path: Path) -> None:
    answers = response(perform("disk-free", cwd=tmp_path))
    assert all(re.fullmatch(r"\d+% used, \d+(\.\d)? [MG]iB free", answer) for answer in answers.values())
    assert all(mount.startswith("/") for mount in answers)
    root = os.statvfs("/")
    used = root.f_blocks - root.f_bfree
    assert abs(int(answers["/"].split("%")[0]) - 100 * used / (used + root.f_bavail)) < 3


@pytest.mark.parametrize(
    ("kib", "free"), [(1023, "0 MiB"), (524_288, "512 MiB"), (1_572_864, "1.5 GiB"), (125_829_120, "120 GiB")]
)
def test_disk_free_rounds_for_people(tmp_path: Path, kib: int, free: str) -> None:
    """By what df says, even of a device whose name has blanks in it."""
    table = f"echo Filesystem; echo 'a disk 1 %  200 84 {kib} 42% /'"
    tools = tool(tmp_path / "bin", "df", table)
    answers = response(perform("disk-free", cwd=tmp_path, path=f"{tools}:{PATH}"))
    assert answers["/"] == f"42% used, {free} free"


def test_disk_free_fails_when_nothing_could_be_measured(tmp_path: Path) -> None:
    tools = tool(tmp_path / "bin", "df", "exit 1")
    done = perform("disk-free", cwd=tmp_path, path=f"{tools}:{PATH}")
    assert refusal(done) == "disk-free: df measured no filesystem"


@pytest.mark.parametrize("name", ["plain", "with blank", "-n", "a'b\"c\\d", "$(touch pwned)", "new\nline", "é"])
@pytest.mark.parametrize("content", [b"", b"hello\n", bytes(range(256)) * 300])
def test_checksum_is_right_whatever_the_file_is_called(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    answers = response(perform("checksum", {"path": str(tmp_path / name)}, cwd=tmp_path))
    assert answers == {"sha256": hashlib.sha256(content).hexdigest(), "size": str(len(content))}
    assert os.listdir(tmp_path) == [name]


def test_checksum_says_what_is_wrong(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    def said(**params: str) -> str:
        return refusal(perform("checksum", params, cwd=tmp_path))

    assert said() == "checksum: the parameter 'path' is missing: give it the absolute path of a file"
    assert said(path="") == said()
    assert said(path="etc/passwd") == "checksum: the parameter 'path' must be an absolute path, not 'etc/passwd'"
    assert (
        said(path="/absent")
        == "checksum: there is no '/absent' here, or it may not be seen by the user the score runs as"
    )
    assert said(path=str(tmp_path)) == f"checksum: '{tmp_path}' is not a regular file"
    assert said(path=f"{tmp_path}/fifo") == f"checksum: '{tmp_path}/fifo' is not a regular file"


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_checksum_says_when_it_may_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").touch(mode=0)
    done = perform("checksum", {"path": f"{tmp_path}/secret"}, cwd=tmp_path)
    assert refusal(done) == f"checksum: '{tmp_path}/secret' may not be read by the user the score runs as"


@pytest.fixture
def shutdown(tmp_path: Path) -> Path:
    """A directory with nothing but a ``shutdown`` that writes down how it was called: the only PATH used below, so
    that no mistake can reach the real one."""
    return tool(tmp_path / "bin", "shutdown", f'printf "%s\\n" "$*" >> "{tmp_path}/calls"')


def test_reboot_later_schedules_and_exits(tmp_path: Path, shutdown: Path) -> None:
    done = perform("reboot-later", cwd=tmp_path, path=str(shutdown))
    assert done.returncode == 0
    assert done.stdout == b"the host reboots in 1 min; 'shutdown -c' on the host calls it off\n"
    perform("reboot-later", {"minutes": "15"}, cwd=tmp_path, path=str(shutdown))
    assert (tmp_path / "calls").read_text() == "-r +1\n-r +15\n"


def test_reboot_later_rehearses(tmp_path: Path, shutdown: Path) -> None:
    """A dry run says what it would do and does not do it."""
    done = perform("reboot-later", {"minutes": "5"}, cwd=tmp_path, path=str(shutdown), ORCHESTRA_DRY_RUN="1")
    assert (done.returncode, done.stdout) == (0, b"would run: shutdown -r +5\n")
    assert not (tmp_path / "calls").exists()
    perform("reboot-later", cwd=tmp_path, path=str(shutdown), ORCHESTRA_DRY_RUN="0")
    assert (tmp_path / "calls").exists()


@pytest.mark.parametrize("dry", ["0", "1"])
def test_reboot_later_refuses_without_shutdown(tmp_path: Path, dry: str) -> None:
    (tmp_path / "empty").mkdir()
    done = perform("reboot-later", cwd=tmp_path, path=f"{tmp_path}/empty", ORCHESTRA_DRY_RUN=dry)
    assert refusal(done) == "reboot-later: there is no shutdown command here; nothing was scheduled"


def test_reboot_later_fails_when_shutdown_does(tmp_path: Path) -> None:
    tools = tool(tmp_path / "bin", "shutdown", "exit 1")
    done = perform("reboot-later", cwd=tmp_path, path=str(tools))
    assert refusal(done) == "reboot-later: shutdown refused; nothing was scheduled"


@pytest.mark.parametrize("minutes", ["", "0", "00", "01", "-1", "+1", "1.5", "now", "10000", *HOSTILE])
def test_reboot_later_takes_whole_minutes_only(tmp_path: Path, shutdown: Path, minutes: str) -> None:
    """Above all no 0: a score that reboots at once cannot report."""
    done = perform("reboot-later", {"minutes": minutes}, cwd=tmp_path, path=str(shutdown))
    assert "must be a whole number from 1 to 9999" in refusal(done)
    assert os.listdir(tmp_path) == ["bin"]


@pytest.mark.parametrize("seconds", ["0", "0.01", "000"])
def test_sleep_sleeps(tmp_path: Path, seconds: str) -> None:
    done = perform("sleep", {"seconds": seconds}, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_sleep_sleeps_a_second_unless_told(tmp_path: Path) -> None:
    """And becomes the command, so that a signal meets no shell in between."""
    tools = tool(tmp_path / "bin", "sleep", 'echo "$$ $*"')
    with subprocess.Popen([SAMPLES / "sleep"], env={"PATH": str(tools)}, stdout=subprocess.PIPE) as started:
        out, _ = started.communicate(timeout=60)
    assert out.decode() == f"{started.pid} 1\n"


@pytest.mark.parametrize("seconds", ["", ".", ".5", "5.", "1.2.3", "-1", "1e3", "5m", "inf", *HOSTILE])
def test_sleep_takes_numbers_only(tmp_path: Path, seconds: str) -> None:
    done = perform("sleep", {"seconds": seconds}, cwd=tmp_path)
    assert "must be a number such as 5 or 0.2" in refusal(done)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("status", ["1", "9", "64", "199", "255"])
def test_fail_fails_as_asked(tmp_path: Path, status: str) -> None:
    assert refusal(perform("fail", {"status": status}, cwd=tmp_path), int(status)) == "failed, as asked"


def test_fail_fails_unasked(tmp_path: Path) -> None:
    assert refusal(perform("fail", cwd=tmp_path)) == "failed, as asked"


@pytest.mark.parametrize("status", ["", "0", "256", "-1", "300", "01", *HOSTILE])
def test_fail_takes_a_failing_status_only(tmp_path: Path, status: str) -> None:
    done = perform("fail", {"status": status}, cwd=tmp_path)
    assert "must be a whole number from 1 to 255" in refusal(done, 64)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("message", ["", "é", *HOSTILE])
def test_fail_prints_its_message_as_it_is(tmp_path: Path, message: str) -> None:
    done = perform("fail", {"message": message}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"{message}\n".encode())
    assert os.listdir(tmp_path) == []
