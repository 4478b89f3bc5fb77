"""The player's side of a real stage: runs asked for, adopted, ended and fetched; and the life of an execution."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted  # type: ignore[import-untyped]  # it has no types
from stagehand import ME, PATIENCE, Player, Theatre, wait_until_gone
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ProcessDone
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

from orchestra import settings
from orchestra.errors import NoStage, NotStarted, OutputGone, StageNotStarted
from orchestra.model import JournalEntry, Report, RunState, Stream, Told
from orchestra.player.backstage import Backstage, Outcome, StageProcess, start_stage
from orchestra.player.execution import Execution

Promise = Callable[..., Any]
ensure: Promise = pytest_twisted.ensureDeferred


class Troupe:
    """A player's service, as far as its stage can tell."""

    def __init__(self, theatre: Theatre) -> None:
        self.backstage = Backstage(reactor, str(theatre.socket), theatre.journal, self)
        self.lost: Deferred[str] = Deferred()
        self.upgrades: list[tuple[str, str]] = []
        self.starts: list[tuple[int, int]] = []
        self.reports: dict[int, Deferred[Report]] = {}

    def stage_lost(self, reason: str) -> None:
        self.lost.callback(reason)

    def stage_upgraded(self, program: str, reason: str) -> None:
        self.upgrades.append((program, reason))

    def entry(self, seq: int, score: str, **params: str) -> JournalEntry:
        starting = RunState.STARTING
        return JournalEntry(seq=seq, job=7, task=0, attempt=1, state=starting, boot="", score=score, params=params)

    def execution(self, entry: JournalEntry) -> Execution:
        self.reports[entry.seq] = Deferred()
        return Execution(entry, started=self._started, ended=self._ended)

    def perform(self, seq: int, score: str, **params: str) -> "Deferred[Report]":
        """Have a score performed; the report comes."""
        entry = self.entry(seq, score, **params)
        self.backstage.perform(entry, "web1.example.com", self.execution(entry))
        return self.report(seq)

    def report(self, seq: int) -> "Deferred[Report]":
        return soon(self.reports[seq])

    def _started(self, entry: JournalEntry, at: int) -> None:
        self.starts.append((entry.seq, at))

    def _ended(self, report: Report) -> None:
        self.reports[report.seq].callback(report)


def soon(waiting: "Deferred[Any]") -> "Deferred[Any]":
    """The same, but not for ever."""
    return waiting.addTimeout(PATIENCE, reactor)


@pytest.fixture
def theatre(tmp_path: Path) -> Iterator[Theatre]:
    made = Theatre(tmp_path)
    yield made
    made.close()


@pytest.fixture
def troupe(theatre: Theatre) -> Iterator[Troupe]:
    theatre.start()
    made = Troupe(theatre)
    yield made
    made.backstage.stop()


# ---- runs


@ensure
async def test_a_run_becomes_a_report(theatre: Theatre, troupe: Troupe) -> None:
    """Who it is, what became of it, and its short output."""
    theatre.score("ask", "echo a=1; echo hello $ORC_who; echo oops >&2; exit 3", "interface = pipe")
    standing = await troupe.backstage.connect()
    assert (standing.pid, standing.done, standing.running) == (theatre.stages[0].pid, {}, {})
    report = await troupe.perform(1, "ask", who="you")
    assert (report.seq, report.job, report.task, report.attempt) == (1, 7, 0, 1)
    assert (report.told, report.rc, report.signal, report.response) == (Told.FAILED, 3, None, {"a": "1"})
    assert (report.stdout.data, report.stderr.data) == (b"hello you\n", b"oops\n")
    assert report.stdout.spans == ((0, 10),)
    assert len(report.digest) == 64
    assert troupe.starts == [(1, report.started_at)]


@ensure
async def test_a_refused_run_was_never_started(troupe: Troupe) -> None:
    await troupe.backstage.connect()
    report = await troupe.perform(1, "missing")
    assert (report.told, report.reason) == (Told.REFUSED, "This player has no score named 'missing'.")
    assert troupe.starts == []


@ensure
async def test_many_runs_are_asked_for_at_once(theatre: Theatre, troupe: Troupe) -> None:
    """Each gets its own answer."""
    theatre.score("echo", "echo $ORC_n")
    await troupe.backstage.connect()
    waiting = [troupe.perform(seq, "echo", n=str(seq)) for seq in range(1, 33)]
    assert [(await one).stdout.data for one in waiting] == [b"%d\n" % seq for seq in range(1, 33)]


@ensure
async def test_a_run_can_be_ended(theatre: Theatre, troupe: Troupe) -> None:
    theatre.score("long", "exec sleep 60")
    await troupe.backstage.connect()
    waiting = troupe.perform(1, "long")
    troupe.backstage.kill(1, "cancelled")
    report = await waiting
    assert (report.told, report.reason, report.signal) == (Told.KILLED, "cancelled", signal.SIGTERM)


@ensure
async def test_long_output_is_fetched(theatre: Theatre, troupe: Troupe) -> None:
    """It stays on the stage; the report has its spans and no data."""
    theatre.score("much", "head -c 20000 /dev/zero; printf end", "output_limit = 12k")
    await troupe.backstage.connect()
    report = await troupe.perform(1, "much")
    assert (report.stdout.total, report.stdout.spans, report.stdout.data) == (20003, ((0, 3072), (10787, 9216)), b"")
    pieces = [troupe.backstage.fetch(1, 1, offset, size) for offset, size in report.stdout.spans]
    assert [await soon(piece) for piece in pieces] == [bytes(3072), bytes(9213) + b"end"]
    with pytest.raises(OutputGone):
        await soon(troupe.backstage.fetch(1, 1, 3072, 10))


@ensure
async def test_what_is_forgotten_is_not_told_again(theatre: Theatre, troupe: Troupe) -> None:
    theatre.score("echo", "echo hello")
    await troupe.backstage.connect()
    first, second = await troupe.perform(1, "echo"), await troupe.perform(2, "echo")
    troupe.backstage.forget((1,))
    standing = await troupe.backstage.connect()
    assert set(standing.done) == {2}
    assert standing.done[2].report(troupe.entry(2, "echo")) == second != first


class Recorder(ProcessProtocol):
    """What a process protocol goes through."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.ended: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        self.heard.append("made")

    def processExited(self, reason: Failure) -> None:
        self.heard.append("exited")

    def processEnded(self, reason: Failure) -> None:
        self.heard.append("ended")
        self.reason = reason.value
        self.ended.callback(None)


@ensure
async def test_a_run_looks_like_a_process_of_the_reactors(theatre: Theatre, troupe: Troupe) -> None:
    theatre.score("good", "true")
    theatre.score("bad", "exit 3")
    theatre.score("long", "exec sleep 60")
    await troupe.backstage.connect()
    heard = []
    for seq, score in enumerate(("good", "bad", "missing"), 1):
        protocol = Recorder()
        troupe.backstage.perform(troupe.entry(seq, score), "web1", protocol)
        await soon(protocol.ended)
        heard.append((protocol.heard, type(protocol.reason).__name__, getattr(protocol.reason, "exitCode", None)))
    assert heard == [
        (["made", "exited", "ended"], "ProcessDone", 0),
        (["made", "exited", "ended"], "ProcessTerminated", 3),
        (["exited", "ended"], "NotStarted", None),
    ]


# ---- losing and finding the stage


@ensure
async def test_without_a_stage_connecting_says_so(theatre: Theatre) -> None:
    troupe = Troupe(theatre)
    with pytest.raises(NoStage, match=f"No stage answers at {theatre.socket}"):
        await troupe.backstage.connect()
    assert not troupe.backstage.up
    with pytest.raises(NoStage):
        await troupe.backstage.fetch(1, 1, 0, 1)


@ensure
async def test_a_run_outlives_its_player_and_is_adopted(theatre: Theatre, troupe: Troupe) -> None:
    """A run of two seconds: the player goes, another comes, and the report is as if nothing had been."""
    theatre.score("two-seconds", "sleep 2; echo survived")
    await troupe.backstage.connect()
    protocol = Recorder()
    troupe.backstage.perform(troupe.entry(1, "two-seconds"), "web1", protocol)
    troupe.backstage.stop()
    again = Troupe(theatre)
    standing = await again.backstage.connect()
    assert set(standing.running) == {1}
    entry = again.entry(1, "two-seconds")
    again.backstage.adopt(1, again.execution(entry))
    report = await again.report(1)
    assert (report.told, report.stdout.data) == (Told.OK, b"survived\n")
    assert again.starts == [(1, report.started_at)]
    assert report.started_at is not None and report.ended_at is not None
    assert report.ended_at - report.started_at >= 2000
    again.backstage.stop()


@ensure
async def test_an_end_before_the_adoption_is_not_missed(theatre: Theatre, troupe: Troupe, tmp_path: Path) -> None:
    """Between the stage's answer and the adoption there is an fsync of the journal; a run may end meanwhile."""
    os.mkfifo(tmp_path / "go")
    theatre.score("wait", f"cat {tmp_path}/go")
    theatre.score("echo", "true")
    await troupe.backstage.connect()
    unheard = Recorder()
    troupe.backstage.perform(troupe.entry(1, "wait"), "web1", unheard)
    standing = await troupe.backstage.connect()
    assert set(standing.running) == {1}
    (tmp_path / "go").write_text("done\n")
    while not theatre.files(1).done():  # rounds through the stage: it has told us by the next answer
        await troupe.perform(2 + len(troupe.reports), "echo")
    await troupe.perform(2 + len(troupe.reports), "echo")
    troupe.backstage.adopt(1, troupe.execution(troupe.entry(1, "wait")))
    report = await troupe.report(1)
    assert (report.told, report.stdout.data) == (Told.OK, b"done\n")


@ensure
async def test_a_lost_stage_is_noticed_and_its_successor_knows_what_is_gone(theatre: Theatre, troupe: Troupe) -> None:
    """kill -9 in mid-run: no report is made up; the next stage says that the run was swept."""
    theatre.score("long", "exec sleep 60")
    await troupe.backstage.connect()
    entry = troupe.entry(1, "long")
    started: Deferred[None] = Deferred()

    class Noticed(Recorder):
        def connectionMade(self) -> None:
            started.callback(None)

    protocol = Noticed()
    troupe.backstage.perform(entry, "web1", protocol)
    fetching = troupe.backstage.fetch(1, 1, 0, 1)
    with pytest.raises(OutputGone):
        await soon(fetching)
    await soon(started)
    theatre.stages[0].kill()
    await soon(troupe.lost)
    assert not troupe.backstage.up
    assert protocol.heard == []
    theatre.start()
    standing = await troupe.backstage.connect()
    assert (standing.swept, standing.running, standing.done) == (frozenset({1}), {}, {})


@ensure
async def test_a_number_that_was_begun_by_somebody_else_leads_to_settling(theatre: Theatre, troupe: Troupe) -> None:
    """The stage says it has begun that run before: only a new connection tells the truth about it."""
    theatre.score("echo", "echo once")
    await troupe.backstage.connect()
    await troupe.perform(1, "echo")
    protocol = Recorder()
    troupe.backstage.perform(troupe.entry(1, "echo"), "web1", protocol)
    assert "begun run 1 before" in await soon(troupe.lost)
    assert protocol.heard == []
    standing = await troupe.backstage.connect()
    assert standing.done[1].body == b"once\n"


@ensure
async def test_a_newer_player_takes_the_stage_over(theatre: Theatre, troupe: Troupe) -> None:
    await troupe.backstage.connect()
    newer = Player(theatre)
    await soon(troupe.lost)
    newer.close()


@ensure
async def test_leaving_is_not_losing(theatre: Theatre, troupe: Troupe) -> None:
    """Who stops is not told that the stage is lost."""
    theatre.score("echo", "true")
    await troupe.backstage.connect()
    troupe.backstage.stop()
    assert not troupe.backstage.up and not troupe.lost.called
    await troupe.backstage.connect()
    assert (await troupe.perform(1, "echo")).told is Told.OK


# ---- starting a stage


def chosen(theatre: Theatre, score_user: str = ME) -> settings.PlayerSettings:
    """A player's settings that lead here."""
    config = theatre.scores.parent
    here = {
        "conductors": "conductor.example.com",
        "stage": str(theatre.socket),
        "stage_dir": str(theatre.state),
        "scores": str(theatre.scores),
        "score_user": score_user,
    }
    (config / "player.conf").write_text("".join(f"{key} = {value}\n" for key, value in here.items()))
    return settings.player(str(config))


@ensure
async def test_a_stage_is_started_as_nobodys_child(theatre: Theatre) -> None:
    """It is ready when that is said, in a session of its own, with no ties to us; a second one is turned down."""
    theatre.score("echo", "echo hello; exec 1>&-; cut -d' ' -f 4,6 /proc/$PPID/stat >&2")
    await soon(start_stage(reactor, chosen(theatre)))
    troupe = Troupe(theatre)
    standing = await troupe.backstage.connect()
    try:
        with pytest.raises(StageNotStarted, match="Another stage is already using"):
            await soon(start_stage(reactor, chosen(theatre)))
        report = await troupe.perform(1, "echo")
        parent, session = map(int, report.stderr.data.split())
        assert (report.told, report.stdout.data) == (Told.OK, b"hello\n")
        assert parent != os.getpid() and session not in (os.getsid(0), standing.pid)
        assert "run 1 of echo: started" in (theatre.state / "stage.log").read_text()
    finally:
        troupe.backstage.stop()
        os.kill(standing.pid, signal.SIGTERM)
        wait_until_gone(standing.pid)


@ensure
async def test_why_a_stage_did_not_start_is_told(theatre: Theatre) -> None:
    theatre.state.write_text("in the way")
    with pytest.raises(StageNotStarted, match=f"{theatre.state}.*: (File exists|Not a directory)"):
        await soon(start_stage(reactor, chosen(theatre)))


# ---- the life of an execution


ENTRY = JournalEntry(seq=5, job=1, task=2, attempt=3, state=RunState.STARTING, boot="", score="any")


def lived(*steps: Callable[[Execution], None]) -> tuple[list[int], list[Report]]:
    starts: list[int] = []
    reports: list[Report] = []
    execution = Execution(ENTRY, started=lambda entry, at: starts.append(at), ended=reports.append)
    for step in steps:
        step(execution)
    return starts, reports


def begun(outcome: Outcome | None, at: int | None = 1000) -> Callable[[Execution], None]:
    process = StageProcess(None, 5, 77, at)  # type: ignore[arg-type]  # nothing is said back
    process.outcome = outcome
    return lambda execution: execution.makeConnection(process)


def over(execution: Execution) -> None:
    execution.processEnded(Failure(ProcessDone(0)))


def test_an_execution_reports_once_what_the_stage_says() -> None:
    outcome = Outcome(Told.OK, rc=0, started_at=1000, ended_at=1100, digest="d", notes=("left 1 process behind",))
    report = Report(5, 1, 2, 3, Told.OK, rc=0, started_at=1000, ended_at=1100, digest="d", notes=outcome.notes)
    assert lived(begun(outcome), over) == ([1000], [report])


def test_a_refused_execution_never_started() -> None:
    refused = Failure(NotStarted(reason="no such user"))
    starts, reports = lived(lambda execution: execution.processEnded(refused))
    assert (starts, reports) == ([], [Report(5, 1, 2, 3, Told.REFUSED, "no such user")])


def test_what_a_dead_stage_left_and_nobody_could_kill_ends_as_lost() -> None:
    """It has no start that is known, and it is lost when it is gone at last."""
    starts, reports = lived(begun(Outcome(Told.LOST, "the stage died"), at=None), over)
    assert (starts, reports) == ([], [Report(5, 1, 2, 3, Told.LOST, "the stage died")])


def test_a_life_goes_one_way() -> None:
    """What comes a second time, or too late, is our bug: nothing is told of it."""
    refused = Failure(NotStarted(reason="no such user"))
    ended = begun(Outcome(Told.OK)), over
    for steps in ((*ended, over), (*ended, ended[0]), (begun(None), lambda execution: execution.processEnded(refused))):
        with pytest.raises(ValueError, match="run 5 is "):
            lived(*steps)


def test_an_outcomes_body_is_stdout_then_stderr() -> None:
    outcome = Outcome(Told.OK, body=b"outerr")
    with_spans = {"stdout": {"total": 9, "spans": [(0, 1), (7, 2)]}, "stderr": {"total": 3, "spans": [(0, 3)]}}
    decoded = msgspec.structs.replace(msgspec.convert({"told": "ok", **with_spans}, Outcome), body=outcome.body)
    report = decoded.report(ENTRY)
    assert report.stdout == Stream(9, None, ((0, 1), (7, 2)), b"out")
    assert report.stderr == Stream(3, None, ((0, 3),), b"err")
