"""One story from its seed: the world begins, the nemesis rages and rests, and everything has to end well."""

import gc
from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from twisted.logger import globalLogPublisher

from orchestra.model import State
from simulation.checker import check, unfinished
from simulation.nemesis import HOUR, Nemesis
from simulation.world import World

PATIENCE: Final = 600.0  # seconds after the last fault in which everything ends, by clocks that were right


class Story(NamedTuple):
    """How a seed went."""

    seed: int
    violations: list[str]
    trace: list[str]
    counts: Counter[str]
    lasted: float

    def report(self) -> str:
        """What a person needs who wants to know why."""
        lines = [*self.trace, "", f"seed {self.seed} breaks what is promised:", *self.violations]
        lines += ["", f"again: cd tests && python -m simulation --trace --seed {self.seed}"]
        return "\n".join(lines)


def tell(seed: int, *, keep: bool = False, favour: Sequence[str] = ()) -> Story:
    """Play a seed; its trace is kept if a promise is broken, or if asked for. ``favour``: steps that come often."""
    world = World(seed)
    globalLogPublisher.addObserver(world.timeline.hear)
    gc.disable()
    try:
        _play(world, favour)
    finally:
        gc.enable()
        globalLogPublisher.removeObserver(world.timeline.hear)
    violations = [*world.violations, *world.timeline.bugs]
    trace = world.timeline.trace() if violations or keep else []
    return Story(seed, violations, trace, _counts(world), world.timeline.now)


def _counts(world: World) -> Counter[str]:
    """What there was in the story, so that one can see whether stories are rich."""
    counts = Counter({"tasks": 0, "starts": len(world.starts)})
    for state, attempt in world.store.execute("SELECT state, attempt FROM tasks").fetchall():
        counts["tasks"] += 1
        counts[State(state).label] += 1
        counts["tried again"] += attempt > 1
    for reason, many in world.store.execute("SELECT reason, count(*) FROM tasks WHERE state = 9 GROUP BY 1").fetchall():
        counts[f"lost: {reason}"] += many
    counts.update(world.timeline.counts)
    counts["faults"] = sum(many for what, many in counts.items() if what.startswith("fault: "))
    return counts


def _play(world: World, favour: Sequence[str]) -> None:
    timeline = world.timeline
    world.start_everything()
    world.supervise()
    if len(world.conductors) > 1:
        world.poll()
    timeline.run_for(timeline.random.choice((0.0, 1.0, 6.0)))
    nemesis = Nemesis(world, favour)
    nemesis.rage()
    nemesis.rest()
    _wait(world)
    check(world)


def _wait(world: World) -> None:
    """Time passes until all is quiet, or too much of it has."""
    world.timeline.run_for(12.0)  # who is asleep wakes up
    _until_quiet(world, PATIENCE)
    if unfinished(world):
        # what was begun by a clock that was hours ahead lasts until the right one is there too
        world.skew["store"] = 4 * HOUR
        _until_quiet(world, PATIENCE)
    world.timeline.run_for(3.0)  # what had a few seconds to come too late is here
    _until_quiet(world, PATIENCE)


def _until_quiet(world: World, patience: float) -> None:
    while patience > 0 and unfinished(world):
        world.timeline.run_for(2.0)
        patience -= 2.0
