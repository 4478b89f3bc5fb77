"""What a fleet can play, by score: in which forms, who has which, who lacks it, who refuses it and why. Pure.

Players with one disk have one catalogue, so all work here is per catalogue and none per player: who the players are is
said by :class:`Disk`, once for all scores.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from msgspec import Struct

from orchestra.model import Catalogue, RefusedScore, ScoreEntry

T = TypeVar("T", ScoreEntry, RefusedScore)


class Disk(Struct, frozen=True):
    """The players that have one catalogue, by its digest; "" is a catalogue that is not known yet."""

    digest: str
    players: tuple[str, ...]


class Form(Struct, frozen=True):
    """A score as the players of these catalogues have it."""

    entry: ScoreEntry
    disks: tuple[str, ...]
    players: int


class Unfit(Struct, frozen=True):
    """Why the players of these catalogues will not run a score."""

    reason: str
    disks: tuple[str, ...]
    players: int


class ScoreView(Struct, frozen=True):
    """A score and all its forms, the commonest first. What a player refuses to run it does not lack."""

    name: str
    forms: tuple[Form, ...] = ()
    unfit: tuple[Unfit, ...] = ()
    lacking: tuple[str, ...] = ()  # catalogues
    lacked_by: int = 0  # players

    @property
    def drifts(self) -> bool:
        """Whether it is not the same everywhere."""
        return len(self.forms) != 1 or bool(self.unfit or self.lacking)

    @property
    def hidden(self) -> bool:
        """Whether whoever has it wants it in no list."""
        return bool(self.forms) and all(form.entry.hidden for form in self.forms)


def bind(catalogues: Iterable[Catalogue], players: Mapping[str, int], only: str = "") -> list[ScoreView]:
    """Every score by name, or ``only`` one. ``players``: how many have the catalogue of this digest; those of nobody
    are passed over."""
    used = [catalogue for catalogue in catalogues if players.get(catalogue.digest)]
    pages: defaultdict[str, _Page] = defaultdict(_Page)
    for catalogue in used:
        for entry in _named(catalogue.scores, only):
            pages[entry.name].have(catalogue.digest, entry)
        for refused in _named(catalogue.refused, only):
            pages[refused.name].refuse(catalogue.digest, refused.reason)
    return [pages[name].view(name, used, players) for name in sorted(pages)]


def _named(things: Sequence[T], name: str) -> Sequence[T]:
    return [thing for thing in things if thing.name == name] if name else things


class _Page:
    """One score, while it is gathered."""

    def __init__(self) -> None:
        self._entries: dict[str, ScoreEntry] = {}
        self._having: defaultdict[str, list[str]] = defaultdict(list)
        self._refusing: defaultdict[str, list[str]] = defaultdict(list)
        self._known: set[str] = set()

    def have(self, disk: str, entry: ScoreEntry) -> None:
        self._known.add(disk)
        # one digest is one score, whatever else players of other releases say of it
        self._entries.setdefault(entry.digest, entry)
        self._having[entry.digest].append(disk)

    def refuse(self, disk: str, reason: str) -> None:
        self._known.add(disk)
        self._refusing[reason].append(disk)

    def view(self, name: str, used: Sequence[Catalogue], players: Mapping[str, int]) -> ScoreView:
        def many(disks: Iterable[str]) -> int:
            return sum(players[disk] for disk in disks)

        forms = [Form(self._entries[digest], tuple(on), many(on)) for digest, on in self._having.items()]
        unfit = [Unfit(reason, tuple(on), many(on)) for reason, on in self._refusing.items()]
        lacking = tuple(catalogue.digest for catalogue in used if catalogue.digest not in self._known)
        return ScoreView(
            name,
            tuple(sorted(forms, key=lambda form: (-form.players, form.entry.digest))),
            tuple(sorted(unfit, key=lambda one: (-one.players, one.reason))),
            lacking,
            many(lacking),
        )
