"""The virtual clock, and the processes that live on it: each may be paused, and killed between any two things it does."""

import traceback
from bisect import insort
from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any, Final

from twisted.internet.base import DelayedCall
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent

TRACED: Final = 1500


class Killed(BaseException):
    """A process was killed in the middle of what it did."""


class QuickClock(Clock):
    """Twisted's clock, kept in order as calls come instead of being sorted for each of them."""

    def callLater(self, when: float, what: Callable[..., Any], *args: Any, **kw: Any) -> DelayedCall:
        due = self.rightNow + when
        call = DelayedCall(due, what, args, kw, self.calls.remove, lambda _: self.in_order(), self.seconds)
        insort(self.calls, call, key=DelayedCall.getTime)
        return call

    def in_order(self) -> None:
        """Something was moved."""
        self.calls.sort(key=DelayedCall.getTime)

    def run_until(self, end: float) -> None:
        """Do everything that is due by then, each at its own moment."""
        calls = self.calls
        while calls and (due := calls[0].getTime()) <= end:
            self.rightNow = max(self.rightNow, due)
            call = calls.pop(0)
            call.called = 1
            call.func(*call.args, **call.kw)
        self.rightNow = end


class Timeline:
    """The one clock, the one source of chance, and what has happened of late."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.clock = QuickClock()
        self.current = "world"
        self.bugs: list[str] = []  # what went wrong in the open: an exception nobody expected
        self.counts: Counter[str] = Counter()  # what there was in the story
        self._trace: deque[tuple[float, str, str | LogEvent, tuple[Any, ...]]] = deque(maxlen=TRACED)

    @property
    def now(self) -> float:
        return self.clock.rightNow

    def note(self, text: str, *values: Any) -> None:
        """Remember that something happened."""
        self._trace.append((self.clock.rightNow, self.current, text, values))

    def hear(self, event: LogEvent) -> None:
        """What a daemon logs; a failure in it is a bug."""
        self._trace.append((self.clock.rightNow, self.current, event, ()))
        if "skipped a number" in event["log_format"]:
            self.bugs.append(f"{self.current}: {formatEvent(event)}")
        if "log_failure" in event and event["log_level"] >= LogLevel.error:
            self.bugs.append(f"{self.current}: {formatEvent(event)}\n{event['log_failure'].getTraceback()}")

    def trace(self) -> list[str]:
        """What happened, a line each."""
        return [f"{at:9.3f} {who:<12} {_said(what, values)}" for at, who, what, values in self._trace]

    def run_for(self, seconds: float) -> None:
        """Let everything happen that is due within this time, one moment after another."""
        self.clock.run_until(self.clock.rightNow + seconds)

    def later(self, seconds: float, do: Callable[..., None], *args: Any) -> None:
        """Have the world itself do something, whoever lives then."""
        self.clock.callLater(seconds, do, *args)

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability


def _said(what: str | LogEvent, values: tuple[Any, ...]) -> str:
    if not isinstance(what, str):
        return f"[{what['log_level'].name}] {formatEvent(what)}"
    return what.format(*values) if values else what


class Process:
    """One life of a daemon: the reactor it is given, as far as it uses one."""

    def __init__(self, timeline: Timeline, name: str, network: Any, host: str) -> None:
        self.timeline = timeline
        self.name = name
        self.host = host  # the machine it is on
        self.alive = True
        self.asleep_until = 0.0
        self.hears_only: int | None = None  # so many messages, and is killed by the next
        self._network = network

    # ---- as a reactor

    def seconds(self) -> float:
        return self.timeline.clock.rightNow

    def callLater(self, delay: float, func: Callable[..., Any], *args: Any, **kwargs: Any) -> DelayedCall:
        """As a reactor's; what a dead process asks for never happens."""
        assert delay >= 0
        clock = self.timeline.clock
        if not self.alive:
            return DelayedCall(0, func, args, kwargs, lambda _: None, lambda _: None, clock.seconds)
        if clock.rightNow + delay < self.asleep_until:
            delay = self._awake()
        return clock.callLater(delay, self.enter, func, *args, **kwargs)

    def connectUNIX(self, path: str, factory: Any, timeout: float = 30, checkPID: int = 0) -> None:
        self._network.dial_stage(self, path, factory)

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        return self._network.listen(self, factory)

    # ---- as a process

    def enter(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Have it do something; what it does not catch is a bug."""
        if not self.alive:
            return None
        before, self.timeline.current = self.timeline.current, self.name
        try:
            return func(*args, **kwargs)
        except Killed:
            return None
        except Exception:  # as a reactor does, but nobody overlooks it here
            self.timeline.bugs.append(f"{self.name}: {traceback.format_exc()}")
            return None
        finally:
            self.timeline.current = before

    def hear(self) -> None:
        """A message has come: what was before it is done, what comes of it may never be."""
        if self.hears_only is not None:
            self.hears_only -= 1
            if self.hears_only < 0:
                self.timeline.counts["fault: killed between messages"] += 1
                self.kill()
                raise Killed

    def _own_calls(self) -> list[DelayedCall]:
        return [call for call in self.timeline.clock.calls if getattr(call.func, "__self__", None) is self]

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later: what was due meanwhile happens then, in any order that its connections allow."""
        self.timeline.note("{} is paused for {:.1f} s", self.name, seconds)
        self.asleep_until = max(self.asleep_until, self.seconds() + seconds)
        for call in self._own_calls():
            if call.getTime() < self.asleep_until:
                call.reset(self._awake())
        self.timeline.clock.in_order()

    def _awake(self) -> float:
        return self.asleep_until - self.seconds() + 0.002 * self.timeline.random.random()

    def kill(self, *, power: bool = False) -> None:
        """It is gone, now. With ``power`` nobody is told by its kernel either."""
        if not self.alive:
            return
        self.timeline.note("{} is killed{}", self.name, ": no power" if power else "")
        self.alive = False
        for call in self._own_calls():
            call.cancel()
        self._network.died(self, power=power)
