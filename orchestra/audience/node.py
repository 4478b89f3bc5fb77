"""What a node's own operator may ask of its player, with no network and no conductor; and the client for it.

client                          player
  status({})              ->      ["OK", status]
  drain({reason})         ->      ["OK", idle]        no more work is taken, from here on and after a restart
  idle({within})          ->      ["OK", idle]        at once when nothing runs, else after so many seconds
  undrain({})             ->      ["OK", whether it was drained]
  kill({seqs})            ->      ["OK", killing]     seqs null: all that runs
  reload({})              ->      ["OK", reloaded]
"""

from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra


class Drained(Struct, frozen=True, kw_only=True):
    """Since when a player takes no work, on whose word and why."""

    at: int
    by: str
    reason: str = ""


class NodeRun(Struct, frozen=True, kw_only=True):
    """A run that has not ended. ``since``: wall clock; ``left``: milliseconds until its timeout ends it."""

    seq: int
    job: int
    task: int
    attempt: int
    score: str
    state: str  # waiting, starting, running
    pid: int | None = None
    since: int | None = None
    left: int | None = None
    alarm: str = ""  # it should have ended, and does not


class NodeOutcome(Struct, frozen=True, kw_only=True):
    """What became of a run, kept until the conductor has it."""

    seq: int
    job: int
    task: int
    told: str
    reason: str


class StageSeen(Struct, frozen=True, kw_only=True):
    """The player's stage; ``problem`` is "" while it is connected."""

    socket: str
    pid: int | None = None
    version: str = ""
    problem: str = ""


class Reach(Struct, frozen=True, kw_only=True):
    """The line to a conductor: since when it is up, or else why it is not, and in how many seconds it is tried."""

    conductor: str
    since: int | None = None
    problem: str = ""
    next_try: float | None = None


class NodeStatus(Struct, frozen=True, kw_only=True):
    """A player, as it sees itself."""

    name: str
    version: str
    slots: int
    runs: tuple[NodeRun, ...]
    outcomes: tuple[NodeOutcome, ...]  # the first hundred
    unacknowledged: int
    stage: StageSeen
    reach: Reach
    drained: Drained | None
    trouble: str  # why it takes no work, other than that


class Idle(Struct, frozen=True, kw_only=True):
    """How many runs go on, and how many wait for a slot."""

    running: int
    waiting: int


class Killing(Struct, frozen=True, kw_only=True):
    """The runs that are being ended, and how many wait to take their slots."""

    seqs: tuple[int, ...]
    waiting: int


class Node:
    """A player, at the other end of its own socket."""

    def __init__(self, seat: "Orchestra") -> None:
        self._seat = seat

    async def status(self) -> NodeStatus:
        """What it runs, what it has yet to report, and whom it can reach."""
        return await self._seat.ask(NodeStatus, "status", {})

    async def drain(self, reason: str = "") -> Idle:
        """Have it take no more work; what has not started goes back, what runs goes on."""
        return await self._seat.ask(Idle, "drain", {"reason": reason})

    async def idle(self, within: float) -> Idle:
        """How much goes on, once nothing runs or after ``within`` seconds."""
        return await self._seat.ask(Idle, "idle", {"within": within})

    async def undrain(self) -> bool:
        """Have it take work again; whether it did not."""
        return await self._seat.ask(bool, "undrain", {})

    async def kill(self, seqs: tuple[int, ...] | None) -> Killing:
        """End these runs now, or all for None."""
        return await self._seat.ask(Killing, "kill", {"seqs": seqs})
