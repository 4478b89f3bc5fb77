"""A disk that does not answer: the threads that read and write it are held, while all else of a daemon goes on.

Held as a debugger holds them, so that nothing stays held should the drill die. A thread is held in a system call only,
where it has let go of Python's lock: else it would hold up the whole process, and that is what a pause is for.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from typing import Final

from orchestra.errors import FileProblem

_SEIZE: Final = 0x4206  # ptrace(2); of threads that are not asked whether they agree
_INTERRUPT: Final = 0x4207
_DETACH: Final = 17
_ANY: Final = 0x40000000  # __WALL: wait for threads too
_TRIES: Final = 50
_BREATH: Final = 0.002  # seconds between two of them
_ORPHAN: Final = ("sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def permitted() -> None:
    """FileProblem where this user may not hold what is not a child."""
    try:
        orphan = int(subprocess.run(_ORPHAN, check=True, capture_output=True, text=True).stdout)
        try:
            _hold(orphan, orphan)
            release([orphan])
        finally:
            os.kill(orphan, signal.SIGKILL)
    except OSError as problem:
        raise FileProblem(file=problem.filename or "a process", problem=os.strerror(problem.errno or 0)) from None


def hold(pid: int) -> list[int]:
    """Hold every thread of a process but its first, which commits only what a quick disk lets it; those that are held.

    They are to be released by the thread that held them.
    """
    try:
        threads = [int(name) for name in os.listdir(f"/proc/{pid}/task") if int(name) != pid]
    except FileNotFoundError:
        return []
    return [thread for thread in threads if _hold(pid, thread)]


def release(threads: list[int]) -> None:
    """Let them go on; those that have ended meanwhile are cleared away."""
    for thread in threads:
        try:
            _ptrace(_DETACH, thread)
        except ProcessLookupError:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(thread, _ANY | os.WNOHANG)


def _hold(pid: int, thread: int) -> bool:
    for _ in range(_TRIES):
        try:
            _ptrace(_SEIZE, thread)
            _ptrace(_INTERRUPT, thread)
            if not os.WIFSTOPPED(os.waitpid(thread, _ANY)[1]):
                return False
        except (ProcessLookupError, ChildProcessError):
            return False
        if _is_in_a_call(pid, thread):
            return True
        release([thread])
        time.sleep(_BREATH)
    return False


def _is_in_a_call(pid: int, thread: int) -> bool:
    try:
        with open(f"/proc/{pid}/task/{thread}/syscall") as file:
            return not file.read().startswith("-1 ")
    except OSError:
        return False


def _ptrace(request: int, thread: int) -> None:
    if _libc.ptrace(request, thread, None, None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
