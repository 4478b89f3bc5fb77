"""What --where asks is true, false or not known, and never one for another."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.where import Compared, Joined, Node, Not, Unknown, named, parse, sorted_out
from orchestra.errors import BadWhere

WEB = {"os": "debian", "release": "12", "cores": "8", "memory": "15989", "kernel": "6.1.0-18-amd64", "python": "3.11.2"}
WEB |= {"role": "web", "note": "a b", "load": "0.75", "rack": "007"}


@pytest.mark.parametrize(
    ("text", "truth"),
    [
        ("os=debian", True),
        ("os = 'debian'", True),
        ('note="a b"', True),
        ("os==debian", True),
        ("os!=debian", False),
        ("os=Debian", False),
        ("not os=debian", False),
        ("os=debian and role=web", True),
        ("os=debian and role=db", False),
        ("os=ubuntu or role=web", True),
        ("os=ubuntu or os=alpine and role=web", False),
        ("(os=ubuntu or os=debian) and role=web", True),
        ("not (os=ubuntu or role=db)", True),
        ("role in (db, web)", True),
        ("role not in (db,web)", False),
        ("role in ('web')", True),
        ("cores>=8", True),
        ("cores > 10", False),
        ("cores=8.0", True),
        ("cores in (4, 08)", True),
        ("rack=7", True),
        ("load<0.8", True),
        ("memory > 9000", True),
        ("python >= 3.9", True),
        ("python < 3.9", False),
        ("kernel > 6.1", False),
        ("kernel >= 6.1", True),
        ("kernel < 6.10", True),
        ("release=12", True),
        ("release=12.0", False),
        ("unknown=1", None),
        ("not unknown=1", None),
        ("unknown=1 and os=ubuntu", False),
        ("unknown=1 or os=debian", True),
        ("unknown=1 and os=debian", None),
        ("unknown!=1", None),
        ("role>3", None),
        ("role>3 or os=debian", True),
    ],
)
def test_an_expression_is_true_or_not_or_nobody_knows(text: str, truth: bool | None) -> None:
    assert parse(text).truth(WEB) is truth


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("os", "it ends where =, !="),
        ("os=", "it ends where a value is expected"),
        ("=debian", "'=' is where the name of a fact"),
        ("os=debian role=db", "'role' is where 'and' or 'or' is expected"),
        ("os=debian and", "it ends where the name of a fact is expected"),
        ("(os=debian", "it ends where ')' is expected"),
        ("os=debian)", "')' is where 'and' or 'or' is expected"),
        ("OS=debian", "'OS' is where the name of a fact, in small letters"),
        ("and=1", "'and' is where the name of a fact"),
        ("os in debian", "'debian' is where '(' is expected"),
        ("os not debian", "'debian' is where 'in' is expected"),
        ("os in ()", "')' is where a value is expected"),
        ("os < debian", "'os <' compares with a number, not 'debian'"),
        ("kernel >= new", "'kernel >=' compares with a version such as 6.1, not 'new'"),
        ("os='debian", '"\'" means nothing here'),
        ("os !debian", "'!' means nothing here"),
        ("os < > 1", "'>' is where a value is expected"),
        ("'os'=debian", "'os' is where the name of a fact"),
    ],
)
def test_what_is_no_expression_gets_a_sentence(text: str, says: str) -> None:
    with pytest.raises(BadWhere) as caught:
        parse(text)
    assert says in caught.value.sentence


HOSTILE = ["(" * 4_000, "not " * 1_000, "(" * 500_000, "os=a or " * 400 + "os=b", "x" * 1_000_000, "a=" + "'" * 999_999]
NESTED = ["os in (" + "a," * 1_900 + "a)", "(os=a and " * 300 + "os=b" + ")" * 300]


@pytest.mark.parametrize("text", [*HOSTILE, *NESTED])
def test_a_hostile_expression_is_refused_at_once(text: str) -> None:
    before = time.process_time()
    with pytest.raises(BadWhere) as caught:
        parse(text)
    assert time.process_time() - before < 0.5
    assert len(caught.value.sentence) < 300


def test_hosts_are_told_apart_by_what_is_not_known_of_them() -> None:
    facts = {
        "a": WEB,
        "b": {"os": "debian"},
        "c": {},
        "d": {"os": "ubuntu"},
        "e": {"os": "debian", "role": "x"},
        "f": WEB,
    }
    true, undecided = sorted_out(parse("os=debian and role=web"), facts)
    assert true == ["a", "f"]
    assert undecided == {(Unknown("role"),): ["b"], (Unknown("os"), Unknown("role")): ["c"]}


# ---- any expression

FACTS = st.sampled_from(["os", "role", "cores"])
VALUES = st.sampled_from(["debian", "web", "4", "8"])
LEAVES = st.one_of(
    st.builds(Compared, FACTS, st.sampled_from(["=", "!="]), st.tuples(VALUES)),
    st.builds(Compared, FACTS, st.sampled_from(["in", "not in"]), st.lists(VALUES, min_size=1, max_size=3).map(tuple)),
    st.builds(Compared, st.just("cores"), st.sampled_from(["<", ">="]), st.tuples(st.sampled_from(["4", "8"]))),
)
NODES: st.SearchStrategy[Node] = st.recursive(
    LEAVES,
    lambda some: st.one_of(
        st.builds(Not, some), st.builds(Joined, st.booleans(), st.lists(some, min_size=2, max_size=3).map(tuple))
    ),
    max_leaves=8,
)
KNOWN = st.dictionaries(FACTS, VALUES)


def written(node: Node) -> str:
    """An expression in words."""
    if isinstance(node, Not):
        return f"not ({written(node.one)})"
    if isinstance(node, Joined):
        return (" or " if node.decides else " and ").join(f"({written(one)})" for one in node.some)
    if "in" in node.operator:
        return f"{node.fact} {node.operator} ({', '.join(node.values)})"
    return f"{node.fact} {node.operator} '{node.values[0]}'"


@given(NODES, KNOWN)
def test_what_is_written_is_what_is_read(node: Node, facts: dict[str, str]) -> None:
    read = parse(written(node))
    assert read.truth(facts) is node.truth(facts)
    assert set(named(read)) == set(named(node))


def completions(facts: dict[str, str]) -> Iterator[dict[str, str]]:
    """Every way in which the facts that are not known might be."""
    missing = [fact for fact in ("os", "role", "cores") if fact not in facts]
    if not missing:
        yield facts
        return
    for value in ("debian", "web", "4", "8", "other"):
        yield from completions(facts | {missing[0]: value})


@given(NODES, KNOWN)
def test_a_truth_that_is_known_stays_so_whatever_else_comes_to_be_known(node: Node, facts: dict[str, str]) -> None:
    """Nothing is matched by not knowing: what is true of a host is true of it whatever its unknown facts are."""
    truth = node.truth(facts)
    if truth is not None:
        assert {node.truth(more) for more in completions(facts)} <= {truth, None}


@given(NODES, KNOWN)
def test_what_is_not_known_is_named(node: Node, facts: dict[str, str]) -> None:
    """If a truth is not known, it is for the sake of a fact that there is not, or that is no number."""
    gaps = list(node.gaps(facts))
    assert (node.truth(facts) is None) == bool(gaps)
    for gap in gaps:
        assert gap.value == facts.get(gap.fact, "")


@given(st.text(alphabet="osrle=!<>()and notir,'\"0123", max_size=60))
def test_any_text_is_an_expression_or_refused(text: str) -> None:
    try:
        parse(text).truth(WEB)
    except BadWhere:
        pass
