"""A folded name stands for what ClusterShell and a person both read in it, and a bomb costs nothing."""

import time

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.unfolding import LONGEST, MOST_NAMES, size, split, unfolded
from orchestra.errors import BadRequest


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("web1", ["web1"]),
        ("@web", ["@web"]),
        ("web[1-3]", ["web1", "web2", "web3"]),
        ("web[08-11]", ["web08", "web09", "web10", "web11"]),
        ("web[1,4-5].example.org", ["web1.example.org", "web4.example.org", "web5.example.org"]),
        ("a[0-10/5]", ["a0", "a5", "a10"]),
        ("r[1-2]-[1-2]", ["r1-1", "r1-2", "r2-1", "r2-2"]),
        ("a1[2-3]0", ["a120", "a130"]),
    ],
)
def test_a_folded_name_is_unfolded(word: str, names: list[str]) -> None:
    assert sorted(unfolded(word)) == sorted(names)
    assert size(word) == len(names)


@pytest.mark.parametrize(
    "word",
    [
        "a[1-999999999]",
        "a[1-99999999999999999999]",
        "a[1-100000][1-100000]",
        "a99999999[0-10]",
        "a[1-5" + "0" * 1_000_000 + "]",
        "a[" + "1," * 500_000 + "1]",
        "a[" * 500_000,
        "[" * 1_000_000,
        "a[" + "1-9," * 2_000 + "1]" + "x" * LONGEST,
    ],
)
def test_a_bomb_is_refused_before_it_is_unfolded(word: str) -> None:
    """In milliseconds; the bound is for a machine that is busy with other things."""
    before = time.process_time()
    with pytest.raises(BadRequest) as caught:
        unfolded(word)
    assert time.process_time() - before < 0.5
    assert len(caught.value.sentence) < 400


@pytest.mark.parametrize(
    "word",
    [
        "a[",
        "a]",
        "a[]",
        "a[1",
        "a[1-2]]",
        "a[[1]]",
        "a[2-1]",
        "a[1-3/0]",
        "a[-1]",
        "a[1--2]",
        "a[1-2]*",
        "a[x]",
        "a[٣]",
        "a[1-03]",
    ],
)
def test_what_is_no_folded_name_is_refused(word: str) -> None:
    with pytest.raises(BadRequest, match="is no target"):
        unfolded(word)


RANGES = st.tuples(st.integers(0, 300), st.integers(0, 30), st.integers(1, 4), st.booleans()).map(
    lambda of: f"{of[0]:03}-{of[0] + of[1]:03}/{of[2]}" if of[3] and of[1] else f"{of[0]}-{of[0] + of[1]}"
)
FOLDED = st.lists(
    st.tuples(st.sampled_from(["a", "web-", ".x", "_"]), st.lists(RANGES, min_size=1, max_size=3)),
    min_size=1,
    max_size=2,
).map(lambda parts: "".join(f"{text}[{','.join(ranges)}]" for text, ranges in parts))


@given(FOLDED)
def test_it_is_counted_before_it_is_unfolded(word: str) -> None:
    """Never fewer are counted than come out, and what comes out is what ClusterShell says."""
    try:
        many = size(word)
    except BadRequest:
        return
    try:
        names = unfolded(word)
    except BadRequest:
        return  # ClusterShell's own refusal, of mixed padding for one
    assert len(names) <= many <= MOST_NAMES
    assert set(names) == set(NodeSet(word, resolver=RESOLVER_NOGROUP))


@given(st.text(alphabet="ab[]1,-!&^@/", max_size=30))
def test_hostile_words_are_names_or_refused(word: str) -> None:
    """Nothing but names, or the one error."""
    try:
        assert all(isinstance(name, str) for name in unfolded(word))
    except BadRequest:
        pass


@given(st.text(alphabet="ab[],!&^", max_size=30))
def test_splitting_loses_nothing(word: str) -> None:
    assert "".join(operator + part for operator, part in split(word, ",!&^")) == word
