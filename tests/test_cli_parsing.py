"""What a command line means, and the sentence if it means nothing."""

from pathlib import Path
from typing import Any

import pytest

from orchestra.cli import inputs
from orchestra.cli.naming import Naming, targets_in
from orchestra.cli.session import conductor_socket, player_socket
from orchestra.cli.status import states_of
from orchestra.cli.submit import Request, ask_of, params_in, told_apart
from orchestra.cli.waiting import exit_status, stretches
from orchestra.errors import UsageError
from orchestra.model import Ask, Scope, State


def request(**said: Any) -> Request:
    nothing = Request(False, False, None, None, None, None, 0, False)
    return nothing._replace(**said)


@pytest.mark.parametrize(
    ("words", "score", "targets", "params"),
    [
        ("uptime web1", "uptime", ("web1",), {}),
        ("uptime web1 a=1", "uptime", ("web1",), {"a": "1"}),
        ("a=1 uptime b=2 web1 web2", "uptime", ("web1", "web2"), {"a": "1", "b": "2"}),
        ("uptime web1 a=b=c", "uptime", ("web1",), {"a": "b=c"}),
        ("uptime web1 a=", "uptime", ("web1",), {"a": ""}),
        ("uptime web1 =x", "uptime", ("web1",), {"": "x"}),
        ("uptime", "uptime", (), {}),
    ],
)
def test_whatever_has_an_equals_sign_is_a_parameter(
    words: str, score: str, targets: tuple[str, ...], params: dict[str, str]
) -> None:
    assert told_apart(words.split()) == (score, targets, params)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["uptime", "web1", "!", "a", "1"], "write: submitjob uptime web1 a=1"),
        (["uptime", "web1", "web2", "!", "a", "x y"], "submitjob --all uptime web1 web2 'a=x y' (or --one)"),
        (["uptime", "web1", "!"], "write: submitjob uptime web1"),
        (["uptime", "web1", "!", "a"], "'a' has no value"),
    ],
)
def test_the_older_form_is_refused_with_the_same_request_in_todays_words(words: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        told_apart(words)
    assert sentence in caught.value.sentence


@pytest.mark.parametrize(
    ("words", "said", "sentence"),
    [
        ("", {}, "name a score"),
        ("a=1", {}, "name a score"),
        ("uptime", {}, "no target"),
        ("uptime web1 web2", {}, "2 targets: say --all"),
        ("uptime web1", {"all_of": True, "one_of": True}, "--all and --one exclude each other"),
        ("uptime web1", {"one_of": True, "some": 2}, "--one and --some exclude each other"),
        ("uptime web1 a=1 a=2", {}, "given twice"),
        ("uptime web1 1a=2", {}, "parameter '1a'"),
        ("uptime web1 =2", {}, "parameter ''"),
        ("uptime web1 a=" + "x" * 16_385, {}, "16385 bytes"),
        ("uptime web1", {"targets_from": "-", "params_from": "-"}, "cannot both read stdin"),
        ("uptime web1", {"targets_from": "/nonexistent/file"}, "No such file"),
        ("uptime web1", {"params_from": "/"}, "Is a directory"),
    ],
)
def test_what_means_nothing_gets_a_sentence(words: str, said: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        ask_of(words.split(), request(**said))
    assert sentence in caught.value.sentence
    assert caught.value.status == 64


@pytest.mark.parametrize(
    ("words", "said", "scope"),
    [
        ("uptime web1", {}, Scope.ALL),
        ("uptime web1 WEB1 web1.", {}, Scope.ALL),
        ("uptime web1 web2", {"all_of": True}, Scope.ALL),
        ("uptime web1 web2", {"one_of": True}, Scope.ONE),
        ("uptime web1 web2", {"some": 2}, Scope.SOME),
        ("uptime web[1-2]", {}, None),
        ("uptime @web", {}, None),
        ("uptime web1 web2", {"naming": Naming(limit=1)}, None),
        ("uptime web1", {"naming": Naming(where="os=debian")}, None),
    ],
)
def test_one_target_needs_no_scope_and_duplicates_are_one(
    words: str, said: dict[str, Any], scope: Scope | None
) -> None:
    """How many a folded name or a group stands for is for the conductor to find out."""
    assert ask_of(words.split(), request(**said)).scope is scope


def test_targets_and_parameters_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("web2 web3 # the new ones\n\n# none\nweb4\n")
    (tmp_path / "params").write_text("# secret\npassword=a b#c \n\nempty=\r\n")
    said = request(all_of=True, targets_from=str(tmp_path / "hosts"), params_from=str(tmp_path / "params"), expire=60.0)
    assert ask_of(["uptime", "web1", "x=1"], said) == Ask(
        score="uptime",
        targets=("web1", "web2", "web3", "web4"),
        scope=Scope.ALL,
        params={"x": "1"},
        private={"password": "a b#c ", "empty": ""},
        expire=60.0,
    )


def test_a_parameter_in_the_file_and_on_the_line_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params").write_text("x=1")
    with pytest.raises(UsageError, match="given twice, here and in"):
        ask_of(["uptime", "web1", "x=1"], request(params_from=str(tmp_path / "params")))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "not JSON"),
        ('{"a": null}', "the value of 'a' must be a string, a number"),
        ('{"a": "1", "a": "2"}', "given twice"),
        ("{}x", "not JSON"),
        ("oops", "KEY=VALUE"),
    ],
)
def test_a_bad_parameter_file_gets_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        params_in(text)


def test_json_parameters_may_hold_what_a_line_cannot() -> None:
    assert params_in(' {"text": "two\\nlines"}') == {"text": "two\nlines"}
    typed = params_in('{"port": 80, "load": 0.5, "force": true, "tags": ["a", "b,c"]}')
    assert typed == {"port": "80", "load": "0.5", "force": "true", "tags": '["a", "b,c"]'}


def test_a_file_of_targets_may_hold_whatever_names_them() -> None:
    """What 'orchestra targets' prints is read as it is, however long its words are."""
    text = "@web!web3 # but that one\nweb[1,3-5],db1,db[1-2].example.org\n" + ",".join(f"x{n}" for n in range(9_000))
    words = targets_in(text)
    assert words[:4] == ("@web!web3", "web[1,3-5]", "db1", "db[1-2].example.org")
    assert len(words) == 9_004


def test_an_empty_target_file_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# all gone\n")
    with pytest.raises(UsageError, match="no target"):
        ask_of(["uptime"], request(all_of=True, targets_from=str(tmp_path / "hosts")))
    assert targets_in("") == ()


def test_a_huge_or_binary_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8"):
        inputs.read(str(tmp_path / "binary"), "--params")
    monkeypatch.setattr(inputs, "MAX_INPUT", 1)
    with pytest.raises(UsageError, match="larger than"):
        inputs.read(str(tmp_path / "binary"), "--params")


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ({"ok": 3}, 0),
        ({"ok": 3, "lost": 1, "failed": 1, "expired": 1}, 11),
        ({"failed": 1, "expired": 1}, 10),
        ({"killed": 1, "refused": 1}, 10),
        ({"ok": 1, "cancelled": 1}, 12),
        ({"expired": 1}, 12),
        ({"refused": 1}, 12),
    ],
)
def test_the_exit_status_is_the_worst_that_happened(counts: dict[str, int], status: int) -> None:
    assert exit_status(counts) == status


def test_outcomes_are_read_in_few_requests() -> None:
    assert list(stretches([1, 2, 5, 100, 101])) == [(1, 5), (100, 101)]
    assert list(stretches([])) == []


def test_only_names_outcomes() -> None:
    assert states_of("failed, lost,failed") == (State.FAILED, State.LOST)
    assert states_of("never") == (State.CANCELLED, State.EXPIRED, State.REFUSED)
    for wrong in ("broken", "", ","):
        with pytest.raises(UsageError):
            states_of(wrong)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("audience = /run/a.pb\n", "/run/a.pb"),
        ("# none\n", "/run/orchestra/audience.pb"),
        ("audience = a.pb\n", "DIR/a.pb"),
        ("not a configuration\n", "/run/orchestra/audience.pb"),
    ],
)
def test_the_socket_is_where_the_daemons_configuration_says(text: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "conductor.conf").write_text(text)
    assert conductor_socket(None, str(tmp_path)) == place.replace("DIR", str(tmp_path))
    assert conductor_socket("/given.pb", str(tmp_path)) == "/given.pb"


def test_the_players_socket_has_its_own_key(tmp_path: Path) -> None:
    assert player_socket(None, str(tmp_path)) == "/run/orchestra/player.pb"
    (tmp_path / "player.conf").write_text("seat = /run/p.pb\n")
    assert player_socket(None, str(tmp_path)) == "/run/p.pb"
