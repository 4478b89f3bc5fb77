"""What the targets' disks say of a request: whether it is refused, what to warn of, what it is pinned to. Pure."""

from collections.abc import Iterator, Mapping
from typing import Final

from msgspec import Struct

from orchestra.core import drift
from orchestra.errors import NotPinned, OrchestraError, UnknownScore
from orchestra.model import Ask, ScoreEntry

MOST_WARNINGS: Final = 20
UNPINNABLE: Final = "none"
"""In the place of a digest, of a request that is refused and may have been accepted before it was."""


class Vetted(Struct, frozen=True):
    """The score as the targets have it. With a ``refusal`` nothing new may come of the request."""

    scores: tuple[ScoreEntry, ...]
    digest: str = ""
    refusal: OrchestraError | None = None
    warnings: tuple[str, ...] = ()


def vet(ask: Ask, targets: Mapping[int, str], having: Mapping[int, ScoreEntry | None]) -> Vetted:
    """``targets``: names by id; ``having``: the score on each target whose catalogue is known, None if it has none."""
    scores = tuple(entry for entry in having.values() if entry)
    if len(having) == len(targets) and not scores:
        return Vetted((), UNPINNABLE if ask.pin else "", UnknownScore(score=ask.score[:80]))
    if not ask.pin:
        return Vetted(scores, warnings=tuple(_warnings(ask.score, targets, having)))
    try:
        return Vetted(scores, drift.pinned(ask.score, targets, having))
    except NotPinned as refusal:
        return Vetted(scores, UNPINNABLE, refusal)


def _warnings(score: str, targets: Mapping[int, str], having: Mapping[int, ScoreEntry | None]) -> Iterator[str]:
    if differs := drift.warning(score, targets, having):
        yield differs
    lacking = [targets[player] for player, entry in having.items() if not entry]
    yield from (f"{name} has no score '{score}' today" for name in lacking[:MOST_WARNINGS])
    if len(lacking) > MOST_WARNINGS:
        yield f"and {len(lacking) - MOST_WARNINGS} more hosts lack it"
