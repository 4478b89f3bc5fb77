"""Credentials are checked when they are loaded; every mistake names its file, its key and the remedy."""

import os
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from pki import CLIENT, DAY, SERVER, Files, Leaf, Signer, pki, write

from orchestra.errors import EX_CONFIG, BadCredentials
from orchestra.security.authority import Kind
from orchestra.security.credentials import is_revoked

ROOT, OTHER = Signer("a root"), Signer("another root")
MIDDLE = Signer("an intermediate", ROOT)


def refused(files: Files, key: str, role: Kind = "player") -> str:
    """The sentence with which ``files`` are refused; it is about the file under ``key``."""
    with pytest.raises(BadCredentials) as caught:
        files.load(role)
    assert caught.value.status == EX_CONFIG
    assert caught.value.fields["key"] == key
    assert caught.value.sentence.startswith(f"{getattr(files, key)} (configuration key '{key}'): ")
    return caught.value.sentence


@pytest.fixture
def good(tmp_path: Path) -> Files:
    return write(tmp_path, ROOT.leaf("p1.example"), [ROOT], [ROOT.crl()])


def in_ms(span: timedelta) -> int:
    return int((time.time() + span.total_seconds()) * 1000)


# ---- what loads


def test_sound_files_load(good: Files) -> None:
    found = good.load("player")
    assert (found.role, found.names, found.issuer) == ("player", ("p1.example",), "CN=a root")
    assert abs(found.not_after - in_ms(100 * DAY)) < 60_000
    assert "PRIVATE" not in repr(found)
    assert found.crls
    expires = f"the certificate revocation list of 'CN=a root' expires on {when(found.crls[0].next_update_utc)}"
    assert found.warnings(in_ms(timedelta())) == [f"{expires}; fetch a new one, or nobody can connect then"]


def when(moment: datetime | None) -> str:
    assert moment is not None
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def test_without_revocation_lists_nothing_is_looked_up(good: Files) -> None:
    assert good._replace(crl=None).load("player").crls is None
    assert good._replace(crl="").load("player").crls is None


def test_a_list_that_revokes_nobody_is_still_a_list(good: Files) -> None:
    """An empty CRL is falsy: the trap that turns a whole fleet away."""
    crls = good.load("player").crls
    assert crls is not None
    assert len(crls) == 1


def test_the_bundles_of_a_puppet_authority_load(tmp_path: Path) -> None:
    """ca.pem holds root and intermediate, crl.pem a list of each, and nodes send their certificate alone."""
    leaf = MIDDLE.leaf("node.example")
    found = write(tmp_path, leaf, [MIDDLE, ROOT], [MIDDLE.crl(), ROOT.crl()]).load("player")
    assert (len(found.authorities), found.crls and len(found.crls), found.checks_whole_chain) == (2, 2, True)


def test_an_intermediate_may_travel_with_the_certificate(tmp_path: Path) -> None:
    found = write(tmp_path, MIDDLE.leaf("p1.example"), [ROOT], chain=[MIDDLE]).load("player")
    assert found.chain == (MIDDLE.certificate,)


def test_text_around_the_blocks_does_no_harm(good: Files) -> None:
    """openssl writes such text, and EC PARAMETERS before a key."""
    for name in (good.certificate, good.ca, good.key):
        file = Path(name)
        file.write_bytes(
            b"subject=CN = x\n-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
            + file.read_bytes()
        )
    assert good.load("player").names == ("p1.example",)


def test_crlf_line_ends_do_no_harm(good: Files) -> None:
    for name in good:
        file = Path(str(name))
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert good.load("player").names == ("p1.example",)


# ---- what does not


@pytest.mark.parametrize("key", Files._fields)
def test_a_file_that_is_missing_is_named(good: Files, key: str) -> None:
    os.unlink(getattr(good, key))
    assert "cannot be read: No such file or directory" in refused(good, key)


@pytest.mark.parametrize("key", Files._fields)
def test_a_file_that_is_a_directory_is_named(good: Files, key: str, tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in refused(good._replace(**{key: str(tmp_path)}), key)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("certificate", "holds no certificate in PEM form"),
        ("key", "holds no private key in PEM form"),
        ("ca", "holds no certificate in PEM form"),
        ("crl", "holds no certificate revocation list in PEM form"),
    ],
)
def test_a_file_that_is_not_pem_is_named(good: Files, key: str, problem: str) -> None:
    Path(getattr(good, key)).write_bytes(b"\x00\xffnonsense")
    assert problem in refused(good, key)


def test_a_block_that_cannot_be_read_is_named(good: Files) -> None:
    """The second block counts as much as the first."""
    with open(good.ca, "ab") as stream:
        stream.write(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    assert "holds a certificate that cannot be read" in refused(good, "ca")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o610])
def test_a_private_key_that_others_may_touch_is_refused(good: Files, mode: int) -> None:
    os.chmod(good.key, mode)
    assert f"(mode {mode:04o}); 'chmod 600' it" in refused(good, "key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_private_key_of_somebody_else_is_refused(good: Files) -> None:
    os.chown(good.key, 12345, 0)
    assert "belongs to uid 12345" in refused(good, "key")


def test_a_private_key_of_another_certificate_is_refused(good: Files, tmp_path: Path) -> None:
    other = write(tmp_path / "other", ROOT.leaf("p1.example"), [ROOT])
    assert "is not the one of the certificate in" in refused(good._replace(key=other.key), "key")


def test_an_encrypted_private_key_is_refused(good: Files) -> None:
    encrypted = BestAvailableEncryption(b"secret")
    key = ec.generate_private_key(ec.SECP256R1())
    for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL):
        Path(good.key).write_bytes(key.private_bytes(Encoding.PEM, form, encrypted))
        assert "is encrypted" in refused(good, "key")


def test_a_kind_of_key_that_tls_cannot_use_is_refused(good: Files) -> None:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    pem = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    Path(good.key).write_bytes(pem)
    assert "of a kind that TLS 1.3 does not use" in refused(good, "key")


def test_our_own_certificate_comes_first(tmp_path: Path) -> None:
    leaf = MIDDLE.leaf("p1.example")
    first = MIDDLE.leaf("p1.example")
    files = write(tmp_path, leaf, [MIDDLE, ROOT])
    pem = Path(files.certificate).read_bytes()
    Path(files.certificate).write_bytes(first.certificate.public_bytes(Encoding.PEM) + pem)
    assert "our own certificate must come first" in refused(files, "certificate")


def test_a_certificate_out_of_its_time_is_refused(tmp_path: Path) -> None:
    leaf = ROOT.leaf("p1.example", since=-5 * DAY, until=-DAY)
    old = write(tmp_path / "old", leaf, [ROOT])
    assert f"expired on {when(leaf.certificate.not_valid_after_utc)}; issue a new one for p1.example" in refused(
        old, "certificate"
    )
    young = write(tmp_path / "young", ROOT.leaf("p1.example", since=DAY), [ROOT])
    assert "is not valid before" in refused(young, "certificate")


@pytest.mark.parametrize(
    ("role", "leaf", "problem"),
    [
        ("player", ROOT.leaf("p1.example", usages=[SERVER]), "a player's needs the extended key usage clientAuth"),
        ("audience", ROOT.leaf("p1.example", usages=[]), "an audience's needs the extended key usage clientAuth"),
        ("conductor", ROOT.leaf("c.example", usages=[CLIENT]), "a conductor's needs the extended key usage serverAuth"),
        ("player", ROOT.leaf("a.example", "b.example"), "must have exactly one"),
        ("conductor", ROOT.leaf(common_name="c.example"), "a common name does not count"),
        ("conductor", ROOT.leaf("*.example"), "is a wildcard"),
    ],
)
def test_a_certificate_for_another_role_is_refused(tmp_path: Path, role: Kind, leaf: Leaf, problem: str) -> None:
    assert problem in refused(write(tmp_path, leaf, [ROOT]), "certificate", role)


def test_a_certificate_that_nobody_in_the_bundle_signed_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, ROOT.leaf("p1.example"), [OTHER])
    assert "no authority in it signed the certificate in" in refused(files, "ca")
    assert "issued by 'CN=a root'" in refused(files, "ca")


def test_a_bundle_without_the_root_is_refused(tmp_path: Path) -> None:
    files = write(tmp_path, MIDDLE.leaf("p1.example"), [MIDDLE])
    assert "and every one up to its root" in refused(files, "ca")


def test_an_authority_of_the_same_name_and_another_key_is_another_authority(tmp_path: Path) -> None:
    files = write(tmp_path, ROOT.leaf("p1.example"), [Signer("a root")])
    assert "no authority in it signed" in refused(files, "ca")


def test_an_expired_authority_is_refused(tmp_path: Path) -> None:
    old = Signer("an old root", until=-DAY)
    files = write(tmp_path, old.leaf("p1.example"), [old])
    sentence = refused(files, "certificate")
    assert "certificate has expired (at the authority CN=an old root" in sentence


# ---- revocation lists


def test_an_expired_revocation_list_is_refused(tmp_path: Path) -> None:
    crl = ROOT.crl(until=-DAY)
    files = write(tmp_path, ROOT.leaf("p1.example"), [ROOT], [crl])
    assert f"the revocation list of 'CN=a root' expired on {when(crl.next_update_utc)};" in refused(files, "crl")


def test_an_expired_list_beside_its_successor_does_no_harm(tmp_path: Path) -> None:
    files = write(tmp_path, ROOT.leaf("p1.example"), [ROOT], [ROOT.crl(until=-DAY), ROOT.crl()])
    assert files.load("player").names == ("p1.example",)


def test_a_revocation_list_that_the_authority_did_not_sign_is_refused(tmp_path: Path) -> None:
    impostor = Signer("a root")
    for number, crl in enumerate((OTHER.crl(), impostor.crl())):
        files = write(tmp_path / str(number), ROOT.leaf("p1.example"), [ROOT], [ROOT.crl(), crl])
        assert "no authority in the ca file signed the revocation list of" in refused(files, "crl")


def test_a_revocation_list_of_our_own_issuer_is_needed(tmp_path: Path) -> None:
    files = write(tmp_path, MIDDLE.leaf("p1.example"), [MIDDLE, ROOT], [ROOT.crl()])
    assert "no revocation list of 'CN=an intermediate', which issued our own certificate" in refused(files, "crl")


def test_our_own_certificate_revoked_is_refused(tmp_path: Path) -> None:
    leaf = ROOT.leaf("p1.example")
    files = write(tmp_path, leaf, [ROOT], [ROOT.crl(leaf.certificate)])
    assert "our own certificate p1.example (serial " in refused(files, "crl")


def test_a_revoked_intermediate_above_us_is_refused(tmp_path: Path) -> None:
    leaf = MIDDLE.leaf("p1.example")
    files = write(tmp_path, leaf, [MIDDLE, ROOT], [MIDDLE.crl(), ROOT.crl(MIDDLE.certificate)])
    assert "revoked (at the authority CN=an intermediate" in refused(files, "certificate")


def test_revoked_means_this_serial_number_of_this_issuer(tmp_path: Path) -> None:
    bad, fine = ROOT.leaf("p2.example"), ROOT.leaf("p3.example")
    files = write(
        tmp_path, ROOT.leaf("c.example"), [ROOT, OTHER], [ROOT.crl(bad.certificate), OTHER.crl(fine.certificate)]
    )
    found = files.load("conductor")
    assert is_revoked(found, bad.certificate)
    assert not is_revoked(found, fine.certificate)  # OTHER revoked that number, ROOT did not


def test_whoever_stands_under_a_revoked_intermediate_is_revoked(tmp_path: Path) -> None:
    under = MIDDLE.leaf("p2.example").certificate
    revoking = write(tmp_path, ROOT.leaf("c.example"), [ROOT, MIDDLE], [ROOT.crl(MIDDLE.certificate), MIDDLE.crl()])
    assert is_revoked(revoking.load("conductor"), under)
    silent = write(tmp_path / "b", ROOT.leaf("c.example"), [ROOT, MIDDLE], [ROOT.crl(), MIDDLE.crl()])
    assert not is_revoked(silent.load("conductor"), under)


def test_nobody_is_revoked_without_lists(tmp_path: Path) -> None:
    assert not is_revoked(pki().credentials("conductor", "c.example"), ROOT.leaf("p1.example").certificate)


# ---- while it runs


def test_everything_that_expires_within_a_month_is_said(tmp_path: Path) -> None:
    root = Signer("a short root", until=60 * DAY)
    files = write(tmp_path, root.leaf("p1.example", until=40 * DAY), [root], [root.crl(until=50 * DAY)])
    found = files.load("player")
    assert found.warnings(in_ms(9 * DAY)) == []
    (only,) = found.warnings(in_ms(11 * DAY))
    assert only.startswith("our certificate p1.example (serial ")
    assert only.endswith(
        f"expires on {when(found.certificate.not_valid_after_utc)}; renew it, or nobody can connect then"
    )
    ours, authority, crl = found.warnings(in_ms(55 * DAY))
    assert "expired on" in ours
    assert authority.startswith("the certificate authority's certificate CN=a short root")
    assert crl.startswith("the certificate revocation list of 'CN=a short root' expired on")


def test_an_authority_without_a_revocation_list_is_said(tmp_path: Path) -> None:
    files = write(tmp_path, ROOT.leaf("p1.example"), [ROOT, OTHER], [ROOT.crl(until=90 * DAY)])
    found = files.load("player")
    (said,) = found.warnings(in_ms(timedelta()))
    assert said.startswith("the crl file has no revocation list of CN=another root")
    assert not found.checks_whole_chain


@pytest.mark.parametrize("key", Files._fields)
def test_a_changed_file_is_noticed(good: Files, key: str) -> None:
    found = good.load("player")
    assert not found.stale()
    file = Path(getattr(good, key))
    content, times = file.read_bytes(), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    fresh = file.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(content)
    os.utime(fresh, ns=times)
    fresh.rename(file)  # another file of the same size and age
    assert found.stale()
    again = good.load("player")
    assert not again.stale()
    assert again.digest == found.digest


def test_a_file_that_went_away_is_noticed(good: Files) -> None:
    found = good.load("player")
    os.unlink(good.key)
    assert found.stale()


def test_another_content_has_another_digest(good: Files) -> None:
    found = good.load("player")
    assert good.crl
    Path(good.crl).write_bytes(ROOT.crl(until=11 * DAY).public_bytes(Encoding.PEM))
    assert good.load("player").digest != found.digest
