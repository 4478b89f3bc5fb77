"""The line between two real ends, in memory: what arrives, what is answered, and who is cut off."""

import gc
import socket
import weakref
from typing import Any

import pytest
from ends import Ends, Hearing, box, complaints, ending, pair
from hypothesis import given
from hypothesis import strategies as st
from pki import pki
from twisted.internet.error import ConnectionLost
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.protocols import amp
from twisted.python.failure import Failure
from twisted.test.iosim import connectedServerAndClient

from orchestra.errors import NotSaved
from orchestra.model import Report, Told
from orchestra.security.contexts import ServerCredentials, client_options
from orchestra.wire import batches
from orchestra.wire.batches import CHUNK, MOST, ROOM, Joiner, TooMuch, chunks, portion
from orchestra.wire.commands import BEAT, CANCEL, PROGRESS, REPORT, Command
from orchestra.wire.peer import ABORT_AFTER, MAX_KEYS, MAX_WAITING, Peer, watch_for_silence
from orchestra.wire.tls import over_tls

BLOB = Command(b"blob", bytes)
HEADER = 5  # what msgpack puts before bytes of this length


def report(seq: int, reason: str = "") -> Report:
    return Report(seq, 1, 0, 1, Told.OK, reason)


def raw(ends: Ends[Any], data: bytes) -> None:
    """Have their end say these bytes, whatever they mean."""
    ends.their_wire.write(data)
    ends.flush()


def cut_off(ends: Ends[Any]) -> bool:
    return ends.ours.closed and ends.wire.aborted


# ---- batches


@given(st.integers(0, 3 * CHUNK + 1), st.binary(min_size=1, max_size=7))
def test_a_payload_is_cut_to_what_a_box_carries_and_joined_again(size: int, seed: bytes) -> None:
    """Every piece but the last says that more follow."""
    payload = (seed * (size // len(seed) + 1))[:size]
    pieces = list(chunks(payload))
    joiner = Joiner()
    joined = [joiner.add(piece, more) for piece, more in pieces]
    assert all(len(piece) <= CHUNK for piece, _ in pieces)
    assert [more for _, more in pieces] == [True] * (len(pieces) - 1) + [False]
    assert joined == [None] * (len(pieces) - 1) + [payload]


@pytest.mark.parametrize(("size", "boxes"), [(0, 1), (1, 1), (CHUNK, 1), (CHUNK + 1, 2), (2 * CHUNK, 2)])
def test_no_box_is_sent_for_nothing(size: int, boxes: int) -> None:
    assert len(list(chunks(bytes(size)))) == boxes


def test_a_joiner_begins_anew_after_each_payload() -> None:
    """A second long payload is not the first one's tail."""
    joiner = Joiner()
    assert [joiner.add(b"a", True), joiner.add(b"b", False)] == [None, b"ab"]
    assert [joiner.add(b"c", True), joiner.add(b"d", False)] == [None, b"cd"]


def test_a_payload_over_a_mebibyte_is_too_much() -> None:
    """It is known before the last piece, so nobody makes us keep more."""
    joiner = Joiner()
    joiner.add(bytes(MOST), True)
    with pytest.raises(TooMuch):
        joiner.add(b"x", True)


@given(st.lists(st.integers(0, ROOM), max_size=8))
def test_a_portion_is_at_least_one_record_and_always_fits_a_batch(sizes: list[int]) -> None:
    """A sender that sends portion after portion sends everything, and is never cut off for it."""
    records = [bytes(size) for size in sizes]
    left, sent = records, []
    while left:
        many = portion(left)
        assert many >= 1
        assert len(batches.encode(left[:many])) <= MOST
        sent += left[:many]
        left = left[many:]
    assert sent == records


# ---- saying and hearing


def test_the_answer_is_the_acknowledgement() -> None:
    """It comes when the other end has done its work, not before, and carries nothing."""
    hearing = Hearing(slow=True)
    ends = pair((REPORT, hearing))
    answer = ending(ends.theirs.say(REPORT, [report(1)]))
    ends.flush()
    assert (hearing.heard, answer) == ([[report(1)]], [])
    hearing.finish()
    ends.flush()
    assert answer == [None]


def test_commands_are_handled_one_after_another_in_the_order_they_were_said() -> None:
    """However long one takes: a Cancel never overtakes its Perform."""
    hearing = Hearing(slow=True)
    ends = pair((CANCEL, hearing), (BEAT, hearing))
    answers = [ending(ends.theirs.say(*what)) for what in ((CANCEL, [1]), (BEAT, 2), (CANCEL, [3]))]
    for done in range(3):
        ends.flush()
        assert hearing.heard == [[1], 2, [3]][: done + 1]
        assert [len(each) for each in answers] == [1] * done + [0] * (3 - done)
        hearing.finish()


@pytest.mark.parametrize("size", [CHUNK - HEADER, CHUNK - HEADER + 1, 200_000, MOST - HEADER])
def test_a_long_batch_arrives_whole_and_is_answered_once(size: int) -> None:
    """Up to a mebibyte, which a box could never hold."""
    hearing = Hearing(slow=True)
    ends = pair((BLOB, hearing), cap=2 * MOST)
    payload = b"0123456789" * (size // 10) + b"x" * (size % 10)
    answer = ending(ends.theirs.say(BLOB, payload))
    ends.flush()
    assert (hearing.heard == [payload], answer) == (True, [])
    hearing.finish()
    ends.flush()
    assert answer == [None]


def test_a_batch_over_a_mebibyte_is_cut_off() -> None:
    """Who sends it fills our memory; its answer is the end of the connection."""
    hearing = Hearing()
    ends = pair((BLOB, hearing), cap=2 * MOST)
    with complaints() as said:
        answer = ending(ends.theirs.say(BLOB, bytes(MOST - HEADER + 1)))
        ends.flush()
    assert cut_off(ends)
    assert (hearing.heard, len(answer), len(said)) == ([], 1, 1)


def test_what_needs_no_answer_gets_none() -> None:
    """Best effort costs nothing on the way back."""
    hearing = Hearing()
    ends = pair((PROGRESS, hearing))
    assert ending(ends.theirs.say(PROGRESS, [])) == [None]
    ends.flush()
    assert (hearing.heard, ends.wire.written) == ([[]], b"")


def test_when_the_other_end_was_last_heard_and_last_answered_is_known() -> None:
    """Silence is measured on the clock that was given."""
    ends = pair((BEAT, Hearing()))
    ends.after(7)
    ends.theirs.say(BEAT, 1)
    ends.flush()
    assert (ends.ours.heard_at, ends.theirs.last_answer, ends.theirs.heard_at) == (7, 7, 0)


# ---- what goes wrong


def test_what_could_not_be_saved_is_said_so_and_the_line_stays() -> None:
    """The one declared error; why is our own business."""
    hearing = Hearing(slow=True)
    ends = pair((CANCEL, hearing))
    with complaints() as said:
        first, second = ending(ends.theirs.say(CANCEL, [1])), ending(ends.theirs.say(CANCEL, [2]))
        ends.flush()
        hearing.fail(NotSaved(problem="the disk at /secret is full"))
        hearing.finish()
        ends.flush()
    assert first[0].check(NotSaved)
    assert second == [None]
    assert not ends.ours.closed
    assert b"secret" not in ends.wire.written
    assert [event["log_format"] for event in said] == ["{peer}: {problem}"]


def test_a_handler_that_fails_closes_the_line_and_its_words_stay_here() -> None:
    """A bug is logged once; what was said after it is not acted upon."""
    hearing = Hearing(slow=True)
    ends = pair((CANCEL, hearing))
    with complaints() as said:
        answers = [ending(ends.theirs.say(CANCEL, [n])) for n in (1, 2)]
        ends.flush()
        hearing.fail(ValueError("secret"))
        ends.flush()
    assert cut_off(ends)
    assert [len(answer) for answer in answers] == [1, 1]
    assert not answers[0][0].check(NotSaved)
    assert hearing.heard == [[1]]
    assert b"secret" not in ends.wire.written
    assert len(said) == 1


@pytest.mark.parametrize(
    "said",
    [
        [(b"_command", b"cancel"), (b"_ask", b"1"), (b"d", b"\xc1")],
        [(b"_command", b"cancel"), (b"_ask", b"1"), (b"d", b"")],
        [(b"_command", b"cancel"), (b"_ask", b"1"), (b"d", b"\x91\xa1x")],
        [(b"_command", b"cancel"), (b"_ask", b"1")],
    ],
    ids=["no msgpack", "nothing", "another type", "no payload"],
)
def test_what_is_not_our_protocol_closes_the_line(said: list[tuple[bytes, bytes]]) -> None:
    """A payload is checked before anybody acts on it."""
    hearing = Hearing()
    ends = pair((CANCEL, hearing))
    with complaints() as logged:
        raw(ends, box(said))
    assert cut_off(ends)
    assert (hearing.heard, len(logged)) == ([], 1)


@pytest.mark.parametrize(
    "said",
    [
        [(b"_answer", b"7")],
        [(b"_error", b"7"), (b"_error_code", b"X"), (b"_error_description", b"y")],
        [(b"_error", b"1"), (b"_error_description", b"y")],
        [],
        [(b"d", b"\x01")],
    ],
    ids=["answer to nothing", "error of nothing", "error without a code", "empty", "no command"],
)
def test_a_box_that_cannot_be_closes_the_line(said: list[tuple[bytes, bytes]]) -> None:
    """An enemy's box is one line in the log, never a traceback out of the reactor."""
    ends = pair()
    ends.ours.say(BEAT, 1).addErrback(lambda _: None)
    with complaints() as logged:
        raw(ends, box(said))
    assert cut_off(ends)
    assert len(logged) == 1


@pytest.mark.parametrize("name", [b"StartTLS", b"_ProtocolSwitch", b"perform"])
def test_a_command_that_is_not_ours_is_unhandled(name: bytes) -> None:
    """StartTLS above all: nobody talks us into another context."""
    ends = pair((CANCEL, Hearing()))
    answer = ending(ends.theirs.callRemoteString(name))
    ends.flush()
    assert answer[0].check(amp.UnhandledCommand)
    assert ends.wire.tls is None


def keys(count: int) -> list[tuple[bytes, bytes]]:
    return [(b"_command", b"beat"), (b"d", b"\x01")] + [(b"k%d" % n, b"") for n in range(2, count)]


def test_a_box_holds_so_many_keys_and_no_more() -> None:
    """A box without end would fill our memory; it is said once, however many keys are on their way."""
    hearing = Hearing()
    ends = pair((BEAT, hearing))
    raw(ends, box(keys(MAX_KEYS)))
    assert (hearing.heard, ends.ours.closed) == ([1], False)
    with complaints() as said:
        raw(ends, box(keys(MAX_KEYS + 100)))
    assert cut_off(ends)
    assert (hearing.heard, len(said)) == ([1], 1)


def test_who_floods_us_is_cut_off() -> None:
    """Commands heard and not yet handled are counted, for each of them takes memory."""
    hearing = Hearing(slow=True)
    ends = pair((BEAT, hearing))
    for _ in range(1 + MAX_WAITING):
        ends.theirs.say(BEAT, 1).addErrback(lambda _: None)
    ends.flush()
    assert not ends.ours.closed
    with complaints() as said:
        for _ in range(50):
            ends.theirs.say(BEAT, 1).addErrback(lambda _: None)
        ends.flush()
    assert cut_off(ends)
    assert (len(hearing.heard), len(said)) == (1, 1)


def test_after_a_cut_nothing_more_is_heard() -> None:
    """Not even what had arrived together with the reason for it."""
    hearing = Hearing()
    ends = pair((BEAT, hearing))
    bad = box([(b"_command", b"beat"), (b"d", b"\xc1")])
    good = box([(b"_command", b"beat"), (b"_ask", b"2"), (b"d", b"\x01")])
    with complaints() as said:
        raw(ends, bad + bad + good)
    assert cut_off(ends)
    assert (hearing.heard, len(said)) == ([], 1)


def test_who_does_not_answer_is_sent_so_much_and_then_cut_off() -> None:
    """What was answered does not count; what waits does, in bytes."""
    hearing = Hearing(slow=True)
    ends = pair((BLOB, hearing), cap=1000)
    for _ in range(5):
        ends.theirs.say(BLOB, bytes(900))
        ends.flush()
        hearing.finish()
        ends.flush()
    waiting = ending(ends.theirs.say(BLOB, bytes(900)))
    with complaints() as said:
        refused = ending(ends.theirs.say(BLOB, bytes(100)))
    assert (len(refused), len(said)) == (1, 1)
    assert ends.their_wire.aborted
    ends.flush()
    assert len(waiting) == 1


# ---- the end


def test_hanging_up_is_polite_for_five_seconds() -> None:
    """A peer that does not let go is cut off on the clock; asking twice changes nothing."""
    ends = pair()
    ends.ours.hang_up()
    ends.ours.hang_up()
    assert ends.wire.disconnecting
    ends.clock.advance(ABORT_AFTER - 0.1)
    assert not ends.wire.aborted
    ends.clock.advance(0.1)
    assert cut_off(ends)


def test_hanging_up_leaves_no_timer_when_the_peer_lets_go() -> None:
    ends = pair()
    ends.ours.hang_up()
    ends.flush()
    assert ends.ours.closed
    assert ends.clock.getDelayedCalls() == []
    assert not ends.wire.aborted


def test_who_awaits_an_answer_learns_that_the_line_is_gone() -> None:
    """And what is said afterwards fails at once, quietly."""
    hearing = Hearing(slow=True)
    ends = pair((BLOB, hearing))
    with complaints() as said:
        answer = ending(ends.theirs.say(BLOB, bytes(100_000)))
        ends.flush()
        ends.theirs.abort()
        ends.flush()
        hearing.finish()
        late = ending(ends.theirs.say(BEAT, 1))
    assert (len(answer), len(late), said) == (1, 1, [])
    assert not answer[0].check(NotSaved)


def test_what_waits_for_its_turn_is_dropped_with_the_line() -> None:
    """The next Welcome settles it; nothing old is acted upon later."""
    hearing = Hearing(slow=True)
    ends = pair((BEAT, hearing))
    for n in (1, 2, 3):
        ends.theirs.say(BEAT, n).addErrback(lambda _: None)
    ends.flush()
    ends.theirs.abort()
    ends.flush()
    hearing.finish()
    assert hearing.heard == [1]


def test_it_works_the_same_over_tls() -> None:
    """Both certificates verified, a batch of several boxes each way, no socket."""
    clock, hearing = Clock(), Hearing()
    conductor, player = Peer(clock, [(BLOB, hearing)], MOST), Peer(clock, [(BLOB, hearing)], MOST)
    server = ServerCredentials(pki().credentials("conductor", "c.example"))
    client = client_options(pki().credentials("player", "p1.example"), "c.example")
    ends = [
        over_tls(creator, is_client, Factory.forProtocol(lambda end=end: end), clock)
        for creator, is_client, end in ((server, False, conductor), (client, True, player))
    ]
    *_, pump = connectedServerAndClient(*(lambda f=f: f.buildProtocol(None) for f in ends), clock=clock)
    answers = [ending(end.say(BLOB, bytes(200_000))) for end in (conductor, player)]
    for _ in range(3):
        clock.advance(0)
        pump.flush()
    assert answers == [[None], [None]]
    assert hearing.heard == [bytes(200_000)] * 2


def test_a_cut_line_leaves_no_tls_to_the_garbage_collector() -> None:
    """It would lie there for hours, and the next one beside it: 80 kB each."""
    clock = Clock()
    peer = Peer(clock, [], MOST)
    server = ServerCredentials(pki().credentials("conductor", "c.example"))
    client = client_options(pki().credentials("player", "p1.example"), "c.example")
    made = [
        over_tls(server, False, Factory.forProtocol(lambda: peer), clock).buildProtocol(None),
        over_tls(client, True, Factory.forProtocol(lambda: Peer(clock, [], MOST)), clock).buildProtocol(None),
    ]
    _, _, pump = connectedServerAndClient(made.pop, made.pop, clock=clock)
    for _ in range(3):
        clock.advance(0)
        pump.flush()
    left = weakref.ref(peer.transport._tlsConnection)
    assert left() is not None
    gc.disable()
    try:
        peer.transport.connectionLost(Failure(ConnectionLost()))
        del pump
        assert peer.closed
        assert left() is None
    finally:
        gc.enable()


def test_a_single_probe_that_is_lost_ends_no_line() -> None:
    """The kernel would stop counting them, had it less time than all of them take."""

    class Transport:
        def __init__(self, sock: socket.socket) -> None:
            self.socket = sock

        def setTcpKeepAlive(self, on: int) -> None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, on)

        def setTcpNoDelay(self, on: int) -> None:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, on)

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sock:
        watch_for_silence(Transport(sock))
        names = (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        within, idle, between, probes = (sock.getsockopt(socket.IPPROTO_TCP, name) for name in names)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert within >= 1000 * (idle + between * probes)
