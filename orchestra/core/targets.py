"""The words of a request become a frozen list of players; every name must be known, and nothing is guessed.

A word is a host name, a folded name or a group, or several of these: ``a,b`` are both, ``a!b`` is a without b, ``a&b``
what is in both, ``a^b`` in one alone. What it stands for is found out by :mod:`orchestra.core.groups`.
"""

import difflib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from typing import Final

from orchestra.core import groups, where
from orchestra.core.folding import folded
from orchestra.core.groups import Groups, complete
from orchestra.errors import BadRequest, NoTargetLeft, Undecided, UnknownHosts

__all__ = ["complete", "first", "hosts", "matching", "resolve", "without"]

MAX_NAMED: Final = 10  # unknown names in one sentence
MAX_CORRECTED: Final = 3  # of them with a suggestion: looking for one takes time
MAX_COMPARED: Final = 2_000
MAX_FOLDED: Final = 100  # names of one kind
MAX_LABEL: Final = 63  # RFC 1035
MOST_NAMES: Final = 200_000  # that one request may name, groups not counted


def resolve(
    words: Collection[str], known: Collection[str], default_domain: str = "", book: Groups | None = None
) -> tuple[str, ...]:
    """The names of ``known`` that ``words`` mean, sorted, each once; :class:`UnknownHosts` if one is not known."""
    book = book or Groups(default_domain=default_domain)
    names = hosts(words, known, book)
    if not words:
        raise BadRequest(problem="no target: name at least one host")
    if not names:
        raise NoTargetLeft(why=f"{_quoted(words)} has nobody in it")
    unknown = sorted(name for name in names if name not in known)
    if unknown:
        raise UnknownHosts(names=_listed(unknown, known, words, book))
    return tuple(sorted(names))


def hosts(words: Collection[str], known: Collection[str], book: Groups) -> set[str]:
    """The full names that ``words`` stand for: known or not."""
    if groups.size(words, MOST_NAMES) > MOST_NAMES:
        raise BadRequest(problem=f"the request names more than {MOST_NAMES} hosts")
    found: set[str] = set()
    for word in words:
        found.update(book.hosts(word, known))
    return found


def without(names: tuple[str, ...], excluded: Collection[str]) -> tuple[str, ...]:
    """``names`` that are not ``excluded``; an error if nobody is left."""
    left = tuple(name for name in names if name not in excluded)
    if not left:
        raise NoTargetLeft(why=f"all {len(names)} of them are excluded")
    return left


def first(names: tuple[str, ...], limit: int | None) -> tuple[str, ...]:
    """The first ``limit`` of ``names``, which are sorted."""
    if limit is not None and limit < 1:
        raise BadRequest(problem="'limit' is a number of hosts from 1 on")
    return names[:limit]


def matching(node: where.Node, facts: Mapping[str, where.Facts]) -> tuple[str, ...]:
    """The names of whose facts the expression is true; an error if of somebody that cannot be said, or it is true of
    nobody."""
    true, undecided = where.sorted_out(node, facts)
    if undecided:
        many = sum(len(names) for names in undecided.values())
        who = "; ".join(f"{_gaps(gaps)} of {_some(names)}" for gaps, names in islice(undecided.items(), MAX_NAMED))
        raise Undecided(many=many, all=len(facts), who=who, hint=_other_fact(undecided, facts))
    if not true:
        raise NoTargetLeft(why=f"--where is true of none of the {len(facts)}{_instead(node, facts)}")
    return tuple(true)


def _gaps(gaps: Iterable[where.Unknown]) -> str:
    return " and ".join(f"{gap.fact}, which is '{gap.value[:40]}'," if gap.value else gap.fact for gap in gaps)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - MAX_FOLDED} more" if len(names) > MAX_FOLDED else ""
    return folded(names[:MAX_FOLDED]) + more


def _other_fact(undecided: Iterable[tuple[where.Unknown, ...]], facts: Mapping[str, where.Facts]) -> str:
    """A name that somebody may have meant by one that nobody has."""
    there = {fact for known in facts.values() for fact in known}
    missing = {gap.fact for gaps in undecided for gap in gaps if not gap.value} - there
    near = {name: difflib.get_close_matches(name, there, 1, 0.6) for name in sorted(missing)}
    said = [f"no target has a fact '{name}'; did you mean '{found[0]}'?" for name, found in near.items() if found]
    return f" And {said[0]}" if said else ""


def _instead(node: where.Node, facts: Mapping[str, where.Facts]) -> str:
    """What the facts that were asked for are."""
    fact = next(where.named(node))
    values = Counter(known[fact] for known in facts.values() if fact in known).most_common(MAX_CORRECTED)
    return f": {fact} is " + ", ".join(f"{value[:40]} ({many})" for value, many in values) if values else ""


def _quoted(words: Collection[str]) -> str:
    some = " ".join(islice(words, 3))
    return f"'{some[:80]}'" + (" and the like" if len(words) > 3 or len(some) > 80 else "")


def _listed(unknown: list[str], known: Collection[str], words: Collection[str], book: Groups) -> str:
    shown = [
        _shown(name) + (_nearest(name, known) or _origin(name, known, words, book) if n < MAX_CORRECTED else "")
        for n, name in enumerate(unknown[:MAX_NAMED])
    ]
    more = len(unknown) - MAX_NAMED
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _shown(name: str) -> str:
    return f"'{name[:80]}…'" if len(name) > 80 else name or "''"


def _nearest(name: str, known: Collection[str]) -> str:
    host = name[:MAX_LABEL].split(".")[0]
    labels = {other.split(".")[0]: other for other in islice(_similar(host, known), MAX_COMPARED)}
    near = difflib.get_close_matches(host, labels, 1, 0.7)
    return f" (did you mean {labels[near[0]]}?)" if near else ""


def _origin(name: str, known: Collection[str], words: Collection[str], book: Groups) -> str:
    """By which word a name came that nobody has written."""
    grouped = (word for word in words if "@" in word)
    return next((f" (by {word[:80]})" for word in grouped if name in book.hosts(word, known)), "")


def _similar(host: str, known: Collection[str]) -> Iterator[str]:
    """Names that are worth a closer look: their first label begins alike and is about as long."""
    for name in known:
        if name[:1] == host[:1] and abs(len(name.split(".")[0]) - len(host)) <= 1:
            yield name
