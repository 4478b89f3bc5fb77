"""Real daemons, real TLS, real scores: what a user relies on, from submit to answer, and under SIGKILL."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from conftest import Perform
from msgspec.structs import replace
from outside import OutsideOrchestra

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import (
    BadRequest,
    OrchestraError,
    RequestKeyConflict,
    ScoreNotRun,
    UnknownHosts,
    UnknownScore,
)
from orchestra.model import Asker, NewJob
from orchestra.security import authority
from orchestra.store import sqlite, statements

LEDGER = """\
#!/bin/sh
echo "start $ORCHESTRA_JOB" >> {ledger}
sleep "${{ORC_seconds-0.02}}"
echo "end $ORCHESTRA_JOB" >> {ledger}
echo "answer=$ORCHESTRA_JOB"
"""


def prepare(theatre: Theatre) -> None:
    ledger = theatre.home / "ledger" / "l"
    ledger.touch()
    theatre.add_score("ledger", LEDGER.format(ledger=ledger), "interface = pipe\nconcurrency = 4\ntimeout = 60s\n")
    theatre.add_score(
        "deaf", "#!/bin/sh\ntrap '' TERM\necho ready\nwhile :; do sleep 1; done\n", "timeout = 1s\nkill_grace = 1s\n"
    )
    theatre.add_score("suicide", "#!/bin/sh\nkill -SEGV $$\n", "")
    theatre.add_score("loud", "#!/bin/sh\nhead -c 100000000 /dev/zero\n", "timeout = 60s\n")
    theatre.add_score("forker", "#!/bin/sh\nsleep 3 &\necho forked\n", "")
    theatre.add_score("wanted", "#!/bin/sh\n", "user = nosuchuser\n")
    theatre.add_score("unfit", "#!/bin/sh\n", "")
    (theatre.scores / "unfit").chmod(0o775)
    theatre.add_score("garbled", "#!/bin/sh\n", "timeout = soon\n")
    (theatre.scores / "note").write_text("no x bit\n")


def test_every_host_gives_its_answer(perform: Perform) -> None:
    """All-of: an outcome, a response and times per host."""
    job, tasks = perform("ledger", "a", "b", "a.demo.test", seconds="0")
    assert job.verdict == "ok"
    assert [task.player for task in tasks] == ["a.demo.test", "b.demo.test"]
    assert all(task.response == {"answer": str(job.job)} and task.rc == 0 and task.digest for task in tasks)


def test_one_of_goes_to_a_player_that_is_there(perform: Perform) -> None:
    """The one that is away is not waited for."""
    job, [task] = perform("uptime", "a", "b", "c", scope=Scope.ONE)
    assert job.verdict == "ok"
    assert task.player in ("a.demo.test", "b.demo.test")
    assert task.stdout.data.startswith(b"up ")


def test_a_hard_failure_ends_it_with_its_status(perform: Perform) -> None:
    """A one-of that failed is not tried elsewhere."""
    job, [task] = perform("fail", "a", "b", scope=Scope.ONE, status="3")
    assert (job.verdict, task.state, task.rc, task.attempt) == ("failed", "failed", 3, 1)


def test_a_score_that_is_killed_by_a_signal_says_which(perform: Perform) -> None:
    """A signal is a failure that names it."""
    _, [task] = perform("suicide", "a")
    assert (task.state, task.rc, task.signal) == ("failed", None, signal.SIGSEGV)


def test_a_score_that_ignores_sigterm_is_killed(perform: Perform) -> None:
    """The timeout is kept, whatever the score thinks of it."""
    _, [task] = perform("deaf", "a")
    assert (task.state, task.signal) == ("killed", signal.SIGKILL)
    assert "timeout" in task.reason
    assert task.stdout.data == b"ready\n"


def test_a_hundred_megabytes_are_counted_and_the_ends_are_kept(perform: Perform, orchestra: OutsideOrchestra) -> None:
    """True byte count, bounded memory on the way, the kept part readable."""
    job, [task] = perform("loud", "a")
    assert (task.state, task.stdout.total) == ("ok", 100_000_000)
    assert task.stdout.spans == ((0, 65536), (99_803_392, 196_608))
    pieces = list(orchestra.output(job.job, task.task, 1))
    assert sum(len(data) for _, data in pieces) == 262_144


def test_a_score_that_forks_a_daemon_ends_when_it_ends(perform: Perform) -> None:
    """What it leaves behind is noted, not killed, and delays nothing."""
    _, [task] = perform("forker", "a")
    assert (task.state, task.stdout.data) == ("ok", b"forked\n")
    assert any("behind" in note for note in task.notes)
    assert task.ended_at is not None
    assert task.started_at is not None
    assert task.ended_at - task.started_at < 3000


def test_unfit_scores_are_left_out_with_their_reason(orchestra: OutsideOrchestra) -> None:
    """The others stay; the conductor can say why."""
    [(catalogue, _)] = list(orchestra.catalogues(["a.demo.test"]))
    reasons = {refused.name: refused.reason for refused in catalogue.refused}
    assert set(reasons) == {"unfit", "garbled", "note"}
    assert "writable" in reasons["unfit"]
    assert "timeout" in reasons["garbled"]
    assert "execut" in reasons["note"]
    with pytest.raises(ScoreNotRun, match="chmod go-w"):
        orchestra.submit(Ask(score="unfit", targets=("a",), scope=Scope.ALL))


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (Ask(score="nosuch", targets=("a",), scope=Scope.ALL), UnknownScore, "nosuch"),
        (Ask(score="uptime", targets=("ab",), scope=Scope.ALL), UnknownHosts, "ab"),
        (Ask(score="uptime", targets=(), scope=Scope.ALL), BadRequest, "target"),
        (Ask(score="uptime", targets=("a",), scope=Scope.ALL, params={"9": "x"}), BadRequest, "9"),
        (Ask(score="uptime", targets=("a",), scope=Scope.ALL, params={"k": "a\0b"}), BadRequest, "k"),
        (Ask(score="uptime", targets=("a",), scope=Scope.ALL, params={"k": "x" * 16385}), BadRequest, "16"),
        (
            Ask(score="uptime", targets=("a",), scope=Scope.ALL, params=dict.fromkeys("abcd", "x" * 16383) | {"e": ""}),
            BadRequest,
            "64",
        ),
    ],
)
def test_a_bad_request_gets_a_sentence(
    orchestra: OutsideOrchestra, ask: Ask, error: type[OrchestraError], says: str
) -> None:
    """What is wrong, and where; nothing is queued."""
    before = orchestra.about()
    with pytest.raises(error) as caught:
        orchestra.submit(ask)
    assert says in caught.value.sentence
    assert orchestra.about().pending == before.pending


def test_sixty_four_kibibytes_of_parameters_arrive(perform: Perform) -> None:
    """Exactly the limit is not over it."""
    job, _ = perform("uptime", "a", **dict.fromkeys("abcd", "x" * 16383))
    assert job.verdict == "ok"


def test_a_request_key_makes_one_job(orchestra: OutsideOrchestra) -> None:
    """The same request again is the same job; another one under that key is an error."""
    ask = Ask(score="uptime", targets=("a",), scope=Scope.ALL, request_key="k1")
    first = orchestra.submit(ask)
    again = orchestra.submit(ask)
    assert (again.job, first.created, again.created) == (first.job, True, False)
    with pytest.raises(RequestKeyConflict):
        orchestra.submit(Ask(score="uptime", targets=("b",), scope=Scope.ALL, request_key="k1"))


def test_a_retried_request_is_its_job_though_nobody_has_the_score_any_more(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """What was accepted stays so; what is new is refused."""

    def known() -> bool:
        return any(entry.name == "fleeting" for one, _ in orchestra.catalogues(["a"]) for entry in one.scores)

    log = theatre.home / "log" / "a.log"
    theatre.add_score("fleeting", "#!/bin/sh\n", "")
    wait_until(known, "a score", log)
    ask = Ask(score="fleeting", targets=("a",), scope=Scope.ALL, request_key="fleeting")
    first = orchestra.submit(ask)
    for path in theatre.scores.glob("fleeting*"):
        path.unlink()
    wait_until(lambda: not known(), "the end of a score", log)
    again = orchestra.submit(ask)
    assert (again.job, again.created) == (first.job, False)
    with pytest.raises(UnknownScore):
        orchestra.submit(replace(ask, request_key="another"))


def test_what_waits_says_why_and_can_be_cancelled_or_expires(orchestra: OutsideOrchestra) -> None:
    """For a host that is away: a reason, and an end that is known."""
    waiting = orchestra.submit(Ask(score="uptime", targets=("c",), scope=Scope.ALL))
    assert "never seen yet" in waiting.waits[0].why
    assert "never seen yet" in next(iter(orchestra.tasks(waiting.job))).why
    orchestra.cancel(waiting.job)
    assert orchestra.wait(waiting.job).counts == {"cancelled": 1}
    short = orchestra.submit(Ask(score="uptime", targets=("c",), scope=Scope.ALL, expire=0.2))
    assert orchestra.wait(short.job).counts == {"expired": 1}


def test_a_running_score_is_killed_by_a_cancel(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """Killed only when it is proved; the status says so."""
    job = orchestra.submit(Ask(score="ledger", targets=("a",), scope=Scope.ALL, params={"seconds": "50"})).job
    ledger = theatre.home / "ledger" / "l"
    wait_until(lambda: f"start {job}\n" in ledger.read_text(), "the run", ledger)
    orchestra.cancel(job)
    assert orchestra.wait(job).counts == {"killed": 1}
    assert f"end {job}\n" not in ledger.read_text()


def test_a_one_of_that_every_player_refuses_is_refused(orchestra: OutsideOrchestra) -> None:
    """A refusal is proof that it was not started there, so each is asked in turn."""
    job = orchestra.submit(Ask(score="wanted", targets=("a", "b"), scope=Scope.ONE)).job
    assert orchestra.wait(job).counts == {"refused": 1}
    refusing = {event.player for event in orchestra.events(job) if event.kind == "dispatched"}
    assert refusing == {"a.demo.test", "b.demo.test"}


def test_a_player_that_is_stopped_and_started_during_a_run_adopts_it(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """The run goes on upon its stage, and its outcome is ok; it ran once."""
    job = orchestra.submit(Ask(score="ledger", targets=("b",), scope=Scope.ALL, params={"seconds": "3"})).job
    ledger = theatre.home / "ledger" / "l"
    wait_until(lambda: f"start {job}\n" in ledger.read_text(), "the run", ledger)
    theatre.stop("b")
    theatre.start_player("b")
    assert orchestra.wait(job).verdict == "ok"
    assert Counter(ledger.read_text().splitlines())[f"start {job}"] == 1


def test_a_second_conductor_on_the_same_state_is_refused(theatre: Theatre) -> None:
    """It says who is in the way, with the status of a configuration error."""
    twistd = str(Path(sys.executable).with_name("twistd"))
    command = [twistd, "-n", "--pidfile=", "conductor", f"--config={theatre.home}", "--listen=127.0.0.1:0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=theatre.home)
    assert done.returncode == 78
    assert "already using" in done.stderr


def test_a_player_of_another_authority_and_one_that_is_not_listed_learn_why(theatre: Theatre) -> None:
    """Each has its sentence in its own log."""
    rogue = authority.init(theatre.home / "rogue-ca", "Somebody else")
    rogue.issue("player", ["x.demo.test"], out=theatre.home / "rogue")
    authority.load(theatre.home / "ca").issue("player", ["y.demo.test"], out=theatre.home / "tls")
    both = theatre.home / "rogue" / "both.crt"
    both.write_bytes((theatre.home / "rogue" / "ca.crt").read_bytes() + (theatre.home / "tls" / "ca.crt").read_bytes())
    theatre.write_player("x.demo.test", theatre.home / "rogue", ca=both)
    theatre.write_player("y.demo.test", theatre.home / "tls")
    for short, sentence in (
        ("x", "does not trust our certificate authority"),
        ("y", "not in the conductor's players file"),
    ):
        log = theatre.home / "log" / f"{short}.log"
        theatre.start_player(short)
        try:
            wait_until(lambda log=log, s=sentence: log.exists() and s in log.read_text(), sentence, log)
        finally:
            theatre.stop(short)


def test_sighup_and_reload_take_new_players_and_refuse_mistakes(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """A bad file is refused and the old one stays."""
    players = theatre.home / "players"
    before = players.read_text()
    players.write_text(before + "new.demo.test\n")
    assert "player new.demo.test added" in orchestra.reload().changed
    players.write_text(before + "not a host\n")
    assert "players" in orchestra.reload().refused[0]
    assert orchestra.submit(Ask(score="uptime", targets=("new",), scope=Scope.ALL)).waiting == 1
    players.write_text(before)
    os.kill(theatre.pid("conductor"), signal.SIGHUP)
    wait_until(lambda: _unknown(orchestra, "new"), "the removal", theatre.home / "log" / "conductor.log")


def _unknown(orchestra: OutsideOrchestra, name: str) -> bool:
    try:
        orchestra.submit(Ask(score="uptime", targets=(name,), scope=Scope.ALL, expire=60))
    except UnknownHosts:
        return True
    return False


def test_the_commands_say_and_end_as_they_promise(theatre: Theatre) -> None:
    """Exit statuses for programs, sentences for people."""
    environment = {**os.environ, "ORCHESTRA_SOCKET": str(theatre.socket)}

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        program = str(Path(sys.executable).with_name(words[0]))
        return subprocess.run(
            [program, *words[1:]], capture_output=True, text=True, env=environment, timeout=60, check=False
        )

    done = command("submitjob", "uptime", "a", "b", "--all", "--wait")
    assert (done.returncode, done.stdout.count("up ")) == (0, 2)
    assert command("submitjob", "fail", "a", "status=1", "--wait").returncode == 10
    assert command("submitjob", "uptime", "c", "--expire", "0.2", "--wait").returncode == 12
    assert command("submitjob", "uptime", "a", "b").returncode == 64
    plain = command("submitjob", "uptime", "c", "--expire", "1")
    assert plain.stdout.strip().isdigit()
    assert "never seen yet" in plain.stderr
    status = command("getstatus", plain.stdout.strip())
    assert (status.returncode, "c.demo.test" in status.stdout) == (0, True)
    environment["ORCHESTRA_SOCKET"] = str(theatre.home / "nobody")
    assert command("getstatus").returncode == 69


def test_nothing_is_lost_or_run_twice_when_daemons_are_killed(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """200 jobs; conductor and players killed at points that the ledger chooses. A killed player's runs go on, so every
    job ends as ok, and ran once."""
    ledger = theatre.home / "ledger" / "l"
    ledger.write_text("")
    chance = random.Random(7)
    jobs = [
        orchestra.submit(Ask(score="ledger", targets=(chance.choice("ab"),), scope=Scope.ALL)).job for _ in range(200)
    ]
    for daemon in ("a", "conductor", "b", "conductor", "a"):
        seen = len(ledger.read_text().splitlines())
        wait_until(lambda seen=seen: len(ledger.read_text().splitlines()) >= min(seen + 20, 400), "progress", ledger)
        theatre.kill(daemon)
        theatre.start_conductor() if daemon == "conductor" else theatre.start_player(daemon)
    outcomes = Counter(orchestra.wait(job).verdict for job in jobs)
    lines = Counter(ledger.read_text().splitlines())
    assert outcomes == {"ok": 200}
    assert all(lines[f"start {job}"] == lines[f"end {job}"] == 1 for job in jobs)


def test_a_stage_that_is_killed_loses_only_what_it_ran_and_says_so(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """kill -9 of the stages: what they ran is lost, the rest is ok; nothing ran twice."""
    ledger = theatre.home / "ledger" / "l"
    ledger.write_text("")
    asks = [Ask(score="ledger", targets=(host,), scope=Scope.ALL, params={"seconds": "0.3"}) for host in "ab" * 10]
    jobs = [orchestra.submit(ask).job for ask in asks]
    wait_until(lambda: ledger.read_text().count("start") >= 4, "the first runs", ledger)
    for pid in theatre.stages():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    outcomes = {job: next(iter(orchestra.wait(job).counts)) for job in jobs}
    lines = Counter(ledger.read_text().splitlines())
    assert set(outcomes.values()) <= {"ok", "lost"}
    assert "lost" in outcomes.values()
    assert "ok" in outcomes.values()
    assert all(lines[f"start {job}"] <= 1 for job in jobs)
    assert all(lines[f"end {job}"] == 1 for job, outcome in outcomes.items() if outcome == "ok")


def test_two_players_with_one_name_do_not_share_it(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """The newer journal has the name; the older machine is told so until an operator forgives it."""
    name = "b.demo.test"
    theatre.stop("b")
    twin = theatre.write_player(name, theatre.home / "tls")
    text = (twin / "player.conf").read_text()
    other = theatre.home / "twin"
    other.mkdir(mode=0o755)
    (other / "player.conf").write_text(text.replace("/b/state", "/twin/state").replace("run/b.", "run/twin."))
    theatre.start_player("twin")
    log = theatre.home / "log" / "b.log"
    try:
        wait_until(lambda: _is_online(orchestra, name), "the twin", theatre.home / "log" / "twin.log")
        before = len(log.read_text())
        theatre.start_player("b")
        wait_until(lambda: "has come with another journal since" in log.read_text()[before:], "the refusal", log)
    finally:
        theatre.stop("twin")
    theatre.stop("b")
    assert orchestra.forgive("b") == 1
    theatre.start_player("b")
    wait_until(lambda: _is_online(orchestra, name), "the forgiven player", log)


def _is_online(orchestra: OutsideOrchestra, name: str) -> bool:
    return any(player.name == name and player.status == "online" for player in orchestra.players())


def test_twelve_thousand_jobs_for_an_absent_player_are_in_nobodys_way(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """They wait on disk: the conductor restarts with them, and another player's job is done meanwhile."""
    orchestra.about()  # the client is there before the conductor goes
    theatre.stop("conductor")
    connection = sqlite.connect(str(theatre.home / "conductor" / "state" / "store.sqlite"))
    cursor = connection.cursor()
    player = statements.roster(cursor)["c.demo.test"][0]
    cursor.execute("BEGIN")
    for _ in range(12_000):
        statements.submit(cursor, _waiting_job(player), 1)
    cursor.execute("COMMIT")
    connection.close()
    theatre.start_conductor()
    wait_until(lambda: orchestra.about().online == 2, "the players", theatre.home / "log" / "conductor.log")
    assert orchestra.about().pending >= 12_000
    job = orchestra.submit(Ask(score="uptime", targets=("a",), scope=Scope.ALL)).job
    assert orchestra.wait(job).verdict == "ok"


def _waiting_job(player: int) -> NewJob:
    return NewJob(
        owner=Asker("somebody", 1000),
        request_key=None,
        score="uptime",
        params={},
        scope=Scope.ALL,
        players=(player,),
        idempotent=False,
        max_attempts=1,
        priority=-1,
        expires_at=None,
        give_up_after=1,
    )


def test_a_job_for_a_player_that_was_away_runs_when_it_comes(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """It waits in the store, and is there first thing."""
    job = orchestra.submit(Ask(score="uptime", targets=("c",), scope=Scope.ALL)).job
    theatre.start_player("c")
    assert orchestra.wait(job).verdict == "ok"
