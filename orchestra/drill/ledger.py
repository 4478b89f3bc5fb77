"""The scores of a drill, and the ledger they write themselves: what really started and ended, in the order it did.

A line is one write to a file opened with O_APPEND, so it is whole, and the file's order is the order of the writes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from msgspec import Struct

from orchestra.errors import FileProblem

START, END = "start", "end"

# /proc/uptime, because a shell can read it without starting another process.
SCORE: Final = """\
#!/bin/sh
# Written for a drill: says in the ledger that it starts, works, says that it ends, and answers.
line() {{
    read up idle < /proc/uptime
    echo "$1 $ORCHESTRA_JOB $ORCHESTRA_PLAYER $ORCHESTRA_ATTEMPT $ORCHESTRA_RUN ${{ORC_word:--}} $up" >> {ledger}
}}
if [ -z "${{ORC_word+x}}" ]; then  # a json score: what is declared is on stdin, and the secret must be the word
    told=$(cat)
    field() {{ value=${{told#*\\"$1\\":\\"}}; [ "$value" != "$told" ] || value=; echo "${{value%%\\"*}}"; }}
    ORC_word=$(field word) ORC_seconds=$(field seconds) ORC_status=$(field status) ORC_bytes=$(field bytes)
    [ "$(field token)" = "secret of $ORC_word" ] || ORC_word=untold
fi
line start
[ "${{ORC_bytes:-0}}" = 0 ] || {{ head -c "$((ORC_bytes - 1))" /dev/zero | tr '\\0' x; echo; }}
[ "${{ORC_seconds:-0}}" = 0 ] || sleep "$ORC_seconds"
line end
if [ -n "${{told+x}}" ]; then
    printf '{{"word":"%s","run":"%s"}}' "$ORC_word" "$ORCHESTRA_RUN" >&3
else
    echo "word=$ORC_word"
    echo "run=$ORCHESTRA_RUN"
fi
exit "${{ORC_status:-0}}"
"""


class DrillScore(Struct, frozen=True, kw_only=True):
    """A score as it is installed for a drill, and what the checker has to know of it."""

    name: str
    conf: str
    idempotent: bool = False
    timeout: float = 60.0
    somewhere: bool = False  # the last of several players does not have it
    lock: str = ""


def _score(
    name: str, *lines: str, idempotent: bool = False, timeout: float = 60.0, lock: str = "", interface: str = "pipe"
) -> DrillScore:
    head = (
        f"interface = {interface}",
        f"lock = {lock}",
        f"timeout = {timeout:g}s",
        "kill_grace = 1s",
        *["idempotent = yes"] * idempotent,
    )
    conf = "".join(f"{line}\n" for line in (*head, *lines))
    somewhere = name == "somewhere"
    return DrillScore(name=name, conf=conf, idempotent=idempotent, timeout=timeout, somewhere=somewhere, lock=lock)


_DECLARED: Final = tuple(f"[param {key}]" for key in ("word", "seconds", "status", "bytes", "other"))
_SECRET: Final = ("[param token]", "secret = yes", "required = yes")


SCORES: Final = {
    score.name: score
    for score in (
        _score("once", "concurrency = 4"),
        _score("again", "concurrency = 4", "max_attempts = 3", idempotent=True),
        _score("narrow"),
        _score("brief", "concurrency = 2", timeout=1.0),
        _score("somewhere", "concurrency = 2"),
        _score("left", "concurrency = 2", lock="both"),
        _score("right", lock="both", idempotent=True),
        _score("sworn", "concurrency = 2", *_DECLARED, *_SECRET, interface="json"),
    )
}
"""``once`` and ``again`` are the bulk; ``narrow`` runs one at a time, so that work waits; ``brief`` is ended early;
``somewhere`` is not on the last player's disk; ``left`` and ``right`` exclude each other; ``sworn`` takes a secret, by
JSON, and answers with the right word only if it got it."""


class Line(NamedTuple):
    """A line of the ledger. ``up`` is the machine's uptime in seconds, ``place`` the line's number."""

    kind: str
    job: int
    player: str
    attempt: int
    mark: str
    word: str
    up: float
    place: int

    def __str__(self) -> str:
        return f"{self.kind} job {self.job} on {self.player}, attempt {self.attempt}, at {self.up:.2f}, run {self.mark}"


def install(directory: Path, ledger: Path, scores: Iterable[DrillScore], text: str = SCORE) -> None:
    """Put the scores on a player's disk, as configuration management would."""
    directory.mkdir(mode=0o755, exist_ok=True)
    for score in scores:
        for file, content, mode in (
            (directory / f"{score.name}.conf", score.conf, 0o644),
            (directory / score.name, text.format(ledger=ledger), 0o755),
        ):
            file.write_text(content)
            file.chmod(mode)


def read(ledger: Path) -> tuple[Line, ...]:
    """Every line, in order."""
    return parse(ledger.read_text().splitlines(), str(ledger)) if ledger.exists() else ()


def marks(ledger: Path) -> frozenset[str]:
    """The marks of all runs that have written."""
    return frozenset(line.mark for line in read(ledger))


def parse(lines: Sequence[str], file: str = "ledger") -> tuple[Line, ...]:
    """Lines as they were written; one that was not written by a score of ours is an error."""
    return tuple(_line(text, place, file) for place, text in enumerate(lines, 1))


def _line(text: str, place: int, file: str) -> Line:
    try:
        kind, job, player, attempt, mark, word, up = text.split(" ")
        line = Line(kind, int(job), player, int(attempt), mark, word, float(up), place)
    except ValueError:
        raise FileProblem(file=f"{file}, line {place}", problem=f"not a line of a drill's score: {text!a}") from None
    if kind not in (START, END):
        raise FileProblem(file=f"{file}, line {place}", problem=f"neither a start nor an end: {text!a}")
    return line
