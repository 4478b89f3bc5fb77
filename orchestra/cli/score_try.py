"""``orchestra score try``: one run of a score on this machine, by a real stage of its own, and what came of it."""

import contextlib
import ctypes
import json
import os
import pwd
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click
import msgspec

from orchestra.cli.inputs import read
from orchestra.cli.printing import INDENT, json_task, outcome, print_json, safe, safe_lines, say, tell
from orchestra.cli.score_check import owned_by, trusted, uid_of
from orchestra.cli.session import SETTINGS, as_json
from orchestra.cli.submit import pairs, params_in
from orchestra.cli.waiting import exit_status
from orchestra.errors import StageNotStarted, UnfitScore, UsageError
from orchestra.model import Stream, TaskView, Told
from orchestra.player import frames, scorefile
from orchestra.player.backstage import Kept, Outcome
from orchestra.player.door import HOST

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SEQ: Final = 1
PIECE: Final = 1 << 20
INTERRUPTED: Final = "ended by whoever tried it"

_PDEATHSIG: Final = 1  # prctl(2)


@click.command("try", context_settings=SETTINGS)
@click.argument("place", metavar="DIR/NAME")
@click.argument("words", nargs=-1, metavar="[KEY=VALUE…]")
@click.option(
    "--params", "params_from", metavar="FILE|-", help="More parameters; secret ones are taken from here only."
)
@click.option("--dry-run", is_flag=True, help="Have it say what it would do, if it honours that.")
@click.option("--score-user", metavar="NAME", help="As whom it runs if its NAME.conf names nobody.  [default: you]")
@owned_by
@as_json
def command(
    place: str,
    words: tuple[str, ...],
    params_from: str | None,
    dry_run: bool,
    score_user: str | None,
    user: str | None,
    as_json: bool,
) -> int:
    """Run the score DIR/NAME on this machine just as a player would, without a conductor, and say what came of it.

    All is as on a node: the checks of the file, its NAME.conf and the parameters, the user, the environment, the
    limits, the timeout, the interface. Ctrl-C ends it as a cancel would, and leaves nothing of it; once more ends it at
    once. Only root can try a score that runs as another user.

    Exit status: 0 ok; 10 failed or killed, 12 it was refused, 11 lost; 64 usage.
    """
    directory, name = os.path.split(os.path.abspath(place))
    private = params_in(read(params_from, "--params")) if params_from else {}
    params = pairs(words)
    for key in private.keys() & params.keys():
        raise UsageError(problem=f"the parameter '{key[:80]}' is given twice, here and in {params_from}")
    hidden = private.keys() & _secret(directory, name, user)
    order = {
        "score": name,
        "params": {key: value for key, value in (private | params).items() if key not in hidden},
        "secrets": {key: private[key] for key in hidden},
        "dry_run": dry_run,
    }
    with _stage(directory, score_user, uid_of(user)) as run:
        task = run.perform(order)
    if as_json:
        print_json(json_task(task))
    else:
        for line in _lines(name, task):
            say(line)
    return exit_status({task.state: 1})


def _secret(directory: str, name: str, user: str | None) -> frozenset[str]:
    """The parameters that the score declares secret; of one that is not fit to be run the stage will say why."""
    try:
        rules = scorefile.load(directory, name, trusted(user)).rules
    except UnfitScore:
        return frozenset()
    return frozenset(one.name for one in rules.params if one.secret)


def _lines(name: str, task: TaskView) -> Iterator[str]:
    """What a person is shown: the outcome, the response, and all of the output that was kept."""
    yield f"{safe(name)}: {outcome(task)}"
    for key, value in (task.response or {}).items():
        yield f"{INDENT}{safe(key)} = {safe(value if isinstance(value, str) else json.dumps(value))}"
    for mark, stream in (("|", task.stdout), ("!", task.stderr)):
        yield from (f"{INDENT}{mark} {line}" for line in _kept(stream))
    yield from (f"{INDENT}note: {safe(note)}" for note in task.notes)


def _kept(stream: Stream) -> Iterator[str]:
    at, end = 0, 0
    for offset, length in (*stream.spans, (stream.total, 0)):
        if offset > end:
            yield f"[{offset - end} bytes were not kept]"
        yield from safe_lines(stream.data[at : at + length])
        at, end = at + length, offset + length


# ---- a stage of our own


@contextlib.contextmanager
def _stage(directory: str, score_user: str | None, owner: int) -> Iterator["_Run"]:
    """A stage that serves us alone, in a directory that goes away with it."""
    home = tempfile.mkdtemp(prefix="orchestra-try-")
    try:
        command = _command(home, directory, score_user or _our_name(), owner)
        stage = _started(command)
        try:
            with _signals() as told:
                yield _Run(stage, f"{home}/socket", told)
        finally:
            _end(stage, command)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _command(home: str, directory: str, score_user: str, owner: int) -> list[str]:
    program = os.path.join(os.path.dirname(frames.__file__), "stage.py")
    where = ["--socket", f"{home}/socket", "--dir", f"{home}/stage", "--scores", directory]
    who = ["--score-user", score_user, "--player-uid", str(owner)]
    return [sys.executable, "-I", "-S", "-X", "utf8", program, *where, *who]


def _started(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    """A stage that is ready; in a session of its own, for Ctrl-C at the terminal is ours to pass on."""
    libc = ctypes.CDLL(None)  # loaded before the fork
    stage = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: libc.prctl(_PDEATHSIG, signal.SIGTERM),  # should we be killed, it ends what runs and itself
    )
    assert stage.stderr is not None
    said: list[bytes] = []
    for line in stage.stderr:
        if b"ready" in line:
            return stage
        said.append(line)
    status = stage.wait()
    raise StageNotStarted(problem=b" ".join(said).decode(errors="replace").strip() or f"it ended with status {status}")


def _end(stage: "subprocess.Popen[bytes]", command: Sequence[str]) -> None:
    """Have nothing of it left: where a stage died, its successor kills what that has left running."""
    stage.terminate()
    if stage.wait() != 0:
        successor = _started(command)
        successor.terminate()
        successor.wait()


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that can be read when somebody wants us to stop, instead of an exception anywhere."""
    inlet, outlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
    woken = signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)
    try:
        yield inlet
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(inlet)
        os.close(outlet)


class _Run:
    """The one run, as a player would have it."""

    def __init__(self, stage: "subprocess.Popen[bytes]", path: str, told: int) -> None:
        self._stage = stage
        self._told = told
        self._asked_to_stop = 0
        self._frames = frames.Frames(frames.MOST_TO_PLAYER)
        self._heard: list[tuple[dict[str, Any], bytes]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)

    def perform(self, order: dict[str, Any]) -> TaskView:
        """Have it run to its end."""
        with self._socket:
            self._say(type="hello", journal=secrets.token_hex(8), version=frames.VERSION)
            where = {"seq": SEQ, "job": 1, "task": 0, "attempt": 1, "player": _this_host(), "digest": ""}
            self._say(type="perform", **where, **order)
            try:
                return self._followed()
            except (EOFError, ConnectionError):
                reason = "ended at once" if self._asked_to_stop else "the stage died while it ran"
                return TaskView(task=0, player=_this_host(), state=Told.LOST, attempt=1, reason=reason)

    def _followed(self) -> TaskView:
        while True:
            message, body = self._hear()
            match message["type"]:
                case "refused":
                    return self._view(Outcome(Told.REFUSED, message["reason"]), {})
                case "alarm":
                    tell(safe(message["reason"]))
                case "ended":
                    found = msgspec.convert(message["outcome"], Outcome)
                    return self._view(found, self._output(found, body))

    def _output(self, found: Outcome, body: bytes) -> dict[int, bytes]:
        if found.inline:
            cut = sum(length for _, length in found.stdout.spans)
            return {1: body[:cut], 2: body[cut:]}
        return {number: self._fetched(number, kept) for number, kept in ((1, found.stdout), (2, found.stderr))}

    def _fetched(self, number: int, kept: Kept) -> bytes:
        data = bytearray()
        for offset, length in kept.spans:
            end = offset + length
            while offset < end:
                self._say(type="fetch", seq=SEQ, stream=number, offset=offset, size=PIECE)
                message, piece = self._hear()
                if message["type"] == "piece":
                    data += piece
                    offset += len(piece)
        return bytes(data)

    def _view(self, found: Outcome, output: dict[int, bytes]) -> TaskView:
        names = ("reason", "rc", "signal", "started_at", "ended_at", "digest", "response", "notes")
        known: dict[str, Any] = {name: getattr(found, name) for name in names}
        for number, name in ((1, "stdout"), (2, "stderr")):
            kept: Kept = getattr(found, name)
            known[name] = Stream(kept.total, kept.sha256, kept.spans, output.get(number, b""))
        return TaskView(task=0, player=_this_host(), state=found.told, attempt=1, **known)

    # ---- the conversation

    def _say(self, **message: Any) -> None:
        self._socket.sendall(frames.encode(message))

    def _hear(self) -> tuple[dict[str, Any], bytes]:
        while not self._heard:
            ready, _, _ = select.select([self._socket.fileno(), self._told], [], [])
            if self._told in ready:
                self._stop(len(os.read(self._told, 64)))
            if self._socket.fileno() in ready:
                data = self._socket.recv(65536)
                if not data:
                    raise EOFError
                self._heard += [(json.loads(text), body) for text, body in self._frames.feed(data)]
        return self._heard.pop(0)

    def _stop(self, times: int) -> None:
        """Once: end it kindly. Again: at once."""
        self._asked_to_stop += times
        if self._asked_to_stop == 1:
            tell("ending it; Ctrl-C again ends it at once")
            self._say(type="kill", seq=SEQ, reason=INTERRUPTED)
        else:
            self._stage.kill()


def _this_host() -> str:
    name = socket.gethostname().lower()
    return name if re.fullmatch(HOST, name) else "localhost"


def _our_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
