"""A groups file that is taken can be used, whatever is in it; a bad one is refused at once, with its line."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.groups import Groups, parse
from orchestra.core.targets import resolve
from orchestra.errors import BadRequest, LineProblem, NoTargetLeft, UnknownGroup, UnknownHosts

KNOWN = {f"{kind}{n}.example.org": n for n, kind in enumerate(["web", "db", "app"] * 3)}
DOMAIN = "example.org"
TEXT = """\
# by what they do
web: web[0,3,6]       # folded
db: db1 db4,db7
app: app2 app5
     app8             # goes on
backend: @db @app!app8
odd: @all!@web
some: @all&db[1-9/3]
rack1: web0 db1
rack2: web3
nobody:
"""


def named(*words: str, text: str = TEXT) -> list[str]:
    """The short names that words mean."""
    found = resolve(words, KNOWN, DOMAIN, parse(text, "groups", DOMAIN))
    return [name.partition(".")[0] for name in found]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["@web"], ["web0", "web3", "web6"]),
        (["@web", "db1"], ["db1", "web0", "web3", "web6"]),
        (["@app"], ["app2", "app5", "app8"]),
        (["@backend"], ["app2", "app5", "db1", "db4", "db7"]),
        (["@odd"], ["app2", "app5", "app8", "db1", "db4", "db7"]),
        (["@some"], ["db1", "db4", "db7"]),
        (["@all"], sorted(name.partition(".")[0] for name in KNOWN)),
        (["@rack[1-2]"], ["db1", "web0", "web3"]),
        (["@rack[1-2]&@web"], ["web0", "web3"]),
        (["@rack1^@rack2"], ["db1", "web0", "web3"]),
        (["@rack1^@web"], ["db1", "web3", "web6"]),
        (["@all!@web!@app"], ["db1", "db4", "db7"]),
        (["web[0-6/3],@rack1"], ["db1", "web0", "web3", "web6"]),
        (["WEB0,Db1.example.org"], ["db1", "web0"]),
    ],
)
def test_a_word_stands_for_hosts(words: list[str], names: list[str]) -> None:
    assert named(*words) == names


def test_a_group_of_every_player_follows_the_players() -> None:
    """What is kept of a group is not kept when the players have changed."""
    book = parse(TEXT, "groups", DOMAIN)
    before = resolve(["@odd"], KNOWN, DOMAIN, book)
    more = {**KNOWN, "new1.example.org": 9}
    assert set(resolve(["@odd"], more, DOMAIN, book)) == {*before, "new1.example.org"}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("@web,db1!db1", "it can be read in several ways; use --exclude"),
        ("@web!db1&db1", "with '!' and '&' in one word"),
        ("!web0", "something is missing beside '!'"),
        ("web0,", "something is missing beside ','"),
        ("web[0-3", "a bracket is not closed"),
        ("web1[8-12]", "write the whole number into the brackets"),
    ],
)
def test_what_can_be_read_in_several_ways_is_refused(word: str, says: str) -> None:
    with pytest.raises(BadRequest) as caught:
        named(word)
    assert says in caught.value.sentence


def test_an_unknown_group_is_told_with_the_nearest() -> None:
    with pytest.raises(UnknownGroup, match=r"no group '@wbe'; did you mean @web\?"):
        named("@wbe")
    with pytest.raises(UnknownGroup, match="there are @all, @app, @backend"):
        named("@mainframes")


def test_a_member_that_is_no_player_is_told_with_its_group() -> None:
    with pytest.raises(UnknownHosts, match=r"mainframe\.example\.org \(by @old\)"):
        named("@old", text="old: mainframe web0\n")


def test_nobody_is_never_everybody() -> None:
    with pytest.raises(NoTargetLeft, match="'@nobody' has nobody in it"):
        named("@nobody")
    with pytest.raises(NoTargetLeft):
        named("web0!@web")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("web: @db\ndb: @app x1\napp: x2 @web\n", 3, "a group is a member of itself: @web -> @db -> @app -> @web"),
        ("a: @b\nb: @c\nc: @b\n", 3, "a group is a member of itself: @b -> @c -> @b"),
        ("web: @web\n", 1, "a group is a member of itself: @web -> @web"),
        ("web: x1\n\n# more\nweb: x2\n", 4, "the group 'web' is already written on line 1"),
        ("web: x1\nall: x2\n", 2, "'all' is every player already"),
        ("web x1\n", 1, "expected 'name: members'"),
        ("we b: x1\n", 1, "expected 'name: members'"),
        ("  x1\n", 1, "goes on with a group"),
        ("web: x1\nsome: @wbe\n", 2, "did you mean @web?"),
        ("web: x[1-\n", 1, "a bracket is not closed"),
        ("web: x1\n     x2\nbad: x[1-999999999]\n", 3, "it stands for more than 100000 names"),
        ("".join(f"g{n}: x[1-90000]\n" for n in range(20)), 12, "the file stands for more than 1000000 names"),
        ("".join(f"g{n}: @g{n + 1}\n" for n in range(99)) + "g99: x\n", 50, "more than 50 deep"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(LineProblem) as caught:
        parse(text, "/etc/orchestra/groups", DOMAIN)
    assert caught.value.sentence.startswith(f"/etc/orchestra/groups, line {line}: ")
    assert says in caught.value.sentence


def test_a_great_knot_of_groups_is_refused_at_once() -> None:
    """Every group is in every other: 200 of them in a fraction of a second, and there is nothing to recurse into."""
    text = "".join(f"g{n}: " + " ".join(f"@g{m}" for m in range(200)) + "\n" for n in range(200))
    before = time.process_time()
    with pytest.raises(LineProblem, match="a group is a member of itself"):
        parse(text, "groups")
    assert time.process_time() - before < 5


NAMES = st.sampled_from(["a", "b", "c", "d"])
HOSTS = st.sampled_from(["web0", "db1", "app2", "web[0-6/3]"])
WORDS = st.lists(
    st.one_of(
        HOSTS, NAMES.map("@{}".format), st.tuples(HOSTS, HOSTS, st.sampled_from(",!&^")).map(lambda t: t[2].join(t[:2]))
    ),
    max_size=3,
)


@given(st.dictionaries(NAMES, WORDS), NAMES)
def test_what_a_file_is_taken_for_can_be_found_out(written: dict[str, list[str]], asked: str) -> None:
    """Either the file is refused, or every group of it stands for hosts: the same as by the plainest of definitions."""
    text = "".join(f"{name}: {' '.join(words)}\n" for name, words in written.items())
    try:
        book = parse(text, "groups", DOMAIN)
    except LineProblem:
        assert any("@" in word for words in written.values() for word in words)
        return
    if asked in written:
        assert set(book.members(asked, KNOWN)) == plainly(asked, written)


def plainly(name: str, written: dict[str, list[str]]) -> set[str]:
    """What a group stands for, word by word."""
    plain = Groups(default_domain=DOMAIN)
    found: set[str] = set()
    for word in written[name]:
        found |= plainly(word[1:], written) if word.startswith("@") else set(plain.hosts(word))
    return found
