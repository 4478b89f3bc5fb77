"""How a job is handed out, as options say it; and ``orchestra pause`` and ``resume``."""

from collections.abc import Callable
from datetime import datetime, time, timedelta
from typing import Any, Final, TypeVar

import click

from orchestra import config as conf
from orchestra.cli.printing import print_json, safe, say, tell
from orchestra.cli.session import JOB, SETTINGS, Whole, as_json, conductor_socket, reaching, talk
from orchestra.cli.waiting import seconds
from orchestra.core import explain
from orchestra.errors import UsageError
from orchestra.model import Rolling

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS: Final = ("batch", "canary", "max_failures", "pause")


def rolling_options(command: F) -> F:
    """The options of a job that rolls."""
    given = (
        click.option("--batch", metavar="N|N%", help="In waves of so many hosts, or of N% of them, by name."),
        click.option("--canary", type=Whole(1), metavar="N", help="First on N hosts, all of which must be ok."),
        click.option(
            "--max-failures", metavar="N|N%", help="Stop, and cancel the rest, when more than so many fail.  [0]"
        ),
        click.option("--pause", callback=seconds, metavar="TIME", help="Wait so long between two waves."),
    )
    for option in reversed(given):
        command = option(command)
    return command


def rolling_of(options: dict[str, Any]) -> Rolling | None:
    """The waves that options say, taken out of them; None: all at once."""
    batch, canary, most, pause = (options.pop(name) for name in OPTIONS)
    if batch is canary is most is pause is None:
        return None
    if batch is None and canary is None and pause is not None:
        raise UsageError(problem="--pause is one between waves: it goes with --batch or --canary")
    return Rolling(batch=batch or "", canary=canary or 0, max_failures=most or "0", pause=pause or 0.0)


# ---- when


def beginning(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """The option ``--not-before`` in seconds since 1970."""
    try:
        return None if value is None else moment_of(value, datetime.now())
    except ValueError as problem:
        raise click.BadParameter(f"{problem}, not '{value}'", ctx, param) from None


def moment_of(text: str, now: datetime) -> float:
    """In seconds since 1970: ``22:00`` (the next one, by this machine's clock), ``2026-11-26T22:00`` with or without an
    offset, or ``2h`` from ``now``, which is local time."""
    for read in (_of_the_day, _of_a_date, _from_now):
        found = read(text, now)
        if found is not None:
            return found.timestamp()
    raise ValueError("expected a time such as 22:00, 2026-11-26T22:00 or 2h")


def _of_the_day(text: str, now: datetime) -> datetime | None:
    if ":" not in text or "-" in text:
        return None
    try:
        at = time.fromisoformat(text)
    except ValueError:
        return None
    if at.tzinfo is not None:
        now = now.astimezone(at.tzinfo)
    today = datetime.combine(now.date(), at)
    return today if today > now else today + timedelta(days=1)


def _of_a_date(text: str, _: datetime) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text[4:5] == "-" else None
    except ValueError:
        return None


def _from_now(text: str, now: datetime) -> datetime | None:
    try:
        return now + timedelta(milliseconds=conf.duration(text))
    except (ValueError, OverflowError):
        return None


not_before: Final = click.option(
    "--not-before", callback=beginning, metavar="TIME", help="Begin at 22:00, at 2026-11-26T22:00, or 2h from now."
)


# ---- pause and resume


@click.command("pause", context_settings=SETTINGS)
@click.argument("job", type=JOB)
@as_json
@reaching
def pause(job: int, as_json: bool, socket: str | None, config: str) -> int:
    """Have nothing of JOB handed out until 'orchestra resume JOB'.

    What a player was given before goes on; 'orchestra cancel' ends that. A pause outlives restarts of the conductor,
    and stops no clock: what has not started when the job expires never will.
    """
    done = talk(conductor_socket(socket, config), lambda conductor: conductor.pause(job))
    if as_json:
        print_json(done)
        return 0
    before = "" if done.new else "as before: "
    say(f"job {job}: {before}{safe(explain.paused(done.paused))}")
    if done.going_on:
        tell(f"{done.going_on} task{'s' if done.going_on > 1 else ''} handed out before: 'orchestra cancel' ends that")
    return 0


@click.command("resume", context_settings=SETTINGS)
@click.argument("job", type=JOB)
@as_json
@reaching
def resume(job: int, as_json: bool, socket: str | None, config: str) -> int:
    """Have JOB go on that was paused: what waited for that starts at once."""
    done = talk(conductor_socket(socket, config), lambda conductor: conductor.resume(job))
    if as_json:
        print_json(done)
    else:
        say(f"job {job}: resumed" if done.was is not None else f"job {job} was not paused")
    return 0
