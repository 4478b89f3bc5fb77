"""``orchestra explain JOB``: everything that keeps its tasks from starting; hosts that wait alike are told together."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import click

from orchestra.cli.printing import counted, many, print_json, safe, say, tell, when
from orchestra.cli.session import SETTINGS, as_json, conductor_socket, reaching, talk
from orchestra.core.blockers import Ahead, Group, Standstill, grouped
from orchestra.core.explain import until
from orchestra.model import JobView

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

MOST_GROUPS: Final = 100
MOST_JOBS: Final = 5  # whose runs are in the way


@click.command("explain", context_settings=SETTINGS)
@click.argument("job", type=click.IntRange(1), metavar="JOB")
@click.argument("hosts", nargs=-1, metavar="[HOST…]")
@as_json
@reaching
def explain(job: int, hosts: tuple[str, ...], as_json: bool, socket: str | None, config: str) -> int:
    """Say everything that keeps the tasks of JOB from starting, on these HOSTs or on all: not only the first thing.

    Each with the time since which it is so, and what would end it. Hosts that wait for the same things are told
    together. 'getstatus JOB' has a line for each host.
    """

    async def work(conductor: "Orchestra") -> tuple[JobView, list[Standstill]]:
        return await conductor.job(job), [row async for row in conductor.explain(job, hosts)]

    view, rows = talk(conductor_socket(socket, config), work)
    if as_json:
        print_json({"job": job, "expires_at": view.expires_at, "waiting": rows})
        return 0
    if not rows:
        tell(_nothing_waits(view))
        return 0
    waiting = many(len({row.task for row in rows}), "task")
    say(f"job {job}: {safe(view.score)}, {waiting} not started ({counted(view.counts)}), {until(view.expires_at)}")
    groups = grouped(rows)
    for group in groups[:MOST_GROUPS]:
        for line in group_lines(group):
            say(line)
    if len(groups) > MOST_GROUPS:
        tell(f"and {len(groups) - MOST_GROUPS} more kinds of waiting; --json has all")
    return 0


def _nothing_waits(job: JobView) -> str:
    if job.verdict:
        return f"job {job.job} has ended: {job.verdict} ({counted(job.counts)})"
    return f"job {job.job}: nothing waits here; what has no outcome runs ({counted(job.counts)})"


def group_lines(group: Group) -> Iterator[str]:
    """Hosts that wait for the same things, and those."""
    from orchestra.core.folding import folded

    names = safe(folded(group.players))
    hosts = f" ({many(len(group.players), 'host')})" if len(group.players) > 1 else ""
    yield ("any one of " if group.choice and hosts else "") + names + hosts
    for blocker, latest in zip(group.blockers, group.latest, strict=True):
        yield f"    {safe(blocker.what)}{_since(blocker.since, latest)}"
        yield from (f"        {line}" for line in run_lines(blocker.runs))
        yield f"        until {safe(blocker.until)}"


def _since(first: int | None, latest: int | None) -> str:
    if first is None:
        return ""
    return f", since {when(first)}" + (f" to {when(latest)}" if latest != first else "")


def run_lines(runs: Sequence[Ahead]) -> list[str]:
    """What is in the way, by job."""
    jobs = Counter((run.job, run.score) for run in runs)
    running = Counter(run.job for run in runs if run.started_at is not None)
    lines = [
        f"job {job}, {safe(score)}: {many(number, 'run')}" + _running(running[job])
        for (job, score), number in jobs.most_common(MOST_JOBS)
    ]
    return lines + ([f"and of {len(jobs) - MOST_JOBS} more jobs"] if len(jobs) > MOST_JOBS else [])


def _running(number: int) -> str:
    return f", {number} of them known to be running" if number else ""
