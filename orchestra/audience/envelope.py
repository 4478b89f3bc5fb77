"""What crosses between a seat and its client, and nothing else: basic types, in answers and in errors.

An answer is ``["OK", value]``, or ``[code, sentence, status]`` for an error that has a name. A value travels as its
msgpack, cut into pieces that Perspective Broker can carry: one string costs it a tenth of what a nested list does.
Both ends use the types of :mod:`orchestra.model`.
"""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Final, TypeVar

import msgspec
from twisted.spread.jelly import SecurityOptions

from orchestra.errors import BadRequest, InternalError, OrchestraError, Refusal

MAX_ROWS: Final = 500
MAX_BYTES: Final = 256 * 1024  # of one answer; Perspective Broker breaks at 640 KiB
PIECE: Final = 512 * 1024  # of a value; Perspective Broker breaks at 640 KiB

Packed = list[bytes]
"""A value on its way."""

T = TypeVar("T")


def security() -> SecurityOptions:
    """Basic types and references to what the other end has handed out; no class of anybody's."""
    options = SecurityOptions()
    options.allowBasicTypes()
    options.allowTypes("remote", "local")
    return options


def pack(value: object, what: str = "the answer") -> Packed:
    """``value`` on its way; :class:`BadRequest` about ``what`` if it holds what cannot travel."""
    try:
        whole = _encode(value)
    except (OverflowError, UnicodeEncodeError, RecursionError) as problem:
        raise BadRequest(problem=f"{what}: {problem}") from None
    return [whole[start : start + PIECE] for start in range(0, len(whole), PIECE)]


def unpack(value: object, kind: type[T], what: str) -> T:
    """``value`` as a ``kind``, or a :class:`BadRequest` about ``what`` that repeats nothing of it."""
    if not isinstance(value, list) or not all(isinstance(piece, bytes) for piece in value):
        raise BadRequest(problem=f"{what}: is not one value in pieces")
    decoder: msgspec.msgpack.Decoder[T] = _decoder(kind)
    try:
        return decoder.decode(b"".join(value))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise BadRequest(problem=f"{what}: {problem}") from None


_encode = msgspec.msgpack.Encoder().encode


_decoder: Any = functools.cache(msgspec.msgpack.Decoder)


def answer(value: object) -> list[Any]:
    """The envelope of a success."""
    return ["OK", pack(value)]


def refusal(error: OrchestraError) -> list[Any]:
    """The envelope of an expected error."""
    return [error.code, error.sentence, error.status]


def opened(envelope: object) -> Any:
    """The value in an envelope; an error in it is raised as the class that has its code."""
    match envelope:
        case ["OK", value]:
            return value
        case [str(code), str(sentence), int(status)]:
            raise revived(code, sentence, status)
    raise InternalError(number="(the conductor's answer cannot be read)")


def revived(code: str, sentence: str, status: int) -> OrchestraError:
    """The error that the other end raised: its class, sentence and exit status."""
    error = _told(code)(code=code, sentence=sentence)
    setattr(error, "status", status)  # noqa: B010 - a ClassVar, but here the other end decides
    return error


@functools.cache
def _told(code: str) -> type[OrchestraError]:
    kind = _kinds().get(code)
    if kind is None:
        return Refusal
    sentence = property(lambda self: str(self.fields["sentence"]))
    return type(kind.__name__, (kind,), {"sentence": sentence, "__doc__": kind.__doc__})


@functools.cache
def _kinds() -> dict[str, type[OrchestraError]]:
    return {kind.__new__(kind).code: kind for kind in _below(OrchestraError) if kind is not Refusal}


def _below(kind: type[OrchestraError]) -> Iterator[type[OrchestraError]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)


def page(rows: Iterable[object], limit: int) -> tuple[list[msgspec.Raw], bool]:
    """The first rows that fit into one answer, packed, and whether more were left; one row always fits."""
    packed: list[msgspec.Raw] = []
    size = 0
    for row in rows:
        raw = _encode(row)
        size += len(raw)
        if packed and (len(packed) >= limit or size > MAX_BYTES):
            return packed, True
        packed.append(msgspec.Raw(raw))
    return packed, False


def pages(rows: Iterable[T]) -> Iterator[list[T]]:
    """All rows, in lists that each fit into one message."""
    batch: list[T] = []
    size = 0
    for row in rows:
        length = len(_encode(row))
        if batch and (len(batch) >= MAX_ROWS or size + length > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield batch
