"""A request is held against the scores it is for: who disagrees is named, and what is secret is told apart."""

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from orchestra.conductor.vetting import Vetted, vetted, wanted
from orchestra.errors import BadRequest, OrchestraError, SecretInTheOpen, SecretsUnknown, SecretsWanted, Unfit
from orchestra.model import Ask, ParamEntry, Scope, ScoreEntry

PLAIN = ScoreEntry("deploy", "d0", "", "env", 1000, 0, 1, False, 3)
PORT = ParamEntry("port", "int", max=9)
TYPED = replace(PLAIN, digest="d1", params=(PORT,))
PASSWORD = ParamEntry("password", required=True, secret=True, min=3)
SECRET = replace(PLAIN, digest="d2", interface="json", params=(PORT, PASSWORD))
CAREFUL = replace(PLAIN, digest="d3", dry_run=True)
NO_DRY_RUN = "the score 'deploy' knows no dry run: it would do what it does; its .conf has no 'dry_run = yes'"


def ask(scope: Scope = Scope.ALL, **more: Any) -> Ask:
    return Ask(score="deploy", targets=("web1",), scope=scope, **more)


def problem(ask: Ask, scores: Mapping[str, ScoreEntry | None], kind: type[OrchestraError] = Unfit) -> str:
    with pytest.raises(kind) as caught:
        vetted(ask, scores, ())
    return caught.value.sentence


def test_what_is_not_declared_may_be_anything() -> None:
    assert vetted(ask(params={"a": "b"}), {"web1": PLAIN, "web2": None}, ()) == Vetted({"a": "b"}, {})


def test_a_breach_is_told_before_anything_is_queued() -> None:
    """Where all agree, nobody has to be named."""
    assert problem(ask(params={"port": "10"}), {"web1": TYPED, "web2": TYPED}) == (
        "parameter 'port': expected at most 9"
    )


def test_the_targets_that_disagree_are_named() -> None:
    """Three of them, and how many more."""
    scores = {f"web{n}": TYPED if n < 6 else PLAIN for n in range(1, 9)}
    assert problem(ask(params={"port": "10"}), scores) == (
        "web1, web2, web3 and 2 more: parameter 'port': expected at most 9"
    )


def test_a_one_of_job_needs_one_who_takes_it() -> None:
    """The others will refuse, and are named."""
    one = ask(Scope.ONE, params={"port": "10"})
    assert vetted(one, {"web1": TYPED, "web2": PLAIN}, ()).warnings == (
        "web1 will refuse: parameter 'port': expected at most 9",
    )
    assert problem(one, {"web1": TYPED, "web2": TYPED}) == "parameter 'port': expected at most 9"


def test_secrets_are_told_apart_from_what_only_came_with_them() -> None:
    """A file may hold both."""
    given = ask(params={}, private={"port": "1", "password": "canary"})
    assert vetted(given, {"web1": SECRET}, ()) == Vetted({"port": "1"}, {"password": "canary"})


def test_a_secret_on_a_command_line_is_refused() -> None:
    said = problem(ask(params={"password": "canary"}), {"web1": SECRET}, SecretInTheOpen)
    assert "'password' is secret" in said and "--params FILE" in said and "canary" not in said


def test_a_secret_that_is_missing_is_asked_for() -> None:
    assert "'password' is secret and required" in problem(ask(), {"web1": SECRET}, SecretsWanted)
    assert wanted(ask(), [SECRET, SECRET, PLAIN]) == ("password",)
    assert wanted(ask(private={"password": "x"}), [SECRET]) == ()


def test_nobody_is_asked_for_a_secret_in_vain() -> None:
    """What else is wrong is said first."""
    assert problem(ask(params={"port": "10"}), {"web1": SECRET}) == "parameter 'port': expected at most 9"
    assert problem(ask(dry_run=True), {"web1": SECRET}) == NO_DRY_RUN


def test_a_secret_is_checked_and_not_shown() -> None:
    assert problem(ask(private={"password": "xy"}), {"web1": SECRET}) == (
        "parameter 'password': expected at least 3 characters"
    )


def test_a_target_that_does_not_know_a_parameter_as_secret_is_named() -> None:
    """It would be given to it in the open, or not at all."""
    drifted = replace(SECRET, params=(PORT, replace(PASSWORD, secret=False)))
    said = problem(ask(private={"password": "canary"}), {"web1": SECRET, "web2": drifted})
    assert said.startswith("web2: parameter 'password' was given as a secret") and "canary" not in said


def test_what_nobody_has_told_of_is_taken_for_no_secret_by_nobody() -> None:
    """Of a player that was never seen others may tell; if none can, nothing private is taken."""
    given = ask(private={"password": "canary"})
    assert vetted(given, {}, [SECRET]) == Vetted({}, {"password": "canary"})
    with pytest.raises(SecretsUnknown):
        vetted(given, {}, ())
    assert vetted(ask(params={"a": "b"}), {}, ()) == Vetted({"a": "b"}, {})


def test_a_parameter_given_twice_is_refused() -> None:
    assert problem(ask(params={"a": "1"}, private={"a": "2"}), {"web1": PLAIN}, BadRequest) == (
        "the parameter 'a' is given twice"
    )


def test_a_rehearsal_needs_scores_that_know_it() -> None:
    assert vetted(ask(dry_run=True), {"web1": CAREFUL}, ()) == Vetted({}, {})
    assert problem(ask(dry_run=True), {"web1": CAREFUL, "web2": PLAIN}) == f"web2: {NO_DRY_RUN}"
