"""Finding the processes of a run by the mark in their environment, and ending them. Standard library only.

A process is known by its pid *and* its start time (in one boot), never by the pid alone.
"""

import os
import signal
import time
import zlib
from collections.abc import Collection, Iterable, Mapping
from typing import Final, NamedTuple

MARK: Final = "ORCHESTRA_RUN"
_PAGES: Final = 4096
_TICK: Final = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_MARK: Final = b"\0" + MARK.encode() + b"="


class Seen(NamedTuple):
    """A live process."""

    pid: int
    start: int  # clock ticks since boot
    group: int
    session: int
    mark: str


class Leader(NamedTuple):
    """The first process of a run, as the stage that started it recorded it: born between two looks at the clock.

    Nobody else can have been born with its number in that time, for it was the stage's child until after it. To read
    its own record from /proc would cost every run more than two looks.
    """

    pid: int
    first: int  # clock ticks since boot
    last: int
    boot: str
    cgroup: str  # one word that stands for its place in the control groups


def boot_id() -> str:
    """Which boot of the machine this is."""
    return _read("/proc/sys/kernel/random/boot_id").decode().strip()


def cgroup_of(pid: int) -> str:
    """A word for where ``pid`` stands in the control groups; another place is another word."""
    return f"{zlib.crc32(_read(f'/proc/{pid}/cgroup')):08x}"


def start_of(pid: int) -> int:
    """When ``pid`` started, in clock ticks since boot; 0 if it is gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def now() -> int:
    """The clock by which processes start, in its ticks."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // _TICK


def scan() -> list[Seen]:
    """Every live process of this machine, zombies left out."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))) and fields[0] not in (b"Z", b"X"):
            mark = _mark_in(_read(f"/proc/{name}/environ"))
            found.append(Seen(int(name), int(fields[19]), int(fields[2]), int(fields[3]), mark))
    return found


def of_run(seen: Iterable[Seen], mark: str, leader: int) -> list[Seen]:
    """The processes of one run: those that carry its mark or are still in its process group."""
    return [one for one in seen if one.mark == mark or one.group == leader]


def leftovers(seen: Collection[Seen], runs: Mapping[str, Leader | None]) -> dict[str, list[Seen]]:
    """By mark: what lives of ``runs``, which a dead stage started in this boot or an earlier one.

    Marked processes, and what shares a process group or session with a marked leader or with the recorded one, so
    that a cleaned environment does not hide it.
    """
    heads = {one.pid: one.mark for one in seen if one.mark in runs and one.pid in (one.group, one.session)}
    heads |= {leader.pid: mark for mark, leader in runs.items() if leader and _still_ours(leader, seen)}
    found: dict[str, list[Seen]] = {}
    for one in seen:
        mark = one.mark if one.mark in runs else heads.get(one.group) or heads.get(one.session)
        if mark and one.pid != os.getpid():
            found.setdefault(mark, []).append(one)
    return found


def strike(process: Seen, number: int) -> None:
    """Send a signal to exactly this process, if it still lives."""
    try:
        handle = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    except OSError:  # a kernel before 5.3
        if start_of(process.pid) == process.start:
            _quietly_kill(process.pid, number)
        return
    try:
        if start_of(process.pid) == process.start:
            signal.pidfd_send_signal(handle, number)
    except (ProcessLookupError, PermissionError):
        pass
    finally:
        os.close(handle)


def _still_ours(leader: Leader, seen: Collection[Seen]) -> bool:
    """Whether the group that bears the recorded number is the recorded one.

    While its leader lives, the start time says so. Without a leader only members are left; then the number cannot
    have been given away unless the whole group died meanwhile, so their place in the control groups must agree too.
    """
    if leader.boot != boot_id():
        return False
    for one in seen:
        if one.pid == leader.pid:
            return leader.first <= one.start <= leader.last
    members = [one for one in seen if leader.pid in (one.group, one.session)]
    return all(one.start >= leader.first and cgroup_of(one.pid) == leader.cgroup for one in members)


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on; a command name may hold anything, so cut after its end."""
    return _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def _mark_in(environ: bytes) -> str:
    _, found, rest = (b"\0" + environ).partition(_MARK)
    return rest.partition(b"\0")[0].decode(errors="replace") if found else ""


def _read(path: str) -> bytes:
    """All of a file in /proc, or nothing if it may not be read or is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        data = piece = os.read(handle, _PAGES)
        while len(piece) == _PAGES:
            data += (piece := os.read(handle, _PAGES))
        return data
    except OSError:
        return b""
    finally:
        os.close(handle)


def _quietly_kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass
