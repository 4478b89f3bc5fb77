"""The Python library, async and blocking, with a real seat at the other end of a unix socket."""

import errno
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from desk import MemoryDesk, score
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread
from twisted.internet.utils import getProcessOutput
from twisted.spread import pb

from orchestra import errors
from orchestra.audience import client, envelope
from orchestra.audience.client import Ask, BlockingOrchestra, Orchestra, Scope, State
from orchestra.audience.perspective import audience_port
from orchestra.model import Asker, Catalogue, Event

ASK = Ask(score="uptime", targets=("web1", "web2"), scope=Scope.ALL)


@pytest.fixture
def desk() -> MemoryDesk:
    return MemoryDesk()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.pb")


@pytest_twisted.async_yield_fixture
async def port(desk: MemoryDesk, path: str) -> Any:
    port = audience_port(reactor, path, 0o660, "", desk)
    port.startService()
    yield port
    await port.stopService()


@pytest_twisted.async_yield_fixture
async def orchestra(port: Any, path: str) -> Any:
    async with await Orchestra.connect(reactor, path, answer_within=10) as orchestra:
        yield orchestra


async def test_a_job_is_submitted_and_its_answers_are_read(orchestra: Orchestra, desk: MemoryDesk) -> None:
    receipt = await orchestra.submit(ASK)
    desk.end(receipt.job, "web1", State.OK, response={"load": "0.1"})
    desk.end(receipt.job, "web2", State.LOST)
    assert (await orchestra.wait(receipt.job)).counts == {"ok": 1, "lost": 1}
    assert [(task.player, task.state, task.response) async for task in orchestra.tasks(receipt.job)] == [
        ("web1", "ok", {"load": "0.1"}),
        ("web2", "lost", None),
    ]
    assert [task.player async for task in orchestra.tasks(receipt.job, (State.LOST,))] == ["web2"]


async def test_perform_tells_the_receipt_first_and_then_every_event_once(
    orchestra: Orchestra, desk: MemoryDesk
) -> None:
    jobs: list[int] = []
    seen: list[str] = []

    def accepted(receipt: Any) -> None:
        jobs.append(receipt.job)
        desk.end(receipt.job, "web1", State.OK)
        desk.end(receipt.job, "web2", State.OK)

    def progress(events: Sequence[Event]) -> None:
        seen.extend(event.kind for event in events)

    job = await orchestra.perform(ASK, accepted, progress)
    assert (job.verdict, jobs, seen) == ("ok", [1], ["submitted", "ok", "ok", "ended"])


async def test_a_refusal_is_raised_as_the_class_that_has_its_code(orchestra: Orchestra) -> None:
    with pytest.raises(errors.NoSuchJob) as caught:
        await orchestra.job(9)
    assert (caught.value.code, caught.value.status) == ("NO_SUCH_JOB", 64)
    assert caught.value.sentence.startswith("There is no job 9;")
    assert str(caught.value) == caught.value.sentence


@pytest.mark.parametrize(
    "ask",
    [
        Ask(score="uptime", targets=("web1",), scope=Scope.ALL, params={"a": "x" * 700_000}),
        Ask(score="uptime", targets=("web1",), scope=Scope.ALL, params={"a": "\udcff"}),
        Ask(score="uptime", targets=("web1",), scope=Scope.ALL, params={"a b": "1"}),
        Ask(score="x" * 700_000, targets=("web1",), scope=Scope.ALL),
        Ask(score="uptime", targets=("we\udcff",), scope=Scope.ALL),
        Ask(score="uptime", targets=("web1\n",), scope=Scope.ALL),
        Ask(score="uptime", targets=(), scope=Scope.ALL),
    ],
)
async def test_what_cannot_be_asked_is_refused_with_a_sentence(orchestra: Orchestra, ask: Ask) -> None:
    with pytest.raises(errors.BadRequest):
        await orchestra.submit(ask)
    assert (await orchestra.about()).players == 4


def test_an_error_of_a_newer_conductor_is_a_refusal_with_its_code() -> None:
    error = envelope.revived("FLEET_ON_FIRE", "Your {fleet} is on fire.", 75)
    assert isinstance(error, errors.Refusal)
    assert (error.code, error.sentence, error.status) == ("FLEET_ON_FIRE", "Your {fleet} is on fire.", 75)


@pytest.mark.parametrize("nonsense", [None, [], ["OK"], ["X", 1, 2], "OK", ["OK", 1, 2, 3], {"OK": 1}])
def test_an_answer_that_cannot_be_read_is_our_bug(nonsense: object) -> None:
    with pytest.raises(errors.InternalError):
        envelope.opened(nonsense)


async def test_all_pages_are_read(orchestra: Orchestra, desk: MemoryDesk) -> None:
    for _ in range(120):
        await desk.submit(Asker(name="ann", uid=1000), ASK)
    assert [job.job async for job in orchestra.jobs()] == list(range(120, 0, -1))
    desk.names = frozenset(f"web{n:04}" for n in range(1_200))
    desk.catalogue = Catalogue("d9", tuple(score(f"s{n}") for n in range(100)))
    assert [player.name async for player in orchestra.players()] == sorted(desk.names)
    assert await orchestra.catalogues() == [(desk.catalogue, tuple(sorted(desk.names)))]


async def test_kept_output_is_read_piece_by_piece(orchestra: Orchestra, desk: MemoryDesk) -> None:
    await orchestra.submit(ASK)
    desk.keep(1, "web1", bytes(range(256)) * 2_000)
    found, offset = b"", 0
    while pieces := await orchestra.output(1, 0, 1, offset):
        found += b"".join(data for _, data in pieces)
        offset = pieces[-1][0] + len(pieces[-1][1])
    assert found == bytes(range(256)) * 2_000


async def test_an_exception_of_progress_ends_the_wait_and_the_watch(orchestra: Orchestra, desk: MemoryDesk) -> None:
    await orchestra.submit(ASK)

    def progress(events: Sequence[Event]) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await orchestra.wait(1, progress)
    await orchestra.about()
    assert not desk.watches


async def test_a_wait_gives_up_after_its_timeout_and_unwatches(orchestra: Orchestra, desk: MemoryDesk) -> None:
    await orchestra.submit(ASK)
    with pytest.raises(errors.GaveUpWaiting, match="getstatus 1") as caught:
        await orchestra.wait(1, timeout=0.01)
    assert caught.value.status == 13
    await until_unwatched(orchestra, desk)


async def test_a_wait_that_gives_up_before_its_answer_unwatches_too(orchestra: Orchestra, desk: MemoryDesk) -> None:
    """The conductor watches by then, or is about to."""
    await orchestra.submit(ASK)
    with pytest.raises(errors.GaveUpWaiting):
        await orchestra.wait(1, timeout=0)
    await until_unwatched(orchestra, desk)


async def until_unwatched(orchestra: Orchestra, desk: MemoryDesk) -> None:
    """What was asked for before is done when this is answered, or soon after."""
    await orchestra.about()
    for _ in range(100):
        if not desk.watches:
            return
        await orchestra.about()
    raise AssertionError(desk.watches)


async def test_a_wait_goes_on_when_the_conductor_is_back_and_repeats_no_event(
    orchestra: Orchestra, desk: MemoryDesk, port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RETRY", 0.01)
    await orchestra.submit(ASK)
    first: Deferred[None] = Deferred()
    seen: list[int] = []

    def progress(events: Sequence[Event]) -> None:
        seen.extend(event.n for event in events)
        if not first.called:
            first.callback(None)

    waiting = Deferred.fromCoroutine(orchestra.wait(1, progress))
    await first
    await port.stopService()
    desk.end(1, "web1", State.OK)
    desk.end(1, "web2", State.OK)
    port.startService()
    assert (await waiting).verdict == "ok"
    assert seen == [1, 2, 3, 4]


async def test_a_conductor_that_stays_away_ends_the_wait(
    orchestra: Orchestra, port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "RETRY", 0.01)
    monkeypatch.setattr(client, "PATIENCE", 0.05)
    await orchestra.submit(ASK)
    waiting = Deferred.fromCoroutine(orchestra.wait(1))
    await port.stopService()
    with pytest.raises(errors.NoConductor):
        await waiting


async def test_a_lost_connection_is_made_anew_by_the_next_call(orchestra: Orchestra, port: Any) -> None:
    await orchestra.submit(ASK)
    gone: Deferred[object] = Deferred()
    assert orchestra._root is not None
    orchestra._root.notifyOnDisconnect(gone.callback)
    await port.stopService()
    await gone
    with pytest.raises(errors.NoConductor):
        await orchestra.about()
    port.startService()
    assert (await orchestra.job(1)).score == "uptime"


async def test_no_conductor_is_said_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(errors.NoConductor, match="No such file or directory") as caught:
        await Orchestra.connect(reactor, str(tmp_path / "none.pb"))
    assert caught.value.status == 69


async def test_a_socket_that_may_not_be_opened_is_a_denial(tmp_path: Path) -> None:
    """Root may open every socket, so the kernel's answer is handed in."""
    client = Orchestra(reactor, str(tmp_path / "a.pb"))
    error = client._unreachable(ConnectError(errno.EACCES, "Permission denied"))
    assert (error.code, error.status) == ("DENIED", 77)


class _Mute(Protocol):
    """Accepts, and never says a word."""


async def test_a_conductor_that_says_nothing_is_no_conductor(tmp_path: Path) -> None:
    silent: Any = reactor
    port = silent.listenUNIX(str(tmp_path / "mute.pb"), Factory.forProtocol(_Mute))
    with pytest.raises(errors.NoConductor, match="says nothing"):
        await Orchestra.connect(reactor, str(tmp_path / "mute.pb"), answer_within=0.05)
    await port.stopListening()


async def test_a_call_that_was_sent_and_not_answered_is_said_so(path: str, port: Any, desk: MemoryDesk) -> None:
    asked: Deferred[None] = Deferred()

    async def for_ever(*_: object) -> Any:
        asked.callback(None)
        await Deferred()

    desk.about = for_ever  # type: ignore[method-assign]  # a conductor that hangs
    orchestra = await Orchestra.connect(reactor, path, answer_within=10)
    calling = Deferred.fromCoroutine(orchestra.about())
    await asked
    await port.stopService()
    with pytest.raises(errors.Unanswered, match="may or may not have been done") as caught:
        await calling
    assert caught.value.status == 75


async def test_a_denied_user_is_told_which_group(orchestra: Orchestra, desk: MemoryDesk) -> None:
    desk.admitted = False
    with pytest.raises(errors.Denied, match="the group operators"):
        await orchestra.about()


# blocking


async def test_a_script_asks_several_times_from_its_own_thread(path: str, port: Any, desk: MemoryDesk) -> None:
    def script() -> list[Any]:
        with BlockingOrchestra(path) as orchestra:
            first, second = orchestra.submit(ASK), orchestra.submit(ASK)
            for job in (first.job, second.job):
                reactor.callFromThread(desk.end, job, "web1", State.OK)  # type: ignore[attr-defined]
                reactor.callFromThread(desk.end, job, "web2", State.OK)  # type: ignore[attr-defined]
            done = [orchestra.wait(job, timeout=10).verdict for job in (first.job, second.job)]
            players = [task.player for task in orchestra.tasks(first.job)]
            with pytest.raises(errors.NoSuchJob):
                orchestra.job(9)
            return [*done, players, [job.job for job in orchestra.jobs()]]

    assert await deferToThread(script) == ["ok", "ok", ["web1", "web2"], [2, 1]]


async def test_threads_may_share_one_client(path: str, port: Any, desk: MemoryDesk) -> None:
    def script() -> set[int]:
        jobs: set[int] = set()
        with BlockingOrchestra(path) as orchestra:
            threads = [threading.Thread(target=lambda: jobs.add(orchestra.submit(ASK).job)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return jobs

    assert await deferToThread(script) == set(range(1, 9))


async def test_the_blocking_client_refuses_the_reactors_own_thread(path: str, port: Any) -> None:
    with pytest.raises(RuntimeError, match="other threads"):
        BlockingOrchestra(path)


SCRIPT = """
import sys, threading
from orchestra.audience.client import Ask, BlockingOrchestra, Scope

def main():
    with BlockingOrchestra(sys.argv[1]) as orchestra:
        jobs = [orchestra.submit(Ask(score="uptime", targets=("web1",), scope=Scope.ALL)).job for _ in range(3)]
        print(jobs, [orchestra.cancel(job).cancelled for job in jobs], orchestra.wait(jobs[0]).verdict)

main()
other = threading.Thread(target=main)
other.start()
other.join()
"""


async def test_a_plain_script_needs_to_know_nothing_of_reactors(path: str, port: Any) -> None:
    """Two clients one after the other, the second in a thread that is not the main one."""
    said = await getProcessOutput(sys.executable, ["-c", SCRIPT, path], os.environ, errortoo=True)
    assert said.decode() == "[1, 2, 3] [1, 1, 1] failed\n[4, 5, 6] [1, 1, 1] failed\n"


def test_only_basic_types_and_references_are_let_in() -> None:
    options: Any = envelope.security()
    assert options.isTypeAllowed(b"dictionary")
    assert options.isTypeAllowed(b"remote")
    assert not options.isTypeAllowed(b"instance")
    assert not options.isClassAllowed(pb.Copyable)
