"""Which form of a score each target has: is it the same on all, and if not, who has which. Pure.

``targets``: names by id. ``having``: the score on each target whose catalogue is known, None if that does not run it;
``why`` says why it refuses to, or "" where there is none.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from msgspec import Struct

from orchestra.core.folding import folded
from orchestra.errors import NotPinned
from orchestra.model import Ask, ScoreEntry

SHOWN: Final = 12  # of a digest
NAMED: Final = 200  # hosts of one kind in a sentence
MOST_WARNINGS: Final = 20
UNPINNABLE: Final = "none"
"""In the place of a digest, of a request that is refused and may have been accepted before it was."""

LACKS: Final = "no such score"
UNKNOWN: Final = "nothing known yet"


class Agreement(Struct, frozen=True):
    """What the targets agree upon. With a ``refusal`` nothing new may come of the request."""

    digest: str = ""  # what it is pinned to
    refusal: NotPinned | None = None
    warnings: tuple[str, ...] = ()


def agreed(
    ask: Ask,
    targets: Mapping[int, str],
    having: Mapping[int, ScoreEntry | None],
    why: Callable[[int], str] = lambda player: "",
) -> Agreement:
    """Whether the targets have one and the same, if ``ask`` insists on that, or else what to warn of."""
    if not ask.pin:
        return Agreement(warnings=tuple(_warnings(ask.score, targets, having, why)))
    try:
        return Agreement(pinned(ask.score, targets, having))
    except NotPinned as refusal:
        return Agreement(UNPINNABLE, refusal)


def _warnings(
    score: str, targets: Mapping[int, str], having: Mapping[int, ScoreEntry | None], why: Callable[[int], str]
) -> Iterator[str]:
    if differs := warning(score, targets, having):
        yield differs
    lacking = [player for player, entry in having.items() if not entry]
    for player in lacking[:MOST_WARNINGS]:
        reason, name = why(player), targets[player]
        yield f"{name} does not run '{score}': {reason}" if reason else f"{name} has no score '{score}' today"
    if len(lacking) > MOST_WARNINGS:
        yield f"and {len(lacking) - MOST_WARNINGS} more hosts lack it"


def pinned(score: str, targets: Mapping[int, str], having: Mapping[int, ScoreEntry | None]) -> str:
    """The digest that all targets have announced; :class:`NotPinned` says who has what."""
    found = {entry.digest if entry else "" for entry in having.values()}
    if len(having) == len(targets) and len(found) == 1 and "" not in found:
        return found.pop()
    raise NotPinned(score=score[:80], who=_who_has(targets, having))


def warning(score: str, targets: Mapping[int, str], having: Mapping[int, ScoreEntry | None]) -> str:
    """That the targets which have the score have different ones, or nothing."""
    if len({entry.digest for entry in having.values() if entry}) < 2:
        return ""
    some = {player: entry for player, entry in having.items() if entry}
    names = {player: targets[player] for player in some}
    return f"'{score}' is not the same on all targets: {_who_has(names, some)}; --pin insists on one"


def _who_has(targets: Mapping[int, str], having: Mapping[int, ScoreEntry | None]) -> str:
    parts: defaultdict[str, list[str]] = defaultdict(list)
    for player, name in targets.items():
        entry = having.get(player)
        parts[UNKNOWN if player not in having else entry.digest[:SHOWN] if entry else LACKS].append(name)
    ordered = sorted(parts.items(), key=lambda part: (part[0] in (LACKS, UNKNOWN), -len(part[1]), part[0]))
    return ", ".join(f"{what} on {_named(names)}" for what, names in ordered)


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return folded(list(islice(names, NAMED))) + more
