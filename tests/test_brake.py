"""The brake with real daemons: hold, release, cancels of many, and on the node drain and kill; and time."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Command, log_of, until_logged
from outside import OutsideOrchestra
from stagehand import NO_SIGKILL, end, impatient

from orchestra import settings
from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.model import Braking, Choice, State, TaskView
from orchestra.player.backstage import stage_command

GATE = """\
#!/bin/sh
echo "$ORCHESTRA_JOB" >> {ledger}
while [ ! -e {gates}/$ORC_gate ]; do sleep 0.05; done
"""
A, B, C = "a.demo.test", "b.demo.test", "c.demo.test"


def prepare(theatre: Theatre) -> None:
    """Scores that wait at a gate, or end too late."""
    gates = theatre.home / "gates"
    gates.mkdir()
    ledger = theatre.home / "ledger" / "l"
    ledger.touch()
    text = GATE.format(ledger=ledger, gates=gates)
    theatre.add_score("gated", text, "concurrency = 4\ntimeout = 300s\nkill_grace = 1s\n")
    theatre.add_score("narrow", text, "concurrency = 1\ntimeout = 300s\nkill_grace = 1s\n")
    theatre.add_score(
        "late", "#!/bin/sh\ntrap '' TERM\nwhile :; do sleep 0.1; done\n", "timeout = 1s\nkill_grace = 1s\n"
    )


@pytest.fixture(autouse=True)
def nothing_held(
    theatre: Theatre, orchestra: OutsideOrchestra, on_site: Callable[..., "subprocess.CompletedProcess[str]"]
) -> Iterator[None]:
    """Every test leaves the brake as it found it, and nothing behind, also when it fails half way."""
    conf = theatre.home / "conductor.conf"
    before = conf.read_text()
    yield
    if conf.read_text() != before:
        conf.write_text(before)
        orchestra.reload()
    for daemon, start in (("conductor", theatre.start_conductor), ("a", lambda: theatre.start_player("a"))):
        if not theatre.is_up(daemon):
            theatre.tidy(daemon)
            start()
    if theatre.is_up("c"):
        theatre.stop("c")
    if (theatre.home / "a" / "state" / "drained").exists():
        on_site("undrain")
    orchestra.release(None)
    chosen = orchestra.choose(Choice(everything=True))
    orchestra.cancel_chosen(Choice(everything=True), chosen.up_to)
    wait_until(
        lambda: not orchestra.choose(Choice(everything=True)).jobs,
        "the end of every job",
        theatre.home / "log" / "a.log",
    )


def submit(orchestra: OutsideOrchestra, score: str, *targets: str, **more: object) -> int:
    scope, params = more.pop("scope", Scope.ALL), {key: str(value) for key, value in more.items()}
    job: int = orchestra.submit(Ask(score=score, targets=targets, scope=scope, params=params)).job  # type: ignore[arg-type]
    return job


def task(orchestra: OutsideOrchestra, job: int) -> TaskView:
    found: TaskView = next(iter(orchestra.tasks(job)))
    return found


def until_running(theatre: Theatre, *jobs: int) -> None:
    ledger = theatre.home / "ledger" / "l"
    wait_until(lambda: {str(job) for job in jobs} <= set(ledger.read_text().split()), "the start of a run", ledger)


def open_gate(theatre: Theatre, gate: str) -> None:
    (theatre.home / "gates" / gate).touch()


@pytest.fixture
def on_site(theatre: Theatre) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """``orchestra player …`` on the machine of player a."""

    def ran(*words: object, player: str = "a", **more: str) -> "subprocess.CompletedProcess[str]":
        line = [str(Path(sys.executable).with_name("orchestra")), "player", *map(str, words)]
        environment = {**os.environ, "ORCHESTRA_CONFIG": str(theatre.home / player), **more}
        return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False, env=environment)

    return ran


# ---- hold and release


@pytest.mark.parametrize("of", [(), ("--host", "a"), ("--score", "uptime")])
def test_what_is_held_waits_and_says_so_everywhere_until_it_is_released(
    command: Command, orchestra: OutsideOrchestra, of: tuple[str, ...]
) -> None:
    """In submit, status, players, scores and about; and its release starts it at once."""
    held = command("orchestra", "hold", *of, "--reason", "disk swap")
    assert held.returncode == 0
    [line] = held.stdout.splitlines()
    assert line.endswith(": disk swap")
    assert " is held since " in line
    told = command("submitjob", "uptime", "a")
    job = int(told.stdout)
    assert f"{A} waits: {line}, expires" in told.stderr
    assert f"waits: {line}, expires" in command("getstatus", job).stdout
    assert line in command("orchestra", "about").stdout
    assert command("orchestra", "holds").stdout == f"{line}\n"
    assert line in command("orchestra", "scores").stderr
    if "--score" not in of:
        assert line in command("orchestra", "players", "a").stdout
    assert task(orchestra, job).state == "pending"
    assert command("orchestra", "release", *of).stdout.startswith("released: ")
    assert orchestra.wait(job, timeout=20).verdict == "ok"
    assert command("orchestra", "release", *of).stdout == "nothing of that was held\n"


def test_others_go_on_and_so_does_what_runs(theatre: Theatre, orchestra: OutsideOrchestra, command: Command) -> None:
    """A hold on one host stops no other; one-of work goes to the other at once."""
    running = submit(orchestra, "gated", "a", gate="others")
    until_running(theatre, running)
    done = command("orchestra", "hold", "--host", "a", "--reason", "x")
    assert "1 task handed out before" in done.stderr
    assert orchestra.wait(submit(orchestra, "uptime", "b"), timeout=20).verdict == "ok"
    for _ in range(3):  # a is the less busy one at least once
        assert orchestra.wait(submit(orchestra, "uptime", "a", "b", scope=Scope.ONE), timeout=20).verdict == "ok"
    open_gate(theatre, "others")
    assert orchestra.wait(running, timeout=20).verdict == "ok"


def test_a_hold_survives_a_conductor_that_is_killed(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """With its reason; and the release of all starts what waited for any of them."""
    orchestra.hold(Braking(), "night")
    orchestra.hold(Braking(hosts=("a",), scores=("uptime",)), "day")
    job = submit(orchestra, "uptime", "a", "b")
    since = len(log_of(theatre, "conductor"))
    theatre.kill("conductor")
    theatre.start_conductor()
    until_logged(theatre, "conductor", f"{A} is online", f"{B} is online", since=since)
    assert [hold.reason for hold in orchestra.holds()] == ["night", "day", "day"]
    assert orchestra.job(job).counts == {"pending": 2}
    assert len(command("orchestra", "release", "--all").stdout.splitlines()) == 3
    assert orchestra.wait(job, timeout=20).verdict == "ok"


def test_a_hold_needs_a_reason_and_hosts_that_are_known(command: Command) -> None:
    """A slip of the fingers must not look like a hold that is in force."""
    assert command("orchestra", "hold").returncode == 64
    empty = command("orchestra", "hold", "--reason", " ")
    assert (empty.returncode, "needs a reason" in empty.stderr) == (64, True)
    unknown = command("orchestra", "hold", "--host", "nobody", "--reason", "x")
    assert (unknown.returncode, "Not in the players file: nobody" in unknown.stderr) == (64, True)
    assert command("orchestra", "holds").stdout == ""
    typo = command("orchestra", "hold", "--score", "uptmie", "--reason", "x")
    assert "no player has a score 'uptmie' today" in typo.stderr
    again = command("orchestra", "hold", "--score", "uptmie", "--reason", "y")
    assert again.stdout.startswith("as before: the score uptmie is held since")


def test_one_of_work_goes_to_who_may_still_run_its_score(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """The less busy one has all it may have of that score; the other one takes it, without waiting for anything."""
    busy = [submit(orchestra, "narrow", "a", gate="narrow") for _ in range(2)]
    busier = [submit(orchestra, "gated", "b", gate="narrow") for _ in range(4)]
    until_running(theatre, busy[0], *busier)
    wait_until(lambda: orchestra.job(busy[1]).counts == {"dispatched": 1}, "the second run", Path())
    job = submit(orchestra, "narrow", "a", "b", scope=Scope.ONE, gate="narrow")
    until_running(theatre, job)
    assert task(orchestra, job).player == B
    open_gate(theatre, "narrow")


def test_the_brake_works_on_a_disk_with_hardly_any_room(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """Nothing new is accepted there; holds, cancels and outcomes are. The disk is as it is, but more is kept free."""
    running = submit(orchestra, "gated", "a", gate="never")
    until_running(theatre, running)
    waiting = submit(orchestra, "uptime", "c")
    conf = theatre.home / "conductor.conf"
    before = conf.read_text()
    conf.write_text(f"{before}reserve = 100000000G\n")
    assert command("orchestra", "reload").returncode == 0
    refused = command("submitjob", "uptime", "a")
    assert (refused.returncode, refused.stdout) == (75, "")
    assert "MB free" in refused.stderr
    assert command("orchestra", "hold", "--reason", "full").returncode == 0
    assert command("orchestra", "cancel", waiting).stdout == f"job {waiting}: 1 cancelled\n"
    assert command("orchestra", "cancel", "--host", "a", "--yes").stdout == "1 being cancelled\n"
    assert orchestra.wait(running, timeout=20).counts == {"killed": 1}
    assert command("orchestra", "release").stdout == "released: everything\n"
    conf.write_text(before)
    assert command("orchestra", "reload").returncode == 0
    assert orchestra.wait(submit(orchestra, "uptime", "a"), timeout=20).verdict == "ok"


# ---- cancels of many


def test_a_cancel_of_many_says_how_much_and_wants_to_be_sure(
    theatre: Theatre, orchestra: OutsideOrchestra, command: Command
) -> None:
    """Without a terminal and without --yes it is a usage error; with it, what runs is killed and what waits ends."""
    running = submit(orchestra, "gated", "a", gate="never")
    until_running(theatre, running)
    waiting = submit(orchestra, "uptime", "c")
    asked = command("orchestra", "cancel", "--all")
    assert asked.returncode == 64
    assert "2 jobs: 1 task waiting, 1 task handed out" in asked.stderr
    assert "--yes" in asked.stderr
    assert orchestra.job(waiting).verdict == ""
    done = command("orchestra", "cancel", "--score", "uptime", "--yes")
    assert done.stdout == "1 cancelled\n"
    assert command("orchestra", "cancel", "--host", "a", "--yes").stdout == "1 being cancelled\n"
    assert orchestra.wait(running, timeout=20).counts == {"killed": 1}
    assert orchestra.wait(waiting, timeout=20).counts == {"cancelled": 1}
    assert command("orchestra", "cancel", "--all", "--yes").stdout == "nothing to cancel\n"


@pytest.mark.parametrize(("answer", "counts"), [("n", {"pending": 1}), ("y", {"cancelled": 1})])
def test_a_cancel_of_many_asks_at_a_terminal(
    theatre: Theatre, orchestra: OutsideOrchestra, answer: str, counts: dict[str, int]
) -> None:
    """And does as it is told."""
    job = submit(orchestra, "uptime", "c")
    ours, theirs = os.openpty()
    line = [str(Path(sys.executable).with_name("orchestra")), "cancel", "--owner", task_owner(orchestra, job)]
    os.write(ours, f"{answer}\n".encode())
    environment = {**os.environ, "ORCHESTRA_SOCKET": str(theatre.socket)}
    done = subprocess.run(line, stdin=theirs, capture_output=True, timeout=60, check=False, env=environment)
    os.close(ours)
    os.close(theirs)
    assert b"This cancels 1 job: 1 task waiting, 0 tasks handed out" in done.stderr
    assert orchestra.job(job).counts == counts
    assert done.returncode == (0 if answer == "y" else 1)


def task_owner(orchestra: OutsideOrchestra, job: int) -> str:
    owner: str = orchestra.job(job).owner
    return owner


def test_several_jobs_are_cancelled_by_their_numbers(orchestra: OutsideOrchestra, command: Command) -> None:
    """Also on some hosts only; what cannot be meant is a usage error."""
    jobs = [submit(orchestra, "uptime", "c"), submit(orchestra, "uptime", "c")]
    assert command("orchestra", "cancel", *jobs, "c").stdout == "".join(f"job {job}: 1 cancelled\n" for job in jobs)
    for words in ((), ("web1",), (jobs[0], "--all"), ("--all", "--host", "a")):
        assert command("orchestra", "cancel", *words).returncode == 64


def test_a_cancel_shows_until_it_is_proved(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """Its player is down: it is being cancelled, and killed when the player is back; what waits there ends at once."""
    running = submit(orchestra, "gated", "a", gate="never")
    until_running(theatre, running)
    since = len(log_of(theatre, "conductor"))
    theatre.kill("a")
    until_logged(theatre, "conductor", f"{A} is offline", since=since)
    waiting = submit(orchestra, "uptime", "a")
    orchestra.cancel_chosen(Choice(hosts=("a",)), waiting)
    assert orchestra.job(waiting).counts == {"cancelled": 1}
    assert task(orchestra, running).cancelling
    assert "being cancelled" in task(orchestra, running).why
    theatre.start_player("a")
    assert orchestra.wait(running, timeout=20).counts == {"killed": 1}


# ---- on the node


def test_status_shows_what_the_node_knows(
    theatre: Theatre, orchestra: OutsideOrchestra, on_site: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """Its runs with their processes and the time they have left, its line, its stage."""
    job = submit(orchestra, "gated", "a", gate="never")
    until_running(theatre, job)
    found = json.loads(on_site("status", "--json").stdout)
    [run] = found["runs"]
    assert (run["job"], run["score"], run["state"]) == (job, "gated", "running")
    assert str(theatre.scores) in Path(f"/proc/{run['pid']}/cmdline").read_text()
    assert 200_000 < run["left"] <= 300_000
    assert found["stage"]["pid"] in theatre.stages()
    assert found["reach"]["since"] > 0
    said = on_site("status").stdout
    assert f"player {A}" in said
    assert "connected since" in said
    assert "gated  running" in said


def test_a_drained_player_takes_no_more_work_and_says_so(
    theatre: Theatre,
    orchestra: OutsideOrchestra,
    command: Command,
    on_site: Callable[..., "subprocess.CompletedProcess[str]"],
) -> None:
    """Not even after a restart. What runs ends as it would have; what had not started goes back, and elsewhere if it
    may."""
    running = submit(orchestra, "narrow", "a", gate="drain")
    until_running(theatre, running)
    queued = submit(orchestra, "narrow", "a", gate="drain")
    movable = submit(orchestra, "gated", "a", scope=Scope.ONE, gate="never")
    wait_until(lambda: orchestra.job(queued).counts == {"dispatched": 1}, "the second run", Path())
    done = on_site("drain", "--reason", "new kernel")
    assert done.stdout == "drained; 1 run is still going on\n" or "2 runs are" in done.stdout
    wait_until(lambda: orchestra.job(queued).counts == {"pending": 1}, "its return", theatre.home / "log" / "a.log")
    wait_until(lambda: "drained on" in command("orchestra", "players", "a").stdout, "its note", Path())
    assert [event.kind for event in orchestra.events(queued)] == ["submitted", "dispatched", "pending"]
    why = task(orchestra, queued).why
    assert "takes no work: drained on" in why
    assert "new kernel" in why
    orchestra.cancel(movable)
    open_gate(theatre, "drain")
    assert on_site("drain", "--wait").stdout == "drained; nothing runs\n"
    assert orchestra.wait(running, timeout=20).verdict == "ok"
    theatre.kill("a")
    since = len(log_of(theatre, "conductor"))
    theatre.start_player("a")
    until_logged(theatre, "conductor", f"{A} is online, 0 slots", since=since)
    assert orchestra.job(queued).counts == {"pending": 1}
    assert on_site("undrain").stdout == "takes work again\n"
    assert orchestra.wait(queued, timeout=20).verdict == "ok"
    assert on_site("undrain").stdout == "it was not drained\n"


def test_a_player_that_died_as_it_was_drained_starts_nothing(
    theatre: Theatre, orchestra: OutsideOrchestra, on_site: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """The marker is on disk, its journal knows nothing of it yet: what it had accepted goes back all the same."""
    running = submit(orchestra, "narrow", "a", gate="never")
    until_running(theatre, running)
    queued = submit(orchestra, "narrow", "a", gate="never")
    wait_until(lambda: orchestra.job(queued).counts == {"dispatched": 1}, "the second run", Path())
    theatre.kill("a")
    (theatre.home / "a" / "state" / "drained").write_text("so to say")
    theatre.start_player("a")
    wait_until(lambda: orchestra.job(queued).counts == {"pending": 1}, "its return", theatre.home / "log" / "a.log")
    orchestra.cancel(running)
    assert orchestra.wait(running, timeout=20).counts == {"killed": 1}
    assert "cannot be read" in on_site("status").stdout
    assert orchestra.job(queued).counts == {"pending": 1}
    on_site("undrain")
    until_running(theatre, queued)


def test_a_run_is_killed_on_its_node_without_a_conductor(
    theatre: Theatre, orchestra: OutsideOrchestra, on_site: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """Its outcome says by whom; it is told when the conductor is back. One that is not there is a sentence."""
    jobs = [submit(orchestra, "gated", "a", gate="never") for _ in range(2)]
    until_running(theatre, *jobs)
    theatre.kill("conductor")
    seqs = {run["job"]: run["seq"] for run in json.loads(on_site("status", "--json").stdout)["runs"]}
    missing = on_site("kill", 999)
    assert (missing.returncode, "Run 999 is not running here" in missing.stderr) == (64, True)
    assert on_site("kill", seqs[jobs[0]]).stdout == f"being ended: {seqs[jobs[0]]}\n"
    assert on_site("kill", "--all").stdout.startswith("being ended: ")
    assert on_site("drain", "--wait").stdout == "drained; nothing runs\n"
    said = on_site("status").stdout
    assert "outcomes that the conductor has yet to take: 2" in said
    assert "not connected to conductor.demo.test" in said
    theatre.start_conductor()
    on_site("undrain")
    for job in jobs:
        assert orchestra.wait(job, timeout=30).counts == {"killed": 1}
        assert task(orchestra, job).reason.startswith("killed on the node by ")


def test_without_a_player_it_is_said_what_to_do(
    theatre: Theatre, orchestra: OutsideOrchestra, on_site: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """And whether its stage still runs things."""
    none = on_site("status", player="c")
    assert none.returncode == 69
    assert "No player answers at" in none.stderr
    assert "stage" not in none.stderr.partition("Is it running")[0].partition("No player")[0]
    theatre.kill("a")
    away = on_site("status")
    theatre.start_player("a")
    assert away.returncode == 69
    assert "its stage at" in away.stderr
    assert "goes on" in away.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_who_is_neither_root_nor_the_players_user_is_turned_away(theatre: Theatre) -> None:
    """With a sentence that does not speak of conductors."""
    program = "import sys; from orchestra.cli.session import talk_to_player\n"
    program += "import orchestra.audience.client, orchestra.audience.node, twisted.internet.reactor\n"
    program += "from orchestra.errors import OrchestraError\n"
    program += "import os; os.setgroups([]); os.setuid(65534)\n"
    program += "try: talk_to_player(sys.argv[1], '/nowhere', lambda seat: seat.reload())\n"
    program += "except OrchestraError as error: print(error.status, error.sentence)\n"
    path = theatre.home / "run" / "a.pb"
    done = subprocess.run(
        [sys.executable, "-c", program, path], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.startswith("77 "), done.stderr
    assert "only root and the player's own user may" in done.stdout


# ---- time


def test_a_timeout_is_kept_while_the_player_is_down(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """The stage keeps it, and its grace; the player tells it when it is back."""
    log = theatre.home / "a" / "state" / "stage" / "stage.log"
    since = len(log.read_text())
    job = submit(orchestra, "late", "a")
    wait_until(lambda: "of late: started" in log.read_text()[since:], "the start", log)
    theatre.kill("a")
    wait_until(lambda: ": killed, signal 9" in log.read_text()[since:], "the end of the run", log)
    theatre.start_player("a")
    assert orchestra.wait(job, timeout=20).counts == {"killed": 1}
    ended = task(orchestra, job)
    assert ended.signal == signal.SIGKILL
    assert "timeout of 1s" in ended.reason
    assert State.KILLED.label == ended.state


def test_an_alarm_reaches_the_history_of_its_job(
    theatre: Theatre, orchestra: OutsideOrchestra, on_site: Callable[..., "subprocess.CompletedProcess[str]"]
) -> None:
    """And the reason that a status shows; also when the conductor was away as it was raised. The run goes on to count
    as running until it is gone."""
    chosen = settings.player(str(theatre.home / "c"))
    os.makedirs(chosen.state)
    command = impatient(stage_command(sys.executable, chosen, os.geteuid()), 0.1, NO_SIGKILL)

    def alarmed() -> list[dict[str, object]]:
        found = json.loads(on_site("status", "--json", player="c").stdout)
        return [run for run in found["runs"] if run["alarm"]]

    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as stage:
        try:
            wait_until(lambda: Path(chosen.stage).exists(), "the stage", Path())
            theatre.start_player("c")
            first = submit(orchestra, "late", "c")
            wait_until(lambda: task(orchestra, first).reason, "the alarm", theatre.home / "log" / "c.log")
            assert "after SIGKILL" in task(orchestra, first).why
            end(alarmed()[0]["pid"])  # type: ignore[arg-type]
            assert orchestra.wait(first, timeout=20).counts == {"killed": 1}
            assert "timeout" in task(orchestra, first).reason
            second = submit(orchestra, "late", "c")
            wait_until(lambda: orchestra.job(second).counts == {"dispatched": 1}, "the second run", Path())
            theatre.kill("conductor")
            wait_until(alarmed, "the second alarm", theatre.home / "log" / "c.log")
            theatre.start_conductor()
            wait_until(lambda: task(orchestra, second).reason, "what was missed", theatre.home / "log" / "c.log")
            end(alarmed()[0]["pid"])  # type: ignore[arg-type]
            assert orchestra.wait(second, timeout=20).counts == {"killed": 1}
            for job in (first, second):
                kinds = [event.kind for event in orchestra.events(job)]
                assert kinds == ["submitted", "dispatched", "unkillable", "killed", "ended"]
        finally:
            for run in alarmed():  # its own stage would wait for them for ever
                end(run["pid"])  # type: ignore[arg-type]
            theatre.stop("c")
            stage.kill()
