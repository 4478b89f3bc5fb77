"""The conductor's traffic with its players, over real doors and a real store: only time and network are simulated."""

from collections.abc import Callable, Sequence
from sqlite3 import Cursor
from typing import Any

import pytest
from ends import Ends, Hearing
from storehouse import ANNE, HOUR, job
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from orchestra.conductor.dispatch import AWAY, RETRY, Dispatch
from orchestra.conductor.door import Door, Limits
from orchestra.conductor.feed import Feed
from orchestra.errors import NotSaved
from orchestra.model import (
    PROTOCOL,
    Announce,
    Catalogue,
    Event,
    Held,
    Hello,
    JobView,
    Perform,
    Report,
    Scope,
    ScoreEntry,
    Started,
    Told,
    Welcome,
)
from orchestra.store import sqlite, statements
from orchestra.store.saver import Saver
from orchestra.store.writer import Inline
from orchestra.wire import commands
from orchestra.wire.peer import Peer

WEB1, WEB2, WEB3 = 1, 2, 3


def score(name: str, **changes: Any) -> ScoreEntry:
    about: dict[str, Any] = {"digest": name, "description": "", "interface": "env", "timeout": 1000, "kill_grace": 1000}
    about |= {"concurrency": 1, "idempotent": False, "max_attempts": 3}
    return ScoreEntry(name=name, **(about | changes))


class Player:
    """The far end of a door: says what a player says, keeps what it hears."""

    def __init__(self, house: "House", player: int, *, slow: bool = False) -> None:
        self.welcomes, self.performs = Hearing(slow=slow), Hearing()
        heard = (
            (commands.WELCOME, self.welcomes),
            (commands.PERFORM, self.performs),
            (commands.BEAT, Hearing()),
        )
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


class SlowDisk:
    """Commits when the test says so."""

    def __init__(self, inline: Inline) -> None:
        self.asked: list[tuple[Callable[[Cursor], Any], Deferred[Any]]] = []
        self._inline = inline

    def write(self, work: Callable[[Cursor], Any], *, brief: bool = False) -> "Deferred[Any]":
        self.asked.append((work, Deferred()))
        return self.asked[-1][1]

    def commit(self) -> None:
        asked, self.asked = self.asked, []
        for work, done in asked:
            self._inline.write(work).chainDeferred(done)

    def refuse(self) -> None:
        asked, self.asked = self.asked, []
        for _, done in asked:
            done.errback(NotSaved(problem="the disk is full"))


class House:
    """A conductor without daemons around it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.inline = Inline(sqlite.in_memory())
        self.now = 0
        names = ["web-1", "web-2", "web-3"]
        self.inline.write(lambda cursor: statements.sync_players(cursor, names, 0))
        self.players: list[Player] = []
        self.begin("conductor-1")

    def begin(self, owner: str, saver: Saver | None = None) -> None:
        """This is the conductor from now on."""
        self.feed = Feed(
            lambda number, since, limit: self.inline.read(lambda c: statements.news(c, number, since, limit)),
            lambda number: self.inline.read(lambda c: statements.ended(c, number)),
        )
        self.dispatch = Dispatch(saver or self.inline, self.clock, lambda: self.now, owner, self.feed)
        self.dispatch.ids = {"web-1": WEB1, "web-2": WEB2, "web-3": WEB3}

    def player(self, number: int, *, slow: bool = False) -> Player:
        """One that takes its time over a Welcome, if it is slow."""
        self.players.append(Player(self, number, slow=slow))
        return self.players[-1]

    def submit(self, *players: int, score: str = "uptime", scope: Scope = Scope.ALL) -> None:
        Deferred.fromCoroutine(self.dispatch.submit(job(players, scope, score=score)))
        self.flush()

    def flush(self) -> None:
        for player in self.players:
            player.ends.flush()

    def states(self, number: int) -> list[str]:
        found: list[str] = []
        views = self.inline.read(lambda cursor: statements.task_views(cursor, number, -1, 10, ()))
        views.addCallback(lambda rows: found.extend(row.state for row in rows))
        return found

    def hold(self, *marks: tuple[Held, str]) -> None:
        Deferred.fromCoroutine(self.dispatch.hold(marks, "migration", ANNE))

    def release(self, *marks: tuple[Held, str]) -> None:
        Deferred.fromCoroutine(self.dispatch.release(marks or None, ANNE))
        self.flush()


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


def test_who_awaits_a_job_is_told_what_the_commit_that_ended_it_has_seen(house: House) -> None:
    """With its counts and its verdict; a job that goes on is told to nobody."""
    one, two = house.player(WEB1), house.player(WEB2)
    for player in (one, two):
        player.arrive(UPTIME)
    house.submit(WEB1, WEB2)
    told: list[JobView | None] = []

    async def listener(events: Sequence[Event], view: JobView | None) -> None:
        told.append(view)

    house.feed.await_end(1, listener, new=True)
    for player in (one, two):
        assert told == []
        [run] = player.performs.heard[0].runs
        player.say(commands.REPORT, [Report(run.seq, run.job, run.task, run.attempt, Told.OK)])
    house.inline.read(lambda cursor: told.append(statements.job_view(cursor, 1)))
    assert told[0] == told[1]
    assert told[0] is not None
    assert (told[0].counts, told[0].verdict) == ({"ok": 2}, "ok")


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


def test_who_has_lost_a_player_lets_it_go(house: House) -> None:
    """Another conductor on this store has ended the session, or the player is there: a claim finds out. It is given
    nothing, and neither waits for ever on a connection over which nothing will come."""
    player = house.player(WEB1)
    player.arrive(UPTIME)
    house.inline.write(statements.everybody_left)
    house.submit(WEB1)
    assert player.door.closed
    assert player.runs == []
    again = house.player(WEB1)
    again.arrive(UPTIME)
    assert again.runs == [1]


def test_a_hello_that_comes_late_retires_nothing(house: House) -> None:
    """Its connection is dead, its journal was lost before anybody knew it: the newer one stays in force."""
    late, there = house.player(WEB1), house.player(WEB1)
    house.players.remove(late)  # its network carries nothing any more
    there.journal = "journal-new"
    late.ends.theirs.say(
        commands.HELLO,
        Hello(PROTOCOL, "1", "journal-old", "b", 0, 8, ""),
    ).addErrback(lambda _: None)
    there.arrive(UPTIME)
    house.submit(WEB1)
    late.door.dataReceived(late.ends.their_wire.written)
    assert there.runs == [1]
    assert not there.door.closed
    late.door.abort()
    late.door.connectionLost()
    run = there.performs.heard[0].runs[0]
    there.say(commands.REPORT, [Report(run.seq, run.job, run.task, run.attempt, Told.OK)])
    assert house.states(1) == ["ok"]


def test_who_is_there_with_a_new_journal_is_believed(house: House) -> None:
    """The old one is retired, and what was open with it is lost."""
    before, after = house.player(WEB1), house.player(WEB1)
    before.arrive(UPTIME)
    house.submit(WEB1)
    after.journal = "journal-new"
    after.arrive(UPTIME)
    assert before.door.closed
    assert house.states(1) == ["lost"]


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


@pytest.fixture
def crowd(house: House) -> tuple[SlowDisk, list[Player]]:
    """Three players for which work waits have said Hello; nothing is claimed for them yet."""
    house.submit(WEB1, WEB2, WEB3)
    house.inline.write(lambda cursor: statements.announce(cursor, WEB1, UPTIME, 0))
    disk = SlowDisk(house.inline)
    house.begin("conductor-2", disk)
    players = [house.player(number) for number in (WEB1, WEB2, WEB3)]
    for player in players:
        player.hello(UPTIME.digest)
    disk.commit()
    house.flush()
    return disk, players


def test_who_comes_while_others_are_given_work_is_given_it_together(crowd: tuple[SlowDisk, list[Player]]) -> None:
    """A fleet that is back after a restart would else have a claim committed for each of its players."""
    disk, players = crowd
    assert len(disk.asked) == 1
    disk.commit()
    assert len(disk.asked) == 1
    disk.commit()
    for player in players:
        player.ends.flush()
    assert ([player.runs for player in players], disk.asked) == ([[1], [1], [1]], [])


def test_a_claim_that_could_not_be_saved_keeps_nobody_waiting(
    house: House, crowd: tuple[SlowDisk, list[Player]]
) -> None:
    """Those that came after it have theirs; it is made again later."""
    disk, players = crowd
    disk.refuse()
    disk.commit()
    house.flush()
    assert [bool(player.runs) for player in players[1:]] == [True, True]
    house.clock.advance(RETRY)
    assert len(disk.asked) == 1


EVERYTHING = (Held.EVERYTHING, "")
WEB_1 = (Held.HOST, "web-1")
BOTH = Catalogue.of((score("uptime"), score("narrow", concurrency=1), score("wide", concurrency=8)), ())


@pytest.mark.parametrize("mark", [EVERYTHING, WEB_1, (Held.SCORE, "uptime")])
def test_a_release_hands_out_at_once_what_waited_for_it(house: House, mark: tuple[Held, str]) -> None:
    """Nobody has to do anything else, and nothing else happens meanwhile."""
    one = house.player(WEB1)
    one.arrive(UPTIME)
    house.hold(mark)
    house.submit(WEB1)
    assert one.runs == []
    house.release((Held.HOST, "web-2"))
    assert one.runs == []
    house.release(mark)
    assert one.runs == [1]


def test_a_player_that_comes_while_it_is_held_waits(house: House) -> None:
    """The hold is of the host, not of its connection."""
    house.hold(WEB_1)
    house.submit(WEB1)
    one = house.player(WEB1)
    one.arrive(UPTIME)
    assert one.runs == []
    house.release()
    assert one.runs == [1]


def test_one_of_work_passes_a_held_player_by(house: House) -> None:
    """Though that is the less busy one."""
    one, two = house.player(WEB1), house.player(WEB2)
    one.arrive(BOTH)
    two.arrive(BOTH)
    house.submit(WEB2, score="wide")
    house.hold(WEB_1)
    house.submit(WEB1, WEB2, scope=Scope.ONE)
    assert (one.runs, two.runs) == ([], [1, 2])


def test_one_of_work_passes_a_player_by_that_came_while_it_was_held(house: House) -> None:
    """What is known of holds is known of whoever comes later."""
    house.hold(WEB_1)
    one, two = house.player(WEB1), house.player(WEB2)
    one.arrive(BOTH)
    two.arrive(BOTH)
    house.submit(WEB2, score="wide")
    assert [wish.player for wish in house.dispatch.scheduler.offer(Scope.ONE, (WEB1, WEB2))] == [WEB2]


class Later:
    """Commits at once, and says so in order when the test lets it: as a thread does."""

    def __init__(self, inline: Inline) -> None:
        self._inline = inline
        self._said: list[tuple[Deferred[Any], Deferred[Any]]] = []

    def write(self, work: Any, *, brief: bool = False) -> "Deferred[Any]":
        self._said.append((self._inline.write(work), Deferred()))
        return self._said[-1][1]

    def say(self) -> None:
        while self._said:
            done, told = self._said.pop(0)
            done.addBoth(told.callback)


def test_one_of_work_that_was_meant_for_a_player_when_it_was_held_goes_to_another(house: House) -> None:
    """The claim met the hold in the store, while the mind did not know of it yet."""
    one, two = house.player(WEB1), house.player(WEB2)
    one.arrive(BOTH)
    two.arrive(BOTH)
    later = Later(house.inline)
    house.dispatch._writer = later  # its thread, slowed down
    house.hold(WEB_1)
    house.submit(WEB1, WEB2, scope=Scope.ONE)
    later.say()
    house.flush()
    assert (one.runs, two.runs) == ([], [1])


def test_one_of_work_goes_to_who_may_still_run_its_score(house: House) -> None:
    """The less busy one has all that it may be given of it."""
    one, two = house.player(WEB1), house.player(WEB2)
    one.arrive(BOTH)
    two.arrive(BOTH)
    for _ in range(2):
        house.submit(WEB1, score="narrow")
    for _ in range(3):
        house.submit(WEB2, score="wide")
    house.submit(WEB1, WEB2, score="narrow", scope=Scope.ONE)
    assert two.runs == [3, 4, 5, 6]


def test_an_alarm_becomes_part_of_the_history(house: House) -> None:
    """And of the reason that a status shows, for as long as the run goes on."""
    one = house.player(WEB1)
    one.arrive(UPTIME)
    house.submit(WEB1)
    [run] = one.performs.heard[0].runs
    one.say(commands.PROGRESS, [Started(run.seq, run.job, run.task, 5, "still alive")])
    found: list[Any] = []
    house.inline.read(lambda c: statements.events(c, run.job, 0, 9)).addCallback(found.extend)
    assert [(event.kind, event.player, event.detail) for event in found][2:] == [("unkillable", "web-1", "still alive")]


@pytest.mark.parametrize("begun_anew", [False, True], ids=["", "begun anew"])
def test_only_who_is_away_for_a_while_is_given_up(house: House, begun_anew: bool) -> None:
    """Long after its time was over, a run is lost with a player that does not come: not while it is here, nor as it
    reconnects, nor while a conductor that has only begun may expect it."""
    one = house.player(WEB1)
    one.arrive(UPTIME)
    house.submit(WEB1)
    house.now = 26 * HOUR

    def state(seconds: float) -> list[str]:
        house.clock.advance(seconds)
        Deferred.fromCoroutine(house.dispatch.give_up())
        return house.states(1)

    assert state(2 * AWAY) == ["dispatched"]
    one.door.abort()
    one.door.connectionLost()
    if begun_anew:
        house.begin("conductor-2")
    assert state(AWAY - 1) == ["dispatched"]
    assert state(1) == ["lost"]
