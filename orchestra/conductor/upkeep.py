"""What keeps the store in good order while the conductor runs: an eye on the disk, pruning, backups."""

from collections.abc import Callable
from sqlite3 import Cursor
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from orchestra.conductor.dispatch import Dispatch
from orchestra.settings import ConductorSettings
from orchestra.store import statements
from orchestra.store.reserve import Reserve
from orchestra.store.saver import Saver
from orchestra.store.values import Pruned

BREATH: Final = 0.05  # seconds between two steps of pruning, in which others have the store to themselves


class Upkeep:
    """The upkeep of the store in ``chosen.state``; :meth:`look` and :meth:`prune` are called time and again."""

    log = Logger()

    def __init__(
        self,
        dispatch: Dispatch,
        writer: Saver,
        clock: IReactorTime,
        now: Callable[[], int],
        chosen: ConductorSettings,
    ) -> None:
        self._dispatch = dispatch
        self._writer = writer
        self._clock = clock
        self._now = now
        self._chosen = chosen
        self._reserve = Reserve(chosen.state, chosen.reserve)
        self._stopping = False
        self._too_large = False

    def follow(self, chosen: ConductorSettings) -> None:
        """These are the settings from now on."""
        self._chosen = chosen
        self._reserve.least = chosen.reserve

    def stop(self) -> None:
        """Break off what is under way; nothing is half done by that."""
        self._stopping = True

    @property
    def trouble(self) -> str:
        """What is wrong with the disk, if anything."""
        return self._reserve.trouble

    # ---- the disk

    def look(self) -> None:
        """Stop the dispatch when the disk has run low, and let it go on when there is room again."""
        if not self._reserve.look():
            return
        if self._reserve.low:
            self.log.error("nothing new is accepted or handed out: {trouble}", trouble=self._reserve.trouble)
            self._dispatch.pause(self._reserve.trouble)
        else:
            self.log.warn("the disk of {state} has room again: work goes on", state=self._chosen.state)
            self._dispatch.resume()

    # ---- pruning

    async def prune(self) -> None:
        """Remove what is too old or too much, step by step, then give the room back to the disk."""
        jobs = outputs = 0
        more = True
        while more and not self._stopping:
            done = await self._writer.write(self._prune_some)
            jobs, outputs, more = jobs + done.jobs, outputs + done.outputs, done.more
            await self._breathe()
        if jobs or outputs:
            self.log.info("pruned {jobs} jobs, and {outputs} pieces of output of others", jobs=jobs, outputs=outputs)
        await self._warn_of_size()
        more = True
        while more and not self._stopping:
            more = await self._writer.write(statements.give_back)
            await self._breathe()

    def _prune_some(self, cursor: Cursor) -> Pruned:
        return statements.prune(cursor, self._now(), self._chosen.keep, self._chosen.keep_size)

    async def _warn_of_size(self) -> None:
        """Say so, once, when the store is too large and there is nothing left in it that may go."""
        too_large = await self._writer.write(statements.size) > self._chosen.keep_size
        if too_large and not self._too_large:
            self.log.warn(
                "the store is larger than keep_size ({size} bytes), and nothing in it has ended",
                size=self._chosen.keep_size,
            )
        self._too_large = too_large

    async def _breathe(self) -> None:
        if not self._stopping:
            clock: Any = self._clock
            await deferLater(clock, BREATH)
