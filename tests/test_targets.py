"""Words become known names, or a sentence; nothing is guessed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.targets import complete, resolve
from orchestra.errors import BadRequest, UnknownHosts

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
    with pytest.raises(UnknownHosts):
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


@given(st.lists(st.text(max_size=20), min_size=1), st.sampled_from(["", "example.org"]))
def test_only_known_names_ever_come_out(words: list[str], domain: str) -> None:
    try:
        names = resolve(words, KNOWN, domain)
    except UnknownHosts:
        return
    assert set(names) <= KNOWN
    assert set(names) == {complete(word, domain) for word in words}
    assert list(names) == sorted(set(names))
