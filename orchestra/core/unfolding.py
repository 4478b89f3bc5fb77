"""One word as many names: ``web[01-20]``. Pure; the system's group files are never looked at.

What a word stands for is counted before it is unfolded, so that a range bomb costs nothing. ClusterShell does the
unfolding; what it reads otherwise than a person would is refused.
"""

import re
from collections.abc import Iterator
from math import prod
from typing import Final, NamedTuple

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetException

from orchestra.errors import BadRequest

MOST_NAMES: Final = 100_000  # that one word may stand for
MOST_BRACKETS: Final = 4
LONGEST: Final = 10_000  # characters of a word

_RANGE: Final = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9})(?:/([0-9]{1,9}))?)?")
_OUTSIDE: Final = re.compile(r"[A-Za-z0-9._-]*")


class _Bracket(NamedTuple):
    before: str
    inside: str


def size(word: str) -> int:
    """How many names ``word`` stands for; a :class:`BadRequest` if that cannot be said, or is too many."""
    if "[" not in word and "]" not in word:
        return 1
    if len(word) > LONGEST:
        raise wrong(word, f"it has more than {LONGEST} characters; write several words")
    many = prod(_size(word, bracket) for bracket in _brackets(word))
    if many > MOST_NAMES:
        raise wrong(word, f"it stands for more than {MOST_NAMES} names")
    return many


def unfolded(word: str) -> tuple[str, ...]:
    """The names that ``word`` stands for; one without brackets is itself."""
    size(word)
    if "[" not in word:
        return (word,)
    try:
        return tuple(NodeSet(word, resolver=RESOLVER_NOGROUP))
    except (NodeSetException, ValueError) as problem:
        raise wrong(word, str(problem)) from None


def _brackets(word: str) -> Iterator[_Bracket]:
    before, *parts = word.split("[")
    if len(parts) > MOST_BRACKETS:
        raise wrong(word, f"it has more than {MOST_BRACKETS} ranges")
    for part in parts:
        inside, bracket, rest = part.partition("]")
        if not bracket:
            raise wrong(word, "a bracket is not closed")
        yield _Bracket(_outside(word, before), inside)
        before = rest
    _outside(word, before)


def _outside(word: str, text: str) -> str:
    if not _OUTSIDE.fullmatch(text):
        raise wrong(word, "outside of brackets there are only letters, digits, '.', '-' and '_'")
    return text


def _size(word: str, bracket: _Bracket) -> int:
    ranges = [_range(word, text.strip()) for text in bracket.inside.split(",")]
    widths = {len(bound) for first, last, _ in ranges for bound in (first, last)}
    if bracket.before[-1:].isdigit() and len(widths) > 1:
        # a1[8-12] is a[18-112] to ClusterShell, and a18, a19, a110 … to a person
        raise wrong(word, f"write the whole number into the brackets, not '{bracket.before[-9:]}[{bracket.inside}]'")
    return sum((int(last) - int(first)) // int(step) + 1 for first, last, step in ranges)


def _range(word: str, text: str) -> tuple[str, str, str]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise wrong(word, f"'{text[:40]}' is no range such as 1-20, 01-20 or 0-20/5")
    first, last, step = match[1], match[2] or match[1], match[3] or "1"
    if int(last) < int(first) or not int(step):
        raise wrong(word, f"the range '{text[:40]}' is empty")
    return first, last, step


def split(word: str, at: str) -> Iterator[tuple[str, str]]:
    """The parts of a word with the character of ``at`` that each stands behind, "" for the first; what is in brackets
    stays whole."""
    operator, start, depth = "", 0, 0
    for place, character in enumerate(word):
        depth += (character == "[") - (character == "]")
        if depth <= 0 and character in at:
            yield operator, word[start:place]
            operator, start = character, place + 1
    yield operator, word[start:]


def wrong(word: str, problem: str) -> BadRequest:
    """That ``word`` cannot be understood, and why."""
    shown = word if len(word) <= 80 else f"{word[:80]}…"
    return BadRequest(problem=f"'{shown}' is no target: {problem}")
