"""What pruning would remove now, and about how much room that is; nothing is changed.

It looks through the whole store, and is for a connection of its own.
"""

from collections.abc import Iterable, Iterator
from sqlite3 import Cursor
from typing import Final, NamedTuple

from orchestra.model import PrunePlan
from orchestra.store.prune import size

ROW: Final = 48  # bytes that a row takes beside what is counted, about
_ENDED: Final = "SELECT job_id, ended_at FROM jobs WHERE ended_at IS NOT NULL ORDER BY ended_at"
_OUTPUT: Final = "SELECT job_id, sum(length(data) + {row}) FROM outputs GROUP BY job_id"
_REST: Final = (
    "SELECT job_id, sum(length(body) + {row}) FROM results GROUP BY job_id",
    "SELECT job_id, count(*) * {row} * 2 FROM tasks GROUP BY job_id",
    "SELECT job_id, sum(length(kind) + length(actor) + length(detail) + {row}) FROM events GROUP BY job_id",
    "SELECT job_id, length(body) + {row} * 3 FROM job_params",
)


class _Job(NamedTuple):
    job: int
    ended_at: int
    output: int  # bytes
    rest: int


def plan(cur: Cursor, now: int, keep: int | None, keep_size: int) -> PrunePlan:
    """What :func:`~orchestra.store.prune.prune` would come to: what is older than ``keep``; then, while the store is
    larger than ``keep_size``, output of the oldest jobs, and the oldest jobs themselves."""
    whole = size(cur)
    jobs = list(_jobs(cur))
    old = [job for job in jobs if keep is not None and job.ended_at <= now - keep]
    freed_old = sum(job.output + job.rest for job in old)
    young = jobs[len(old) :]
    too_much = whole - freed_old - keep_size
    outputs = list(_until(too_much, sorted((job.job, job.output) for job in young if job.output)))
    bared = {number for number, _ in outputs}
    too_much -= sum(many for _, many in outputs)
    rest = ((job.job, job.rest + (0 if job.job in bared else job.output)) for job in young)
    more = list(_until(too_much, rest))
    return PrunePlan(
        size=whole,
        keep_size=keep_size,
        old=len(old),
        old_bytes=freed_old,
        outputs=len(outputs),
        output_bytes=sum(many for _, many in outputs),
        more=len(more),
        more_bytes=sum(many for _, many in more),
    )


def _until(too_much: int, found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for number, many in found:
        if too_much <= 0:
            return
        too_much -= many
        yield number, many


def _jobs(cur: Cursor) -> Iterator[_Job]:
    """Every job that has ended, the oldest first."""
    output = dict(cur.execute(_OUTPUT.format(row=ROW)).fetchall())
    rest: dict[int, int] = {}
    for sql in _REST:
        for job, many in cur.execute(sql.format(row=ROW)):
            rest[job] = rest.get(job, 0) + many
    for job, ended_at in cur.execute(_ENDED):
        yield _Job(job, ended_at, output.get(job, 0), rest.get(job, 0))
