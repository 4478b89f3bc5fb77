"""The three commands: ``orchestra``, ``submitjob`` and ``getstatus``. What goes wrong is one sentence on stderr."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import click

from orchestra import __version__
from orchestra.cli.printing import pipe_closed, safe, tell
from orchestra.cli.session import SETTINGS
from orchestra.errors import EX_SOFTWARE, EX_USAGE, OrchestraError

INTERRUPTED: Final = 130  # as a shell says it
PIPE_CLOSED: Final = 141


class Mounted(NamedTuple):
    """A subcommand: where it is, so that only the one that is used is imported, and its line in the help."""

    place: str
    summary: str


COMMANDS: Final = {
    "submit": Mounted("orchestra.cli.submit:submit", "Ask for a score to be run on hosts; submitjob is this."),
    "targets": Mounted("orchestra.cli.planning:targets", "Show whom folded names, @groups and --where mean."),
    "status": Mounted("orchestra.cli.status:status", "Everything known of a job, or recent jobs; getstatus is this."),
    "explain": Mounted("orchestra.cli.explain:explain", "Everything that keeps a job's tasks from starting."),
    "wait": Mounted("orchestra.cli.waiting:wait", "Wait until a job has ended."),
    "rerun": Mounted("orchestra.cli.rerun:rerun", "Run a job once more where it failed, was lost, or never ran."),
    "cancel": Mounted("orchestra.cli.brake:cancel", "Cancel jobs, or all of a score, an owner or a host."),
    "pause": Mounted("orchestra.cli.rollout:pause", "Stop handing out a job, until it is resumed."),
    "resume": Mounted("orchestra.cli.rollout:resume", "Have a paused job go on."),
    "hold": Mounted("orchestra.cli.brake:hold", "Stop handing out work: all, to a host, or of a score."),
    "release": Mounted("orchestra.cli.brake:release", "Lift a hold; what waited for that starts."),
    "holds": Mounted("orchestra.cli.brake:holds", "List what is held, by whom and why."),
    "events": Mounted("orchestra.cli.events:events", "What has happened to a job or to all, and what happens now."),
    "jobs": Mounted("orchestra.cli.status:jobs", "List jobs, newest first."),
    "players": Mounted("orchestra.cli.operate:players", "List players: who is there, who is not."),
    "player": Mounted(
        "orchestra.cli.node:player", "On a node: status, drain, undrain, kill; on the conductor: forgive."
    ),
    "scores": Mounted("orchestra.cli.scores:scores", "List the scores that players have, and how they differ."),
    "score": Mounted("orchestra.cli.score:score", "Help on a score; for its authors: check and try it."),
    "about": Mounted("orchestra.cli.operate:about", "The conductor in a few numbers."),
    "reload": Mounted("orchestra.cli.operate:reload", "Have a daemon read its files again; say what changed."),
    "backup": Mounted("orchestra.cli.keep:backup", "Copy the conductor's store to a file, while it works."),
    "restore": Mounted("orchestra.cli.keep:restore", "Put a backup in the place of a stopped conductor's store."),
    "prune": Mounted("orchestra.cli.keep:prune", "Remove old jobs now, or say what would go."),
    "stage": Mounted("orchestra.cli.stage:stage", "Be the stage: run scores for the player, as player.conf says."),
    "check": Mounted("orchestra.cli.check:check", "Check a daemon's configuration without starting it."),
    "ca": Mounted("orchestra.cli.ca:ca", "Our own certificate authority."),
    "bench": Mounted("orchestra.cli.bench:bench", "Measure this machine: latency, rates, memory, beside their floors."),
    "emulate": Mounted("orchestra.cli.emulate:emulate", "Be many players at once, to try a conductor with."),
    "drill": Mounted("orchestra.cli.drill:drill", "Try on this machine that nothing is lost or done twice."),
    "demo": Mounted("orchestra.cli.demo:demo", "See a conductor and three players at work on this machine."),
}


def load(place: str) -> click.Command:
    """The command at ``package.module:name``."""
    module, _, name = place.partition(":")
    found: click.Command = getattr(importlib.import_module(module), name)
    return found


class Lazy(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return load(COMMANDS[cmd_name].place) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, mounted.summary) for name, mounted in COMMANDS.items()])


@click.group("orchestra", cls=Lazy, context_settings=SETTINGS, invoke_without_command=True)
@click.version_option(__version__)
@click.pass_context
def group(ctx: click.Context) -> None:
    """Get things run on a fleet, safely: named, vetted scores on named hosts, and a true answer per host."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def run(command: click.Command, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; nothing but a sentence is said of what goes wrong."""
    try:
        return _invoked(command, name, sys.argv[1:] if arguments is None else list(arguments))
    except OrchestraError as error:
        tell(f"{name}: {safe(error.sentence)}")
        return error.status
    except click.ClickException as error:
        tell(f"{name}: {_usage(error)}")
        return EX_USAGE
    except (click.Abort, KeyboardInterrupt):
        tell(f"{name}: interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        pipe_closed()
        return PIPE_CLOSED
    except Exception as error:  # the door: one sentence, and the traceback for those who ask
        if os.environ.get("ORCHESTRA_DEBUG"):
            raise
        what = f"{type(error).__name__}: {safe(str(error))}"
        tell(f"{name}: this is a bug in Orchestra ({what}); ORCHESTRA_DEBUG=1 shows where")
        return EX_SOFTWARE


def _invoked(command: click.Command, name: str, arguments: list[str]) -> int:
    # Not command.main(): that ends the process with status 1 when a pipe is closed.
    try:
        with command.make_context(name, arguments) as context:
            result: Any = command.invoke(context)
    except click.exceptions.Exit as done:
        result = done.exit_code
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _usage(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" ('{context.command_path} --help' explains)" if context else ""
    return safe(error.format_message()) + hint


def orchestra() -> None:
    """The ``orchestra`` command."""
    sys.exit(run(group, "orchestra"))


def submitjob() -> None:
    """The ``submitjob`` command."""
    sys.exit(run(load(COMMANDS["submit"].place), "submitjob"))


def getstatus() -> None:
    """The ``getstatus`` command."""
    sys.exit(run(load(COMMANDS["status"].place), "getstatus"))
