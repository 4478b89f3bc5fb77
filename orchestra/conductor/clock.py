"""The store's clock: the wall clock, but a jump of it is not believed at once.

Jobs expire by the time of day, and that may be put wrong and right again within minutes: by a hand, by a bad time
server, by a machine that was moved. Until a jump has lasted, time goes on here as it did before. A machine that slept
has not jumped: the clock that is compared counts sleep.
"""

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

JUMP: Final = 60_000  # milliseconds between two looks from which on it is a jump
BELIEVED_AFTER: Final = 15 * 60_000


class StoreClock:
    """Milliseconds since 1970. ``steady``: milliseconds of a clock that nobody sets, sleep included."""

    log = Logger()

    def __init__(self, wall: Callable[[], int], steady: Callable[[], int]) -> None:
        self._wall = wall
        self._steady = steady
        self._offset = wall() - steady()
        self._jump: int | None = None  # what it jumped to
        self._jumped_at = 0  # by the steady clock

    def __call__(self) -> int:
        steady = self._steady()
        offset = self._wall() - steady
        if abs(offset - self._offset) < JUMP:
            self._follow(offset)
        elif self._jump is None or abs(offset - self._jump) >= JUMP:
            self._jump, self._jumped_at = offset, steady
            self._say(offset - self._offset)
        elif steady - self._jumped_at >= BELIEVED_AFTER:
            self.log.warn("the wall clock stays where it jumped to; jobs expire by it from now on")
            self._jump = None
            self._offset = offset
        return steady + self._offset

    def _follow(self, offset: int) -> None:
        if self._jump is not None:
            self.log.info("the wall clock is back")
        self._jump = None
        self._offset = offset

    def _say(self, milliseconds: int) -> None:
        seconds = round(milliseconds / 1000)
        self.log.warn(
            "the wall clock jumped by {seconds:+} s; for {minutes} minutes jobs expire as if it had not, "
            "so that it can be put right",
            seconds=seconds,
            minutes=BELIEVED_AFTER // 60_000,
        )
