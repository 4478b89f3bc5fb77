"""Reports of many players, settled together: what comes in while the store is busy waits, and is one commit then.

A store that is idle is asked at once. Who has reported hears when the commit is there, whatever it was together with.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from orchestra.core.scheduler import Session
from orchestra.errors import OrchestraError, Superseded
from orchestra.model import Report

UNDER_WAY: Final = 2  # commits asked for and not there yet: one is written while the next is prepared
MOST: Final = 500  # sessions in one: submits are not to wait longer for it


class Said(NamedTuple):
    """What a session has reported; ``done`` fires when it is saved."""

    session: Session
    reports: Sequence[Report]
    done: "Deferred[None]"


Settle = Callable[[Sequence[Said]], Awaitable[frozenset[tuple[int, int]]]]
"""Saves them in one commit; returns the sessions (player, epoch) that were superseded."""


class Together:
    """The reports that wait for a commit."""

    def __init__(self, settle: Settle) -> None:
        self._settle = settle
        self._waiting: list[Said] = []
        self._under_way = 0

    def add(self, session: Session, reports: Sequence[Report]) -> "Deferred[None]":
        """Save what a session has reported; fires after the commit. Superseded: nothing was taken."""
        said = Said(session, reports, Deferred())
        self._waiting.append(said)
        self._go_on()
        return said.done

    def _go_on(self) -> None:
        while self._waiting and self._under_way < UNDER_WAY:
            some = self._waiting[:MOST]
            del self._waiting[:MOST]
            self._under_way += 1
            Deferred.fromCoroutine(self._do(some)).addBoth(self._done)

    def _done(self, result: object) -> object:
        self._under_way -= 1
        self._go_on()
        return result

    async def _do(self, some: Sequence[Said]) -> None:
        try:
            superseded = await self._settle(some)
        except Exception as problem:  # noqa: BLE001 - whatever it was reaches the ones who asked
            if len(some) == 1 or isinstance(problem, OrchestraError):
                for said in some:
                    said.done.errback(Failure(problem))
            else:  # a bug that one of them brings to light is no reason to refuse the others
                for said in some:
                    await self._do([said])
            return
        for said in some:
            if (said.session.player, said.session.epoch) in superseded:
                said.done.errback(Superseded(player=said.session.name, epoch=said.session.epoch))
            else:
                said.done.callback(None)
