"""Everything that keeps a task from starting: each thing in words, since when it is so, and what would end it. Pure.

A pending task is kept by whatever would keep the conductor from handing it to its player; one that was handed over and
has not started, by what is ahead of it there. :mod:`orchestra.core.explain` has the one line that says the first thing.
What keeps a whole job is said by :mod:`orchestra.core.gating`, and comes first.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from orchestra.core.scheduler import UNKNOWN_SCORE
from orchestra.model import Held, Hold, ScoreEntry, State

SHOWN: Final = 12  # of a digest
REFUSED_IF: Final = "handed over before that, it is refused"


class Ahead(Struct, frozen=True):
    """A run that a player has, and what it may stand in the way with."""

    seq: int
    job: int
    score: str
    since: int  # handed over
    started_at: int | None = None  # if that is known


class Blocker(Struct, frozen=True, kw_only=True):
    """One thing that keeps a task: ``until`` says what would end it, ``runs`` which ones are in the way."""

    kind: str
    what: str
    until: str
    since: int | None = None
    runs: tuple[Ahead, ...] = ()


class Standstill(Struct, frozen=True, kw_only=True):
    """A task that has not started, and all that keeps it. Of a task that any of several players may be given there is
    one for each of them, the ``nth``; it is enough that nothing keeps one of those."""

    task: int
    nth: int
    player: str
    state: str
    blockers: tuple[Blocker, ...]
    choice: bool = False


class Facts(Struct, frozen=True, kw_only=True):
    """A player, as far as it decides what its tasks wait for."""

    online: bool
    since: int | None  # online since, or last seen; None: never seen
    removed_at: int | None = None
    note: str = ""  # why it takes no work
    known: bool = True  # what it has on its disk
    entry: ScoreEntry | None = None  # the score there
    refusal: str = ""  # why it does not run it
    slots: int = 0
    open: tuple[Ahead, ...] = ()  # by seq
    locks: Mapping[str, str] = {}  # the lock of each score there that has one


def of_pending(
    score: str, digest: str, holds: Iterable[Hold], player: Facts, more: Iterable[Blocker] = ()
) -> tuple[Blocker, ...]:
    """What keeps a task of ``score`` (pinned to ``digest``, if to any) from being handed to this player.

    ``holds``: those that are of it; ``more``: what keeps it whoever the player is.
    """
    found = [*more, *map(_held, holds), *_absence(player), *_of_disk(digest, player)]
    if player.online:
        found += _crowd(score, player)
    return tuple(found) or (Blocker(kind="next", what="about to be handed over", until="that is done"),)


def of_handed_over(seq: int, score: str, player: Facts) -> tuple[Blocker, ...]:
    """What keeps a run that the player has; it has not said that it started."""
    if not player.online:
        away = "offline, and may have started it" if player.since is not None else "offline"
        return (Blocker(kind="offline", what=away, since=player.since, until="it connects, and tells"),)
    ahead = [run for run in player.open if run.seq < seq]
    found = list(_ahead_there(score, player, ahead))
    if len(ahead) >= player.slots:
        what = f"{_runs(len(ahead))} before it on the player, which runs {player.slots} at once"
        found.append(_busy("slots", what, ahead))
    if not found:
        told = "it says so; of a run that is shorter than a second it says only the end"
        mine = next((run.since for run in player.open if run.seq == seq), None)
        found.append(Blocker(kind="handed over", what="not known to have started", since=mine, until=told))
    return tuple(found)


def conductors_disk(trouble: str) -> Blocker:
    """Nothing is handed out to anybody."""
    return Blocker(kind="conductor", what=f"nothing is handed out: {trouble}", until="that is mended on the conductor")


# ---- what keeps a pending task


def _held(hold: Hold) -> Blocker:
    what, option = {
        Held.EVERYTHING: ("everything is held", ""),
        Held.HOST: ("the host is held", " --host"),
        Held.SCORE: ("the score is held", f" --score {hold.name}"),
    }[hold.kind]
    release = f"'orchestra release{option}'"
    return Blocker(kind="held", what=f"{what} by {hold.owner}: {hold.reason}", since=hold.at, until=release)


def _absence(player: Facts) -> Iterator[Blocker]:
    if player.removed_at is not None:
        until = "it is in the players file again, or the task ends: removal_grace in conductor.conf"
        yield Blocker(kind="removed", what="not in the players file any more", since=player.removed_at, until=until)
    if not player.online:
        what = "never seen yet" if player.since is None else "offline"
        yield Blocker(kind="offline", what=what, since=player.since, until="it connects")
    elif player.note:
        yield Blocker(kind="takes no work", what=f"takes no work: {player.note}", until="that is over")


def _of_disk(digest: str, player: Facts) -> Iterator[Blocker]:
    if not player.known:
        if player.online:
            yield Blocker(
                kind="unknown", what="its scores are not known yet", since=player.since, until="it tells them"
            )
    elif player.refusal and player.entry is None:
        until = f"that is mended there; {REFUSED_IF}"
        yield Blocker(kind="unfit", what=f"does not run the score: {player.refusal}", until=until)
    elif player.entry is None:
        yield Blocker(kind="no score", what="has no such score", until=f"it is installed there; {REFUSED_IF}")
    elif digest and player.entry.digest != digest:
        what = f"has {player.entry.digest[:SHOWN]}, and the job is pinned to {digest[:SHOWN]}"
        yield Blocker(kind="drift", what=what, until=f"it has that one again; {REFUSED_IF}")


def _crowd(score: str, player: Facts) -> Iterator[Blocker]:
    """What a player has already, where that is as much as it takes."""
    most = 2 * player.slots
    if most and len(player.open) >= most:
        what = f"has {_runs(len(player.open))}, as many as it takes: {player.slots} at once, and as many waiting"
        yield _busy("slots", what, player.open)
    lock = player.locks.get(score, "")
    alike = [run for run in player.open if run.score == score]
    limit = UNKNOWN_SCORE if player.entry is None or lock else player.entry.concurrency + 1
    if len(alike) >= limit:
        yield _busy("concurrency", _alike(score, alike, player), alike)
    if lock:
        locking = [run for run in player.open if player.locks.get(run.score) == lock]
        if len(locking) >= limit:
            yield _busy("lock", f"the lock '{lock}' is taken, and others wait for it", locking)


def _ahead_there(score: str, player: Facts, ahead: Sequence[Ahead]) -> Iterator[Blocker]:
    alike = [run for run in ahead if run.score == score]
    if alike and len(alike) >= (player.entry.concurrency if player.entry else 1):
        yield _busy("concurrency", _alike(score, alike, player), alike)
    lock = player.locks.get(score)
    locking = [run for run in ahead if lock and player.locks.get(run.score) == lock]
    if locking:
        yield _busy("lock", f"the lock '{lock}' is taken", locking)


def _alike(score: str, alike: Sequence[Ahead], player: Facts) -> str:
    at_once = player.entry.concurrency if player.entry else 1
    return f"{_runs(len(alike))} of {score} before it, and {at_once} may run at once"


def _busy(kind: str, what: str, runs: Sequence[Ahead]) -> Blocker:
    """It is so since the last of them came."""
    since = max((run.since for run in runs), default=None)
    return Blocker(kind=kind, what=what, since=since, until="one of them ends", runs=tuple(runs))


def _runs(many: int) -> str:
    return "1 run" if many == 1 else f"{many} runs"


# ---- for people: many at once


class Group(Struct, frozen=True, kw_only=True):
    """Players that wait for the same things. Their runs are told together; what is so since when, by the earliest and
    the latest."""

    players: tuple[str, ...]
    choice: bool
    blockers: tuple[Blocker, ...]
    latest: tuple[int | None, ...]


def grouped(rows: Iterable[Standstill]) -> list[Group]:
    """Those that wait for the same things together, the largest group first."""
    alike: defaultdict[tuple[object, ...], list[Standstill]] = defaultdict(list)
    for row in rows:
        alike[row.choice, *((one.kind, one.what, one.until) for one in row.blockers)].append(row)
    groups = [_group(some) for some in alike.values()]
    return sorted(groups, key=lambda group: (-len(group.players), group.players))


def _group(rows: Sequence[Standstill]) -> Group:
    columns = list(zip(*(row.blockers for row in rows), strict=True))
    times = [[one.since for one in column if one.since is not None] for column in columns]
    blockers = tuple(
        replace(column[0], since=min(since, default=None), runs=tuple(run for one in column for run in one.runs))
        for column, since in zip(columns, times, strict=True)
    )
    players = tuple(sorted({row.player for row in rows}))
    latest = tuple(max(since, default=None) for since in times)
    return Group(players=players, choice=rows[0].choice, blockers=blockers, latest=latest)


UNSTARTED: Final = (State.HELD, State.PENDING, State.DISPATCHED)
"""The states of a task that may not have started."""
