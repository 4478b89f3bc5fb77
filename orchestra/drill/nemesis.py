"""The nemesis: does to the daemons what the plan says, heals it when its time is over, and brings back what is down."""

import contextlib
import heapq
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from orchestra.drill.evidence import StageKill
from orchestra.drill.plan import CONDUCTOR, Fault
from orchestra.drill.proxy import Gate, Mode
from orchestra.drill.renewal import ask_to_upgrade
from orchestra.drill.slowness import hold, release
from orchestra.errors import OrchestraError

SEVER_AFTER: Final = 0.7  # seconds for which a line that is to go stale gathers what is under way
LATER: Final = 0.2  # seconds by which a fault waits for another one of its victim
AGAIN: Final = 0.5  # seconds between attempts to start a daemon that does not start
TAIL: Final = 1500

_MODES: Final = {
    "stall line": Mode.STALL,
    "stall line up": Mode.STALL_UP,
    "stall line down": Mode.STALL_DOWN,
    "black hole": Mode.BLACKHOLE,
    "slow line": Mode.DELAY,
}


class House(Protocol):
    """Where the daemons are: what the nemesis asks of a theatre."""

    home: Path

    def start_conductor(self) -> None: ...
    def start_player(self, short: str) -> None: ...
    def second_player(self, short: str) -> str: ...
    def pid(self, daemon: str) -> int: ...
    def is_up(self, daemon: str) -> bool: ...
    def tidy(self, daemon: str) -> bool: ...
    def kill(self, daemon: str) -> None: ...
    def stop(self, daemon: str) -> None: ...
    def stages_of(self, player: str) -> list[int]: ...
    def kill_stage(self, player: str) -> None: ...


class Disk(Protocol):
    """A disk that can be filled."""

    def fill(self) -> None: ...
    def empty(self) -> None: ...


class Nemesis:
    """Enacts faults, one after another, in the thread that calls :meth:`turn`."""

    def __init__(
        self,
        house: House,
        gates: dict[str, Gate],
        disks: Mapping[str, Disk],
        in_reactor: Callable[..., None],
        domain: str,
    ) -> None:
        """``in_reactor(f, *args)`` calls f where the proxy lives, and returns when that is done."""
        self.injected: Counter[str] = Counter()
        self.stage_kills: list[StageKill] = []
        self.own_ends: list[str] = []
        self._house = house
        self._gates = gates
        self._disks = disks
        self._in_reactor = in_reactor
        self._domain = domain
        self._order = itertools.count()
        self._ahead: list[tuple[float, int, Callable[[], None]]] = []
        self._resting = False
        self._down: set[str] = set()  # ended by us, and not to be started yet
        self._suffering: set[tuple[str, str]] = set()  # parts and victims that have a fault now
        self._stopped: set[int] = set()  # under SIGSTOP
        self._held: set[int] = set()  # threads
        self._full: dict[str, float] = {}  # disks, and until when their daemons may fail for that
        self._next_try: dict[str, float] = {}

    def expect(self, faults: Sequence[Fault], begin: float) -> None:
        """Have these faults happen; their times are counted from ``begin`` (monotonic)."""
        for fault in faults:
            self._at(begin + fault.at, partial(self._befall, fault))

    def rest(self) -> None:
        """Do nothing any more: everything is to be stopped."""
        self._resting = True

    def turn(self) -> None:
        """Do what is due, and start again what should be up and is not."""
        if self._resting:
            return
        now = time.monotonic()
        while self._ahead and self._ahead[0][0] <= now:
            heapq.heappop(self._ahead)[2]()
        for daemon in (CONDUCTOR, *self._gates):
            if daemon not in self._down and not self._house.is_up(daemon):
                self._revive(daemon)

    def heal(self) -> None:
        """End every fault, whatever the plan says. Daemons that are down are started by the next turns."""
        self._ahead.clear()
        self._suffering.clear()
        self._down.clear()
        self._go_on(list(self._stopped))
        self._release(list(self._held))
        for gate in self._gates.values():
            self._in_reactor(gate.heal)
        for name, disk in self._disks.items():
            disk.empty()
            self._trouble_with(name)

    @property
    def quiet(self) -> bool:
        """Whether everything is up and nothing more is going to happen."""
        return not self._ahead and all(self._house.is_up(daemon) for daemon in (CONDUCTOR, *self._gates))

    # ---- faults

    def _befall(self, fault: Fault) -> None:
        who = fault.part, fault.victim
        if who in self._suffering:  # we are late, because a daemon took its time, and so is the end of that
            self._at(time.monotonic() + LATER, partial(self._befall, fault))
            return
        heal = self._begin(fault)
        if heal is None:
            return  # its victim is down already
        self.injected[fault.kind] += 1
        self._suffering.add(who)
        self._at(time.monotonic() + fault.lasts, partial(self._over, who, heal))

    def _over(self, who: tuple[str, str], heal: Callable[[], None]) -> None:
        heal()
        self._suffering.discard(who)

    def _begin(self, fault: Fault) -> Callable[[], None] | None:
        """Let it happen; what heals it, or None if it could not happen."""
        verb, victim = fault.kind.partition(" ")[0], fault.victim
        if fault.part == "line":
            return self._trouble_line(fault.kind, self._gates[victim])
        if fault.part.endswith("disk"):
            return self._fill(victim)
        if fault.part == "stage":
            return self._trouble_stage(verb, victim)
        if not self._house.is_up(victim):
            return None
        match verb:
            case "kill" | "restart":
                return self._end(victim, self._house.kill if verb == "kill" else self._house.stop)
            case "pause":
                return self._pause([self._house.pid(victim)])
            case "slow":
                return self._hold(self._house.pid(victim))
            case "hang":
                os.kill(self._house.pid(victim), signal.SIGHUP)
                return _nothing
            case _:
                return self._second(victim)

    def _trouble_stage(self, verb: str, player: str) -> Callable[[], None] | None:
        stages = self._house.stages_of(player)
        if not stages:
            return None
        if verb == "pause":
            return self._pause(stages)
        if verb == "kill":
            self._kill_stage(player)
        else:
            ask_to_upgrade(self._house.home / "run" / f"{player}.stage")
        return _nothing

    def _end(self, victim: str, end: Callable[[str], None]) -> Callable[[], None]:
        self._down.add(victim)
        try:
            end(victim)
        except OrchestraError as problem:
            self.own_ends.append(f"{victim} did not end when it was told to: {problem.sentence[-TAIL:]}")
            self._house.kill(victim)
        return lambda: self._down.discard(victim)  # the same turn starts it

    def _kill_stage(self, player: str) -> None:
        at = time.time_ns() // 1_000_000
        self._house.kill_stage(player)  # it is looked for first, and that takes a while
        self.stage_kills.append(StageKill(f"{player}.{self._domain}", at, time.time_ns() // 1_000_000))

    def _pause(self, pids: list[int]) -> Callable[[], None]:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self._stopped.add(pid)
        return lambda: self._go_on(pids)

    def _go_on(self, pids: Sequence[int]) -> None:
        for pid in pids:
            self._stopped.discard(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _hold(self, pid: int) -> Callable[[], None] | None:
        """Its disk does not answer; None if nobody waited for that."""
        threads = hold(pid)
        self._held.update(threads)
        return partial(self._release, threads) if threads else None

    def _release(self, threads: list[int]) -> None:
        release([thread for thread in threads if thread in self._held])  # a number may be a stranger's by now
        self._held.difference_update(threads)

    def _second(self, player: str) -> Callable[[], None]:
        """Another daemon with the same journal must be turned away by the lock."""
        said = self._house.second_player(player)
        if "already using" not in said:
            self.own_ends.append(f"a second player {player} was not turned away: {said[-TAIL:]!r}")
        return _nothing

    def _trouble_line(self, kind: str, gate: Gate) -> Callable[[], None]:
        if kind == "cut line":
            self._in_reactor(gate.cut)
        elif kind == "stale line":
            self._in_reactor(gate.behave, Mode.STALL)
            self._at(time.monotonic() + SEVER_AFTER, partial(self._in_reactor, gate.sever))
        else:
            self._in_reactor(gate.behave, _MODES[kind])
        return lambda: self._in_reactor(gate.heal)

    def _fill(self, name: str) -> Callable[[], None]:
        self._full[name] = float("inf")
        self._disks[name].fill()
        return lambda: self._refill(name)

    def _refill(self, name: str) -> None:
        self._disks[name].empty()
        self._trouble_with(name)

    def _trouble_with(self, name: str) -> None:
        if name in self._full:
            self._full[name] = time.monotonic() + 5  # a daemon may notice late

    # ---- what is down

    def _revive(self, daemon: str) -> None:
        now = time.monotonic()
        if now < self._next_try.get(daemon, 0.0):
            return
        self._next_try[daemon] = now + AGAIN
        try:
            if self._house.tidy(daemon) and self._full.get(daemon, 0.0) < now:
                self.own_ends.append(f"{daemon} ended by itself: {self._log_of(daemon)}")
            self._start(daemon)
        except OrchestraError as problem:
            if self._full.get(daemon, 0.0) < now:
                self.own_ends.append(f"{daemon} did not start: {problem.sentence[-TAIL:]}")

    def _start(self, daemon: str) -> None:
        if daemon == CONDUCTOR:
            self._house.start_conductor()
        else:
            self._house.start_player(daemon)

    def _log_of(self, daemon: str) -> str:
        log = self._house.home / "log" / f"{daemon}.log"
        return log.read_text(errors="replace")[-TAIL:] if log.is_file() else ""

    def _at(self, when: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._ahead, (when, next(self._order), work))


def _nothing() -> None:
    """What needs no healing."""
