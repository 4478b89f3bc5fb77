"""A payload as bytes, cut to what AMP carries and joined again. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

CHUNK: Final = 48 * 1024
MOST: Final = 1024 * 1024
ROOM: Final = 700 * 1024  # what a sender puts into one batch: a single record always fits above it

encode = msgspec.msgpack.Encoder().encode


class TooMuch(Exception):
    """The peer sent more than one batch may hold."""


def chunks(payload: bytes) -> Iterator[tuple[bytes, bool]]:
    """The pieces of ``payload``, each with whether more follow. An empty payload is one empty piece."""
    last = max(len(payload) - 1, 0) // CHUNK
    for index in range(last + 1):
        yield payload[index * CHUNK : (index + 1) * CHUNK], index < last


class Joiner:
    """Puts the pieces of one command's payload together again."""

    __slots__ = ("_parts", "_size")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, piece: bytes, more: bool) -> bytes | None:
        """The whole payload when ``piece`` was its last, else None."""
        if not more and not self._parts:
            return piece
        self._size += len(piece)
        if self._size > MOST:
            raise TooMuch
        self._parts.append(piece)
        if more:
            return None
        whole = b"".join(self._parts)
        self._parts, self._size = [], 0
        return whole


def portion(records: Sequence[Any]) -> int:
    """How many of ``records``, from the first on, go into one batch: at least one, about :data:`ROOM` bytes."""
    total = 0
    for count, record in enumerate(records):
        total += len(encode(record))
        if total > ROOM:
            return max(count, 1)
    return len(records)
