"""First figures, each beside its floor in the same run: ``python tests/figures.py``. Not a test: it asserts no time.

A conductor and one player, real daemons with mutual TLS, everything synced to disk, on the machine it is run on.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import react

from orchestra.audience.client import Ask, Orchestra, Scope
from orchestra.cli.theatre import Theatre, scores_directory

ONE_BY_ONE = 500
AT_ONCE = 1000
PER_BATCH = 25
TRUE = Ask(score="true", targets=("alpha",), scope=Scope.ALL)


def spread(seconds: list[float]) -> str:
    """Median and 99th percentile in milliseconds."""
    ordered = sorted(seconds)
    return f"p50 {ordered[len(ordered) // 2] * 1e3:.2f} ms, p99 {ordered[len(ordered) * 99 // 100] * 1e3:.2f} ms"


def timed(action: Callable[[], object], times: int) -> list[float]:
    """How long ``action`` took, each time."""
    found = []
    for _ in range(times):
        begun = time.perf_counter()
        action()
        found.append(time.perf_counter() - begun)
    return found


def floors(directory: Path) -> None:
    """What this machine takes for the least that a run needs: four syncs, and a process."""
    with open(directory / "floor", "wb", buffering=0) as file:

        def sync_once() -> None:
            file.write(bytes(4096))
            os.fsync(file.fileno())

        print(f"fsync:            {spread(timed(sync_once, 300))}")
    print(f"spawn and reap:   {spread(timed(lambda: subprocess.run(['/bin/true'], check=True), 300))}")


async def measure(theatre: Theatre) -> None:
    """Latency one by one, then throughput."""
    from twisted.internet import reactor

    async with await Orchestra.connect(reactor, str(theatre.socket)) as orchestra:
        while (await orchestra.about()).online < 1:
            pass

        async def run_one() -> None:
            await orchestra.perform(TRUE)

        latencies = []
        for _ in range(ONE_BY_ONE):
            begun = time.perf_counter()
            await run_one()
            latencies.append(time.perf_counter() - begun)
        print(f"submit to end:    {spread(latencies)} ({ONE_BY_ONE} jobs, one by one)")
        begun = time.perf_counter()
        for _ in range(AT_ONCE // PER_BATCH):
            await gatherResults([Deferred.fromCoroutine(run_one()) for _ in range(PER_BATCH)])
        print(
            f"throughput:       {AT_ONCE / (time.perf_counter() - begun):.0f} jobs/s ({PER_BATCH} at once, one player)"
        )


def memory(pid: int) -> str:
    """The resident memory of a process."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return f"{int(line.split()[1]) / 1000:.0f} MB"


def main() -> None:
    """All of it, in a temporary directory."""
    home = Path(tempfile.mkdtemp(prefix="orchestra-figures-"))
    theatre = Theatre(home, ["alpha"])
    try:
        theatre.build(scores_directory())
        shutil.copy("/bin/true", theatre.scores / "true")
        (theatre.scores / "true.conf").write_text("concurrency = 8\n")
        floors(home)
        theatre.start_conductor()
        theatre.start_player("alpha")
        with contextlib.suppress(SystemExit):  # react's way to end; it has said what went wrong
            react(lambda _: Deferred.fromCoroutine(measure(theatre)))
        pids = {"conductor": theatre.pid("conductor"), "player": theatre.pid("alpha"), "stage": theatre.stages()[0]}
        print("resident:         " + ", ".join(f"{name} {memory(pid)}" for name, pid in pids.items()))
    finally:
        theatre.close()
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
