"""kill -9, pause and restart of real daemons under load: one true outcome for every job that was accepted, no run
twice. The scores themselves write the ledger that proves it."""

import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from conftest import log_of, until_logged
from outside import OutsideOrchestra
from stagehand import alive

from orchestra.audience.client import Ask, Scope
from orchestra.cli.theatre import Theatre, wait_until
from orchestra.errors import NoConductor, OrchestraError, Unanswered
from orchestra.player import sweep

JOBS = 200
KILLS = 7
STAGE_SLOTS = 4

# One write of a short line to a file opened with O_APPEND is whole.
LEDGER = """\
#!/bin/sh
echo "start $ORCHESTRA_JOB $ORCHESTRA_ATTEMPT" >> {ledger}
sleep "${{ORC_seconds-0.02}}"
echo "end $ORCHESTRA_JOB $ORCHESTRA_ATTEMPT" >> {ledger}
echo "answer=$ORCHESTRA_JOB"
"""


def prepare(theatre: Theatre) -> None:
    (theatre.home / "ledger" / "l").touch()
    text = LEDGER.format(ledger=theatre.home / "ledger" / "l")
    theatre.add_score("ledger", text, f"interface = pipe\nconcurrency = {STAGE_SLOTS}\ntimeout = 60s\n")
    theatre.add_score("again", text, "interface = pipe\nidempotent = yes\nmax_attempts = 3\n")
    for conf in (theatre.home / "conductor.conf", *theatre.home.glob("?/player.conf")):
        conf.write_text(conf.read_text() + "beat = 1s\n")


def lines(theatre: Theatre) -> list[str]:
    return (theatre.home / "ledger" / "l").read_text().splitlines()


def starts(theatre: Theatre, job: int) -> int:
    return sum(line.startswith(f"start {job} ") for line in lines(theatre))


def ends(theatre: Theatre, job: int) -> int:
    return sum(line.startswith(f"end {job} ") for line in lines(theatre))


def until_started(theatre: Theatre, job: int, times: int = 1) -> None:
    wait_until(lambda: starts(theatre, job) >= times, f"start {times} of job {job}", theatre.home / "log" / "a.log")


def accepted(orchestra: OutsideOrchestra, ask: Ask) -> int:
    """Submit as a careful program does: with a request key, and again while nobody answers."""
    found: list[int] = []

    def once() -> bool:
        try:
            found.append(orchestra.submit(ask).job)
        except OrchestraError as problem:
            assert type(problem).__name__ in (Unanswered.__name__, NoConductor.__name__), problem  # noqa: PT017 - the call may also succeed
        return bool(found)

    wait_until(once, "an answer to a submit", Path())
    return found[0]


class Killer:
    """Kills a daemon or a stage that ``chance`` names, and starts it again."""

    def __init__(self, theatre: Theatre, chance: random.Random) -> None:
        self.killed: Counter[str] = Counter()
        self._theatre = theatre
        self._chance = chance

    def strike(self) -> None:
        """Kill the next one."""
        victim = self._chance.choice(("conductor", "a", "b", "stage a", "stage b"))
        self.killed[victim] += 1
        if victim.startswith("stage"):
            self._theatre.kill_stage(victim[-1])
        elif victim == "conductor":
            self._theatre.kill(victim)
            self._theatre.start_conductor()
        else:
            self._theatre.kill(victim)
            self._theatre.start_player(victim)


@pytest.mark.parametrize("seed", [1, 20])
def test_every_accepted_job_ends_once_and_truly_whatever_is_killed(
    theatre: Theatre, orchestra: OutsideOrchestra, seed: int
) -> None:
    """Conductor, players and stages are killed while jobs are submitted and run, as a seed says."""
    chance = random.Random(seed)
    killer = Killer(theatre, chance)
    strikes = chance.sample(range(JOBS), KILLS)
    (theatre.home / "ledger" / "l").write_text("")
    jobs = []
    for n in range(JOBS):
        ask = Ask(score="ledger", targets=(chance.choice("ab"),), scope=Scope.ALL, request_key=f"{seed}-{n}")
        jobs.append(accepted(orchestra, ask))
        if n in strikes:
            killer.strike()

    def all_ended() -> bool:
        about = orchestra.about()
        return bool(about.pending + about.dispatched == 0)

    wait_until(all_ended, "the end of all jobs", theatre.home / "log" / "conductor.log")
    assert len(set(jobs)) == JOBS
    assert sum(killer.killed.values()) == KILLS
    check_outcomes(theatre, orchestra, jobs, killer.killed["stage a"] + killer.killed["stage b"])


def check_outcomes(theatre: Theatre, orchestra: OutsideOrchestra, jobs: list[int], stages_killed: int) -> None:
    lost = 0
    for job in jobs:
        [task] = list(orchestra.tasks(job))
        ended = [event.kind for event in orchestra.events(job) if event.kind in ("ok", "failed", "killed", "lost")]
        assert ended == [task.state], (job, task)
        assert task.state in ("ok", "lost"), (job, task)
        if task.state == "ok":
            assert (starts(theatre, job), ends(theatre, job)) == (1, 1), (job, task)
            assert task.response == {"answer": str(job)}
        else:
            lost += 1
            assert task.reason
            assert starts(theatre, job) <= 1
    # only what a killed stage was running may be lost
    assert lost <= STAGE_SLOTS * stages_killed


def test_a_run_that_outlives_its_player_and_its_conductor_is_adopted(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """Player stopped, conductor killed, both started again during a run of five seconds: ok, and it ran once."""
    job = accepted(orchestra, Ask(score="ledger", targets=("a",), scope=Scope.ALL, params={"seconds": "5"}))
    until_started(theatre, job)
    theatre.stop("a")
    theatre.kill("conductor")
    theatre.start_conductor()
    theatre.start_player("a")
    assert ends(theatre, job) == 0
    assert orchestra.wait(job, timeout=30).verdict == "ok"
    assert (starts(theatre, job), ends(theatre, job)) == (1, 1)
    [task] = list(orchestra.tasks(job))
    assert (task.attempt, task.response) == (1, {"answer": str(job)})
    assert task.ended_at - task.started_at >= 5000


def test_a_run_that_ends_while_its_player_is_dead_is_reported_all_the_same(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """The stage keeps the outcome until the player comes for it."""
    job = accepted(orchestra, Ask(score="ledger", targets=("a",), scope=Scope.ALL, params={"seconds": "0.5"}))
    until_started(theatre, job)
    theatre.kill("a")
    wait_until(lambda: ends(theatre, job) == 1, "the end of the run", theatre.home / "ledger" / "l")
    theatre.start_player("a")
    assert orchestra.wait(job, timeout=30).verdict == "ok"
    assert starts(theatre, job) == 1


def test_an_idempotent_score_runs_again_after_its_stage_was_killed(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """Lost once, done at the second attempt; the events say so."""
    job = accepted(orchestra, Ask(score="again", targets=("b",), scope=Scope.ALL, params={"seconds": "1"}))
    until_started(theatre, job)
    theatre.kill_stage("b")
    assert orchestra.wait(job, timeout=30).verdict == "ok"
    [task] = list(orchestra.tasks(job))
    assert task.attempt == 2
    assert starts(theatre, job) == 2
    kinds = [event.kind for event in orchestra.events(job)]
    assert kinds.count("dispatched") == 2
    assert kinds.count("ok") == 1


def test_a_score_that_is_not_idempotent_does_not_run_again(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """Nobody can know whether it did its work: lost, with a reason, started once."""
    job = accepted(orchestra, Ask(score="ledger", targets=("b",), scope=Scope.ALL, params={"seconds": "1"}))
    until_started(theatre, job)
    theatre.kill_stage("b")
    view = orchestra.wait(job, timeout=30)
    assert view.counts == {"lost": 1}
    [task] = list(orchestra.tasks(job))
    assert "stage" in task.reason
    assert starts(theatre, job) == 1


def test_a_player_that_is_killed_with_its_stage_loses_only_what_was_running(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """Nobody is left who knew of the run: it is found by its mark, ended, and only then lost. What had ended is told."""
    done = accepted(orchestra, Ask(score="ledger", targets=("b",), scope=Scope.ALL, params={"seconds": "0"}))
    assert orchestra.wait(done, timeout=30).verdict == "ok"
    job = accepted(orchestra, Ask(score="ledger", targets=("b",), scope=Scope.ALL, params={"seconds": "600"}))
    until_started(theatre, job)
    [run] = [one for one in sweep.scan() if f"ORCHESTRA_JOB={job}" in environment(one.pid, theatre)]
    theatre.kill("b")
    theatre.kill_stage("b")
    assert alive(run.pid)
    theatre.start_player("b")
    assert orchestra.wait(job, timeout=30).counts == {"lost": 1}
    assert not alive(run.pid)
    assert (starts(theatre, job), ends(theatre, job)) == (1, 0)
    again = accepted(orchestra, Ask(score="ledger", targets=("b",), scope=Scope.ALL))
    assert orchestra.wait(again, timeout=30).verdict == "ok"


def environment(pid: int, theatre: Theatre) -> list[str]:
    """What a score of this theatre was started with; nothing of others."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
        return Path(f"/proc/{pid}/environ").read_text().split("\0") if str(theatre.scores) in command else []
    except OSError:
        return []


def test_a_conductor_that_is_killed_at_once_after_its_answer_has_kept_the_job(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """Accepted means durable; the same key afterwards is the same job."""
    ask = Ask(score="uptime", targets=("c",), scope=Scope.ALL, request_key="kept")
    job = accepted(orchestra, ask)
    theatre.kill("conductor")
    theatre.start_conductor()
    assert orchestra.job(job).counts == {"pending": 1}
    again = orchestra.submit(ask)
    assert (again.job, again.created) == (job, False)
    orchestra.cancel(job)


def test_a_cancel_reaches_a_player_that_was_away(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """Its player is dead when the run is cancelled; when it is back, the run is killed."""
    job = accepted(orchestra, Ask(score="ledger", targets=("a",), scope=Scope.ALL, params={"seconds": "50"}))
    until_started(theatre, job)
    theatre.kill("a")
    orchestra.cancel(job)
    assert orchestra.job(job).counts == {"dispatched": 1}
    theatre.start_player("a")
    assert orchestra.wait(job, timeout=30).counts == {"killed": 1}
    assert ends(theatre, job) == 0


def test_a_player_that_was_paused_goes_on_where_it_was(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """SIGSTOP and SIGCONT: what came in between waits in the socket, and nothing happens twice."""
    os.kill(theatre.pid("b"), signal.SIGSTOP)
    try:
        asks = [Ask(score="ledger", targets=("b",), scope=Scope.ALL) for _ in range(3)]
        jobs = [accepted(orchestra, ask) for ask in asks]
        other = accepted(orchestra, Ask(score="ledger", targets=("a",), scope=Scope.ALL))
        assert orchestra.wait(other, timeout=30).verdict == "ok"
        assert [starts(theatre, job) for job in jobs] == [0, 0, 0]
    finally:
        os.kill(theatre.pid("b"), signal.SIGCONT)
    assert [orchestra.wait(job, timeout=30).verdict for job in jobs] == ["ok"] * 3
    assert [starts(theatre, job) for job in jobs] == [1, 1, 1]


def test_a_player_that_is_paused_for_long_is_cut_off_and_comes_back(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """Its silence is noticed, its run goes on upon the stage; back again, it reports what it could not."""
    job = accepted(orchestra, Ask(score="ledger", targets=("b",), scope=Scope.ALL, params={"seconds": "0.5"}))
    until_started(theatre, job)
    since = len(log_of(theatre, "conductor"))
    os.kill(theatre.pid("b"), signal.SIGSTOP)
    try:
        later = accepted(orchestra, Ask(score="ledger", targets=("b",), scope=Scope.ALL))
        until_logged(theatre, "conductor", "was silent for", "b.demo.test is offline", since=since)
        assert ends(theatre, job) == 1
        assert orchestra.job(job).counts == {"dispatched": 1}
    finally:
        os.kill(theatre.pid("b"), signal.SIGCONT)
    assert [orchestra.wait(each, timeout=30).verdict for each in (job, later)] == ["ok", "ok"]
    assert [starts(theatre, each) for each in (job, later)] == [1, 1]


def test_players_leave_a_conductor_that_is_paused_and_come_back(theatre: Theatre, orchestra: OutsideOrchestra) -> None:
    """A half-open line is left; what ended meanwhile is reported once the conductor breathes again."""
    job = accepted(orchestra, Ask(score="ledger", targets=("a",), scope=Scope.ALL, params={"seconds": "0.5"}))
    until_started(theatre, job)
    since = len(log_of(theatre, "a"))
    os.kill(theatre.pid("conductor"), signal.SIGSTOP)
    try:
        until_logged(theatre, "a", "was silent for", since=since)
        wait_until(lambda: ends(theatre, job) == 1, "the end of the run", theatre.home / "log" / "a.log")
    finally:
        os.kill(theatre.pid("conductor"), signal.SIGCONT)
    assert orchestra.wait(job, timeout=30).verdict == "ok"
    assert starts(theatre, job) == 1


def test_a_player_whose_journal_is_gone_says_that_its_run_is_lost(
    theatre: Theatre, orchestra: OutsideOrchestra
) -> None:
    """A new journal is a new player: what the old one had is lost, what comes next runs."""
    job = accepted(orchestra, Ask(score="ledger", targets=("b",), scope=Scope.ALL, params={"seconds": "50"}))
    until_started(theatre, job)
    theatre.kill("b")
    journal = theatre.home / "b" / "state" / "journal.sqlite"
    journal.unlink()
    for log in journal.parent.glob("journal.sqlite-*"):
        log.unlink()
    since = len(log_of(theatre, "conductor"))
    theatre.start_player("b")
    until_logged(theatre, "conductor", "b.demo.test is online", since=since)
    assert orchestra.wait(job, timeout=30).counts == {"lost": 1}
    after = accepted(orchestra, Ask(score="uptime", targets=("b",), scope=Scope.ALL))
    assert orchestra.wait(after, timeout=30).verdict == "ok"
    assert starts(theatre, job) == 1
