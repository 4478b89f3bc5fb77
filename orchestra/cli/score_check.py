"""``orchestra score check``: what a player would accept or refuse of a directory of scores, and why."""

import os
import pwd
from collections.abc import Iterator
from typing import Final

import click
from msgspec import Struct
from msgspec.structs import asdict

from orchestra.cli.printing import print_json, safe, say, tell
from orchestra.cli.scores import entry_fields
from orchestra.cli.session import SETTINGS, as_json
from orchestra.errors import NoSuchScore, UnfitScore, UsageError
from orchestra.model import ScoreEntry
from orchestra.player.repertoire import Repertoire
from orchestra.player.scorefile import candidates, fit_directory, is_name

ACCEPTED: Final = "ok"
REFUSED: Final = "REFUSED"
PASSED: Final = "note"


class Verdict(Struct, frozen=True):
    """What becomes of one file. ``score``: what a player would announce of it."""

    file: str
    verdict: str
    why: str = ""
    score: ScoreEntry | None = None


owned_by: Final = click.option(
    "--user",
    metavar="NAME",
    help="The player's user: beside root the only one who may own scores and the directories above.  [default: you]",
)


@click.command("check", context_settings=SETTINGS)
@click.argument("directory", metavar="DIR")
@owned_by
@as_json
def command(directory: str, user: str | None, as_json: bool) -> int:
    """Say what a player would accept or refuse of the scores in DIR, and why, file by file. Nothing is run.

    What is checked is what a player checks: names, permissions and owners, also of every directory above, and each
    NAME.conf with the parameters it declares. For authors, and for the tests of a repository of scores.

    Exit status: 0 all of it would be accepted, 1 something is REFUSED.
    """
    found = list(verdicts(os.path.abspath(directory), trusted(user)))
    bad = sum(one.verdict == REFUSED for one in found)
    if as_json:
        files = [asdict(one) | {"score": one.score and entry_fields(one.score)} for one in found]
        print_json({"directory": os.path.abspath(directory), "accepted": not bad, "files": files})
    else:
        for one in found:
            say(f"{one.verdict:<8}{safe(one.file)}" + (f": {safe(one.why)}" if one.why else ""))
        if not found:
            tell("there is nothing in it that looks like a score")
    return 1 if bad else 0


def trusted(user: str | None) -> frozenset[int]:
    """Who may own scores when the player runs as ``user``."""
    return frozenset({0, uid_of(user)})


def uid_of(user: str | None) -> int:
    """A user's number; ours if nobody is named."""
    if user is None:
        return os.geteuid()
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(problem=f"--user: this machine has no user '{user[:80]}'") from None


def verdicts(directory: str, trusted: frozenset[int]) -> Iterator[Verdict]:
    """What becomes of every file; of a directory that may not be used, that is all there is to say."""
    try:
        fit_directory(directory, trusted)
        names = candidates(directory)
    except UnfitScore as refusal:
        yield Verdict(directory, REFUSED, _why(refusal, directory))
        return
    except OSError as problem:
        yield Verdict(directory, REFUSED, os.strerror(problem.errno or 0))
        return
    yield from _scores(directory, names, trusted)
    yield from _others(directory, frozenset(names))


def _scores(directory: str, names: list[str], trusted: frozenset[int]) -> Iterator[Verdict]:
    repertoire = Repertoire(directory, trusted)
    repertoire.reload()
    accepted = {entry.name: entry for entry in repertoire.catalogue.scores}
    for name in names:
        try:
            found = repertoire.find(name)
            yield Verdict(name, ACCEPTED, f"{found.rules.interface}, digest {found.digest[:12]}", accepted.get(name))
        except NoSuchScore:
            continue  # gone since the directory was listed
        except UnfitScore as refusal:
            yield Verdict(name, REFUSED, _why(refusal, f"{directory}/{name}"))


def _why(refusal: UnfitScore, path: str) -> str:
    """The reason; and where, if that is not ``path`` itself."""
    return str(refusal.fields["reason"]) if refusal.fields["path"] == path else refusal.sentence


def _others(directory: str, names: frozenset[str]) -> Iterator[Verdict]:
    """What is no score at all: a person may have meant it as one."""
    for file in sorted(set(os.listdir(directory)) - names):
        of = file.removesuffix(".conf")
        if of in names and of != file:
            continue
        if of != file and is_name(of):
            yield Verdict(file, PASSED, f"passed over: there is no score '{of}' here")
        else:
            yield Verdict(file, PASSED, "passed over: that is no name for a score")
