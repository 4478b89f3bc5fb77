"""Patterns: the same language as ``re``'s, without its patience."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.parameters.patterns import BadPattern, Budget, OutOfBudget, compiled

ATOMS = st.sampled_from(
    ["a", "b", ".", "[ab]", "[^a]", "[^b-c.]", "[]a]", "[a-]", "\\d", "\\w", "\\S", "\\.", "[\\d_]", "é"]
)
TIMES = st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}", "{1,3}", "{0}"])
PATTERNS = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("({0[0]}|{0[1]})".format),
        st.tuples(inner, TIMES).map("(?:{0[0]}){0[1]}".format),
    ),
    max_leaves=8,
)


def matches(pattern: str, value: str) -> bool:
    return compiled(pattern).matches(value, Budget())


@settings(max_examples=1000, deadline=None)
@given(PATTERNS, st.text("abc.1_-]é\n", max_size=10))
def test_a_pattern_means_what_it_means_everywhere(pattern: str, value: str) -> None:
    """Python's own engine agrees."""
    assert matches(pattern, value) == bool(re.fullmatch(pattern, value, re.ASCII))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("^[a-z]+$", "abc", "abc1"),
        ("a|bc", "bc", "ac"),
        ("cost\\$", "cost$", "cost"),
        ("[^\\s]+", "a", "a b"),
        ("", "", "a"),
        ("(a|)b{2,3}", "bbb", "abbbb"),
        ("[0-9]{1,3}(\\.[0-9]{1,3}){3}", "10.0.0.1", "10.0.0"),
        ("[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", "web-1.example.org", "-web"),
    ],
)
def test_the_whole_value_is_meant(pattern: str, good: str, bad: str) -> None:
    assert matches(pattern, good) and not matches(pattern, bad)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("(", "has a '(' that is not closed"),
        (")", "has a ')' too many"),
        ("[a", "has a '[' that is not closed"),
        ("*a", "has a '*' with nothing to repeat before it"),
        ("a**", "repeats a repetition; put it into a group"),
        ("a*?", "repeats a repetition; put it into a group"),
        ("a{x}", "has a '{' that does not begin {m}, {m,} or {m,n}"),
        ("a{3,2}", "has '{3,2}', where the most is less than the least"),
        ("a{501}", "repeats more than 500 times; 'max' limits the length"),
        ("(a{500}){500}", "is too large; 'max' limits the length of a value"),
        ("[z-a]", "has the range 'z-a', which is empty"),
        ("a^b", "has a '^' in the middle; it always matches the whole value"),
        ("(a)\\1", "has '\\1', which is not known here"),
        ("\\bx", "has '\\b', which is not known here"),
        ("(?i)a", "has a '(?' that is no '(?:'; only plain groups are known"),
        ("a}", "has a '}' too many; write '\\}' for the character"),
        ("\\", "has '\\', which is not known here"),
        ("(" * 21 + ")" * 21, "has groups nested deeper than 20"),
        ("a" * 501, "is longer than 500 characters"),
    ],
)
def test_what_is_no_pattern_is_told_why(pattern: str, says: str) -> None:
    with pytest.raises(BadPattern) as caught:
        compiled(pattern)
    assert str(caught.value) == says


@settings(max_examples=300, deadline=None)
@given(st.text("ab()[]{}|*+?\\^$-,.123dw", max_size=30))
def test_any_text_is_a_pattern_or_told_why_not(pattern: str) -> None:
    try:
        matches(pattern, "ab")
    except BadPattern:
        pass


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("(a*)*b", "a" * 16_000),
        ("(a|aa)+c", "a" * 16_000),
        ("(a?){250}a{250}", "a" * 250),
        ("(.*)(.*)(.*)(.*)(.*)(.*)x", "".join(chr(256 + n) for n in range(5_000))),
    ],
)
def test_nothing_is_tried_twice(pattern: str, value: str) -> None:
    """Each of these keeps ``re`` busy for longer than anybody waits."""
    begun = time.process_time()
    try:
        matches(pattern, value)
    except OutOfBudget:
        pass
    assert time.process_time() - begun < 0.5
