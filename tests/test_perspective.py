"""The conductor's seat over a real unix socket: who may, what crosses, and what a hostile client gets."""

import os
import socket
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from desk import MemoryDesk
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.task import deferLater
from twisted.logger import globalLogPublisher
from twisted.spread import pb

from orchestra.audience import envelope, perspective, seat
from orchestra.audience.perspective import audience_port, catalogue_rows
from orchestra.audience.port import Door, LateDoor, SeatPort, free_path
from orchestra.audience.seat import Method, Nothing, Plain, door, guest_of, seat_port
from orchestra.errors import AlreadyRunning, FileProblem
from orchestra.model import Catalogue, Event, JobView, Receipt, State


class Watcher(pb.Referenceable):
    """Keeps what it is told; answers when the test lets it."""

    def __init__(self, slow: bool = False) -> None:
        self.events: list[Event] = []
        self.calls = 0
        self.ended: Deferred[JobView] = Deferred()
        self.called: Deferred[None] = Deferred()
        self.gate: Deferred[None] | None = Deferred() if slow else None

    def remote_events(self, events: Any, job: Any) -> Deferred[None] | None:
        self.calls += 1
        self.events.extend(envelope.unpack(events, list[Event], ""))
        if not self.called.called:
            self.called.callback(None)
        if job is not None:
            self.ended.callback(envelope.unpack(job, JobView, ""))
        return self.gate


class Line:
    """A connection that says whatever a test wants said."""

    def __init__(self, factory: Any, root: Any) -> None:
        self.factory = factory
        self.root = root

    async def ask(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Dictionaries travel as our clients send them; anything else just as it is."""
        sent = [envelope.pack(one) if isinstance(one, dict) else one for one in arguments]
        answer = await self.root.callRemote(name, *sent, **named).addTimeout(10, reactor)
        return ["OK", envelope.unpack(answer[1], object, "")] if answer[0] == "OK" else answer

    async def hang_up(self) -> None:
        gone: Deferred[None] = Deferred()
        self.root.notifyOnDisconnect(lambda _: gone.callback(None))
        self.factory.disconnect()
        await gone


async def dial(path: str) -> Line:
    factory: Any = pb.PBClientFactory(security=envelope.security())
    await UNIXClientEndpoint(reactor, path).connect(factory)
    return Line(factory, await factory.getRootObject())


@pytest.fixture
def desk() -> MemoryDesk:
    return MemoryDesk()


@pytest_twisted.async_yield_fixture
async def line(desk: MemoryDesk, tmp_path: Path) -> Any:
    port = audience_port(reactor, str(tmp_path / "a.pb"), 0o660, "", desk)
    port.startService()
    line = await dial(str(tmp_path / "a.pb"))
    yield line
    if not line.root.broker.disconnected:
        await line.hang_up()
    await port.stopService()


ASK = {"score": "uptime", "targets": ["web1", "web2"], "scope": "all"}


async def test_an_accepted_request_is_answered_with_a_receipt(line: Line, desk: MemoryDesk) -> None:
    ok, value = await line.ask("submit", ASK)
    assert ok == "OK"
    assert msgspec.convert(value, Receipt) == Receipt(job=1, created=True, targets=2)
    assert desk.askers[1].uid == os.getuid()


async def test_the_guest_is_who_the_kernel_says(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        guest = guest_of(ours)
    assert guest.asker.uid == os.getuid()
    assert os.getgid() in guest.groups


async def test_an_expected_error_is_its_sentence(line: Line) -> None:
    code, sentence, status = await line.ask("job", {"job": 7})
    assert (code, status) == ("NO_SUCH_JOB", 64)
    assert sentence.startswith("There is no job 7;")


async def test_a_bug_is_a_number_and_none_of_its_text_crosses(line: Line, desk: MemoryDesk) -> None:
    desk.broken = ValueError("secret path /etc/shadow")
    logged: list[Any] = []
    globalLogPublisher.addObserver(logged.append)
    try:
        code, sentence, status = await line.ask("submit", ASK)
    finally:
        globalLogPublisher.removeObserver(logged.append)
    assert (code, status) == ("INTERNAL_ERROR", 70)
    assert "secret" not in sentence
    assert any(event.get("number", "?") in sentence for event in logged)


async def test_who_is_not_allowed_is_told_so_by_every_call(line: Line, desk: MemoryDesk) -> None:
    desk.admitted = False
    for name in ("submit", "jobs", "nonsense"):
        code, _, status = await line.ask(name, {})
        assert (code, status) == ("DENIED", 77)


HOSTILE: list[tuple[str, tuple[Any, ...]]] = [
    ("nonsense", ({},)),
    ("remoteMessageReceived", ({},)),
    ("__class__", ({},)),
    ("submit", ()),
    ("submit", (1,)),
    ("submit", ({}, {})),
    ("submit", (ASK, ASK)),
    ("submit", (ASK | {"targets": "web1"},)),
    ("submit", (ASK | {"targets": [b"web1"]},)),
    ("submit", (ASK | {"targets": [["web1"]]},)),
    ("submit", (ASK | {"scope": "everything"},)),
    ("submit", (ASK | {"params": {"a": 1}},)),
    ("submit", (ASK | {"params": {1: "a"}},)),
    ("submit", (ASK | {"expire": float("nan")},)),
    ("submit", (ASK | {"expire": -1},)),
    ("submit", (ASK | {"priority": 2**63},)),
    ("submit", ([ASK],)),
    ("submit", ([b"\xc1"],)),
    ("submit", ([b"\x81\xa5score"],)),
    ("submit", ([b"\x91" * 100_000],)),
    ("submit", (["text"],)),
    ("submit", (b"\x80",)),
    ("perform", (ASK,)),
    ("await_end", ({"job": 1},)),
    ("job", ({"job": True},)),
    ("job", ({"job": 0},)),
    ("job", ({"job": 2**63},)),
    ("job", ({"job": "1"},)),
    ("job", ({"job": 1, "sudo": True},)),
    ("job", ([1],)),
    ("tasks", ({"job": 1, "limit": 501},)),
    ("tasks", ({"job": 1, "states": [99]},)),
    ("output", ({"job": 1, "task": 0, "stream": 3},)),
    ("output", ({"job": 1, "task": 0, "stream": 1, "limit": 10**9},)),
    ("players", ({"names": [None]},)),
    ("watch", ({"job": 1},)),
    ("watch", ({"job": 1}, "not a watcher")),
]


@pytest.mark.parametrize(("name", "arguments"), HOSTILE)
async def test_hostile_arguments_get_a_sentence(line: Line, name: str, arguments: tuple[Any, ...]) -> None:
    code, sentence, status = await line.ask(name, *arguments)
    assert (code, status) == ("BAD_REQUEST", 64)
    assert "Traceback" not in sentence
    assert (await line.ask("about"))[0] == "OK"  # and the connection lives


async def test_named_arguments_and_references_where_values_belong_are_refused(line: Line) -> None:
    assert (await line.ask("job", job=1))[0] == "BAD_REQUEST"
    assert (await line.ask("submit", [Watcher()]))[0] == "BAD_REQUEST"
    assert (await line.ask("submit", [line.root]))[0] == "BAD_REQUEST"


async def test_a_class_of_the_clients_is_refused(line: Line) -> None:
    class Evil(pb.Copyable):
        pass

    assert (await line.ask("submit", Evil()))[0] == "BAD_REQUEST"


async def test_a_cycle_is_refused(line: Line) -> None:
    pieces: list[Any] = []
    pieces.append(pieces)
    assert (await line.ask("submit", pieces))[0] == "BAD_REQUEST"


async def test_a_page_ends_before_it_is_too_large(line: Line, desk: MemoryDesk) -> None:
    await line.ask("submit", ASK | {"targets": ["web1", "web2", "web3"]})
    for name in ("web1", "web2", "web3"):
        desk.end(1, name, State.OK, response={"text": "x" * 150_000})
    _, (rows, more) = await line.ask("tasks", {"job": 1})
    assert ([row["task"] for row in rows], more) == ([0], True)
    _, (rows, more) = await line.ask("tasks", {"job": 1, "after": 1})
    assert ([row["task"] for row in rows], more) == ([2], False)


async def test_a_page_ends_at_the_asked_limit(line: Line) -> None:
    for _ in range(3):
        await line.ask("submit", ASK)
    _, (rows, more) = await line.ask("jobs", {"limit": 2})
    assert ([row["job"] for row in rows], more) == ([3, 2], True)


def test_a_catalogue_of_a_large_fleet_comes_in_rows() -> None:
    names = tuple(f"web{n:04}" for n in range(1_200))
    rows = list(catalogue_rows([(Catalogue("d", ()), names)]))
    assert [len(players) for _, players in rows] == [500, 500, 200]
    assert tuple(name for _, players in rows for name in players) == names


async def test_a_watcher_handed_in_with_the_request_is_told_until_the_job_has_ended(
    line: Line, desk: MemoryDesk
) -> None:
    watcher = Watcher()
    await line.ask("submit", ASK, watcher)
    desk.end(1, "web1", State.OK)
    desk.end(1, "web2", State.FAILED)
    assert (await watcher.ended).verdict == "partial"
    assert [event.kind for event in watcher.events] == ["submitted", "ok", "failed", "ended"]
    await line.ask("about")
    assert not desk.watches


async def test_a_slow_watcher_has_one_call_in_flight_and_misses_nothing(line: Line, desk: MemoryDesk) -> None:
    watcher = Watcher(slow=True)
    await line.ask("submit", ASK, watcher)
    await watcher.called
    for n in range(1_000):
        desk.tell(1, Event(n=n + 2, at=0, kind="dispatched", task=0))
    await line.ask("about")
    assert watcher.calls == 1
    gate, watcher.gate = watcher.gate, None
    assert gate is not None
    gate.callback(None)
    desk.end(1, "web1", State.OK)
    desk.end(1, "web2", State.OK)
    await watcher.ended
    assert [event.n for event in watcher.events] == list(range(1, len(desk.log[1]) + 1))


async def test_who_has_seen_everything_of_a_job_that_has_ended_is_told_that_it_has(
    line: Line, desk: MemoryDesk
) -> None:
    await line.ask("submit", ASK)
    desk.end(1, "web1", State.OK)
    desk.end(1, "web2", State.OK)
    watcher = Watcher()
    await line.ask("watch", {"job": 1, "since": len(desk.log[1])}, watcher)
    await watcher.ended
    assert watcher.events == []
    await line.ask("about")
    assert not desk.watches


async def test_who_only_awaits_the_end_is_told_of_nothing_else(line: Line, desk: MemoryDesk) -> None:
    """Handed in with the request, or later."""
    first, second = Watcher(), Watcher()
    await line.ask("perform", ASK, first)
    await line.ask("await_end", {"job": 1}, second)
    desk.end(1, "web1", State.OK)
    desk.end(1, "web2", State.OK)
    for watcher in (first, second):
        assert (await watcher.ended).verdict == "ok"
        assert (watcher.calls, watcher.events) == (1, [])


async def test_a_value_larger_than_a_piece_arrives_whole(line: Line, desk: MemoryDesk) -> None:
    """Perspective Broker itself would break at 640 KiB."""
    desk.names |= {f"web{n:050}" for n in range(20_000)}
    targets = sorted(desk.names)
    assert len(envelope.pack(targets)) > 1
    _, receipt = await line.ask("submit", ASK | {"targets": targets})
    assert receipt["targets"] == len(targets)


async def test_a_watch_ends_with_its_connection(line: Line, desk: MemoryDesk, tmp_path: Path) -> None:
    other = await dial(str(tmp_path / "a.pb"))
    await line.ask("submit", ASK)
    await other.ask("watch", {"job": 1}, Watcher(slow=True))
    assert len(desk.watches) == 1
    await other.hang_up()
    while desk.watches:  # the conductor's end of the hang-up is a turn of the reactor later
        await deferLater(reactor, 0)


async def test_unwatch_ends_a_watch(line: Line, desk: MemoryDesk) -> None:
    watcher = Watcher(slow=True)
    await line.ask("submit", ASK, watcher)
    assert await line.ask("unwatch", {}, watcher) == ["OK", None]
    assert not desk.watches


async def test_a_watcher_that_fails_is_dropped_and_the_connection_lives(line: Line, desk: MemoryDesk) -> None:
    await line.ask("submit", ASK, pb.Referenceable())
    await line.ask("about")
    while desk.watches:
        await line.ask("about")


async def test_watches_of_a_connection_are_limited(line: Line, desk: MemoryDesk) -> None:
    await line.ask("submit", ASK)
    watchers = [Watcher(slow=True) for _ in range(perspective.MAX_WATCHERS + 1)]
    codes = [(await line.ask("watch", {"job": 1}, watcher))[0] for watcher in watchers]
    assert codes == ["OK"] * perspective.MAX_WATCHERS + ["TOO_MANY"]
    assert (await line.ask("submit", ASK, Watcher()))[0] == "TOO_MANY"
    assert len(desk.asks) == 1


async def test_connections_of_a_user_are_limited(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(seat, "MAX_CONNECTIONS_EACH", 1)
    monkeypatch.setattr(seat, "guest_of", lambda _: seat.Guest(asker=seat.Asker(name="eve", uid=12345), groups=()))
    first = await dial(str(tmp_path / "a.pb"))
    second = await dial(str(tmp_path / "a.pb"))
    assert (await first.ask("about"))[0] == "OK"
    assert (await second.ask("about"))[:2] == [
        "TOO_MANY",
        "eve has 1 connections open, which is the limit; close some and try again.",
    ]
    await first.hang_up()
    while (await second.ask("about"))[0] != "OK":
        await deferLater(reactor, 0)
    await second.hang_up()


# the socket


async def test_the_socket_has_the_mode_it_was_given(line: Line, tmp_path: Path) -> None:
    assert stat.S_IMODE(os.stat(tmp_path / "a.pb").st_mode) == 0o660


async def test_a_live_socket_is_not_taken_and_a_stale_one_is(line: Line, tmp_path: Path) -> None:
    with pytest.raises(AlreadyRunning, match="Another conductor is already using"):
        audience_port(reactor, str(tmp_path / "a.pb"), 0o660, "", MemoryDesk()).startService()
    stale = str(tmp_path / "stale.pb")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(stale)
    free_path(stale, "conductor")
    assert not os.path.exists(stale)


def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(FileProblem, match="not one"):
        free_path(str(tmp_path / "file"), "conductor")
    with pytest.raises(FileProblem, match="at most 107 bytes"):
        free_path(str(tmp_path / ("x" * 108)), "conductor")
    with pytest.raises(FileProblem, match="is not a directory"):
        free_path(str(tmp_path / "none" / "a.pb"), "conductor")
    assert (tmp_path / "file").read_text() == "precious"


async def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    port = audience_port(reactor, str(tmp_path / "g.pb"), 0o660, "no-such-group", MemoryDesk())
    with pytest.raises(FileProblem, match="no-such-group: there is none"):
        port.startService()
    await port.stopService()


async def test_a_door_may_be_made_when_the_first_guest_comes(tmp_path: Path) -> None:
    """One door for all guests, and none to close if nobody came."""
    made = []

    async def reload(_: Nothing, __: object) -> int:
        return len(made)

    def make() -> Door:
        made.append(door(lambda guest: Plain({"reload": Method(Nothing, reload)})))
        return made[-1]

    for guests in (0, 2):
        port = SeatPort(reactor, str(tmp_path / "p.pb"), LateDoor(make), mode=0o600, what="player")
        port.startService()
        assert made == []
        lines = [await dial(str(tmp_path / "p.pb")) for _ in range(guests)]
        assert [await line.ask("reload", {}) for line in lines] == [["OK", 1]] * guests
        for line in lines:
            await line.hang_up()
        await port.stopService()


async def test_a_player_can_offer_a_seat_of_its_own(tmp_path: Path) -> None:
    async def reload(_: Nothing, __: object) -> str:
        return "3 scores"

    port = seat_port(reactor, str(tmp_path / "p.pb"), lambda guest: Plain({"reload": Method(Nothing, reload)}))
    port.startService()
    line = await dial(str(tmp_path / "p.pb"))
    assert await line.ask("reload", {}) == ["OK", "3 scores"]
    assert (await line.ask("submit", ASK))[0] == "BAD_REQUEST"
    await line.hang_up()
    await port.stopService()
    assert not os.path.exists(tmp_path / "p.pb")
