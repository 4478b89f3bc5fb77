"""Certificates for the tests. ``pki()`` is one authority of ours for the whole run; ``Signer`` makes odd ones.

A test that only needs two ends that trust each other::

    ours = pki().credentials("conductor", "c.example")
    theirs = pki().credentials("player", "p1.example")
"""

import atexit
import functools
import shutil
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestra.security import authority, credentials
from orchestra.security.authority import Authority, Kind
from orchestra.security.credentials import Credentials

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
DAY = timedelta(days=1)


class Files(NamedTuple):
    """The paths of a set of credentials, in the order of :func:`orchestra.security.credentials.load`."""

    certificate: str
    key: str
    ca: str
    crl: str | None = None

    def load(self, role: Kind) -> Credentials:
        return credentials.load(*self, role)


class Pki:
    """An authority and what it issued, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority: Authority = authority.init(directory / "ca", "Orchestra tests")
        self._files: dict[tuple[str, ...], Files] = {}

    def files(self, kind: Kind, *names: str) -> Files:
        """The files of a certificate; made once, so that a test must not change them."""
        if (kind, *names) not in self._files:
            issued = self.authority.issue(kind, names, out=self.directory / "-".join((kind, *names)))
            crl = str(self.directory / "ca" / "crl.pem")
            self._files[kind, *names] = Files(str(issued.certificate), str(issued.key), str(issued.ca), crl)
        return self._files[kind, *names]

    @functools.cache  # noqa: B019  # lives as long as the run
    def credentials(self, kind: Kind, *names: str) -> Credentials:
        """A certificate's credentials, without revocation lists."""
        return self.files(kind, *names)._replace(crl=None).load(kind)


@functools.cache
def pki() -> Pki:
    """The authority of this test run."""
    directory = tempfile.mkdtemp(prefix="orchestra-pki-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Pki(Path(directory))


class Leaf(NamedTuple):
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


class Signer:
    """An authority that signs anything, root or intermediate."""

    def __init__(self, name: str, parent: "Signer | None" = None, until: timedelta = 1000 * DAY) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = _name(name)
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        signer = parent or self
        builder = _builder(self.subject, signer.subject, self.key, -10 * DAY, until)
        self.certificate = builder.add_extension(constraints, critical=True).sign(signer.key, SHA256())

    def leaf(
        self,
        *names: str,
        usages: Sequence[x509.ObjectIdentifier] = (CLIENT, SERVER),
        common_name: str = "",
        since: timedelta = -DAY,
        until: timedelta = 100 * DAY,
    ) -> Leaf:
        """Both usages by default, as Puppet's authority gives them."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(common_name or "somebody"), self.subject, key, since, until)
        if names:
            san = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(san, critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(usages)), critical=False)
        return Leaf(builder.sign(self.key, SHA256()), key)

    def crl(self, *revoked: x509.Certificate, until: timedelta = 10 * DAY) -> x509.CertificateRevocationList:
        now = _now()
        builder = x509.CertificateRevocationListBuilder().issuer_name(self.subject)
        builder = builder.last_update(now - 5 * DAY).next_update(now + until)
        for each in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(each.serial_number).revocation_date(now - DAY)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, SHA256())


def write(
    directory: Path,
    leaf: Leaf,
    authorities: Sequence[Signer],
    crls: Sequence[x509.CertificateRevocationList] | None = None,
    chain: Sequence[Signer] = (),
) -> Files:
    """The files of credentials that no sound authority would have made."""
    directory.mkdir(parents=True, exist_ok=True)
    certificates = [leaf.certificate, *(each.certificate for each in chain)]
    (directory / "own.crt").write_bytes(_pem(certificates))
    (directory / "ca.crt").write_bytes(_pem([each.certificate for each in authorities]))
    if crls is not None:
        (directory / "crl.pem").write_bytes(_pem(crls))
    key = directory / "own.key"
    key.touch(mode=0o600)
    key.write_bytes(leaf.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    crl = None if crls is None else str(directory / "crl.pem")
    return Files(str(directory / "own.crt"), str(key), str(directory / "ca.crt"), crl)


def _pem(items: Sequence[x509.Certificate | x509.CertificateRevocationList]) -> bytes:
    return b"".join(item.public_bytes(Encoding.PEM) for item in items)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, since: timedelta, until: timedelta
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + since)
        .not_valid_after(now + until)
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
