"""Who somebody is comes from the names in a certificate, and from nothing else in it."""

import pytest
from pki import CLIENT, SERVER, Leaf, Signer

from orchestra.errors import EX_CONFIG, WrongCertificate
from orchestra.security.names import audience_name, conductor_names, describe, player_name

ROOT = Signer("a root")


def refused(leaf: Leaf, kind: object = player_name) -> str:
    assert callable(kind)
    with pytest.raises(WrongCertificate) as caught:
        kind(leaf.certificate)
    assert caught.value.status == EX_CONFIG
    return caught.value.sentence


def test_a_player_is_its_only_dns_name() -> None:
    assert player_name(ROOT.leaf("p1.example", usages=[CLIENT]).certificate) == "p1.example"
    assert audience_name(ROOT.leaf("web.example", usages=[CLIENT]).certificate) == "web.example"


def test_a_conductor_may_have_several_names() -> None:
    leaf = ROOT.leaf("c.example", "conductor.example", usages=[SERVER])
    assert conductor_names(leaf.certificate) == ("c.example", "conductor.example")


def test_both_usages_are_as_good_as_the_right_one() -> None:
    leaf = ROOT.leaf("node.example", usages=[CLIENT, SERVER])
    assert player_name(leaf.certificate) == "node.example"
    assert conductor_names(leaf.certificate) == ("node.example",)


def test_a_player_with_two_names_is_nobody() -> None:
    assert "it has 2 names" in refused(ROOT.leaf("p1.example", "p2.example"))


@pytest.mark.parametrize("kind", [player_name, audience_name, conductor_names])
def test_a_common_name_is_no_name(kind: object) -> None:
    assert "a common name does not count" in refused(ROOT.leaf(common_name="p1.example"), kind)


@pytest.mark.parametrize("kind", [player_name, audience_name, conductor_names])
def test_a_wildcard_is_nobody(kind: object) -> None:
    assert "'*.example' is a wildcard" in refused(ROOT.leaf("*.example"), kind)


@pytest.mark.parametrize("name", ["P1.example", "p1.example.", "10.0.0.1", "p1..example", "p 1.example", "", "a/../b"])
def test_only_a_lower_case_host_name_is_a_name(name: str) -> None:
    assert "is not a lower-case host name" in refused(ROOT.leaf(name))


def test_one_bad_name_spoils_a_conductor_s_good_ones() -> None:
    assert "'*.b.example' is a wildcard" in refused(ROOT.leaf("c.example", "*.b.example"), conductor_names)


def test_the_usage_must_be_there_and_right() -> None:
    for usages in ([], [SERVER]):
        assert "clientAuth" in refused(ROOT.leaf("p1.example", usages=usages))
        assert "clientAuth" in refused(ROOT.leaf("p1.example", usages=usages), audience_name)
    for usages in ([], [CLIENT]):
        assert "serverAuth" in refused(ROOT.leaf("c.example", usages=usages), conductor_names)


def test_a_sentence_says_whose_certificate_it_is() -> None:
    leaf = ROOT.leaf("p1.example", "p2.example")
    assert f"of p1.example, p2.example (serial {leaf.certificate.serial_number:x})" in refused(leaf)
    assert describe(ROOT.leaf(common_name="only a CN").certificate).startswith("CN=only a CN (serial ")


def test_a_description_has_no_control_characters() -> None:
    """Names come from strangers, and descriptions go to terminals and logs."""
    assert "\x1b" not in describe(ROOT.leaf("p1\x1b[2Jx.example").certificate)
