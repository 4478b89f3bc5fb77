"""What the machine says of processes: how big they are, what they hold open, what of a drill still lives."""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from orchestra.drill.evidence import Vitals
from orchestra.player.sweep import scan

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def vitals(role: str, pid: int) -> Vitals | None:
    """A process as it is now; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            started = int(file.read().rpartition(")")[2].split()[19])
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
        return Vitals(role=role, pid=pid, rss=_rss(pid), descriptors=descriptors, age=round(_age(started), 1))
    except (FileNotFoundError, ProcessLookupError, PermissionError, IndexError):
        return None


def uptime() -> float:
    """Seconds since the machine was started, as the scores read them."""
    with open("/proc/uptime") as file:
        return float(file.read().split()[0])


def live_runs(marks: Collection[str]) -> list[int]:
    """The processes that carry the mark of one of these runs."""
    return [one.pid for one in scan() if one.mark in marks]


def named(pids: Iterable[int]) -> list[str]:
    """Processes with what they were started as."""
    return [f"{pid}: {_command(pid)}" for pid in pids]


def temporary_files(places: Iterable[Path]) -> Iterator[str]:
    """What lies in directories that should be empty, and halves of files beside them."""
    for place in places:
        for path in sorted(place.rglob("*")) if place.is_dir() else ():
            if path.is_file() or path.is_symlink():
                yield str(path)


def _rss(pid: int) -> int:
    with open(f"/proc/{pid}/status") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("VmRSS:")), 0)


def _age(started: int) -> float:
    return uptime() - started / _TICKS


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()[:200]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return "gone by now"
