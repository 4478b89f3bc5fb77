"""The commands themselves, against a real seat: what they print, where, and the exit status."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_twisted
from desk import MemoryDesk
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from orchestra.audience.perspective import audience_port
from orchestra.cli import main
from orchestra.errors import NotSaved
from orchestra.model import Ask, Asker, Receipt, Reloaded, Rolling, Scope, State


class EagerDesk(MemoryDesk):
    """Ends the tasks of a job right after it was accepted, each as ``outcomes`` says."""

    def __init__(self) -> None:
        super().__init__(("web1", "web2", "web3", "down1"))
        self.outcomes: dict[str, State] = {}

    async def submit(self, asker: Asker, ask: Ask) -> Receipt:
        receipt = await super().submit(asker, ask)
        later: Any = reactor
        later.callLater(0, self._perform, receipt.job)
        return receipt

    def _perform(self, job: int) -> None:
        for task in list(self.by_task[job]):
            name = task.player or "web1"
            if name in self.outcomes and task.state == "pending":
                self.end(job, name, self.outcomes[name])


ANN = Asker(name="ann", uid=1)
ASK = Ask(score="uptime", targets=("web1",), scope=Scope.ALL)
IMPORTS = """
import sys
import orchestra.cli.main, orchestra.cli.submit
from orchestra.cli.session import _without_tls
with _without_tls():
    import orchestra.audience.client, twisted.internet.reactor
print([module for module in ("OpenSSL", "rich", "cryptography") if module in sys.modules])
"""


class Said(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Any]


@pytest.fixture
def desk() -> EagerDesk:
    return EagerDesk()


@pytest_twisted.async_yield_fixture
async def path(desk: EagerDesk, tmp_path: Path) -> Any:
    any_reactor: Any = reactor
    port = audience_port(any_reactor, str(tmp_path / "a.pb"), 0o660, "", desk)
    port.startService()
    yield str(tmp_path / "a.pb")
    await port.stopService()


@pytest.fixture
def say(path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setenv("ORCHESTRA_SOCKET", path)

    async def command(name: str, *words: str) -> Said:
        chosen = {"submitjob": "submit", "getstatus": "status"}.get(name)
        command = main.load(main.COMMANDS[chosen].place) if chosen else main.group
        status = await deferToThread(main.run, command, name, list(words))
        return Said(status, *capsys.readouterr())

    return command


async def test_stdout_of_a_submit_is_the_bare_id_and_who_waits_goes_to_stderr(say: Command) -> None:
    assert await say("submitjob", "uptime", "web1", "down1", "--all") == (
        0,
        "1\n",
        "down1 waits: offline since yesterday, never expires\n",
    )


async def test_a_submit_in_json_is_the_receipt(say: Command) -> None:
    said = await say("submitjob", "--json", "uptime", "web1", "a=1")
    assert json.loads(said.out)["job"] == 1


async def test_the_same_request_key_says_that_nothing_new_was_asked_for(say: Command) -> None:
    await say("submitjob", "uptime", "web1", "--request-key", "k")
    assert (await say("submitjob", "uptime", "web1", "--request-key", "k"))[:2] == (0, "1\n")
    assert (await say("submitjob", "sleep", "web1", "--request-key", "k")).status == 64


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        ((State.OK, State.OK, State.OK), 0),
        ((State.OK, State.FAILED, State.LOST), 11),
        ((State.OK, State.FAILED, State.EXPIRED), 10),
        ((State.OK, State.KILLED, State.OK), 10),
        ((State.OK, State.OK, State.CANCELLED), 12),
        ((State.OK, State.REFUSED, State.OK), 12),
    ],
)
async def test_waiting_ends_with_the_worst_that_happened(
    say: Command, desk: EagerDesk, outcomes: tuple[State, ...], status: int
) -> None:
    desk.outcomes = dict(zip(("web1", "web2", "web3"), outcomes, strict=True))
    said = await say("submitjob", "uptime", "web1", "web2", "web3", "--all", "--wait")
    assert said.status == status
    assert said.out.splitlines() == [f"web{n + 1}: {outcome.label}" for n, outcome in enumerate(outcomes)]
    assert said.err.startswith("job 1: ")


async def test_waiting_in_json_prints_the_job_and_its_tasks(say: Command, desk: EagerDesk) -> None:
    desk.outcomes = {"web1": State.OK}
    said = await say("submitjob", "uptime", "web1", "--wait", "--json")
    value = json.loads(said.out)
    assert (value["job"]["verdict"], [task["player"] for task in value["tasks"]]) == ("ok", ["web1"])


async def test_waiting_for_a_job_that_has_ended_shows_its_answers(say: Command, desk: EagerDesk) -> None:
    desk.outcomes = {"web1": State.OK}
    await say("submitjob", "uptime", "web1", "--one", "--wait")
    said = await say("orchestra", "wait", "1")
    assert said[:2] == (0, "web1: ok\n")


async def test_giving_up_waiting_says_how_to_look_again(say: Command) -> None:
    said = await say("submitjob", "uptime", "web1", "--wait", "--timeout", "20ms")
    assert said.status == 13
    assert "getstatus 1" in said.err
    assert (await say("orchestra", "wait", "1", "--timeout", "20ms")).status == 13


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (("submitjob",), 64, "submitjob: name a score"),
        (("submitjob", "uptime", "web1", "web2"), 64, "--all"),
        (("submitjob", "uptime", "wbe1"), 64, "Not in the players file: wbe1 (did you mean web1?)"),
        (("submitjob", "uptime", "web[1-9]"), 64, "Not in the players file"),
        (("submitjob", "uptime", "web[1-3]"), 64, "3 targets: say --all"),
        (("submitjob", "uptime", "web[1-999999999]", "--all"), 64, "more than 100000 names"),
        (("submitjob", "nonsense", "web1"), 64, "None of the targets has a score named 'nonsense'"),
        (("submitjob", "uptime", "web1", "--expire", "soon"), 64, "expected a duration"),
        (("submitjob", "uptime", "web1", "--expire", "0"), 64, "longer than 0"),
        (("submitjob", "uptime", "web1", "--timeout", "1s"), 64, "--timeout goes with --wait"),
        (("submitjob", "uptime", "web1", "--bogus"), 64, "No such option"),
        (("submitjob", "uptime", "we\x1b[2Jb1"), 64, "is no name"),
        (("getstatus", "99"), 64, "There is no job 99"),
        (("getstatus", "x"), 64, "'x'"),
        (("getstatus", "0"), 64, "0"),
        (("getstatus", "--names"), 64, "need the number of a job"),
        (("getstatus", "1", "--only", "broken"), 64, "there is no outcome 'broken'"),
        (("orchestra", "nonsense"), 64, "No such command"),
        (("orchestra", "cancel", "99"), 64, "There is no job 99"),
        (("orchestra", "submit", "uptime"), 64, "no target"),
        (("orchestra", "wait", "99"), 64, "There is no job 99"),
    ],
)
async def test_a_mistake_is_one_sentence_on_stderr(
    say: Command, words: tuple[str, ...], status: int, sentence: str
) -> None:
    said = await say(*words)
    assert (said.status, said.out) == (status, "")
    assert said.err.startswith(f"{words[0]}: ")
    assert sentence in said.err
    assert said.err.count("\n") == 1
    assert "\x1b" not in said.err


async def test_no_conductor_is_69(say: Command, tmp_path: Path) -> None:
    said = await say("submitjob", "uptime", "web1", "--socket", str(tmp_path / "none.pb"))
    assert (said.status, said.out) == (69, "")
    assert "No such file or directory" in said.err
    said = await say("orchestra", "reload", "player", "--socket", str(tmp_path / "none.pb"))
    assert said.status == 69
    assert said.err.startswith("orchestra: No player answers")


async def test_our_bug_is_70_and_tells_the_number_in_the_log(say: Command, desk: EagerDesk) -> None:
    desk.broken = RuntimeError("secret")
    said = await say("submitjob", "uptime", "web1")
    assert said.status == 70
    assert "under the number" in said.err
    assert "secret" not in said.err


async def test_what_could_not_be_saved_is_75(say: Command, desk: EagerDesk) -> None:
    desk.broken = NotSaved(problem="No space left on device")
    assert (await say("submitjob", "uptime", "web1")).status == 75


async def test_who_may_not_is_77(say: Command, desk: EagerDesk) -> None:
    desk.admitted = False
    said = await say("submitjob", "uptime", "web1")
    assert said.status == 77
    assert "membership in the group operators" in said.err


@pytest.mark.parametrize("words", [("submitjob",), ("getstatus",), ("orchestra",), ("orchestra", "jobs")])
async def test_help_with_one_dash_works_too(say: Command, words: tuple[str, ...]) -> None:
    said = await say(*words, "-help")
    assert said.status == 0
    assert said.out.startswith("Usage: ")
    assert said == await say(*words, "--help")


# getstatus


async def test_status_shows_everything_and_what_has_not_ended_says_why(say: Command, desk: EagerDesk) -> None:
    desk.outcomes = {"web1": State.OK}
    await say("submitjob", "uptime", "web1", "down1", "--all", "x=1")
    desk.keep(1, "web1", b"up\x1b[2J\n" * 2_000)
    said = await say("getstatus", "1")
    assert said.status == 0
    assert "job 1: uptime on 2 hosts: not ended (1 pending, 1 ok)" in said.out
    assert "1 parameter: x" in said.out
    assert "| up\\x1b[2J" in said.out
    assert "what was kept: getstatus 1 --output web1" in said.out
    assert "down1: waits: offline since yesterday, never expires" in said.out
    assert "\x1b" not in said.out


async def test_only_and_names_make_a_list_for_the_next_command(say: Command, desk: EagerDesk) -> None:
    desk.outcomes = {"web1": State.OK, "web2": State.LOST, "web3": State.EXPIRED}
    await say("submitjob", "uptime", "web1", "web2", "web3", "--all", "--wait")
    assert (await say("getstatus", "1", "--only", "lost,never", "--names")).out == "web2\nweb3\n"
    assert (await say("getstatus", "1", "--only", "failed", "--names")).out == ""
    assert json.loads((await say("getstatus", "1", "--names", "--json")).out) == ["web1", "web2", "web3"]


async def test_status_in_json_is_lossless(say: Command, desk: EagerDesk) -> None:
    await say("submitjob", "uptime", "web1")
    desk.keep(1, "web1", b"\xff\n")
    value = json.loads((await say("getstatus", "1", "--json")).out)
    assert value["tasks"][0]["stdout"]["base64"] == "/wo="


async def test_status_alone_lists_recent_jobs(say: Command) -> None:
    assert (await say("getstatus")).err == "no jobs\n"
    for _ in range(25):
        await say("submitjob", "uptime", "web1")
    rows = (await say("getstatus")).out.splitlines()
    assert rows[0].split()[:2] == ["JOB", "SCORE"]
    assert [row.split()[0] for row in rows[1:]] == [str(job) for job in range(25, 5, -1)]
    jobs = json.loads((await say("orchestra", "jobs", "--limit", "3", "--json")).out)
    assert [job["job"] for job in jobs] == [25, 24, 23]


async def test_output_of_a_host_is_the_kept_bytes(path: str, desk: EagerDesk) -> None:
    await desk.submit(ANN, ASK)
    data = bytes(range(256)) * 2_000
    desk.keep(1, "web1", data)
    said = await run(path, "getstatus", "1", "--output", "WEB1")
    assert said == (0, data, b"")
    assert (await run(path, "getstatus", "1", "--output", "web9")).status == 64


# the operator's


async def test_the_operators_commands_say_what_they_found(say: Command, desk: EagerDesk) -> None:
    await say("submitjob", "uptime", "web1", "web2", "--all")
    assert (await say("orchestra", "cancel", "1", "web1")).out == "job 1: 1 cancelled, 1 had ended before\n"
    assert "down1   offline" in (await say("orchestra", "players")).out
    assert (await say("orchestra", "players", "WEB1", "--json")).out.startswith('[{"name":"web1","status":"online"')
    assert (await say("orchestra", "scores")).out.splitlines()[1].split()[:2] == ["sleep", "4"]
    assert (await say("orchestra", "score", "sleep")).out.startswith("sleep: does sleep\n")
    assert (await say("orchestra", "score", "nosuch")).status == 64
    assert "4 players, 3 online" in (await say("orchestra", "about")).out
    assert (await say("orchestra", "reload")).out == "players: 1 added\n"


async def test_a_refused_reload_is_78_and_says_what_stays(say: Command, desk: EagerDesk) -> None:
    desk.reloaded = Reloaded(refused=("players, line 3: not a host name",))
    said = await say("orchestra", "reload")
    assert (said.status, said.err) == (78, "refused, the old one stays: players, line 3: not a host name\n")


# whole processes


class Ran(NamedTuple):
    status: int
    out: bytes
    err: bytes


def process(path: str, name: str, *words: str, **more: Any) -> subprocess.Popen[bytes]:
    code = f"from orchestra.cli.main import {name}; {name}()"
    environment = os.environ | {"ORCHESTRA_SOCKET": path}
    # a shell that runs these tests in the background has them, and what they start, ignore SIGINT
    command = ["env", "--default-signal=INT", sys.executable, "-c", code, *words]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


async def run(path: str, name: str, *words: str) -> Ran:
    running = process(path, name, *words)
    out, err = await deferToThread(running.communicate)
    return Ran(running.returncode, out, err)


async def test_ctrl_c_detaches_and_cancels_nothing(path: str, desk: EagerDesk) -> None:
    running = process(path, "submitjob", "uptime", "down1", "--wait")
    assert running.stderr is not None
    assert b"down1 waits" in await deferToThread(running.stderr.readline)
    running.send_signal(signal.SIGINT)
    _, err = await deferToThread(running.communicate)
    assert running.returncode == 13
    assert b"getstatus 1" in err
    assert b"Traceback" not in err
    assert desk.by_task[1][0].state == "pending"


async def test_a_reader_that_leaves_early_is_no_bug(path: str, desk: EagerDesk) -> None:
    for _ in range(3):
        await desk.submit(ANN, ASK)
    running = process(path, "getstatus", "--json")
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    err = await deferToThread(running.stderr.read)
    assert await deferToThread(running.wait) == 141
    assert err == b""


def test_a_submit_needs_neither_tls_nor_tables() -> None:
    """Start-up time is what these imports cost."""
    ran = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=True)
    assert ran.stdout == b"[]\n"


async def test_a_job_is_paused_and_resumed(say: Command, desk: EagerDesk) -> None:
    """Both say who and since when, and what a second time does; every status shows it."""
    await say("submitjob", "uptime", "web1", "web2", "--all", "--batch", "1", "--not-before", "2h")
    assert desk.asks[1].rolling == Rolling(batch="1")
    assert (desk.asks[1].not_before or 0) > time.time()
    who = desk.askers[1].name
    said = await say("orchestra", "pause", "1")
    assert said.out == f"job 1: the job is paused since 2026-05-28 20:26:40 UTC by {who}\n"
    assert said.err == "1 task handed out before: 'orchestra cancel' ends that\n"
    assert (await say("orchestra", "pause", "1")).out.startswith("job 1: as before: the job is paused since")
    assert "'orchestra resume 1' lets it go on" in (await say("getstatus", "1")).out
    assert "paused" in (await say("orchestra", "jobs")).out
    assert json.loads((await say("orchestra", "pause", "1", "--json")).out)["new"] is False
    assert (await say("orchestra", "resume", "1")).out == "job 1: resumed\n"
    assert (await say("orchestra", "resume", "1")).out == "job 1 was not paused\n"
    assert (await say("orchestra", "resume", "9")).status == 64


async def test_events_are_lines_of_one_job_or_of_all(say: Command, desk: EagerDesk) -> None:
    """Numbered, oldest first; --since goes on behind a number; in JSON an object a line."""
    desk.outcomes = {"web1": State.FAILED}
    for _ in range(2):
        await say("submitjob", "uptime", "web1", "--wait")
    who = desk.askers[1].name
    at = "2026-05-28 20:26:40 UTC"
    assert (await say("orchestra", "events", "2")).out.splitlines() == [
        f"1  {at}  submitted  by {who}",
        f"2  {at}  failed  web1  task 0",
        f"3  {at}  ended",
    ]
    assert (await say("orchestra", "events", "--since", "4")).out.splitlines() == [
        f"5 job 2  {at}  failed  web1  task 0",
        f"6 job 2  {at}  ended",
    ]
    assert len((await say("orchestra", "events")).out.splitlines()) == 6
    said = await say("orchestra", "events", "1", "--follow", "--since", "1", "--json")
    assert [(each["n"], each["kind"], each["seq"]) for each in map(json.loads, said.out.splitlines())] == [
        (2, "failed", 2),
        (3, "ended", 3),
    ]
    assert (await say("orchestra", "events", "9")).status == 64
