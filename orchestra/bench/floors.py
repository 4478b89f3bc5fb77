"""What this machine takes for the least that must be done: measured in the same run as what stands beside it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestra.bench.figures import median

TRUE: Final = "/bin/true"
SYNCS: Final = 4  # submit with its claim, accepted and starting, done, the report: what a job must wait for
IMPORTS: Final = "import twisted.internet.reactor, twisted.spread.pb"


def timed(action: Callable[[], object], times: int) -> list[float]:
    """How many seconds ``action`` took, each time."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun)
    return found


def sync(directory: Path, times: int) -> float:
    """Seconds for writing and syncing 4 kB in ``directory``."""
    with open(directory / "floor", "wb", buffering=0) as file:

        def once() -> None:
            file.write(bytes(4096))
            os.fsync(file.fileno())

        found = median(timed(once, times))
    (directory / "floor").unlink()
    return found


def spawn(program: str, times: int) -> float:
    """Seconds for a bare spawn and reap of ``program``."""

    def once() -> None:
        os.waitpid(os.posix_spawn(program, [program], {}), 0)

    return median(timed(once, times))


def run(directory: Path, program: str, times: int) -> float:
    """Seconds below which no durable run of ``program`` can be: four syncs and one process."""
    return SYNCS * sync(directory, times) + spawn(program, times)


def twisted_spawns(times: int) -> float:
    """Processes per second that Twisted alone spawns and reaps, eight at once."""
    command = [sys.executable, "-m", "orchestra.bench.spawning", str(times)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return times / float(done.stdout)


def xargs_spawns(times: int) -> float | None:
    """Processes per second that ``xargs -P`` runs, as many at once as there are processors; None without an xargs."""
    xargs = shutil.which("xargs")
    if xargs is None:
        return None
    command = [xargs, "-P", str(os.cpu_count() or 1), "-n", "1", TRUE]
    begun = time.perf_counter()
    subprocess.run(command, input="x\n" * times, text=True, check=True)
    return times / (time.perf_counter() - begun)


def imports(times: int) -> float:
    """Seconds for a Python that imports only what a client of Perspective Broker must."""
    return median(timed(lambda: subprocess.run([sys.executable, "-c", IMPORTS], check=True), times))
