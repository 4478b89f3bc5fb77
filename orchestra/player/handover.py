"""Going on as another program in the same process: children, pipes, connections and the lock stay open.

A stage that is to be replaced first has the program that is on the disk now tried, and then becomes it. What it knows
that no disk knows goes along in a memory file. Standard library only.
"""

import binascii
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

from orchestra.player.loop import Loop

FORMAT: Final = 3
"""Of what is handed over, and of the files about runs. A program that does not know it is not become."""

KNOWN: Final = (2, FORMAT)
"""What this program can take over. In 2 the files about runs were others, which it still reads."""

HANDED: Final = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that wait until the new program listens."""

State = dict[str, Any]

TRIAL: Final = 20.0  # seconds that a new program may take to say that it loads

_RESUME: Final = "--resume="


class Renewal:
    """The change from the program that runs to the one that is on the disk now: tried first, made between two turns."""

    def __init__(self, loop: Loop, stay: Callable[[str], None]) -> None:
        """``stay`` hears why there is no change."""
        self._loop = loop
        self._stay = stay
        self._trial: int | None = None  # the pid of the new program that is being tried
        self.due = False

    @property
    def tries(self) -> bool:
        """Whether the new program is being tried, in a child of ours."""
        return self._trial is not None

    def ask(self) -> None:
        """Have the program on the disk tried: does it load, does it take over from us? If so it is soon ``due``."""
        if self._trial is not None:
            return
        try:
            self._trial = pid = _try_program()
        except OSError as trouble:
            self.refuse(_unfit(trouble))
            return
        self._loop.later(TRIAL, lambda: self._give_up(pid))

    def _give_up(self, pid: int) -> None:
        if self._trial == pid:
            os.kill(pid, signal.SIGKILL)

    def reaped(self, pid: int, status: int) -> None:
        """A child has ended: perhaps it was the trial."""
        if pid != self._trial:
            return
        self._trial = None
        self.due = status == 0
        if status:
            self.refuse(f"the program on the disk does not load, or cannot take over ({_how(status)})")

    def refuse(self, reason: str) -> None:
        """Stay what we are."""
        self.due = False
        self._stay(reason)

    def become(self, state: State, handles: Sequence[int]) -> None:
        """Go on as the other program, with these descriptors. If this returns it could not be, and nothing changed."""
        try:
            _become(self._loop, state, handles)
        except OSError as trouble:
            self.refuse(_unfit(trouble))


def _try_program() -> int:
    command = [*_program(), "--check", str(FORMAT)]
    nothing = [(os.POSIX_SPAWN_OPEN, handle, os.devnull, os.O_RDWR, 0) for handle in range(3)]
    return os.posix_spawn(command[0], command, os.environ, file_actions=nothing, setsid=True)


def _become(loop: Loop, state: State, handles: Sequence[int]) -> None:
    book = os.memfd_create("handover")
    kept = (book, *handles)
    try:
        _write(book, json.dumps({"format": FORMAT, **state}).encode())
        for handle in kept:
            os.set_inheritable(handle, True)
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDED)
        loop.give_back()
        command = [*_program(), *(word for word in sys.argv[1:] if not word.startswith(_RESUME)), f"{_RESUME}{book}"]
        os.execv(command[0], command)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDED)
        for handle in kept:
            os.set_inheritable(handle, False)
        os.close(book)


def handed(book: int) -> State:
    """What the program before has left in this memory file."""
    with open(book, "rb") as file:
        file.seek(0)
        state: State = json.load(file)
    return state


def text(data: bytes | bytearray) -> str:
    """Bytes, as the memory file holds them."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def data(text: str) -> bytes:
    """The bytes again."""
    return binascii.a2b_base64(text)


def _program() -> list[str]:
    """The interpreter, its options and the script, as we were started."""
    return sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]


def _write(handle: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def _unfit(trouble: OSError) -> str:
    return f"the program on the disk cannot be started: {trouble.strerror}"


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"exit status {code}" if code >= 0 else f"signal {-code}"
