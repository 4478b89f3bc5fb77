"""Where a stage lives: alone in its directory, found by its socket, with signals as they should be.

Standard library only.
"""

import errno
import fcntl
import os
import signal
import socket
import time

from orchestra.errors import AlreadyRunning, StageNotStarted


def lock(directory: str) -> int:
    """The lock of the directory. Close-on-exec: who holds it knows that every child of a dead stage has exec'ed."""
    path = os.path.join(directory, "lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    patience = time.monotonic() + 1.0  # a child of a dead stage may be about to exec
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > patience:
                raise AlreadyRunning(what="stage", path=directory) from None
            time.sleep(0.05)


def listen(path: str, owner: int | None) -> socket.socket:
    """The socket, for root and the player's user only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if _answers(path):
            raise AlreadyRunning(what="stage", path=path)
        if os.path.lexists(path):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        if owner is not None and os.geteuid() == 0:
            os.chown(path, owner, -1)
        listener.listen(16)
    except OSError as trouble:
        raise StageNotStarted(problem=f"its socket {path} cannot be made: {trouble.strerror or trouble}") from None
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) in (0, errno.EAGAIN)


def plain_signals() -> None:
    """Undo what a shell or nohup may have set; scores would inherit it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
