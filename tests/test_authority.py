"""Our certificate authority: what it issues is right, recorded before it leaves, and revocable."""

import json
import os
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from pki import Files

from orchestra.cli.main import group, run
from orchestra.errors import (
    AuthorityExists,
    DamagedLedger,
    FileProblem,
    NoAuthority,
    NotIssued,
    UsageError,
)
from orchestra.security import authority
from orchestra.security.authority import Authority, Issued


@pytest.fixture
def made(tmp_path: Path) -> Authority:
    return authority.init(tmp_path / "ca")


def certificate(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def revoked(made: Authority) -> set[int]:
    return {entry.serial_number for entry in x509.load_pem_x509_crl((made.directory / "crl.pem").read_bytes())}


# ---- what it makes


def test_the_authority_may_sign_certificates_and_nothing_below_another_authority(made: Authority) -> None:
    extensions = made.certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
    public = made.certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert isinstance(public.curve, ec.SECP256R1)


@pytest.mark.parametrize(
    ("kind", "usage"),
    [
        ("conductor", ExtendedKeyUsageOID.SERVER_AUTH),
        ("player", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("audience", ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
)
def test_each_kind_has_its_usage_and_no_more(
    made: Authority, tmp_path: Path, kind: authority.Kind, usage: x509.ObjectIdentifier
) -> None:
    extensions = certificate(made.issue(kind, ["h.example"], out=tmp_path).certificate).extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca) == (True, False)
    assert extensions.get_extension_for_class(x509.KeyUsage).critical


def test_a_certificate_points_at_the_authority_s_key(made: Authority, tmp_path: Path) -> None:
    issued = certificate(made.issue("player", ["p1.example"], out=tmp_path).certificate)
    above = made.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    points = issued.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert points.key_identifier == above.digest
    issued.verify_directly_issued_by(made.certificate)


def test_what_it_issues_loads_as_credentials(made: Authority, tmp_path: Path) -> None:
    """Conductors with several names; a name too long for a common name; a name in capitals, written lower."""
    long = ".".join(["a" * 60] * 3) + ".example"
    kinds: list[tuple[authority.Kind, list[str]]] = [
        ("conductor", ["C.example", "conductor.example"]),
        ("player", [long]),
        ("audience", ["web"]),
    ]
    for kind, names in kinds:
        issued = made.issue(kind, names, out=tmp_path / kind)
        files = Files(str(issued.certificate), str(issued.key), str(issued.ca), str(made.directory / "crl.pem"))
        assert files.load(kind).names == tuple(name.lower() for name in names)


def test_private_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = authority.init(tmp_path / "ca")
        issued = made.issue("player", ["p1.example"], out=tmp_path / "out")
    finally:
        os.umask(before)
    assert (mode(made.directory), mode(made.directory / "ca.key"), mode(issued.key)) == (0o700, 0o600, 0o600)
    assert (mode(issued.certificate), mode(issued.ca)) == (0o644, 0o644)


def test_a_renewal_leaves_no_wider_mode_on_the_key(made: Authority, tmp_path: Path) -> None:
    issued = made.issue("player", ["p1.example"], out=tmp_path)
    issued.key.chmod(0o644)
    assert mode(made.issue("player", ["p1.example"], out=tmp_path).key) == 0o600


def test_nothing_outlives_the_authority(tmp_path: Path) -> None:
    made = authority.init(tmp_path / "ca", days=10)
    issued = made.issue("player", ["p1.example"], days=1000, out=tmp_path)
    assert certificate(issued.certificate).not_valid_after_utc == made.certificate.not_valid_after_utc


def test_the_revocation_list_lives_as_long_as_the_authority(made: Authority) -> None:
    crl = x509.load_pem_x509_crl((made.directory / "crl.pem").read_bytes())
    assert crl.next_update_utc == made.certificate.not_valid_after_utc
    assert len(crl) == 0


def test_two_authorities_do_not_share_a_name(made: Authority, tmp_path: Path) -> None:
    assert authority.init(tmp_path / "other").name != made.name
    assert authority.init(tmp_path / "third", "Our own").name == "Our own"


def test_an_authority_is_never_made_over_another(made: Authority) -> None:
    before = (made.directory / "ca.key").read_bytes()
    with pytest.raises(AuthorityExists, match=made.name):
        authority.init(made.directory)
    assert (made.directory / "ca.key").read_bytes() == before


def test_an_authority_half_made_is_made_anew(made: Authority) -> None:
    """The key is written last: without it nothing was ever issued."""
    (made.directory / "ca.key").unlink()
    again = authority.init(made.directory)
    assert authority.load(made.directory).name == again.name != made.name


# ---- the ledger


def test_every_certificate_is_in_the_ledger(made: Authority, tmp_path: Path) -> None:
    one = made.issue("conductor", ["c.example", "d.example"], out=tmp_path)
    two = made.issue("player", ["p1.example"], days=7, out=tmp_path)
    assert authority.load(made.directory).ledger() == (one.entry, two.entry)
    assert certificate(two.certificate).serial_number == two.entry.serial
    assert certificate(two.certificate).not_valid_after_utc == two.entry.not_after
    left = two.entry.not_after - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < left <= timedelta(days=7)


def test_a_person_can_read_the_ledger(made: Authority, tmp_path: Path) -> None:
    made.issue("conductor", ["c.example", "d.example"], out=tmp_path)
    head, line = (made.directory / "ledger").read_text().splitlines()
    assert head == "# serial kind names not_before not_after revoked_at"
    serial, kind, names, *_, at = line.split()
    assert (len(serial), kind, names, at) == (40, "conductor", "c.example,d.example", "-")


def test_a_damaged_ledger_is_said_and_nothing_is_issued(made: Authority, tmp_path: Path) -> None:
    with open(made.directory / "ledger", "a") as ledger:
        ledger.write("nonsense\n")
    with pytest.raises(DamagedLedger, match="ledger, line 2: this is not what was written"):
        made.issue("player", ["p1.example"], out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_two_who_issue_at_once_lose_no_line(made: Authority, tmp_path: Path) -> None:
    def issue(name: str) -> None:
        authority.load(made.directory).issue("player", [name], out=tmp_path / name)

    names = [f"p{n}.example" for n in range(12)]
    threads = [threading.Thread(target=issue, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.names[0] for entry in made.ledger()) == sorted(names)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named_by_an_ordinary_user(made: Authority, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(FileProblem, match=r"out/p1\.example\.key: cannot be written: Permission denied"):
        made.issue("player", ["p1.example"], out=tmp_path / "out")


def test_a_place_that_is_a_file_is_named(made: Authority, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(FileProblem, match="out: cannot be made a directory"):
        made.issue("player", ["p1.example"], out=tmp_path / "out")
    assert made.ledger() == ()


def test_a_failed_write_leaves_the_old_file_and_no_scrap(made: Authority, tmp_path: Path) -> None:
    """A directory stands where the certificate should go, so that the rename fails."""
    (tmp_path / "out" / "p1.example.crt").mkdir(parents=True)
    with pytest.raises(FileProblem, match="cannot be written"):
        made.issue("player", ["p1.example"], out=tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir() if file.name.startswith(".")] == []


# ---- what it refuses


@pytest.mark.parametrize("kind", ["player", "audience"])
def test_only_a_conductor_has_several_names(made: Authority, tmp_path: Path, kind: authority.Kind) -> None:
    with pytest.raises(UsageError, match="exactly one name"):
        made.issue(kind, ["a.example", "b.example"], out=tmp_path)


@pytest.mark.parametrize("name", ["*.example", "10.0.0.1", "a b", "", "../../etc/passwd", "-a.example"])
def test_only_host_names_are_issued(made: Authority, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="expected a host name"):
        made.issue("player", [name], out=tmp_path / "out")
    assert made.ledger() == ()


@pytest.mark.parametrize("days", [0, -1, 36_501])
def test_a_certificate_lives_for_a_sane_time(made: Authority, tmp_path: Path, days: int) -> None:
    with pytest.raises(UsageError, match="expected 1 to 36500 days"):
        made.issue("player", ["p1.example"], days=days, out=tmp_path)


@pytest.mark.parametrize("name", ["x" * 65, "\0\1" * 40])
def test_an_authority_s_name_is_short(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="1 to 64 characters"):
        authority.init(tmp_path / "ca", name)


def test_a_directory_without_an_authority_is_said(tmp_path: Path, made: Authority) -> None:
    with pytest.raises(NoAuthority, match=r"ca\.crt: No such file.*orchestra ca init --dir"):
        authority.load(tmp_path / "nowhere")
    other = authority.init(tmp_path / "other")
    (other.directory / "ca.crt").write_bytes((made.directory / "ca.crt").read_bytes())
    with pytest.raises(NoAuthority, match=r"ca\.key is not the key of ca\.crt"):
        authority.load(other.directory)
    (other.directory / "ca.key").write_text("nonsense")
    with pytest.raises(NoAuthority, match="damaged"):
        authority.load(other.directory)


# ---- revocation


def test_revoking_a_name_revokes_every_certificate_it_has(made: Authority, tmp_path: Path) -> None:
    first = made.issue("player", ["p1.example"], out=tmp_path)
    second = made.issue("player", ["p1.example"], out=tmp_path)
    other = made.issue("player", ["p2.example"], out=tmp_path)
    assert [entry.serial for entry in made.revoke("P1.example")] == [first.entry.serial, second.entry.serial]
    assert revoked(made) == {first.entry.serial, second.entry.serial}
    assert [entry.revoked_at is None for entry in made.ledger()] == [False, False, True]
    assert made.ledger()[2] == other.entry


def test_one_serial_number_can_be_revoked_after_a_renewal(made: Authority, tmp_path: Path) -> None:
    first = made.issue("player", ["p1.example"], out=tmp_path)
    made.issue("player", ["p1.example"], out=tmp_path)
    made.revoke(f"{first.entry.serial:040X}")
    assert revoked(made) == {first.entry.serial}


def test_what_was_not_issued_or_is_revoked_cannot_be_revoked(made: Authority, tmp_path: Path) -> None:
    made.issue("player", ["p1.example"], out=tmp_path)
    made.revoke("p1.example")
    for name in ("p1.example", "p2.example", ""):
        with pytest.raises(NotIssued, match=f"No certificate for '{name}'"):
            made.revoke(name)


def test_a_lost_revocation_list_is_written_again_from_the_ledger(made: Authority, tmp_path: Path) -> None:
    issued = made.issue("player", ["p1.example"], out=tmp_path)
    made.revoke("p1.example")
    (made.directory / "crl.pem").unlink()
    assert made.crl() == made.directory / "crl.pem"
    assert revoked(made) == {issued.entry.serial}


# ---- the command line


class Said(NamedTuple):
    """What a command printed, and the status it ended with."""

    status: int
    output: str
    error: str


@pytest.fixture
def orchestra(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs ``orchestra ca``, as the installed command does."""

    def call(*arguments: object) -> Said:
        status = run(group, "orchestra", ["ca", *map(str, arguments)])
        return Said(status, *capsys.readouterr())

    return call


Orchestra = Callable[..., Said]


def test_the_commands_from_the_first_to_the_last(orchestra: Orchestra, tmp_path: Path) -> None:
    place = tmp_path / "ca"
    said = orchestra("init", "--dir", place).output
    assert f"{place}/ca.key" in said
    assert f"Next: orchestra ca issue conductor HOST.NAME --dir {place}" in said
    said = orchestra("issue", "conductor", "c.example", "d.example", "--dir", place, "--out", tmp_path / "c").output
    assert "c.example.key as /etc/orchestra/tls/conductor.key (mode 0600" in said
    assert sorted(os.listdir(tmp_path / "c")) == ["c.example.crt", "c.example.key", "ca.crt"]
    said = orchestra("issue", "player", "p1.example", "--dir", place, "--days", 5).output
    assert "Next: write p1.example into the conductor's players file" in said
    assert sorted(os.listdir(place / "issued")) == ["ca.crt", "p1.example.crt", "p1.example.key"]
    assert "Issued for the audience web.example" in orchestra("issue", "audience", "web.example", "--dir", place).output
    assert "Revoked player p1.example (serial " in orchestra("revoke", "p1.example", "--dir", place).output
    assert f"Wrote {place}/crl.pem" in orchestra("crl", "--dir", place).output
    shown = orchestra("show", "--dir", place).output.splitlines()
    assert [line.split()[0:2] for line in shown[2:]] == [
        ["conductor", "c.example,d.example"],
        ["player", "p1.example"],
        ["audience", "web.example"],
    ]
    assert [line.split()[3] for line in shown[2:]] == ["valid", "revoked", "valid"]


def test_show_speaks_json_to_programs(orchestra: Orchestra, made: Authority, tmp_path: Path) -> None:
    issued: Issued = made.issue("player", ["p1.example"], days=5, out=tmp_path)
    shown = json.loads(orchestra("show", "--json", "--dir", made.directory).output)
    assert shown["name"] == made.name
    (entry,) = shown["issued"]
    assert (entry["serial"], entry["names"], entry["state"], entry["revoked_at"]) == (
        f"{issued.entry.serial:x}",
        ["p1.example"],
        "expires soon",
        None,
    )


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["init"], 64, "already holds a certificate authority"),
        (["issue", "player", "*.example"], 64, "expected a host name"),
        (["revoke", "nobody.example"], 64, "No certificate for 'nobody.example'"),
    ],
)
def test_a_failure_is_a_sentence_and_a_status(
    orchestra: Orchestra, made: Authority, arguments: list[str], status: int, sentence: str
) -> None:
    found = orchestra(*arguments, "--dir", made.directory)
    assert (found.status, found.output) == (status, "")
    assert sentence in found.error
    assert "Traceback" not in found.error


def test_no_authority_is_a_sentence_and_a_status(orchestra: Orchestra, tmp_path: Path) -> None:
    for command in (["show"], ["crl"], ["revoke", "a.example"], ["issue", "player", "a.example"]):
        found = orchestra(*command, "--dir", tmp_path)
        assert found.status == 78
        assert "There is no certificate authority in" in found.error
