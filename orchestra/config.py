"""Every ``.conf`` file has one syntax, and every key is declared once, with its type, default and a sentence.

``key = value`` lines, ``#`` comments on lines of their own, then optional ``[title]`` sections. Standard library
only: the stage reads score files with it. Which keys there are is said by :mod:`orchestra.settings` (the daemons)
and :mod:`orchestra.player.scorefile` (scores).
"""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from orchestra.errors import ConfigError, FileProblem

MAX_FILE: Final = 256 * 1024
COMMAND_LINE: Final = "command line"


class Key(NamedTuple):
    """One key: how its text becomes a value, its default as it would be written, and what it means."""

    name: str
    parse: Callable[[str], Any]  # raises ValueError with the rest of the sentence
    default: str | None  # None: it must be written
    meaning: str


class Entry(NamedTuple):
    """A ``key = value`` line."""

    line: int
    key: str
    value: str


class Section(NamedTuple):
    """The entries under a ``[title]``; the first section of a file has the title ``""``."""

    title: str
    line: int
    entries: tuple[Entry, ...]


class Parsed(NamedTuple):
    """The values of a section, and the line each was written on (0: it is the default, or from the command line)."""

    file: str
    values: dict[str, Any]
    lines: dict[str, int]
    overridden: frozenset[str] = frozenset()

    def error(self, key: str, problem: str) -> ConfigError:
        """An error about ``key`` that names where it was written."""
        file = COMMAND_LINE if key in self.overridden else self.file
        return ConfigError(file=file, line=self.lines.get(key, 0), key=key, problem=problem)


def read_text(file: str, most: int = MAX_FILE) -> str:
    """The text of a configuration file of at most ``most`` bytes, or a :class:`FileProblem` that says why not."""
    try:
        with open(file, "rb") as stream:
            raw = stream.read(most + 1)
    except OSError as problem:
        raise FileProblem(file=file, problem=f"cannot be read: {os.strerror(problem.errno or 0)}") from None
    if len(raw) > most:
        raise FileProblem(file=file, problem=f"is larger than {most >> 10} KiB; this is not one of our files")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FileProblem(file=file, problem="is not UTF-8 text") from None


def sections(file: str, text: str) -> tuple[Section, ...]:
    """The sections of ``text``, the untitled one first."""
    found: list[tuple[str, int, list[Entry]]] = [("", 1, [])]
    for number, raw in enumerate(text.split("\n"), 1):  # as editors count; splitlines() also cuts at U+2028 and others
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("[") and line.endswith("]"):
            found.append((line[1:-1].strip(), number, []))
            continue
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not key:
            raise ConfigError(file=file, line=number, key=ascii(line[:40]), problem="expected 'key = value'")
        if "\0" in line:
            raise ConfigError(file=file, line=number, key=ascii(key)[1:-1], problem="contains a NUL byte")
        found[-1][2].append(Entry(number, key, value))
    return tuple(Section(title, line, tuple(entries)) for title, line, entries in found)


def parse(
    file: str, entries: Iterable[Entry], keys: Sequence[Key], overrides: Mapping[str, str] | None = None
) -> Parsed:
    """The value of every declared key. ``overrides`` (command line options) win over what is written."""
    declared = {key.name: key for key in keys}
    written: dict[str, Entry] = {}
    for entry in entries:
        if entry.key not in declared:
            near = _nearest(entry.key, declared)
            raise ConfigError(file=file, line=entry.line, key=entry.key, problem=f"unknown key{near}")
        if entry.key in written:
            first = written[entry.key].line
            raise ConfigError(file=file, line=entry.line, key=entry.key, problem=f"already written on line {first}")
        written[entry.key] = entry
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name, key in declared.items():
        source, line, text = _text_of(key, file, written.get(name), (overrides or {}).get(name))
        try:
            values[name] = key.parse(text)
        except ValueError as problem:
            told = "" if f"'{text}'" in str(problem) else f", not '{_cut(text)}'"
            raise ConfigError(file=source, line=line, key=name, problem=f"{problem}{told}") from None
        lines[name] = line
    return Parsed(file, values, lines, frozenset(declared.keys() & (overrides or {}).keys()))


def _cut(text: str) -> str:
    """Enough of a value to be recognized by."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def _text_of(key: Key, file: str, entry: Entry | None, override: str | None) -> tuple[str, int, str]:
    if override is not None:
        return COMMAND_LINE, 0, override
    if entry is not None:
        return file, entry.line, entry.value
    if key.default is None:
        raise ConfigError(file=file, line=0, key=key.name, problem=f"must be written: {key.meaning}")
    return file, 0, key.default


def _nearest(key: str, known: Iterable[str]) -> str:
    import difflib  # only on the way to an error

    near = difflib.get_close_matches(key, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else ""


# ---- what a value may look like: each takes the text and returns the value, or raises ValueError("expected …")

# Digits are bounded: a float of 400 digits is infinite, and int() refuses 5000 of them in words of its own.
_DURATION: Final = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h|d)?")
_DURATION_UNIT: Final = {"ms": 1, None: 1000, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZE: Final = re.compile(r"([0-9]{1,12})\s*(?:([kKmMgG])i?)?[bB]?")
_SIZE_UNIT: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def text(value: str) -> str:
    return value


def duration(value: str) -> int:
    """``10s``, ``5m``, ``1.5h``, ``2d`` in milliseconds; a bare number is seconds."""
    match = _DURATION.fullmatch(value)
    if not match:
        raise ValueError("expected a duration such as 10s, 5m, 1h or 2d")
    return round(float(match[1]) * _DURATION_UNIT[match[2]])


def duration_or_never(value: str) -> int | None:
    """A duration in milliseconds, or None for ``never``."""
    return None if value == "never" else duration(value)


def size(value: str) -> int:
    """``256k``, ``10M``, ``1G`` in bytes (powers of 1024)."""
    match = _SIZE.fullmatch(value)
    if not match:
        raise ValueError("expected a size such as 64k, 10M or 1G")
    return int(match[1]) * _SIZE_UNIT[(match[2] or "").lower()]


def yes_no(value: str) -> bool:
    if value not in ("yes", "no"):
        raise ValueError("expected yes or no")
    return value == "yes"


def integer(least: int, most: int) -> Callable[[str], int]:
    """A whole number from ``least`` to ``most``."""

    def whole(value: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,18}", value) or not least <= int(value) <= most:
            raise ValueError(f"expected a whole number from {least} to {most}")
        return int(value)

    return whole


def choice(*options: str) -> Callable[[str], str]:
    """One of ``options``."""

    def chosen(value: str) -> str:
        if value not in options:
            raise ValueError(f"expected {' or '.join(options)}")
        return value

    return chosen


def octal(value: str) -> int:
    """A file mode or umask such as ``022``."""
    if not re.fullmatch(r"[0-7]{1,4}", value):
        raise ValueError("expected an octal number such as 022")
    return int(value, 8)


def absolute_path(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError("expected an absolute path")
    return os.path.normpath(value)


def words(value: str) -> tuple[str, ...]:
    """Words separated by blanks or commas."""
    return tuple(value.replace(",", " ").split())


_LABEL: Final = r"(?!-)[a-z0-9-]{1,63}(?<!-)"
_HOST_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def host_name(value: str) -> str:
    """A host name in lower case, as certificates name hosts; an address is none (RFC 1123)."""
    name = value.lower()
    if not value.isascii() or len(name) > 253 or not _HOST_NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise ValueError("expected a host name such as web1.example.org")
    return name
