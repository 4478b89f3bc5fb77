"""The stage's command line. Standard library only.

It is read with getopt: argparse, and what that imports to fold its help, would be in memory for as long as a stage
lives.
"""

import getopt
import os
import sys
from typing import Final, NoReturn

USAGE: Final = """\
usage: stage.py --socket PATH --dir DIR --scores DIR [OPTION...]
       stage.py --check FORMAT

The stage on which a player's scores are performed.

  --socket PATH       where the player finds it
  --dir DIR           where it keeps what it knows about runs
  --scores DIR        the directory of the scores
  --score-user NAME   as whom scores run that name no user; needed if this runs as root
  --player-uid UID    the player's user, who may ask for scores beside root
  --log FILE          a log file; stderr without
  --detach            go on in the background once it is ready
  --resume HANDLE     this process was a stage already; what it knows is in this file
  --check FORMAT      only see whether this program loads, and takes over what is handed over in this format
  --help              show this, and exit
"""

_VALUED: Final = ("socket", "dir", "scores", "score-user", "player-uid", "log", "resume", "check")
_PLAIN: Final = ("detach", "help")


class StageOptions:
    """What a stage is told when it is started; and ``lock``, the one of its directory, as soon as it has that."""

    lock: int

    def __init__(self, arguments: list[str]) -> None:
        """Ends the process if they make no sense, or ask for help."""
        given = _given(arguments)
        self.socket, self.dir, self.scores = (_path(given, name) for name in ("socket", "dir", "scores"))
        self.log = _path(given, "log") or None
        self.score_user = given.get("score-user")
        self.player_uid = _number(given, "player-uid")
        self.detach = "detach" in given
        self.resume = _number(given, "resume")
        self.check = _number(given, "check")
        if self.check is None and not (self.socket and self.dir and self.scores):
            _misused("--socket, --dir and --scores are needed")


def _given(arguments: list[str]) -> dict[str, str]:
    try:
        pairs, rest = getopt.getopt(arguments, "h", [*(f"{name}=" for name in _VALUED), *_PLAIN])
    except getopt.GetoptError as problem:
        _misused(problem.msg)
    if rest:
        _misused(f"{rest[0]} is no option")
    given = {name.lstrip("-"): value for name, value in pairs}
    if "h" in given or "help" in given:
        print(USAGE, end="")
        sys.exit(os.EX_OK)
    return given


def _path(given: dict[str, str], name: str) -> str:
    return os.path.abspath(given[name]) if given.get(name) else ""


def _number(given: dict[str, str], name: str) -> int | None:
    try:
        return int(given[name]) if name in given else None
    except ValueError:
        _misused(f"--{name} takes a number, not '{given[name]}'")


def _misused(problem: str) -> NoReturn:
    print(USAGE, problem, sep="\n", file=sys.stderr)
    sys.exit(2)
