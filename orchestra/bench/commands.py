"""What the commands take as whole processes, as a shell sees them."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestra.bench import figures, floors
from orchestra.bench.figures import Row
from orchestra.bench.hall import EMULATED, Hall
from orchestra.bench.sizes import Setting
from orchestra.errors import BenchFailed


def cli(setting: Setting) -> Iterator[Row]:
    """Wall time of ``submitjob`` and ``getstatus`` from a shell."""
    sizes = setting.sizes
    with setting.hall(emulated=1) as hall:
        hall.start()
        hall.fill()
        floor = floors.imports(sizes.commands)
        for words in (("submitjob", EMULATED, hall.emulated[0]), ("getstatus", "1")):
            ran("cli", hall, words)
            meter = hall.meter()
            rounds = [[ran("cli", hall, words) for _ in range(sizes.commands)] for _ in range(sizes.repeats)]
            cpu = meter.per(sizes.commands * sizes.repeats)
            yield figures.times(
                "cli", words[0], rounds, cpu=cpu, floor=floor, floor_is="python that imports reactor and pb"
            )


def ran(case: str, hall: Hall, words: Sequence[str]) -> float:
    """How long a command takes; what goes wrong is a failure of ``case``."""
    program = str(Path(sys.executable).with_name(words[0]))
    environment = {**os.environ, "ORCHESTRA_SOCKET": str(hall.house.socket)}
    begun = time.perf_counter()
    done = subprocess.run([program, *words[1:]], capture_output=True, text=True, env=environment, check=False)
    took = time.perf_counter() - begun
    if done.returncode or not done.stdout.strip():
        raise BenchFailed(case=case, problem=f"{' '.join(words)} ended with {done.returncode}: {done.stderr.strip()}")
    return took
