"""What a daemon shows and whom it believes: certificate, private key, authorities and revocation lists, from files.

Everything is checked when it is loaded, the way a peer would check it, so that a mistake has a sentence and not a
failed handshake. How TLS is spoken with it is said by :mod:`orchestra.security.contexts`.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal, NamedTuple, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import crypto

from orchestra.checksum import sha256
from orchestra.errors import BadCredentials, WrongCertificate
from orchestra.security.names import audience_name, conductor_names, describe, issuer, player_name

Role = Literal["conductor", "player", "audience"]
PrivateKey = EllipticCurvePrivateKey | RSAPrivateKey | Ed25519PrivateKey
Value = TypeVar("Value")

MAX_FILE: Final = 64 * 1024 * 1024  # a revocation list of a large authority is long
WARN_BEFORE: Final = 30 * 86_400_000
_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class _Stamp(NamedTuple):
    """A file as it was when it was read."""

    path: str
    identity: tuple[int, ...]


class _Source(NamedTuple):
    """The bytes of one file, and the configuration key that named it."""

    key: str
    path: str
    data: bytes
    stamp: _Stamp
    mode: int
    owner: int

    def error(self, problem: str) -> BadCredentials:
        return BadCredentials(file=self.path, key=self.key, problem=problem)


@dataclass(frozen=True, eq=False, kw_only=True)
class Credentials:
    """One consistent set, checked. ``crls`` is None where revocation is not checked at all (no file was named)."""

    role: Role
    names: tuple[str, ...]
    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]  # what is sent after the certificate
    key: PrivateKey = field(repr=False)
    authorities: tuple[x509.Certificate, ...]
    crls: tuple[x509.CertificateRevocationList, ...] | None
    digest: str  # of all the files: equal digests are equal credentials
    stamps: tuple[_Stamp, ...] = field(repr=False)
    revoked: frozenset[tuple[x509.Name, int]] = field(repr=False)

    @property
    def not_after(self) -> int:
        """When our own certificate expires, in milliseconds since 1970."""
        return milliseconds(self.certificate.not_valid_after_utc)

    @property
    def issuer(self) -> str:
        """Who signed our certificate, as people write it."""
        return issuer(self.certificate)

    def stale(self) -> bool:
        """Whether a file differs from what was read, so that it should be read again."""
        return any(_identity(stamp.path) != stamp.identity for stamp in self.stamps)

    def warnings(self, now: int) -> list[str]:
        """A sentence for everything that expires within 30 days of ``now``, or should be mended for another reason."""
        found = [self._expiring("our certificate", self.certificate, now)]
        found += [self._expiring("the intermediate certificate we send", each, now) for each in self.chain]
        found += [self._expiring("the certificate authority's certificate", each, now) for each in self.authorities]
        found += [_expiring_list(crl, now) for crl in self.crls or ()]
        return list(dict.fromkeys(sentence for sentence in found if sentence)) + self._uncovered()

    def _expiring(self, what: str, certificate: x509.Certificate, now: int) -> str:
        end = milliseconds(certificate.not_valid_after_utc)
        if end - now > WARN_BEFORE:
            return ""
        return _ends(f"{what} {describe(certificate)}", end, now, "renew it, or nobody can connect then")

    def _uncovered(self) -> list[str]:
        without = _without_list(self.authorities, self.crls)
        return [
            f"the crl file has no revocation list of {describe(each)}: certificates that it issued are "
            "turned away, and revoked intermediate authorities go unnoticed"
            for each in without
        ]

    @property
    def checks_whole_chain(self) -> bool:
        """Whether there is a revocation list for every authority, so that intermediates can be checked too."""
        return self.crls is not None and not _without_list(self.authorities, self.crls)


def load(certificate: str, key: str, ca: str, crl: str | None, role: Role) -> Credentials:
    """Read and check one set of credentials, or raise a :class:`~orchestra.errors.BadCredentials` that names the
    file, the configuration key (``certificate``, ``key``, ``ca``, ``crl``) and the remedy."""
    sources = [_read("certificate", certificate), _read("key", key), _read("ca", ca)]
    sources += [_read("crl", crl)] if crl else []
    own, secret, trusted, *lists = sources
    certificates = _certificates(own)
    crls = _crls(lists[0]) if lists else None
    found = Credentials(
        role=role,
        names=_names(own, certificates[0], role),
        certificate=certificates[0],
        chain=certificates[1:],
        key=_private_key(secret),
        authorities=_certificates(trusted),
        crls=crls,
        digest=sha256(b"\0".join(source.data for source in sources)).hex(),
        stamps=tuple(source.stamp for source in sources),
        revoked=frozenset(_revoked(crls or ())),
    )
    _check_key(found, own, secret)
    _check_dates(found, own)
    if lists:
        _check_lists(found, lists[0])
    _check_trust(found, own, trusted)
    return found


def is_revoked(credentials: Credentials, certificate: x509.Certificate) -> bool:
    """Whether the revocation lists name this certificate, or an authority between it and the root."""
    seen: set[x509.Name] = set()
    current: x509.Certificate | None = certificate
    while current is not None and current.subject not in seen:
        above = current.issuer
        if (above, current.serial_number) in credentials.revoked:
            return True
        seen.add(current.subject)
        current = next((each for each in credentials.authorities if each.subject == above), None)
    return False


def trust_store(credentials: Credentials, store: crypto.X509Store | None = None) -> crypto.X509Store:
    """``store`` (or a new one) filled with the authorities and revocation lists, and told what to check."""
    store = crypto.X509Store() if store is None else store
    for authority in credentials.authorities:
        store.add_cert(crypto.X509.from_cryptography(authority))
    if credentials.crls is not None:  # an empty CRL is falsy: only None is "no lists"
        for crl in credentials.crls:
            store.add_crl(crl)
        whole = crypto.X509StoreFlags.CRL_CHECK_ALL if credentials.checks_whole_chain else 0
        store.set_flags(crypto.X509StoreFlags.CRL_CHECK | whole)
    return store


def milliseconds(moment: datetime) -> int:
    """``moment`` in milliseconds since 1970."""
    return int(moment.timestamp() * 1000)


def day(moment: datetime) -> str:
    """``moment`` as people read it, in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M UTC")


# ---- reading


def _read(key: str, path: str) -> _Source:
    try:
        with open(path, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise BadCredentials(file=path, key=key, problem="is not a file")
            data = stream.read(MAX_FILE + 1)
    except OSError as problem:
        why = os.strerror(problem.errno or 0)
        raise BadCredentials(file=path, key=key, problem=f"cannot be read: {why}") from None
    if len(data) > MAX_FILE:
        raise BadCredentials(file=path, key=key, problem="is larger than 64 MiB; this is no PEM file of ours")
    return _Source(key, path, data, _Stamp(path, _identified(status)), status.st_mode, status.st_uid)


def _identity(path: str) -> tuple[int, ...]:
    try:
        return _identified(os.stat(path))
    except OSError:
        return ()


def _identified(status: os.stat_result) -> tuple[int, ...]:
    # ctime too: a copy that keeps size and mtime, or a chmod of the key, is a change
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _blocks(source: _Source, label: bytes, what: str, parse: Callable[[bytes], Value]) -> tuple[Value, ...]:
    blocks = [match[0] for match in _BLOCK.finditer(source.data) if match[1] == label]
    if not blocks:
        raise source.error(f"holds no {what} in PEM form (-----BEGIN {label.decode()}-----)")
    try:
        return tuple(map(parse, blocks))
    except (ValueError, UnsupportedAlgorithm) as problem:
        raise source.error(f"holds a {what} that cannot be read: {problem}") from None


def _certificates(source: _Source) -> tuple[x509.Certificate, ...]:
    return _blocks(source, b"CERTIFICATE", "certificate", x509.load_pem_x509_certificate)


def _crls(source: _Source) -> tuple[x509.CertificateRevocationList, ...]:
    return _blocks(source, b"X509 CRL", "certificate revocation list", x509.load_pem_x509_crl)


def _private_key(source: _Source) -> PrivateKey:
    if stat.S_IMODE(source.mode) & 0o077:
        raise source.error(
            f"the private key can be read by others than its owner (mode {stat.S_IMODE(source.mode):04o}); "
            "'chmod 600' it, and take a new key if somebody may have read it"
        )
    if source.owner not in (0, os.geteuid()):
        raise source.error(f"the private key belongs to uid {source.owner}; 'chown' it to root or the daemon's user")
    blocks = [match[0] for match in _BLOCK.finditer(source.data) if match[1].endswith(b"PRIVATE KEY")]
    try:
        key = load_pem_private_key(blocks[0] if blocks else b"", None)  # openssl writes EC PARAMETERS before it
    except TypeError:
        raise source.error(
            "the private key is encrypted, and a daemon has nobody to ask; store it unencrypted"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise source.error("holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)") from None
    if not isinstance(key, PrivateKey):
        raise source.error("the private key is of a kind that TLS 1.3 does not use; make one with ECDSA P-256")
    return key


def _names(source: _Source, certificate: x509.Certificate, role: Role) -> tuple[str, ...]:
    try:
        match role:
            case "conductor":
                return conductor_names(certificate)
            case "player":
                return (player_name(certificate),)
            case "audience":
                return (audience_name(certificate),)
    except WrongCertificate as problem:
        raise source.error(problem.sentence) from None


# ---- checking


def _check_key(found: Credentials, own: _Source, secret: _Source) -> None:
    public = found.key.public_key()
    if found.certificate.public_key() == public:
        return
    if any(each.public_key() == public for each in found.chain):
        raise own.error("our own certificate must come first, before those of the authorities that signed it")
    raise secret.error(f"the private key is not the one of the certificate in {own.path}; take both from one issue")


def _check_dates(found: Credentials, own: _Source) -> None:
    now = time.time() * 1000
    if now > found.not_after:
        when = day(found.certificate.not_valid_after_utc)
        raise own.error(f"the certificate expired on {when}; issue a new one for {', '.join(found.names)}")
    if now < milliseconds(found.certificate.not_valid_before_utc):
        when = day(found.certificate.not_valid_before_utc)
        raise own.error(f"the certificate is not valid before {when}; is the clock of this machine right?")


def _check_lists(found: Credentials, source: _Source) -> None:
    crls = found.crls or ()
    for crl in crls:
        signers = [each for each in found.authorities if each.subject == crl.issuer]
        if not any(_signed(crl, signer) for signer in signers):
            problem = f"no authority in the ca file signed the revocation list of '{issuer(crl)}'; fetch both anew"
            raise source.error(problem)
    current = {crl.issuer for crl in crls if not _expired(crl)}
    for crl in crls:
        if crl.issuer not in current:
            when = day(crl.next_update_utc) if crl.next_update_utc else "an unknown day"
            raise source.error(f"the revocation list of '{issuer(crl)}' expired on {when}; fetch a new one from there")
    if found.certificate.issuer not in current:
        raise source.error(f"it has no revocation list of '{found.issuer}', which issued our own certificate; add it")
    if (found.certificate.issuer, found.certificate.serial_number) in found.revoked:
        raise source.error(f"our own certificate {describe(found.certificate)} is revoked; issue a new one")


def _expired(crl: x509.CertificateRevocationList) -> bool:
    end = crl.next_update_utc
    return end is not None and time.time() * 1000 > milliseconds(end)


def _signed(crl: x509.CertificateRevocationList, signer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(signer.public_key())  # type: ignore[arg-type]  # TypeError is caught below
    except (TypeError, ValueError, InvalidSignature, UnsupportedAlgorithm):
        return False


def _check_trust(found: Credentials, own: _Source, trusted: _Source) -> None:
    """Verify our certificate as the peer will, with the same authorities and lists."""
    chain = [crypto.X509.from_cryptography(each) for each in found.chain]
    certificate = crypto.X509.from_cryptography(found.certificate)
    try:
        crypto.X509StoreContext(trust_store(found), certificate, chain).verify_certificate()
    except crypto.X509StoreContextError as problem:
        code, depth, reason = problem.errors
        if code in _UNTRUSTED:
            raise trusted.error(
                f"no authority in it signed the certificate in {own.path}, which was issued by '{found.issuer}'; "
                "put that authority, and every one up to its root, into it"
            ) from None
        where = "" if depth == 0 else f" (at the authority {describe(problem.certificate.to_cryptography())})"
        raise own.error(f"the certificate does not verify against {trusted.path}: {reason}{where}") from None


_UNTRUSTED: Final = frozenset({2, 18, 19, 20, 21, 7})
"""OpenSSL's X509_V_ERR numbers for "the chain does not end at an authority we have"; 7 is one of the same name."""


def _revoked(crls: Sequence[x509.CertificateRevocationList]) -> Iterator[tuple[x509.Name, int]]:
    for crl in crls:
        whose = crl.issuer
        for entry in crl:
            yield whose, entry.serial_number


def _without_list(
    authorities: Sequence[x509.Certificate], crls: Sequence[x509.CertificateRevocationList] | None
) -> list[x509.Certificate]:
    if crls is None:
        return []
    listed = {crl.issuer for crl in crls}
    return [each for each in authorities if each.subject not in listed]


def _expiring_list(crl: x509.CertificateRevocationList, now: int) -> str:
    update = crl.next_update_utc
    if update is None or (end := milliseconds(update)) - now > WARN_BEFORE:
        return ""
    name = f"the certificate revocation list of '{issuer(crl)}'"
    return _ends(name, end, now, "fetch a new one, or nobody can connect then")


def _ends(name: str, end: int, now: int, remedy: str) -> str:
    moment = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(end / 1000))
    return f"{name} {'expires' if end > now else 'expired'} on {moment}; {remedy}"
