"""SIGHUP, handed to the reactor: "read your configuration again".

What is read, and what happens to it, is the daemon's business; here it is only seen to that no HUP kills, that none
is lost, that two reloads never overlap, and that a reload that fails is logged and changes nothing else.
"""

import signal
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorFromThreads
from twisted.logger import Logger

from orchestra.errors import OrchestraError

Reload = Callable[[], Awaitable[object]]


class Hangup(Service):
    """Calls ``reload`` in the reactor after a SIGHUP; those heard during a reload are answered by one more.

    The signal is caught from construction on, because until then it kills; make it early. ``stopService`` puts the
    former handler back and cancels a reload that is under way.
    """

    log = Logger()

    def __init__(self, reactor: IReactorFromThreads, reload: Reload) -> None:
        self._reactor = reactor
        self._reload = reload
        self._heard = 0
        self._answering: Deferred[None] | None = None
        self._before: Any = signal.signal(signal.SIGHUP, self._on_signal)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self._reactor.callFromThread(self.hear)

    def hear(self) -> None:
        """Reload now; if a reload is under way, once more after it."""
        self._heard += 1
        if self._heard == 1:
            self._answering = Deferred.fromCoroutine(self._answer())

    async def _answer(self) -> None:
        while self._heard:
            self._heard = 1  # whoever comes from here on wants another reload
            await self._answer_once()
            self._heard -= 1

    async def _answer_once(self) -> None:
        try:
            await self._reload()
        except CancelledError:
            self.log.info("Reading the configuration again was broken off: the daemon stops.")
        except OrchestraError as problem:
            self.log.error("SIGHUP: {problem} What was in force stays.", problem=problem.sentence)
        except Exception:  # noqa: BLE001 - logged, and the daemon goes on with what it has
            self.log.failure("SIGHUP: the configuration could not be read again; what was in force stays")

    def stopService(self) -> Deferred[None] | None:
        """No more reloads."""
        stopped: Deferred[None] | None = super().stopService()  # type: ignore[no-untyped-call]  # Twisted's
        signal.signal(signal.SIGHUP, self._before)
        self._reload = _nothing
        if self._answering is not None:
            self._answering.cancel()
        return stopped


async def _nothing() -> None:
    """What a SIGHUP does that was heard before the service stopped and is handed over only now."""
