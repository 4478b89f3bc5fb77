"""The values everybody speaks of, the states of a task, and the table of its moves.

Everything here is frozen and pure. Times are integer milliseconds since 1970 of the store's clock, durations
are integer milliseconds, unless a name says otherwise. What crosses the wire is ``array_like``: fields are only
ever appended, each with a default.
"""

import enum
from typing import Annotated, Any, Final

from msgspec import Meta, Struct, msgpack

from orchestra.checksum import sha256

PROTOCOL: Final = 1  # what we speak; peers speak this and the one before
DEFAULT_PORT: Final = 2258
MAX_SOCKET_PATH: Final = 107  # sun_path holds 108 bytes, the last one NUL (unix(7))

Seq = Annotated[int, Meta(ge=1)]
"""A run's number on its player: strictly increasing, given by the conductor."""


# ---- states


class State(enum.IntEnum):
    """Where a task stands. From ``OK`` on it is an outcome, and never changes again."""

    PENDING = 0
    DISPATCHED = 1
    HELD = 2
    OK = 3
    FAILED = 4
    KILLED = 5
    CANCELLED = 6
    EXPIRED = 7
    REFUSED = 8
    LOST = 9

    @property
    def terminal(self) -> bool:
        return self >= State.OK

    @property
    def label(self) -> str:
        return self.name.lower()


MOVES: Final[dict[State, frozenset[State]]] = {
    State.HELD: frozenset({State.PENDING, State.CANCELLED, State.EXPIRED, State.LOST}),
    State.PENDING: frozenset({State.DISPATCHED, State.HELD, State.CANCELLED, State.EXPIRED, State.LOST}),
    State.DISPATCHED: frozenset(State) - {State.DISPATCHED, State.HELD},
}
"""Every legal move; a terminal state has none."""


class Told(enum.StrEnum):
    """What a player says became of a run."""

    OK = "ok"
    FAILED = "failed"
    KILLED = "killed"
    REFUSED = "refused"
    NEVER = "never"
    LOST = "lost"


class Scope(enum.StrEnum):
    """``ALL`` of the targets, ``ONE`` of them, or ``SOME``: a number of them, each another one."""

    ALL = "all"
    ONE = "one"
    SOME = "some"


class Standing(Struct, frozen=True, kw_only=True):
    """What decides where a dispatched task goes when its run ends."""

    scope: Scope
    idempotent: bool
    max_attempts: int
    losses: int
    maybe_ran: bool
    cancel: bool
    expired: bool
    candidates_left: int  # who may be given it, this player not counted, beyond what else waits for them; 0 for all-of


class Move(Struct, frozen=True):
    """Where the task goes, and what it remembers."""

    state: State
    maybe_ran: bool
    losses: int
    strike: bool = False  # this player is no candidate any more
    stays: bool = False  # pending again, for this player alone


def after_run(told: Told, task: Standing) -> Move:
    """The move of a dispatched task whose player has said ``told`` of its run.

    ``maybe_ran`` survives every return to pending, and turns a later "never started" into ``lost``: an earlier
    attempt may have run.
    """
    unstarted = State.LOST if task.maybe_ran else None
    match told:
        case Told.OK | Told.FAILED | Told.KILLED:
            return Move(State[told.name], task.maybe_ran, task.losses)
        case Told.REFUSED:
            return _after_refusal(task, unstarted)
        case Told.NEVER:
            state = _after_never(task, unstarted)
            stays = state is State.PENDING and task.maybe_ran and _nobody_else(task)
            return Move(state, task.maybe_ran, task.losses, stays=stays)
        case Told.LOST:
            losses = task.losses + 1
            again = task.idempotent and losses < task.max_attempts and not task.cancel and not task.expired
            some = again and task.scope is Scope.SOME  # it may have started one, so it is given no other
            return Move(State.PENDING if again else State.LOST, True, losses, some, some and _nobody_else(task))


def _nobody_else(task: Standing) -> bool:
    return task.scope is Scope.SOME and task.candidates_left <= 0


def _after_refusal(task: Standing, unstarted: State | None) -> Move:
    pooled = task.scope is not Scope.ALL
    waits_elsewhere = pooled and task.candidates_left > 0
    state = _after_never(task, unstarted) if waits_elsewhere else (unstarted or State.REFUSED)
    return Move(state, task.maybe_ran, task.losses, strike=pooled)


def _after_never(task: Standing, unstarted: State | None) -> State:
    if task.cancel:
        return unstarted or State.CANCELLED
    if task.expired:
        return unstarted or State.EXPIRED
    return State.PENDING


def unstarted(state: State, maybe_ran: bool) -> State:
    """``state`` (cancelled or expired) of a task that is pending, or ``lost`` if an earlier attempt may have run."""
    return State.LOST if maybe_ran else state


# ---- between conductor and player


class Hello(Struct, frozen=True, array_like=True):
    """A player introduces itself. ``high`` is the highest seq its journal has seen."""

    protocol: int
    version: str
    journal: str
    boot: str
    high: int
    slots: int
    catalogue: str  # digest of its catalogue
    facts: str = ""
    note: str = ""  # why slots is 0, say


class OpenRun(Struct, frozen=True, array_like=True):
    """A run the conductor holds this player to."""

    seq: int
    job: int
    task: int
    attempt: int
    cancel: bool


class Welcome(Struct, frozen=True, array_like=True):
    """The conductor's side of the introduction; answered when the player has settled ``open`` on disk."""

    epoch: int
    next_seq: int
    spread: float  # seconds over which reconnections are spread
    open: tuple[OpenRun, ...]
    wanted: tuple[str, ...] = ()  # digests whose bodies the store lacks


class Run(Struct, frozen=True, array_like=True):
    """One attempt of one task, handed to one player."""

    seq: Seq
    job: int
    task: int
    attempt: int
    score: str
    params: dict[str, str]
    start_within: int | None  # milliseconds from receipt; None: no limit
    digest: str = ""  # the only digest that may run, or ""
    secrets: dict[str, str] = {}  # parameters that no disk may have in the clear
    dry_run: bool = False
    trouble: str = ""  # why it must be refused, found out when it was the player's already


class Perform(Struct, frozen=True, array_like=True):
    """Runs handed over in one claim, ascending in ``seq`` and without a gap."""

    epoch: int
    runs: tuple[Run, ...]


class Stream(Struct, frozen=True, array_like=True):
    """What is known of a run's stdout or stderr. ``spans`` are the kept (offset, length) pieces of the stream.

    ``data`` is those pieces joined, or empty when they went ahead as :class:`Piece`.
    """

    total: int = 0
    sha256: str | None = None  # None: it could not be carried over an upgrade of the stage
    spans: tuple[tuple[int, int], ...] = ()
    data: bytes = b""


class Piece(Struct, frozen=True, array_like=True):
    """A piece of kept output, sent ahead of its report. ``stream`` is 1 or 2."""

    seq: int
    attempt: int
    stream: int
    offset: int
    data: bytes


class Report(Struct, frozen=True, array_like=True):
    """What became of a run; kept by the player until the conductor has committed it."""

    seq: int
    job: int
    task: int
    attempt: int
    told: Told
    reason: str = ""  # a sentence, where told alone does not say it all
    rc: int | None = None
    signal: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    digest: str = ""  # of the score that ran
    response: dict[str, Any] | None = None  # a json score's may be nested; others' values are strings
    stdout: Stream = Stream()
    stderr: Stream = Stream()
    notes: tuple[str, ...] = ()  # "left a process behind", "response cut at 64 KiB"


class Started(Struct, frozen=True, array_like=True):
    """A run is under way; best effort, never acknowledged. ``alarm``: it should have ended, and does not."""

    seq: int
    job: int
    task: int
    started_at: int
    alarm: str = ""


# ---- scores, as a player announces them


class ParamEntry(Struct, frozen=True, array_like=True):
    """A parameter as its score declares it; ``min`` and ``max`` are of a number's value, or of a length."""

    name: str
    type: str = "string"  # string, int, float, bool, enum, list
    required: bool = False
    default: str | None = None
    values: tuple[str, ...] = ()
    pattern: str = ""
    min: int | float | None = None
    max: int | float | None = None
    secret: bool = False
    description: str = ""


class ScoreEntry(Struct, frozen=True, array_like=True):
    """A score on a player's disk, as far as the conductor needs to know it. With ``params``, no others are taken."""

    name: str
    digest: str
    description: str
    interface: str
    timeout: int
    kill_grace: int
    concurrency: int
    idempotent: bool
    max_attempts: int
    params: tuple[ParamEntry, ...] = ()
    lock: str = ""  # scores with the same lock exclude each other on a player
    hidden: bool = False
    dry_run: bool = False  # it honours ORCHESTRA_DRY_RUN


class RefusedScore(Struct, frozen=True, array_like=True):
    """A file in the score directory that will not be run, and why."""

    name: str
    reason: str


class Catalogue(Struct, frozen=True, array_like=True):
    """All scores of a player. Players with the same disk share one, by its ``digest``."""

    digest: str
    scores: tuple[ScoreEntry, ...]
    refused: tuple[RefusedScore, ...] = ()

    @classmethod
    def of(cls, scores: tuple[ScoreEntry, ...], refused: tuple[RefusedScore, ...]) -> "Catalogue":
        """The catalogue with these in it: its digest says nothing else."""
        return cls(sha256(msgpack.encode((scores, refused))).hex(), scores, refused)


FactName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_.-]{0,63}$")]
FactValue = Annotated[str, Meta(max_length=1_000)]


class Facts(Struct, frozen=True, array_like=True):
    """What is known of a player's machine. Players of whose machines the same is known share one, by its ``digest``.
    ``problems``: what is in the files of facts and cannot be one, in sentences."""

    digest: str
    facts: Annotated[dict[FactName, FactValue], Meta(max_length=500)]
    problems: Annotated[tuple[FactValue, ...], Meta(max_length=100)] = ()

    @classmethod
    def of(cls, facts: dict[str, str], problems: tuple[str, ...] = ()) -> "Facts":
        """The facts with these in it: its digest says nothing else."""
        return cls(sha256(msgpack.encode((sorted(facts.items()), problems))).hex(), facts, problems)


class Announce(Struct, frozen=True, array_like=True):
    """What changed on the player; ``None`` is: as before."""

    catalogue: Catalogue | None = None
    facts: Facts | None = None


# ---- what the audience asks and reads


class Asker(Struct, frozen=True):
    """Who asks, as the kernel says. ``login_uid`` is who logged in before sudo, if the kernel tells."""

    name: str
    uid: int
    login_uid: int | None = None


class Held(enum.StrEnum):
    """What a hold is of."""

    EVERYTHING = "everything"
    HOST = "host"
    SCORE = "score"


class Hold(Struct, frozen=True, kw_only=True):
    """Nothing of this is handed out until it is released. ``name``: the host or score, "" for everything."""

    kind: Held
    name: str
    reason: str
    at: int
    owner: str
    uid: int
    login_uid: int | None = None


class Braking(Struct, frozen=True, kw_only=True):
    """What holds or releases something: everything, or these hosts and scores."""

    hosts: tuple[str, ...] = ()
    scores: tuple[str, ...] = ()

    @property
    def marks(self) -> tuple[tuple[Held, str], ...]:
        """The kind and name of each hold it means."""
        named = [(Held.HOST, host) for host in self.hosts] + [(Held.SCORE, score) for score in self.scores]
        return tuple(dict.fromkeys(named)) or ((Held.EVERYTHING, ""),)


class Choice(Struct, frozen=True, kw_only=True):
    """Which unfinished jobs a cancel is of, and on which hosts. With nothing said it must say ``everything``."""

    score: str | None = None
    owner: str | None = None
    hosts: tuple[str, ...] = ()  # only what is on these
    everything: bool = False


class Chosen(Struct, frozen=True):
    """How much a :class:`Choice` is of now; ``up_to`` is its newest job, so that later ones can be left alone."""

    jobs: int
    pending: int
    dispatched: int
    up_to: int


class Rolling(Struct, frozen=True, kw_only=True):
    """How a job is to go over its targets in waves. ``batch`` and ``max_failures`` are a number, or ``10%`` of the
    targets; "" for the first is: all that are left."""

    batch: str = ""
    canary: int = 0  # targets of the first wave, all of which must be ok
    max_failures: str = "0"
    pause: float = 0.0  # seconds between two waves


class Waves(Struct, frozen=True, kw_only=True):
    """The waves of a job with so many tasks; :mod:`orchestra.rolling` says what follows from that."""

    tasks: int
    batch: int
    canary: int = 0
    max_failures: int | None = None  # None: however many
    pause: int = 0  # milliseconds


class Selection(Struct, frozen=True, kw_only=True):
    """Who is meant: those that ``words`` name, without those that ``exclude`` names; of these those of whose facts
    ``where`` is true; of these the first ``limit`` by name."""

    words: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    where: str = ""
    limit: int | None = None


class Ask(Struct, frozen=True, kw_only=True):
    """A request for work, as the audience words it. ``expire``: seconds from now, or from ``not_before``; None is the
    default, 0 is never. ``not_before``: seconds since 1970 of the conductor's clock. ``scope`` None: there is but one
    target; ``count``: how many, of SOME. ``expect``: only if a plan with this token would be the same now.

    A secret parameter is taken from ``private`` alone: what came by a command line others may have read."""

    score: str
    targets: tuple[str, ...]
    scope: Scope | None
    params: dict[str, str] = {}
    expire: float | None = None
    request_key: str | None = None
    priority: int = 0
    pin: bool = False  # only if all targets have one and the same, and only that
    private: dict[str, str] = {}  # parameters that nobody saw; what the score declares secret of them is sealed
    dry_run: bool = False
    not_before: float | None = None
    rolling: Rolling | None = None
    rerun_of: int | None = None
    exclude: tuple[str, ...] = ()
    where: str = ""
    limit: int | None = None
    count: int = 1
    expect: str = ""

    @property
    def selection(self) -> Selection:
        """Who is meant."""
        return Selection(words=self.targets, exclude=self.exclude, where=self.where, limit=self.limit)


class Rerun(Struct, frozen=True, kw_only=True):
    """A request to run a job once more where it ended in one of these ways. What is None is as it was; ``expire`` and
    ``not_before`` are as in :class:`Ask`. ``secrets``: parameters whose values are not kept, given anew."""

    job: int
    only: tuple[State, ...]
    secrets: dict[str, str] = {}
    expire: float | None = None
    request_key: str | None = None
    priority: int | None = None
    not_before: float | None = None
    rolling: Rolling | None = None


class Secrets(Struct, frozen=True):
    """The secret parameters of a job: their names, their values sealed, and what two equal ones have in common that
    tells nobody without the key what they are."""

    names: tuple[str, ...]
    sealed: bytes
    likeness: bytes


class NewJob(Struct, frozen=True, kw_only=True):
    """An accepted request on its way into the store."""

    owner: Asker
    request_key: str | None
    score: str
    params: dict[str, str]
    scope: Scope
    players: tuple[int, ...]  # player ids, each once, in the order of the tasks
    idempotent: bool
    max_attempts: int
    priority: int
    expires_at: int | None
    give_up_after: int  # timeout + kill_grace: how long past expires_at an unheard-of run may still be going on
    digest: str = ""  # the only one that may run, or ""
    secrets: Secrets | None = None
    dry_run: bool = False
    not_before: int | None = None
    waves: Waves | None = None
    rerun_of: int | None = None
    count: int = 1  # tasks, of SOME
    wording: Selection | None = None  # how the players were named, if others could be meant by it at another time


class Event(Struct, frozen=True, kw_only=True):
    """One change of a job. ``n`` counts the job's events from 1 without a gap; ``seq`` is larger than that of every
    event of any job that was committed before.

    ``kind``: of a task dispatched, pending (again), cancelling, unkillable, late and the outcomes; of the whole job
    submitted, begun, wave, waiting, stopped, paused, resumed, restored, ended.
    """

    n: int
    at: int
    kind: str
    actor: str = ""
    task: int | None = None
    player: str | None = None
    detail: str = ""
    job: int = 0
    seq: int = 0


class TaskView(Struct, frozen=True, kw_only=True):
    """Everything known of a task. ``why`` is one line on what it waits for, while it has no outcome."""

    task: int
    player: str | None
    state: str
    attempt: int
    why: str = ""
    reason: str = ""
    rc: int | None = None
    signal: int | None = None
    dispatched_at: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    digest: str = ""
    response: dict[str, Any] | None = None
    stdout: Stream = Stream()
    stderr: Stream = Stream()
    notes: tuple[str, ...] = ()
    cancelling: bool = False
    maybe_ran: bool = False


class Paused(Struct, frozen=True, kw_only=True):
    """Nothing of a job is handed out, since somebody has said so."""

    at: int
    owner: str
    uid: int
    login_uid: int | None = None


class Course(Struct, frozen=True, kw_only=True):
    """How far a job is that is not handed out whole and at once. Tasks below ``opened`` may be, or were."""

    waves: Waves
    wave: int  # so many are open
    opened: int
    next_at: int | None = None  # when more is let go, if that is a matter of time
    stopped: str = ""  # why nothing more of it is


class JobView(Struct, frozen=True, kw_only=True):
    """A job and its counts. ``verdict`` is "" until every task has its outcome, then ok, partial or failed."""

    job: int
    score: str
    params: dict[str, str]
    scope: str
    owner: str
    uid: int
    login_uid: int | None
    request_key: str | None
    created_at: int
    expires_at: int | None
    ended_at: int | None
    priority: int
    counts: dict[str, int]  # by state label, zero counts left out
    verdict: str
    last_event: int
    digest: str = ""  # what it is pinned to
    secrets: tuple[str, ...] = ()  # the names of secret parameters; their values nobody is shown
    dry_run: bool = False
    not_before: int | None = None
    course: Course | None = None  # None: it was handed out whole and at once
    paused: Paused | None = None
    rerun_of: int | None = None
    reruns: tuple[int, ...] = ()


class PlayerView(Struct, frozen=True, kw_only=True):
    """A player as the conductor sees it."""

    name: str
    status: str  # online, offline, never seen, removed
    since: int | None  # since when it is online, or was last seen
    version: str = ""
    address: str = ""
    slots: int | None = None
    open_runs: int = 0
    pending: int = 0
    scores: int | None = None
    note: str = ""
    held: str = ""  # why nothing is handed to it
    facts: dict[str, str] | None = None  # None: they are not known, or were not asked for
    problems: tuple[str, ...] = ()  # of its files of facts


class PrunePlan(Struct, frozen=True, kw_only=True):
    """What pruning would remove now: ``old`` jobs, the output of others, and ``more`` whole jobs because the store is
    larger than ``keep_size``; bytes are about that many."""

    size: int
    keep_size: int
    old: int
    old_bytes: int
    outputs: int
    output_bytes: int
    more: int
    more_bytes: int


class Wait(Struct, frozen=True, kw_only=True):
    """A target that will not start at once, and why."""

    player: str
    why: str


class Reloaded(Struct, frozen=True, kw_only=True):
    """What a reload changed, and what it refused (then the old one stays in force)."""

    changed: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Receipt(Struct, frozen=True, kw_only=True):
    """The answer to a submit. It exists only after the commit."""

    job: int
    created: bool  # False: this request key had made this job before
    targets: int
    waits: tuple[Wait, ...] = ()  # the first hundred
    waiting: int = 0  # how many in all
    warnings: tuple[str, ...] = ()


class PlanRow(Struct, frozen=True, array_like=True):
    """What would become of a request on one target: it ``starts``; it ``waits``, or comes ``later``; it ``refuses``; or
    it is ``spare``, for others would do it."""

    player: str
    would: str
    why: str


class Plan(Struct, frozen=True, kw_only=True):
    """What a request would come to now. ``refused``: why it would not be accepted at all; ``tasks``: how many hosts are
    to run it; ``would``: how many rows there are of each kind; ``token`` goes into :attr:`Ask.expect`."""

    token: str
    score: str
    scope: str
    targets: int
    tasks: int
    would: dict[str, int]
    refused: str = ""
    warnings: tuple[str, ...] = ()
    waves: Waves | None = None


def verdict(scope: Scope, counts: dict[State, int]) -> str:
    """The verdict of a job, or "" while a task has no outcome."""
    total = sum(counts.values())
    done = sum(many for state, many in counts.items() if state.terminal)
    good = counts.get(State.OK, 0)
    if done < total:
        return ""
    if good == total:
        return "ok"
    return "partial" if good else "failed"


# ---- the player's journal


class RunState(enum.IntEnum):
    """Where a run stands on its player. ``DONE`` holds its report until the conductor has answered it."""

    ACCEPTED = 0
    STARTING = 1
    DONE = 2


class JournalEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run as the journal keeps it. ``boot`` is the machine's boot id when the entry was written; ``due`` is the
    boot-time clock (milliseconds) past which an accepted run must not start any more. A tombstone is a DONE entry
    whose report says ``never``."""

    seq: int
    job: int
    task: int
    attempt: int
    state: RunState
    boot: str
    score: str = ""
    params: dict[str, str] = {}
    digest: str = ""
    due: int | None = None
    report: Report | None = None
    concurrency: int = 1  # most runs of its score at once
    lock: str = ""
    secret: bool = False  # it has secret parameters, which are in memory only
    dry_run: bool = False


class JournalChange(Struct, frozen=True):
    """What one event of the player's mind wants saved, in one transaction."""

    puts: tuple[JournalEntry, ...] = ()
    drops: tuple[int, ...] = ()
    high: int | None = None
