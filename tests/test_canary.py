"""A secret goes through real daemons, through failures, refusals, crashes and a restart, and is found nowhere after.

The canary is looked for in every file below the theatre's home: stores, write-ahead logs, journals, logs, the stages'
run directories, backups; in what commands print; and in the environment and arguments of every process that runs.
"""

import base64
import hashlib
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Command
from msgspec import json
from outside import OutsideOrchestra

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import BadRequest, OrchestraError, RequestKeyConflict, SecretInTheOpen
from orchestra.model import JobView, TaskView

CANARY = "canary-4711-do-not-sing"
SHA = hashlib.sha256(CANARY.encode()).hexdigest()

LOGIN = """\
#!{python} -IS
import hashlib, json, os, sys
told = json.load(sys.stdin)
knew = hashlib.sha256(told["password"].encode()).hexdigest() == "{sha}"
with open("{home}/ledger/begun", "a") as ledger:
    print(os.environ["ORCHESTRA_JOB"], file=ledger)
if told["what"] == "hang":
    open("{home}/ledger/go").read()
json.dump({{"knew": knew, "port": told["port"], "nested": {{"deep": [1, None]}}}}, os.fdopen(3, "w"))
sys.exit(3 if told["what"] == "fail" else 0)
"""
CONF = """\
interface = json
timeout = 60s
[param what]
type = enum
values = go, fail, hang
default = go
[param port]
type = int
default = 80
max = 65535
[param password]
required = yes
secret = yes
min = 8
"""


def prepare(theatre: Theatre) -> None:
    theatre.add_score("login", LOGIN.format(python=sys.executable, sha=SHA, home=theatre.home), CONF)
    theatre.add_score("careless", "#!/bin/sh\n", "[param password]\nsecret = yes\n")
    os.mkfifo(theatre.home / "ledger" / "go")


def where_it_sings(theatre: Theatre) -> list[str]:
    """Files and processes in which the canary is found, plainly or in a thin disguise."""
    raw = CANARY.encode()
    disguises = [raw, raw.hex().encode(), base64.b64encode(raw).rstrip(b"=")[:-1], SHA[:20].encode()]
    files = [path for path in theatre.home.rglob("*") if path.is_file() and path != theatre.scores / "login"]
    assert {"store.sqlite", "journal.sqlite", "conductor.log", "a.log"} <= {path.name for path in files}
    found = [str(path) for path in files if any(one in path.read_bytes() for one in disguises)]
    return found + [f"process {pid}" for pid in theatre.left_behind() if raw in _told(pid)]


def _told(pid: int) -> bytes:
    """The environment and the arguments of a process, if it is still there."""
    try:
        return b"".join(Path(f"/proc/{pid}/{what}").read_bytes() for what in ("environ", "cmdline"))
    except (FileNotFoundError, ProcessLookupError):
        return b""


def ask(*targets: str, **more: object) -> Ask:
    given = {"private": {"password": CANARY}, "scope": Scope.ALL, **more}
    return Ask(score="login", targets=targets, **given)  # type: ignore[arg-type]


def done(orchestra: OutsideOrchestra, job: int) -> tuple[JobView, list[TaskView]]:
    return orchestra.wait(job, timeout=60), list(orchestra.tasks(job))


def let_go(theatre: Theatre) -> None:
    """Whoever hangs goes on."""
    handle = os.open(theatre.home / "ledger" / "go", os.O_WRONLY)
    os.close(handle)


def until_begun(theatre: Theatre, job: int) -> None:
    ledger = theatre.home / "ledger" / "begun"
    wait_until(lambda: ledger.exists() and str(job) in ledger.read_text().split(), f"job {job}", ledger)


@pytest.fixture(autouse=True)
def the_canary_is_silent(theatre: Theatre) -> Iterator[None]:
    """Whatever a test does."""
    yield
    assert where_it_sings(theatre) == []


def test_the_score_gets_it_and_nobody_else(theatre: Theatre, orchestra: OutsideOrchestra, command: Command) -> None:
    """What is shown of the job is that there is a secret."""
    job, tasks = done(orchestra, orchestra.submit(ask("a", "b", params={"port": "8080"})).job)
    assert job.verdict == "ok"
    assert (job.secrets, job.params) == (("password",), {"port": "8080"})
    assert [task.response for task in tasks] == [{"knew": True, "port": 8080, "nested": {"deep": [1, None]}}] * 2
    shown = command("getstatus", job.job)
    assert "2 parameters: password (secret), port" in shown.stdout
    assert 'nested = {"deep":[1,null]}' in shown.stdout
    as_json = command("getstatus", job.job, "--json").stdout
    assert json.decode(as_json)["tasks"][0]["response"]["nested"] == {"deep": [1, None]}
    assert CANARY not in shown.stdout + as_json + str(list(orchestra.events(job.job)))


def test_it_is_taken_from_a_file_and_refused_on_a_command_line(
    command: Command, orchestra: OutsideOrchestra, tmp_path: Path
) -> None:
    """The file may hold other parameters too; the refusal says how to do it."""
    (tmp_path / "params").write_text(f'{{"password": "{CANARY}", "port": 8080}}')
    good = command("submitjob", "login", "a", "--params", tmp_path / "params", "--wait")
    assert good.returncode == 0, good.stderr
    assert "knew = true" in good.stdout and "port = 8080" in good.stdout
    bad = command("submitjob", "login", "a", f"password={CANARY}")
    assert bad.returncode == 64
    assert "'password' is secret" in bad.stderr and "--params FILE" in bad.stderr
    assert CANARY not in bad.stdout + bad.stderr
    with pytest.raises(SecretInTheOpen):
        orchestra.submit(Ask(score="login", targets=("a",), scope=Scope.ALL, params={"password": CANARY}))
    missing = command("submitjob", "login", "a")
    assert missing.returncode == 64
    assert "'password' is secret and required" in missing.stderr


def at_a_terminal(theatre: Theatre, *words: str) -> bytes:
    """What a terminal shows of a command that asks for the password and gets it."""
    program = str(Path(sys.executable).with_name(words[0]))
    pid, terminal = pty.fork()
    if pid == 0:
        environment = {**os.environ, "ORCHESTRA_SOCKET": str(theatre.socket), "TERM": "dumb"}
        os.execve(program, [program, *words[1:]], environment)
    shown = b""
    while b"password: " not in shown:
        shown += os.read(terminal, 1000)
    os.write(terminal, CANARY.encode() + b"\n")
    try:
        while data := os.read(terminal, 1000):
            shown += data
    except OSError:  # what a terminal gives at its end
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, shown
    assert CANARY.encode() not in shown
    return shown


def number_in(shown: bytes) -> int:
    """The job that a terminal shows the number of."""
    return int(re.findall(rb"^(\d+)\r?$", shown, flags=re.M)[0])


def test_it_is_asked_for_at_a_terminal_without_an_echo(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """Whether or not the command waits."""
    assert b"knew = true" in at_a_terminal(theatre, "submitjob", "login", "a", "--wait")
    job = number_in(at_a_terminal(theatre, "submitjob", "login", "a"))
    assert done(orchestra, job)[0].verdict == "ok"


def test_a_rerun_has_to_be_told_anew(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command, tmp_path: Path
) -> None:
    """At a terminal, or by a file; it is not kept beyond the end of the job, for nobody."""
    first = orchestra.submit(ask("a", params={"what": "fail"})).job
    done(orchestra, first)
    refused = command("orchestra", "rerun", first, "--only", "failed")
    assert (refused.returncode, refused.stdout) == (64, "")
    assert f"'password' of job {first} is secret" in refused.stderr and "--secrets FILE" in refused.stderr
    (tmp_path / "secrets").write_text(f"password={CANARY}\n")
    by_file = int(command("orchestra", "rerun", first, "--only", "failed", "--secrets", tmp_path / "secrets").stdout)
    asked = number_in(at_a_terminal(theatre, "orchestra", "rerun", str(first), "--only", "failed"))
    for job in (by_file, asked):
        view, [task] = done(orchestra, job)
        assert (view.rerun_of, view.params, view.secrets) == (first, {"what": "fail"}, ("password",))
        assert task.response and task.response["knew"] is True


def test_a_failure_and_a_refusal_do_not_tell(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """Not the score's, not the conductor's, not the player's, not the one of a disk that says otherwise by now."""
    _, [task] = done(orchestra, orchestra.submit(ask("a", params={"what": "fail"})).job)
    assert (task.state, task.rc, task.response and task.response["knew"]) == ("failed", 3, True)
    for wrong in ({"password": CANARY[:7]}, {"password": CANARY, "port": CANARY}, {"password": CANARY, "x": CANARY}):
        with pytest.raises(OrchestraError) as caught:
            orchestra.submit(ask("a", private=wrong))
        assert CANARY[:7] not in caught.value.sentence
    reasons = {one.name: one.reason for one in orchestra.catalogues(["a"])[0][0].refused}
    assert "a secret parameter is for scores with 'interface = json' only" in reasons["careless"]
    theatre.add_score("login", (theatre.scores / "login").read_text(), CONF.replace("min = 8", "min = 80"))
    try:
        [task] = done(orchestra, orchestra.submit(ask("b")).job)[1]
    finally:
        theatre.add_score("login", (theatre.scores / "login").read_text(), CONF)
    assert (task.state, task.reason) == ("refused", "parameter 'password': expected at least 80 characters")


def test_a_request_key_tells_the_same_secret_from_another(orchestra: OutsideOrchestra) -> None:
    """Although it is sealed differently each time."""
    first = orchestra.submit(ask("a", request_key="k"))
    again = orchestra.submit(ask("a", request_key="k"))
    assert (again.job, again.created) == (first.job, False)
    with pytest.raises(RequestKeyConflict):
        orchestra.submit(ask("a", request_key="k", private={"password": "something else"}))
    assert done(orchestra, first.job)[0].verdict == "ok"


def test_a_job_that_waits_is_sealed_over_crashes_and_in_backups(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """For a player that was never here; the conductor dies meanwhile, and can still tell the player in the end."""
    job = orchestra.submit(ask("c")).job
    assert command("orchestra", "backup", theatre.home / "backup.sqlite").returncode == 0
    theatre.kill("conductor")
    assert where_it_sings(theatre) == []
    theatre.start_conductor()
    theatre.start_player("c")
    view, [task] = done(orchestra, job)
    assert (view.verdict, task.response and task.response["knew"]) == ("ok", True)


def test_a_player_that_dies_does_without_what_was_in_its_memory(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """What ran goes on; what waited never started, is handed out again, with its secret, and starts once."""
    running, waiting = orchestra.submit(ask("a", params={"what": "hang"})).job, orchestra.submit(ask("a")).job
    until_begun(theatre, running)
    store = theatre.home / "conductor" / "log"
    wait_until(lambda: all(task.attempt == 1 for task in orchestra.tasks(waiting)), "the second job", store)
    theatre.kill("a")
    assert where_it_sings(theatre) == []
    theatre.start_player("a")
    wait_until(lambda: all(task.attempt == 2 for task in orchestra.tasks(waiting)), "the second attempt", store)
    let_go(theatre)
    assert [done(orchestra, job)[1][0].response for job in (running, waiting)] == [
        {"knew": True, "port": 80, "nested": {"deep": [1, None]}}
    ] * 2
    begun = (theatre.home / "ledger" / "begun").read_text().split()
    assert (begun.count(str(running)), begun.count(str(waiting))) == (1, 1)


def test_a_conductor_and_a_stage_that_die_while_it_runs(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """The first harms nobody; after the second it is lost."""
    job = orchestra.submit(ask("b", params={"what": "hang"})).job
    until_begun(theatre, job)
    theatre.kill("conductor")
    assert where_it_sings(theatre) == []
    theatre.start_conductor()
    theatre.kill_stage("b")
    assert done(orchestra, job)[1][0].state == "lost"


def test_a_conductor_without_its_key_says_so(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """What was sealed before is refused by the player with the reason; new secrets are sealed with the new key."""
    theatre.stop("b")
    job = orchestra.submit(ask("b")).job
    theatre.stop("conductor")
    key = theatre.home / "conductor" / "state" / "secret.key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.unlink()
    theatre.start_conductor()
    theatre.start_player("b")
    [task] = done(orchestra, job)[1]
    assert task.state == "refused" and "has not the key any more" in task.reason
    assert done(orchestra, orchestra.submit(ask("b")).job)[0].verdict == "ok"


def test_what_is_sealed_is_gone_when_all_has_ended(theatre: Theatre) -> None:
    """Of every job that ever was."""
    query = "SELECT count(*), count(secret), count(sealed) FROM job_params"
    store = theatre.home / "conductor" / "state" / "store.sqlite"
    code = f"import sqlite3; print(*sqlite3.connect({str(store)!r}).execute({query!r}).fetchone())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    many, secret, sealed = map(int, said.split())
    assert many == secret > 10 and sealed == 0


def test_the_net_catches_a_canary(theatre: Theatre) -> None:
    """The search itself: in a file, plainly and in hex."""
    for disguise in (CANARY, CANARY.encode().hex()):
        leak = theatre.home / "leak"
        leak.write_text(f"so {disguise} it is")
        assert where_it_sings(theatre) == [str(leak)]
        leak.unlink()


def test_a_dry_run_is_for_those_that_know_how(command: Command, orchestra: OutsideOrchestra) -> None:
    """And says so before anything is queued."""
    refused = command("submitjob", "login", "a", "--dry-run")
    assert refused.returncode == 64 and "knows no dry run" in refused.stderr
    with pytest.raises(BadRequest, match="knows no dry run"):
        orchestra.submit(ask("a", dry_run=True))
