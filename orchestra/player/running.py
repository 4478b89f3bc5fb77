"""One run upon the stage: its pipes are read, its deadline is kept, and in the end there is an outcome.

A run that ends by itself ends when its first process does: what stays behind is noted and left alone, and its pipes
are read and thrown away. A run that is killed ends when nothing of it lives any more. Standard library only.
"""

import fcntl
import os
import resource
import signal
import sys
import termios
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from orchestra.player import handover
from orchestra.player.frames import INLINE
from orchestra.player.launch import Launched
from orchestra.player.loop import Loop, Timer
from orchestra.player.records import Outcome
from orchestra.player.streams import RESPONSE_LIMIT, Answers, Kept, Object
from orchestra.player.sweep import Seen, of_run, strike

UNKILLABLE_AFTER: Final = 10.0
YOUNG: Final = 0.004
"""Seconds for which a run is not watched, and its player not told of it unless with something else: many are over
before, and that is seen anyway. What it writes in that time waits in its pipes."""

ENOUGH: Final = 2  # looks that find nothing: during a single one somebody may be born and not be seen
NO_GROUP: Final = -1
_POLL: Final = 0.03
_CHUNK: Final = 65536


class Ended(NamedTuple):
    """An outcome, kept output short enough to travel with it, or else by stream what is too long for that."""

    outcome: Outcome
    body: bytes
    long_output: dict[int, bytes]


class House(NamedTuple):
    """What a run uses of its stage."""

    loop: Loop
    strays: "Strays"
    scan: Callable[[float], list[Seen]]  # taken no earlier than this (monotonic)
    reap: Callable[[], None]
    grown: Callable[["Run"], None]  # it was not over at once
    ended: Callable[["Run", Ended], None]
    alarm: Callable[["Run", str], None]


class Terms(NamedTuple):
    """The rules of a score that its run goes by, as they were when it was started. Milliseconds and bytes."""

    interface: str
    timeout: int
    kill_grace: int
    output_limit: int
    response_limit: int = RESPONSE_LIMIT


class Strays:
    """Pipes that somebody still holds though their run is over: read and thrown away, for closing them would kill."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.handles: set[int] = set()

    def take(self, handle: int) -> None:
        """Look after a pipe that nobody watches."""
        self.handles.add(handle)
        self._loop.watch(handle, lambda _: self._discard(handle))

    def _discard(self, handle: int) -> None:
        if _read(handle) == b"":
            self.handles.discard(handle)
            self._loop.close(handle)


class Pipe:
    """Our end of a run's stdout, stderr or response."""

    def __init__(self, house: House, handle: int, sink: Kept | Answers | Object) -> None:
        """``handle`` is negative if the pipe was closed already."""
        self._loop = house.loop
        self._strays = house.strays
        self.handle = handle
        self._sink = sink
        self._watched = False

    @property
    def open(self) -> bool:
        """Whether somebody may hold the other end."""
        return self.handle >= 0

    def watch(self) -> None:
        """Take what is written, from here on."""
        if self.open and not self._watched:
            self._loop.watch(self.handle, self._ready)
            self._watched = True

    def drain(self) -> bool:
        """Take what was written so far; afterwards discard. Whether somebody still holds the other end."""
        if self.open and self._take(_CHUNK):
            left = self._waiting()  # no more: a daemon that keeps writing must not keep us here
            while left > 0 and (taken := self._take(min(left, _CHUNK))):
                left -= taken
            if self.open:
                self._take(1)
        held = self.open
        if held:
            if self._watched:
                self._loop.unwatch(self.handle)
            self._strays.take(self.handle)
        self._sink.close()
        return held

    def _waiting(self) -> int:
        return int.from_bytes(fcntl.ioctl(self.handle, termios.FIONREAD, bytes(4)), sys.byteorder)

    def _ready(self, _: int) -> None:
        self._take(_CHUNK)

    def _take(self, size: int) -> int:
        data = _read(self.handle, size)
        if data:
            self._sink.feed(data)
        elif data is not None:
            (self._loop.close if self._watched else os.close)(self.handle)
            self.handle = -1
        return len(data or b"")


def _read(handle: int, size: int = _CHUNK) -> bytes | None:
    """What there is; None if there is nothing yet, and no bytes at the end."""
    try:
        return os.read(handle, size)
    except BlockingIOError:
        return None


class Run:
    """A score under way."""

    def __init__(self, house: House, seq: int, mark: str, terms: Terms, digest: str, process: Launched) -> None:
        self.seq = seq
        self.mark = mark
        self.pid = process.pid
        self.started_at = _wall()
        self._house = house
        self._terms = terms
        self.digest = digest
        self.alarm = ""  # what was said when it survived SIGKILL
        self._why: str | None = None  # it is being killed
        self._struck = False  # SIGKILL was sent
        self._exit: tuple[int, float, int] | None = None  # wait status, CPU milliseconds, most memory in KiB
        self._ended_at = 0
        self._begun = self._gone = time.monotonic()
        self._empty = 0  # looks in a row that found nothing of it
        self._groupless = 0  # and that found nobody in its process group
        self._kept = {1: Kept(terms.output_limit), 2: Kept(terms.output_limit)}
        self._response = _response(terms, self._kept[1])
        lines = self._response if isinstance(self._response, Answers) else self._kept[1]
        self._pipes = [Pipe(house, process.stdout, lines), Pipe(house, process.stderr, self._kept[2])]
        if isinstance(self._response, Object):
            self._pipes.append(Pipe(house, process.response, self._response))
        self._due: float | None = None  # monotonic; when the timer goes off
        self._timer: Timer | None = None
        self._young = True
        self._arm(self._begun + YOUNG, self.grow)

    # ---- from one program to the next

    @property
    def handles(self) -> list[int]:
        """Its open pipes."""
        return [pipe.handle for pipe in self._pipes if pipe.open]

    @property
    def gone(self) -> bool:
        """Whether its first process is gone and reaped."""
        return self._exit is not None

    def handed(self) -> handover.State:
        """What the next program needs to go on with a run that is grown."""
        return {
            "seq": self.seq,
            "mark": self.mark,
            "terms": self._terms,
            "digest": self.digest,
            "process": [self.pid, *(pipe.handle for pipe in self._pipes)],
            "started_at": self.started_at,
            "begun": self._begun,
            "why": self._why,
            "alarm": self.alarm,
            "struck": self._struck,
            "due": self._due,
            "exit": self._exit,
            "groupless": self._groupless,
            "ended_at": self._ended_at,
            "kept": [kept.handed() for kept in self._kept.values()],
            "answers": self._response.handed() if self._response else None,
        }

    @classmethod
    def resumed(cls, house: House, state: handover.State) -> "Run":
        """A run that the program before has begun."""
        terms, process = Terms(*state["terms"]), Launched(*state["process"])
        run = cls(house, state["seq"], state["mark"], terms, state["digest"], process)
        run._take_over(state)
        return run

    def _take_over(self, state: handover.State) -> None:
        self.started_at, self._begun, self._why = state["started_at"], state["begun"], state["why"]
        self.alarm, self._groupless = state.get("alarm", ""), state.get("groupless", 0)
        self._struck, self._ended_at = state["struck"], state["ended_at"]
        self._exit = tuple(state["exit"]) if state["exit"] else None
        for kept, of_it in zip(self._kept.values(), state["kept"], strict=True):
            kept.take_over(of_it)
        if self._response:
            self._response.take_over(state["answers"])
        self._young = False
        self._watch()
        self._arm(state["due"], self._overdue if self._why is None else self._alarm if self._struck else self._insist)
        if self._exit:
            self._house.loop.later(0, self._look)

    # ---- its life

    def grow(self) -> None:
        """It is not over at once: have it watched, and ended in time."""
        if not self._young:
            return
        self._young = False
        self._arm(self._begun + self._terms.timeout / 1000, self._overdue)
        self._house.grown(self)
        try:
            self._watch()
        except OSError as trouble:
            self.kill(f"the stage cannot read what it writes: {trouble.strerror}")

    def _watch(self) -> None:
        for pipe in self._pipes:
            pipe.watch()

    def kill(self, reason: str) -> None:
        """End it: SIGTERM to all of it, after its grace SIGKILL. The first reason stands."""
        self.grow()
        if self._why is not None:
            return
        self._why = reason
        self._strike(signal.SIGTERM)
        self._arm(time.monotonic() + self._terms.kill_grace / 1000, self._insist)

    def exited(self, status: int, usage: resource.struct_rusage) -> None:
        """Its first process is gone and reaped."""
        self._exit = status, round(1000 * (usage.ru_utime + usage.ru_stime), 3), usage.ru_maxrss
        self._ended_at, self._gone = _wall(), time.monotonic()
        if self._why is None:
            self._arm(None)
            self._end(self._left_behind([pipe.drain() for pipe in self._pipes]))
        else:
            self._look()

    def _overdue(self) -> None:
        self._house.reap()  # it may have ended while the loop was busy
        if self._exit is None:
            self.kill(f"ran longer than its timeout of {_seconds(self._terms.timeout)}")

    def _insist(self) -> None:
        self._struck = True
        self._strike(signal.SIGKILL)
        self._arm(time.monotonic() + UNKILLABLE_AFTER, self._alarm)

    def _alarm(self) -> None:
        self._due = None
        self.alarm = f"still alive {UNKILLABLE_AFTER:.0f} s after SIGKILL; the kernel does not let go of it"
        self._house.alarm(self, self.alarm)

    def _look(self) -> None:
        """While it is being killed and its first process is gone: the end is when enough looks find nothing of it."""
        left = self._seen()
        self._empty = 0 if left else self._empty + 1
        if self._groupless < ENOUGH:
            self._groupless = 0 if any(one.group == self.pid for one in left) else self._groupless + 1
        if self._empty == ENOUGH:
            self._arm(None)
            for pipe in self._pipes:
                pipe.drain()
            self._end([])
            return
        if self._struck:
            self._signal(left, signal.SIGKILL)
        self._gone = time.monotonic() + _POLL
        self._house.loop.later(_POLL, self._look)

    def _arm(self, due: float | None, do: Callable[[], None] = lambda: None) -> None:
        """Have this, and nothing else, done at this time; None is never."""
        if self._timer:
            self._timer.cancel()
        self._due = due
        self._timer = None if due is None else self._house.loop.at(due, do)

    def _strike(self, number: int) -> None:
        """Signal the group at one go, while its number is surely ours, and then whoever has left it."""
        if self._exit is None:
            _signal_group(self.pid, number)
            if number == signal.SIGTERM:
                _signal_group(self.pid, signal.SIGCONT)  # a stopped process could not act on it
        rest = self._seen()
        self._signal([one for one in rest if self._exit or one.group != self.pid], number)

    def _seen(self) -> list[Seen]:
        """What lives of it. Once nobody is left in its process group, the number of that may be a stranger's; it is,
        if somebody bears it after its first process was reaped."""
        everybody = self._house.scan(self._gone)
        if self._exit and any(one.pid == self.pid for one in everybody):
            self._groupless = ENOUGH
        return of_run(everybody, self.mark, self.pid if self._groupless < ENOUGH else NO_GROUP)

    def _signal(self, processes: list[Seen], number: int) -> None:
        for one in processes:
            strike(one, number)

    def _left_behind(self, held: list[bool]) -> list[str]:
        """A note on processes that stay; looked for only if something hints at them, for a look is dear."""
        if not any(held) and not _group_lives(self.pid):
            return []
        left = self._seen()
        inside = sum(one.group == self.pid for one in left)
        notes = []
        if inside:
            notes.append(f"left {_processes(inside)} behind, in its process group")
        if len(left) > inside:
            notes.append(f"left {_processes(len(left) - inside)} behind, outside its process group")
        return notes

    def _end(self, notes: list[str]) -> None:
        if self._response:
            notes += self._response.notes
        kept = {stream: one.data for stream, one in self._kept.items()}
        inline = len(kept[1]) + len(kept[2]) <= INLINE
        outcome = self._outcome(notes, inline)
        body = kept[1] + kept[2] if inline else b""
        long_output = {} if inline else {stream: data for stream, data in kept.items() if data}
        self._house.ended(self, Ended(outcome, body, long_output))

    def _outcome(self, notes: list[str], inline: bool) -> Outcome:
        assert self._exit  # for the type checker: nothing ends before its first process has
        status, cpu_ms, maxrss = self._exit
        code = os.waitstatus_to_exitcode(status)
        told = "killed" if self._why is not None else "failed" if code else "ok"
        return {
            "told": told,
            "reason": self._why or "",
            "rc": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "started_at": self.started_at,
            "ended_at": max(self._ended_at, self.started_at),
            "digest": self.digest,
            "response": self._response.response if self._response else None,
            "stdout": _described(self._kept[1]),
            "stderr": _described(self._kept[2]),
            "inline": inline,
            "notes": notes,
            "cpu_ms": cpu_ms,
            "maxrss": maxrss,
        }


def _response(terms: Terms, output: Kept) -> Answers | Object | None:
    match terms.interface:
        case "pipe":
            return Answers(output, terms.response_limit)
        case "json":
            return Object(terms.response_limit)
    return None


def refusal(reason: str) -> Outcome:
    """The outcome of a run of which nothing was started."""
    return {"told": "refused", "reason": reason, "ended_at": _wall(), "inline": True}


def _described(kept: Kept) -> Outcome:
    return {"total": kept.total, "sha256": kept.sha256, "spans": kept.spans}


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _signal_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        pass


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _seconds(milliseconds: int) -> str:
    return f"{milliseconds / 1000:g}s"


def _wall() -> int:
    return time.time_ns() // 1_000_000
