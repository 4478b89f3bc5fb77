"""What processes have cost, as the kernel counts it. CPU per operation is the figure to trust on a busy machine."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

TICK: Final = 1 / os.sysconf("SC_CLK_TCK")
_USER, _CHILDREN_END = 11, 15  # utime, stime, cutime, cstime in stat, counted after the name (proc(5))


def cpu(pid: int) -> float:
    """Seconds of CPU that a process and the children it has reaped have had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[_USER:_CHILDREN_END])) * TICK


def resident(pid: int, *, peak: bool = False) -> int:
    """Bytes of a process that are in memory now, or were at most."""
    wanted = "VmHWM:" if peak else "VmRSS:"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(wanted):
            return int(line.split()[1]) * 1024
    raise ProcessLookupError(pid)  # it is a zombie: it has no memory any more


class Meter:
    """What each of some processes costs from now on. Names may stand for several processes."""

    def __init__(self, processes: Mapping[str, Sequence[int]]) -> None:
        self._processes = {name: tuple(pids) for name, pids in processes.items() if pids}
        self._begin = self._now()

    def _now(self) -> dict[str, float]:
        return {name: sum(map(cpu, pids)) for name, pids in self._processes.items()}

    def spent(self) -> dict[str, float]:
        """Seconds of CPU each has had since."""
        return {name: seconds - self._begin[name] for name, seconds in self._now().items()}

    def per(self, operations: int) -> dict[str, float]:
        """Milliseconds of CPU for each operation."""
        return {name: 1000 * seconds / operations for name, seconds in self.spent().items()}
