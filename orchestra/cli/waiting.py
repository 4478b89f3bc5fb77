"""Waiting for a job at a terminal: answers as they come, a bar if somebody watches, and the exit status."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra import config
from orchestra.cli.printing import answer, coloured, counted, json_task, print_json, say, tell
from orchestra.cli.session import JOB, SETTINGS, as_json, conductor_socket, reaching, talk
from orchestra.errors import GaveUpWaiting, OrchestraError, Unanswered
from orchestra.model import Ask, Event, JobView, Receipt, State, TaskView

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

LOST, FAILED, NEVER_RAN = 11, 10, 12
GAP: Final = 20  # tasks that are read and not shown cost less than one more request
OUTCOMES: Final = frozenset(state.label for state in State if state.terminal)


def seconds(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """The option ``10s``, ``5m`` or ``1h`` in seconds."""
    try:
        return None if value is None else config.duration(value) / 1000
    except ValueError as problem:
        raise click.BadParameter(f"{problem}, not '{value}'", ctx, param) from None


def exit_status(counts: dict[str, int]) -> int:
    """0 if all is well, else the worst that happened."""
    if counts.get("lost"):
        return LOST
    if counts.get("failed") or counts.get("killed"):
        return FAILED
    return NEVER_RAN if any(counts.get(state) for state in ("cancelled", "expired", "refused")) else 0


class Answers:
    """Shows each task of a job once, when it has its outcome."""

    def __init__(self, conductor: "Orchestra", show: Callable[[TaskView], None]) -> None:
        self._conductor = conductor
        self._show = show
        self._shown: set[int] = set()
        self.job = 0

    async def progress(self, events: Sequence[Event]) -> None:
        """Show the tasks that these events end."""
        ended = {event.task for event in events if event.kind in OUTCOMES and event.task is not None}
        for first, last in stretches(sorted(ended - self._shown)):
            await self._read(first - 1, last, ended)

    async def rest(self) -> None:
        """Show what has not been shown, once the job has ended."""
        await self._read(-1, None, None)

    async def _read(self, after: int, last: int | None, wanted: set[int] | None) -> None:
        async for page in self._conductor.task_pages(self.job, after=after):
            for task in page:
                if last is not None and task.task > last:
                    return
                if task.task not in self._shown and task.state in OUTCOMES and (not wanted or task.task in wanted):
                    self._shown.add(task.task)
                    self._show(task)
            if last is not None and page[-1].task >= last:
                return


def stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The (first, last) of the stretches of ascending ``numbers`` that have no gap to speak of."""
    start = 0
    for n in range(1, len(numbers) + 1):
        if n == len(numbers) or numbers[n] - numbers[n - 1] > GAP:
            yield numbers[start], numbers[n - 1]
            start = n


class Bar:
    """How many hosts have answered, for whoever watches."""

    def advance(self) -> None:
        """One more."""

    def total(self, many: int) -> None:
        """Of so many."""

    def say(self, text: str) -> None:
        """Print beside the bar."""
        say(text)


@contextlib.contextmanager
def bar(wanted: bool) -> Iterator[Bar]:
    """A bar if somebody watches, and if it is worth one."""
    if not wanted or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console  # slow to import, and only terminals need it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _RichBar(progress, sys.stdout.isatty())


class _RichBar(Bar):
    def __init__(self, progress: Any, same_terminal: bool) -> None:
        self._progress = progress
        self._same_terminal = same_terminal
        self._task = progress.add_task("", total=None)

    def advance(self) -> None:
        self._progress.advance(self._task)

    def total(self, many: int) -> None:
        self._progress.update(self._task, total=many)

    def say(self, text: str) -> None:
        if not self._same_terminal:
            return say(text)
        from rich.text import Text

        self._progress.console.print(Text.from_ansi(text), soft_wrap=True)


class Outlook:
    """One wait: what has been accepted so far, and what is printed."""

    def __init__(self, as_json: bool, timeout: float | None) -> None:
        self.job: int | None = None
        self._json = as_json
        self._timeout = timeout

    def perform(self, path: str, ask: Ask, accepted: Callable[[Receipt], None]) -> int:
        """Submit, show the answers as they come, and return the exit status."""

        async def session(conductor: "Orchestra", answers: Answers, bar: Bar) -> JobView:
            def known(receipt: Receipt) -> None:
                self.job = answers.job = receipt.job
                bar.total(ask.count if ask.scope in ("one", "some") else receipt.targets)
                accepted(receipt)

            return await conductor.perform(ask, known, answers.progress, self._timeout)

        return self._shown(path, session)

    def wait(self, path: str, job: int) -> int:
        """Show the answers of ``job`` as they come, and return the exit status."""
        self.job = job

        async def session(conductor: "Orchestra", answers: Answers, bar: Bar) -> JobView:
            answers.job = job
            bar.total(sum((await conductor.job(job)).counts.values()))
            return await conductor.wait(job, answers.progress, self._timeout)

        return self._shown(path, session)

    def _shown(self, path: str, session: Callable[["Orchestra", Answers, Bar], Any]) -> int:
        tasks: list[TaskView] = []

        async def work(conductor: "Orchestra", bar: Bar) -> JobView:
            def show(task: TaskView) -> None:
                bar.advance()
                if self._json:
                    tasks.append(task)
                else:
                    bar.say("\n".join(answer(task, {}, self.job or 0)))

            answers = Answers(conductor, show)
            job: JobView = await session(conductor, answers, bar)
            await answers.rest()
            return job

        try:
            with bar(not self._json) as drawn:
                job = talk(path, lambda conductor: work(conductor, drawn))
        except KeyboardInterrupt:
            raise self._detached() from None
        if self._json:
            print_json({"job": job, "tasks": [json_task(task) for task in sorted(tasks, key=lambda task: task.task)]})
        else:
            tell(f"job {job.job}: {coloured(job.verdict)} ({counted(job.counts)})")
        return exit_status(job.counts)

    def _detached(self) -> OrchestraError:
        """Ctrl-C leaves; it cancels nothing."""
        return Unanswered(what="the request") if self.job is None else GaveUpWaiting(job=self.job)


@click.command("wait", context_settings=SETTINGS)
@click.argument("job", type=JOB)
@click.option(
    "--timeout", callback=seconds, metavar="TIME", help="Give up waiting after 10s, 5m, 1h …; the job goes on."
)
@as_json
@reaching
def wait(job: int, timeout: float | None, as_json: bool, socket: str | None, config: str) -> int:
    """Wait until JOB has ended, and print the hosts' answers as they come.

    Exit status: 0 all ok; 11 something is lost, 10 failed or killed, 12 never ran; 13 gave up waiting.
    """
    return Outlook(as_json, timeout).wait(conductor_socket(socket, config), job)
