"""Two real ends shake hands in memory: who is let in, who is not, and the sentence that each side has for it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from OpenSSL import SSL
from pki import CLIENT, DAY, SERVER, Leaf, Signer, pki, write
from twisted.internet import error
from twisted.internet.interfaces import IHandshakeListener, IOpenSSLClientConnectionCreator
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.python.failure import Failure
from twisted.test.iosim import IOPump, connectedServerAndClient
from zope.interface import implementer

from orchestra.errors import WrongCertificate
from orchestra.security import contexts
from orchestra.security.authority import Kind
from orchestra.security.contexts import (
    ALPN,
    ClientCredentials,
    ServerCredentials,
    client_options,
    explain,
    peer_certificate,
)
from orchestra.security.credentials import Credentials, day, is_revoked, milliseconds
from orchestra.security.names import conductor_names, player_name

ROOT, OTHER = Signer("a root"), Signer("another root")
MIDDLE = Signer("an intermediate", ROOT)


@implementer(IHandshakeListener)
class End(Protocol):
    """Sends a greeting when its side of the handshake is over, and remembers what happened."""

    def __init__(self) -> None:
        self.shook, self.heard = False, b""
        self.reason: Failure | None = None

    def handshakeCompleted(self) -> None:
        self.shook = True
        self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        self.heard += data

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.reason = reason


class Meeting(NamedTuple):
    """Two ends that have tried to shake hands."""

    conductor: End
    player: End
    pump: IOPump
    clock: Clock

    @property
    def agreed(self) -> bool:
        return (self.conductor.heard, self.player.heard) == (b"hello", b"hello")

    def flush(self) -> None:
        """Carry everything that was written, and what it causes, to the other end."""
        for _ in range(3):  # a write leaves at the end of a reactor turn
            self.clock.advance(0)
            self.pump.flush()


def meet(server: ServerCredentials, client: IOpenSSLClientConnectionCreator) -> Meeting:
    clock = Clock()
    conductor, player = End(), End()
    ends = [
        TLSMemoryBIOFactory(creator, is_client, Factory.forProtocol(lambda end=end: end), clock)
        for creator, is_client, end in ((server, False, conductor), (client, True, player))
    ]
    make = [lambda factory=factory: factory.buildProtocol(None) for factory in ends]
    *_, pump = connectedServerAndClient(make[0], make[1], clock=clock)
    meeting = Meeting(conductor, player, pump, clock)
    meeting.flush()
    return meeting


def try_both(conductor: Credentials, player: Credentials, name: str = "c.example") -> tuple[str, str]:
    """The sentences of conductor and player, when they do not come together."""
    meeting = meet(ServerCredentials(conductor), client_options(player, name))
    assert not meeting.agreed
    assert meeting.conductor.heard == b""  # nothing that the player says is heard before it is verified
    assert meeting.conductor.reason
    assert meeting.player.reason
    return explain(meeting.conductor.reason, conductor), explain(meeting.player.reason, player)


@pytest.fixture
def have(tmp_path: Path) -> Callable[..., Credentials]:
    """Loaded credentials with a certificate that ``load`` would perhaps refuse; they trust ROOT, or ``trust``."""
    count = iter(range(100))

    def make(role: Kind, leaf: Leaf, *trust: Signer, crls: Any = None, chain: tuple[Signer, ...] = ()) -> Credentials:
        trusted = trust or (ROOT,)
        sound = write(tmp_path / str(next(count)), trusted[0].leaf("sound.example"), trusted, crls).load(role)
        certificates = tuple(each.certificate for each in chain)
        return replace(sound, certificate=leaf.certificate, key=leaf.key, chain=certificates)

    return make


Have = Callable[..., Credentials]


@pytest.fixture
def conductor(have: Have) -> Credentials:
    return have("conductor", ROOT.leaf("c.example"))


@pytest.fixture
def player(have: Have) -> Credentials:
    return have("player", ROOT.leaf("p1.example"))


# ---- who is let in


def test_two_that_trust_each_other_talk_and_know_the_other_s_name() -> None:
    ours, theirs = pki().credentials("conductor", "c.example", "d.example"), pki().credentials("player", "p1.example")
    meeting = meet(ServerCredentials(ours), client_options(theirs, "d.example"))
    assert meeting.agreed
    assert player_name(peer_certificate(meeting.conductor.transport)) == "p1.example"
    assert conductor_names(peer_certificate(meeting.player.transport)) == ("c.example", "d.example")


def test_orchestra_is_spoken_over_tls_1_3_alone(conductor: Credentials, player: Credentials) -> None:
    meeting = meet(ServerCredentials(conductor), client_options(player, "c.example"))
    for end in (meeting.conductor, meeting.player):
        assert end.transport.getHandle().get_protocol_version_name() == "TLSv1.3"
        assert end.transport.negotiatedProtocol == ALPN == b"orchestra/1"


def test_an_empty_revocation_list_turns_nobody_away() -> None:
    ours = pki().files("conductor", "c.example").load("conductor")
    theirs = pki().files("player", "p1.example").load("player")
    assert ours.crls is not None
    assert meet(ServerCredentials(ours), client_options(theirs, "c.example")).agreed


def test_nodes_of_a_puppet_authority_talk(have: Have) -> None:
    """Root and intermediate in the ca file, a list of each in the crl file, and each end sends its certificate alone."""
    lists = [MIDDLE.crl(), ROOT.crl()]
    ours = have("conductor", MIDDLE.leaf("c.example"), ROOT, MIDDLE, crls=lists)
    theirs = have("player", MIDDLE.leaf("p1.example"), ROOT, MIDDLE, crls=lists)
    assert meet(ServerCredentials(ours), client_options(theirs, "c.example")).agreed


def test_an_intermediate_sent_along_is_enough(have: Have) -> None:
    ours = have("conductor", MIDDLE.leaf("c.example"), chain=(MIDDLE,))
    theirs = have("player", MIDDLE.leaf("p1.example"), chain=(MIDDLE,))
    assert meet(ServerCredentials(ours), client_options(theirs, "c.example")).agreed


def test_two_authorities_may_serve_while_one_replaces_the_other(have: Have) -> None:
    ours = have("conductor", ROOT.leaf("c.example"), ROOT, OTHER)
    theirs = have("player", OTHER.leaf("p1.example"), OTHER, ROOT)
    assert meet(ServerCredentials(ours), client_options(theirs, "c.example")).agreed


# ---- which player is not


def test_a_player_of_another_authority(have: Have, conductor: Credentials) -> None:
    log, said = try_both(conductor, have("player", OTHER.leaf("p1.example")))
    assert log.startswith("the player's certificate p1.example (serial ")
    assert log.endswith("was issued by 'CN=another root', an authority that is not in our ca file")
    assert said.startswith("the conductor does not trust our certificate authority, 'CN=another root'")


def test_a_player_of_an_authority_with_the_same_name(have: Have, conductor: Credentials) -> None:
    log, said = try_both(conductor, have("player", Signer("a root").leaf("p1.example")))
    assert "has a bad signature: an authority called 'CN=a root' is in our ca file, but with another key" in log
    assert "the conductor has an authority called 'CN=a root', but with another key" in said


def test_a_player_that_signed_its_own_certificate(have: Have, conductor: Credentials) -> None:
    own = Signer("p1.example")
    log, said = try_both(conductor, have("player", Leaf(own.certificate, own.key)))
    assert "is signed by itself, not by an authority in our ca file" in log
    assert "does not trust our certificate authority, 'CN=p1.example'" in said


def test_a_player_whose_certificate_expired(have: Have, conductor: Credentials) -> None:
    leaf = ROOT.leaf("p1.example", since=-9 * DAY, until=-DAY)
    log, said = try_both(conductor, have("player", leaf))
    when = day(leaf.certificate.not_valid_after_utc)
    assert log.endswith(f" expired on {when}")
    assert said == f"our certificate expired on {when}"


def test_a_player_whose_certificate_is_not_valid_yet(have: Have, conductor: Credentials) -> None:
    log, said = try_both(conductor, have("player", ROOT.leaf("p1.example", since=DAY)))
    assert "is not valid before" in log
    assert said.endswith("are both clocks right?")


def test_a_player_that_was_revoked(have: Have) -> None:
    leaf = ROOT.leaf("p1.example")
    revoking = have("conductor", ROOT.leaf("c.example"), crls=[ROOT.crl(leaf.certificate)])
    log, said = try_both(revoking, have("player", leaf))
    assert log.endswith("was revoked by 'CN=a root'")
    assert said.startswith("our certificate p1.example (serial ")
    assert said.endswith("was revoked")


def test_a_player_under_a_revoked_intermediate(have: Have) -> None:
    lists = [MIDDLE.crl(), ROOT.crl(MIDDLE.certificate)]
    revoking = have("conductor", ROOT.leaf("c.example"), ROOT, MIDDLE, crls=lists)
    log, _ = try_both(revoking, have("player", MIDDLE.leaf("p1.example"), chain=(MIDDLE,)))
    assert log.startswith("the certificate of an authority above the player's, CN=an intermediate")
    assert "was revoked by 'CN=a root'" in log


def test_a_player_whose_authority_has_no_revocation_list(have: Have) -> None:
    ours = have("conductor", ROOT.leaf("c.example"), ROOT, OTHER, crls=[ROOT.crl()])
    log, said = try_both(ours, have("player", OTHER.leaf("p1.example")))
    assert log.startswith("there is no revocation list of 'CN=another root' in our crl file")
    assert "its ca file (and its crl file, if it has one) must hold that authority" in said


def test_a_revocation_list_that_expired_turns_everybody_away(have: Have, player: Credentials) -> None:
    late = have("conductor", ROOT.leaf("c.example"), crls=[ROOT.crl()])
    log, said = try_both(replace(late, crls=(ROOT.crl(until=-DAY),)), player)
    assert log == "the revocation list of 'CN=a root' in our crl file has expired; fetch a new one"
    assert "is its revocation list still valid?" in said


def test_a_player_with_a_conductor_s_certificate(have: Have, conductor: Credentials) -> None:
    log, said = try_both(conductor, have("player", ROOT.leaf("p1.example", usages=[SERVER])))
    assert log.endswith("lacks the extended key usage for its purpose")
    assert said.endswith("for this purpose: it lacks the extended key usage")


@pytest.mark.parametrize(
    "leaf", [ROOT.leaf("p1.example", usages=[]), ROOT.leaf("*.example"), ROOT.leaf(common_name="p1.example")]
)
def test_a_player_that_tls_lets_in_and_its_name_does_not(have: Have, conductor: Credentials, leaf: Leaf) -> None:
    """TLS knows nothing of our names: the conductor asks for the name before it listens."""
    meeting = meet(ServerCredentials(conductor), client_options(have("player", leaf), "c.example"))
    with pytest.raises(WrongCertificate):
        player_name(peer_certificate(meeting.conductor.transport))


# ---- which conductor is not


def test_a_conductor_of_another_authority(have: Have, conductor: Credentials) -> None:
    log, said = try_both(conductor, have("player", ROOT.leaf("p1.example"), OTHER))
    assert log.startswith("the player does not trust our certificate authority, 'CN=a root'")
    assert said == "the conductor's certificate leads to 'CN=a root', an authority that is not in our ca file"


@pytest.mark.parametrize("asked", ["other.example", "example", "x.c.example", "C.EXAMPLE"])
def test_a_conductor_of_another_name(have: Have, player: Credentials, asked: str) -> None:
    log, said = try_both(have("conductor", ROOT.leaf("c.example", "d.example")), player, asked)
    assert said == f"the conductor's certificate is for c.example, d.example, not for {asked}"
    assert log.startswith("the player does not accept our certificate c.example, d.example (serial ")


@pytest.mark.parametrize(
    ("leaf", "problem"),
    [
        (ROOT.leaf("*.example"), "'*.example' is a wildcard"),
        (ROOT.leaf("c.example", "*.example"), "'*.example' is a wildcard"),
        (ROOT.leaf(common_name="c.example"), "a common name does not count"),
        (ROOT.leaf("c.example", usages=[]), "needs the extended key usage serverAuth"),
        (ROOT.leaf("c.example", usages=[CLIENT]), "lacks the extended key usage for its purpose"),
    ],
)
def test_a_conductor_whose_certificate_is_no_conductor_s(
    have: Have, player: Credentials, leaf: Leaf, problem: str
) -> None:
    _, said = try_both(have("conductor", leaf), player)
    assert problem in said


def test_a_conductor_whose_certificate_expired(have: Have, player: Credentials) -> None:
    leaf = ROOT.leaf("c.example", since=-9 * DAY, until=-DAY)
    log, said = try_both(have("conductor", leaf), player)
    when = day(leaf.certificate.not_valid_after_utc)
    assert log == f"our certificate expired on {when}"
    assert said.startswith("the conductor's certificate c.example (serial ")
    assert said.endswith(f"expired on {when}")


def test_a_conductor_that_was_revoked(have: Have) -> None:
    leaf = ROOT.leaf("c.example")
    theirs = have("player", ROOT.leaf("p1.example"), crls=[ROOT.crl(leaf.certificate)])
    log, said = try_both(have("conductor", leaf), theirs)
    assert said.endswith("was revoked by 'CN=a root'")
    assert log.endswith("was revoked")


# ---- who does not even speak TLS as we do


@implementer(IOpenSSLClientConnectionCreator)
class Stranger:
    """A TLS client that somebody else wrote."""

    def __init__(self, adjust: Callable[[SSL.Context], object]) -> None:
        self.context = SSL.Context(SSL.TLS_METHOD)
        adjust(self.context)

    def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
        return SSL.Connection(self.context, None)


def test_a_stranger_without_a_certificate(conductor: Credentials, player: Credentials) -> None:
    meeting = meet(ServerCredentials(conductor), Stranger(lambda context: None))
    assert meeting.conductor.reason
    assert meeting.player.reason
    assert explain(meeting.conductor.reason, conductor) == "the player showed no certificate"
    assert explain(meeting.player.reason, player) == "the conductor asks for a certificate, and we sent none"
    assert not meeting.conductor.shook


def test_a_stranger_with_an_older_tls(conductor: Credentials, player: Credentials) -> None:
    meeting = meet(ServerCredentials(conductor), Stranger(lambda each: each.set_max_proto_version(SSL.TLS1_2_VERSION)))
    assert meeting.conductor.reason
    assert meeting.player.reason
    assert explain(meeting.conductor.reason, conductor) == "the player does not speak TLS 1.3"
    assert explain(meeting.player.reason, player) == "the conductor does not speak TLS 1.3"


def test_a_stranger_with_another_protocol(conductor: Credentials, player: Credentials) -> None:
    meeting = meet(ServerCredentials(conductor), Stranger(lambda each: each.set_alpn_protos([b"h2"])))
    assert meeting.conductor.reason
    assert meeting.player.reason
    for reason, whose in ((meeting.conductor.reason, conductor), (meeting.player.reason, player)):
        assert explain(reason, whose).endswith("speaks TLS, but not Orchestra: is it the right port?")


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "somebody spoke plain HTTP to a TLS port"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "what is at the other end does not speak TLS: is it the right port?"),
        (b"\0" * 64, "what is at the other end does not speak TLS: is it the right port?"),
    ],
)
def test_plain_text_on_a_tls_port(conductor: Credentials, said: bytes, sentence: str) -> None:
    clock, end = Clock(), End()
    factory = TLSMemoryBIOFactory(ServerCredentials(conductor), False, Factory.forProtocol(lambda: end), clock)
    client, _, pump = connectedServerAndClient(lambda: factory.buildProtocol(None), Protocol, clock=clock)
    client.transport.write(said)
    pump.flush()
    assert end.reason
    assert explain(end.reason, conductor) == sentence


@pytest.mark.parametrize(
    ("reason", "sentence"),
    [
        (error.DNSLookupError(), "the name of the conductor cannot be resolved to an address"),
        (error.ConnectionRefusedError(), "nothing listens there: is the conductor running?"),
        (error.TCPTimedOutError(), "the conductor did not answer in time: is a firewall in between?"),
        (error.TimeoutError(), "the conductor did not answer in time: is a firewall in between?"),
        (error.NoRouteError(), "there is no route to the conductor"),
        (error.ConnectionDone(), "the conductor closed the connection"),
        (error.ConnectionLost(), "the connection to the conductor was lost"),
        (error.ConnectionAborted(), "we gave up the connection to the conductor"),
        (RuntimeError("what"), "the connection to the conductor ended: what"),
        (SSL.Error([("SSL routines", "", "bad record type")]), "TLS with the conductor failed: bad record type"),
        (SSL.Error([]), "TLS with the conductor failed: no reason given"),
        (SSL.Error([("", "", "{odd}")]), "TLS with the conductor failed: {odd}"),
    ],
)
def test_what_the_network_does_has_a_sentence_too(player: Credentials, reason: Exception, sentence: str) -> None:
    assert explain(Failure(reason), player) == sentence


def test_whether_our_certificate_expired_is_told_by_our_own_clock(player: Credentials) -> None:
    alert = Failure(SSL.Error([("SSL routines", "", "tls alert certificate expired")]))
    end = player.certificate.not_valid_after_utc
    assert explain(alert, player, milliseconds(end + timedelta(seconds=1))) == f"our certificate expired on {day(end)}"
    assert "though it is valid until" in explain(alert, player, milliseconds(end - timedelta(seconds=1)))


# ---- credentials that change while the daemon runs


def test_new_connections_get_the_new_certificate_and_old_ones_go_on(
    have: Have, conductor: Credentials, player: Credentials
) -> None:
    server, options = ServerCredentials(conductor), client_options(player, "c.example")
    old = meet(server, options)
    fresh = have("conductor", ROOT.leaf("c.example", "new.example"))
    server.replace(fresh)
    new = meet(server, options)
    assert server.credentials is fresh
    assert conductor_names(peer_certificate(old.player.transport)) == ("c.example",)
    assert conductor_names(peer_certificate(new.player.transport)) == ("c.example", "new.example")
    old.player.transport.write(b" again")
    old.flush()
    assert old.conductor.heard == b"hello again"


def test_after_a_revocation_the_live_connection_is_found_and_the_next_refused(
    have: Have, conductor: Credentials
) -> None:
    leaf, unhurt = ROOT.leaf("p1.example"), ROOT.leaf("p2.example")
    server, options = ServerCredentials(conductor), client_options(have("player", leaf), "c.example")
    live = meet(server, options)
    other = meet(server, client_options(have("player", unhurt), "c.example"))
    server.replace(have("conductor", ROOT.leaf("c.example"), crls=[ROOT.crl(leaf.certificate)]))
    ends = [is_revoked(server.credentials, peer_certificate(each.conductor.transport)) for each in (live, other)]
    assert ends == [True, False]
    assert not meet(server, options).agreed


def test_a_refused_connection_leaves_the_next_one_alone(
    have: Have, conductor: Credentials, player: Credentials
) -> None:
    """All connections share one context."""
    server = ServerCredentials(conductor)
    assert not meet(server, client_options(have("player", OTHER.leaf("p1.example")), "c.example")).agreed
    assert meet(server, client_options(player, "c.example")).agreed


def test_a_player_makes_one_context_for_each_conductor(conductor: Credentials, player: Credentials) -> None:
    ours = ClientCredentials(player)
    options = ours.options("c.example")
    assert ours.options("c.example") is options
    assert ours.options("d.example") is not options
    for _ in range(2):
        assert meet(ServerCredentials(conductor), options).agreed
    ours.replace(player)
    assert ours.options("c.example") is not options


def test_a_known_conductors_context_is_there_before_it_is_dialled(
    have: Have, conductor: Credentials, player: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made when credentials are read, and again when they are replaced; it verifies like any other."""
    ours = ClientCredentials(have("player", OTHER.leaf("p1.example")), conductors=["c.example"])
    before = ours.options("c.example")
    ours.replace(player)
    monkeypatch.delattr(contexts, "client_options")
    assert not meet(ServerCredentials(conductor), before).agreed
    assert meet(ServerCredentials(conductor), ours.options("c.example")).agreed


def test_an_earlier_session_spares_nobody_the_verification(conductor: Credentials, player: Credentials) -> None:
    """Who comes back with the session of a good certificate and a bad one in its hand is turned away."""
    server, options, bad = ServerCredentials(conductor), client_options(player, "c.example"), OTHER.leaf("p1.example")
    session = meet(server, options).player.transport.getHandle().get_session()

    @implementer(IOpenSSLClientConnectionCreator)
    class Resuming:
        def clientConnectionForTLS(self, tlsProtocol: Any) -> SSL.Connection:
            connection = options.clientConnectionForTLS(tlsProtocol)
            connection.set_session(session)
            connection.use_certificate(bad.certificate)
            connection.use_privatekey(bad.key)
            return connection

    assert not meet(server, Resuming()).agreed


@pytest.mark.parametrize(
    ("conductors", "players", "agreed"),
    [
        ("classical", "classical", "x25519"),
        ("classical", "hybrid", "x25519"),
        ("hybrid", "classical", "x25519"),
        ("hybrid", "hybrid", "X25519MLKEM768"),
    ],
)
def test_the_key_exchange_is_hybrid_where_both_ends_want_it(conductors: str, players: str, agreed: str) -> None:
    server = ServerCredentials(pki().credentials("conductor", "c.example"), conductors)
    client = ClientCredentials(pki().credentials("player", "p1.example"), players).options("c.example")
    meeting = meet(server, client)
    assert meeting.agreed
    assert {end.transport._tlsConnection.get_group_name() for end in (meeting.conductor, meeting.player)} == {agreed}
    server.replace(server.credentials)
    assert meet(server, client).conductor.transport._tlsConnection.get_group_name() == agreed
