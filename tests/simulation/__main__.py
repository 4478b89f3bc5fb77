"""``python -m simulation --seed N --seeds M``: tell stories until one breaks a promise."""

import argparse
import sys
import time
from collections import Counter
from contextlib import nullcontext

from twisted.logger import globalLogBeginner

from simulation.plants import PLANTS, plant
from simulation.run import tell


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many from there on")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    parser.add_argument("--trace", action="store_true", help="the whole trace of a failing seed, not its end only")
    parser.add_argument("--counts", action="store_true", help="what there was in the stories")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="a bug to be found")
    chosen = parser.parse_args()
    globalLogBeginner.beginLoggingTo((), redirectStandardIO=False)  # the trace has it all
    with plant(chosen.plant) if chosen.plant else nullcontext():
        return _tell_all(chosen)


def _tell_all(chosen: argparse.Namespace) -> int:
    began, counts, bad = time.monotonic(), Counter[str](), []
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        story = tell(seed)
        counts.update(story.counts)
        if story.violations:
            bad.append(seed)
            lines = story.report().splitlines()
            print("\n".join(lines if chosen.trace else [f"--- seed {seed}", *story.violations[:3]]))
            if not chosen.keep_going:
                break
    for what, many in counts.most_common() if chosen.counts else ():
        print(f"{many:8} {what}")
    told, seconds = seed - chosen.seed + 1, time.monotonic() - began
    print(
        f"{told} seeds, {counts['tasks']} tasks, {counts['starts']} starts, {seconds:.1f} s; violations: {bad or 'none'}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
