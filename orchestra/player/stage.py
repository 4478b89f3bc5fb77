"""The stage: the small process on which scores are performed; it outlives the player daemon.

Run by its path, ``python -I -S -X utf8 stage.py --socket PATH --dir DIR --scores DIR``; standard library only. It is
the privilege wall: a player may name a score and its parameters and nothing else; as whom, where and how long it runs
is read from disk here. What is said on the socket is in :mod:`orchestra.player.frames`.
"""

import os
import socket
import sys
from typing import NoReturn

if __name__ == "__main__":  # -I leaves our own directory out; behind the standard library nothing of it can be hidden
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from orchestra.errors import OrchestraError, ScoreUserMissing, StageNotStarted
from orchestra.player import handover
from orchestra.player.launch import reserve
from orchestra.player.performing import Stage
from orchestra.player.premises import listen, lock, plain_signals
from orchestra.player.stagelog import Log
from orchestra.player.stageoptions import StageOptions


def _open_stage(options: StageOptions) -> tuple[Stage, socket.socket]:
    """A stage that is ready to serve, alone in its directory."""
    if os.geteuid() == 0 and not options.score_user:
        raise ScoreUserMissing()
    if options.resume is not None:
        return _resumed(options, options.resume)
    os.umask(0o077)
    try:
        os.makedirs(os.path.join(options.dir, "runs"), exist_ok=True)
        options.lock = lock(options.dir)
        log = Log(options.log)
    except OSError as trouble:
        raise StageNotStarted(problem=f"{trouble.filename}: {trouble.strerror}") from None
    plain_signals()
    os.chdir("/")
    stage = Stage(options, log)
    stage.recover()
    return stage, listen(options.socket, options.player_uid)


def _resumed(options: StageOptions, book: int) -> tuple[Stage, socket.socket]:
    """The stage that this process was before it became this program."""
    state = handover.handed(book)
    options.lock = state["lock"]
    stage = Stage(options, Log(options.log))
    return stage, stage.take_over(state)


def _detach(options: StageOptions) -> int:
    """Go on as nobody's child; the process that was started returns when the stage is ready, or with its complaint."""
    inlet, outlet = os.pipe()
    if os.fork():
        os.close(outlet)
        with open(inlet, encoding="utf-8") as verdict:
            status, _, words = verdict.read().partition(" ")
        if words:
            print(words, file=sys.stderr)
        return int(status) if status else os.EX_SOFTWARE
    os.close(inlet)
    os.setsid()
    if os.fork():
        os._exit(0)
    _serve_detached(options, outlet)


def _serve_detached(options: StageOptions, outlet: int) -> NoReturn:
    status = os.EX_SOFTWARE
    try:
        stage, listener = _open_stage(options)
        null = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(null, handle)
        os.write(outlet, b"0 ")
        os.close(outlet)
        stage.serve(listener)
        status = 0
    except OrchestraError as wrong:
        status = wrong.status
        os.write(outlet, f"{status} {wrong.sentence}".encode())
    finally:
        os._exit(status)


def _check(handed_over: int) -> int:
    """That this program loads is seen by our being here; does it take over what is handed over like this?"""
    fits = handed_over in handover.KNOWN
    print("ok" if fits else "this program cannot take over from that one")
    return int(not fits)


def main(arguments: list[str]) -> int:
    options = StageOptions(arguments)
    if options.check is not None:
        return _check(options.check)
    reserve()
    if options.detach and options.resume is None:
        return _detach(options)
    try:
        stage, listener = _open_stage(options)
    except OrchestraError as wrong:
        print(wrong.sentence, file=sys.stderr)
        return wrong.status
    stage.serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
