"""Before anything is asked for: ``orchestra targets``, and ``submitjob --plan``."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra import rolling
from orchestra.cli.inputs import read
from orchestra.cli.naming import naming_of, naming_options, targets_from, targets_in
from orchestra.cli.printing import many, print_json, safe, say, tell
from orchestra.cli.session import SETTINGS, as_json, conductor_socket, reaching, talk
from orchestra.core.folding import folded
from orchestra.errors import EX_USAGE, UsageError
from orchestra.model import Ask, Plan, PlanRow, Selection

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

WOULD: Final = {
    "starts": "would run it now",
    "later": "would run it later",
    "waits": "would wait",
    "spare": "would not be needed",
    "refuses": "would not run it",
}


@click.command("targets", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="TARGET…")
@targets_from
@naming_options
@click.option("--expand", is_flag=True, help="One name on each line, not folded.")
@click.option("--count", "only_count", is_flag=True, help="Only how many they are.")
@as_json
@reaching
def targets(
    words: tuple[str, ...],
    targets_from: str | None,
    expand: bool,
    only_count: bool,
    as_json: bool,
    socket: str | None,
    config: str,
    **options: Any,
) -> int:
    """Show whom the TARGETs mean, as a submit would take them.

    A TARGET is a host, several as web[01-20], or a group as @web; @all is every player. 'a,b' is both, 'a!b' is a
    without b, 'a&b' what is in both, 'a^b' what is in one of them only. What --exclude names is taken away; of the rest
    those remain of whose facts --where is true; of these the first --limit by name.

    \b
    --where EXPR: FACT=VALUE, !=, <, <=, >, >=, FACT in (A, B), FACT not in (A, B),
    joined by and, or, not and parentheses. Numbers are compared as numbers;
    release, kernel and python as versions. Values with blanks are quoted.
    A host of which nobody can know whether it is true is an error that names it.
    'orchestra players HOST' shows the facts of a host.
    """
    naming = naming_of(options)
    more = targets_in(read(targets_from, "--targets-from")) if targets_from else ()
    if not (words or more):
        raise UsageError(problem="no target: name at least one; @all is every player")
    chosen = Selection(words=words + more, exclude=naming.exclude, where=naming.where, limit=naming.limit)

    async def work(conductor: "Orchestra") -> list[str]:
        return [name async for name in conductor.targets(chosen)]

    _say_targets(talk(conductor_socket(socket, config), work), expand, only_count, as_json)
    return 0


def _say_targets(names: Sequence[str], expand: bool, only_count: bool, as_json: bool) -> None:
    if as_json:
        print_json(len(names) if only_count else names)
    elif only_count:
        say(str(len(names)))
    elif expand:
        say("\n".join(map(safe, names)))
    else:
        say(safe(folded(names)))
        tell(many(len(names), "host"))


# ---- a plan


def plan(path: str, ask: Ask, as_json: bool) -> int:
    """Show what would become of a request; 0 if it would be accepted."""
    found, rows = talk(path, lambda conductor: conductor.plan(ask))
    if as_json:
        print_json({"plan": found, "hosts": [{"player": r.player, "would": r.would, "why": r.why} for r in rows]})
    else:
        _say_plan(found, rows)
    return EX_USAGE if found.refused else 0


def _say_plan(found: Plan, rows: Sequence[PlanRow]) -> None:
    say(f"{safe(found.score)} on {_whom(found)}")
    if found.waves is not None:
        waves = found.waves
        canaries = f", {waves.canary} canaries first" if waves.canary else ""
        say(f"  in {many(rolling.how_many(waves), 'wave')}, {waves.batch} at a time{canaries}")
    for would, why, names in _kinds(rows):
        say(f"  {many(len(names), 'host')} {WOULD[would]}{f': {safe(why)}' if why else ''}")
        say(f"    {safe(folded(names))}")
    for warning in found.warnings:
        tell(f"warning: {safe(warning)}")
    if found.refused:
        tell(f"it would be refused: {safe(found.refused)}")
    else:
        say(f"  --expect {found.token}")


def _whom(found: Plan) -> str:
    if found.scope == "all":
        return f"all of {many(found.targets, 'host')}"
    return f"{'one' if found.scope == 'one' else found.tasks} of {many(found.targets, 'host')}"


def _kinds(rows: Iterable[PlanRow]) -> list[tuple[str, str, list[str]]]:
    """What would become of them and why, with the hosts of which that is so; what is the same of many is said once."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        kinds.setdefault((row.would, _without_name(row)), []).append(row.player)
    order = list(WOULD)
    return sorted(((would, why, names) for (would, why), names in kinds.items()), key=lambda one: order.index(one[0]))


def _without_name(row: PlanRow) -> str:
    """Why, in the words in which it is the same for others too."""
    why = row.why.replace(row.player, "it")
    return "offline" if why.startswith("offline since") else why
