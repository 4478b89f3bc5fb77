"""``python -m simulation --seed N --seeds M``: tell stories until one breaks a promise."""

import argparse
import sys
import time

from twisted.logger import globalLogBeginner

from simulation.run import tell


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many from there on")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    parser.add_argument("--trace", action="store_true", help="the whole trace of a failing seed, not its end only")
    chosen = parser.parse_args()
    globalLogBeginner.beginLoggingTo((), redirectStandardIO=False)  # the trace has it all
    began, tasks, starts, faults, bad = time.monotonic(), 0, 0, 0, []
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        story = tell(seed)
        tasks, starts, faults = tasks + story.tasks, starts + story.starts, faults + story.facts
        if story.violations:
            bad.append(seed)
            lines = story.report().splitlines()
            print("\n".join(lines if chosen.trace else [f"--- seed {seed}", *story.violations[:3]]))
            if not chosen.keep_going:
                break
    seconds = time.monotonic() - began
    print(f"{chosen.seeds} seeds, {tasks} tasks, {starts} starts, {seconds:.1f} s; violations in seeds {bad or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
