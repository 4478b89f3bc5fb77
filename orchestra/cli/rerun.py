"""``orchestra rerun``: a job once more, where it ended in a certain way."""

import sys
from typing import Any

import click
from msgspec.structs import replace

from orchestra.cli.printing import print_json, say
from orchestra.cli.rollout import not_before, rolling_of, rolling_options
from orchestra.cli.secrets import prompted
from orchestra.cli.session import JOB, SETTINGS, Whole, as_json, conductor_socket, reaching, talk
from orchestra.cli.status import chosen
from orchestra.cli.submit import expiry, params_in, read, tell_accepted
from orchestra.cli.waiting import Outlook, seconds
from orchestra.errors import SecretsWanted, UsageError
from orchestra.model import Receipt, Rerun, State


@click.command("rerun", context_settings=SETTINGS)
@click.argument("job", type=JOB)
@click.option(
    "--only", callback=chosen, required=True, metavar="OUTCOMES", help="Where it ended so: failed,lost,killed,never …"
)
@click.option(
    "--params",
    "params_from",
    metavar="FILE|-",
    help="The secret parameters, if there are any: KEY=VALUE lines, or a JSON object. Otherwise they are asked for.",
)
@rolling_options
@not_before
@click.option("--expire", callback=expiry, metavar="TIME|never", help="Otherwise than the job had.")
@click.option("--request-key", metavar="K", help="The same key gives the same job, however often it is asked for.")
@click.option("--priority", type=Whole(-1_000_000, 1_000_000), help="Otherwise than the job had.")
@click.option("--wait", is_flag=True, help="Wait until it has ended, and print the hosts' answers as they come.")
@click.option("--timeout", callback=seconds, metavar="TIME", help="With --wait: give up waiting; the job goes on.")
@as_json
@reaching
def rerun(
    job: int,
    only: tuple[State, ...],
    params_from: str | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    socket: str | None,
    config: str,
    **options: Any,
) -> int:
    """Run JOB once more, on just those hosts where it ended in one of the OUTCOMES, and print the id of the new job.

    'never' is cancelled, expired and refused. Score, parameters and options are those of JOB, where nothing else is
    said; a one-of job has the candidates it had. Secret parameters are not kept, and are asked for anew. It is an error
    if no host is meant. Each of the two jobs shows the other in 'getstatus'.

    The exit status is that of 'submitjob'.
    """
    if timeout is not None and not wait:
        raise UsageError(problem="--timeout goes with --wait")
    rolling = rolling_of(options)
    given = params_in(read(params_from, "--params")) if params_from else {}
    path = conductor_socket(socket, config)
    receipt = _asked(path, Rerun(job=job, only=only, private=given, rolling=rolling, **options))
    if not wait:
        print_json(receipt) if as_json else say(str(receipt.job))
    tell_accepted(receipt)
    return Outlook(as_json, timeout).wait(path, receipt.job) if wait else 0


def _asked(path: str, wanted: Rerun) -> Receipt:
    """Ask for it, once the secrets that are missing were asked for."""
    try:
        return talk(path, lambda conductor: conductor.rerun(wanted))
    except SecretsWanted:
        if not sys.stdin.isatty():
            raise
    names = talk(path, lambda conductor: conductor.job(wanted.job)).secrets
    told = prompted(name for name in names if name not in wanted.private)
    return talk(path, lambda conductor: conductor.rerun(replace(wanted, private=wanted.private | told)))
