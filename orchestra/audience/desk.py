"""What the audience may ask of a conductor. The seats (Perspective Broker, JSON) stand in front of a desk.

Every answer is a value of :mod:`orchestra.model`; every expected failure is an
:class:`~orchestra.errors.OrchestraError`, whose sentence may be shown to whoever asked.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from msgspec import Struct

from orchestra.core.blockers import Standstill
from orchestra.core.scorebook import Disk, ScoreView
from orchestra.model import (
    Ask,
    Asker,
    Braking,
    Catalogue,
    Choice,
    Chosen,
    Event,
    Hold,
    JobView,
    Paused,
    Plan,
    PlanRow,
    PlayerView,
    PrunePlan,
    Receipt,
    Reloaded,
    Rerun,
    Selection,
    State,
    TaskView,
)

Listener = Callable[[Sequence[Event], JobView | None], Awaitable[None]]
"""Called with the next events of a job, oldest first, and with the job once it has ended. One call at a time: the
next batch waits until the awaitable is done, and events are read again from the store then, so nothing is lost and
nothing is queued in memory. An exception from it ends the watch."""


class Cancelling(Struct, frozen=True, kw_only=True):
    """What a cancel did: ``cancelled`` had never started; ``cancelling`` are with a player that will be told;
    ``ended`` had their outcome before; ``lost`` may have run in an earlier attempt."""

    job: int
    cancelled: int
    cancelling: int
    ended: int
    lost: int = 0


class CancelStep(Struct, frozen=True, kw_only=True):
    """What one step of a cancel of many jobs did; ``after``: where the next one goes on, None: that was all."""

    cancelled: int
    cancelling: int
    lost: int
    after: tuple[int, int] | None


class Holding(Struct, frozen=True, kw_only=True):
    """What a hold did: ``made`` are new, ``known`` were held before and stay as they were; ``going_on``: tasks that
    players have already."""

    made: tuple[Hold, ...]
    known: tuple[Hold, ...]
    going_on: int
    warnings: tuple[str, ...] = ()


class Released(Struct, frozen=True, kw_only=True):
    """What a release lifted, and what is still held."""

    lifted: tuple[Hold, ...]
    left: tuple[Hold, ...]


class Pausing(Struct, frozen=True, kw_only=True):
    """A job of which nothing is handed out. ``new``: it was not paused before; ``going_on``: tasks that players have
    already."""

    job: int
    paused: Paused
    new: bool
    going_on: int


class Resuming(Struct, frozen=True, kw_only=True):
    """What a resume lifted, None: the job was not paused; ``freed``: tasks that may be handed out with it."""

    job: int
    was: Paused | None
    freed: int


class About(Struct, frozen=True, kw_only=True):
    """The conductor in a few numbers. ``troubles``: what is wrong with it now, in sentences."""

    version: str
    started_at: int
    players: int
    online: int
    pending: int
    dispatched: int
    holds: tuple[Hold, ...] = ()
    troubles: tuple[str, ...] = ()
    held: int = 0  # tasks of jobs that roll, begin later or are paused


class BackedUp(Struct, frozen=True, kw_only=True):
    """A backup that was made: on the conductor's machine, so many bytes, in so many milliseconds."""

    file: str
    size: int
    took: int


class Cleared(Struct, frozen=True, kw_only=True):
    """What pruning has removed: jobs, and pieces of output of others; the bytes in use before and after."""

    jobs: int
    outputs: int
    before: int
    after: int


class Watch(Protocol):
    def stop(self) -> None:
        """No more calls, at once."""


class Manager(Protocol):
    """What may be done to jobs that are there."""

    async def pause(self, asker: Asker, job: int) -> Pausing:
        """Hand out nothing of a job until it is resumed; what runs goes on."""

    async def resume(self, asker: Asker, job: int) -> Resuming:
        """Hand out again what is to be handed out of a job."""

    async def rerun(self, asker: Asker, wanted: Rerun) -> Receipt:
        """Ask for a job once more, where it ended in one of these ways; as a submit."""

    async def events(self, since: int, limit: int = 500) -> list[Event]:
        """Events of all jobs with ``seq`` > ``since``, in the order in which they were committed."""

    async def last_event(self) -> int:
        """The ``seq`` of the newest event; 0 if there was none."""

    def watch(self, since: int, listener: Listener) -> Watch:
        """Have ``listener`` called with every event of any job with ``seq`` > ``since``, for ever."""

    async def prune_plan(self) -> PrunePlan:
        """What pruning would remove now."""

    async def prune(self, asker: Asker) -> Cleared:
        """Remove it. Only root and the conductor's own user."""


class Planner(Protocol):
    """What can be known before anything is asked for."""

    async def targets(self, selection: Selection) -> tuple[str, ...]:
        """Who is meant, by name."""

    async def plan(self, asker: Asker, ask: Ask) -> tuple[Plan, list[PlanRow]]:
        """What would become of a request, and on each of its targets, by name. Nothing is stored."""


class Desk(Protocol):
    """The conductor, as its audience sees it."""

    @property
    def planner(self) -> Planner:
        """Who is meant, and what would become of a request."""

    @property
    def manager(self) -> Manager:
        """Who looks after jobs that are there."""

    def allowed(self, uid: int, groups: Sequence[int]) -> bool:
        """Whether a user of this machine may submit and read: root, our own user, the audience group."""

    def denial(self, who: str) -> Exception:
        """The :class:`~orchestra.errors.Denied` for somebody who may not."""

    async def submit(self, asker: Asker, ask: Ask) -> Receipt:
        """Accept a request; the receipt exists after the commit."""

    async def secrets_wanted(self, ask: Ask) -> tuple[str, ...]:
        """The secret parameters that a request would be refused without."""

    async def job(self, job: int) -> JobView:
        """A job and its counts."""

    async def tasks(self, job: int, after: int = -1, limit: int = 500, states: Sequence[State] = ()) -> list[TaskView]:
        """Tasks of a job by ascending number, those past ``after``; ``states`` empty means all. Their streams hold
        data when it is short (8 kB together); else ``output`` has it."""

    async def explain(
        self, job: int, after: tuple[int, int] = (-1, 0), limit: int = 500, hosts: Sequence[str] = ()
    ) -> list[Standstill]:
        """The tasks of a job that have not started and all that keeps them, past ``after`` (task, nth), on these hosts
        or on all."""

    async def output(
        self, job: int, task: int, stream: int, offset: int = 0, limit: int = 262_144
    ) -> list[tuple[int, bytes]]:
        """Kept pieces (offset, bytes) of stream 1 or 2 of a task's last attempt, from ``offset`` on, ``limit`` bytes at
        most."""

    async def jobs(
        self, before: int | None = None, limit: int = 50, unfinished: bool = False, owner: str | None = None
    ) -> list[JobView]:
        """Jobs, newest first, with ids below ``before``."""

    async def events(self, job: int, since: int = 0, limit: int = 500) -> list[Event]:
        """Events with n > ``since``."""

    async def players(self, after: str = "", limit: int = 500, names: Sequence[str] = ()) -> list[PlayerView]:
        """Players by name, those past ``after``; ``names`` empty means all."""

    async def catalogues(self, names: Sequence[str] = ()) -> list[tuple[Catalogue, tuple[str, ...]]]:
        """Every catalogue in use, with the names of the players that have it."""

    async def scores(self, hosts: Sequence[str] = (), name: str = "") -> list[ScoreView]:
        """Every score by name, or the one of this name, as these hosts have it; ``hosts`` empty means all."""

    async def disks(self, hosts: Sequence[str] = ()) -> list[Disk]:
        """Who has which catalogue, by its digest; ``hosts`` empty means all."""

    async def cancel(self, asker: Asker, job: int, names: Sequence[str] = ()) -> Cancelling:
        """Cancel a job, or its tasks on some hosts. Running scores are killed; it is done when status says so."""

    async def choose(self, choice: Choice) -> Chosen:
        """How many jobs and tasks a choice is of now."""

    async def cancel_chosen(
        self, asker: Asker, choice: Choice, up_to: int, after: tuple[int, int] | None = None
    ) -> CancelStep:
        """One bounded step of cancelling all that is unfinished of a choice, in jobs up to ``up_to``."""

    async def hold(self, asker: Asker, braking: Braking, reason: str) -> Holding:
        """Hand out nothing of these until they are released; what runs goes on."""

    async def release(self, asker: Asker, braking: Braking | None) -> Released:
        """Lift these holds, or all; what waited for that starts."""

    async def holds(self) -> tuple[Hold, ...]:
        """What is held."""

    async def reload(self, asker: Asker, accept_removals: int = 0) -> Reloaded:
        """Read players, certificates and CRL again, as SIGHUP does; up to ``accept_removals`` players may be missing
        from the file. Only root and the conductor's own user."""

    async def forgive(self, asker: Asker, name: str) -> int:
        """Accept a player's retired journals again; how many there were. Only root and the conductor's own user."""

    async def backup(self, asker: Asker, file: str) -> BackedUp:
        """Copy the store to the new ``file``, an absolute path on the conductor's machine. Only root and the
        conductor's own user."""

    async def about(self) -> About:
        """The conductor in a few numbers."""

    def watch(self, job: int, since: int, listener: Listener) -> Watch:
        """Have ``listener`` called with every event of ``job`` after ``since``, until it has ended."""

    def await_end(self, job: int, listener: Listener, *, new: bool = False) -> Watch:
        """Have ``listener`` called once, without events, when ``job`` has ended; ``new``: it surely has not yet."""
