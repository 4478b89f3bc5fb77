"""``orchestra scores``: what the fleet can play, and where it is not the same."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import click
from msgspec.structs import asdict

from orchestra.cli.printing import many, print_json, safe, say, table, tell
from orchestra.cli.session import SETTINGS, as_json, conductor_socket, reaching, talk
from orchestra.core import explain
from orchestra.core.brake import Brake
from orchestra.core.scorebook import ScoreView
from orchestra.model import Hold, ScoreEntry

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

DIGEST_SHOWN: Final = 12
MANY: Final = 100
"""The largest part of a fleet is not worth its names if it has more: it is all who are not named otherwise."""

Disks = Mapping[str, Sequence[str]]


@click.command("scores", context_settings=SETTINGS)
@click.argument("hosts", nargs=-1, metavar="[HOST…]")
@click.option("--drift", is_flag=True, help="Only scores that are not the same everywhere, and who has what.")
@as_json
@reaching
def scores(hosts: tuple[str, ...], drift: bool, as_json: bool, socket: str | None, config: str) -> int:
    """List the scores that all players have, or these HOSTs. A score that differs between them has several lines.

    With --drift: the scores of which players have different digests, or that some lack or refuse to run, each with the
    hosts. A digest is of the score and its NAME.conf together. A score with 'hidden = yes' is not listed.
    """

    async def work(conductor: "Orchestra") -> tuple[list[ScoreView], Disks, Sequence[Hold]]:
        found = [score async for score in conductor.scores(hosts)]
        return found, await conductor.disks(hosts), await conductor.holds()

    found, disks, holds = talk(conductor_socket(socket, config), work)
    shown = [score for score in found if not score.hidden and (score.drifts or not drift)]
    if as_json:
        print_json({"scores": [json_score(score, holds) for score in shown], "disks": disks})
        return 0
    if drift:
        _say_drift(shown, Hosts(disks))
    else:
        _say_list(shown)
    if unknown := disks.get(""):
        tell(f"of {many(len(unknown), 'player')} nothing is known yet: {Hosts(disks).named([''])}")
    for hold in holds if not drift else ():
        tell(safe(explain.held(hold)))
    return 0


def _say_list(found: Sequence[ScoreView]) -> None:
    rows = list(score_rows(found))
    if rows:
        table(("SCORE", "PLAYERS", "INTERFACE", "IDEMPOTENT", "DIGEST", "DESCRIPTION"), rows)
    else:
        tell("no scores are known; 'orchestra players' shows who is there")
    for score in found:
        for unfit in score.unfit:
            tell(f"{safe(score.name)}: not run on {many(unfit.players, 'player')}: {safe(unfit.reason)}")


def score_rows(found: Iterable[ScoreView]) -> Iterator[Sequence[str]]:
    """A line for each score, and for each form that it has on some players."""
    for score in found:
        for form in score.forms:
            entry = form.entry
            again = "yes" if entry.idempotent else "no"
            digest = entry.digest[:DIGEST_SHOWN]
            yield score.name, str(form.players), entry.interface, again, digest, entry.description


def _say_drift(found: Sequence[ScoreView], hosts: "Hosts") -> None:
    for score in found:
        say(safe(score.name))
        for line in drift_lines(score, hosts):
            say(f"    {line}")
    if not found:
        tell("every score is the same everywhere")


def drift_lines(score: ScoreView, hosts: "Hosts") -> list[str]:
    """Who has which form of a score, who refuses it and who lacks it; the largest part first told by its number."""
    parts = [(f"{form.entry.digest[:DIGEST_SHOWN]} on", form.players, form.disks, "") for form in score.forms]
    parts += [("refused by", unfit.players, unfit.disks, f": {safe(unfit.reason)}") for unfit in score.unfit]
    if score.lacking:
        parts.append(("lacking on", score.lacked_by, score.lacking, ""))
    largest = max(range(len(parts)), key=lambda n: parts[n][1])
    lines = []
    for n, (what, number, disks, more) in enumerate(parts):
        others = n == largest and number > MANY and len(parts) > 1
        who = many(number, "player")
        lines.append(f"{what} {who}, all others{more}" if others else f"{what} {hosts.named(disks)} ({who}){more}")
    return lines


class Hosts:
    """The names behind catalogues, folded; many scores have the same ones."""

    def __init__(self, disks: Disks) -> None:
        self._disks = disks
        self._folded: dict[frozenset[str], str] = {}

    def named(self, disks: Iterable[str]) -> str:
        """The players of these catalogues."""
        from orchestra.core.folding import folded  # slow to import, and a plain list needs no names

        key = frozenset(disks)
        if key not in self._folded:
            self._folded[key] = safe(folded([name for disk in key for name in self._disks.get(disk, ())]))
        return self._folded[key]


def json_score(score: ScoreView, holds: Sequence[Hold] = ()) -> dict[str, object]:
    """A score in JSON; who the players of ``disks`` are is said beside it, once for all."""
    hold = Brake(holds).of_score(score.name)
    return {
        "name": score.name,
        "drifts": score.drifts,
        "forms": [entry_fields(form.entry) | {"players": form.players, "disks": form.disks} for form in score.forms],
        "refused": score.unfit,
        "lacking": {"players": score.lacked_by, "disks": score.lacking},
        "held": explain.held(hold) if hold else "",
    }


def entry_fields(entry: ScoreEntry) -> dict[str, Any]:
    """A score as a player announces it, in JSON; its name is said beside it."""
    fields = asdict(entry) | {"params": [asdict(one) for one in entry.params]}
    del fields["name"]
    return fields
