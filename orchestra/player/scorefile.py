"""One score on disk: whether it may be run, and which digest it has.

Standard library only: the stage checks with it too. What its ``.conf`` says is read by :mod:`orchestra.player.rules`;
what a player has altogether is the business of :mod:`orchestra.player.repertoire`. Between a check here and the start
of the process the file can still change; that is accepted, because only root and the player's user can change it.
"""

import os
import re
import stat
import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple, TypeVar

from orchestra.checksum import sha256, sha256_of_file
from orchestra.config import MAX_FILE
from orchestra.errors import NoSuchScore, UnfitScore
from orchestra.player.rules import Rules, plain, read_rules, unfit

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_LEFTOVER: Final = re.compile(r".*(\.(conf|bak|orig|rpmsave|rpmnew|pacnew|(dpkg|ucf)-.*)|~)")
_WRITABLE: Final = stat.S_IWGRP | stat.S_IWOTH
_EXECUTABLE: Final = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_MAX_LINKS: Final = 16
_READ_TRIES: Final = 3
_SETTLED_AFTER: Final = 50_000_000  # ns; a kernel's file times advance in ticks of up to 10 ms

T = TypeVar("T")

Identity = tuple[int, ...]
"""What changes when a file changes: device, inode, size, times, mode, owner."""


class ScoreFile(NamedTuple):
    """A score that may be run, as it was when it was read. ``stamp`` changes when its files do."""

    name: str
    path: str
    rules: Rules
    digest: str
    stamp: tuple[Identity, Identity | None, bool]


# ---- reading


def no_such_score(directory: str, name: str) -> NoSuchScore:
    """The error for a name that nothing in ``directory`` has, be the name what it may."""
    shown = plain(name if len(name) <= 80 else f"{name[:77]}...")
    return NoSuchScore(path=plain(f"{directory}/{name[:80]}"), reason="does not exist", score=shown)


def is_name(name: str) -> bool:
    """Whether a score may have this name."""
    return bool(_NAME.fullmatch(name)) and not _LEFTOVER.fullmatch(name)


def candidates(directory: str) -> list[str]:
    """The names in ``directory`` that look meant as scores, sorted. OSError if it cannot be listed."""
    return sorted(filter(is_name, os.listdir(directory)))


def load(directory: str, name: str, trusted_uids: Collection[int]) -> ScoreFile:
    """The score ``name``, read and checked; :class:`UnfitScore` says why it may not be run.

    Root is always trusted. A score that is not there is :class:`NoSuchScore`, which is an UnfitScore too.
    """
    if not is_name(name):
        raise unfit(f"{directory}/{name[:80]}", "not a name for a score: up to 63 letters, digits and . _ - are one")
    for _ in range(_READ_TRIES):
        home = fit_directory(directory, trusted_uids)
        score = _read(home, name, trusted_uids)
        if score.stamp[:2] == _find(home, name, trusted_uids).identities:
            return score
    raise unfit(os.path.join(directory, name), "keeps changing while it is read")


def current(score: ScoreFile, directory: str, trusted_uids: Collection[int]) -> ScoreFile:
    """``score`` itself while neither it nor the trust in its directories has changed, else a fresh :func:`load`."""
    home = fit_directory(directory, trusted_uids)
    if _find(home, score.name, trusted_uids).stamp == score.stamp and score.path == _join(home, score.name):
        return score
    return load(directory, score.name, trusted_uids)


class _Found(NamedTuple):
    executable: str
    identity: Identity
    conf: str
    conf_identity: Identity | None

    @property
    def identities(self) -> tuple[Identity, Identity | None]:
        return self.identity, self.conf_identity

    @property
    def stamp(self) -> tuple[Identity, Identity | None, bool]:
        """The identities, and whether the files are old enough for any later change to show in their times."""
        changed = max(self.identity[4], self.conf_identity[4] if self.conf_identity else 0)
        return self.identity, self.conf_identity, time.time_ns() - changed > _SETTLED_AFTER


def _find(home: str, name: str, trusted: Collection[int]) -> _Found:
    path = _join(home, name)
    found = _fit_file(home, path, trusted)
    if found is None:
        raise no_such_score(home, name)
    executable, info = found
    if not info.st_mode & _EXECUTABLE:
        raise unfit(path, "not executable; 'chmod +x' makes it a score")
    conf = _fit_file(home, path + ".conf", trusted)
    if conf is None:
        return _Found(executable, _identity(info), "", None)
    return _Found(executable, _identity(info), conf[0], _identity(conf[1]))


def _read(home: str, name: str, trusted: Collection[int]) -> ScoreFile:
    found = _find(home, name, trusted)
    text, conf = "", None
    executable = _digest(found.executable)
    if found.conf:
        raw = _contents(found.conf)
        conf = sha256(raw)
        text = _decoded(found.conf, raw)
    rules = read_rules(_join(home, name) + ".conf", text)
    return ScoreFile(name, _join(home, name), rules, digest_of(executable, conf), found.stamp)


def digest_of(executable: bytes, conf: bytes | None) -> str:
    """The digest of a score, from the SHA-256 of its file and of its ``.conf``, if it has one."""
    # parts of equal length, so that no two pairs of files read alike
    return sha256(b"orchestra score 1\0" + executable + (conf or b"")).hex()


def other_digest(name: str, found: str, asked: str) -> str:
    """Why a run that is pinned to a digest does not start from another."""
    return f"score {name} is not the one that was asked for: its digest here is {found[:12]}, not {asked[:12]}"


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as stream:
            return sha256_of_file(stream.fileno())
    except OSError as problem:
        raise _unreadable(path, problem) from None


def _contents(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as stream:
            raw = stream.read(MAX_FILE + 1) or b""
    except OSError as problem:
        raise _unreadable(path, problem) from None
    if len(raw) > MAX_FILE:
        raise unfit(path, "larger than 256 KiB; this is not one of our files")
    return raw


def _decoded(path: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise unfit(path, "not UTF-8 text") from None


# ---- trust


def fit_directory(directory: str, trusted_uids: Collection[int]) -> str:
    """The real path of ``directory``, when nobody untrusted can change what is found under it."""
    ahead = os.path.abspath(directory).split("/")[:0:-1]
    here, links = "/", 0
    _check_directory(here, _lstat(here), trusted_uids, last=not any(ahead))
    while ahead:
        part = ahead.pop()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here)
            continue
        path = _join(here, part)
        info = _lstat(path)
        if stat.S_ISLNK(info.st_mode):
            links += 1
            here = _step_through(path, info, trusted_uids, here, ahead, links)
            continue
        _check_directory(path, info, trusted_uids, last=not ahead)
        here = path
    return here


def _step_through(
    path: str, info: os.stat_result, trusted: Collection[int], here: str, ahead: list[str], links: int
) -> str:
    _check_owner(path, info, trusted)
    if links > _MAX_LINKS:
        raise unfit(path, "too many symbolic links on the way")
    target = _asked(os.readlink, path)
    ahead.extend(reversed(target.split("/")))
    return "/" if target.startswith("/") else here


def _check_directory(path: str, info: os.stat_result, trusted: Collection[int], last: bool) -> None:
    if not stat.S_ISDIR(info.st_mode):
        raise unfit(path, "not a directory")
    _check_owner(path, info, trusted)
    # Under a sticky directory of root's, like /tmp, others can neither remove nor rename what is ours.
    sticky = info.st_mode & stat.S_ISVTX and info.st_uid == 0 and not last
    if info.st_mode & _WRITABLE and not sticky:
        raise _writable(path, info)


def _fit_file(home: str, path: str, trusted: Collection[int]) -> tuple[str, os.stat_result] | None:
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise _unreadable(path, problem) from None
    real = path
    if stat.S_ISLNK(info.st_mode):
        real, info = _follow(home, path, trusted)
    if not stat.S_ISREG(info.st_mode):
        raise unfit(path, "not a regular file")
    _check_owner(path, info, trusted)
    if info.st_mode & _WRITABLE:
        raise _writable(path, info)
    return real, info


def _follow(home: str, link: str, trusted: Collection[int]) -> tuple[str, os.stat_result]:
    """What ``link`` leads to, when every step of the way stays under ``home``."""
    path = link
    for _ in range(_MAX_LINKS):
        path = os.path.normpath(os.path.join(os.path.dirname(path), _asked(os.readlink, path)))
        above = os.path.dirname(path)
        if not path.startswith(_join(home, "")) or os.path.realpath(above) != above:
            raise unfit(link, "a symbolic link that leaves the directory of the scores")
        fit_directory(above, trusted)
        info = _lstat(path)
        if not stat.S_ISLNK(info.st_mode):
            # normpath took ".." by the letter; the kernel, which will exec the link, may read it otherwise.
            if not os.path.samestat(info, _asked(os.stat, link)):
                raise unfit(link, "a symbolic link that leaves the directory of the scores")
            return path, info
    raise unfit(link, "a symbolic link that leads to too many others")


def _check_owner(path: str, info: os.stat_result, trusted: Collection[int]) -> None:
    if info.st_uid != 0 and info.st_uid not in trusted:
        raise unfit(path, f"owned by uid {info.st_uid}, who is neither root nor the player's user")


def _writable(path: str, info: os.stat_result) -> UnfitScore:
    mode = stat.S_IMODE(info.st_mode)
    return unfit(path, f"writable by group or others (mode {mode:04o}); 'chmod go-w' mends that")


def _unreadable(path: str, problem: OSError) -> UnfitScore:
    return unfit(path, f"cannot be read: {os.strerror(problem.errno or 0)}")


def _lstat(path: str) -> os.stat_result:
    return _asked(os.lstat, path)


def _asked(ask: Callable[[str], T], path: str) -> T:
    """What the kernel answers; files may come and go while it is asked, which is a refusal like any other."""
    try:
        return ask(path)
    except FileNotFoundError:
        raise unfit(path, "does not exist") from None
    except OSError as problem:
        raise _unreadable(path, problem) from None


def _identity(info: os.stat_result) -> Identity:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_mode, info.st_uid


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory != "/" else f"/{name}"
