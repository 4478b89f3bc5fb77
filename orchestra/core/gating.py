"""What keeps a task though its player could have it: its job is paused or stopped, begins later, or its wave has not
begun. Pure."""

from collections.abc import Iterator

from orchestra import rolling
from orchestra.core.blockers import Blocker
from orchestra.core.explain import moment
from orchestra.model import Course, JobView, Paused


def of_task(job: JobView, task: int) -> tuple[Blocker, ...]:
    """Whatever of this keeps a task that nobody was given."""
    found = [_paused(job.job, job.paused)] if job.paused else []
    if job.course is not None:
        found += _of_course(job, job.course, task)
    return tuple(found)


def _paused(job: int, by: Paused) -> Blocker:
    what = f"the job is paused by {by.owner}"
    return Blocker(kind="paused", what=what, since=by.at, until=f"'orchestra resume {job}'")


def _of_course(job: JobView, course: Course, task: int) -> Iterator[Blocker]:
    if course.stopped:
        yield Blocker(kind="stopped", what=f"about to be cancelled: {course.stopped}", until="that is done")
        return
    if task < course.opened:
        return
    begins = moment(course.next_at) if course.next_at is not None else ""
    if not course.wave and begins:
        yield Blocker(kind="not before", what="the job begins later", since=job.created_at, until=begins)
    number = rolling.wave_of(course.waves, task)
    if number > 1:
        what = f"its wave, {number} of {rolling.how_many(course.waves)}, has not begun"
        ended = f"wave {number - 1} has ended, with few enough failures"
        yield Blocker(kind="wave", what=what, until=begins if number == course.wave + 1 and begins else ended)
