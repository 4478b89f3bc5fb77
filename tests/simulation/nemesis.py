"""What goes wrong, and what people ask for meanwhile: one step after another, all drawn from the seed.

After the last step the faults stop. What was cut stays cut and what is deaf stays deaf: the daemons have to find out.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final

from orchestra.model import Ask, Scope
from orchestra.store import restore
from simulation.network import Network
from simulation.world import SCORES, Host, Node, Submission, World

HOUR: Final = 3_600_000


class Nemesis:
    """Draws steps for one world."""

    def __init__(self, world: World, favour: Sequence[str] = ()) -> None:
        """``favour``: steps to be taken more often than chance would."""
        self.world = world
        self.random = world.timeline.random
        self.network: Network = world.network
        self.steps = self.random.randint(20, 50)
        mild = self.random.random() < 0.15  # some stories have only work and cancels
        choices = [
            (do, weight) for do, weight in self._choices() if not mild or do in self._work or do.__name__ in favour
        ]
        # every story has its own kinds of trouble, more of one and less of another: rare ones meet that way
        self._weighed = [(do, weight * self._mood(do)) for do, weight in choices]
        self._weighed += [(do, 12.0) for do, _ in choices if do.__name__ in favour]
        self._for_good = False  # who is removed stays so
        self._gap = self.random.choice((0.02, 0.2, 0.2, 1.0))

    def _mood(self, do: Callable[[], None]) -> float:
        return self.random.choice((0, 0.5, 1, 1, 3)) if do not in self._work else 1.0

    @property
    def _work(self) -> tuple[Callable[[], None], ...]:
        return (self.submit, self.ask_again, self.cancel, self.look)

    def _choices(self) -> list[tuple[Callable[[], None], float]]:
        return [
            (self.submit, 16),
            (self.ask_again, 3),
            (self.cancel, 5),
            (self.look, 3),
            (self.wait, 4),
            (self.cut, 5),
            (self.deafen, 4),
            (self.unreachable, 1),
            (self.stale_hello, 3),
            (self.two_minds, 2 if len(self.world.conductors) > 1 else 0),
            (self.kill_conductor, 3),
            (self.kill_conductor_at_save, 4),
            (self.kill_player, 3),
            (self.kill_player_at_save, 5),
            (self.kill_stage, 2),
            (self.kill_stage_at_point, 4),
            (self.kill_player_and_stage, 1),
            (self.new_player_while_the_stage_sleeps, 1),
            (self.stop_politely, 2),
            (self.power, 2),
            (self.pause, 3),
            (self.journal_lost, 1),
            (self.old_journal, 0.6),
            (self.copy_store, 0.7),
            (self.put_store_back, 0.4),
            (self.restore, 0.4),
            (self.restored_in_doubt, 0.5),
            (self.clock, 1),
            (self.disk_full, 1.5),
            (self.disk_nearly_full, 1),
            (self.lost_and_then, 1.5),
            (self.disk_slow, 1),
            (self.sync_fails, 1),
            (self.remove, 1.2),
            (self.unlearn, 1),
        ]

    def rage(self) -> None:
        """All steps, with time between them."""
        doers, weights = zip(*self._weighed, strict=True)
        for _ in range(self.steps):
            self.random.choices(doers, weights)[0]()
            self.world.timeline.run_for(self.random.expovariate(1 / self._gap))

    def _node(self) -> Node:
        return self.random.choice(self.world.nodes)

    def _host(self) -> Host | None:
        up = [host for host in self.world.conductors if host.up]
        return self.random.choice(up) if up else None

    # ---- work

    def submit(self) -> None:
        names = [node.name for node in self.world.nodes if node.name in self.world.listed]
        if names:
            score = self.random.choices(tuple(SCORES), (4, 4, 1))[0]
            self._submit(score, self.random.sample(names, self.random.randint(1, len(names))))

    def _submit(self, score: str, names: Sequence[str], lasts: float = 0.0, **more: Any) -> Submission | None:
        world, random, host = self.world, self.random, self._host()
        if host is None or not set(names) <= set(world.listed):
            return None
        token, scope = f"t{len(world.submissions)}", random.choice((Scope.ALL, Scope.ALL, Scope.ONE, Scope.SOME))
        ask = Ask(
            score=score,
            targets=tuple(names),
            scope=scope,
            count=random.randint(1, len(names)) if scope is Scope.SOME else 1,
            params=self._params(token) | ({"lasts": str(lasts)} if lasts else {}),
            expire=more.get("expire", random.choice((None, None, 4.0, 15.0))),
            request_key=random.choice((None, f"key-{token}")),
        )
        submission = Submission(token, ask, host.name)
        world.submissions.append(submission)
        world.timeline.note("submit {} {}", submission, ask.params)
        world.ask(host, submission)
        return submission

    def _params(self, token: str) -> dict[str, str]:
        random = self.random
        lasts = random.choice((0.01, 0.05, 0.3, 0.3, 1.0, 3.0, 8.0, 40.0))
        params = {"token": token, "lasts": str(lasts * random.uniform(0.5, 1.5))}
        params["ends"] = "failed" if random.random() < 0.2 else "ok"
        if random.random() < 0.1:
            params["child"] = str(random.uniform(0.5, 20))
        if random.random() < 0.05:
            params["stuck"] = str(random.uniform(0.5, 6))
        if random.random() < 0.06:
            params["unfit"] = "yes"
        return params

    def ask_again(self) -> None:
        host, keyed = self._host(), [one for one in self.world.submissions if one.ask.request_key]
        if host is None or not keyed:
            return
        submission = self.random.choice(keyed)
        if not set(submission.ask.targets) <= set(self.world.listed):
            return
        if self.random.random() < 0.25:
            self.world.ask_otherwise(host, submission)
        else:
            self.world.ask(host, submission)

    def cancel(self) -> None:
        host = self._host()
        if host is not None and self.world.submissions:
            submission = self.random.choice(self.world.submissions[-6:])
            targets = [name for name in submission.ask.targets if name in self.world.listed]
            some = self.random.sample(targets, 1) if targets and self.random.random() < 0.4 else []
            self.world.cancel(host, submission, some)

    def look(self) -> None:
        host = self._host()
        if host is not None and self.world.submissions:
            self.world.look(host, self.random.choice(self.world.submissions))

    def wait(self) -> None:
        self.world.timeline.run_for(self.random.uniform(0.3, 6))

    # ---- the network

    def cut(self) -> None:
        """A connection breaks; one end, or both, are told."""
        ends = [end for end in self.network.ends if end.open]
        if not ends:
            return
        end = self.random.choice(ends)
        self.world.timeline.note("cut: {}", end.label)
        for one in self.random.choice(([end], [end.other], [end, end.other])):
            one.expect("gone")
        if self.random.random() < 0.5:
            end.deaf_until = end.other.deaf_until = inf

    def deafen(self) -> None:
        """Nothing arrives at one end, or at both, for a while or for ever."""
        ends = [end for end in self.network.ends if end.open]
        if not ends:
            return
        end = self.random.choice(ends)
        until = self.random.choice((inf, self.world.timeline.now + self.random.uniform(0.2, 20)))
        for one in self.random.choice(([end], [end.other], [end, end.other])):
            one.deaf_until = until
        self.world.timeline.note("deaf until {}: {}", until, end.label)

    def unreachable(self) -> None:
        host = self.random.choice((*self.world.conductors, *self.world.nodes)).name
        self.network.unreachable[host] = self.world.timeline.now + self.random.uniform(0.5, 10)

    def stale_hello(self) -> None:
        """A connection that its player has left long ago comes through, with the Hello that was said on it."""
        host, node = self._host(), self._node()
        said = self.network.hellos.get(node.name)
        if host is None or said is None:
            return
        port = self.network.ports[host.name]
        self.world.timeline.note("a stale Hello of {} comes to {}", node.name, host.name)

        def connected(here: object) -> None:
            here.protocol = _Nobody()  # type: ignore[attr-defined]
            here.write(said)  # type: ignore[attr-defined]
            leaves = self.random.choice((0.01, 0.5, 3.0))
            here.process.callLater(leaves, here.abortConnection)  # type: ignore[attr-defined]

        port.process.enter(self.network.accept, port, None, connected, node.name)

    def two_minds(self) -> None:
        """A player goes to another conductor, and the one it has left does not know; both have work for it."""
        ends = [end for end in self.network.ends if end.open]
        if not ends:
            return
        end = self.random.choice(ends)
        end.other.deaf_until = inf
        end.expect("gone")
        self.world.timeline.run_for(self.random.uniform(0.5, 4))
        for _ in range(4):
            self._submit(
                self.random.choice(("once", "again")), [end.process.name], lasts=self.random.choice((0.0, 0.1))
            )
            self.world.timeline.run_for(self.random.uniform(0, 0.6))

    # ---- daemons

    def kill_conductor(self) -> None:
        self.random.choice(self.world.conductors).kill()

    def kill_conductor_at_save(self) -> None:
        self.random.choice(self.world.conductors).drive.kill_at = self._soon()

    def _soon(self) -> list[tuple[int, bool]]:
        """Once, or again in its next lives."""
        times = self.random.choice((1, 1, 2, 4))
        return [(self.random.choice((0, 0, 1, 2, 5)), self.random.random() < 0.6) for _ in range(times)]

    def kill_player(self) -> None:
        self._node().kill()

    def kill_player_at_save(self) -> None:
        self._node().drive.kill_at = self._soon()

    def kill_stage(self) -> None:
        self._end_stage(self._node())

    def _end_stage(self, node: Node) -> None:
        if node.machine.stage is not None and node.stage_up:
            self.world.fact("stage", node.name)
            node.machine.stage.process.kill()

    def kill_stage_at_point(self) -> None:
        node = self._node()
        if node.machine.stage is not None and node.stage_up:
            self.world.fact("stage", node.name)
            node.machine.stage.kill_at = self.random.choice(("begun", "forked", "exited", "kept"))

    def kill_player_and_stage(self) -> None:
        node = self._node()
        node.kill()
        self._end_stage(node)

    def new_player_while_the_stage_sleeps(self) -> None:
        """What the old one had asked for and what the new one asks wait side by side."""
        node = self._node()
        if node.machine.stage is None or not node.stage_up:
            return
        node.machine.stage.process.pause(self.random.uniform(1, 4))
        self._submit(self.random.choice(("once", "again")), [node.name])
        self.world.timeline.run_for(self.random.uniform(0.01, 0.5))
        node.kill()
        node.start()

    def stop_politely(self) -> None:
        """systemctl stop; and its start later."""
        daemon = self.random.choice((*self.world.conductors, *self.world.nodes))
        process = daemon.process
        if process is None or not process.alive:
            return
        self.world.timeline.note("{} is stopped", daemon.name)
        service = daemon.player if isinstance(daemon, Node) else daemon.service
        stopped = process.enter(service.stopService)
        process.callLater(2.0, process.kill)
        if stopped is not None:
            stopped.addCallback(lambda _: self.world.timeline.later(0.001, process.kill))

    def power(self) -> None:
        node = self._node()
        if not node.off:
            node.lose_power()
            self.world.timeline.later(self.random.uniform(0.5, 15), self._switch_on, node)

    def _switch_on(self, node: Node) -> None:
        node.off = False

    def pause(self) -> None:
        processes = [daemon.process for daemon in (*self.world.conductors, *self.world.nodes)]
        processes += [node.machine.stage.process for node in self.world.nodes if node.machine.stage is not None]
        there = [process for process in processes if process is not None and process.alive]
        if there:
            self.random.choice(there).pause(self.random.choice((0.3, 2.0, 9.0)))

    # ---- disks and clocks

    def journal_lost(self) -> None:
        node = self._node()
        self.world.fact("journal", node.name)
        node.lose_journal()

    def old_journal(self) -> None:
        node = self._node()
        if node.old_journal():
            self.world.fact("journal", node.name)

    def copy_store(self) -> None:
        self.world.copies.append(self.world.store.serialize())

    def put_store_back(self) -> None:
        """An older copy of the store is put in its place, and nobody says a word."""
        if self.world.copies:
            self.world.fact("rollback", "store")
            self.world.put_back(self.random.choice(self.world.copies), None)

    def restore(self) -> None:
        """An older copy of the store is put in its place, as ``orchestra restore`` does it."""
        if self.world.copies:
            self.world.fact("restore", "store")
            now = self.world.wall("store")
            mend = lambda store, last: restore._forget(store, last, now)  # noqa: E731
            self.world.put_back(self.random.choice(self.world.copies), mend)

    def restored_in_doubt(self) -> None:
        """Work that waits in a backup is done after it; then the backup is restored, and the work is cancelled."""
        node = self._node()
        node.nearly_full = True
        for end in self.network.ends:
            if end.process is node.process and end.open:
                end.expect("gone")
        self.world.timeline.run_for(self.random.uniform(0.5, 3))
        submission = self._submit(self.random.choice(("once", "again")), [node.name], lasts=0.3)
        self.world.timeline.run_for(0.05)
        self.copy_store()
        node.nearly_full = False
        node.kill()
        node.start()
        self.world.timeline.run_for(self.random.uniform(1, 8))
        if submission is not None:
            node.kill()
            self.restore()
            self.world.timeline.run_for(self.random.uniform(0.3, 3))
            host = self._host()
            if host is not None:
                self.world.cancel(host, submission, ())

    def clock(self) -> None:
        """A wall clock jumps."""
        whose = self.random.choice(("store", *(node.name for node in self.world.nodes)))
        self.world.skew[whose] = int(self.random.choice((-3, -0.01, 0, 0, 0.005, 3)) * HOUR)
        self.world.timeline.note("the clock of {} is {} ms off", whose, self.world.skew[whose])

    def disk_full(self) -> None:
        daemon = self.random.choice((*self.world.conductors, *self.world.nodes))
        daemon.drive.full = True
        self.world.timeline.note("the disk of {} is full", daemon.name)
        self.world.timeline.later(self.random.uniform(0.1, 8), self._cure, daemon)

    def disk_nearly_full(self) -> None:
        node = self._node()
        node.nearly_full = not node.nearly_full

    def lost_and_then(self) -> None:
        """A run is lost while its player takes no work: what may run again waits, and something else comes to it."""
        node = self._node()
        submission = self._submit("again", [node.name], lasts=20.0, expire=self.random.choice((None, None, 15.0)))
        if submission is None:
            return
        self.world.timeline.run_for(self.random.uniform(0.1, 2))
        node.nearly_full = True
        for end in self.network.ends:
            if end.process is node.process and end.open:
                end.expect("gone")
        self._end_stage(node)
        self.world.timeline.run_for(self.random.uniform(1, 6))
        if self.random.random() < 0.5 and len(self.world.listed) > 1 and node.name in self.world.listed:
            self.world.listed.remove(node.name)
            self.tell_roster()
            self._for_good = True
        else:
            self.random.choice((self.cancel, self.wait))()
        self.world.timeline.later(self.random.uniform(2, 30), self._some_room, node)

    def _some_room(self, node: Node) -> None:
        node.nearly_full = False

    def _cure(self, daemon: Host | Node) -> None:
        daemon.drive.full = False

    def disk_slow(self) -> None:
        daemon = self.random.choice((*self.world.conductors, *self.world.nodes))
        daemon.drive.slow = self.random.choice((0.0, 0.05, 0.4))

    def sync_fails(self) -> None:
        self.random.choice((*self.world.conductors, *self.world.nodes)).drive.fails = True

    # ---- the fleet changes

    def remove(self) -> None:
        """A player is removed, or the removed are back."""
        world = self.world
        if len(world.listed) < len(world.nodes) and not self._for_good:
            world.listed = [node.name for node in world.nodes]
        elif len(world.listed) > 1:
            world.listed.remove(self.random.choice(world.listed))
        self.tell_roster()

    def tell_roster(self) -> None:
        world = self.world
        world.timeline.note("the players are {}", world.listed)
        for node in world.nodes:
            if node.name not in world.listed:
                world.fact("removed", node.name)
        world.tell_rosters()

    def unlearn(self) -> None:
        """A score goes from a disk, or comes back."""
        node = self._node()
        all_scores = tuple(SCORES)
        node.shelf.names = all_scores if len(node.shelf.names) < 2 else tuple(self.random.sample(all_scores, 1))

    # ---- and then it is over

    def rest(self) -> None:
        """No more faults; whoever was removed may stay so."""
        world = self.world
        world.timeline.note("no more faults")
        world.skew.clear()
        self.network.unreachable.clear()
        if self.random.random() < 0.6 and not self._for_good:
            world.listed = [node.name for node in world.nodes]
        for node in world.nodes:
            node.off = node.nearly_full = False
            node.journal_in_force()
            if node.machine.stage is not None:
                node.machine.stage.kill_at = ""
        for daemon in (*world.conductors, *world.nodes):
            daemon.drive.full = daemon.drive.fails = False
            daemon.drive.slow, daemon.drive.kill_at = 0.0, []
        self.tell_roster()


class _Nobody:
    """The player's side of a connection that it has left."""

    def dataReceived(self, data: bytes) -> None:
        pass

    def connectionLost(self, reason: object) -> None:
        pass
