"""Emulated players over a real line in memory: they settle, perform and report as a player does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ends import Ends, Hearing, complaints, ending
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from orchestra.bench import fleet
from orchestra.bench.understudy import Understudy, catalogue
from orchestra.model import OpenRun, Perform, Run, Told, Welcome
from orchestra.player.line import Line
from orchestra.security import authority
from orchestra.wire.commands import ANNOUNCE, CANCEL, HELLO, PERFORM, REPORT, WELCOME
from orchestra.wire.peer import Peer

SLOTS = 4


class Crowd:
    """Counts."""

    def __init__(self) -> None:
        self.there = 0
        self.many = 0

    def entered(self, understudy: Understudy) -> None:
        self.there += 1

    def left(self, understudy: Understudy) -> None:
        self.there -= 1

    def performed(self, many: int) -> None:
        self.many += many


class Scene:
    """One emulated player, and a conductor that says what the test says."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.clock = Clock()
        self.crowd = Crowd()
        self.repertoire = catalogue(("noop",), SLOTS)
        self.player = Understudy(
            self.clock, "journal", self.repertoire, SLOTS, seconds, self.crowd, lambda: int(self.clock.seconds() * 1000)
        )
        self.connect()

    def connect(self) -> None:
        """A (new) line, over which Hello has gone."""
        self.hello, self.reports, self.announced = Hearing(), Hearing(), Hearing()
        handlers = ((HELLO, self.hello), (REPORT, self.reports), (ANNOUNCE, self.announced))
        self.ends: Ends[Line] = Ends(
            lambda _: Line(self.clock, self.player, 1e9, lambda line, reason: None),
            lambda _: Peer(self.clock, handlers, 1 << 20),
        )
        self.ends.ours.handshakeCompleted()
        self.flush()

    def say(self, command: object, payload: object) -> None:
        self.ends.theirs.say(command, payload).addErrback(lambda _: None)  # type: ignore[arg-type]
        self.flush()

    def welcome(self, *open_runs: OpenRun, next_seq: int = 1, wanted: tuple[str, ...] = ()) -> None:
        self.say(WELCOME, Welcome(1, next_seq, 5.0, open_runs, wanted))

    def perform(self, *seqs: int, score: str = "noop", within: int | None = None) -> None:
        self.say(PERFORM, Perform(1, tuple(Run(seq, 7, seq, 1, score, {}, within) for seq in seqs)))

    def flush(self, seconds: float = 0.0) -> None:
        for step in (seconds, 0, 0):
            self.clock.advance(step)
            self.ends.flush()

    @property
    def told(self) -> list[list[tuple[int, Told]]]:
        return [[(report.seq, report.told) for report in batch] for batch in self.reports.heard]


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.ends.ours.abort()


def test_it_introduces_itself_and_announces_what_is_wanted(scene: Scene) -> None:
    """The conductor learns its slots and the digest of its catalogue, and the catalogue when it lacks it."""
    [hello] = scene.hello.heard
    assert (hello.journal, hello.high, hello.slots, hello.catalogue) == ("journal", 0, SLOTS, scene.repertoire.digest)
    scene.welcome()
    assert scene.announced.heard == []
    assert scene.crowd.there == 1
    scene.welcome(wanted=(scene.repertoire.digest,))
    assert [announce.catalogue for announce in scene.announced.heard] == [scene.repertoire]


def test_every_run_is_reported_once_and_together(scene: Scene) -> None:
    """More than it has slots for, in one batch; counted once each."""
    scene.welcome()
    scene.perform(*range(1, 11))
    assert scene.told == [[(seq, Told.OK) for seq in range(1, 11)]]
    assert scene.crowd.many == 10


def test_a_score_it_lacks_is_refused(scene: Scene) -> None:
    """As a player would: nothing is begun."""
    scene.welcome()
    scene.perform(1, score="other")
    assert scene.told == [[(1, Told.REFUSED)]]
    assert scene.crowd.many == 0


def test_open_runs_are_settled_honestly(scene: Scene) -> None:
    """Above its high mark an unknown run never came; below it something was lost."""
    scene.welcome(next_seq=3)
    scene.ends.ours.abort()
    scene.connect()
    assert [hello.high for hello in scene.hello.heard] == [2]
    scene.welcome(OpenRun(2, 7, 2, 1, False), OpenRun(3, 7, 3, 1, False), next_seq=4)
    assert scene.told == [[(2, Told.LOST), (3, Told.NEVER)]]


def test_an_outcome_that_was_not_answered_is_reported_again(scene: Scene) -> None:
    """The line is lost between the run and the answer; the run is not performed again."""
    scene.welcome()
    scene.reports._slow = True  # the conductor hears the report and does not answer it
    scene.perform(1)
    assert scene.told == [[(1, Told.OK)]]
    scene.ends.ours.abort()
    scene.flush()
    assert scene.crowd.there == 0
    scene.connect()
    scene.welcome(OpenRun(1, 7, 1, 1, False), next_seq=2)
    assert scene.told == [[(1, Told.OK)]]
    assert scene.crowd.many == 1


def test_a_number_that_is_skipped_ends_the_line(scene: Scene) -> None:
    """The gap check is the player's own."""
    scene.welcome()
    with complaints() as heard:
        scene.perform(2)
    assert len(heard) == 1
    assert scene.crowd.there == 0
    assert scene.told == []


@pytest.fixture
def slow() -> Iterator[Scene]:
    """Its runs last five seconds."""
    scene = Scene(seconds=5.0)
    scene.welcome()
    yield scene
    scene.ends.ours.abort()


def test_a_run_lasts_as_long_as_it_was_told_to(slow: Scene) -> None:
    """Its slots are taken meanwhile; what waits follows."""
    slow.perform(*range(1, SLOTS + 2))
    assert slow.crowd.many == SLOTS
    slow.flush(4.9)
    assert slow.told == []
    slow.flush(0.2)
    assert slow.told == [[(seq, Told.OK) for seq in range(1, SLOTS + 1)]]
    slow.flush(5.1)
    assert slow.told[1:] == [[(SLOTS + 1, Told.OK)]]


def test_a_cancelled_run_is_killed_and_one_that_waits_never_starts(slow: Scene) -> None:
    """And what was killed does not end a second time."""
    slow.perform(*range(1, SLOTS + 2))
    slow.say(CANCEL, [1, SLOTS + 1])
    slow.flush(10)
    outcomes = dict(pair for batch in slow.told for pair in batch)
    assert (outcomes[1], outcomes[SLOTS + 1]) == (Told.KILLED, Told.NEVER)
    assert sum(map(len, slow.told)) == SLOTS + 1


def test_what_could_not_start_in_time_never_does(slow: Scene) -> None:
    """start_within holds for emulated players too."""
    slow.perform(*range(1, SLOTS + 2), within=3000)
    slow.flush(4)
    slow.player.tick()
    slow.flush()
    assert slow.told == [[(SLOTS + 1, Told.NEVER)]]


# ---- who they are


def test_each_has_a_certificate_of_its_own_and_all_have_one_key(tmp_path: Path) -> None:
    """What they say they are is in their authority's ledger."""
    ca = authority.init(tmp_path / "ca")
    names = fleet.names("e", 3, "example.com")
    assert names == ["e00001.example.com", "e00002.example.com", "e00003.example.com"]
    costumes = fleet.costumes(ca, names)
    options = [costume.options("conductor.example.com") for costume in costumes]
    assert len(options) == 3
    assert [entry.names for entry in ca.ledger()] == [(name,) for name in names]
    keys = {costume._certificate.public_key().public_numbers() for costume in costumes}  # type: ignore[union-attr]
    assert len(keys) == 1
    assert len({costume._certificate.serial_number for costume in costumes}) == 3


class Nobody:
    """A connector that only counts."""

    def __init__(self) -> None:
        self.started = 0

    def start(self) -> None:
        self.started += 1

    def stop(self) -> None:
        self.started = -1


def test_a_fleet_dials_a_few_at_a_time_and_tells_when_it_is_complete() -> None:
    """No more than so many a second; and again when all are back."""
    clock, told = Clock(), list[float]()
    whole = fleet.Fleet(clock, 1000.0, told.append)
    players = [
        Understudy(clock, str(n), catalogue(("noop",), 1), 1, 0.0, whole, lambda: 0)
        for n in range(fleet.UNDER_WAY + 60)
    ]
    connectors = [Nobody() for _ in players]
    for player, connector in zip(players, connectors, strict=True):
        whole.add(player, connector)  # type: ignore[arg-type]
    whole.start()
    assert sum(each.started for each in connectors) == 50
    clock.pump([fleet.STEP] * 20)
    assert sum(each.started for each in connectors) == len(players)
    for player in players:
        assert told == []
        whole.entered(player)
    assert told == [pytest.approx(1.0)]
    whole.left(players[0])
    clock.advance(2)
    whole.entered(players[0])
    assert told[1:] == [pytest.approx(2.0)]
    whole.stop()
    assert clock.getDelayedCalls() == []


class Dialled:
    """An endpoint that answers when the test says so."""

    def __init__(self) -> None:
        self.calls: list[Deferred[Any]] = []

    def connect(self, protocolFactory: object) -> "Deferred[Any]":
        self.calls.append(Deferred())
        return self.calls[-1]


def test_only_so_many_are_between_dialling_and_welcome() -> None:
    """A place is free again when its player was welcomed, could not connect, or lost its line; nothing frees two."""
    clock, there, dialled = Clock(), list[float](), Dialled()
    whole = fleet.Fleet(clock, 1000.0, there.append)
    whole.gate = gate = fleet.Gate(2)
    players = [Understudy(clock, str(n), catalogue(("noop",), 1), 1, 0.0, whole, lambda: 0) for n in range(6)]
    ways = [fleet.InTurn(gate, player, dialled) for player in players]  # type: ignore[arg-type]
    became = [ending(way.connect(Factory())) for way in ways]
    assert len(dialled.calls) == 2
    dialled.calls[0].callback("line")
    assert (became[0], len(dialled.calls)) == (["line"], 2)
    whole.entered(players[0])
    whole.left(players[0])
    assert len(dialled.calls) == 3
    dialled.calls[1].errback(ConnectionRefusedError())
    assert len(dialled.calls) == 4
    dialled.calls[2].callback("line")
    whole.left(players[2])
    assert len(dialled.calls) == 5
    assert isinstance(became[1][0], Failure)


def test_who_stops_while_it_waits_takes_no_place() -> None:
    """The one after it has its turn."""
    dialled, gate = Dialled(), fleet.Gate(1)
    players = [Scene().player for _ in range(3)]
    first, second, third = (fleet.InTurn(gate, player, dialled).connect(Factory()) for player in players)  # type: ignore[arg-type]
    gone = ending(second)
    second.cancel()
    assert isinstance(gone[0], Failure)
    gate.leave(players[0])
    assert len(dialled.calls) == 2
    for each in (first, third):
        each.addErrback(lambda _: None).cancel()
