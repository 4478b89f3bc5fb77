"""The unix socket of a seat: where it is, who may reach it, and the door behind it.

What a guest finds behind the door is :mod:`orchestra.audience.seat`, which is made with Perspective Broker. A daemon
that seldom has a guest need not load that before one comes.
"""

import errno
import grp
import os
import socket
import stat
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorUNIX
from twisted.internet.protocol import Factory

from orchestra.errors import AlreadyRunning, FileProblem

MAX_PATH: Final = 107  # bytes, Linux unix(7)


class Door(Protocol):
    """Twisted's protocol factory that lets guests in, and can ask them to leave."""

    def buildProtocol(self, addr: Any) -> Any:
        """What speaks with one guest; None: there is no room."""

    def doStart(self) -> None: ...
    def doStop(self) -> None: ...

    def dismiss(self) -> None:
        """End every guest's connection."""


class LateDoor(Factory):
    """A door that is made when the first guest comes."""

    noisy = False

    def __init__(self, make: Callable[[], Door]) -> None:
        self._make = make
        self._door: Door | None = None

    def buildProtocol(self, addr: Any) -> Any:
        if self._door is None:
            self._door = self._make()
        return self._door.buildProtocol(addr)

    def dismiss(self) -> None:
        if self._door is not None:
            self._door.dismiss()


class SeatPort(Service):
    """The socket; open while the service runs."""

    def __init__(self, reactor: IReactorUNIX, path: str, door: Door, *, mode: int, what: str, group: str = "") -> None:
        self._reactor = reactor
        self._path = path
        self._door = door
        self._mode = mode
        self._group = group
        self._what = what
        self._port: IListeningPort | None = None

    def startService(self) -> None:
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's
        free_path(self._path, self._what)
        factory: Any = self._door
        self._port = self._reactor.listenUNIX(self._path, factory, backlog=128, mode=self._mode)
        if self._group:
            give_to_group(self._path, self._group)

    async def _stop(self) -> None:
        port, self._port = self._port, None
        if port is not None:
            await maybeDeferred(port.stopListening)
        self._door.dismiss()

    def stopService(self) -> Deferred[None]:
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        return Deferred.fromCoroutine(self._stop())


def free_path(path: str, what: str) -> None:
    """Make sure a socket can be made at ``path``: what a dead daemon left is removed, a live one's is an error."""
    if len(os.fsencode(path)) > MAX_PATH:
        raise FileProblem(file=path, problem=f"is too long for a socket: at most {MAX_PATH} bytes")
    try:
        is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return _check_directory(path)
    if not is_socket:
        raise FileProblem(file=path, problem="is in the way: a socket is to be made here, and this is not one")
    if _answers(path):
        raise AlreadyRunning(what=what, path=path)
    try:
        os.unlink(path)
    except OSError as problem:
        raise FileProblem(file=path, problem=f"cannot be removed: {os.strerror(problem.errno or 0)}") from None


def _check_directory(path: str) -> None:
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise FileProblem(file=directory, problem="is not a directory; the socket is to be made there")
    if not os.access(directory, os.W_OK | os.X_OK):
        raise FileProblem(file=directory, problem="cannot be written to; the socket is to be made there")


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is somebody's too
        return probe.connect_ex(path) != errno.ECONNREFUSED


def give_to_group(path: str, group: str) -> None:
    """Let ``group`` have the file ``path``."""
    try:
        os.chown(path, -1, grp.getgrnam(group).gr_gid)
    except KeyError:
        raise FileProblem(file=path, problem=f"cannot be given to the group {group}: there is none") from None
    except OSError as problem:
        reason = os.strerror(problem.errno or 0)
        raise FileProblem(file=path, problem=f"cannot be given to the group {group}: {reason}") from None
