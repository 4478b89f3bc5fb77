"""One story from its seed: the world begins, the nemesis rages and rests, and everything has to end well."""

import gc
from typing import NamedTuple

from twisted.logger import globalLogPublisher

from simulation.checker import check, unfinished
from simulation.nemesis import Nemesis
from simulation.world import World

PATIENCE = 500.0  # seconds after the last fault in which everything ends


class Story(NamedTuple):
    """How a seed went."""

    seed: int
    violations: list[str]
    trace: list[str]
    tasks: int
    starts: int
    facts: int
    lasted: float

    def report(self) -> str:
        """What a person needs who wants to know why."""
        lines = [*self.trace, "", f"seed {self.seed} breaks what is promised:", *self.violations]
        lines += ["", f"again: cd tests && python -m simulation --seed {self.seed}"]
        return "\n".join(lines)


def tell(seed: int) -> Story:
    """Play a seed."""
    world = World(seed)
    globalLogPublisher.addObserver(world.timeline.hear)
    gc.disable()
    try:
        _play(world)
    finally:
        gc.enable()
        globalLogPublisher.removeObserver(world.timeline.hear)
    violations = [*world.violations, *world.timeline.bugs]
    trace = world.timeline.trace() if violations else []
    lasted = world.timeline.now
    tasks = world.store.execute("SELECT count(*) FROM tasks").fetchone()[0]
    return Story(seed, violations, trace, tasks, len(world.starts), len(world.facts), lasted)


def _play(world: World) -> None:
    timeline = world.timeline
    world.start_everything()
    world.supervise()
    if len(world.conductors) > 1:
        world.poll()
    timeline.run_for(timeline.random.choice((0.0, 1.0, 6.0)))
    nemesis = Nemesis(world)
    nemesis.rage()
    nemesis.rest()
    _wait(world)
    check(world)


def _wait(world: World) -> None:
    """Time passes until all is quiet, or too much of it has."""
    world.timeline.run_for(12.0)  # who is asleep wakes up
    patience = PATIENCE
    while patience > 0 and unfinished(world):
        world.timeline.run_for(2.0)
        patience -= 2.0
    world.timeline.run_for(3.0)
