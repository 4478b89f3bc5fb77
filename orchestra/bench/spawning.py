"""A floor: how fast Twisted itself spawns and reaps. A process of its own: ``python -m orchestra.bench.spawning N``."""

import sys
import time
from typing import Any, Final

from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure

AT_ONCE: Final = 8
PROGRAM: Final = "/bin/true"


class _Crew:
    """So many at once, until enough have ended."""

    def __init__(self, reactor: Any, many: int) -> None:
        self._reactor = reactor
        self._left = many
        self._running = 0

    def go_on(self) -> None:
        while self._left and self._running < AT_ONCE:
            self._left -= 1
            self._running += 1
            self._reactor.spawnProcess(_Hand(self), PROGRAM, [PROGRAM], {})
        if not self._running:
            self._reactor.stop()

    def ended(self) -> None:
        self._running -= 1
        self.go_on()


class _Hand(ProcessProtocol):
    def __init__(self, crew: _Crew) -> None:
        self._crew = crew

    def processEnded(self, reason: Failure) -> None:
        self._crew.ended()


def main(many: int) -> None:
    """Print how many seconds ``many`` took."""
    from twisted.internet import reactor as chosen

    reactor: Any = chosen
    reactor.callWhenRunning(_Crew(reactor, many).go_on)
    begun = time.perf_counter()
    reactor.run()
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    main(int(sys.argv[1]))
