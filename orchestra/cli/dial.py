"""Whether a conductor can be reached, tried step by step as a player would: name, TCP, TLS, certificates, the list.

Blocking sockets, no reactor. No Hello is said: a session of this player that exists goes on undisturbed.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Any, Final, NamedTuple

import msgspec
from OpenSSL import SSL
from twisted.protocols import amp
from twisted.python.failure import Failure

from orchestra.security.contexts import Unverified, client_options, explain
from orchestra.security.credentials import Credentials
from orchestra.settings import ConductorAddress
from orchestra.wire.commands import DISMISS, Dismissal

PATIENCE: Final = 5.0  # seconds for TCP and for TLS, each
VERDICT: Final = 2.0  # seconds in which a conductor that turns us away says so; it takes milliseconds
MOST_HEARD: Final = 1 << 17


class Finding(NamedTuple):
    """One thing that was looked at: ``ok``, ``WRONG``, or ``note`` where it works but should be known."""

    label: str
    text: str

    @property
    def line(self) -> str:
        return f"{self.label:<5} {self.text}"


Findings = Iterator[Finding]


def ok(text: str) -> Finding:
    return Finding("ok", text)


def wrong(text: str) -> Finding:
    return Finding("WRONG", text)


def note(text: str) -> Finding:
    return Finding("note", text)


class Closed(Exception):
    """The conductor closed the connection without a word."""


def dial(address: ConductorAddress, ours: Credentials | None) -> Findings:
    """Every step towards one conductor, up to the first that is wrong; without credentials, up to TCP."""
    name = address.name
    try:
        places = resolve(address)
    except OSError as problem:
        why = f"the name {address.address} cannot be resolved to an address ({problem.strerror})"
        yield wrong(f"{name}: {why}; check its spelling and DNS, or write {name}@ADDRESS")
        return
    yield ok(f"{name}: dialled at {', '.join(dict.fromkeys(place[0] for place in places))}")
    connection, problems = connect(places)
    yield from (wrong(f"{name}: {problem}") for problem in problems)
    if connection is None:
        return
    with closing(connection):
        host, port = connection.getpeername()[:2]
        yield ok(f"{name}: {host} answers at port {port}")
        if ours is not None:
            yield from (Finding(label, f"{name}: {text}") for label, text in _talk(Talk(connection, ours, name), ours))


def resolve(address: ConductorAddress) -> list[tuple[Any, ...]]:
    """The socket addresses of a conductor; OSError if its name has none."""
    found = socket.getaddrinfo(address.address, address.port, type=socket.SOCK_STREAM)
    return [place for *_, place in found]


def connect(places: list[tuple[Any, ...]]) -> tuple[socket.socket | None, list[str]]:
    """A connection to the first of ``places`` that answers, and a sentence for each that did not."""
    problems: list[str] = []
    for place in places:
        try:
            return socket.create_connection(place[:2], PATIENCE), problems
        except OSError as problem:
            problems.append(_unanswered(place, problem))
    return None, problems


def _unanswered(place: tuple[Any, ...], problem: OSError) -> str:
    where = f"{place[0]}, port {place[1]}"
    if isinstance(problem, ConnectionRefusedError):
        return f"nothing listens at {where}: is the conductor running, and is it that port?"
    if isinstance(problem, TimeoutError):
        return f"no answer from {where} within {PATIENCE:g} s: is a firewall in between?"
    return f"{where} cannot be reached: {os.strerror(problem.errno or 0)}"


def _talk(talk: "Talk", ours: Credentials) -> Findings:
    try:
        talk.handshake(PATIENCE)
        yield ok("TLS 1.3 is spoken, and its certificate is right")
        yield from _verdict(talk.hear(VERDICT), ours.names[0])
    except Unverified as problem:
        yield wrong(f"we do not accept it: {explain(Failure(problem), ours)}")
    except SSL.Error as problem:
        yield wrong(explain(Failure(problem), ours))
    except TimeoutError:
        yield wrong(f"it did not finish the TLS handshake within {PATIENCE:g} s: is it a conductor's port?")
    except (Closed, OSError):
        yield wrong("it closed the connection without a word; its log says why")


def _verdict(said: bytes, us: str) -> Findings:
    yield ok("it accepts our certificate")
    turned_away = listed(said)
    if turned_away is None:
        yield ok(f"it lists {us}")
    else:
        yield wrong(f"{turned_away.reason}; its operator mends that, then 'orchestra reload' there")


def listed(said: bytes) -> Dismissal | None:
    """Why the conductor turns us away, judged by what it said to a connection without a Hello; None: it has not.

    It speaks first only to dismiss: whoever is not in its players file hears so as soon as the handshake is over.
    """
    for box in amp.parseString(said):
        if box.get(amp.COMMAND) == DISMISS.name:
            return msgspec.msgpack.decode(box[b"d"], type=Dismissal)
    return None


class Talk:
    """A TLS connection as the player makes it."""

    def __init__(self, connection: socket.socket, ours: Credentials, name: str) -> None:
        self._socket = connection
        self._tls: SSL.Connection = client_options(ours, name).clientConnectionForTLS(None)  # type: ignore[arg-type]
        self._tls.set_connect_state()

    def handshake(self, patience: float) -> None:
        """Both ends have shown their certificates; whether ours is accepted is heard afterwards (TLS 1.3)."""
        deadline = time.monotonic() + patience
        while True:
            try:
                self._tls.do_handshake()
                return
            except SSL.WantReadError:
                pass
            finally:
                self._send()
            self._receive(deadline)

    def hear(self, patience: float) -> bytes:
        """What the conductor says, until it has turned us away or ``patience`` seconds are over."""
        deadline = time.monotonic() + patience
        said = b""
        with suppress(TimeoutError):
            while len(said) < MOST_HEARD and listed(said) is None:
                try:
                    said += self._tls.recv(65536)
                except SSL.WantReadError:
                    self._receive(deadline)
                except SSL.ZeroReturnError:
                    raise Closed from None
        return said

    def _send(self) -> None:
        with suppress(SSL.WantReadError):  # nothing more to send
            while True:
                self._socket.sendall(self._tls.bio_read(65536))

    def _receive(self, deadline: float) -> None:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        data = self._socket.recv(65536)
        if not data:
            raise Closed
        self._tls.bio_write(data)
