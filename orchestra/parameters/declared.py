"""Parameters that a score declares: what a value may be, what it is by default, and how the score gets it.

A value travels as text, whatever its type. Where it enters it is only checked; where the score runs it becomes the
environment's text or JSON's value. The same code checks at the conductor, the player and the stage, so that what one
accepts the next does not refuse. No sentence ever repeats a value: it may be a secret, and refusals are logged.
Standard library only, for the stage's sake.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from orchestra.parameters import problem
from orchestra.parameters.patterns import BadPattern, Budget, OutOfBudget, compiled

TYPES: Final = ("string", "int", "float", "bool", "enum", "list")
MOST: Final = 64  # parameters of one score

Value = str | int | float | bool | list[str]
"""What a ``json`` score finds under a parameter's name."""

_BOOL: Final = {"true": True, "yes": True, "false": False, "no": False}
_INT: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})")
_FLOAT: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?")
_MOST_INT: Final = (1 << 63) - 1


class Declared(Protocol):
    """A parameter as its score declares it; on a disk, or in a catalogue that crossed the wire."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def required(self) -> bool: ...
    @property
    def default(self) -> str | None: ...
    @property
    def values(self) -> Sequence[str]: ...
    @property
    def pattern(self) -> str: ...
    @property
    def min(self) -> int | float | None: ...
    @property
    def max(self) -> int | float | None: ...
    @property
    def secret(self) -> bool: ...


class Param(NamedTuple):
    """A ``[param KEY]`` section. ``min`` and ``max`` are of a number's value, or of a text's or list's length."""

    name: str
    type: str = "string"
    required: bool = False
    default: str | None = None
    values: tuple[str, ...] = ()
    pattern: str = ""
    min: int | float | None = None
    max: int | float | None = None
    secret: bool = False
    description: str = ""


class Breach(ValueError):
    """A value breaks this rule; the text goes on after the parameter's name."""


# ---- checking


def refusal(declared: Sequence[Declared], params: Mapping[str, str], secrets: Mapping[str, str]) -> str | None:
    """Why a run may not start with these, in one sentence that names the parameter and the rule, or None.

    ``secrets`` came sealed: exactly the parameters that are declared secret do.
    """
    if secrets:
        params = {**params, **secrets}
    if wrong_form := problem(params):
        return wrong_form
    for one in declared:
        if one.secret and one.name in params and one.name not in secrets:
            return f"parameter '{one.name}' is secret, and was not given as a secret"
    hidden = {one.name for one in declared if one.secret}
    for key in secrets:
        if key not in hidden:
            return f"parameter '{key}' was given as a secret, and the score does not declare it as one"
    return wrong(declared, params)


def no_dry_run(score: str) -> str:
    """Why a score may not be run for a rehearsal."""
    return f"the score '{score}' knows no dry run: it would do what it does; its .conf has no 'dry_run = yes'"


def wrong(declared: Sequence[Declared], params: Mapping[str, str]) -> str | None:
    """What is wrong with ``params`` in one sentence that names the parameter and the rule, or None.

    Where nothing is declared everything is allowed.
    """
    if not declared:
        return None
    known = {one.name: one for one in declared}
    for key in params:
        if key not in known:
            return f"parameter '{key}': the score declares no such parameter, only {_listed(known)}"
    budget = Budget()
    for one in declared:
        if one.name not in params:
            if one.required:
                return f"parameter '{one.name}' is required"
            continue
        try:
            check(one, params[one.name], budget)
        except Breach as rule:
            return f"parameter '{one.name}': {rule}"
    return None


def check(one: Declared, text: str, budget: Budget) -> Value:
    """The value that ``text`` is; a :class:`Breach` says which rule it breaks."""
    value = value_of(one, text)
    _check_size(one, value)
    items = value if isinstance(value, list) else [text] if one.type in ("string", "enum") else []
    for item in items:
        if one.values and item not in one.values:
            raise Breach(f"expected {_either(one.values)}")
        if one.pattern and not _matches(one.pattern, item, budget):
            each = "each item" if one.type == "list" else "the value"
            raise Breach(f"{each} must match the pattern {one.pattern}")
    return value


def value_of(one: Declared, text: str) -> Value:
    """The value that ``text`` is by the parameter's type alone. A type nobody knows here is left to who does."""
    match one.type:
        case "int":
            return _whole(text)
        case "float":
            return _number(text)
        case "bool":
            if text not in _BOOL:
                raise Breach("expected true or false")
            return _BOOL[text]
        case "list":
            return items_of(text)
    return text


def _whole(text: str) -> int:
    if not _INT.fullmatch(text) or abs(int(text)) > _MOST_INT:
        raise Breach("expected a whole number, such as 42")
    return int(text)


def _number(text: str) -> float:
    if not _FLOAT.fullmatch(text) or abs(float(text)) == float("inf"):
        raise Breach("expected a number, such as 0.5")
    return float(text)


def items_of(text: str) -> list[str]:
    """The items of a list: separated by commas, or a JSON array of strings."""
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise Breach("expected a JSON array of strings, or items separated by commas") from None
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise Breach("expected a JSON array of strings, or items separated by commas")
    else:
        found = [item.strip() for item in text.split(",")] if text.strip() else []
    if not all(item and _one_line(item) for item in found):
        raise Breach("expected items that are not empty, each of one line")
    return found


def _one_line(item: str) -> bool:
    return not any(char in item for char in "\n\r\0") and not any("\ud800" <= char <= "\udfff" for char in item)


def _check_size(one: Declared, value: Value) -> None:
    if one.min is None and one.max is None:
        return
    if isinstance(value, bool):
        return
    size, what = (value, "") if isinstance(value, int | float) else (len(value), _unit(one))
    if (one.min is not None and size < one.min) or (one.max is not None and size > one.max):
        raise Breach(f"expected {_span(one)}{what}")


def _unit(one: Declared) -> str:
    return " items" if one.type == "list" else " characters"


def _span(one: Declared) -> str:
    if one.max is None:
        return f"at least {one.min}"
    if one.min is None:
        return f"at most {one.max}"
    return f"{one.min} to {one.max}"


def _matches(pattern: str, text: str, budget: Budget) -> bool:
    try:
        return compiled(pattern).matches(text, budget)
    except OutOfBudget:
        raise Breach("the value is too long for its pattern") from None
    except BadPattern:  # of a newer player, or an enemy's: the stage that runs the score will know
        return True


def _either(values: Sequence[str]) -> str:
    return " or ".join((", ".join(values[:-1]), values[-1])) if len(values) > 1 else values[0]


def _listed(names: Iterable[str]) -> str:
    first = list(names)[:20]
    return ", ".join(f"'{name}'" for name in first)


# ---- what the score gets


def complete(declared: Sequence[Declared], params: Mapping[str, str]) -> dict[str, str]:
    """``params`` and the defaults of what is not among them."""
    defaults = {one.name: one.default for one in declared if one.default is not None}
    return {**defaults, **params}


def plain(declared: Sequence[Declared], params: Mapping[str, str]) -> dict[str, str]:
    """``params`` as the environment carries them: a bool is true or false, a list has a line for each item."""
    types = {one.name: one for one in declared if one.type in ("bool", "list")}
    if not types:
        return dict(params)
    return {key: _plain(types.get(key), text) for key, text in params.items()}


def _plain(one: Declared | None, text: str) -> str:
    if one is None:
        return text
    value = value_of(one, text)
    if isinstance(value, list):
        return "\n".join(value)
    return "true" if value else "false"


def typed(declared: Sequence[Declared], params: Mapping[str, str]) -> dict[str, Value]:
    """``params`` as JSON has them; what is not declared is a string."""
    known = {one.name: one for one in declared}
    return {key: value_of(known[key], text) if key in known else text for key, text in params.items()}


# ---- what a program may hand in


def text_of(value: Any) -> str | None:
    """The text that a value of JSON travels as, or None if no parameter can have it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value) if abs(value) <= _MOST_INT else None
    if isinstance(value, float):
        return json.dumps(value)
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return json.dumps(list(value), ensure_ascii=False)
    return None
