"""The operator's commands: players, about, reload."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from orchestra.cli.printing import many, print_json, safe, say, table, tell, when
from orchestra.cli.session import (
    SETTINGS,
    Whole,
    as_json,
    conductor_socket,
    player_socket,
    reaching,
    talk,
    talk_to_player,
)
from orchestra.core import explain
from orchestra.errors import EX_CONFIG, UsageError
from orchestra.model import PlayerView, Reloaded

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra


@click.command("players", context_settings=SETTINGS)
@click.argument("names", nargs=-1, metavar="[HOST…]")
@as_json
@reaching
def players(names: tuple[str, ...], as_json: bool, socket: str | None, config: str) -> int:
    """List players, or these HOSTs: hosts, web[01-20], @groups. Of one host, what is known of its machine too."""

    async def work(conductor: "Orchestra") -> list[PlayerView]:
        return [player async for player in conductor.players(names)]

    found = talk(conductor_socket(socket, config), work)
    if as_json:
        print_json(found)
    elif not found:
        tell("no players")
    else:
        headers = ("PLAYER", "STATUS", "SINCE", "VERSION", "ADDRESS", "SLOTS", "OPEN", "PENDING", "SCORES", "NOTE")
        table(headers, [_player_row(player) for player in found])
        if names and len(found) == 1:
            _say_facts(found[0])
    return 0


def _say_facts(player: PlayerView) -> None:
    if player.facts is None:
        tell("its facts are not known")
        return
    say("")
    table(("FACT", "VALUE"), sorted(player.facts.items()))
    for problem in player.problems:
        tell(f"no fact: {safe(problem)}")


def _player_row(player: PlayerView) -> Sequence[str]:
    numbers = (player.slots, player.open_runs, player.pending, player.scores)
    slots, runs, pending, scores = ("" if number is None else str(number) for number in numbers)
    since = when(player.since)
    note = "; ".join(part for part in (player.held, player.note) if part)
    return player.name, player.status, since, player.version, player.address, slots, runs, pending, scores, note


@click.command("about", context_settings=SETTINGS)
@as_json
@reaching
def about(as_json: bool, socket: str | None, config: str) -> int:
    """The conductor in a few numbers."""
    found = talk(conductor_socket(socket, config), lambda conductor: conductor.about())
    if as_json:
        print_json(found)
        return 0
    say(f"conductor {safe(found.version)}, running since {when(found.started_at)}")
    say(f"{many(found.players, 'player')}, {found.online} online")
    held = f", {found.held} held" if found.held else ""
    say(f"{many(found.pending, 'task')} pending, {found.dispatched} dispatched{held}")
    for trouble in found.troubles:
        say(f"trouble: {safe(trouble)}")
    for hold in found.holds:
        say(safe(explain.held(hold)))
    return 0


@click.command("reload", context_settings=SETTINGS)
@click.argument("daemon", type=click.Choice(["conductor", "player"]), default="conductor")
@click.option(
    "--accept-removals",
    type=Whole(1),
    metavar="N",
    help="The players file may lack up to N of the players there are, whatever removal_limit says.",
)
@as_json
@click.option("--socket", metavar="PATH", help="The daemon's socket, if its configuration does not say.")
@click.option("--config", envvar="ORCHESTRA_CONFIG", default="/etc/orchestra", metavar="DIR", help="Its configuration.")
def reload(daemon: str, accept_removals: int | None, as_json: bool, socket: str | None, config: str) -> int:
    """Have this machine's conductor or player read its files again, as SIGHUP does; wait, and say what changed."""
    if daemon == "player":
        if accept_removals:
            raise UsageError(problem="--accept-removals is for the conductor: it has the list of players")
        done = _reload_player(player_socket(socket, config), config)
    else:
        done = _reload_conductor(socket, config, accept_removals or 0)
    if as_json:
        print_json(done)
    else:
        for change in done.changed:
            say(safe(change))
        for refusal in done.refused:
            tell(f"refused, the old one stays: {safe(refusal)}")
        if not done.changed and not done.refused:
            say("nothing has changed")
    return EX_CONFIG if done.refused else 0


def _reload_conductor(socket: str | None, config: str, accept_removals: int) -> Reloaded:
    path = conductor_socket(socket or os.environ.get("ORCHESTRA_SOCKET"), config)
    return talk(path, lambda conductor: conductor.reload(accept_removals))


def _reload_player(path: str, config: str) -> Reloaded:
    return talk_to_player(path, config, lambda player: player.reload())
