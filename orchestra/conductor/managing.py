"""What the audience may do to jobs that are there: pause and resume them.

And what a request says of when and how its job is handed out, checked.
"""

from typing import Final

from orchestra import rolling
from orchestra.audience.desk import Pausing, Resuming
from orchestra.conductor.dispatch import Dispatch
from orchestra.errors import BadRequest
from orchestra.model import Ask, Asker, Scope, Waves
from orchestra.store import statements

LATEST: Final = 3650 * 86_400  # seconds from now at which a job may begin


class Manager:
    """A :class:`~orchestra.audience.desk.Manager` of the jobs of a dispatch."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

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


# ---- when and how a job is handed out


def waves_of(ask: Ask, targets: int) -> Waves | None:
    """The waves that are asked for, if any."""
    if ask.rolling is None:
        return None
    if ask.scope is not Scope.ALL:
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
