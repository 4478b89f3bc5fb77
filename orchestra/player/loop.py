"""The stage's event loop: readable descriptors, timers, signals. One thread, standard library only."""

import contextlib
import heapq
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from itertools import count
from typing import Final

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
_HARVEST: Final = 64  # dead timers that are tolerated in the heap


class Timer:
    """Something that will be done, unless it is cancelled."""

    __slots__ = ("do", "dropped")

    def __init__(self, do: Callable[[], None], dropped: Callable[[], None]) -> None:
        self.do: Callable[[], None] | None = do
        self.dropped = dropped

    def cancel(self) -> None:
        if self.do:
            self.do = None
            self.dropped()


class Loop:
    """Calls back when a descriptor is ready, a time has come or a signal was caught, and after every turn."""

    def __init__(self, after_turn: Callable[[], None]) -> None:
        self._after_turn = after_turn
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[int], None]] = {}
        self._heap: list[tuple[float, int, Timer]] = []
        self._numbers = count()
        self._dead = 0
        self._stopped = False
        self._caught = -1  # the pipe with the numbers of signals

    def watch(self, handle: int, ready: Callable[[int], None], events: int = READ) -> None:
        self._epoll.register(handle, events)
        self._watched[handle] = ready

    def change(self, handle: int, events: int) -> None:
        self._epoll.modify(handle, events)

    def unwatch(self, handle: int) -> None:
        del self._watched[handle]
        self._epoll.unregister(handle)

    def close(self, handle: int) -> None:
        """Close what is watched; the kernel stops to watch what nobody has open any more."""
        del self._watched[handle]
        os.close(handle)

    def later(self, seconds: float, do: Callable[[], None]) -> Timer:
        return self.at(time.monotonic() + seconds, do)

    def at(self, due: float, do: Callable[[], None]) -> Timer:
        """``due`` is by the monotonic clock."""
        timer = Timer(do, self._dropped)
        heapq.heappush(self._heap, (due, next(self._numbers), timer))
        return timer

    def catch(self, numbers: Iterable[int], caught: Callable[[int], None]) -> None:
        """Have ``caught`` called, in the loop, for each of these signals."""
        inlet, outlet = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._caught = inlet
        for number in numbers:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(outlet, warn_on_full_buffer=False)

        def ready(_: int) -> None:
            for number in set(os.read(inlet, 4096)):
                caught(number)

        self.watch(inlet, ready)

    def give_back(self) -> None:
        """Send ourselves again what was caught and not looked at yet; to be called while these signals are blocked."""
        with contextlib.suppress(BlockingIOError):
            for number in os.read(self._caught, 4096):
                os.kill(os.getpid(), number)

    def run(self) -> None:
        while not self._stopped:
            for handle, events in self._epoll.poll(self._patience()):
                if ready := self._watched.get(handle):
                    ready(events)
            self._due()
            self._after_turn()

    def stop(self) -> None:
        self._stopped = True

    def _patience(self) -> float | None:
        while self._heap and self._heap[0][2].do is None:
            heapq.heappop(self._heap)
            self._dead -= 1
        return max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None

    def _due(self) -> None:
        now = time.monotonic()
        while self._heap and self._heap[0][0] <= now:
            timer = heapq.heappop(self._heap)[2]
            if timer.do is None:
                self._dead -= 1
                continue
            do, timer.do = timer.do, None
            do()

    def _dropped(self) -> None:
        """Timeouts are long and runs are short: without pruning the heap would hold an hour's worth of runs."""
        self._dead += 1
        if self._dead > _HARVEST and self._dead > len(self._heap) // 2:
            self._heap = [entry for entry in self._heap if entry[2].do]
            heapq.heapify(self._heap)
            self._dead = 0
