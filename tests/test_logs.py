"""The daemons' logs: one event is one line, nothing in it can pretend to be another, and the file is bounded."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, Logger, LogLevel
from twisted.protocols.amp import AMP
from twisted.python import log as legacy
from twisted.python.failure import Failure

from orchestra import logs
from orchestra.errors import NoSuchJob
from orchestra.logs import BoundedLog, json_line, observer, text_line, worth_saying

AT = 1_767_323_045.678


def event(log_format: str | None = "hello", **fields: Any) -> LogEvent:
    return {
        "log_time": AT,
        "log_level": LogLevel.info,
        "log_namespace": "orchestra.conductor.service",
        "log_format": log_format,
        **fields,
    }


def failure(problem: BaseException) -> Failure:
    try:
        raise problem
    except type(problem):
        return Failure()


# ---- lines


def test_an_event_is_a_line_with_time_level_and_speaker() -> None:
    assert text_line(event("{player} took {task}", player="web1", task=7)) == (
        "2026-01-02T03:04:05.678Z info  [conductor] web1 took 7\n"
    )


@pytest.mark.parametrize(
    ("namespace", "system"),
    [
        ("orchestra.player.line", "player"),
        ("orchestra.logs", "logs"),
        ("orchestra", "orchestra"),
        ("twisted.internet.base", "twisted"),
        ("log_legacy", "log_legacy"),
    ],
)
def test_who_speaks_is_the_room(namespace: str, system: str) -> None:
    assert logs.system(event(log_namespace=namespace)) == system


def test_what_came_over_the_wire_can_neither_forge_a_line_nor_move_the_cursor() -> None:
    line = text_line(event("{name} is here", name="x\n2026 critical [y] \x1b[2Jz\x85\u2028\u202e\ud800ä€"))
    assert line is not None
    assert line.endswith("[conductor] x\\n2026 critical [y] \\x1b[2Jz\\x85\\u2028\\u202e\\ud800ä€ is here\n")


@given(st.text())
def test_any_text_is_one_line_that_can_be_written(text: str) -> None:
    line = text_line(event("{text}!", text=text))
    assert line is not None
    assert line.encode().decode().splitlines() == [line.removesuffix("\n")]


def test_a_failure_is_one_line_with_its_type_and_sentence() -> None:
    """An expected failure needs no traceback, however long its text."""
    line = text_line(event("asking", log_failure=failure(NoSuchJob(job=7)), log_level=LogLevel.error))
    assert line == (
        "2026-01-02T03:04:05.678Z error [conductor] asking: NoSuchJob: "
        "There is no job 7; 'orchestra jobs' lists the ones that are kept.\n"
    )


def test_a_bug_has_its_traceback_indented_below() -> None:
    line = text_line(event("Oops:", log_failure=failure(ValueError("a\nb")), log_level=LogLevel.critical))
    assert line is not None
    first, *rest = line.splitlines()
    assert first.endswith("critical [conductor] Oops: ValueError: a\\nb")
    assert rest
    assert all(part.startswith("    ") for part in rest)
    assert "raise problem" in line


def test_a_giant_event_is_cut_and_says_how_long_it_was() -> None:
    line = text_line(event("{text}", text="x" * 1_000_000))
    assert line is not None
    assert len(line) < logs.MAX_TEXT + 100
    assert line.endswith("xxx... (1000000 characters)\n")


def test_an_event_that_says_nothing_is_no_line() -> None:
    assert text_line(event("")) is None
    assert json_line(event(None)) is None


def test_json_has_the_plain_fields_beside_the_sentence() -> None:
    """Objects, NaN and the log's own machinery stay out."""
    line = json_line(event("{player} took {task}", player="web1", task=7, odd=object(), nan=float("nan"), none=None))
    assert line is not None
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "info",
        "system": "conductor",
        "text": "web1 took 7",
        "fields": {"player": "web1", "task": 7, "none": None},
    }


def test_a_bug_in_json_is_still_one_line() -> None:
    line = json_line(event("Oops", log_failure=failure(ValueError("x")), log_level=LogLevel.critical))
    assert line is not None
    assert line.count("\n") == 1
    read = json.loads(line)
    assert read["text"] == "Oops: ValueError: x"
    assert any("raise problem" in part for part in read["traceback"])


# ---- what is worth a line


@pytest.fixture
def heard() -> Any:
    """The events that something really logs."""
    from twisted.logger import globalLogPublisher

    events: list[LogEvent] = []
    hear = events.append
    globalLogPublisher.addObserver(hear)  # type: ignore[arg-type]
    yield events
    globalLogPublisher.removeObserver(hear)  # type: ignore[arg-type]


def test_the_plumbing_of_twisted_is_not_news(heard: list[LogEvent]) -> None:
    """Factories, ports and AMP connections come and go without a line, in our own namespace too."""

    class House(Factory):
        noisy = True

    house = House()
    house.doStart()
    house.doStop()
    peer = AMP()
    peer.makeConnection(StringTransport())
    peer.connectionLost(failure(ConnectionError()))
    for text in ("Site starting on 2259", "(TCP Port 2258 Closed)", "(Port '/run/x' Closed)"):
        legacy.msg(text)
    # as twisted.plugin says it
    legacy.msg(format="Unable to write to plugin cache %(path)s: error number %(errno)d", path="/x", errno=13)
    assert len(heard) == 8
    assert [each for each in heard if worth_saying(each)] == []


def test_warnings_errors_and_our_own_news_are_said(heard: list[LogEvent]) -> None:
    ours = Logger(namespace="orchestra.player")
    ours.info("connected")
    ours.warn("hm")
    Logger(namespace="twisted.names").error("bad")
    legacy.msg("set uid/gid 1/1")
    legacy.err(failure(ValueError("x")), "old style")
    ours.debug("details")
    assert [worth_saying(each) for each in heard] == [True, True, True, True, True, False]


# ---- where it goes


def test_lines_are_utf8_whatever_the_locale() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    observer(stream, "text")(event("grün"))
    assert raw.getvalue().decode().endswith("grün\n")


def test_a_log_is_bounded_in_size_and_number(tmp_path: Path) -> None:
    """Counted in bytes: a line of 50 umlauts is 100."""
    log = BoundedLog(str(tmp_path / "x.log"), size=1000, files=3)
    for number in range(100):
        log.write(f"{number:03}" + "ä" * 48 + "\n")
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2", "x.log.3"]
    assert all(path.stat().st_size <= 1100 for path in tmp_path.iterdir())
    assert (tmp_path / "x.log").read_text().splitlines()[-1].startswith("099")


def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """As logrotate does it: move, then SIGUSR1; nothing is put aside a second time."""
    log = BoundedLog(str(tmp_path / "x.log"), size=1 << 20, files=3)
    log.write("old\n")
    log.flush()
    (tmp_path / "x.log").rename(tmp_path / "moved")
    log.rotate()
    log.write("new\n")
    log.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"moved": "old\n", "x.log": "new\n"}


def test_a_rotation_that_fails_loses_no_line(tmp_path: Path) -> None:
    """A directory sits where the old file should go."""
    (tmp_path / "x.log.1").mkdir()
    (tmp_path / "x.log.2").mkdir()
    (tmp_path / "x.log.2" / "full").touch()
    log = BoundedLog(str(tmp_path / "x.log"), size=10, files=1)
    for number in range(3):
        log.write(f"a line of {number}\n")
    log.close()
    assert (tmp_path / "x.log").read_text() == "a line of 0\na line of 1\na line of 2\n"


# ---- a real twistd

PLUGIN = """
from twisted.application.service import ServiceMaker
chatter = ServiceMaker("chatter", "chatter", "talks, then stops", "chatter")
"""
CHATTER = """
import os, signal, sys
from twisted.application.internet import TimerService
from twisted.application.service import MultiService, Service
from twisted.internet import reactor
from twisted.logger import Logger
from twisted.python import usage
from orchestra import logs

class Options(usage.Options):
    optParameters = [["lines", None, 1, "", int], ["format", None, "text"], ["rotations", None, 0, "", int]]
    def postOptions(self):
        logs.install(self.parent, self["format"], 64 << 10, 2)

log = Logger(namespace="orchestra.conductor")

class Chatter(Service):
    def __init__(self, options):
        self.options = options
    def startService(self):
        for number in range(self.options["lines"]):
            log.info("line {number} " + "x" * 80, number=number)
        print("printed")
        if self.options["rotations"]:
            os.kill(os.getpid(), signal.SIGUSR1)
        reactor.callLater(0, reactor.callLater, 0, reactor.stop)

def makeService(options):
    return Chatter(options)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "twisted/plugins").mkdir(parents=True)
    (tmp_path / "twisted/plugins/chatter_plugin.py").write_text(PLUGIN)
    (tmp_path / "chatter.py").write_text(CHATTER)
    return tmp_path


def twistd(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = "import sys; from twisted.scripts.twistd import run; sys.argv[0] = 'twistd'; run()"
    command = [sys.executable, "-c", start, *arguments]
    path = os.pathsep.join([str(home), str(Path(logs.__file__).parent.parent), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, check=False, cwd=home, env=environment, capture_output=True, text=True, timeout=60)


LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (info |warn |error|critical) \[\S+\] .")


def test_in_the_foreground_twistd_prints_our_lines(home: Path) -> None:
    """Its own start and stop are among them; with --logfile=- as well as without."""
    for where in ([], ["--logfile=-"]):
        said = twistd(home, "-n", "--pidfile=", *where, "chatter")
        lines = said.stdout.splitlines()
        assert said.returncode == 0, said.stderr
        assert all(LINE.match(line) for line in lines), lines
        assert any("starting up" in line for line in lines)
        assert any(line.endswith("[conductor] line 0 " + "x" * 80) for line in lines)
        assert any(line.endswith("[stdout] printed") for line in lines)
        assert any(line.endswith("Server Shut Down.") for line in lines)


def test_a_log_file_of_twistd_is_bounded_and_json_is_json(home: Path) -> None:
    said = twistd(home, "-n", "--pidfile=", "--logfile=d.log", "chatter", "--lines=3000", "--format=json")
    assert (said.returncode, said.stdout) == (0, "")
    files = sorted(path.name for path in home.glob("d.log*"))
    assert files == ["d.log", "d.log.1", "d.log.2"]
    assert all((home / name).stat().st_size < 70_000 for name in files)
    for line in (home / "d.log").read_text().splitlines():
        assert json.loads(line)["level"]


def test_sigusr1_puts_the_log_file_aside(home: Path) -> None:
    assert twistd(home, "-n", "--pidfile=", "--logfile=d.log", "chatter", "--rotations=1").returncode == 0
    assert "[conductor] line 0" in (home / "d.log.1").read_text()
    assert "Server Shut Down." in (home / "d.log").read_text()


def test_an_explicit_logger_is_left_alone(home: Path) -> None:
    (home / "mine.py").write_text(
        "import sys\nfrom twisted.logger import textFileLogObserver\n"
        "def logger(): return textFileLogObserver(sys.stdout, timeFormat='MINE')\n"
    )
    said = twistd(home, "-n", "--pidfile=", "--logger=mine.logger", "chatter")
    assert said.returncode == 0
    assert all(line.startswith("MINE ") for line in said.stdout.splitlines())


def test_a_daemon_cannot_log_to_a_terminal(home: Path) -> None:
    said = twistd(home, "--pidfile=", "--logfile=-", "chatter")
    assert said.returncode == 1
    assert said.stderr == "a daemon has no terminal to log to; add --nodaemon, or name a file with --logfile=FILE\n"
