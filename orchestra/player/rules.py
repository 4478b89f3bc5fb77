"""What ``NAME.conf`` says of a score: the keys, and the ``[param KEY]`` sections that declare its parameters.

Standard library only: the stage reads it too. Which files are believed is the business of
:mod:`orchestra.player.scorefile`; what the values of a declared parameter may be, of
:mod:`orchestra.parameters.declared`.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, NoReturn

from orchestra.config import (
    Entry,
    Key,
    Section,
    absolute_path,
    choice,
    duration,
    integer,
    octal,
    parse,
    sections,
    size,
    text,
    yes_no,
)
from orchestra.errors import ConfigError, UnfitScore
from orchestra.parameters import is_key
from orchestra.parameters.declared import MOST, TYPES, Breach, Param, check, items_of
from orchestra.parameters.patterns import BadPattern, Budget, compiled

FORMAT_VERSION: Final = 1
"""The newest ``.conf`` format that is understood here."""

MOST_TEXT: Final = 32 * 1024  # characters in the sections of one score: every player's go to the conductor

_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}\$?")
_LOCK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NUMBER: Final = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,15})?")
_DAY: Final = 86_400_000


class Rules(NamedTuple):
    """How a score is run. Durations are milliseconds, sizes are bytes; a limit that is None is the stage's own."""

    interface: str
    description: str
    timeout: int
    kill_grace: int
    idempotent: bool
    max_attempts: int
    concurrency: int
    lock: str
    user: str | None
    group: str | None
    dir: str
    path: str
    umask: int
    nice: int
    limit_cpu: int | None
    limit_memory: int | None
    limit_files: int | None
    limit_processes: int | None
    limit_core: int | None
    limit_file_size: int | None
    output_limit: int
    response_limit: int
    dry_run: bool
    hidden: bool
    params: tuple[Param, ...] = ()

    @property
    def limited(self) -> bool:
        """Whether anything is to be done in the new process before it becomes the score."""
        return bool(self.nice) or any(limit is not None for limit in self[_FIRST_LIMIT : _FIRST_LIMIT + 6])


_FIRST_LIMIT: Final = Rules._fields.index("limit_cpu")


# ---- the keys


def _description(value: str) -> str:
    if len(value) > 200 or not value.isprintable():
        raise ValueError("expected one line of at most 200 printable characters")
    return value


def _period(least: int, most: int, rule: str) -> Callable[[str], int]:
    def period(value: str) -> int:
        milliseconds = duration(value)
        if not least <= milliseconds <= most:
            raise ValueError(f"expected a duration {rule}")
        return milliseconds

    return period


def _account(value: str) -> str | None:
    if value and not _ACCOUNT.fullmatch(value):
        raise ValueError("expected the name or number of an account")
    return value or None


def _lock(value: str) -> str:
    if value and not _LOCK.fullmatch(value):
        raise ValueError("expected a name of up to 63 letters, digits and . _ -")
    return value


def _search_path(value: str) -> str:
    # An empty or relative part would be looked up in the score's own directory, wherever that is.
    if "\0" in value or not all(part.startswith("/") for part in value.split(":")):
        raise ValueError("expected absolute directories separated by ':'")
    return value


def _umask(value: str) -> int:
    mask = octal(value)
    if mask > 0o777:
        raise ValueError("expected an octal number from 000 to 777")
    return mask


def _size(least: int, most: int, rule: str) -> Callable[[str], int]:
    def bounded(value: str) -> int:
        limit = size(value)
        if not least <= limit <= most:
            raise ValueError(f"expected a size {rule}")
        return limit

    return bounded


def _or_none(what: Callable[[str], int]) -> Callable[[str], int | None]:
    """Nothing written: no limit of its own."""
    return lambda value: what(value) if value else None


_HUGE: Final = 1 << 50
_CPU: Final = _or_none(_period(1, 365 * _DAY, "of more than 0 and at most 365d"))
_MEMORY: Final = _or_none(_size(1 << 20, _HUGE, "of at least 1M"))
_BYTES: Final = _or_none(_size(0, _HUGE, "of at most 1048576G"))
_FILES: Final = _or_none(integer(8, 1 << 20))
_MANY: Final = _or_none(integer(1, 1 << 22))

KEYS: Final = (
    Key("interface", choice("env", "pipe", "json"), "env", "how it gets its parameters and gives its response"),
    Key("description", _description, "", "one line for lists and help"),
    Key("timeout", _period(1, 365 * _DAY, "of more than 0 and at most 365d"), "1h", "a run that takes longer is ended"),
    Key("kill_grace", _period(0, _DAY, "of at most 1d"), "10s", "time between SIGTERM and SIGKILL when a run is ended"),
    Key("idempotent", yes_no, "no", "yes: a run that is lost may be started again"),
    Key("max_attempts", integer(1, 100), "3", "most starts of an idempotent score for one task"),
    Key("concurrency", integer(1, 1000), "1", "most runs of this score at once on one player"),
    Key("lock", _lock, "", "scores that name the same lock exclude each other on a player"),
    Key("user", _account, "", "the user it runs as; empty: score_user of player.conf"),
    Key("group", _account, "", "the group it runs as; empty: the user's own"),
    Key("dir", absolute_path, "/", "the directory it starts in"),
    Key("path", _search_path, "/usr/bin:/bin:/usr/sbin:/sbin", "its PATH"),
    Key("umask", _umask, "022", "its umask"),
    Key("nice", integer(0, 19), "0", "how much it yields to others"),
    Key("limit_cpu", _CPU, "", "most CPU time of each of its processes; then SIGXCPU, and 5 s later SIGKILL"),
    Key("limit_memory", _MEMORY, "", "most address space of each of its processes"),
    Key("limit_files", _FILES, "", "most files each of its processes has open"),
    Key("limit_processes", _MANY, "", "most processes of its user, those of others included"),
    Key("limit_core", _BYTES, "", "largest core dump"),
    Key("limit_file_size", _BYTES, "", "largest file it may write"),
    Key(
        *("output_limit", _size(0, 64 << 20, "of at most 64M"), "256k"),
        "kept of stdout and of stderr, each: the first quarter, the last three",
    ),
    Key("response_limit", _size(0, 256 << 10, "of at most 256k"), "64k", "largest response"),
    Key("dry_run", yes_no, "no", "yes: with ORCHESTRA_DRY_RUN=1 it only says what it would do"),
    Key("hidden", yes_no, "no", "yes: it is left out of lists"),
    Key("min_version", integer(1, 1_000_000), str(FORMAT_VERSION), "the oldest format that knows the keys used here"),
)


# ---- the keys of [param KEY]


def _names(value: str) -> tuple[str, ...]:
    try:
        return tuple(items_of(value))
    except Breach as problem:
        raise ValueError(problem) from None


def _pattern(value: str) -> str:
    try:
        compiled(value)
    except BadPattern as problem:
        raise ValueError(f"expected a sound pattern (this {problem})") from None
    return value


def _bound(value: str) -> int | float | None:
    if not value:
        return None
    if not _NUMBER.fullmatch(value):
        raise ValueError("expected a number")
    return float(value) if "." in value else int(value)


PARAM_KEYS: Final = (
    Key("type", choice(*TYPES), "string", "what its values are"),
    Key("required", yes_no, "no", "yes: no job without it"),
    Key("default", text, "", "what the score gets if nobody says otherwise"),
    Key("values", _names, "", "what an enum, or each item of a list, may be"),
    Key("pattern", _pattern, "", "what a string, or each item of a list, must match as a whole"),
    Key("min", _bound, "", "least value of a number, least length of a string or list"),
    Key("max", _bound, "", "greatest value of a number, greatest length of a string or list"),
    Key("secret", yes_no, "no", "yes: never shown, logged or kept in the clear; for interface = json only"),
    Key("description", _description, "", "one line for help"),
)


# ---- reading


def read_rules(file: str, contents: str) -> Rules:
    """The rules that ``contents``, of ``file``, lays down; a :class:`UnfitScore` names line and key."""
    try:
        first, *more = sections(file, contents)
        _check_version(file, first.entries)
        values: dict[str, Any] = parse(file, first.entries, KEYS).values
        del values["min_version"]
        return Rules(**values, params=_declared(file, more, values["interface"]))
    except ConfigError as error:
        at = error.fields
        raise unfit(file, f"line {at['line']}: {at['key']}: {at['problem']}") from None


def _check_version(file: str, entries: Iterable[Entry]) -> None:
    """Before any other complaint: a newer format may have keys that read like mistakes here."""
    for entry in entries:
        asked = entry.value if entry.key == "min_version" and re.fullmatch(r"[0-9]{1,18}", entry.value) else "0"
        if int(asked) > FORMAT_VERSION:
            problem = f"this score needs a newer player, one that knows format {asked}; this one knows {FORMAT_VERSION}"
            raise ConfigError(file=file, line=entry.line, key=entry.key, problem=problem)


def _declared(file: str, titled: list[Section], interface: str) -> tuple[Param, ...]:
    """The parameters, in the order in which they are written. Nothing is looked into before there are few enough."""
    if len(titled) > MOST:
        _refuse(file, titled[MOST], f"a score declares at most {MOST} parameters")
    size, budget = 0, Budget()
    found: dict[str, Param] = {}
    for section in titled:
        size += sum(len(entry.value) for entry in section.entries)
        if size > MOST_TEXT:
            _refuse(file, section, f"the parameters of a score are declared in at most {MOST_TEXT >> 10} KiB")
        one = _param(file, section, budget)
        if one.name in found:
            _refuse(file, section, "this parameter is declared before")
        if one.secret and interface != "json":
            _refuse(file, section, "a secret parameter is for scores with 'interface = json' only")
        found[one.name] = one
    return tuple(found.values())


def _refuse(file: str, section: Section, problem: str) -> NoReturn:
    raise ConfigError(file=file, line=section.line, key=f"[{section.title[:80]}]", problem=problem)


def _param(file: str, section: Section, budget: Budget) -> Param:
    word, _, name = section.title.partition(" ")
    if word != "param" or not is_key(name.strip()):
        _refuse(file, section, "expected [param KEY], where KEY is a letter or _, then up to 63 letters, digits or _")
    parsed = parse(file, section.entries, PARAM_KEYS)
    written = {entry.key for entry in section.entries}
    values = dict(parsed.values)
    if "default" not in written:
        values["default"] = None
    one = Param(name.strip(), **values)
    problem = _at_odds(one) or _bad_default(one, budget)
    if problem:
        raise parsed.error(*problem)
    return one


def _at_odds(one: Param) -> tuple[str, str] | None:
    """The key that does not go with the others, and why."""
    if one.values and one.type not in ("enum", "list"):
        return "values", f"values are for enum and list; this is of type {one.type}"
    if one.type == "enum" and not one.values:
        return "type", "an enum needs its 'values'"
    if one.pattern and one.type not in ("string", "list"):
        return "pattern", f"a pattern is for string and list; this is of type {one.type}"
    bounds = [("min", one.min), ("max", one.max)]
    for key, bound in bounds:
        if bound is not None and one.type in ("bool", "enum"):
            return key, f"there is no {key} of type {one.type}"
        if isinstance(bound, float) and one.type != "float":
            return key, "expected a whole number"
    if one.min is not None and one.max is not None and one.min > one.max:
        return "max", "it is less than 'min'"
    return None


def _bad_default(one: Param, budget: Budget) -> tuple[str, str] | None:
    if one.default is None:
        return None
    if one.required:
        return "default", "a parameter that is required has no default"
    if one.secret:
        return "default", "a secret has no default: everybody may read this file"
    try:
        check(one, one.default, budget)
    except Breach as rule:
        return "default", str(rule)
    return None


# ---- errors


def unfit(path: str, reason: str) -> UnfitScore:
    """The error that says why ``path`` may not be used, in text that any terminal and encoding can take."""
    return UnfitScore(path=plain(path), reason=plain(reason))


def plain(text: str) -> str:
    return text if text.isprintable() else text.encode("unicode_escape").decode()
