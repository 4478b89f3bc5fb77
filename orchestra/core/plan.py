"""What a request would come to now: the token of it, who would run it, and why others would not. Pure.

A token stands for a plan that was looked at. It has a part for who the targets are, one for what they have and one for
what is asked of them, so that it can be said which of these is not as it was.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final, NamedTuple

from msgspec import msgpack

from orchestra.errors import BadRequest, PlanChanged
from orchestra.model import NewJob, PlanRow, Scope

PART: Final = 12  # digits of each
_TOKEN: Final = re.compile(rf"([1-9][0-9]{{0,8}})-([0-9a-f]{{{PART}}})-([0-9a-f]{{{PART}}})-([0-9a-f]{{{PART}}})")


class Standing(NamedTuple):
    """A target, as far as it decides what becomes of a request there."""

    player: int
    name: str
    refusal: str = ""  # why it would not run it at all
    wait: str = ""  # why it would not be given it now
    busy: int = 0  # runs it has


def token(new: NewJob, private: Iterable[str], digests: Mapping[int, str | None]) -> str:
    """The token of a request. ``private``: the names of parameters that nobody is to see; ``digests``: the score on
    each target, "" if it has none, None if that is not known."""
    players = tuple(sorted(new.players))
    asked = (new.score, sorted(new.params.items()), sorted(private), new.scope, new.count, new.dry_run)
    parts = (
        players,
        [(player, digests.get(player)) for player in players],
        (*asked, bool(new.digest), new.waves, new.not_before),
    )
    return "-".join([str(len(players)), *(sha256(msgpack.encode(part)).hexdigest()[:PART] for part in parts)])


def check(expected: str, found: str) -> PlanChanged | None:
    """What is not as it was when a plan had the token ``expected``, if anything."""
    before, now = _TOKEN.fullmatch(expected), _TOKEN.fullmatch(found)
    if before is None or now is None:
        raise BadRequest(problem=f"'{expected[:80]}' is no token of a plan; '--plan' prints one")
    if expected == found:
        return None
    said: list[str] = []
    if before[2] != now[2]:
        others = "others" if before[1] == now[1] else f"{now[1]}"
        said.append(f"the targets were {before[1]}, and are {others} now")
    elif before[3] != now[3]:
        said.append("the score, or its .conf, is not the same any more on some of the targets")
    if before[4] != now[4]:
        said.append("what is asked of them is something else")
    return PlanChanged(what="; ".join(said))


def rows(standings: Sequence[Standing], scope: Scope, count: int, at_once: frozenset[int], later: str) -> list[PlanRow]:
    """What would become of a request on each target. ``at_once``: those who may have work now, the others ``later``."""
    able = [one for one in standings if not (one.refusal or one.wait) and one.player in at_once]
    if scope is not Scope.ALL:
        able = sorted(able, key=lambda one: (one.busy, one.player))[:count]
    chosen = {one.player for one in able}
    return [_row(one, chosen, at_once, later) for one in standings]


def _row(one: Standing, chosen: set[int], at_once: frozenset[int], later: str) -> PlanRow:
    if one.refusal:
        return PlanRow(one.name, "refuses", one.refusal)
    if one.wait:
        return PlanRow(one.name, "waits", one.wait)
    if one.player in chosen:
        return PlanRow(one.name, "starts", "")
    if one.player not in at_once:
        return PlanRow(one.name, "later", later)
    return PlanRow(one.name, "spare", "others are less busy")
