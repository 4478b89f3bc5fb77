"""Patterns of parameters: the plain part of regular expressions, matched in time linear in the value.

``re`` backtracks, and has no limit: one pattern in one file could hang a conductor. Here a pattern becomes a small
machine that is in all its states at once, so nothing is ever tried twice, and every look at a state is paid for out
of a :class:`Budget`. What is counted is the same on every machine: who is refused here is refused everywhere.
Standard library only, for the stage's sake.

A pattern matches the whole value. It is made of characters, ``.``, ``[a-z]``, ``[^a-z]``, ``\\d \\w \\s`` (ASCII) and
``\\D \\W \\S``, groups ``( )`` or ``(?: )``, ``|``, ``* + ?`` and ``{m} {m,} {m,n}``. There is nothing to look back or
ahead with.
"""

from functools import lru_cache
from typing import Final, NamedTuple

LONGEST: Final = 500  # characters of a pattern
MOST_STEPS: Final = 1_000  # of its machine, repetitions written out
MOST_LOOKS: Final = 100_000  # at a state, for all values of one run together
_DEEPEST: Final = 20  # groups in groups
_MOST_REPEATS: Final = 500

_CLASSES: Final = {"d": "0-9", "w": "A-Za-z0-9_", "s": " \t\n\r\f\v"}
_CONTROLS: Final = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class BadPattern(ValueError):
    """It is no pattern, or one that takes too much; the text goes on after "the pattern"."""


class OutOfBudget(Exception):
    """The values are too long for these patterns."""


class Budget:
    """How many more looks at states may be taken."""

    def __init__(self, looks: int = MOST_LOOKS) -> None:
        self._left = looks

    def pay(self, looks: int) -> None:
        """Raise :class:`OutOfBudget` if that is more than is left."""
        self._left -= looks
        if self._left < 0:
            raise OutOfBudget


class Chars(NamedTuple):
    """A set of characters: these and what lies in these ranges, or all others."""

    singles: frozenset[str] = frozenset()
    ranges: tuple[tuple[str, str], ...] = ()
    others: bool = False

    def has(self, char: str) -> bool:
        inside = char in self.singles or any(low <= char <= high for low, high in self.ranges)
        return inside != self.others


class _Step(NamedTuple):
    """One step of a machine: take a character, or go on at other steps without taking any."""

    chars: Chars | None
    to: tuple[int, ...] = ()


class Pattern:
    """A pattern, ready to be matched."""

    def __init__(self, steps: list[_Step]) -> None:
        self._steps = steps  # past the last one, it has matched

    def matches(self, value: str, budget: Budget) -> bool:
        """Whether all of ``value`` is what the pattern describes."""
        here = self._spread([0], budget)
        known: dict[tuple[frozenset[int], str], frozenset[int]] = {}
        for char in value:
            budget.pay(1)
            there = known.get((here, char))
            if there is None:
                there = known[here, char] = self._after(here, char, budget)
            if not there:
                return False
            here = there
        return len(self._steps) in here

    def _after(self, here: frozenset[int], char: str, budget: Budget) -> frozenset[int]:
        budget.pay(len(here))
        steps = self._steps
        taken = [at + 1 for at in here if at < len(steps) and (chars := steps[at].chars) and chars.has(char)]
        return self._spread(taken, budget)

    def _spread(self, ahead: list[int], budget: Budget) -> frozenset[int]:
        """Where one is without taking a character: only steps that take one, and the end."""
        seen: set[int] = set()
        found: list[int] = []
        while ahead:
            at = ahead.pop()
            if at in seen:
                continue
            seen.add(at)
            if at == len(self._steps) or self._steps[at].chars is not None:
                found.append(at)
            else:
                ahead.extend(self._steps[at].to)
        budget.pay(len(seen))
        return frozenset(found)


@lru_cache(maxsize=512)
def compiled(pattern: str) -> Pattern:
    """The machine of ``pattern``; :class:`BadPattern` says what is wrong with it."""
    if len(pattern) > LONGEST:
        raise BadPattern(f"is longer than {LONGEST} characters")
    return Pattern(_Reader(pattern).all())


class _Reader:
    """Reads a pattern from left to right and writes the steps of its machine; jumps are relative until the end."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern.removeprefix("^")
        if self._text.endswith("$") and not _escaped(self._text):
            self._text = self._text[:-1]
        self._at = 0
        self._deep = 0

    def all(self) -> list[_Step]:
        steps = self._either()
        if self._at < len(self._text):
            raise BadPattern("has a ')' too many")
        return [step._replace(to=tuple(at + jump for jump in step.to)) for at, step in enumerate(steps)]

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        char = self._peek()
        self._at += 1
        return char

    def _either(self) -> list[_Step]:
        steps = self._row()
        while self._peek() == "|":
            self._take()
            other = self._row()
            fork, jump = _Step(None, (1, len(steps) + 2)), _Step(None, (len(other) + 1,))
            steps = _within([fork, *steps, jump, *other])
        return steps

    def _row(self) -> list[_Step]:
        steps: list[_Step] = []
        while self._peek() not in ("", "|", ")"):
            steps = _within(steps + self._repeated(self._piece()))
        return steps

    def _piece(self) -> list[_Step]:
        char = self._take()
        if char == "(":
            return self._group()
        if char == "[":
            return [_Step(self._set())]
        if char == "\\":
            return [_Step(self._escape())]
        if char == ".":
            return [_Step(Chars(frozenset("\n"), others=True))]
        if char in "*+?{":
            raise BadPattern(f"has a '{char}' with nothing to repeat before it")
        if char in "^$":
            raise BadPattern(f"has a '{char}' in the middle; it always matches the whole value")
        if char in "}]":
            raise BadPattern(f"has a '{char}' too many; write '\\{char}' for the character")
        return [_Step(Chars(frozenset(char)))]

    def _group(self) -> list[_Step]:
        if self._text.startswith("?", self._at):
            if not self._text.startswith("?:", self._at):
                raise BadPattern("has a '(?' that is no '(?:'; only plain groups are known")
            self._at += 2
        self._deep += 1
        if self._deep > _DEEPEST:
            raise BadPattern(f"has groups nested deeper than {_DEEPEST}")
        steps = self._either()
        if self._take() != ")":
            raise BadPattern("has a '(' that is not closed")
        self._deep -= 1
        return steps

    def _escape(self) -> Chars:
        char = self._take()
        if char.lower() in _CLASSES:
            inside = _class(_CLASSES[char.lower()])
            return inside._replace(others=char.isupper())
        return Chars(frozenset(self._literal(char)))

    @staticmethod
    def _literal(char: str) -> str:
        """The character that an escape means."""
        if char in _CONTROLS:
            return _CONTROLS[char]
        if not char or char.isalnum():
            raise BadPattern(f"has '\\{char}', which is not known here")
        return char

    def _set(self) -> Chars:
        others = self._peek() == "^"
        self._at += others
        singles: set[str] = set()
        ranges: list[tuple[str, str]] = []
        first = True
        while (char := self._take()) != "]" or first:
            first = False
            if char == "\\" and self._peek() in tuple("dws"):
                more = _class(_CLASSES[self._take()])
                singles |= more.singles
                ranges += more.ranges
                continue
            low = self._member(char)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._take()
                high = self._member(self._take())
                if high < low:
                    raise BadPattern(f"has the range '{low}-{high}', which is empty")
                ranges.append((low, high))
            else:
                singles.add(low)
        return Chars(frozenset(singles), tuple(ranges), others)

    def _member(self, char: str) -> str:
        if not char:
            raise BadPattern("has a '[' that is not closed")
        return self._literal(self._take()) if char == "\\" else char

    def _repeated(self, piece: list[_Step]) -> list[_Step]:
        least, most = self._times()
        if self._peek() and self._peek() in "*+?{":
            raise BadPattern("repeats a repetition; put it into a group")
        if len(piece) * max(least, most or 0) > MOST_STEPS:
            raise _too_large()
        steps = piece * least
        if most is None:
            # a loop: in or past it, and back to the fork
            return [*steps, _Step(None, (1, len(piece) + 2)), *piece, _Step(None, (-len(piece) - 1,))]
        for left in range(most - least, 0, -1):
            past = left * (len(piece) + 1)
            steps = [*steps, _Step(None, (1, past)), *piece]
        return steps

    def _times(self) -> tuple[int, int | None]:
        char = self._peek()
        if char == "{":
            return self._braces()
        if char and char in "*+?":
            self._take()
            return (1, None) if char == "+" else (0, None if char == "*" else 1)
        return 1, 1

    def _braces(self) -> tuple[int, int | None]:
        inside, closed, _ = self._text[self._at + 1 :].partition("}")
        least, comma, most = inside.partition(",")
        if not closed or not _is_count(least) or not (_is_count(most) or most == ""):
            raise BadPattern("has a '{' that does not begin {m}, {m,} or {m,n}")
        self._at += len(inside) + 2
        low = int(least)
        high = low if not comma else int(most) if most else None
        if max(low, high or 0) > _MOST_REPEATS:
            raise BadPattern(f"repeats more than {_MOST_REPEATS} times; 'max' limits the length")
        if high is not None and high < low:
            raise BadPattern(f"has '{{{inside}}}', where the most is less than the least")
        return low, high


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4


def _escaped(text: str) -> bool:
    """Whether the last character has a backslash of its own."""
    before = text[:-1]
    return (len(before) - len(before.rstrip("\\"))) % 2 == 1


def _class(text: str) -> Chars:
    ranges = tuple((text[at - 1], text[at + 1]) for at, char in enumerate(text) if char == "-")
    ends = {char for pair in ranges for char in pair}
    return Chars(frozenset(text) - ends - {"-"}, ranges)


def _within(steps: list[_Step]) -> list[_Step]:
    if len(steps) > MOST_STEPS:
        raise _too_large()
    return steps


def _too_large() -> BadPattern:
    return BadPattern("is too large; 'max' limits the length of a value")
