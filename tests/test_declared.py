"""Declared parameters: what one of conductor, player and stage accepts all of them do, and types survive the way."""

import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from orchestra.conductor.vetting import Vetted, vetted
from orchestra.errors import OrchestraError
from orchestra.model import Ask, ParamEntry, Scope, ScoreEntry
from orchestra.parameters import problem
from orchestra.parameters.declared import Param, complete, plain, refusal, text_of, typed, wrong
from orchestra.player.rules import read_rules

LINES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\u2028\u2029\x85"), max_size=12)
ITEMS = st.lists(LINES.filter(bool), max_size=4)
ANY = {
    "string": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    "int": st.integers(-(2**63) + 1, 2**63 - 1),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "list": ITEMS,
}
TYPED = st.sampled_from(sorted(ANY)).flatmap(lambda kind: st.tuples(st.just(kind), ANY[kind]))


@given(TYPED)
def test_a_value_of_json_reaches_a_json_score_as_it_was(given: tuple[str, Any]) -> None:
    """As text on the way, of the same type and value at the end."""
    kind, value = given
    declared = (Param("x", kind),)
    text = text_of(value)
    assert text is not None and wrong(declared, {"x": text}) is None
    found = json.loads(json.dumps(typed(declared, {"x": text})))["x"]
    assert (type(found), found) == (type(value), value)
    assert kind != "float" or math.copysign(1, found) == math.copysign(1, value)


@pytest.mark.parametrize("value", [None, {}, [1], 1 << 63, ["a", None], object()])
def test_what_is_no_parameter_has_no_text(value: object) -> None:
    assert text_of(value) is None


@given(ITEMS)
def test_a_list_has_a_line_for_each_item_in_the_environment(items: list[str]) -> None:
    text = text_of(items)
    assert text is not None
    assert plain((Param("x", "list"),), {"x": text}) == {"x": "\n".join(items)}


NUMBERS = st.one_of(st.none(), st.integers(-5, 5))
DECLARED = st.builds(
    Param,
    name=st.sampled_from(["a", "b"]),
    type=st.sampled_from(["string", "int", "float", "bool", "enum", "list"]),
    required=st.booleans(),
    default=st.none(),
    description=st.just(""),
    values=st.lists(st.sampled_from(["a", "b", "1", "true"]), max_size=3, unique=True).map(tuple),
    pattern=st.sampled_from(["", "a*", "[a-z]+", "(a|b)*1?", "(a*)*"]),
    min=NUMBERS,
    max=NUMBERS,
    secret=st.booleans(),
)
VALUES = st.sampled_from(["", "a", "b", "ab", "1", "-1", "5", "0.5", "1e3", "true", "no", "a,b", '["a", "b"]', "a\nb"])
PARAMS = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, max_size=3)


def conf(params: tuple[Param, ...]) -> str:
    """The file that declares these."""
    lines = ["interface = json"]
    for one in params:
        lines += [f"[param {one.name}]", f"type = {one.type}"]
        lines += [f"{key} = {'yes' if getattr(one, key) else 'no'}" for key in ("required", "secret")]
        lines += [f"values = {json.dumps(one.values)}"] * bool(one.values)
        lines += [f"pattern = {one.pattern}"] * bool(one.pattern)
        lines += [f"{key} = {getattr(one, key)}" for key in ("min", "max") if getattr(one, key) is not None]
    return "\n".join(lines)


@given(st.lists(DECLARED, max_size=2, unique_by=lambda one: one.name).map(tuple), PARAMS)
def test_conductor_player_and_stage_agree(params: tuple[Param, ...], given: dict[str, str]) -> None:
    """The one reads a catalogue that crossed the wire, the others the disk: one accepts what the others accept."""
    try:
        rules = read_rules("x.conf", conf(params))
    except OrchestraError:
        assume(False)
    assert rules.params == params
    entry = ScoreEntry("x", "d", "", "json", 1, 1, 1, False, 1, params=tuple(ParamEntry(*one) for one in rules.params))
    entry = msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=ScoreEntry)
    secret = {one.name for one in params if one.secret}
    told = {key: value for key, value in given.items() if key not in secret}
    secrets = {key: value for key, value in given.items() if key in secret}
    on_disk = refusal(rules.params, told, secrets)
    at_submit, result = submitted(entry, told, secrets)
    assert (on_disk is None) == (at_submit is None)
    wanted_first = any(one.secret and one.required and one.name not in given for one in params)
    assert at_submit == on_disk or wanted_first
    if result is not None:
        assert (result.params, result.secrets) == (told, secrets)
        assert problem(plain(rules.params, complete(rules.params, given))) is None
        json.dumps(typed(rules.params, complete(rules.params, given)))


def submitted(entry: ScoreEntry, params: dict[str, str], secrets: dict[str, str]) -> tuple[str | None, Vetted | None]:
    """What the conductor says."""
    try:
        ask = Ask(score="x", targets=("a",), scope=Scope.ALL, params=params, private=secrets)
        return None, vetted(ask, {"a": entry}, ())
    except OrchestraError as refused:
        return refused.sentence, None


@pytest.mark.parametrize(
    ("one", "good", "bad", "rule"),
    [
        (
            Param("x", "int"),
            ["0", "-7", "9223372036854775807"],
            ["", "+1", "007", "1.0", "1e3", "9223372036854775808", "٣"],
            "expected a whole number, such as 42",
        ),
        (Param("x", "int", min=1, max=9), ["1", "9"], ["0", "10"], "expected 1 to 9"),
        (
            Param("x", "float"),
            ["0", "-0.5", "1e-300"],
            ["", ".5", "nan", "inf", "1e999", "1_0"],
            "expected a number, such as 0.5",
        ),
        (Param("x", "float", min=0.5), ["0.5"], ["0.4"], "expected at least 0.5"),
        (Param("x", "bool"), ["true", "false", "yes", "no"], ["", "1", "True", "on"], "expected true or false"),
        (Param("x", "enum", values=("a", "b", "c")), ["a"], ["", "d", "A"], "expected a, b or c"),
        (Param("x", min=2, max=3), ["ab", "äöü"], ["a", "abcd"], "expected 2 to 3 characters"),
        (Param("x", pattern="[a-z]+"), ["abc"], ["", "a1", "abc\n"], "the value must match the pattern [a-z]+"),
        (Param("x", "list", max=2), ["", "a", "a, b", '["a,b"]'], ["a,b,c"], "expected at most 2 items"),
        (
            Param("x", "list"),
            ['[" a "]'],
            ["a,,b", ",", '[""]', '["a\\nb"]', '["\\ud800"]'],
            "expected items that are not empty, each of one line",
        ),
        (
            Param("x", "list"),
            ["[]"],
            ["[", "[1]", "[[]]", "[" * 5000],
            "expected a JSON array of strings, or items separated by commas",
        ),
        (Param("x", "list", values=("a", "b")), ["a,b"], ["a,c"], "expected a or b"),
        (Param("x", "list", pattern="[a-z]"), ["a,b"], ["a,bb"], "each item must match the pattern [a-z]"),
    ],
)
def test_every_rule_says_what_was_expected(one: Param, good: list[str], bad: list[str], rule: str) -> None:
    """In a sentence that names the parameter."""
    assert [wrong((one,), {"x": text}) for text in good] == [None] * len(good)
    assert [wrong((one,), {"x": text}) for text in bad] == [f"parameter 'x': {rule}"] * len(bad)


def test_a_value_that_is_too_long_for_its_pattern_is_refused_everywhere_alike() -> None:
    """What is counted are steps, not seconds."""
    declared = (Param("x", pattern="(.*)(.*)(.*)(.*)(.*)(.*)x"),)
    value = "".join(chr(0x4E00 + n) for n in range(5_000))
    assert wrong(declared, {"x": value}) == "parameter 'x': the value is too long for its pattern"


def test_what_a_newer_player_declares_is_left_to_it() -> None:
    """A conductor that does not know a type or a pattern lets the player say."""
    newer = (ParamEntry("x", "uuid"), ParamEntry("y", pattern="\\p{L}"))
    assert wrong(newer, {"x": "anything", "y": "anything"}) is None


def test_defaults_are_filled_in_where_nothing_is_said() -> None:
    declared = (Param("a", default="1"), Param("b", default="2"), Param("c"))
    assert complete(declared, {"b": "3"}) == {"a": "1", "b": "3"}
