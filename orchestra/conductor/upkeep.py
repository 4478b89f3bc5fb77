"""What keeps the store in good order while the conductor runs: an eye on the disk, pruning, backups."""

from collections.abc import Callable
from contextlib import closing
from sqlite3 import Connection, Cursor
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from orchestra.audience.desk import BackedUp, Cleared
from orchestra.conductor.dispatch import Dispatch
from orchestra.model import PrunePlan
from orchestra.settings import ConductorSettings
from orchestra.store import statements
from orchestra.store.backup import back_up
from orchestra.store.pruneplan import plan
from orchestra.store.reserve import Reserve
from orchestra.store.saver import Saver
from orchestra.store.sqlite import check
from orchestra.store.values import Pruned

STEPS: Final = 1_000_000  # of SQLite's machine, after which it is asked whether to stop
BREATH: Final = 0.05  # seconds between two steps of pruning, in which others have the store to themselves


T = TypeVar("T")


class InThread(Protocol):
    """Does ``work`` in a thread of the reactor's pool."""

    def __call__(self, work: Callable[[], T]) -> "Deferred[T]": ...


class Upkeep:
    """The upkeep of the store in ``chosen.state``; :meth:`look` and :meth:`prune` are called time and again."""

    log = Logger()

    def __init__(
        self,
        dispatch: Dispatch,
        writer: Saver,
        clock: IReactorTime,
        in_thread: InThread,
        connect: Callable[[], Connection],
        now: Callable[[], int],
        chosen: ConductorSettings,
    ) -> None:
        self._dispatch = dispatch
        self._writer = writer
        self._clock = clock
        self._in_thread = in_thread
        self._connect = connect
        self._now = now
        self._chosen = chosen
        self._reserve = Reserve(chosen.state, chosen.reserve)
        self.stopping = False
        self._too_large = False
        self._copying = DeferredLock()

    def follow(self, chosen: ConductorSettings) -> None:
        """These are the settings from now on; what they say of the disk holds when this returns."""
        self._chosen = chosen
        self._act(self._reserve.demand(chosen.reserve))

    def stop(self) -> None:
        """Break off what is under way; nothing is half done by that."""
        self.stopping = True

    @property
    def trouble(self) -> str:
        """What is wrong with the disk, if anything."""
        return self._reserve.trouble

    # ---- the disk

    def look(self) -> None:
        """Stop the dispatch when the disk has run low, and let it go on when there is room again."""
        self._act(self._reserve.look())

    def _act(self, has_changed: bool) -> None:
        if self._reserve.low:
            self._dispatch.pause(self._reserve.trouble)  # also when that is old: its figures are not
        if not has_changed:
            return
        if self._reserve.low:
            self.log.error("nothing new is accepted or handed out: {trouble}", trouble=self._reserve.trouble)
        else:
            self.log.warn("the disk of {state} has room again: work goes on", state=self._chosen.state)
            self._dispatch.resume()

    # ---- pruning

    async def plan(self) -> PrunePlan:
        """What pruning would remove now."""

        def work() -> PrunePlan:
            with closing(self._connect()) as connection:
                connection.set_progress_handler(lambda: self.stopping, STEPS)
                connection.execute("BEGIN")
                return plan(connection.cursor(), self._now(), self._chosen.keep, self._chosen.keep_size)

        return await self._in_thread(work)

    async def prune_now(self, who: str) -> Cleared:
        """Remove that, for somebody who waits for it."""
        before = await self._writer.write(statements.size)
        jobs, outputs = await self.prune()
        after = await self._writer.write(statements.size)
        self.log.info("{who} had {jobs} jobs pruned", who=who, jobs=jobs)
        return Cleared(jobs=jobs, outputs=outputs, before=before, after=after)

    async def prune(self) -> tuple[int, int]:
        """Remove what is too old or too much, step by step, then give the room back to the disk; how many jobs went,
        and how many pieces of output of others."""
        jobs = outputs = 0
        more = True
        while more and not self.stopping:
            done = await self._writer.write(self._prune_some)
            jobs, outputs, more = jobs + done.jobs, outputs + done.outputs, done.more
            await self._breathe()
        if jobs or outputs:
            self.log.info("pruned {jobs} jobs, and {outputs} pieces of output of others", jobs=jobs, outputs=outputs)
        await self._warn_of_size()
        more = True
        while more and not self.stopping:
            more = await self._writer.write(statements.give_back)
            await self._breathe()
        return jobs, outputs

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

    # ---- backups

    async def back_up(self, file: str, who: str) -> BackedUp:
        """Copy the store to ``file``, one backup after another; the store's own threads go on."""
        async with self._copying:
            started = self._clock.seconds()
            size = await self._in_thread(lambda: back_up(self._connect, file, lambda: self.stopping))
            took = round((self._clock.seconds() - started) * 1000)
        self.log.info("{who} made a backup, {file}, {size} bytes", who=who, file=file, size=size)
        return BackedUp(file=file, size=size, took=took)

    async def look_through(self) -> None:
        """Look a large store through that was not closed in good order; StoreDamaged if it is not whole."""

        def work() -> None:
            with closing(self._connect()) as connection:
                path = connection.execute("PRAGMA database_list").fetchone()[2]
                connection.set_progress_handler(lambda: self.stopping, STEPS)
                check(connection, path)

        await self._in_thread(work)
        self.log.info("the store was looked through, and is whole")

    async def _breathe(self) -> None:
        if not self.stopping:
            clock: Any = self._clock
            await deferLater(clock, BREATH)
