"""The operator's commands: players, scores, about, reload."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from orchestra.audience.desk import Reloaded
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
from orchestra.core.brake import Brake
from orchestra.errors import EX_CONFIG, UsageError
from orchestra.model import Catalogue, Hold, PlayerView, ScoreEntry

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

DIGEST_SHOWN = 12


@click.command("players", context_settings=SETTINGS)
@click.argument("names", nargs=-1, metavar="[HOST…]")
@as_json
@reaching
def players(names: tuple[str, ...], as_json: bool, socket: str | None, config: str) -> int:
    """List players, or these HOSTs."""

    async def work(conductor: "Orchestra") -> list[PlayerView]:
        return [player async for player in conductor.players(tuple(name.lower() for name in names))]

    found = talk(conductor_socket(socket, config), work)
    if as_json:
        print_json(found)
    elif not found:
        tell("no players")
    else:
        headers = ("PLAYER", "STATUS", "SINCE", "VERSION", "ADDRESS", "SLOTS", "OPEN", "PENDING", "SCORES", "NOTE")
        table(headers, [_player_row(player) for player in found])
    return 0


def _player_row(player: PlayerView) -> Sequence[str]:
    numbers = (player.slots, player.open_runs, player.pending, player.scores)
    slots, runs, pending, scores = ("" if number is None else str(number) for number in numbers)
    since = when(player.since)
    note = "; ".join(part for part in (player.held, player.note) if part)
    return player.name, player.status, since, player.version, player.address, slots, runs, pending, scores, note


@click.command("scores", context_settings=SETTINGS)
@click.argument("names", nargs=-1, metavar="[HOST…]")
@as_json
@reaching
def scores(names: tuple[str, ...], as_json: bool, socket: str | None, config: str) -> int:
    """List the scores that all players have, or these HOSTs. A score that differs between them has several lines."""

    async def work(conductor: "Orchestra") -> tuple[Catalogues, Sequence[Hold]]:
        return await conductor.catalogues(names), await conductor.holds()

    found, holds = talk(conductor_socket(socket, config), work)
    if as_json:
        print_json([{"catalogue": _named(catalogue, holds), "players": players} for catalogue, players in found])
        return 0
    rows = list(score_rows(found))
    if rows:
        table(("SCORE", "PLAYERS", "INTERFACE", "IDEMPOTENT", "DIGEST", "DESCRIPTION"), rows)
    else:
        tell("no scores are known; 'orchestra players' shows who is there")
    for name, reason, number in refused_rows(found):
        tell(f"{safe(name)}: not run on {many(number, 'player')}: {safe(reason)}")
    for hold in holds:
        tell(safe(explain.held(hold)))
    return 0


Catalogues = Sequence[tuple[Catalogue, tuple[str, ...]]]


def score_rows(found: Catalogues) -> Iterator[Sequence[str]]:
    """A line for each score, and for each form that it has on some players."""
    holders: defaultdict[ScoreEntry, int] = defaultdict(int)
    for catalogue, players in found:
        for entry in catalogue.scores:
            holders[entry] += len(players)
    for entry in sorted(holders, key=lambda entry: (entry.name, -holders[entry])):
        again = "yes" if entry.idempotent else "no"
        digest = entry.digest[:DIGEST_SHOWN]
        yield entry.name, str(holders[entry]), entry.interface, again, digest, entry.description


def refused_rows(found: Catalogues) -> list[tuple[str, str, int]]:
    """What players will not run, why, and on how many of them."""
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    for catalogue, players in found:
        for refused in catalogue.refused:
            counts[refused.name, refused.reason] += len(players)
    return [(name, reason, number) for (name, reason), number in sorted(counts.items())]


def _named(catalogue: Catalogue, holds: Sequence[Hold]) -> dict[str, object]:
    brake = Brake(holds)
    return {
        "digest": catalogue.digest,
        "scores": [_entry(entry, brake.of_score(entry.name)) for entry in catalogue.scores],
        "refused": [{"name": refused.name, "reason": refused.reason} for refused in catalogue.refused],
    }


def _entry(entry: ScoreEntry, hold: Hold | None) -> dict[str, object]:
    fields: dict[str, object] = {name: getattr(entry, name) for name in entry.__struct_fields__}
    return fields | {"held": explain.held(hold) if hold else ""}


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
