"""``orchestra events``: what has happened, to one job or to all, and what happens now."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click
import msgspec

from orchestra.cli.printing import coloured, safe, say, when
from orchestra.cli.session import JOB, SETTINGS, Whole, as_json, conductor_socket, reaching, talk
from orchestra.model import Event

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

RECENT: Final = 50


@click.command("events", context_settings=SETTINGS)
@click.argument("job", type=JOB, required=False)
@click.option("--follow", is_flag=True, help="Go on with what happens, until the job has ended, or for ever.")
@click.option("--since", type=Whole(0), metavar="N", help="From the event after number N on.")
@as_json
@reaching
def events(job: int | None, follow: bool, since: int | None, as_json: bool, socket: str | None, config: str) -> int:
    """Print what has happened to JOB, one event a line, oldest first; or to all jobs.

    Events of a JOB are numbered from 1 without a gap. Without JOB a line begins with the event's place among those of
    all jobs (in JSON: 'seq'): these are in the order in which they were committed, and none is ever put in before one
    that was told. Without --since it is the last 50 of all jobs, or with --follow what happens from now on. Who was
    broken off goes on with --since and the last number; events of pruned jobs are gone.
    """
    path = conductor_socket(socket, config)
    show = _Lines(of_all=job is None, as_json=as_json)
    if job is None:
        talk(path, lambda conductor: _all(conductor, show, follow, since))
    else:
        talk(path, lambda conductor: _of_one(conductor, show, job, follow, since or 0))
    return 0


async def _all(conductor: "Orchestra", show: "_Lines", follow: bool, since: int | None) -> None:
    if follow:
        await conductor.follow(show.take, since)
    start = max(0, await conductor.last_event() - RECENT) if since is None else since
    async for page in conductor.all_event_pages(start):
        show.take(page)


async def _of_one(conductor: "Orchestra", show: "_Lines", job: int, follow: bool, since: int) -> None:
    if follow:
        await conductor.wait(job, show.take, since=since)
        return
    async for page in conductor.event_pages(job, since):
        show.take(page)


class _Lines:
    """Prints events, each on a line, at once."""

    def __init__(self, *, of_all: bool, as_json: bool) -> None:
        self._of_all = of_all
        self._json = as_json

    def take(self, events: Iterable[Event]) -> None:
        for event in events:
            say(msgspec.json.encode(event).decode() if self._json else line(event, of_all=self._of_all))
        sys.stdout.flush()


def line(event: Event, *, of_all: bool) -> str:
    """An event for people."""
    number = f"{event.seq} job {event.job}" if of_all else str(event.n)
    task = "" if event.task is None else f"task {event.task}"
    words = (number, when(event.at), coloured(event.kind), event.player and safe(event.player), task)
    return "  ".join(filter(None, (*words, event.actor and f"by {safe(event.actor)}", safe(event.detail))))
