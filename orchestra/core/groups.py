"""Groups of players, as the ``groups`` file names them: ``name: members``. Pure.

A member is whatever a target may be: a host, a folded name, another group. What a group stands for is found out when
it is asked for, and then kept; that this can be done is made sure of when the file is read.
"""

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from orchestra.core import unfolding
from orchestra.errors import BadRequest, LineProblem, UnknownGroup

ALL: Final = "all"
"""Every player there is; no file defines it."""

MOST_NAMES: Final = 1_000_000  # that the words of a file may stand for
DEEPEST: Final = 50  # groups in groups

_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,62}")
_OPERATORS: Final = ",!&^"
_SPECIAL: Final = re.compile(r"[][@,!&^]")


class Group(NamedTuple):
    """A group as it is written."""

    line: int
    words: tuple[str, ...]


class Groups:
    """The groups of a file, in which every group that is named exists and none is in itself."""

    def __init__(self, written: Mapping[str, Group] | None = None, default_domain: str = "") -> None:
        self._written = dict(written or {})
        self._default_domain = default_domain
        self._known: dict[str, frozenset[str]] = {}  # so far, while everybody is this
        self._everybody: Collection[str] = ()

    def __len__(self) -> int:
        return len(self._written)

    def __iter__(self) -> Iterator[str]:
        return iter(self._written)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Groups) and self._said == other._said

    __hash__ = None  # type: ignore[assignment]  # it is no key of anything

    @property
    def _said(self) -> dict[str, tuple[str, ...]]:
        return {name: group.words for name, group in self._written.items()}

    def members(self, name: str, everybody: Collection[str] = ()) -> frozenset[str]:
        """The full names of the hosts in a group; in :data:`ALL`, ``everybody``."""
        if name == ALL:
            return frozenset(everybody)
        if name not in self._written:
            raise UnknownGroup(name=name[:80], hint=_nearest(name, self._written))
        if self._everybody is not everybody:
            self._known, self._everybody = {}, everybody
        if name not in self._known:
            words = self._written[name].words
            self._known[name] = frozenset().union(*(self.hosts(word, everybody) for word in words))
        return self._known[name]

    def hosts(self, word: str, everybody: Collection[str] = ()) -> Collection[str]:
        """The full names of the hosts that ``word`` stands for: known players or not."""
        if not _SPECIAL.search(word):
            return (complete(word, self._default_domain),)
        found: set[str] = set()
        for operator, operand in operands(word):
            _COMBINE[operator](found, self._operand(operand, everybody))
        return found

    def _operand(self, operand: str, everybody: Collection[str]) -> set[str]:
        if operand.startswith("@"):
            return set().union(*(self.members(name, everybody) for name in unfolding.unfolded(operand[1:])))
        return {complete(name, self._default_domain) for name in unfolding.unfolded(operand)}


_COMBINE: Final[Mapping[str, Callable[[set[str], set[str]], object]]] = {
    "": set.update,
    ",": set.update,
    "!": set.difference_update,
    "&": set.intersection_update,
    "^": set.symmetric_difference_update,
}


def complete(word: str, default_domain: str = "") -> str:
    """``word`` in lower case, with the default domain if it has none."""
    name = word.strip().lower().removesuffix(".")
    domain = default_domain.strip(".").lower()
    return f"{name}.{domain}" if name and domain and "." not in name else name


def operands(word: str, longest: int | None = unfolding.LONGEST) -> list[tuple[str, str]]:
    """What a word combines, each with the operator it stands behind. Of one kind only: what ``a,b!c`` means depends
    on who reads it."""
    if longest is not None and len(word) > longest:
        raise unfolding.wrong(word, f"it has more than {unfolding.LONGEST} characters; write several words")
    parts = [(operator, part.strip()) for operator, part in unfolding.split(word, _OPERATORS)]
    kinds = {operator for operator, _ in parts if operator}
    if len(kinds) > 1:
        several = " and ".join(f"'{kind}'" for kind in sorted(kinds))
        raise unfolding.wrong(word, f"with {several} in one word it can be read in several ways; use --exclude")
    if len(parts) > 1 and not all(part for _, part in parts):
        raise unfolding.wrong(word, f"something is missing beside '{kinds.pop()}'")
    return parts


def size(words: Iterable[str], most: int = MOST_NAMES) -> int:
    """How many names ``words`` stand for, not counting the members of groups; more than ``most`` are not counted to the
    end."""
    many = 0
    for word in words:
        if not _SPECIAL.search(word):
            many += 1
        else:
            many += sum(unfolding.size(operand.removeprefix("@")) for _, operand in operands(word))
        if many > most:
            break
    return many


# ---- the file


def parse(text: str, file: str, default_domain: str = "") -> Groups:
    """The groups in ``text``, which is that of ``file``: ``name: members``, one group a line. Lines that begin with a
    blank go on with the group above; ``#`` begins a comment."""
    written: dict[str, Group] = {}
    for number, name, words in _entries(text, file):
        if name in written:
            problem = f"the group '{name}' is already written on line {written[name].line}"
            raise LineProblem(file=file, line=number, problem=problem)
        written[name] = Group(number, words)
    _check(written, file)
    return Groups(written, default_domain)


def _entries(text: str, file: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    entry: tuple[int, str, list[str]] | None = None
    for number, raw in enumerate(text.split("\n"), 1):
        line = raw.partition("#")[0].rstrip()
        if not line:
            continue
        if line[0].isspace():
            if entry is None:
                raise LineProblem(
                    file=file, line=number, problem="a line that begins with a blank goes on with a group"
                )
            entry[2].extend(line.split())
            continue
        if entry is not None:
            yield entry[0], entry[1], tuple(entry[2])
        name, colon, rest = line.partition(":")
        entry = number, _name(name.strip(), bool(colon), file, number), rest.split()
    if entry is not None:
        yield entry[0], entry[1], tuple(entry[2])


def _name(name: str, colon: bool, file: str, line: int) -> str:
    if not colon or not _NAME.fullmatch(name):
        problem = f"expected 'name: members', and a name of letters, digits and . _ -, not {name[:40]!a}"
        raise LineProblem(file=file, line=line, problem=problem)
    if name == ALL:
        raise LineProblem(file=file, line=line, problem=f"'{ALL}' is every player already; choose another name")
    return name


def _check(written: Mapping[str, Group], file: str) -> None:
    """See that whatever is written can be found out, and at no great cost."""
    inside = {name: _checked(group, written, file) for name, group in written.items()}
    many = 0
    for group in written.values():
        many += size(group.words)
        if many > MOST_NAMES:
            raise LineProblem(file=file, line=group.line, problem=f"the file stands for more than {MOST_NAMES} names")
    depth: dict[str, int] = {}
    for name in written:
        _descend(name, inside, depth, written, file)


def _checked(group: Group, written: Mapping[str, Group], file: str) -> tuple[str, ...]:
    """The groups that are members of a group."""
    found: list[str] = []
    try:
        for word in group.words:
            if not _SPECIAL.search(word):
                continue
            for _, operand in operands(word):
                unfolding.size(operand.removeprefix("@"))
                found += unfolding.unfolded(operand[1:]) if operand.startswith("@") else ()
        for name in found:
            if name != ALL and name not in written:
                raise UnknownGroup(name=name[:80], hint=_nearest(name, written))
    except (BadRequest, UnknownGroup) as problem:
        raise LineProblem(file=file, line=group.line, problem=problem.sentence) from None
    return tuple(dict.fromkeys(name for name in found if name != ALL))


def _descend(
    first: str, inside: Mapping[str, tuple[str, ...]], depth: dict[str, int], written: Mapping[str, Group], file: str
) -> None:
    """Find out how deep groups are in ``first``, and that it is not in itself."""
    way: dict[str, Iterator[str]] = {}
    ahead = first if first not in depth else ""
    while ahead or way:
        if ahead:
            way[ahead] = iter(inside[ahead])
        here = next(reversed(way))
        ahead = next((name for name in way[here] if name not in depth), "")
        if ahead in way:
            names = list(way)
            cycle = " -> ".join(f"@{name}" for name in [*names[names.index(ahead) :], ahead])
            raise LineProblem(file=file, line=written[here].line, problem=f"a group is a member of itself: {cycle}")
        if not ahead:
            del way[here]
            depth[here] = 1 + max((depth[name] for name in inside[here]), default=0)
            if depth[here] > DEEPEST:
                raise LineProblem(
                    file=file, line=written[here].line, problem=f"groups in groups, more than {DEEPEST} deep"
                )


def _nearest(name: str, written: Collection[str]) -> str:
    near = difflib.get_close_matches(name[:64], written, 1, 0.6)
    return f"did you mean @{near[0]}?" if near else f"there are {_listed(written)}."


def _listed(written: Collection[str]) -> str:
    names = [ALL, *sorted(written)]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(f"@{name}" for name in names[:10]) + more
