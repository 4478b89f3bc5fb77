"""What the store is asked and what it answers, where :mod:`orchestra.model` has no word for it."""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from orchestra.model import Hold, JobView, OpenRun, Paused, PlayerView, Report, Run


class Roster(Struct, frozen=True):
    """The players after a reload; ``ids`` has the ones that are not removed."""

    ids: dict[str, int]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    returned: tuple[str, ...]


class Removals(Struct, frozen=True):
    """How many players may be removed at once: ``most`` of so many, but never all of them; or as many as somebody
    has ``accepted``. ``file`` is where the names are from."""

    file: str
    most: Callable[[int], int]
    accepted: int = 0


class Freed(Struct, frozen=True):
    """A task that is pending again: who may claim it is its player, or one of its candidates."""

    job: int
    n: int
    player: int | None
    candidates: tuple[int, ...]
    score: str = ""


class Greeting(Struct, frozen=True, kw_only=True):
    """What a Hello led to: the makings of a Welcome, and what to tell the log and the watchers."""

    epoch: int
    next_seq: int
    open: tuple[OpenRun, ...]
    open_scores: dict[int, str]  # by seq
    wanted: tuple[str, ...]
    jobs: frozenset[int]
    ended: frozenset[int]
    notes: tuple[str, ...]
    journal_is_new: bool
    freed: tuple[Freed, ...] = ()


class Submitted(Struct, frozen=True):
    """The job of a submit. ``created`` is False when its request key had made it before."""

    job: int
    created: bool
    tasks: int


class ClaimAsk(Struct, frozen=True):
    """How many more runs a player may be given: in all, of each score in ``limits``, and of any other score. Scores
    with the same name in ``locks`` share what they may be given."""

    player: int
    epoch: int
    owner: str
    room: int
    limits: Mapping[str, int] = {}
    default_limit: int = 2
    locks: Mapping[str, str] = {}


class Claimed(Struct, frozen=True):
    """Runs for one player, ascending in seq. ``more``: work waits that this player has no room for now.

    ``jobs`` have changed: their tasks were given out, or turned out to be overdue, and some have ``ended`` with that.
    ``superseded``: the session that asked is not its player's newest, and will never be given anything. Of jobs with
    secret parameters ``sealed`` has the values.
    """

    player: int
    runs: tuple[Run, ...]
    more: bool
    jobs: frozenset[int]
    ended: frozenset[int] = frozenset()
    superseded: bool = False
    sealed: dict[int, bytes] = {}


class Batch(Struct, frozen=True):
    """What one session of a player reports at once."""

    player: int
    epoch: int
    reports: Sequence[Report]


class Settled(Struct, frozen=True):
    """What reports changed. ``late`` ones became events, ``unknown`` ones were of pruned jobs; ``superseded`` are the
    sessions (player, epoch) whose batches were not taken."""

    jobs: frozenset[int]
    ended: frozenset[int]
    freed: tuple[Freed, ...]
    late: int
    unknown: int
    superseded: frozenset[tuple[int, int]] = frozenset()


class HeldBack(Struct, frozen=True):
    """What a hold did: ``made`` are new, ``known`` were held before; ``going_on``: tasks that players have already."""

    made: tuple[Hold, ...]
    known: tuple[Hold, ...]
    going_on: int


class Lifted(Struct, frozen=True):
    """What a release lifted, and what is still held."""

    lifted: tuple[Hold, ...]
    left: tuple[Hold, ...]


class Cancelled(Struct, frozen=True, kw_only=True):
    """What a cancel did, and the seqs to tell each player of. ``after``: where to go on, None: that was all."""

    jobs: frozenset[int]
    ended: frozenset[int]
    cancelled: int
    cancelling: int
    finished: int
    lost: int
    orders: dict[int, tuple[int, ...]]
    after: tuple[int, int] | None = None
    freed: tuple[Freed, ...] = ()


class PausedJob(Struct, frozen=True):
    """A job of which nothing is handed out. ``new``: it was not paused before; ``going_on``: tasks that players have
    already."""

    paused: Paused
    new: bool
    going_on: int
    jobs: frozenset[int]
    ended: frozenset[int] = frozenset()
    freed: tuple[Freed, ...] = ()


class Resumed(Struct, frozen=True):
    """What a resume lifted, None: the job was not paused; and what may be handed out with it."""

    was: Paused | None
    jobs: frozenset[int]
    ended: frozenset[int]
    freed: tuple[Freed, ...]


class Again(Struct, frozen=True):
    """A job, and the names of those that it is to be run on once more; on ``count`` of them, if it is for some."""

    view: JobView
    names: tuple[str, ...]
    count: int = 1


class Swept(Struct, frozen=True):
    """What a sweep ended or let go. ``more``: the limit stopped it, call again."""

    jobs: frozenset[int]
    ended: frozenset[int]
    count: int
    more: bool = False
    freed: tuple[Freed, ...] = ()


class Pruned(Struct, frozen=True):
    """What a step of pruning removed: jobs, rows of output. ``more``: there may be more to do, call again."""

    jobs: int
    outputs: int
    more: bool


class Restored(Struct, frozen=True, kw_only=True):
    """What a restore did: tasks that are ``lost`` by it, tasks that are ``doubtful`` now, the id of the next job, and
    where the store is that was there before ("" if there was none)."""

    lost: int
    doubtful: int
    next_job: int
    aside: str


class PlayerRow(Struct, frozen=True):
    """A player as the store knows it; its status is what the last conductor wrote."""

    player: int
    owner: str
    epoch: int
    catalogue: str
    view: PlayerView


class Totals(Struct, frozen=True):
    """The whole store in a few numbers; ``players`` are the ones that are not removed."""

    players: int
    pending: int
    dispatched: int
    held: int = 0
