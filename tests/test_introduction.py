"""What a player says of itself when it connects, on the virtual clock of the simulation, whose ends are real."""

import pytest
from simulation.world import World
from twisted.internet.defer import Deferred


@pytest.mark.parametrize("known", [False, True], ids=["a new catalogue", "a known one"])
def test_a_catalogue_that_changes_after_hello_is_announced(known: bool) -> None:
    """The answer to Hello is about the one before; work of the new one comes all the same."""
    world = World(1)
    node, host = world.nodes[0], world.conductors[0]
    node.shelf.names = ("once",)
    world.start_everything()
    if known:
        world.timeline.run_for(10)
        node.kill()
        node.start()
    world.network.hellos.clear()
    while node.name not in world.network.hellos:
        world.timeline.run_for(0.0005)
    assert node.player.status().reach.problem  # not welcomed yet
    node.shelf.names = ("once", "again")
    assert node.process is not None
    node.process.enter(lambda: Deferred.fromCoroutine(node.player.reload()))
    world.timeline.run_for(2)
    assert not node.player.status().reach.problem
    [session] = [one for one in host.dispatch.scheduler.sessions.values() if one.name == node.name]
    assert session.ready
    assert host.dispatch.repertoires.entry(session.player, "again") is not None
