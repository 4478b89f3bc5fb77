"""The marker that keeps a player from taking work: a file in its state directory, so that a restart changes nothing.

A marker that is there and cannot be read counts: taking work again is for whoever removes it to decide.
"""

import contextlib
import os
from typing import Final

import msgspec

from orchestra.audience.node import Drained
from orchestra.errors import NotSaved
from orchestra.store.sqlite import sync_directory

FILE: Final = "drained"
_decode = msgspec.json.Decoder(Drained).decode


class Marker:
    """The marker in ``directory``."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.path = os.path.join(directory, FILE)
        self.drained: Drained | None = None

    def read(self) -> None:
        """Learn whether the marker is there."""
        try:
            with open(self.path, "rb") as file:
                self.drained = _decode(file.read())
        except FileNotFoundError:
            self.drained = None
        except (OSError, msgspec.MsgspecError):
            self.drained = Drained(at=0, by="somebody", reason=f"{self.path} is there, but cannot be read")

    def put(self, drained: Drained) -> None:
        """Have it on disk."""
        beside = f"{self.path}.new"
        try:
            with open(beside, "wb") as file:
                file.write(msgspec.json.encode(drained))
                file.flush()
                os.fsync(file.fileno())
            os.rename(beside, self.path)
            sync_directory(self._directory)
        except OSError as problem:
            raise NotSaved(problem=f"{self.path}: {os.strerror(problem.errno or 0)}") from None
        self.drained = drained

    def remove(self) -> None:
        """Have it gone."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            sync_directory(self._directory)
        except OSError as problem:
            raise NotSaved(problem=f"{self.path}: {os.strerror(problem.errno or 0)}") from None
        self.drained = None
