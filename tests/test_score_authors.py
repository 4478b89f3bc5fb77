"""For those who write scores: what a player would accept of a directory, and a run as a player would have it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stagehand import PATIENCE, alive, end, read_fifo, wait_until_gone

from orchestra.cli.score_check import verdicts

ORCHESTRA = str(Path(sys.executable).with_name("orchestra"))
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can switch users")

Ran = "subprocess.CompletedProcess[str]"


class Desk:
    """An author's directory of scores."""

    def __init__(self, home: Path) -> None:
        self.scores = home / "scores"
        self.scores.mkdir(mode=0o755)
        self.home = home
        self.environment = {**os.environ, "TMPDIR": str(home / "tmp")}
        (home / "tmp").mkdir()

    def score(self, name: str, text: str, conf: str | None = None, mode: int = 0o755) -> Path:
        file = self.scores / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(mode)
        if conf is not None:
            (self.scores / f"{name}.conf").write_text(conf)
            (self.scores / f"{name}.conf").chmod(0o644)
        return file

    def check(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return self.say("check", str(self.scores), *words)

    def attempt(self, name: str, *words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
        return self.say("try", f"{self.scores}/{name}", *words, **more)

    def say(self, *words: str, **more: Any) -> "subprocess.CompletedProcess[str]":
        line = [ORCHESTRA, "score", *words]
        return subprocess.run(
            line, capture_output=True, text=True, check=False, timeout=60, env=self.environment, **more
        )

    def start(self, name: str, *words: str) -> "subprocess.Popen[str]":
        line = [ORCHESTRA, "score", "try", f"{self.scores}/{name}", *words]
        return subprocess.Popen(
            line,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )

    def litter(self) -> list[str]:
        """What was left in the directory for temporary files."""
        return os.listdir(self.home / "tmp")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# ---- check


def test_a_directory_that_a_player_would_accept_is_accepted(desk: Desk) -> None:
    desk.score("deploy", "true", "interface = pipe\n[param host]\nrequired = yes\n")
    said = desk.check()
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("ok      deploy: pipe, digest ")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.chmod(0o644), "REFUSED deploy: not executable; 'chmod +x' makes it a score"),
        (lambda file: file.chmod(0o777), "REFUSED deploy: writable by group or others (mode 0777)"),
        (
            lambda file: Path(f"{file}.conf").write_text("timeuot = 1s"),
            "deploy.conf: line 1: timeuot: unknown key; did you mean 'timeout'?",
        ),
        (lambda file: Path(f"{file}.conf").write_text("[param 9]"), "deploy.conf: line 1: "),
        (lambda file: file.parent.chmod(0o777), "writable by group or others (mode 0777)"),
    ],
)
def test_what_a_player_would_refuse_is_refused_with_its_reason(
    desk: Desk, spoil: Callable[[Path], object], says: str
) -> None:
    """File by file; one of them is enough for a status of 1."""
    file = desk.score("deploy", "true", "")
    desk.score("good", "true")
    spoil(file)
    said = desk.check()
    assert said.returncode == 1
    assert says in said.stdout
    assert said.stdout.count("REFUSED") == 1


def test_what_is_no_score_is_passed_over_and_told(desk: Desk) -> None:
    """A conf without its score, a backup: a person may have meant them."""
    desk.score("deploy", "true", "")
    for name in ("gone.conf", "deploy.bak"):
        (desk.scores / name).write_text("")
    said = desk.check()
    assert said.returncode == 0
    assert "note    gone.conf: passed over: there is no score 'gone' here" in said.stdout
    assert "note    deploy.bak: passed over: that is no name for a score" in said.stdout


def test_the_verdicts_are_there_for_programs(desk: Desk) -> None:
    desk.score("deploy", "true", "timeout = 5s")
    desk.score("bad", "true", "", mode=0o600)
    said = desk.check("--json")
    found = json.loads(said.stdout)
    assert (said.returncode, found["accepted"], found["directory"]) == (1, False, str(desk.scores))
    assert [(one["file"], one["verdict"]) for one in found["files"]] == [("bad", "REFUSED"), ("deploy", "ok")]
    assert found["files"][1]["score"]["timeout"] == 5_000


def test_a_directory_that_is_not_there_is_refused(desk: Desk) -> None:
    said = desk.say("check", str(desk.scores / "nosuch"))
    assert (said.returncode, said.stdout) == (1, f"REFUSED {desk.scores}/nosuch: does not exist\n")


@as_root
def test_it_is_said_who_may_own_them(tmp_path: Path) -> None:
    """The player's user may, and nobody else beside root."""
    scores = tmp_path / "scores"
    scores.mkdir(mode=0o755)
    (scores / "own").write_text("#!/bin/sh\n")
    (scores / "own").chmod(0o755)
    os.chown(scores / "own", 1, 1)
    assert [one.verdict for one in verdicts(str(scores), frozenset({0, 1}))] == ["ok"]
    [refused] = verdicts(str(scores), frozenset({0, 2}))
    assert "owned by uid 1" in refused.why


def test_an_unknown_user_is_a_usage_error(desk: Desk) -> None:
    assert desk.check("--user", "no-such-user").returncode == 64


# ---- try


def test_a_score_is_run_and_all_of_it_is_shown(desk: Desk) -> None:
    """Outcome, response, output; nothing is left of it."""
    desk.score("ask", 'echo "kernel=$ORC_what"; echo plain; echo careful >&2', "interface = pipe")
    said = desk.attempt("ask", "what=a b")
    assert (said.returncode, said.stderr) == (0, "")
    first, *rest = said.stdout.splitlines()
    assert first.startswith("ask: ok in ")
    assert rest == ["    kernel = a b", "    | plain", "    ! careful"]
    assert desk.litter() == []


@pytest.mark.parametrize(
    ("text", "conf", "status", "says"),
    [
        ("exit 3", None, 10, "failed (exit status 3)"),
        ("kill -SEGV $$", None, 10, "failed (signal SIGSEGV)"),
        ("sleep 60", "timeout = 100ms", 10, "killed (signal SIGTERM) "),
        ("true", "user = no-such-user", 12, "refused - it is to run as no-such-user"),
        ("true", "timeout = soon", 12, "refused - "),
        ("true", "[param host]\nrequired = yes", 12, "refused - parameter 'host' is required"),
    ],
)
def test_the_status_is_that_of_a_submit_that_waits(
    desk: Desk, text: str, conf: str | None, status: int, says: str
) -> None:
    desk.score("one", text, conf)
    said = desk.attempt("one")
    assert (said.returncode, says in said.stdout) == (status, True), said


def test_it_finds_what_it_finds_on_a_node(desk: Desk) -> None:
    """An environment built from nothing, a directory of its own, limits, descriptors."""
    desk.score("look", "env; pwd; ulimit -n", "dir = /usr\nlimit_files = 99")
    lines = [line.removeprefix("    | ") for line in desk.attempt("look").stdout.splitlines()[1:]]
    names = {line.partition("=")[0] for line in lines if "=" in line} - {"PWD", "SHLVL", "_"}
    own = {f"ORCHESTRA_{name}" for name in ("JOB", "PLAYER", "ATTEMPT", "SCORE", "DRY_RUN", "RUN")}
    assert names == {"PATH", "LANG", "HOME", *own}
    assert lines[-2:] == ["/usr", "99"]


def test_a_json_score_gets_its_secrets_from_a_file(desk: Desk) -> None:
    """On the command line others could read them."""
    desk.score(
        "login",
        "cat >&3",
        "interface = json\n[param password]\nsecret = yes\nrequired = yes\n[param port]\ntype = int\n",
    )
    file = desk.home / "params"
    file.write_text("password=canary\n")
    said = json.loads(desk.attempt("login", "port=22", "--params", str(file), "--json").stdout)
    assert said["response"] == {"password": "canary", "port": 22}
    refused = desk.attempt("login", "password=canary")
    assert (refused.returncode, "is secret" in refused.stdout) == (12, True)
    assert "canary" not in refused.stdout + refused.stderr


def test_a_rehearsal_is_of_scores_that_know_it(desk: Desk) -> None:
    desk.score("knows", 'echo "dry=$ORCHESTRA_DRY_RUN"', "dry_run = yes\ninterface = pipe")
    desk.score("does", "true")
    assert "    dry = 1" in desk.attempt("knows", "--dry-run").stdout
    assert desk.attempt("does", "--dry-run").returncode == 12


def test_long_output_is_all_that_was_kept(desk: Desk) -> None:
    desk.score("loud", "head -c 300000 /dev/zero | tr '\\0' z; echo; echo end")
    said = desk.attempt("loud")
    assert "    | [37861 bytes were not kept]" in said.stdout
    assert said.stdout.endswith("    | end\n")
    assert said.stdout.count("z") == 262_144 - len("\nend\n")


def test_a_score_that_is_not_there_is_refused(desk: Desk) -> None:
    said = desk.attempt("nosuch")
    assert (said.returncode, said.stdout) == (12, "nosuch: refused - This player has no score named 'nosuch'.\n")


@as_root
def test_it_runs_as_whoever_is_named(desk: Desk) -> None:
    desk.score("who", "id -un")
    desk.score("other", "id -un", "user = daemon")
    for path in (desk.home, *desk.home.parents):
        if path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o011)
    assert "    | nobody" in desk.attempt("who", "--score-user", "nobody").stdout
    assert "    | daemon" in desk.attempt("other", "--score-user", "nobody").stdout


# ---- and its end


@pytest.fixture
def started(desk: Desk) -> Iterator[Callable[..., tuple["subprocess.Popen[str]", list[int]]]]:
    """A score with a child that has left its group, both running; and their numbers."""
    everybody: list[int] = []

    def start(trap: str) -> tuple["subprocess.Popen[str]", list[int]]:
        fifo = desk.home / "pids"
        os.mkfifo(fifo)
        desk.score("slow", f'{trap}\nsetsid sleep 1000 &\necho "$$ $! $PPID" > {fifo}\nwhile :; do sleep 1000; done')
        running = desk.start("slow")
        pids = [int(word) for word in read_fifo(fifo).split()]
        everybody.extend(pids)
        return running, pids

    yield start
    for pid in everybody:
        end(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_it_and_leaves_no_process(
    desk: Desk, started: Callable[..., tuple["subprocess.Popen[str]", list[int]]], number: signal.Signals
) -> None:
    """Nor do a closed terminal and a CI that gives up."""
    running, pids = started("")
    running.send_signal(number)
    out, err = running.communicate(timeout=PATIENCE)
    assert (running.returncode, "slow: killed (signal SIGTERM)" in out) == (10, True), err
    assert "ended by whoever tried it" in out
    assert not any(alive(pid) for pid in pids)
    assert desk.litter() == []


def test_ctrl_c_once_more_ends_it_at_once(
    desk: Desk, started: Callable[..., tuple["subprocess.Popen[str]", list[int]]]
) -> None:
    """Whatever the score thinks of signals."""
    running, pids = started("trap '' TERM")
    running.send_signal(signal.SIGINT)
    assert running.stderr is not None
    assert "Ctrl-C again" in running.stderr.readline()
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=PATIENCE)
    assert (running.returncode, out) == (11, "slow: lost - ended at once\n")
    assert not any(alive(pid) for pid in pids)
    assert desk.litter() == []


def test_nothing_outlives_a_command_that_was_killed(
    desk: Desk, started: Callable[..., tuple["subprocess.Popen[str]", list[int]]]
) -> None:
    """The kernel tells the stage, which ends what it runs and then itself."""
    running, pids = started("")
    running.kill()
    running.communicate(timeout=PATIENCE)
    for pid in pids:
        wait_until_gone(pid)
