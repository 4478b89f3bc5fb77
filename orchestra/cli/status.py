"""``getstatus``: everything known of a job, and the list of jobs."""

import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra.cli.printing import (
    TAIL_BYTES,
    answer,
    counted,
    details,
    job_head,
    json_task,
    print_json,
    safe,
    safe_lines,
    say,
    table,
    tell,
    when,
)
from orchestra.cli.session import JOB, SETTINGS, Whole, as_json, conductor_socket, reaching, talk
from orchestra.errors import UsageError
from orchestra.model import JobView, State, TaskView

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

NEVER: Final = (State.CANCELLED, State.EXPIRED, State.REFUSED)
MOST_TAILS: Final = 100  # tasks whose long output is fetched for its end
RECENT: Final = 20


def states_of(only: str | None) -> tuple[State, ...]:
    """``failed,lost`` as states; ``never`` is cancelled, expired and refused."""
    if only is None:
        return ()
    found: list[State] = []
    for word in only.replace(",", " ").split():
        if word == "never":
            found += NEVER
        elif word.upper() in State.__members__:
            found.append(State[word.upper()])
        else:
            known = ", ".join(state.label for state in State)
            raise UsageError(problem=f"--only: there is no outcome '{word[:40]}'; there are {known}, and never")
    if not found:
        raise UsageError(problem="--only: name at least one outcome")
    return tuple(dict.fromkeys(found))


def chosen(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[State, ...]:
    """The option ``--only failed,lost``."""
    return states_of(value)


@click.command("status", context_settings=SETTINGS)
@click.argument("job", type=JOB, required=False)
@click.option("--only", callback=chosen, metavar="OUTCOMES", help="Only these: failed,lost,never …")
@click.option("--names", is_flag=True, help="Print host names only, one per line.")
@click.option("--output", metavar="HOST", help="Print all that was kept of the output of this host.")
@as_json
@reaching
def status(
    job: int | None,
    only: tuple[State, ...],
    names: bool,
    output: str | None,
    as_json: bool,
    socket: str | None,
    config: str,
) -> int:
    """Everything known of JOB: who asked, and for every host the outcome or what it waits for.

    Without JOB: the most recent jobs.
    """
    path = conductor_socket(socket, config)
    if job is None:
        if only or names or output:
            raise UsageError(problem="--only, --names and --output need the number of a job")
        return talk(path, lambda conductor: _list(conductor, RECENT, False, None, as_json))
    if output is not None:
        return talk(path, lambda conductor: _output(conductor, job, output))
    if names:
        return talk(path, lambda conductor: _names(conductor, job, only, as_json))
    return talk(path, lambda conductor: _show(conductor, job, only, as_json))


@click.command("jobs", context_settings=SETTINGS)
@click.option("--unfinished", is_flag=True, help="Only jobs that have not ended.")
@click.option("--owner", metavar="USER", help="Only jobs that this user asked for.")
@click.option("--limit", type=Whole(1), default=RECENT, show_default=True, help="At most so many.")
@as_json
@reaching
def jobs(unfinished: bool, owner: str | None, limit: int, as_json: bool, socket: str | None, config: str) -> int:
    """List jobs, newest first."""
    path = conductor_socket(socket, config)
    return talk(path, lambda conductor: _list(conductor, limit, unfinished, owner, as_json))


async def _list(conductor: "Orchestra", limit: int, unfinished: bool, owner: str | None, as_json: bool) -> int:
    found: list[JobView] = []
    async for page in conductor.job_pages(unfinished, owner, limit=min(limit, 500)):
        found += page
        if len(found) >= limit:
            break
    if as_json:
        print_json(found[:limit])
    elif not found:
        tell("no jobs")
    else:
        table(("JOB", "SCORE", "FOR", "VERDICT", "HOSTS", "WHO", "WHEN"), [_row(view) for view in found[:limit]])
    return 0


def _row(job: JobView) -> Sequence[str]:
    standing = job.verdict or ("paused" if job.paused else "not ended")
    score = f"{job.score} (dry run)" if job.dry_run else job.score
    return str(job.job), score, job.scope, standing, counted(job.counts), job.owner, when(job.created_at)


async def _show(conductor: "Orchestra", job: int, only: tuple[State, ...], as_json: bool) -> int:
    view = await conductor.job(job)
    if as_json:
        print_json({"job": view, "tasks": [json_task(task) async for task in conductor.tasks(job, only)]})
        return 0
    say("\n".join(job_head(view)))
    many = sum(view.counts.get(state.label, 0) for state in only or State)
    async for task in conductor.tasks(job, only):
        tails = await _tails(conductor, job, task) if many <= MOST_TAILS else {}
        say("\n".join([*answer(task, tails, job), *details(task)]))
    return 0


async def _tails(conductor: "Orchestra", job: int, task: TaskView) -> dict[int, bytes]:
    """The ends of those streams that are too long to come with the task."""
    found = {}
    for number, stream in ((1, task.stdout), (2, task.stderr)):
        if stream.total and not stream.data and stream.spans:
            start, length = stream.spans[-1]
            offset = max(start, start + length - TAIL_BYTES)
            pieces = [data async for _, data in _kept(conductor, job, task.task, number, offset)]
            found[number] = b"".join(pieces)
    return found


async def _kept(
    conductor: "Orchestra", job: int, task: int, stream: int, offset: int = 0
) -> AsyncIterator[tuple[int, bytes]]:
    while pieces := await conductor.output(job, task, stream, offset):
        for start, data in pieces:
            yield start, data
            offset = start + len(data)


async def _names(conductor: "Orchestra", job: int, only: tuple[State, ...], as_json: bool) -> int:
    found = [task.player async for task in conductor.tasks(job, only) if task.player]
    if as_json:
        print_json(found)
    elif found:
        say("\n".join(safe(name) for name in found))
    return 0


async def _output(conductor: "Orchestra", job: int, host: str) -> int:
    task = await _task_of(conductor, job, host)
    for number, stream, target in ((1, task.stdout, sys.stdout), (2, task.stderr, sys.stderr)):
        end = 0
        async for offset, data in _kept(conductor, job, task.task, number):
            _gap(end, offset)
            _write(target, data)
            end = offset + len(data)
        _gap(end, stream.total)
    return 0


async def _task_of(conductor: "Orchestra", job: int, host: str) -> TaskView:
    wanted = host.lower()
    async for task in conductor.tasks(job):
        if task.player and (task.player == wanted or task.player.startswith(f"{wanted}.")):
            return task
    raise UsageError(problem=f"job {job} has no task on '{host[:80]}'; 'getstatus {job} --names' lists its hosts")


def _gap(end: int, start: int) -> None:
    if start > end:
        sys.stdout.flush()
        tell(f"[{start - end} bytes were not kept]")


def _write(target: Any, data: bytes) -> None:
    """To a terminal what is safe to show, to anything else the bytes as they are."""
    if target.isatty():
        target.write("\n".join(safe_lines(data)) + "\n")
    else:
        target.flush()
        target.buffer.write(data)
    target.flush()
