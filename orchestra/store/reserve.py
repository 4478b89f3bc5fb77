"""How much room a disk has left, and whether that is too little; what has run low recovers by a margin."""

import os
from typing import Final

MARGIN: Final = 8  # an eighth more than the least is wanted back, so that one job's room does not make it flap


class Reserve:
    """The disk of ``directory``, which is ``low`` when it has less than ``least`` bytes to give."""

    def __init__(self, directory: str, least: int) -> None:
        self._directory = directory
        self.least = least
        self.low = False
        self._free = 0

    def look(self) -> bool:
        """Look how things stand; whether that has changed."""
        return self._judge(self._enough if self.low else self.least)

    def demand(self, least: int) -> bool:
        """From now on it is low below ``least``, whatever it was by the measure before; whether that has changed it."""
        if least == self.least:
            return self.look()
        self.least = least
        return self._judge(least)

    def _judge(self, wanted: int) -> bool:
        self._free = free(self._directory)
        was, self.low = self.low, self._free < wanted
        return was is not self.low

    @property
    def trouble(self) -> str:
        """What is wrong, if it is low."""
        if not self.low:
            return ""
        room = f"{_megabytes(self._free)} free; it takes work again from {_megabytes(self._enough)} on"
        return f"the disk of {self._directory} has only {room}"

    @property
    def _enough(self) -> int:
        return self.least + self.least // MARGIN


def free(directory: str) -> int:
    """The bytes that can be written where ``directory`` is; of a disk that cannot be asked, none."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB" if size >= 10 << 20 else f"{size / (1 << 20):.1f} MB"
