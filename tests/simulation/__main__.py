"""``python -m simulation --seed N --seeds M``: tell stories until one breaks a promise."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator

from simulation.plants import PLANTS, plant
from simulation.run import Story, tell
from simulation.tellers import quiet, tellers

CHUNK = 25


def main() -> int:
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1, help="how many from there on")
    parser.add_argument("--jobs", type=int, default=1, help="processes that tell them")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    parser.add_argument("--trace", action="store_true", help="the whole trace of a failing seed, not its end only")
    parser.add_argument("--counts", action="store_true", help="what there was in the stories")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="a bug to be found")
    parser.add_argument("--favour", nargs="*", default=[], metavar="STEP", help="steps of the nemesis to take often")
    chosen = parser.parse_args()
    quiet()
    return _tell_all(chosen)


def _stories(chosen: argparse.Namespace) -> Iterator[Story]:
    seeds = range(chosen.seed, chosen.seed + chosen.seeds)
    if chosen.plant:
        with plant(chosen.plant):
            yield from (tell(seed, favour=chosen.favour) for seed in seeds)
    elif chosen.jobs == 1:
        yield from (tell(seed, favour=chosen.favour) for seed in seeds)
    else:
        chunks = [seeds[first : first + CHUNK] for first in range(0, len(seeds), CHUNK)]
        with tellers(chunks, chosen.favour, chosen.jobs) as several:
            for chunk in chunks:
                yield from several.told(chunk)


def _tell_all(chosen: argparse.Namespace) -> int:
    began, counts, bad, hours, told = time.monotonic(), Counter[str](), [], 0.0, 0
    for story in _stories(chosen):
        told += 1
        counts.update(story.counts)
        hours += story.lasted / 3600
        if story.violations:
            bad.append(story.seed)
            lines = story.report().splitlines()
            print("\n".join(lines if chosen.trace else [f"--- seed {story.seed}", *story.violations[:3]]), flush=True)
            if not chosen.keep_going:
                break
    for what, many in counts.most_common() if chosen.counts else ():
        print(f"{many:8} {what}")
    many = f"{told} seeds, {counts['faults']} faults, {counts['tasks']} tasks, {counts['starts']} starts, {hours:.1f} h"
    print(f"{many} of their time in {time.monotonic() - began:.1f} s of ours; violations: {bad or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
