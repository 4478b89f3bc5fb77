"""``submitjob``: ask for work."""

import json
import shlex
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import click

from orchestra import config as conf
from orchestra import parameters
from orchestra.cli.inputs import read
from orchestra.cli.naming import Naming, naming_of, naming_options, scope_of, targets_from, targets_in
from orchestra.cli.planning import plan
from orchestra.cli.printing import many, print_json, safe, say, tell
from orchestra.cli.rollout import not_before, rolling_of, rolling_options
from orchestra.cli.secrets import with_secrets
from orchestra.cli.session import SETTINGS, Whole, as_json, conductor_socket, reaching, talk
from orchestra.cli.waiting import Outlook, seconds
from orchestra.errors import UsageError
from orchestra.model import Ask, Receipt, Rolling, Scope
from orchestra.parameters.declared import text_of


class Words(NamedTuple):
    """The positional words, told apart."""

    score: str
    targets: tuple[str, ...]
    params: dict[str, str]


def told_apart(words: Sequence[str], command: str = "submitjob") -> Words:
    """SCORE TARGET… [KEY=VALUE…]: whatever has a ``=`` is a parameter, wherever it stands."""
    if "!" in words:
        raise UsageError(problem=_in_todays_words(words, command))
    plain = [word for word in words if "=" not in word]
    if not plain:
        raise UsageError(problem=f"name a score: {command} SCORE TARGET… [KEY=VALUE…]")
    return Words(plain[0], tuple(plain[1:]), pairs(word for word in words if "=" in word))


def _in_todays_words(words: Sequence[str], command: str) -> str:
    cut = words.index("!")
    before, rest = list(words[:cut]), list(words[cut + 1 :])
    if len(rest) % 2:
        return f"the form with '!' is gone, and here '{rest[-1]}' has no value; write KEY=VALUE after the hosts"
    scope = ["--all"] if len(set(before[1:])) > 1 else []
    params = [f"{key}={value}" for key, value in zip(rest[::2], rest[1::2], strict=True)]
    request = shlex.join([command, *scope, *before, *params])
    return f"the form with '!' is gone; write: {request}" + (" (or --one)" if scope else "")


def pairs(items: Iterable[str]) -> dict[str, str]:
    """``KEY=VALUE`` items, split at the first ``=``; a key that comes twice is refused."""
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise UsageError(problem=f"expected KEY=VALUE, not '{item[:80]}'")
        if key in found:
            raise UsageError(problem=f"the parameter '{key[:80]}' is given twice")
        found[key] = value
    return found


def params_in(text: str) -> dict[str, str]:
    """Parameters in a file: ``KEY=VALUE`` lines with ``#`` comments, or one JSON object."""
    if text.lstrip().startswith("{"):
        return _json_params(text)
    lines = (line.rstrip("\r") for line in text.split("\n"))
    return pairs(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def _json_params(text: str) -> dict[str, str]:
    try:
        found = json.loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as problem:
        raise UsageError(problem=f"--params: this is not JSON: {problem}") from None
    texts = {key: text_of(value) for key, value in found.items()}
    if odd := [key for key, text in texts.items() if text is None]:
        kinds = "a string, a number, true, false or a list of strings"
        raise UsageError(problem=f"--params: the value of '{odd[0][:80]}' must be {kinds}")
    return {key: text for key, text in texts.items() if text is not None}


def _each_once(items: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in items:
        if key in found:
            raise UsageError(problem=f"the parameter '{key[:80]}' is given twice")
        found[key] = value
    return found


def expiry(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """The option ``--expire`` in seconds; 0 is never."""
    if value is None:
        return None
    try:
        milliseconds = conf.duration_or_never(value)
    except ValueError as problem:
        raise click.BadParameter(f"{problem}, or never; not '{value}'", ctx, param) from None
    if milliseconds == 0:
        raise click.BadParameter("expected a duration longer than 0, or never", ctx, param)
    return 0.0 if milliseconds is None else milliseconds / 1000


class Request(NamedTuple):
    """What the options say beside the words."""

    all_of: bool
    one_of: bool
    targets_from: str | None
    params_from: str | None
    expire: float | None
    request_key: str | None
    priority: int
    dry_run: bool = False
    not_before: float | None = None
    rolling: Rolling | None = None
    pin: bool = False
    some: int | None = None
    naming: Naming = Naming()
    expect: str = ""


def ask_of(words: Sequence[str], request: Request, command: str = "submitjob") -> Ask:
    """The request that a command line means, or a sentence that says what is wrong with it."""
    if request.targets_from == "-" == request.params_from:
        raise UsageError(problem="--targets-from and --params cannot both read stdin")
    said = told_apart(words, command)
    from_file = targets_in(read(request.targets_from, "--targets-from")) if request.targets_from else ()
    more = params_in(read(request.params_from, "--params")) if request.params_from else {}
    for key in more.keys() & said.params.keys():
        raise UsageError(problem=f"the parameter '{key[:80]}' is given twice, here and in {request.params_from}")
    targets = said.targets + from_file
    if not targets:
        raise UsageError(problem=f"no target: name at least one host after '{said.score}'")
    if wrong := parameters.problem(more | said.params):
        raise UsageError(problem=wrong)
    scopes = {Scope.ALL: request.all_of, Scope.ONE: request.one_of, Scope.SOME: request.some is not None}
    return Ask(
        score=said.score,
        targets=targets,
        scope=scope_of(targets, scopes, request.naming),
        count=request.some or 1,
        exclude=request.naming.exclude,
        where=request.naming.where,
        limit=request.naming.limit,
        expect=request.expect,
        params=said.params,
        private=more,
        dry_run=request.dry_run,
        expire=request.expire,
        request_key=request.request_key,
        priority=request.priority,
        pin=request.pin,
        not_before=request.not_before,
        rolling=request.rolling,
    )


def tell_accepted(receipt: Receipt) -> None:
    """Say what is to be said of a request that was accepted."""
    if not receipt.created:
        tell(f"job {receipt.job} was made by this request key before; nothing new was asked for")
    for warning in receipt.warnings:
        tell(f"warning: {safe(warning)}")
    for wait in receipt.waits:
        why = wait.why if wait.why.startswith("waits") else f"waits: {wait.why}"
        tell(f"{safe(wait.player)} {safe(why)}")
    if receipt.waiting > len(receipt.waits):
        tell(f"and {many(receipt.waiting - len(receipt.waits), 'more host')} wait")


@click.command("submit", context_settings=SETTINGS)
@click.argument("words", nargs=-1, metavar="SCORE TARGET… [KEY=VALUE…]")
@click.option("--all", "all_of", is_flag=True, help="Run it on all of the targets.")
@click.option("--one", "one_of", is_flag=True, help="Run it on one of the targets, whichever is there.")
@click.option("--some", type=Whole(1), metavar="N", help="Run it on N of the targets, each another one.")
@targets_from
@naming_options
@click.option(
    "--params",
    "params_from",
    metavar="FILE|-",
    help="More parameters: KEY=VALUE lines, or a JSON object. Secret ones are taken from here, or asked for.",
)
@rolling_options
@not_before
@click.option(
    "--expire", callback=expiry, metavar="TIME|never", help="What has not started so long from now never will."
)
@click.option("--request-key", metavar="K", help="The same key gives the same job, however often it is asked for.")
@click.option("--priority", type=Whole(-1_000_000, 1_000_000), default=0, help="Higher goes first. [0]")
@click.option("--pin", is_flag=True, help="Only if all targets have one and the same version, and only that.")
@click.option("--dry-run", is_flag=True, help="Only have it said what would be done; for scores that know how.")
@click.option("--plan", "as_plan", is_flag=True, help="Ask for nothing; show who would run it, who not, and why.")
@click.option("--expect", default="", metavar="TOKEN", help="Only if it is what --plan has shown with this token.")
@click.option("--wait", is_flag=True, help="Wait until it has ended, and print the hosts' answers as they come.")
@click.option("--timeout", callback=seconds, metavar="TIME", help="With --wait: give up waiting; the job goes on.")
@as_json
@reaching
@click.pass_context
def submit(
    ctx: click.Context,
    /,
    words: tuple[str, ...],
    as_plan: bool,
    wait: bool,
    timeout: float | None,
    as_json: bool,
    socket: str | None,
    config: str,
    **options: Any,
) -> int:
    """Ask for SCORE to be run on the TARGETs, with parameters, and print the id of the job.

    Whatever has a '=' is a parameter. A TARGET is a host, several as web[01-20], or a group as @web; @all is every
    player. 'a,b' is both, 'a!b' is a without b, 'a&b' what is in both. More than one host needs --all, --one or --some.
    'orchestra targets' shows who is meant; who that is, is found out once, when the job is accepted.

    A secret parameter is asked for at the terminal, or taken from --params; on a command line others could read it.

    With --pin the version that all targets have now, score and NAME.conf, is the only one that may run: a host on
    which it was changed meanwhile refuses. Without, targets that have different ones are a warning.

    --plan shows who would run it, who would not and why, and a token. With --expect and that token it is refused if the
    targets, the score on them or the request are not what they were then.

    With --batch or --canary it goes over the targets in waves, by name; a wave begins when the one before has ended,
    and the first failure that is not allowed for stops it. With --not-before, --expire counts from then.

    Exit status: 0 accepted, or with --wait all ok; with --wait otherwise 11 something is lost, 10 failed or killed,
    12 never ran; 13 gave up waiting. 64 usage, 69 no conductor, 70 a bug of ours, 75 try again, 77 denied.
    """
    rolling, naming = rolling_of(options), naming_of(options)
    ask = ask_of(words, Request(rolling=rolling, naming=naming, **options), ctx.command_path)
    if timeout is not None and not wait:
        raise UsageError(problem="--timeout goes with --wait")
    path = conductor_socket(socket, config)
    if as_plan:
        return with_secrets(path, ask, lambda ask: plan(path, ask, as_json))
    if wait:
        return with_secrets(path, ask, lambda ask: Outlook(as_json, timeout).perform(path, ask, tell_accepted))
    receipt = with_secrets(path, ask, lambda ask: talk(path, lambda conductor: conductor.submit(ask)))
    if as_json:
        print_json(receipt)
    else:
        say(str(receipt.job))
    tell_accepted(receipt)
    return 0
