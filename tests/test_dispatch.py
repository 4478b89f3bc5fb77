"""The conductor's traffic with its players, over real doors and a real store: only time and network are simulated."""

from typing import Any

import pytest
from ends import Ends, Hearing
from storehouse import job
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from orchestra.conductor.dispatch import Dispatch
from orchestra.conductor.door import Door, Limits
from orchestra.conductor.feed import Feed
from orchestra.model import (
    PROTOCOL,
    Announce,
    Catalogue,
    Hello,
    Perform,
    Report,
    ScoreEntry,
    Told,
    Welcome,
)
from orchestra.store import sqlite, statements
from orchestra.store.writer import Inline
from orchestra.wire import commands
from orchestra.wire.peer import Peer

WEB1, WEB2 = 1, 2


def score(name: str, **changes: Any) -> ScoreEntry:
    about: dict[str, Any] = {"digest": name, "description": "", "interface": "env", "timeout": 1000, "kill_grace": 1000}
    about |= {"concurrency": 1, "idempotent": False, "max_attempts": 3}
    return ScoreEntry(name=name, **(about | changes))


class Player:
    """The far end of a door: says what a player says, keeps what it hears."""

    def __init__(self, house: "House", player: int, *, slow: bool = False) -> None:
        self.welcomes, self.performs = Hearing(slow=slow), Hearing()
        heard = ((commands.WELCOME, self.welcomes), (commands.PERFORM, self.performs))
        self.ends: Ends[Door] = Ends(
            lambda clock: Door(clock, house.dispatch, Limits(), lambda: None),
            lambda clock: Peer(clock, heard, 1 << 20),
        )
        self.door = self.ends.ours
        self.door.player, self.door.name = player, f"web-{player}"
        self.journal = f"journal-{player}"

    def say(self, command: commands.Command, payload: Any) -> None:
        self.ends.theirs.say(command, payload).addErrback(lambda _: None)
        self.ends.flush()

    def hello(self, catalogue: str = "", **changes: Any) -> None:
        about: dict[str, Any] = {"version": "1", "journal": self.journal, "boot": "b", "high": 0, "slots": 8}
        self.say(commands.HELLO, Hello(protocol=PROTOCOL, catalogue=catalogue, **(about | changes)))

    def arrive(self, catalogue: Catalogue) -> None:
        """Say Hello, and what is on the disk if that is asked for."""
        self.hello(catalogue.digest)
        welcome: Welcome = self.welcomes.heard[-1]
        if welcome.wanted:
            self.say(commands.ANNOUNCE, Announce(catalogue))

    @property
    def runs(self) -> list[int]:
        """The jobs that came, in order."""
        performs: list[Perform] = self.performs.heard
        return [run.job for perform in performs for run in perform.runs]


class House:
    """A conductor without daemons around it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.inline = Inline(sqlite.in_memory())
        feed = Feed(
            lambda number, since, limit: self.inline.read(lambda c: statements.news(c, number, since, limit)),
            lambda number: self.inline.read(lambda c: statements.ended(c, number)),
        )
        self.dispatch = Dispatch(self.inline, self.clock, lambda: 0, "conductor-1", feed)
        names = ["web-1", "web-2"]
        self.inline.write(lambda cursor: statements.sync_players(cursor, names, 0))
        self.dispatch.ids = {"web-1": WEB1, "web-2": WEB2}
        self.players: list[Player] = []

    def player(self, number: int, *, slow: bool = False) -> Player:
        """One that takes its time over a Welcome, if it is slow."""
        self.players.append(Player(self, number, slow=slow))
        return self.players[-1]

    def submit(self, *players: int, score: str = "uptime") -> None:
        Deferred.fromCoroutine(self.dispatch.submit(job(players, score=score)))
        for player in self.players:
            player.ends.flush()


@pytest.fixture
def house() -> House:
    return House()


UPTIME = Catalogue.of((score("uptime"),), ())


def test_work_goes_out_and_its_outcome_makes_room_for_the_next(house: House) -> None:
    """One that runs and one that waits for it, of a score that runs alone; the next with the outcome."""
    one = house.player(WEB1)
    one.arrive(UPTIME)
    for _ in range(4):
        house.submit(WEB1)
    assert one.runs == [1, 2]
    run = one.performs.heard[0].runs[0]
    one.say(commands.REPORT, [Report(run.seq, run.job, run.task, run.attempt, Told.OK)])
    assert one.runs == [1, 2, 3]


def test_nobody_says_what_is_on_another_players_disk(house: House) -> None:
    """A digest is made from what it stands for: who lies about it changes nothing for those who told the truth."""
    truth = Catalogue.of((score("reboot"),), ())
    house.player(WEB2).arrive(Catalogue(truth.digest, (score("reboot", idempotent=True),)))
    house.player(WEB1).arrive(truth)
    entries = [house.dispatch.repertoires.entry(number, "reboot") for number in (WEB1, WEB2)]
    assert [entry.idempotent for entry in entries if entry] == [False, True]


def test_the_newest_connection_of_a_player_wins(house: House) -> None:
    """The older one is closed, and gets nothing more."""
    older, newer = house.player(WEB1), house.player(WEB1)
    older.arrive(UPTIME)
    newer.arrive(UPTIME)
    house.submit(WEB1)
    assert older.door.closed
    assert (older.runs, newer.runs) == ([], [1])


def test_nothing_is_given_before_the_welcome_is_settled(house: House) -> None:
    """The journal's word on what was open comes first."""
    house.player(WEB1).arrive(UPTIME)
    again = house.player(WEB1, slow=True)
    again.arrive(UPTIME)
    house.submit(WEB1)
    assert again.runs == []
    again.welcomes.finish()
    again.ends.flush()
    assert again.runs == [1]
