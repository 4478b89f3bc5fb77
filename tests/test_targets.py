"""Words become known names, or a sentence; nothing is guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.targets import complete, first, resolve, without
from orchestra.errors import BadRequest, NoTargetLeft, UnknownGroup, UnknownHosts

KNOWN = frozenset({"web1.example.org", "web2.example.org", "db1.example.org", "localhost"})


@pytest.mark.parametrize(
    ("words", "domain", "names"),
    [
        (["web1.example.org"], "", ("web1.example.org",)),
        (["WEB1.Example.ORG"], "", ("web1.example.org",)),
        (["web1"], "example.org", ("web1.example.org",)),
        (["web1"], ".Example.org.", ("web1.example.org",)),
        (["web2", "web1", "web1.example.org", "WEB1"], "example.org", ("web1.example.org", "web2.example.org")),
        (["localhost"], "", ("localhost",)),
        (["web1.example.org."], "", ("web1.example.org",)),
    ],
)
def test_words_become_sorted_known_names_each_once(words: list[str], domain: str, names: tuple[str, ...]) -> None:
    assert resolve(words, KNOWN, domain) == names


def test_no_target_is_never_everything() -> None:
    with pytest.raises(BadRequest, match="no target"):
        resolve([], KNOWN)


@pytest.mark.parametrize(
    "word", ["", " ", "@web", "web[1-2]", "*", "web1", "web1.example.com", "web1.example.org\n\n.", "x" * 10_000]
)
def test_what_is_not_known_is_an_error_and_nothing_runs(word: str) -> None:
    with pytest.raises((UnknownHosts, UnknownGroup)):
        resolve([word, "web2.example.org"], KNOWN)


def test_the_nearest_name_is_offered() -> None:
    with pytest.raises(UnknownHosts, match=r"wbe1\.example\.org \(did you mean web1\.example\.org\?\)"):
        resolve(["wbe1"], KNOWN, "example.org")


def test_a_name_that_resembles_nothing_gets_no_suggestion() -> None:
    with pytest.raises(UnknownHosts) as caught:
        resolve(["mainframe.example.org"], KNOWN)
    assert "did you mean" not in caught.value.sentence


def test_many_unknown_names_are_counted_not_listed() -> None:
    with pytest.raises(UnknownHosts, match="and 90 more"):
        resolve([f"x{n}" for n in range(100)], KNOWN)


def test_a_request_cannot_name_more_than_there_can_be() -> None:
    """Words are counted together before any of them is unfolded."""
    with pytest.raises(BadRequest, match="more than 200000 hosts"):
        resolve([f"x{n}-[1-90000]" for n in range(10_000)], KNOWN)


def test_what_is_excluded_is_left_out() -> None:
    assert without(("db1", "web1", "web2"), {"web1", "app1"}) == ("db1", "web2")
    with pytest.raises(NoTargetLeft, match="all 2 of them are excluded"):
        without(("db1", "web1"), ("web1", "db1"))


def test_a_limit_takes_the_first_by_name() -> None:
    assert first(("db1", "web1", "web2"), 2) == ("db1", "web1")
    assert first(("db1", "web1"), 5) == ("db1", "web1")
    assert first(("db1", "web1"), None) == ("db1", "web1")
    with pytest.raises(BadRequest, match="from 1 on"):
        first(("db1",), 0)


PLAIN = st.text(max_size=20).filter(lambda word: not set(word) & set("[]@,!&^"))


@given(st.lists(PLAIN, min_size=1), st.sampled_from(["", "example.org"]))
def test_only_known_names_ever_come_out(words: list[str], domain: str) -> None:
    try:
        names = resolve(words, KNOWN, domain)
    except UnknownHosts:
        return
    assert set(names) <= KNOWN
    assert set(names) == {complete(word, domain) for word in words}
    assert list(names) == sorted(set(names))


@given(st.lists(st.text(alphabet="web12.-[]@,!&^ *", max_size=12), min_size=1, max_size=3))
def test_whatever_is_asked_for_is_known_names_or_a_refusal(words: list[str]) -> None:
    """Never nobody, never somebody else."""
    try:
        names = resolve(words, {"web1", "web2", "web12"})
    except (BadRequest, NoTargetLeft, UnknownGroup, UnknownHosts):
        return
    assert names
    assert set(names) <= {"web1", "web2", "web12"}
