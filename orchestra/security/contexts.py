"""Mutual TLS 1.3 as both ends speak it, and a sentence for every way in which it fails.

A context is made once per set of credentials and never touched after its first connection. The verification callback
raises :class:`Unverified`, which pyOpenSSL carries out of the handshake: so the reason reaches ``connectionLost``, and
the peer still gets the alert that belongs to it.
"""

import re
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.bindings.openssl.binding import Binding
from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    ISSLTransport,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from orchestra.errors import WrongCertificate
from orchestra.security.credentials import Credentials, day, is_revoked, trust_store
from orchestra.security.names import conductor_names, describe, issuer

__all__ = [
    "ALPN",
    "CLASSICAL",
    "ClientCredentials",
    "ServerCredentials",
    "Unverified",
    "client_options",
    "explain",
    "is_revoked",
    "peer_certificate",
    "server_context",
]

ALPN: Final = b"orchestra/1"
CLASSICAL: Final = "classical"
"""The key exchange that is X25519 or P-256; any other leaves it to OpenSSL, which likes X25519 with ML-KEM best."""

_CLASSICAL_GROUPS: Final = b"X25519:P-256"
_MUTUAL: Final = SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT


class Unverified(SSL.Error):
    """The peer's certificate was turned away by us: OpenSSL's error number, or 0 and our own reason."""

    def __init__(self, code: int, certificate: x509.Certificate | None, depth: int = 0, problem: str = "") -> None:
        # the shape that Twisted's TLS layer expects of OpenSSL's error queue
        super().__init__([("SSL routines", "", "certificate verify failed")])
        self.code, self.certificate, self.depth, self.problem = code, certificate, depth, problem


def server_context(credentials: Credentials, key_exchange: str = CLASSICAL) -> SSL.Context:
    """A context for the conductor's port: whoever connects must have a certificate that verifies."""
    return _context(credentials, key_exchange, _verify)


@implementer(IOpenSSLServerConnectionCreator)
class ServerCredentials:
    """What new connections are accepted with. Replacing it leaves the connections that exist alone."""

    def __init__(self, credentials: Credentials, key_exchange: str = CLASSICAL) -> None:
        self._key_exchange = key_exchange
        self.replace(credentials)

    def replace(self, credentials: Credentials) -> None:
        """Accept from now on with these."""
        self._context = server_context(credentials, self._key_exchange)
        self.credentials = credentials

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        return SSL.Connection(self._context, None)


@implementer(IOpenSSLClientConnectionCreator)
class _ClientOptions:
    """Connects to the conductor of one name, and to nobody else."""

    def __init__(self, credentials: Credentials, conductor_name: str, key_exchange: str) -> None:
        self._name = conductor_name.encode("ascii")
        self._context = _context(credentials, key_exchange, _verify_conductor(conductor_name))

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> SSL.Connection:
        connection = SSL.Connection(self._context, None)
        connection.set_tlsext_host_name(self._name)
        return connection


def client_options(
    credentials: Credentials, conductor_name: str, key_exchange: str = CLASSICAL
) -> IOpenSSLClientConnectionCreator:
    """What connects to the conductor called ``conductor_name``; its certificate must hold exactly that name. It holds
    a context: keep it while credentials and name stay the same."""
    return _ClientOptions(credentials, conductor_name, key_exchange)


class ClientCredentials:
    """The player's side: one :func:`client_options` per conductor, made once per set of credentials."""

    def __init__(
        self, credentials: Credentials, key_exchange: str = CLASSICAL, conductors: Collection[str] = ()
    ) -> None:
        """``conductors``: those whose options are made at once. What OpenSSL dislikes is said then, not at the first
        connection; and a daemon, which forks after that, never has in memory what only this needs of OpenSSL."""
        self._key_exchange = key_exchange
        self._conductors = conductors
        self.replace(credentials)

    def replace(self, credentials: Credentials) -> None:
        """Connect from now on with these."""
        self._options = {name: client_options(credentials, name, self._key_exchange) for name in self._conductors}
        self.credentials = credentials

    def options(self, conductor_name: str) -> IOpenSSLClientConnectionCreator:
        """What connects to the conductor called ``conductor_name``."""
        if conductor_name not in self._options:
            made = client_options(self.credentials, conductor_name, self._key_exchange)
            self._options[conductor_name] = made
        return self._options[conductor_name]


def peer_certificate(transport: ISSLTransport) -> x509.Certificate:
    """The verified certificate of the far end; only after the handshake."""
    certificate: Any = transport.getPeerCertificate()
    if certificate is None:
        raise WrongCertificate(whose="the far end", problem="it has shown none")
    found: x509.Certificate = certificate.to_cryptography()
    return found


# ---- contexts

_Verify = Callable[[SSL.Connection, Any, int, int, int], bool]


def _context(credentials: Credentials, key_exchange: str, verify: _Verify) -> SSL.Context:
    context = SSL.Context(SSL.TLS_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    if key_exchange == CLASSICAL:
        _only_classical(context)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)  # 22 kB for each idle connection
    # A resumed session would skip the verification, and with it the revocation lists.
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.set_session_id(b"orchestra")
    context.use_certificate(credentials.certificate)
    for each in credentials.chain:
        context.add_extra_chain_cert(each)
    context.use_privatekey(credentials.key)
    context.check_privatekey()
    store = context.get_cert_store()
    assert store is not None
    trust_store(credentials, store)
    context.set_verify(_MUTUAL, verify)
    context.set_alpn_protos([ALPN])
    context.set_alpn_select_callback(_choose_protocol)
    return context


def _only_classical(context: SSL.Context) -> None:
    # pyOpenSSL has no word for a list of groups, only for a single curve
    if not Binding.lib.SSL_CTX_set1_curves_list(context._context, _CLASSICAL_GROUPS):
        raise ValueError(f"OpenSSL does not know {_CLASSICAL_GROUPS!r}")


def _choose_protocol(connection: SSL.Connection, offered: list[bytes]) -> bytes:
    if ALPN in offered:
        return ALPN
    raise SSL.Error([("SSL routines", "", "no application protocol")])


def _verify(connection: SSL.Connection, certificate: Any, code: int, depth: int, ok: int) -> bool:
    if not ok:
        raise Unverified(code, _readable(certificate), depth)
    return True


def _verify_conductor(name: str) -> _Verify:
    def verify(connection: SSL.Connection, certificate: Any, code: int, depth: int, ok: int) -> bool:
        _verify(connection, certificate, code, depth, ok)
        if depth == 0:
            _require_conductor(certificate.to_cryptography(), name)
        return True

    return verify


def _require_conductor(certificate: x509.Certificate, name: str) -> None:
    try:
        names = conductor_names(certificate)
    except WrongCertificate as wrong:
        raise Unverified(0, certificate, problem=wrong.sentence) from None
    if name not in names:
        problem = f"the conductor's certificate is for {', '.join(names)}, not for {name}"
        raise Unverified(0, certificate, problem=problem)


def _readable(certificate: Any) -> x509.Certificate | None:
    try:
        found: x509.Certificate = certificate.to_cryptography()
    except ValueError:
        return None
    return found


# ---- why it failed


def explain(failure: Failure, ours: Credentials, now: int | None = None) -> str:
    """Why a connection could not be made or ended, in one sentence, as seen by the owner of ``ours``."""
    reason = failure.value
    peer = "the player" if ours.role == "conductor" else "the conductor"
    if isinstance(reason, Unverified):
        return _turned_away(reason, peer)
    if isinstance(reason, SSL.Error):
        return _told(_last_reason(reason), peer, ours, int(time.time() * 1000) if now is None else now)
    for kind, sentence in _NETWORK:
        if isinstance(reason, kind):
            return sentence.format(peer=peer)
    return f"the connection to {peer} ended: {failure.getErrorMessage()}"


_NETWORK: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...]] = (
    (error.DNSLookupError, "the name of {peer} cannot be resolved to an address"),
    (error.ConnectionRefusedError, "nothing listens there: is {peer} running?"),
    (error.NoRouteError, "there is no route to {peer}"),
    ((error.TimeoutError, error.TCPTimedOutError), "{peer} did not answer in time: is a firewall in between?"),
    (error.ConnectionAborted, "we gave up the connection to {peer}"),
    (error.ConnectionDone, "{peer} closed the connection"),
    (error.ConnectionLost, "the connection to {peer} was lost"),
)


def _turned_away(reason: Unverified, peer: str) -> str:
    """What is wrong with the certificate that we did not accept."""
    if reason.problem:
        return reason.problem
    certificate = reason.certificate
    whose = f"{peer}'s certificate" if reason.depth == 0 else f"the certificate of an authority above {peer}'s,"
    if certificate is None:
        return f"{whose} cannot be read"
    template = _VERDICTS.get(reason.code, "{whose} {name} does not verify (OpenSSL's error {code})")
    return template.format(
        peer=peer,
        whose=whose,
        name=describe(certificate),
        code=reason.code,
        issuer=issuer(certificate),
        since=day(certificate.not_valid_before_utc),
        until=day(certificate.not_valid_after_utc),
    )


_FOREIGN: Final = "{whose} {name} was issued by '{issuer}', an authority that is not in our ca file"
_VERDICTS: Final[dict[int, str]] = {
    2: _FOREIGN,
    18: "{whose} {name} is signed by itself, not by an authority in our ca file",
    19: "{peer}'s certificate leads to '{issuer}', an authority that is not in our ca file",
    20: _FOREIGN,
    21: _FOREIGN,
    7: "{whose} {name} has a bad signature: an authority called '{issuer}' is in our ca file, but with another key",
    3: "there is no revocation list of '{issuer}' in our crl file, so {whose} {name} cannot be accepted",
    8: "the revocation list of '{issuer}' in our crl file is not signed by it",
    9: "{whose} {name} is not valid before {since}: are both clocks right?",
    10: "{whose} {name} expired on {until}",
    11: "the revocation list of '{issuer}' in our crl file is not valid yet: is our clock right?",
    12: "the revocation list of '{issuer}' in our crl file has expired; fetch a new one",
    23: "{whose} {name} was revoked by '{issuer}'",
    26: "{whose} {name} lacks the extended key usage for its purpose",
    79: "{whose} {name} was issued by something that is no certificate authority",
}
"""By OpenSSL's X509_V_ERR numbers."""


def _last_reason(reason: SSL.Error) -> str:
    queue = reason.args[0] if reason.args else ()
    return str(queue[-1][2]) if isinstance(queue, list) and queue else ""


def _told(reason: str, peer: str, ours: Credentials, now: int) -> str:
    """What the other end says is wrong with us, or what TLS itself could not do."""
    until = day(ours.certificate.not_valid_after_utc)
    known = "expired" if now > ours.not_after else "valid"
    alert = re.sub(r".*alert ", "", reason)
    template = _ALERTS.get(f"{alert}, {known}") or _ALERTS.get(alert) or _REASONS.get(reason)
    template = template or "TLS with {peer} failed: {reason}"
    reason = reason or "no reason given"
    return template.format(peer=peer, reason=reason, issuer=ours.issuer, name=describe(ours.certificate), until=until)


_ALERTS: Final[dict[str, str]] = {
    "unknown ca": "{peer} does not trust our certificate authority, '{issuer}': its ca file (and its crl file, if it "
    "has one) must hold that authority",
    "certificate expired, expired": "our certificate expired on {until}",
    "certificate expired, valid": "{peer} takes our certificate for expired, though it is valid until {until}: are "
    "both clocks right, and is its revocation list still valid?",
    "certificate revoked": "our certificate {name} was revoked",
    "certificate required": "{peer} asks for a certificate, and we sent none",
    "unsupported certificate": "{peer} does not accept our certificate {name} for this purpose: it lacks the extended "
    "key usage",
    "bad certificate": "{peer} does not accept our certificate {name}: are both clocks right?",
    "certificate unknown": "{peer} does not accept our certificate {name}; its log says why",
    "internal error": "{peer} does not accept our certificate {name}; its log says why",
    "decrypt error": "{peer} has an authority called '{issuer}', but with another key than the one that signed our "
    "certificate",
    "no application protocol": "{peer} speaks TLS, but not Orchestra: is it the right port?",
    "protocol version": "{peer} does not speak TLS 1.3",
    "handshake failure": "{peer} and we have no TLS parameters in common",
}
_REASONS: Final[dict[str, str]] = {
    "peer did not return a certificate": "{peer} showed no certificate",
    "no application protocol": "{peer} speaks TLS, but not Orchestra: is it the right port?",
    "unsupported protocol": "{peer} does not speak TLS 1.3",
    "wrong version number": "what is at the other end does not speak TLS: is it the right port?",
    "packet length too long": "what is at the other end does not speak TLS: is it the right port?",
    "http request": "somebody spoke plain HTTP to a TLS port",
}
