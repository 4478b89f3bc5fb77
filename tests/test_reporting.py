"""Outcomes on their way over a real line in memory: each once, long output first, nothing forgotten too soon."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
from ends import Ends, Hearing, complaints
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from orchestra.errors import NotSaved, OutputGone
from orchestra.model import Hello, Perform, Piece, Report, Stream, Told, Welcome
from orchestra.player.line import Line
from orchestra.player.reporting import MOST, PIECE, RETRY, WINDOW, Reporter
from orchestra.wire.commands import OUTPUT, REPORT
from orchestra.wire.peer import Peer


class Nobody:
    """The player behind the line; the conductor in these tests says nothing to it."""

    def hello(self) -> Hello:
        raise NotImplementedError

    async def welcomed(self, line: Line, welcome: Welcome) -> None:
        raise NotImplementedError

    async def perform(self, line: Line, perform: Perform) -> None:
        raise NotImplementedError

    async def cancel(self, seqs: list[int]) -> None:
        raise NotImplementedError

    def disconnected(self, line: Line) -> None:
        pass


class Stage:
    """Hands out output: each byte is its offset; at once, or when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int, int]] = []
        self.gone: set[int] = set()
        self.broken: set[int] = set()

    async def fetch(self, seq: int, stream: int, offset: int, size: int) -> bytes:
        self.asked.append((seq, stream, offset, size))
        if seq in self.gone:
            raise OutputGone(seq=seq)
        if seq in self.broken:
            raise ConnectionError("the stage went away")
        return content(stream, offset, size)


def content(stream: int, offset: int, size: int) -> bytes:
    return bytes((stream + n) % 251 for n in range(offset, offset + size))


class Scene:
    """A reporter, its stage, and a conductor that takes what it hears when the test says so."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.stage = Stage()
        self.answered: list[int] = []
        self.reporter = Reporter(self.clock, self.stage.fetch, self.answered.extend)
        self.connect()

    def connect(self) -> None:
        """A (new) connection to a conductor that has heard nothing on it yet."""
        self.reports, self.pieces = Hearing(slow=True), Hearing(slow=True)
        self.ends: Ends[Line] = Ends(
            lambda _: Line(self.clock, Nobody(), 30.0, lambda line, reason: None),
            lambda _: Peer(self.clock, ((REPORT, self.reports), (OUTPUT, self.pieces)), 1 << 20),
        )
        self.reporter.connected(self.ends.ours)

    def add(self, *reports: Report) -> None:
        self.reporter.add(reports)
        self.flush()

    def flush(self, seconds: float = 0) -> None:
        """Let time pass, and carry everything."""
        for step in (seconds, 0, 0):
            self.clock.advance(step)
            self.ends.flush()

    @property
    def heard(self) -> list[list[int]]:
        return [[report.seq for report in batch] for batch in self.reports.heard]

    def take(self) -> None:
        """The conductor has saved the oldest batch of reports."""
        self.reports.finish()
        self.flush()

    def take_piece(self) -> None:
        self.pieces.finish()
        self.flush()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.ends.ours.abort()
    scene.reporter.disconnected()
    scene.flush()
    assert scene.clock.getDelayedCalls() == []


def report(seq: int, **more: Any) -> Report:
    return Report(seq, 1, seq, 1, Told.OK, **more)


def long(seq: int, *spans: tuple[int, int]) -> Report:
    """A report whose output is still on the stage."""
    return report(seq, stdout=Stream(total=10**6, spans=spans))


def test_what_is_added_in_one_turn_is_one_batch(scene: Scene) -> None:
    """Batching is worth twenty times."""
    scene.reporter.add([report(1)])
    scene.reporter.add([report(2), report(3)])
    scene.flush()
    assert scene.heard == [[1, 2, 3]]


def test_a_report_is_forgotten_when_it_was_answered_and_not_before(scene: Scene) -> None:
    """The answer means that the conductor has committed it."""
    scene.add(report(1))
    assert scene.answered == []
    scene.take()
    assert scene.answered == [1]


def test_one_batch_is_unanswered_at_a_time_and_the_next_is_collected(scene: Scene) -> None:
    """While the conductor commits, what ends here waits together."""
    scene.add(report(1))
    scene.add(report(2))
    scene.add(report(3))
    assert scene.heard == [[1]]
    scene.take()
    assert scene.heard == [[1], [2, 3]]
    scene.take()
    assert scene.answered == [1, 2, 3]


def test_what_is_on_its_way_is_not_sent_twice(scene: Scene) -> None:
    """A report handed in again, after a Welcome that overtook it, is sent once."""
    scene.add(report(1), long(2, (0, 10)))
    scene.add(report(1), long(2, (0, 10)))
    scene.reporter.add([report(3)])
    scene.add(report(3))
    scene.take_piece()
    assert len(scene.pieces.heard) == 1
    scene.take()
    scene.take()
    assert scene.heard == [[1], [3, 2]]


def test_a_batch_is_bounded_in_number_and_in_bytes(scene: Scene) -> None:
    """Whatever waits, no batch is longer than the wire takes."""
    scene.add(*(report(n) for n in range(1, MOST + 2)))
    scene.take()
    assert [len(batch) for batch in scene.heard] == [MOST, 1]
    scene.take()
    scene.add(*(report(n, response={"k": "x" * 60_000}) for n in range(1, 21)))
    scene.take()
    scene.take()
    assert [seq for batch in scene.heard[2:] for seq in batch] == list(range(1, 21))
    assert len(scene.heard) == 4


def test_long_output_goes_ahead_of_its_report(scene: Scene) -> None:
    """All of it is saved before the report says what became of the run."""
    whole = long(1, (0, PIECE + 5), (900_000, 7))
    scene.add(whole)
    for _ in range(3):
        assert scene.ends.wire.written.count(b"report") == 0
        scene.take_piece()
    expected = [(0, PIECE), (PIECE, 5), (900_000, 7)]
    said = [piece for [piece] in scene.pieces.heard]
    assert said == [Piece(1, 1, 1, offset, content(1, offset, size)) for offset, size in expected]
    assert scene.reports.heard == [[whole]]


def test_short_outcomes_do_not_wait_for_the_long_output_of_another(scene: Scene) -> None:
    """They are said while its pieces are still unanswered."""
    scene.add(long(1, (0, 10 * PIECE)), report(2))
    for _ in range(WINDOW):
        scene.take_piece()
    assert scene.heard == [[2]]
    assert len(scene.pieces.heard) < 10


def test_both_streams_go_and_what_is_in_the_report_does_not(scene: Scene) -> None:
    """stdout is 1, stderr is 2; a short stream travels in the report alone."""
    short = Stream(total=2, spans=((0, 2),), data=b"hi")
    scene.add(report(1, stdout=short, stderr=Stream(total=9, spans=((0, 9),))))
    assert scene.pieces.heard == [[Piece(1, 1, 2, 0, content(2, 0, 9))]]
    assert scene.stage.asked == [(1, 2, 0, 9)]


def test_no_more_than_four_pieces_are_unanswered(scene: Scene) -> None:
    """Nor are more fetched: 100 MB of output are never in the player's memory."""
    scene.add(long(1, (0, 10 * PIECE)))
    # the conductor hears them one after another; the line shows how many were said
    for said in (WINDOW, WINDOW + 1, WINDOW + 2):
        assert len(scene.stage.asked) == said
        assert scene.ends.wire.written.count(b"output") == said
        scene.take_piece()


def test_what_the_conductor_could_not_save_is_said_again_later(scene: Scene) -> None:
    """Its disk was full; the line stays, nothing is forgotten, and new outcomes join."""
    scene.add(report(1))
    with complaints():
        scene.reports.fail(NotSaved(problem="full"))
        scene.flush()
    scene.reporter.add([report(2)])
    scene.flush(RETRY - 0.1)
    assert (scene.heard, scene.answered) == ([[1]], [])
    scene.flush(0.1)
    assert [sorted(batch) for batch in scene.heard[1:]] == [[1, 2]]
    scene.take()
    assert sorted(scene.answered) == [1, 2]
    assert not scene.ends.ours.closed


def test_output_that_could_not_be_saved_is_sent_again_ahead_of_its_report(scene: Scene) -> None:
    """The report does not overtake what failed."""
    scene.add(long(1, (0, 10)))
    with complaints():
        scene.pieces.fail(NotSaved(problem="full"))
        scene.flush()
    assert scene.heard == []
    scene.flush(RETRY)
    assert len(scene.pieces.heard) == 2
    scene.take_piece()
    assert scene.heard == [[1]]


def test_a_stage_that_is_away_holds_the_output_back_until_it_returns(scene: Scene) -> None:
    """Nothing is reported without its output because the stage is being restarted."""
    scene.stage.broken = {1}
    with complaints():
        scene.add(long(1, (0, 10)))
    assert scene.heard == []
    scene.stage.broken = set()
    scene.flush(RETRY)
    scene.take_piece()
    assert scene.heard == [[1]]


def test_output_that_is_gone_does_not_hold_the_outcome_back(scene: Scene) -> None:
    """The report says so, and claims no kept bytes."""
    scene.stage.gone = {1}
    scene.add(long(1, (0, 10)))
    [[said]] = scene.reports.heard
    assert (said.told, said.stdout.total, said.stdout.spans) == (Told.OK, 10**6, ())
    assert said.notes == ("its output was lost on the player",)


def test_what_a_lost_line_left_unanswered_is_sent_over_the_next(scene: Scene) -> None:
    """It is handed in again after Welcome; an answer of the old line counts for nothing."""
    scene.add(report(1), long(2, (0, 10)))
    scene.ends.ours.abort()
    scene.reporter.disconnected()
    scene.reporter.add([report(3)])
    scene.flush(60)
    assert scene.answered == []
    scene.connect()
    scene.add(report(1), report(3), long(2, (0, 10)))
    scene.take_piece()
    assert scene.heard == [[1, 3]]
    scene.take()
    scene.take()
    assert scene.answered == [1, 3, 2]


def test_an_answer_that_comes_after_a_new_line_forgets_nothing(scene: Scene) -> None:
    """Only the present line's answers count: what the old one was told is settled at Welcome."""
    old, ends = scene.reports, scene.ends
    scene.add(report(1))
    scene.connect()
    scene.add(report(1))
    old.finish()
    ends.flush()
    assert scene.answered == []
    assert scene.heard == [[1]]
    scene.take()
    assert scene.answered == [1]
    ends.ours.abort()
    ends.flush()


def test_output_fetched_for_an_old_line_is_not_reported_on_the_next() -> None:
    """A fetch that returns late finds its line gone."""
    scene = Scene()
    late: Deferred[bytes] = Deferred()

    async def fetch(seq: int, stream: int, offset: int, size: int) -> bytes:
        return await late

    scene.reporter = Reporter(scene.clock, fetch, scene.answered.extend)
    scene.reporter.connected(scene.ends.ours)
    scene.add(long(1, (0, 10)))
    scene.ends.ours.abort()
    scene.connect()
    late.callback(b"x" * 10)
    scene.flush(RETRY)
    assert (scene.heard, scene.pieces.heard) == ([], [])


def test_a_line_lost_amid_long_output_is_no_news(scene: Scene) -> None:
    """Its unanswered pieces fail with it, all of them quietly, and nothing more is fetched for it."""
    with complaints() as said:
        scene.add(long(1, (0, 10 * PIECE)))
        scene.ends.ours.abort()
        scene.reporter.disconnected()
        scene.flush(RETRY)
        gc.collect()
    assert said == []
    assert len(scene.stage.asked) == WINDOW


def test_a_refusal_that_is_not_declared_ends_the_line(scene: Scene) -> None:
    """The conductor failed on our report: the next Welcome settles it."""
    with complaints():
        scene.add(report(1))
        scene.reports.fail(ValueError("a bug over there"))
        scene.flush()
    assert scene.ends.ours.closed
    assert scene.answered == []
