"""What a run writes: its head and its tail are kept in bounded memory, and a pipe score's answers are picked out.

Standard library only. Reading the pipes is the run's business.
"""

import hashlib
from typing import Any, Final

from orchestra.player import handover

LONGEST_LINE: Final = 64 * 1024
RESPONSE_LIMIT: Final = 64 * 1024
_SLACK: Final = 256 * 1024

Spans = list[tuple[int, int]]


class Kept:
    """The first quarter and the last three quarters of ``limit`` bytes, and the true count and sha256 of all."""

    def __init__(self, limit: int) -> None:
        self.total = 0
        self._sha256: Any = hashlib.sha256(usedforsecurity=False)  # None: not known any more
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
        return self._sha256.hexdigest() if self._sha256 else None

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
        whole = len(self._head) + len(self._tail) == self.total
        self._sha256 = hashlib.sha256(self.data, usedforsecurity=False) if whole else None


class Answers:
    """Picks the ``key=value`` lines out of a stream; all else goes on to ``output``."""

    def __init__(self, output: Kept) -> None:
        self.output = output
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
        if self.cut or size > RESPONSE_LIMIT:
            self.cut = True
            return False
        self._size = size
        self.response[key] = value
        return True


def _lines(data: bytes) -> list[bytes]:
    return [line + b"\n" for line in data.split(b"\n")[:-1]]


def _weight(key: str, value: str) -> int:
    return len(key.encode()) + len(value.encode())
