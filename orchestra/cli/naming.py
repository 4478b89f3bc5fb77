"""Who is meant: the words and options by which hosts are named, for every command that takes many."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import click

from orchestra.cli.session import Whole
from orchestra.core import groups
from orchestra.errors import UsageError
from orchestra.model import Scope

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS: Final = ("exclude", "where", "limit")
SEVERAL: Final = frozenset("[]@,!&^")


def naming_options(command: F) -> F:
    """The options that choose among the hosts that words name."""
    given = (
        click.option("--exclude", multiple=True, metavar="TARGET", help="Without these; may be repeated."),
        click.option("--where", default="", metavar="EXPR", help="Those with such facts: 'os=debian and cores>=4'."),
        click.option("--limit", type=Whole(1), metavar="N", help="The first N of them, by name."),
    )
    for option in reversed(given):
        command = option(command)
    return command


targets_from: Final = click.option(
    "--targets-from", metavar="FILE|-", help="More targets, from a file or stdin, as they stand on a command line."
)


class Naming(NamedTuple):
    """What the options say of the hosts."""

    exclude: tuple[str, ...] = ()
    where: str = ""
    limit: int | None = None


def naming_of(options: dict[str, Any]) -> Naming:
    """What the options say, taken out of them."""
    return Naming(**{name: options.pop(name) for name in OPTIONS})


def targets_in(text: str) -> tuple[str, ...]:
    """The targets in a file, separated by blanks, commas or line ends; ``#`` begins a comment."""
    words = (word for line in text.splitlines() for word in line.partition("#")[0].split())
    return tuple(part for word in words for part in _parts(word))


def _parts(word: str) -> Iterable[str]:
    """The words that a comma joins, so that none of them is too long; what else is combined stays together."""
    if "," not in word or any(operator in word for operator in "!&^"):
        return (word,)
    return (part for _, part in groups.operands(word, None))


def scope_of(targets: Sequence[str], said: Mapping[Scope, bool], naming: Naming | None = None) -> Scope | None:
    """The scope that was said. For more than one target it must be; None: the conductor finds out how many they are."""
    chosen = [scope for scope, is_said in said.items() if is_said]
    if len(chosen) > 1:
        raise UsageError(problem=" and ".join(f"--{scope}" for scope in chosen) + " exclude each other")
    if chosen:
        return chosen[0]
    if any(SEVERAL.intersection(target) for target in targets) or (naming is not None and naming != Naming()):
        return None
    different = len({target.lower().removesuffix(".") for target in targets})
    if different > 1:
        which = "--all to run it on every one, --one for any one of them, or --some N for so many"
        raise UsageError(problem=f"{different} targets: say {which}")
    return Scope.ALL
