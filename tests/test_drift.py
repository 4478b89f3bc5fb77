"""What the targets' disks say of a request: refusals, warnings, and the digest that a pin insists on."""

from typing import Any

import pytest

from orchestra.core.drift import MOST_WARNINGS, NAMED, UNPINNABLE, Agreement, agreed, pinned, warning
from orchestra.errors import NotPinned
from orchestra.model import Ask, Scope, ScoreEntry

TARGETS = {1: "web1", 2: "web2", 3: "web3"}


def entry(digest: str) -> ScoreEntry:
    return ScoreEntry("deploy", digest, "", "env", 1, 1, 1, False, 1)


def ask(**more: Any) -> Ask:
    return Ask(**{"score": "deploy", "targets": ("x",), "scope": Scope.ALL} | more)


A, B = entry("a" * 64), entry("b" * 64)


def test_a_pin_is_the_digest_that_all_have() -> None:
    assert pinned("deploy", TARGETS, {1: A, 2: A, 3: A}) == "a" * 64
    assert agreed(ask(pin=True), TARGETS, {1: A, 2: A, 3: A}) == Agreement("a" * 64)


@pytest.mark.parametrize(
    ("having", "who"),
    [
        ({1: A, 2: A, 3: B}, "aaaaaaaaaaaa on web[1-2], bbbbbbbbbbbb on web3."),
        ({1: A, 2: A, 3: None}, "aaaaaaaaaaaa on web[1-2], no such score on web3."),
        ({1: A, 2: A}, "aaaaaaaaaaaa on web[1-2], nothing known yet on web3."),
        ({1: B, 3: None}, "bbbbbbbbbbbb on web1, no such score on web3, nothing known yet on web2."),
        ({}, "nothing known yet on web[1-3]."),
    ],
)
def test_a_pin_that_not_all_can_keep_is_refused_and_says_who_has_what(having: Any, who: str) -> None:
    """Who has never been seen may have anything."""
    with pytest.raises(NotPinned) as refused:
        pinned("deploy", TARGETS, having)
    assert who in refused.value.sentence
    found = agreed(ask(pin=True), TARGETS, having)
    assert isinstance(found.refusal, NotPinned)
    assert (found.digest, found.warnings) == (UNPINNABLE, ())


def test_drift_without_a_pin_is_a_warning() -> None:
    """Of those that have it; the others are warned of one by one."""
    says = "'deploy' is not the same on all targets: aaaaaaaaaaaa on web1, bbbbbbbbbbbb on web2; --pin insists on one"
    assert warning("deploy", TARGETS, {1: A, 2: B, 3: None}) == says
    assert agreed(ask(), TARGETS, {1: A, 2: B, 3: None}) == Agreement(
        warnings=(says, "web3 has no score 'deploy' today")
    )
    assert warning("deploy", TARGETS, {1: A, 2: A, 3: None}) == ""


def test_many_hosts_make_no_long_sentence() -> None:
    targets = {n: f"web{n}" for n in range(1, NAMED + 51)}
    sentence = warning("deploy", targets, {n: A if n > 1 else B for n in targets})
    assert "aaaaaaaaaaaa on web[2-201] and 49 more, bbbbbbbbbbbb on web1;" in sentence
    lacking = agreed(ask(), targets, {n: None if n > 1 else B for n in targets}).warnings
    assert len(lacking) == MOST_WARNINGS + 1
    assert lacking[-1] == f"and {NAMED + 49 - MOST_WARNINGS} more hosts lack it"
