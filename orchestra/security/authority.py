"""Our own certificate authority: a directory with a key, a certificate, a ledger and a revocation list.

::

    ca.crt      its certificate, which everybody may have
    ca.key      its private key, mode 0600; whoever has it can be anybody
    crl.pem     what was revoked; as long-lived as the authority, so that it need not be renewed
    ledger      one line for each certificate ever issued, readable
    lock        held while one of them changes

A certificate is in the ledger, on disk, before it leaves. It serves fleets that have no authority; any other one
whose certificates follow :mod:`orchestra.security.names` is as good.
"""

import fcntl
import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, get_args

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID
from msgspec import Struct, structs

from orchestra.config import host_name
from orchestra.errors import AuthorityExists, DamagedLedger, FileProblem, NoAuthority, NotIssued, UsageError

Kind = Literal["conductor", "player", "audience"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)

CA_DAYS: Final = 3650
DAYS: Final = 1825
_SKEW: Final = timedelta(hours=1)  # clocks of a fleet differ; a fresh certificate is valid on all of them
_COMMON_NAME_MAX: Final = 64  # X.520
_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
_HEADER: Final = "# serial kind names not_before not_after revoked_at\n"


class Entry(Struct, frozen=True, kw_only=True):
    """A line of the ledger. Times are UTC."""

    serial: int
    kind: Kind
    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    revoked_at: datetime | None = None


class Issued(Struct, frozen=True, kw_only=True):
    """A certificate that was issued, and the files it is in."""

    entry: Entry
    certificate: Path
    key: Path
    ca: Path


class Overview(Struct, frozen=True, kw_only=True):
    """An authority and everything it issued."""

    name: str
    directory: str
    not_after: datetime
    issued: tuple[Entry, ...]


class Authority:
    """A certificate authority in ``directory``; :func:`init` makes one, :func:`load` opens it."""

    def __init__(self, directory: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.directory = directory
        self.certificate = certificate
        self._key = key

    @property
    def name(self) -> str:
        """The name of the authority, as its certificates show it."""
        found = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(found[0].value) if found else self.certificate.subject.rfc4514_string()

    def issue(self, kind: Kind, names: Sequence[str], days: int = DAYS, out: Path | str = ".") -> Issued:
        """A new key and certificate in ``out``: NAME.crt, NAME.key and ca.crt. Again for the same name is a renewal:
        the earlier one stays valid until it expires or is revoked."""
        checked = _checked_names(kind, names)
        out = _directory(Path(out))
        key = ec.generate_private_key(ec.SECP256R1())
        with _locked(self.directory):
            entry = self._new_entry(kind, checked, days)
            certificate = _leaf(entry, key.public_key(), self.certificate, self._key)
            self._write_ledger((*self.ledger(), entry))
        first = out / checked[0]
        _write(first.with_name(f"{first.name}.key"), _key_pem(key), 0o600)
        _write(first.with_name(f"{first.name}.crt"), certificate.public_bytes(Encoding.PEM), 0o644)
        _write(out / "ca.crt", self.certificate.public_bytes(Encoding.PEM), 0o644)
        return Issued(
            entry=entry,
            certificate=first.with_name(f"{first.name}.crt"),
            key=first.with_name(f"{first.name}.key"),
            ca=out / "ca.crt",
        )

    def issue_many(
        self, kind: Kind, names: Sequence[str], public: ec.EllipticCurvePublicKey, days: int = DAYS
    ) -> list[x509.Certificate]:
        """A certificate for each of ``names``, all of the one key ``public``: for players that are emulated in one
        process. They are in the ledger; their files are the caller's."""
        checked = [_checked_names(kind, [name]) for name in names]
        with _locked(self.directory):
            entries = [self._new_entry(kind, each, days) for each in checked]
            self._write_ledger((*self.ledger(), *entries))
        return [_leaf(entry, public, self.certificate, self._key) for entry in entries]

    def revoke(self, name: str) -> tuple[Entry, ...]:
        """Revoke every valid certificate that has this name (or the one with this serial number), and write crl.pem."""
        wanted = name.strip().lower()
        with _locked(self.directory):
            now = _now()
            before = self.ledger()
            chosen = {each.serial for each in before if _is_meant(each, wanted) and _is_live(each, now)}
            if not chosen:
                raise NotIssued(name=name)
            after = [structs.replace(each, revoked_at=now) if each.serial in chosen else each for each in before]
            self._write_ledger(after)
            self._write_crl(after)
        return tuple(each for each in after if each.serial in chosen)

    def crl(self) -> Path:
        """Write crl.pem anew from the ledger; the path of it."""
        with _locked(self.directory):
            return self._write_crl(self.ledger())

    def show(self) -> Overview:
        """What this authority is, and what it issued, oldest first."""
        return Overview(
            name=self.name,
            directory=str(self.directory),
            not_after=self.certificate.not_valid_after_utc,
            issued=self.ledger(),
        )

    def ledger(self) -> tuple[Entry, ...]:
        """Every certificate ever issued, oldest first."""
        file = self.directory / "ledger"
        lines = enumerate(_read(file).decode("utf-8", "replace").splitlines(), 1)
        return tuple(_entry(file, number, line) for number, line in lines if line and not line.startswith("#"))

    def _new_entry(self, kind: Kind, names: tuple[str, ...], days: int) -> Entry:
        now = _now()
        end = min(now + _span(days), self.certificate.not_valid_after_utc)
        return Entry(serial=_serial(), kind=kind, names=names, not_before=now - _SKEW, not_after=end)

    def _write_ledger(self, entries: Sequence[Entry]) -> None:
        _write(self.directory / "ledger", (_HEADER + "".join(map(_line, entries))).encode(), 0o600)

    def _write_crl(self, entries: Sequence[Entry]) -> Path:
        now = _now()
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _SKEW)
            .next_update(self.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(time.time_ns() // 1000), critical=False)
            .add_extension(_authority_identifier(self.certificate), critical=False)
        )
        for each in entries:
            if each.revoked_at is not None:
                builder = builder.add_revoked_certificate(_revoked(each.serial, each.revoked_at))
        file = self.directory / "crl.pem"
        _write(file, builder.sign(self._key, SHA256()).public_bytes(Encoding.PEM), 0o644)
        return file


def init(directory: Path | str, name: str = "", days: int = CA_DAYS) -> Authority:
    """Make a new authority in ``directory``. The default name has a random part: two authorities that have one name
    are taken for each other."""
    place = _directory(Path(directory), 0o700)
    with _locked(place):
        if (place / "ca.key").exists():
            raise AuthorityExists(directory=place, name=load(place).name)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _root(name or f"Orchestra CA {secrets.token_hex(4)}", days, key)
        made = Authority(place, certificate, key)
        _write(place / "ca.crt", certificate.public_bytes(Encoding.PEM), 0o644)
        made._write_ledger(())
        made._write_crl(())
        _write(place / "ca.key", _key_pem(key), 0o600)  # last: only with it there is an authority
    return made


def load(directory: Path | str) -> Authority:
    """The authority in ``directory``."""
    place = Path(directory)
    try:
        certificate = x509.load_pem_x509_certificate((place / "ca.crt").read_bytes())
        key = load_pem_private_key((place / "ca.key").read_bytes(), None)
    except PermissionError as problem:
        raise FileProblem(file=problem.filename, problem="cannot be read: Permission denied; are you root?") from None
    except OSError as problem:
        raise NoAuthority(directory=place, problem=f"{problem.filename}: {problem.strerror}") from None
    except (TypeError, ValueError):
        raise NoAuthority(directory=place, problem="ca.crt or ca.key is damaged") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise NoAuthority(directory=place, problem="ca.key is not the key of ca.crt")
    return Authority(place, certificate, key)


# ---- certificates


def _root(name: str, days: int, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now, subject = _now(), _subject(name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(_serial())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + _span(days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, SHA256())
    )


def _leaf(
    entry: Entry, public: ec.EllipticCurvePublicKey, issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    usage = Usage.SERVER_AUTH if entry.kind == "conductor" else Usage.CLIENT_AUTH
    short = len(entry.names[0]) <= _COMMON_NAME_MAX
    subject = _subject(entry.names[0]) if short else x509.Name([])
    names = x509.SubjectAlternativeName(list(map(x509.DNSName, entry.names)))
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(public)
        .serial_number(entry.serial)
        .not_valid_before(entry.not_before)
        .not_valid_after(entry.not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(names, critical=not short)  # RFC 5280: critical where the subject is empty
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(_authority_identifier(issuer), critical=False)
        .sign(key, SHA256())
    )


def _subject(name: str) -> x509.Name:
    try:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    except ValueError:
        raise UsageError(problem=f"the name of an authority has 1 to {_COMMON_NAME_MAX} characters") from None


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_identifier(certificate: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _revoked(serial: int, at: datetime) -> x509.RevokedCertificate:
    return x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at).build()


def _serial() -> int:
    return x509.random_serial_number()  # 159 random bits: never the same twice, and not guessed


def _checked_names(kind: Kind, names: Sequence[str]) -> tuple[str, ...]:
    checked = tuple(dict.fromkeys(map(_checked_name, names)))
    if not checked:
        raise UsageError(problem="a certificate needs a host name")
    if kind != "conductor" and len(checked) > 1:
        raise UsageError(problem=f"the certificate of a {kind} has exactly one name; issue one for each")
    return checked


def _checked_name(name: str) -> str:
    try:
        return host_name(name)
    except ValueError as problem:
        raise UsageError(problem=f"{problem}, not '{name}'") from None


def _span(days: int) -> timedelta:
    if not 1 <= days <= 36_500:
        raise UsageError(problem=f"expected 1 to 36500 days, not {days}")
    return timedelta(days=days)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


# ---- the ledger


def _line(entry: Entry) -> str:
    revoked = "-" if entry.revoked_at is None else entry.revoked_at.strftime(_TIME)
    dates = f"{entry.not_before.strftime(_TIME)} {entry.not_after.strftime(_TIME)}"
    return f"{entry.serial:040x} {entry.kind} {','.join(entry.names)} {dates} {revoked}\n"


def _entry(file: Path, number: int, line: str) -> Entry:
    try:
        serial, kind, names, not_before, not_after, revoked = line.split()
        return Entry(
            serial=int(serial, 16),
            kind=_kind(kind),
            names=tuple(names.split(",")),
            not_before=_moment(not_before),
            not_after=_moment(not_after),
            revoked_at=None if revoked == "-" else _moment(revoked),
        )
    except ValueError:
        raise DamagedLedger(file=file, line=number, problem="this is not what was written") from None


def _kind(text: str) -> Kind:
    for kind in KINDS:
        if kind == text:
            return kind
    raise ValueError(text)


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)  # a tenth of strptime's time, and a ledger may be long
    if moment.tzinfo is None:
        raise ValueError(text)
    return moment


def _is_meant(entry: Entry, wanted: str) -> bool:
    return wanted in entry.names or wanted.lstrip("0") == f"{entry.serial:x}"


def _is_live(entry: Entry, now: datetime) -> bool:
    return entry.revoked_at is None and entry.not_after > now


# ---- files


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _directory(place: Path, mode: int = 0o755) -> Path:
    try:
        place.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as problem:
        raise FileProblem(file=place, problem=f"cannot be made a directory: {problem.strerror}") from None
    return place


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as problem:
        raise FileProblem(file=file, problem=f"cannot be read: {problem.strerror}") from None


def _write(file: Path, data: bytes, mode: int) -> None:
    """``file`` holds ``data``, on disk, or what it held before; nobody ever sees half of it, or a wider mode."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name[:200]}.")
        try:
            with open(descriptor, "wb") as stream:
                os.fchmod(stream.fileno(), mode)
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
        _sync_directory(file.parent)
    except OSError as problem:
        raise FileProblem(file=file, problem=f"cannot be written: {problem.strerror}") from None


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    file = directory / "lock"
    try:
        lock = open(file, "ab")  # noqa: SIM115  # closed below, which unlocks
    except OSError as problem:
        raise FileProblem(file=file, problem=f"cannot be written: {problem.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _sync_directory(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
