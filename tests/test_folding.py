"""Host names are folded without loss, in bounded time, and without a look at the system's groups."""

import subprocess
import sys

import pytest
from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.folding import FEW, folded

LABEL = st.from_regex(r"[a-z][a-z0-9]{0,3}(-[a-z0-9]{1,3})?", fullmatch=True)
NAMES = st.sets(st.lists(LABEL, min_size=1, max_size=3).map(".".join), min_size=1, max_size=30)


def unfolded(word: str) -> set[str]:
    return set(NodeSet(word, resolver=RESOLVER_NOGROUP))


@pytest.mark.parametrize(
    ("names", "word"),
    [
        ((), ""),
        (("web1",), "web1"),
        (("web3", "web1", "web2", "web1"), "web[1-3]"),
        (("web09.x.com", "web10.x.com", "db"), "db,web[09-10].x.com"),
        (("r1-h1", "r1-h2", "r2-h1", "r2-h2"), "r[1-2]-h[1-2]"),
    ],
)
def test_names_are_folded(names: tuple[str, ...], word: str) -> None:
    """Each once, in order, their zeros kept."""
    assert folded(names) == word


@given(NAMES)
def test_nothing_is_lost_by_folding(names: set[str]) -> None:
    """What ClusterShell reads from the word is what was folded."""
    assert unfolded(folded(names)) == names


@given(NAMES)
def test_nothing_is_lost_along_one_number(names: set[str]) -> None:
    """The same where there are many of them."""
    assert unfolded(folded(names, few=0)) == names


def test_many_names_are_one_word() -> None:
    """Along the number that shortens it most."""
    assert folded([f"web{n:05d}.dc1.example.com" for n in range(10_000)]) == "web[00000-09999].dc1.example.com"
    rows = [f"r{row}-h{host}" for row in range(2) for host in range(FEW)]
    assert folded(rows) == f"r0-h[0-{FEW - 1}],r1-h[0-{FEW - 1}]"


def test_names_that_do_not_fold_cost_no_more_than_others() -> None:
    """ClusterShell alone would take longer for them than any test may."""
    names = [f"h{n * 7919 % 99991}-{n * 104729 % 99991}.example.com" for n in range(10_000)]
    assert len(folded(names)) < 400_000


def test_no_group_file_is_looked_at() -> None:
    """The library is told so each time; reading one would be an open() that the kernel could show."""
    code = (
        "import sys; opened = []; sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e == 'open' else None)\n"
        "from orchestra.core.folding import folded\n"
        "folded(['web1', 'web2', *(f'db{n}' for n in range(200))])\n"
        "print([name for name in opened if 'groups' in name])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"
