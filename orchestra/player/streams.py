"""What a run writes: its head and its tail are kept in bounded memory, and its response is picked out.

Standard library only. Reading the pipes is the run's business.
"""

import json
from typing import Any, Final

from orchestra.checksum import Running, sha256
from orchestra.player import handover

LONGEST_LINE: Final = 64 * 1024
RESPONSE_LIMIT: Final = 64 * 1024
DEEPEST: Final = 32  # objects and arrays in a response, one in the other
_MOST_WHOLE: Final = 1 << 63
_SLACK: Final = 256 * 1024
_OF_NOTHING: Final = sha256(b"").hex()

Spans = list[tuple[int, int]]


class Kept:
    """The first quarter and the last three quarters of ``limit`` bytes, and the true count and sha256 of all."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._sha256: Running | None = Running()  # None: not known any more
        self._head = bytearray()
        self._head_most = limit // 4
        self._tail = bytearray()
        self._tail_most = limit - limit // 4

    def feed(self, data: bytes) -> None:
        self.total += len(data)
        if self._sha256:
            self._sha256.update(data)
        room = self._head_most - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > self._tail_most + _SLACK:  # cutting every time would copy the tail every time
            del self._tail[: len(self._tail) - self._tail_most]

    def close(self) -> None:
        """There is no more."""
        del self._tail[: max(0, len(self._tail) - self._tail_most)]

    @property
    def sha256(self) -> str | None:
        """Of all of it; None if a part that is not kept went by before the stage was replaced."""
        if not self.total:
            return _OF_NOTHING
        return self._sha256.digest().hex() if self._sha256 else None

    @property
    def spans(self) -> Spans:
        """The (offset, length) pieces of the stream that are kept; those that touch are one."""
        head, tail = len(self._head), len(self._tail)
        if head + tail == self.total:
            return [(0, self.total)] if self.total else []
        return [span for span in ((0, head), (self.total - tail, tail)) if span[1]]

    @property
    def data(self) -> bytes:
        """The kept pieces, joined."""
        return bytes(self._head + self._tail)

    def handed(self) -> handover.State:
        """What the next program needs to go on."""
        return {"total": self.total, "head": handover.text(self._head), "tail": handover.text(self._tail)}

    def take_over(self, state: handover.State) -> None:
        """Go on where the program before stopped. A checksum cannot be handed over; it is made again if it can."""
        self.total = state["total"]
        self._head = bytearray(handover.data(state["head"]))
        self._tail = bytearray(handover.data(state["tail"]))
        self._sha256 = None
        if len(self._head) + len(self._tail) == self.total:
            self._sha256 = Running()
            self._sha256.update(self.data)


class Answers:
    """Picks the ``key=value`` lines out of a stream; all else goes on to ``output``."""

    def __init__(self, output: Kept, limit: int = RESPONSE_LIMIT) -> None:
        self.output = output
        self._limit = limit
        self.response: dict[str, str] = {}
        self.cut = False
        self._size = 0
        self._partial = bytearray()  # the line that is still being written
        self._overlong = False  # ... which is already known to be output

    def feed(self, data: bytes) -> None:
        start = data.find(b"\n") + 1
        if not start:
            self._hold(data)
            return
        self._hold(data[:start])
        end = data.rfind(b"\n") + 1
        self._whole_lines(data[start:end])
        self._hold(data[end:])

    @property
    def notes(self) -> list[str]:
        """What was wrong with the response."""
        return [f"response cut at {self._limit >> 10} KiB"] if self.cut else []

    def close(self) -> None:
        """There is no more; a last line without a line end counts."""
        self._release()
        self.output.close()

    def handed(self) -> handover.State:
        """What the next program needs to go on."""
        partial = handover.text(self._partial)
        return {"response": self.response, "cut": self.cut, "partial": partial, "overlong": self._overlong}

    def take_over(self, state: handover.State) -> None:
        """Go on where the program before stopped."""
        self.response, self.cut, self._overlong = state["response"], state["cut"], state["overlong"]
        self._partial = bytearray(handover.data(state["partial"]))
        self._size = sum(_weight(key, value) for key, value in self.response.items())

    def _hold(self, data: bytes) -> None:
        if self._overlong:
            self.output.feed(data)
        else:
            self._partial += data
        if data.endswith(b"\n"):
            self._release()
        elif len(self._partial) > LONGEST_LINE:
            self._overlong = True
            self.output.feed(bytes(self._partial))
            self._partial.clear()

    def _release(self) -> None:
        if self._partial:
            self._line(bytes(self._partial))
        self._partial.clear()
        self._overlong = False

    def _whole_lines(self, data: bytes) -> None:
        if b"=" not in data:
            self.output.feed(data)
            return
        for line in data.splitlines(keepends=True) if b"\r" not in data else _lines(data):
            self._line(line)

    def _line(self, line: bytes) -> None:
        key, equals, value = line.removesuffix(b"\n").partition(b"=")
        if not equals or not key or len(line) > LONGEST_LINE or not self._answer(key, value):
            self.output.feed(line)

    def _answer(self, raw_key: bytes, raw_value: bytes) -> bool:
        """Whether it fits into the response; past the limit the response takes no more."""
        key, value = raw_key.decode(errors="replace"), raw_value.decode(errors="replace")
        size = self._size + _weight(key, value)
        if key in self.response:
            size -= _weight(key, self.response[key])
        if self.cut or size > self._limit:
            self.cut = True
            return False
        self._size = size
        self.response[key] = value
        return True


class Object:
    """The response of a json score: one JSON object, or none and a note why not."""

    def __init__(self, limit: int = RESPONSE_LIMIT) -> None:
        self.response: dict[str, Any] | None = None
        self.notes: list[str] = []
        self._limit = limit
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        self._data += data[: max(0, self._limit + 1 - len(self._data))]

    def close(self) -> None:
        """There is no more."""
        if not self._data.strip():
            return
        if len(self._data) > self._limit:
            self.notes.append(f"response of more than {self._limit >> 10} KiB dropped")
            return
        try:
            self.response = object_in(bytes(self._data))
        except ValueError as problem:
            self.notes.append(f"response dropped: {problem}")

    def handed(self) -> handover.State:
        """What the next program needs to go on."""
        return {"object": handover.text(self._data)}

    def take_over(self, state: handover.State) -> None:
        """Go on where the program before stopped."""
        self._data = bytearray(handover.data(state["object"]))


def object_in(data: bytes) -> dict[str, Any]:
    """The JSON object that ``data`` is, if every codec on its way can carry it; ValueError says why not."""
    try:
        found = json.loads(data.decode(), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ValueError("what it wrote to descriptor 3 is no JSON") from None
    if not isinstance(found, dict):
        raise ValueError("what it wrote to descriptor 3 is JSON, but no object")
    _check(found, DEEPEST)
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _check(value: Any, deeper: int) -> None:
    if isinstance(value, dict | list):
        if not deeper:
            raise ValueError(f"it is nested deeper than {DEEPEST}")
        for key in value if isinstance(value, dict) else ():
            _check(key, 0)
        for one in value.values() if isinstance(value, dict) else value:
            _check(one, deeper - 1)
    elif isinstance(value, str):
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError("it holds half of a surrogate pair")
    elif isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            raise ValueError("it holds a number that is too large")
    elif isinstance(value, int) and not -_MOST_WHOLE <= value < _MOST_WHOLE:
        raise ValueError("it holds a whole number of more than 64 bits")


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def _weight(key: str, value: str) -> int:
    return len(key.encode()) + len(value.encode())
