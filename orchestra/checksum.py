"""sha256 for the processes that are to be small. Standard library only.

OpenSSL's is the fastest and takes 4 MB of a stage, 1 MB of a player, so it is loaded for what is long; little is left
to Python's own.
"""

import os
import sys
from typing import Any, Final

LITTLE: Final = 64 * 1024  # Python's own takes a fifth of a millisecond for it, five times as long


def _fast() -> Any:
    """OpenSSL's, or in a process that has outlived the Python that it was started from what is there already."""
    try:
        import hashlib

        return hashlib.sha256
    except ImportError:
        return _little


def _plain() -> Any:
    """Python's own, by the name it has there; OpenSSL's where there is none."""
    try:
        return __import__("_sha2" if sys.version_info >= (3, 12) else "_sha256").sha256
    except ImportError:
        return __import__("hashlib").sha256


_little: Final = _plain()


def sha256(data: bytes) -> bytes:
    """The digest of ``data``."""
    found: bytes = (_little if len(data) <= LITTLE else _fast())(data).digest()
    return found


def sha256_of_file(handle: int) -> bytes:
    """The digest of the rest of an open file."""
    running = Running()
    while data := os.read(handle, LITTLE):
        running.update(data)
    return running.digest()


class Running:
    """The digest of what comes piece by piece. What may be little is held until that is known."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._hash: Any = None

    def update(self, data: bytes | bytearray) -> None:
        if self._hash:
            self._hash.update(data)
            return
        self._held += data
        if len(self._held) > LITTLE:
            self._hash = _fast()(self._held)
            self._held = bytearray()

    def digest(self) -> bytes:
        found: bytes = (self._hash or _little(self._held)).digest()
        return found
