"""What player and stage say to each other, and the frames it travels in. Standard library only.

    player                                                       stage
      hello(journal, version)                                ->    every older connection is closed first
                                                             <-    stage(boot, pid, version, program, runs)
                                                                     + short outputs
      perform(seq, job, task, attempt, score, params,        ->    noted as begun, then forked
              secrets, player, digest, dry_run)              <-    started(seq, pid, at) | refused(seq, reason)
      kill(seq, reason)                                      ->
                                                             <-    ended(seq, outcome) + short output
      fetch(seq, stream, offset, size)                       ->
                                                             <-    piece(seq, stream, offset, gone) + bytes
      forget(seqs)                                           ->    the directories are removed
                                                             <-    alarm(seq, reason)
      upgrade()                                              ->    becomes the program that is on its disk now
                                                             <-    upgraded(program, reason)

A frame is: u32 length of all that follows, u32 length of the JSON, the JSON (its ``type`` names the message), and
bytes that belong to it. An outcome with ``inline`` has its kept stdout and then its kept stderr among those bytes.
"""

import json
import struct
from collections.abc import Mapping
from typing import Final

VERSION: Final = "1"
MOST_TO_STAGE: Final = 1 << 20
MOST_TO_PLAYER: Final = 64 << 20
INLINE: Final = 8192  # kept output up to this travels in the outcome itself

_HEADER: Final = struct.Struct(">II")
to_json = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class BadFrame(ValueError):
    """The far end does not speak our language."""


def pack(text: bytes, body: bytes = b"") -> bytes:
    """One frame."""
    return _HEADER.pack(4 + len(text) + len(body), len(text)) + text + body


def encode(message: Mapping[str, object], body: bytes = b"") -> bytes:
    """One frame that says ``message``."""
    return pack(to_json(message).encode(), body)


class Frames:
    """Cuts what arrives into frames."""

    def __init__(self, most: int, rest: bytes = b"") -> None:
        self._most = most
        self._rest = bytearray(rest)

    @property
    def rest(self) -> bytes:
        """The beginning of a frame that is still to come whole."""
        return bytes(self._rest)

    def feed(self, data: bytes | bytearray) -> list[tuple[bytes, bytes]]:
        """The frames that ``data`` completes, as (JSON, body)."""
        if self._rest:
            self._rest += data
            data = self._rest
        found, at = [], 0
        while len(data) - at >= _HEADER.size:
            total, length = _HEADER.unpack_from(data, at)
            if total > self._most or length + 4 > total:
                raise BadFrame(f"a frame of {total} bytes with {length} bytes of JSON")
            end = at + 4 + total
            if len(data) < end:
                break
            body = at + _HEADER.size + length
            found.append((bytes(data[at + _HEADER.size : body]), bytes(data[body:end])))
            at = end
        if data is self._rest:
            del self._rest[:at]
        else:
            self._rest += data[at:]
        return found
