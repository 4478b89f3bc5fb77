"""``orchestra score NAME``: help made from what players announce; ``check`` and ``try`` are for authors of scores."""

import importlib
import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import click

from orchestra.cli.printing import many, print_json, safe, say
from orchestra.cli.scores import DIGEST_SHOWN, Disks, Hosts, drift_lines, json_score
from orchestra.cli.session import SETTINGS, as_json, conductor_socket, reaching, talk
from orchestra.core import explain
from orchestra.core.brake import Brake
from orchestra.core.scorebook import Form, ScoreView
from orchestra.errors import NoSuchScoreAnywhere
from orchestra.model import Hold, ParamEntry, ScoreEntry

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

FOR_AUTHORS: Final = {
    "check": ("orchestra.cli.score_check", "Say what a player would accept of a directory of scores, and what not."),
    "try": ("orchestra.cli.score_try", "Run a score on this machine just as a player would."),
}
INTERFACES: Final = {
    "env": "parameters are environment variables ORC_KEY; the answer is its output",
    "pipe": "parameters are environment variables ORC_KEY; lines key=value of its output are the answer",
    "json": "parameters are a JSON object on stdin, the answer is one on descriptor 3",
}


class _Score(click.Group):
    """A group in which the name of a score is a command too: show it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["show", *FOR_AUTHORS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in FOR_AUTHORS:
            found: click.Command = getattr(importlib.import_module(FOR_AUTHORS[cmd_name][0]), "command")  # noqa: B009
            return found
        return show if cmd_name == "show" else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            shown = ("show", "Help on a score. 'orchestra score NAME' is this.")
            formatter.write_dl([shown, *((name, words) for name, (_, words) in FOR_AUTHORS.items())])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] in self.list_commands(ctx):
            return super().resolve_command(ctx, args)
        return "show", show, args

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # options before the name belong to the command that the name stands for
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            args = ["show", *args]
        return super().parse_args(ctx, args)


@click.group("score", cls=_Score, context_settings=SETTINGS, options_metavar="", subcommand_metavar="NAME | COMMAND …")
def score() -> None:
    """Help on the score NAME: what it does, its parameters, where it is installed, and an example.

    A score that is called like a command below: 'orchestra score show NAME'.
    """


@click.command("show", context_settings=SETTINGS)
@click.argument("name", metavar="NAME")
@as_json
@reaching
def show(name: str, as_json: bool, socket: str | None, config: str) -> int:
    """Help on the score NAME, made from what its players say of it."""

    async def work(conductor: "Orchestra") -> tuple[ScoreView, Disks, Sequence[Hold]]:
        async for found in conductor.scores(name=name):
            return found, await conductor.disks(), await conductor.holds()
        raise NoSuchScoreAnywhere(score=name[:80])

    found, disks, holds = talk(conductor_socket(socket, config), work)
    if as_json:
        print_json({"score": json_score(found, holds), "disks": disks})
        return 0
    for line in help_lines(found, disks):
        say(line)
    if hold := Brake(holds).of_score(name):
        say(f"\n  {safe(explain.held(hold))}")
    return 0


def help_lines(found: ScoreView, disks: Disks) -> Iterator[str]:
    """All that a person needs to use it."""
    hosts = Hosts(disks)
    if not found.forms:
        yield f"{safe(found.name)}: no player would run it"
    else:
        yield from _about(found.forms[0].entry)
    yield ""
    if found.drifts:
        yield "  not the same everywhere:" + (f" the above is of {_shortened(found.forms[0])}" if found.forms else "")
        yield from (f"    {line}" for line in drift_lines(found, hosts))
    else:
        form = found.forms[0]
        yield f"  {_shortened(form)} on {hosts.named(form.disks)} ({many(form.players, 'player')}), the same everywhere"
    if found.forms:
        yield ""
        yield f"  {example(found.forms[0], disks)}"


def _shortened(form: Form) -> str:
    return form.entry.digest[:DIGEST_SHOWN]


def _about(entry: ScoreEntry) -> Iterator[str]:
    yield safe(entry.name) + (f": {safe(entry.description)}" if entry.description else "")
    yield ""
    yield from (f"  {key:<12} {value}".rstrip() for key, value in _facts(entry))


def _facts(entry: ScoreEntry) -> Iterator[tuple[str, str]]:
    yield "interface", f"{safe(entry.interface)}: {INTERFACES.get(entry.interface, 'newer than this command')}"
    yield "timeout", f"{span(entry.timeout)}; what ignores SIGTERM is killed {span(entry.kill_grace)} later"
    yield "concurrency", f"{entry.concurrency} at once on one player"
    again = f"yes: started again after it was lost, at most {entry.max_attempts} times in all"
    yield "idempotent", again if entry.idempotent else "no: never started twice"
    if entry.lock:
        yield "lock", f"{safe(entry.lock)}: not at once with others of that lock on one player"
    if entry.dry_run:
        yield "dry run", "yes: --dry-run has it say what it would do"
    yield "parameters", "" if entry.params else "none declared: any KEY=VALUE is passed on"
    yield from (("", f"{safe(one.name)}: {safe(rule(one))}") for one in entry.params)


def rule(one: ParamEntry) -> str:
    """What is said of a parameter, in one line."""
    return "; ".join(part for part in (_kind(one), *_bounds(one), one.description) if part)


def _kind(one: ParamEntry) -> str:
    words = [one.type if not one.values else f"{one.type} ({', '.join(one.values)})"]
    words += ["required"] if one.required else []
    words += ["secret"] if one.secret else []
    words += [f"default {one.default}"] if one.default is not None else []
    return ", ".join(words)


def _bounds(one: ParamEntry) -> Iterator[str]:
    what = {"string": "length ", "enum": "length ", "list": "length "}.get(one.type, "")
    match one.min, one.max:
        case None, None:
            pass
        case least, None:
            yield f"{what}at least {least}"
        case None, most:
            yield f"{what}at most {most}"
        case least, most:
            yield f"{what}from {least} to {most}"
    if one.pattern:
        yield f"matches {one.pattern}"


def span(milliseconds: int) -> str:
    """A duration as it is written in a NAME.conf: ``90m``, ``10s``, ``1500ms``."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms"


def example(form: Form, disks: Disks) -> str:
    """A command line that asks for it."""
    host = min((name for disk in form.disks for name in disks.get(disk, ())), default="HOST")
    needed = [one for one in form.entry.params if one.required]
    given = [f"{one.name}={_like(one)}" for one in needed if not one.secret]
    secret = ["--params", "FILE"] if any(one.secret for one in needed) else []
    return shlex.join(["submitjob", form.entry.name, host, *given, *secret, "--wait"])


def _like(one: ParamEntry) -> str:
    """Something in the place of a value."""
    if one.values:
        return one.values[0]
    if one.type == "bool":
        return "yes"
    return str(one.min) if one.min is not None and one.type in ("int", "float") else one.type.upper()
