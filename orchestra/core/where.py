"""What ``--where`` asks of a host's facts: ``os=debian and not role in (db, cache)``. Pure.

A truth has three values: what is asked of a fact that is not known is neither true nor false, and an expression is
that only if it depends on it (Kleene's strong logic). Nothing is matched by not knowing.

    expression := all ('or' all)*
    all        := one ('and' one)*
    one        := 'not' one | '(' expression ')' | FACT OPERATOR VALUE | FACT ['not'] 'in' '(' VALUE (',' VALUE)* ')'
    OPERATOR   := '=' | '!=' | '<' | '<=' | '>' | '>='
"""

import re
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from operator import ge, gt, le, lt
from typing import Any, Final, NamedTuple, NoReturn

from orchestra.errors import BadWhere

LONGEST: Final = 4_096
DEEPEST: Final = 32
MOST_VALUES: Final = 200
VERSIONS: Final = frozenset({"release", "kernel", "python"})
"""Facts of which 3.9 comes before 3.11."""

_TOKEN: Final = re.compile(r"""\s*(?:(==|!=|<=|>=|[=<>(),])|'([^']*)'|"([^"]*)"|([^\s'"=!<>(),]+)|(\S))""")
_FACT: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?")
_VERSION: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})*")
_ORDER: Final[Mapping[str, Callable[[Any, Any], bool]]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
_WORDS: Final = ("and", "or", "not", "in")

Facts = Mapping[str, str]
NOTHING: Final[Facts] = {}


class Unknown(NamedTuple):
    """Why a truth is not known: which fact, and what is wrong with it; "" if there is none of that name."""

    fact: str
    value: str = ""


class Compared(NamedTuple):
    """``FACT OPERATOR VALUE``, or ``in`` several."""

    fact: str
    operator: str
    values: tuple[str, ...]

    def truth(self, facts: Facts) -> bool | None:
        value = facts.get(self.fact)
        if value is None:
            return None
        if self.operator in _ORDER:
            return _ordered(self.fact, value, self.operator, self.values[0])
        found = any(_equal(self.fact, value, wanted) for wanted in self.values)
        return found if self.operator in ("=", "in") else not found

    def gaps(self, facts: Facts) -> Iterator[Unknown]:
        if self.truth(facts) is None:
            yield Unknown(self.fact, facts.get(self.fact, ""))


class Not(NamedTuple):
    """The opposite; of what is not known, not known."""

    one: "Node"

    def truth(self, facts: Facts) -> bool | None:
        truth = self.one.truth(facts)
        return None if truth is None else not truth

    def gaps(self, facts: Facts) -> Iterator[Unknown]:
        return self.one.gaps(facts)


class Joined(NamedTuple):
    """All of these (``decides`` is False), or any (True): one that decides is enough, whatever the others are."""

    decides: bool
    some: tuple["Node", ...]

    def truth(self, facts: Facts) -> bool | None:
        known = True
        for one in self.some:
            truth = one.truth(facts)
            if truth is self.decides:
                return truth
            known = known and truth is not None
        return (not self.decides) if known else None

    def gaps(self, facts: Facts) -> Iterator[Unknown]:
        if self.truth(facts) is None:
            for one in self.some:
                yield from one.gaps(facts)


Node = Compared | Not | Joined


def _equal(fact: str, value: str, wanted: str) -> bool:
    if fact not in VERSIONS and _NUMBER.fullmatch(value) and _NUMBER.fullmatch(wanted):
        return Decimal(value) == Decimal(wanted)
    return value == wanted


def _ordered(fact: str, value: str, operator: str, wanted: str) -> bool | None:
    key = _version if fact in VERSIONS else _number
    mine, theirs = key(value), key(wanted)
    return None if mine is None else _ORDER[operator](mine, theirs)


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.fullmatch(text) else None


def _version(text: str) -> tuple[int, ...] | None:
    """The numbers that ``text`` begins with, part by part: 6.1.0-18-amd64 is 6.1."""
    match = _VERSION.match(text)
    if match is None:
        return None
    parts = [int(part) for part in match[0].split(".")]
    while len(parts) > 1 and not parts[-1]:
        parts.pop()
    return tuple(parts)


# ---- reading it


def parse(text: str) -> Node:
    """The expression in ``text``; :class:`BadWhere` says what it cannot be."""
    if len(text) > LONGEST:
        raise BadWhere(problem=f"it has {len(text)} characters, and at most {LONGEST} are read")
    return _Parser(text).whole()


class _Parser:
    def __init__(self, text: str) -> None:
        self._tokens = [_token(match) for match in _TOKEN.finditer(text) if match[0].strip()]
        self._at = 0
        self._values = 0

    def whole(self) -> Node:
        if not self._tokens:
            raise BadWhere(problem="it is empty")
        found = self._any(0)
        if self._at < len(self._tokens):
            self._unexpected("'and' or 'or'")
        return found

    def _any(self, depth: int) -> Node:
        return self._joined("or", True, self._all, depth)

    def _all(self, depth: int) -> Node:
        return self._joined("and", False, self._one, depth)

    def _joined(self, word: str, decides: bool, part: Callable[[int], Node], depth: int) -> Node:
        some = [part(depth)]
        while self._take(word):
            some.append(part(depth))
        return some[0] if len(some) == 1 else Joined(decides, tuple(some))

    def _one(self, depth: int) -> Node:
        if depth > DEEPEST:
            raise BadWhere(problem=f"it is nested more than {DEEPEST} deep")
        if self._take("not"):
            return Not(self._one(depth + 1))
        if self._take("("):
            found = self._any(depth + 1)
            self._need(")")
            return found
        return self._compared()

    def _compared(self) -> Node:
        fact = self._fact()
        if self._take("not"):
            self._need("in")
            return Compared(fact, "not in", self._several())
        if self._take("in"):
            return Compared(fact, "in", self._several())
        kind, operator = self._next("=, !=, <, <=, >, >= or in")
        if kind != "sign" or operator in "(),":
            self._back("=, !=, <, <=, >, >= or in")
        operator = "=" if operator == "==" else operator
        return self._checked(Compared(fact, operator, (self._value(),)))

    def _fact(self) -> str:
        kind, text = self._next("the name of a fact")
        if kind != "word" or text in _WORDS or not _FACT.fullmatch(text):
            self._back("the name of a fact, in small letters")
        return text

    def _several(self) -> tuple[str, ...]:
        self._need("(")
        values = [self._value()]
        while self._take(","):
            values.append(self._value())
        self._need(")")
        return tuple(values)

    def _value(self) -> str:
        kind, text = self._next("a value")
        if kind == "sign":
            self._back("a value")
        self._values += 1
        if self._values > MOST_VALUES:
            raise BadWhere(problem=f"it compares with more than {MOST_VALUES} values")
        return text

    @staticmethod
    def _checked(one: Compared) -> Compared:
        if one.operator in _ORDER:
            version = one.fact in VERSIONS
            if not (_VERSION if version else _NUMBER).fullmatch(one.values[0]):
                what = "a version such as 6.1" if version else "a number"
                raise BadWhere(problem=f"'{one.fact} {one.operator}' compares with {what}, not '{one.values[0][:40]}'")
        return one

    # tokens

    def _next(self, wanted: str) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise BadWhere(problem=f"it ends where {wanted} is expected")
        self._at += 1
        return self._tokens[self._at - 1]

    def _back(self, wanted: str) -> NoReturn:
        self._at -= 1
        self._unexpected(wanted)

    def _unexpected(self, wanted: str) -> NoReturn:
        raise BadWhere(problem=f"'{self._tokens[self._at][1][:40]}' is where {wanted} is expected")

    def _take(self, text: str) -> bool:
        kind = "sign" if text in "()," else "word"
        found = self._at < len(self._tokens) and self._tokens[self._at] == (kind, text)
        self._at += found
        return found

    def _need(self, text: str) -> None:
        if not self._take(text):
            self._next(f"'{text}'")
            self._back(f"'{text}'")


def _token(match: "re.Match[str]") -> tuple[str, str]:
    sign, single, double, word, other = match.groups()
    if other is not None:
        raise BadWhere(problem=f"{other!a} means nothing here; put values with such characters in quotes")
    if sign is not None:
        return "sign", sign
    return ("word", word) if word is not None else ("quoted", single if single is not None else double)


def named(node: Node) -> Iterator[str]:
    """The facts that an expression asks for."""
    if isinstance(node, Compared):
        yield node.fact
    else:
        for one in (node.one,) if isinstance(node, Not) else node.some:
            yield from named(one)


def sorted_out(node: Node, facts: Mapping[str, Facts]) -> tuple[list[str], dict[tuple[Unknown, ...], list[str]]]:
    """Of whose facts (by name) the expression is true, in their order; and those of whom that cannot be said, by what
    is unknown. Whoever shares the facts of another is looked at once."""
    truths: dict[int, bool | None] = {}
    true: list[str] = []
    undecided: dict[tuple[Unknown, ...], list[str]] = {}
    for name, theirs in facts.items():
        if id(theirs) not in truths:
            truths[id(theirs)] = node.truth(theirs)
        truth = truths[id(theirs)]
        if truth:
            true.append(name)
        elif truth is None:
            undecided.setdefault(tuple(dict.fromkeys(node.gaps(theirs))), []).append(name)
    return true, undecided
