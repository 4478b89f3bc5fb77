"""Starting a score's process: as whom, with which environment, and in plain words why not. Standard library only."""

import errno
import grp
import os
import pwd
import resource
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from orchestra.errors import NotStarted
from orchestra.player.rules import Rules
from orchestra.player.scorefile import ScoreFile

RESPONSE: Final = 3
"""The descriptor to which a json score writes its response; nothing of the stage's own is ever there."""

_SHORTAGE: Final = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC}
_HERE: Final = "/"  # where a stage is
_DEFAULT: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them
_BELIEVED: Final = 5.0
_AFTER_XCPU: Final = 5  # seconds of CPU time from SIGXCPU, which a program may catch, to SIGKILL


class Identity(NamedTuple):
    """As whom a score runs. ``switch`` is what Popen needs for that, nothing if the stage is that user already."""

    name: str
    home: str
    switch: dict[str, Any]


class Launched(NamedTuple):
    """A process under way, and our ends of its stdout, stderr and response; negative: there is none."""

    pid: int
    stdout: int
    stderr: int
    response: int = -1


class Users:
    """As whom scores run; the system's user database is believed for some seconds."""

    def __init__(self, score_user: str | None) -> None:
        self._score_user = score_user
        self._known: dict[tuple[str | None, str | None], tuple[float, Identity]] = {}

    def identity(self, rules: Rules) -> Identity:
        """As whom a score runs by its rules; :class:`NotStarted` if there is no such user or we may not be them."""
        asked = rules.user or self._score_user, rules.group
        until, known = self._known.get(asked, (0.0, None))
        if known is None or until < time.monotonic():
            known = _identity(*asked)
            self._known[asked] = time.monotonic() + _BELIEVED, known
        return known


def _identity(name: str | None, group: str | None) -> Identity:
    own = os.geteuid()
    user = _user(name or str(own))
    gid = _group(group) if group else user.pw_gid
    if own != 0:
        if user.pw_uid != own:
            raise NotStarted(
                reason=f"it is to run as {user.pw_name}, but the stage runs as uid {own} and cannot switch"
            )
        if gid != os.getegid() and group:
            raise NotStarted(reason=f"it is to run in group {group}, but the stage is not root and cannot switch")
        return Identity(user.pw_name, user.pw_dir, {})
    groups = os.getgrouplist(user.pw_name, gid)
    if user.pw_uid == 0 and gid == os.getegid() and set(groups) == set(os.getgroups()) | {gid}:
        return Identity(user.pw_name, user.pw_dir, {})  # nothing to switch, which saves a real fork
    return Identity(user.pw_name, user.pw_dir, {"user": user.pw_uid, "group": gid, "extra_groups": groups})


def reserve() -> None:
    """Have descriptors up to 3 taken, before anything else can be there, and none that came along go to a score."""
    while (null := os.open(os.devnull, os.O_RDONLY)) < RESPONSE:
        pass
    if null > RESPONSE:
        os.close(null)
        _empty_response()
    for name in os.listdir("/proc/self/fd"):
        if int(name) > RESPONSE:
            _keep_from_scores(int(name))


def _empty_response() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, RESPONSE, inheritable=False)
    os.close(null)


def _keep_from_scores(handle: int) -> None:
    try:
        os.set_inheritable(handle, False)
    except OSError:  # the one through which they were listed
        pass


def launch(score: ScoreFile, who: Identity, env: Mapping[str, str], null: int, told: bytes | None = None) -> Launched:
    """Start the score in a session of its own, with nothing of ours; :class:`NotStarted` says why it did not.

    ``told`` is what a json score finds on its stdin; it is never on a disk.
    """
    ends: list[int] = []
    try:
        for _ in range(2 if told is None else 3):
            ends += os.pipe()
        if told is not None:
            ends.append(_memory(told))
        theirs = [null if told is None else ends[6], *ends[1:6:2]]
        spawn = _spawn_with_popen if who.switch or score.rules.limited else _spawn
        pid = spawn(score, who, env, theirs)
    except (OSError, ValueError, ImportError) as problem:
        for end in ends:
            os.close(end)
        raise NotStarted(reason=_sentence(score, who, problem)) from None
    for end in (*ends[1:6:2], *ends[6:]):
        os.close(end)
    ours = ends[0:6:2]
    for end in ours:
        os.set_blocking(end, False)
    return Launched(pid, *ours)


def _spawn(score: ScoreFile, who: Identity, env: Mapping[str, str], theirs: Sequence[int]) -> int:
    """Start the score as who we are, at less cost than Popen. It has ``theirs`` from 0 on; all else is closed on exec.

    Its directory and umask are the ones of who spawns, so for this moment they are ours.
    """
    rules = score.rules
    umask = os.umask(rules.umask)
    try:
        if rules.dir != _HERE:
            os.chdir(rules.dir)
        moves = [(os.POSIX_SPAWN_DUP2, handle, number) for number, handle in enumerate(theirs)]
        return os.posix_spawn(score.path, [score.path], env, file_actions=moves, setsid=True, setsigdef=_DEFAULT)
    finally:
        os.umask(umask)
        if rules.dir != _HERE:
            os.chdir(_HERE)


def _spawn_with_popen(score: ScoreFile, who: Identity, env: Mapping[str, str], theirs: Sequence[int]) -> int:
    """Start the score as another user or with limits, which posix_spawn cannot."""
    import subprocess  # with what it imports 0.6 MB of a stage, and many never need it

    more = theirs[3:]
    try:
        if more:
            os.dup2(more[0], RESPONSE)
        process = subprocess.Popen(
            [score.path],
            stdin=theirs[0],
            stdout=theirs[1],
            stderr=theirs[2],
            pass_fds=(RESPONSE,) if more else (),
            env=env,
            cwd=score.rules.dir,
            umask=score.rules.umask,
            start_new_session=True,
            preexec_fn=_limits(score.rules) if score.rules.limited else None,
            **who.switch,
        )
    except subprocess.SubprocessError as problem:
        raise ValueError(str(problem)) from None
    finally:
        if more:
            _empty_response()
    process.returncode = 0  # reaping is the stage's: Popen must never wait for it
    return process.pid


def _memory(data: bytes) -> int:
    """A file that is in memory only, to be read from its beginning."""
    handle = os.memfd_create("parameters", os.MFD_CLOEXEC)
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def _limits(rules: Rules) -> Callable[[], None]:
    """What the new process does before it becomes the score; it costs a real fork, and those who have none no time.

    A limit is never more than the stage has itself: raising one is not ours, and after the change of user not possible.
    """
    seconds = None if rules.limit_cpu is None else -(-rules.limit_cpu // 1000)
    wanted = (
        (resource.RLIMIT_CPU, seconds, _AFTER_XCPU),
        (resource.RLIMIT_AS, rules.limit_memory, 0),
        (resource.RLIMIT_NOFILE, rules.limit_files, 0),
        (resource.RLIMIT_NPROC, rules.limit_processes, 0),
        (resource.RLIMIT_CORE, rules.limit_core, 0),
        (resource.RLIMIT_FSIZE, rules.limit_file_size, 0),
    )
    limits = [(what, *_at_most(what, most, slack)) for what, most, slack in wanted if most is not None]

    def become() -> None:
        if rules.nice:
            os.nice(rules.nice)
        for what, soft, hard in limits:
            resource.setrlimit(what, (soft, hard))

    return become


def _at_most(what: int, most: int, slack: int) -> tuple[int, int]:
    """The soft and the hard limit."""
    ours = resource.getrlimit(what)[1]
    hard = most + slack if ours == resource.RLIM_INFINITY else min(most + slack, ours)
    return min(most, hard), hard


def _sentence(score: ScoreFile, who: Identity, problem: Exception) -> str:
    number = problem.errno if isinstance(problem, OSError) else None
    words = os.strerror(number) if number else str(problem)
    if number in _SHORTAGE:
        return f"this machine cannot start another process: {words}"
    if number not in (None, errno.EPERM) and getattr(problem, "filename", None) == score.rules.dir:
        return f"its directory {score.rules.dir} cannot be entered by {who.name}: {words}"
    match number:
        case errno.ENOENT:
            return f"{score.path} cannot be run: it, or the interpreter on its first line, does not exist"
        case errno.ENOEXEC:
            return f"{score.path} cannot be run: it is neither a program for this machine nor does it begin with #!"
        case errno.EACCES:
            return f"{score.path} may not be run by {who.name}: it, its interpreter or the way to it is closed to them"
        case errno.E2BIG:
            return f"{score.path} cannot be run: its parameters are more than a process can be given"
        case errno.EPERM:
            return f"the stage may not run {score.path} as {who.name}: {words}"
    return f"{score.path} cannot be run: {words}"


def is_user(name: str) -> bool:
    """Whether this machine has that user, a name or a number."""
    try:
        _user(name)
    except NotStarted:
        return False
    return True


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        pass
    try:
        return pwd.getpwuid(int(name))
    except (KeyError, ValueError, OverflowError):
        if name == str(os.geteuid()):  # ourselves, in a container that knows no users
            return pwd.struct_passwd((name, "x", int(name), os.getegid(), "", "/", "/bin/sh"))
        raise NotStarted(reason=f"it is to run as {name}, but this machine has no such user") from None


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        pass
    try:
        return grp.getgrgid(int(name)).gr_gid
    except (KeyError, ValueError, OverflowError):
        raise NotStarted(reason=f"it is to run in group {name}, but this machine has no such group") from None
