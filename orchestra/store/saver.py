"""What others need of a store's threads: have a piece of work committed, have a question read."""

from collections.abc import Callable
from sqlite3 import Cursor
from typing import Protocol, TypeVar

from twisted.internet.defer import Deferred

T = TypeVar("T")


class Saver(Protocol):
    """Commits works in the order they come."""

    def write(self, work: Callable[[Cursor], T], *, brief: bool = False) -> "Deferred[T]":
        """Do ``work`` in a transaction; fires after its commit. NotSaved: nothing was done. ``brief``: it takes no
        longer than the disk's sync."""


class Loader(Protocol):
    """Reads what was committed before it was asked."""

    def read(self, work: Callable[[Cursor], T]) -> "Deferred[T]":
        """Do ``work``, which changes nothing."""
