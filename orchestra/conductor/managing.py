"""What the audience may do to jobs that are there: pause and resume them, run them once more.

And what a request says of when and how its job is handed out, checked.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace

from orchestra import rolling
from orchestra.audience.desk import Cleared, Listener, Pausing, Resuming, Watch
from orchestra.conductor.dispatch import Dispatch
from orchestra.conductor.feed import ALL, Feed
from orchestra.conductor.upkeep import Upkeep
from orchestra.errors import BadRequest, NothingToRerun, OwnerOnly, SecretsNotKept
from orchestra.model import Ask, Asker, Event, JobView, PrunePlan, Receipt, Rerun, Rolling, Scope, Waves
from orchestra.store import statements
from orchestra.store.saver import Loader

MOST_GONE: Final = 20  # hosts that are named in a warning
LATEST: Final = 3650 * 86_400  # seconds from now at which a job may begin


class Manager:
    """A :class:`~orchestra.audience.desk.Manager` of the jobs of a dispatch."""

    def __init__(
        self,
        dispatch: Dispatch,
        reader: Loader,
        feed: Feed,
        submit: Callable[[Asker, Ask], Awaitable[Receipt]],
        upkeep: Upkeep | None,
    ) -> None:
        """``submit``: the desk's own, which checks whatever is asked for."""
        self._dispatch = dispatch
        self._reader = reader
        self._feed = feed
        self._submit = submit
        self._upkeep = upkeep

    async def pause(self, asker: Asker, job: int) -> Pausing:
        """Hand out nothing of a job until it is resumed."""
        done = await self._dispatch.change(lambda cursor, now: statements.pause(cursor, job, asker, now))
        if done.new:
            self._dispatch.log.warn("{who} (uid {uid}) pauses job {job}", who=asker.name, uid=asker.uid, job=job)
        return Pausing(job=job, paused=done.paused, new=done.new, going_on=done.going_on)

    async def resume(self, asker: Asker, job: int) -> Resuming:
        """Hand out again what is to be handed out of a job."""
        done = await self._dispatch.change(lambda cursor, now: statements.resume(cursor, job, asker, now))
        if done.was is not None:
            self._dispatch.log.warn("{who} (uid {uid}) resumes job {job}", who=asker.name, uid=asker.uid, job=job)
        return Resuming(job=job, was=done.was, freed=len(done.freed))

    async def rerun(self, asker: Asker, wanted: Rerun) -> Receipt:
        """Ask for a job once more, where it ended in one of these ways."""
        if not wanted.only or not all(state.terminal for state in wanted.only):
            raise BadRequest(problem="say which outcomes are to be run again, such as failed and lost")
        found = await self._reader.read(lambda cursor: statements.again(cursor, wanted.job, wanted.only))
        here = tuple(name for name in found.names if name in self._dispatch.ids)
        if not here:
            counts = ", ".join(f"{many} {state}" for state, many in found.view.counts.items())
            only = " or ".join(state.label for state in wanted.only)
            raise NothingToRerun(job=wanted.job, only=only, counts=counts)
        receipt = await self._submit(asker, once_more(found.view, here, wanted, found.count))
        gone = tuple(
            f"{name} was removed from the players file, and is left out" for name in found.names if name not in here
        )
        return replace(receipt, warnings=(*gone[:MOST_GONE], *receipt.warnings))

    async def events(self, since: int, limit: int = 500) -> list[Event]:
        """Events of all jobs with ``seq`` > ``since``."""
        return await self._reader.read(lambda cursor: statements.all_events(cursor, since, limit))

    async def last_event(self) -> int:
        """The ``seq`` of the newest event."""
        return await self._reader.read(statements.last_event)

    def watch(self, since: int, listener: Listener) -> Watch:
        """Have ``listener`` called with the events of all jobs."""
        return self._feed.watch(ALL, since, listener)

    async def prune_plan(self) -> PrunePlan:
        """What pruning would remove now."""
        return await self._kept_on_disk().plan()

    async def prune(self, asker: Asker) -> Cleared:
        """Remove it."""
        if asker.uid not in (0, os.geteuid()):
            raise OwnerOnly(who=asker.name, daemon="conductor")
        return await self._kept_on_disk().prune_now(asker.name)

    def _kept_on_disk(self) -> Upkeep:
        if self._upkeep is None:
            raise BadRequest(problem="this conductor has its store in memory, and prunes nothing")
        return self._upkeep


def once_more(job: JobView, names: tuple[str, ...], wanted: Rerun, count: int = 1) -> Ask:
    """The request that ``job`` was, for these hosts, with what is wanted otherwise."""
    if strange := sorted(wanted.secrets.keys() - set(job.secrets)):
        raise BadRequest(problem=f"'{strange[0][:80]}' is no secret of job {job.job}, and a rerun changes nothing else")
    if missing := [name for name in job.secrets if name not in wanted.secrets]:
        raise SecretsNotKept(names=" and ".join(f"'{name}'" for name in missing), job=job.job)
    return Ask(
        score=job.score,
        targets=names,
        scope=Scope(job.scope),
        count=count,
        params=job.params,
        private=wanted.secrets,
        dry_run=job.dry_run,
        pin=bool(job.digest),
        expire=_lasting(job) if wanted.expire is None else wanted.expire,
        request_key=wanted.request_key,
        priority=job.priority if wanted.priority is None else wanted.priority,
        not_before=wanted.not_before,
        rolling=wanted.rolling or _rolling(job),
        rerun_of=job.job,
    )


def _lasting(job: JobView) -> float:
    """The ``expire`` that the job was asked for with, or was given by default."""
    if job.expires_at is None:
        return 0
    return max(job.expires_at - max(job.created_at, job.not_before or 0), 1) / 1000


def _rolling(job: JobView) -> Rolling | None:
    waves = None if job.course is None else job.course.waves
    if waves is None or waves.max_failures is None:
        return None
    batch = str(waves.batch) if waves.batch < waves.tasks else ""
    return Rolling(batch=batch, canary=waves.canary, max_failures=str(waves.max_failures), pause=waves.pause / 1000)


# ---- when and how a job is handed out


def waves_of(ask: Ask, targets: int) -> Waves | None:
    """The waves that are asked for, if any."""
    if ask.rolling is None:
        return None
    if ask.scope not in (None, Scope.ALL):
        raise BadRequest(
            problem="only a job for all of its targets rolls: a batch, canaries and the like go with 'all'"
        )
    try:
        return rolling.planned(ask.rolling, targets)
    except ValueError as problem:
        raise BadRequest(problem=str(problem)) from None


def beginning(ask: Ask, now: int) -> int | None:
    """When the job may begin, in milliseconds of the store's clock; what has passed is now."""
    if ask.not_before is None:
        return None
    if not 0 <= ask.not_before <= now / 1000 + LATEST:
        raise BadRequest(problem="'not_before' is seconds since 1970, and at most ten years from now")
    return int(ask.not_before * 1000)
