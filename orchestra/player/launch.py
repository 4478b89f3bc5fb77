"""Starting a score's process: as whom, with which environment, and in plain words why not. Standard library only."""

import errno
import grp
import os
import pwd
import subprocess
import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from orchestra.errors import NotStarted
from orchestra.player.scorefile import Rules, ScoreFile

_SHORTAGE: Final = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOSPC}


_BELIEVED: Final = 5.0


class Identity(NamedTuple):
    """As whom a score runs. ``switch`` is what Popen needs for that, nothing if the stage is that user already."""

    name: str
    home: str
    switch: dict[str, Any]


class Launched(NamedTuple):
    """A process under way, and our ends of its stdout and stderr."""

    pid: int
    stdout: int
    stderr: int


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


def launch(score: ScoreFile, who: Identity, env: Mapping[str, str], stdin: int) -> Launched:
    """Start the score in a session of its own, with nothing of ours; :class:`NotStarted` says why it did not."""
    ends: list[int] = []
    try:
        ends += os.pipe()
        ends += os.pipe()
        process = subprocess.Popen(
            [score.path],
            stdin=stdin,
            stdout=ends[1],
            stderr=ends[3],
            env=env,
            cwd=score.rules.dir,
            umask=score.rules.umask,
            start_new_session=True,
            **who.switch,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as problem:
        for end in ends:
            os.close(end)
        raise NotStarted(reason=_sentence(score, who, problem)) from None
    process.returncode = 0  # reaping is the stage's: Popen must never wait for it
    os.close(ends[1])
    os.close(ends[3])
    os.set_blocking(ends[0], False)
    os.set_blocking(ends[2], False)
    return Launched(process.pid, ends[0], ends[2])


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
