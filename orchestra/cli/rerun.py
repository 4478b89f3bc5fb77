"""``orchestra rerun``: a job once more, where it ended in a certain way."""

from typing import Any

import click

from orchestra.cli.inputs import read
from orchestra.cli.printing import print_json, say
from orchestra.cli.rollout import not_before, rolling_of, rolling_options
from orchestra.cli.secrets import rerun_with_secrets
from orchestra.cli.session import JOB, SETTINGS, Whole, as_json, conductor_socket, reaching
from orchestra.cli.status import chosen
from orchestra.cli.submit import expiry, params_in, tell_accepted
from orchestra.cli.waiting import Outlook, seconds
from orchestra.errors import UsageError
from orchestra.model import Rerun, State


@click.command("rerun", context_settings=SETTINGS)
@click.argument("job", type=JOB)
@click.option(
    "--only", callback=chosen, required=True, metavar="OUTCOMES", help="Where it ended so: failed,lost,killed,never …"
)
@click.option("--secrets", metavar="FILE|-", help="The secret parameters: KEY=VALUE lines, or a JSON object.")
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
    secrets: str | None,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    socket: str | None,
    config: str,
    **options: Any,
) -> int:
    """Run JOB once more, on just those hosts where it ended in one of the OUTCOMES, and print the id of the new job.

    'never' is cancelled, expired and refused. Score, parameters and options are those of JOB, where nothing else is
    said; a one-of job has the candidates it had. Secret parameters are not kept: they are asked for at the terminal, or
    taken from --secrets. It is an error if no host is meant. Each of the two jobs shows the other in 'getstatus'.

    The exit status is that of 'submitjob'.
    """
    if timeout is not None and not wait:
        raise UsageError(problem="--timeout goes with --wait")
    rolling = rolling_of(options)
    given = params_in(read(secrets, "--secrets")) if secrets else {}
    wanted = Rerun(job=job, only=only, secrets=given, rolling=rolling, **options)
    path = conductor_socket(socket, config)
    receipt = rerun_with_secrets(path, wanted)
    if not wait:
        print_json(receipt) if as_json else say(str(receipt.job))
    tell_accepted(receipt)
    return Outlook(as_json, timeout).wait(path, receipt.job) if wait else 0
