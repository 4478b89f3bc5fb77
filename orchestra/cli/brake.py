"""The brake: hold, release, and cancels of one job or of many."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from orchestra.audience.desk import Cancelling, CancelStep, Holding, Released
from orchestra.cli.printing import many, print_json, safe, say, tell
from orchestra.cli.session import SETTINGS, as_json, conductor_socket, is_number, job_number, reaching, talk
from orchestra.core import explain
from orchestra.errors import NotAsked, OrchestraError, UsageError
from orchestra.model import Braking, Choice, Chosen, Held, Hold

if TYPE_CHECKING:
    from orchestra.audience.client import Orchestra

DECLINED: Final = 1
NOTHING_DONE: Final = CancelStep(cancelled=0, cancelling=0, lost=0, after=None)

# ---- hold and release


@click.command("hold", context_settings=SETTINGS)
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Hand nothing to this host; may be repeated.")
@click.option("--score", "scores", multiple=True, metavar="SCORE", help="Hand out nothing of this score; likewise.")
@click.option("--reason", required=True, metavar="TEXT", help="Why, for everybody who asks what is being waited for.")
@as_json
@reaching
def hold(
    hosts: tuple[str, ...], scores: tuple[str, ...], reason: str, as_json: bool, socket: str | None, config: str
) -> int:
    """Have nothing handed out any more, or nothing to a HOST, or nothing of a SCORE, until it is released.

    What a player was given before goes on; 'orchestra cancel' ends that. Work can be asked for as ever, and waits. A
    hold outlives restarts of the conductor.
    """
    braking = Braking(hosts=hosts, scores=scores)
    done = talk(conductor_socket(socket, config), lambda conductor: conductor.hold(braking, reason))
    if as_json:
        print_json(done)
    else:
        _say_held(done)
    return 0


def _say_held(done: Holding) -> None:
    for one in done.made:
        say(safe(explain.held(one)))
    for one in done.known:
        say(f"as before: {safe(explain.held(one))}; one release lifts it")
    for warning in done.warnings:
        tell(f"warning: {safe(warning)}")
    if done.going_on:
        tell(f"{many(done.going_on, 'task')} handed out before go on; 'orchestra cancel' ends them")


@click.command("release", context_settings=SETTINGS)
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Release this host; may be repeated.")
@click.option("--score", "scores", multiple=True, metavar="SCORE", help="Release this score; may be repeated.")
@click.option("--all", "everything", is_flag=True, help="Release whatever is held.")
@as_json
@reaching
def release(
    hosts: tuple[str, ...], scores: tuple[str, ...], everything: bool, as_json: bool, socket: str | None, config: str
) -> int:
    """Lift the hold on everything, or on a HOST, or on a SCORE; what waited for that starts at once."""
    if everything and (hosts or scores):
        raise UsageError(problem="--all releases whatever is held; leave --host and --score out")
    braking = None if everything else Braking(hosts=hosts, scores=scores)
    done = talk(conductor_socket(socket, config), lambda conductor: conductor.release(braking))
    if as_json:
        print_json(done)
    else:
        _say_released(done)
    return 0


def _say_released(done: Released) -> None:
    for one in done.lifted:
        say(f"released: {_named(one)}")
    if not done.lifted:
        say("nothing of that was held")
    for one in done.left:
        tell(f"still: {safe(explain.held(one))}")


def _named(hold: Hold) -> str:
    return {Held.EVERYTHING: "everything", Held.HOST: safe(hold.name), Held.SCORE: f"the score {safe(hold.name)}"}[
        hold.kind
    ]


@click.command("holds", context_settings=SETTINGS)
@as_json
@reaching
def holds(as_json: bool, socket: str | None, config: str) -> int:
    """List what is held, since when, by whom and why."""
    found = talk(conductor_socket(socket, config), lambda conductor: conductor.holds())
    if as_json:
        print_json(found)
    elif not found:
        tell("nothing is held")
    else:
        for one in found:
            say(safe(explain.held(one)))
    return 0


# ---- cancel


@click.command("cancel", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="[JOB…] [HOST…]")
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Only what is on this host; may be repeated.")
@click.option("--score", metavar="SCORE", help="All unfinished jobs of this score.")
@click.option("--owner", metavar="USER", help="All unfinished jobs that this user asked for.")
@click.option("--all", "everything", is_flag=True, help="All unfinished jobs.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@as_json
@reaching
def cancel(
    words: tuple[str, ...],
    hosts: tuple[str, ...],
    score: str | None,
    owner: str | None,
    everything: bool,
    yes: bool,
    as_json: bool,
    socket: str | None,
    config: str,
) -> int:
    """Cancel JOBs, or their part on some HOSTs; or whatever is unfinished of a score, an owner, a host, or at all.

    What waits ends at once. What runs is killed, and 'getstatus JOB' says when that is proved; until then it is being
    cancelled. Without JOB it is said how much that is, and asked.
    """
    jobs = [job_number(word) for word in words if is_number(word)]
    named = (*(word for word in words if not is_number(word)), *hosts)
    path = conductor_socket(socket, config)
    if jobs:
        if score is not None or owner is not None or everything:
            raise UsageError(problem="name jobs, or choose them by --score, --owner or --all, but not both")
        return _cancel_jobs(path, jobs, named, as_json)
    choice = Choice(score=score, owner=owner, hosts=named, everything=everything)
    _check(choice, words)
    return _cancel_chosen(path, choice, yes, as_json)


def _check(choice: Choice, words: Sequence[str]) -> None:
    if words:
        raise UsageError(problem=f"'{words[0][:80]}' is no number of a job; for all that is on a host say --host")
    said = choice.score is not None or choice.owner is not None or bool(choice.hosts)
    if choice.everything and said:
        raise UsageError(problem="--all is every unfinished job; leave --score, --owner and --host out, or --all")
    if not choice.everything and not said:
        raise UsageError(problem="say what: a JOB, or --score, --owner, --host or --all")


def _cancel_jobs(path: str, jobs: Sequence[int], hosts: tuple[str, ...], as_json: bool) -> int:
    async def work(conductor: "Orchestra") -> list[Cancelling]:
        return [await conductor.cancel(job, hosts) for job in dict.fromkeys(jobs)]

    done = talk(path, work)
    if as_json:
        print_json(done[0] if len(done) == 1 else done)
    else:
        for one in done:
            ended = [(one.ended, "had ended before")]
            say(f"job {one.job}: {_counted(one.cancelled, one.cancelling, one.lost, ended) or 'nothing to cancel'}")
    return 0


def _cancel_chosen(path: str, choice: Choice, yes: bool, as_json: bool) -> int:
    chosen = talk(path, lambda conductor: conductor.choose(choice))
    if chosen.jobs and not yes and not _agreed(chosen):
        tell("nothing was cancelled")
        return DECLINED
    done = _in_steps(path, choice, chosen.up_to) if chosen.jobs else NOTHING_DONE
    if as_json:
        print_json(done)
    else:
        say(_counted(done.cancelled, done.cancelling, done.lost) or "nothing to cancel")
    return 0


def _in_steps(path: str, choice: Choice, up_to: int) -> CancelStep:
    so_far = [NOTHING_DONE]

    def progress(done: CancelStep) -> None:
        so_far.append(done)
        if done.after is not None and sys.stderr.isatty():
            tell(f"  {_counted(done.cancelled, done.cancelling, done.lost)} so far")

    try:
        return talk(path, lambda conductor: conductor.cancel_chosen(choice, up_to, progress))
    except (OrchestraError, KeyboardInterrupt):
        done = so_far[-1]
        tell(
            f"broken off: {_counted(done.cancelled, done.cancelling, done.lost) or 'nothing cancelled'}; "
            "the same command again does the rest"
        )
        raise


def _agreed(chosen: Chosen) -> bool:
    """Whether the person at the terminal wants just that."""
    what = f"{many(chosen.jobs, 'job')}: {many(chosen.pending, 'task')} waiting, "
    what += f"{many(chosen.dispatched, 'task')} handed out"
    if not sys.stdin.isatty():
        raise NotAsked(what=what)
    tell(f"This cancels {what}. What runs is killed.")
    return click.confirm("Go on?", default=False, err=True)


def _counted(cancelled: int, cancelling: int, lost: int, more: Sequence[tuple[int, str]] = ()) -> str:
    parts = (
        (cancelled, "cancelled"),
        (cancelling, "being cancelled"),
        (lost, "lost: an earlier attempt may have run"),
        *more,
    )
    return ", ".join(f"{many} {what}" for many, what in parts if many)
