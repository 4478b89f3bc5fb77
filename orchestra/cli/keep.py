"""The commands that look after a conductor's store: backup, restore and prune."""

import os
import time

import click

from orchestra import settings
from orchestra.audience.desk import BackedUp
from orchestra.cli.printing import print_json, safe, say, sized, tell
from orchestra.cli.session import CONFIG_DIR, SETTINGS, as_json, conductor_socket, reaching, talk
from orchestra.errors import FileProblem, NoConductor
from orchestra.model import PrunePlan
from orchestra.store import sqlite
from orchestra.store.backup import back_up
from orchestra.store.restore import restore as put_back


@click.command("backup", context_settings=SETTINGS)
@click.argument("file", metavar="FILE")
@as_json
@reaching
def backup(file: str, as_json: bool, socket: str | None, config: str) -> int:
    """Copy the conductor's store to the new FILE, while it works.

    The conductor writes FILE, on its machine and as its user, who alone can read it. Where no conductor runs, this
    command does it.
    """
    target = os.path.abspath(file)
    try:
        done = talk(conductor_socket(socket, config), lambda conductor: conductor.backup(target))
    except NoConductor:
        done = _of_a_stopped_conductor(target, config)
    if as_json:
        print_json(done)
    else:
        say(f"{safe(done.file)}: {done.size} bytes, in {done.took / 1000:.1f} s")
    return 0


def _of_a_stopped_conductor(target: str, config: str) -> BackedUp:
    started = time.monotonic()
    directory = settings.conductor(config).state
    store = os.path.join(directory, sqlite.FILE)
    if not os.path.exists(store):
        raise FileProblem(file=store, problem="is not there: no conductor runs, and none has run, with this directory")
    lock = sqlite.Lock(directory, "conductor")
    try:
        size = back_up(lambda: sqlite.connect(store), target, lambda: False)
    finally:
        lock.release()
    return BackedUp(file=target, size=size, took=round((time.monotonic() - started) * 1000))


@click.command("restore", context_settings=SETTINGS)
@click.argument("file", metavar="FILE")
@as_json
@click.option("--config", envvar="ORCHESTRA_CONFIG", default=CONFIG_DIR, metavar="DIR", help="Where conductor.conf is.")
def restore(file: str, as_json: bool, config: str) -> int:
    """Put the backup FILE in the place of the store of a conductor that is stopped; that store is kept beside it.

    Nobody knows what was done since the backup: what was unfinished in it ends as 'lost' wherever it may have run and
    its player cannot tell.
    """
    done = put_back(os.path.abspath(file), settings.conductor(config).state, time.time_ns() // 1_000_000)
    if as_json:
        print_json(done)
        return 0
    say(f"restored; the next job will be {done.next_job}")
    if done.aside:
        say(f"the store that was there is now {safe(done.aside)}")
    say(
        f"{done.lost} tasks of one-of jobs are lost; of {done.doubtful} other unfinished tasks it is not sure that they"
    )
    say("have not started: their players tell when they are back. Now start the conductor.")
    tell("jobs that were accepted after the backup are not known any more")
    return 0


@click.command("prune", context_settings=SETTINGS)
@click.option("--plan", "only_plan", is_flag=True, help="Say what would go and how much room that is; remove nothing.")
@as_json
@reaching
def prune(only_plan: bool, as_json: bool, socket: str | None, config: str) -> int:
    """Remove jobs that ended longer ago than 'keep', and what makes the store larger than 'keep_size', now.

    The conductor does so by itself, by and by; both are in conductor.conf. What has not ended is never removed.
    """
    path = conductor_socket(socket, config)
    if only_plan:
        planned = talk(path, lambda conductor: conductor.prune_plan())
        print_json(planned) if as_json else _say_plan(planned)
        return 0
    done = talk(path, lambda conductor: conductor.prune())
    if as_json:
        print_json(done)
    else:
        say(f"{done.jobs} jobs and {done.outputs} pieces of output of others are gone")
        say(f"the store holds {sized(done.after)}, before {sized(done.before)}")
    return 0


def _say_plan(planned: PrunePlan) -> None:
    say(f"the store holds {sized(planned.size)}; keep_size is {sized(planned.keep_size)}")
    parts = (
        (planned.old, planned.old_bytes, "jobs ended longer ago than 'keep'"),
        (planned.outputs, planned.output_bytes, "jobs would lose their output to 'keep_size'"),
        (planned.more, planned.more_bytes, "jobs would go because of 'keep_size'"),
    )
    for many, size, what in parts:
        if many:
            say(f"{many} {what}: about {sized(size)}")
    if not any(many for many, _, _ in parts):
        say("nothing would go")
