"""What will go wrong, when, and for how long: a function of the seed alone. Pure."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from msgspec import Struct

CONDUCTOR: Final = "conductor"


class Kind(Struct, frozen=True, kw_only=True):
    """A kind of fault. ``part`` is what it befalls: the conductor, a player, its stage, its line or a disk."""

    name: str
    part: str
    least: float  # seconds
    most: float
    ends_it: bool = False  # the process is ended, so a witness is spared


class Fault(Struct, frozen=True, kw_only=True):
    """``kind`` befalls ``victim`` (the conductor's or a player's name) ``at`` seconds, healed ``lasts`` later."""

    at: float
    kind: str
    part: str
    victim: str
    lasts: float


KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(name="kill conductor", part="conductor", least=0.0, most=2.0, ends_it=True),
        Kind(name="kill player", part="player", least=0.0, most=3.0, ends_it=True),
        Kind(name="kill stage", part="stage", least=0.2, most=0.2, ends_it=True),
        Kind(name="restart conductor", part="conductor", least=0.0, most=0.5, ends_it=True),
        Kind(name="restart player", part="player", least=0.0, most=0.5, ends_it=True),
        Kind(name="pause conductor", part="conductor", least=0.5, most=5.0),
        Kind(name="pause player", part="player", least=0.5, most=6.0),
        Kind(name="pause stage", part="stage", least=0.5, most=4.0),
        Kind(name="slow disk conductor", part="conductor", least=0.5, most=4.0),
        Kind(name="slow disk player", part="player", least=0.5, most=5.0),
        Kind(name="upgrade stage", part="stage", least=0.1, most=0.1),
        Kind(name="hang up conductor", part="conductor", least=0.1, most=0.1),
        Kind(name="hang up player", part="player", least=0.1, most=0.1),
        Kind(name="second player", part="player", least=0.1, most=0.1),
        Kind(name="cut line", part="line", least=0.1, most=0.1),
        Kind(name="stall line", part="line", least=0.5, most=6.0),
        Kind(name="stall line up", part="line", least=0.5, most=6.0),
        Kind(name="stall line down", part="line", least=0.5, most=6.0),
        Kind(name="black hole", part="line", least=0.5, most=5.0),
        Kind(name="slow line", part="line", least=2.0, most=8.0),
        Kind(name="stale line", part="line", least=3.0, most=8.0),
        Kind(name="full disk conductor", part="conductor disk", least=0.3, most=2.0),
        Kind(name="full disk player", part="player disk", least=0.3, most=2.0),
    )
}
DISKS: Final = frozenset(name for name in KINDS if name.startswith("full disk"))
SLOW_DISKS: Final = frozenset(name for name in KINDS if name.startswith("slow disk"))
WITNESSES_FROM: Final = 3  # players; then the last one's processes are never ended, to see whether they grow
BETWEEN: Final = (0.4, 2.0)  # seconds from one fault to the next
RESPITE: Final = 1.0  # seconds that a victim has between two faults


def plan(seed: int, seconds: float, players: Sequence[str], kinds: Sequence[str] = tuple(KINDS)) -> tuple[Fault, ...]:
    """The faults of a drill, in order. Every kind comes before any comes again; one victim has one fault at a time."""
    chance = Random(f"faults of {seed}")
    free_at: dict[tuple[str, str], float] = {}
    turn: list[str] = []
    faults: list[Fault] = []
    at = chance.uniform(*BETWEEN)
    while at < seconds and kinds:
        turn = turn or chance.sample(list(kinds), len(kinds))
        chosen = next(_possible(chance, turn, players, free_at, at), None)
        if chosen is None:
            at += 0.1
            continue
        kind, victim = chosen
        turn.remove(kind.name)
        lasts = min(chance.uniform(kind.least, kind.most), max(seconds - at, 0.1))
        faults.append(Fault(at=round(at, 3), kind=kind.name, part=kind.part, victim=victim, lasts=round(lasts, 3)))
        free_at[kind.part, victim] = at + lasts + RESPITE
        at += chance.uniform(*BETWEEN)
    return tuple(faults)


def witness(players: Sequence[str]) -> str | None:
    """The player whose processes are not ended, if there are enough to spare one."""
    return players[-1] if len(players) >= WITNESSES_FROM else None


def _possible(
    chance: Random, kinds: Sequence[str], players: Sequence[str], free_at: dict[tuple[str, str], float], at: float
) -> Iterator[tuple[Kind, str]]:
    """Each of ``kinds`` that somebody can have now, with a victim."""
    for name in kinds:
        kind = KINDS[name]
        free = [victim for victim in _victims(kind, players) if free_at.get((kind.part, victim), 0.0) <= at]
        if free:
            yield kind, chance.choice(free)


def _victims(kind: Kind, players: Sequence[str]) -> Sequence[str]:
    if kind.part.startswith(CONDUCTOR):
        return (CONDUCTOR,)
    spared = witness(players) if kind.ends_it else None
    return [player for player in players if player != spared]
