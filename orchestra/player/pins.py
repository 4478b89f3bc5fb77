"""The stage's own copies of scores: a pinned run is started from one, so that what was checked is what runs.

A score is copied first, then the copy is checked by its digest, then it is exec'ed; from the copy on only the stage's
user can change anything. The score's permissions go along, its owner is the stage's user. A copy is removed when no
run is of it and none has been for a while. Standard library only.
"""

import os
import stat
import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from orchestra.checksum import sha256_of_file
from orchestra.errors import NotStarted
from orchestra.player.loop import Loop
from orchestra.player.scorefile import ScoreFile, digest_of, other_digest

KEEP: Final = 600.0  # seconds that a copy stays when nothing runs from it

_CHUNK: Final = 1 << 20
_PASSABLE: Final = 0o711  # whoever a score runs as gets to its copy; nobody can list what there is
_NEW: Final = "new-"

Key = tuple[str, str]
"""A copy: the digest of the score, and its name, which two scores with one digest do not share."""


class _Copy(NamedTuple):
    identity: tuple[int, ...]
    used: float  # monotonic


class Pins:
    """The copies in ``directory``/pins. ``running``: the digests of all that runs now, or None if that is not known."""

    def __init__(
        self, directory: str, loop: Loop, running: Callable[[], Collection[str] | None], say: Callable[[str], None]
    ) -> None:
        self._above = directory
        self._directory = f"{directory}/pins"
        self._loop = loop
        self._running = running
        self._say = say
        self._copies: dict[Key, _Copy] = {}
        self._planned = False

    def recover(self) -> None:
        """Learn which copies a stage before has left; each is checked anew before it is used."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return
        for name in names:
            digest, dot, score = name.partition(".")
            if dot:
                self._copies[digest, score] = _Copy((), time.monotonic())
            else:
                _discard(f"{self._directory}/{name}")  # one that was never finished
        self._plan()

    def pinned(self, score: ScoreFile) -> ScoreFile:
        """``score`` as its copy; :class:`NotStarted` if what was copied is another, or cannot be kept."""
        key = score.digest, score.name
        try:
            identity = self._whole(key) or self._made(score)
        except OSError as trouble:
            what = trouble.strerror or trouble
            raise NotStarted(reason=f"the stage cannot keep a copy of score {score.name}: {what}") from None
        self._copies[key] = _Copy(identity, time.monotonic())
        self._plan()
        return score._replace(path=self._path(key))

    # ---- copies

    def _path(self, key: Key) -> str:
        digest, name = key
        return f"{self._directory}/{digest}.{name}/{name}"

    def _whole(self, key: Key) -> tuple[int, ...] | None:
        """The identity of a copy that is there and is what it is called; looked at closely only if that has changed."""
        if key not in self._copies:
            return None
        path = self._path(key)
        try:
            identity = _identity(path)
            if identity == self._copies[key].identity or _digest(path) == key[0]:
                return identity
        except FileNotFoundError:
            pass
        self._remove(key)
        return None

    def _made(self, score: ScoreFile) -> tuple[int, ...]:
        self._open_the_way()
        fresh = f"{self._directory}/{_NEW}{os.urandom(8).hex()}"
        os.mkdir(fresh, 0o700)
        try:
            copy = f"{fresh}/{score.name}"
            _copy(score.path, copy)
            if os.path.lexists(f"{score.path}.conf"):
                _copy(f"{score.path}.conf", f"{copy}.conf")
            found = _digest(copy)
            if found != score.digest:
                raise NotStarted(reason=other_digest(score.name, found, score.digest))
            os.chmod(fresh, _PASSABLE)
            home = os.path.dirname(self._path((score.digest, score.name)))
            _discard(home)
            os.rename(fresh, home)
        except BaseException:
            _discard(fresh)
            raise
        return _identity(self._path((score.digest, score.name)))

    def _open_the_way(self) -> None:
        if not os.path.isdir(self._directory):
            os.mkdir(self._directory)
        os.chmod(self._directory, _PASSABLE)
        mode = stat.S_IMODE(os.stat(self._above).st_mode)
        os.chmod(self._above, mode | (_PASSABLE & 0o111))

    # ---- and their end

    def _plan(self) -> None:
        if self._copies and not self._planned:
            self._planned = True
            self._loop.later(KEEP, self._collect)

    def _collect(self) -> None:
        """Remove what nothing runs from, and nothing has for a while."""
        self._planned = False
        running, now = self._running(), time.monotonic()
        for key, copy in list(self._copies.items()):
            if running is None or key[0] in running:
                self._copies[key] = copy._replace(used=now)
            elif now - copy.used >= KEEP:
                self._remove(key)
                self._say(f"removed the copy of score {key[1]}, digest {key[0][:12]}: nothing has run from it lately")
        self._plan()

    def _remove(self, key: Key) -> None:
        del self._copies[key]
        _discard(os.path.dirname(self._path(key)))


def _copy(source: str, target: str) -> None:
    """A file and its permissions, as they are now; what grows while it is read is cut, and has another digest then."""
    # not to be held up by a pipe that somebody has put there
    inlet = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(inlet)
        outlet = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = info.st_size + 1
            while left > 0 and (data := os.read(inlet, min(left, _CHUNK))):
                left -= len(data)
                _write(outlet, data)
            if os.geteuid() == 0:
                os.fchown(outlet, 0, info.st_gid)  # a group that may run it can run its copy
            os.fchmod(outlet, info.st_mode & 0o755)
        finally:
            os.close(outlet)
    finally:
        os.close(inlet)


def _discard(directory: str) -> None:
    """Remove a directory and what is in it, if it is there; what cannot be removed stays."""
    try:
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
    except OSError:
        pass


def _write(handle: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(handle, left) :]


def _digest(path: str) -> str:
    conf = _sha256(f"{path}.conf") if os.path.lexists(f"{path}.conf") else None
    return digest_of(_sha256(path), conf)


def _sha256(path: str) -> bytes:
    with open(path, "rb", buffering=0) as stream:
        return sha256_of_file(stream.fileno())


def _identity(path: str) -> tuple[int, ...]:
    info = os.lstat(path)
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns
