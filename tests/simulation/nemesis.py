"""What goes wrong, and what people ask for meanwhile: one step after another, all drawn from the seed.

After the last step the faults stop. What was cut stays cut and what is deaf stays deaf: the daemons have to find out.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any, Final

from orchestra.model import Ask, Braking, Choice, Rolling, Scope
from orchestra.store import restore
from simulation.clockwork import Process
from simulation.machine import Stage
from simulation.network import Network
from simulation.world import SCORES, Host, Node, Submission, World

HOUR: Final = 3_600_000

Step = Callable[[], bool | None]
Weighed = tuple[Step, float]


class Nemesis:
    """Draws steps for one world. A step that finds nothing to do says False."""

    def __init__(self, world: World, favour: Sequence[str] = ()) -> None:
        """``favour``: steps to be taken more often than chance would."""
        self.world = world
        self.random = world.timeline.random
        self.network: Network = world.network
        self.steps = self.random.randint(20, 50)
        mild = self.random.random() < 0.15  # some stories have only work and cancels
        # every story has its own kinds of trouble, more of one and less of another: rare ones meet that way
        others = [(do, weight * self._mood()) for do, weight in (*self._operation, *self._faults)]
        favoured = [(do, 12.0) for do, _ in (*self._work, *others) if do.__name__ in favour]
        self._weighed = [*self._work, *([] if mild else others), *favoured]
        self._names = frozenset(do.__name__ for do, _ in self._faults)
        self._for_good = False  # who is removed stays so
        self._gap = self.random.choice((0.02, 0.2, 0.2, 1.0))

    def _mood(self) -> float:
        return self.random.choice((0, 0.5, 1, 1, 3))

    @property
    def _work(self) -> list[Weighed]:
        return [(self.submit, 16), (self.ask_again, 3), (self.cancel, 5), (self.look, 3)]

    @property
    def _operation(self) -> list[Weighed]:
        """What operators do and what upkeep does; and that nothing is done."""
        return [
            (self.wait, 4),
            (self.cancel_many, 0.6),
            (self.hold, 1),
            (self.release, 1),
            (self.pause_a_job, 1.5),
            (self.resume_a_job, 3),
            (self.drain, 1),
            (self.kill_on_the_node, 0.5),
            (self.prune, 1),
            (self.remove, 1.2),
            (self.unlearn, 1),
            (self.copy_store, 0.7),
        ]

    @property
    def _faults(self) -> list[Weighed]:
        return [
            (self.cut, 5),
            (self.deafen, 4),
            (self.unreachable, 1),
            (self.stale_hello, 3),
            (self.two_minds, 2),
            (self.kill_conductor, 3),
            (self.kill_conductor_at_save, 4),
            (self.kill_conductor_at_message, 2),
            (self.conductor_without_power, 1),
            (self.kill_player, 3),
            (self.kill_player_at_save, 5),
            (self.kill_player_at_message, 2),
            (self.kill_stage, 2),
            (self.kill_stage_at_point, 4),
            (self.kill_stage_at_message, 2),
            (self.kill_stage_of_a_family, 1),
            (self.kill_player_and_stage, 1),
            (self.new_player_while_the_stage_sleeps, 1),
            (self.stop_politely, 2),
            (self.power, 2),
            (self.pause, 3),
            (self.journal_lost, 1),
            (self.old_journal, 0.6),
            (self.put_store_back, 0.4),
            (self.restore, 0.4),
            (self.restored_in_doubt, 0.5),
            (self.clock, 1),
            (self.disk_full, 1.5),
            (self.disk_nearly_full, 1),
            (self.conductor_nearly_full, 0.7),
            (self.disk_slow, 1),
            (self.sync_fails, 1),
            (self.lost_and_cancelled, 0.8),
            (self.lost_and_removed, 0.8),
            (self.lost_and_told_twice, 1),
            (self.cancelled_on_one, 1.5),
        ]

    def rage(self) -> None:
        """All steps, with time between them."""
        doers, weights = zip(*self._weighed, strict=True)
        for _ in range(self.steps):
            do = self.random.choices(doers, weights)[0]
            if do() is not False:
                self.world.timeline.counts[self._called(do.__name__)] += 1
            self.world.timeline.run_for(self.random.expovariate(1 / self._gap))

    def _called(self, name: str) -> str:
        """How a step is counted. What is to happen at a save or a message is a fault when it does."""
        return f"did: {name}" if name not in self._names or "_at_" in name else f"fault: {name}"

    def _node(self) -> Node:
        return self.random.choice(self.world.nodes)

    def _host(self) -> Host | None:
        up = [host for host in self.world.conductors if host.up]
        return self.random.choice(up) if up else None

    # ---- work

    def submit(self) -> bool:
        names = [node.name for node in self.world.nodes if node.name in self.world.listed]
        score = self.random.choices(tuple(SCORES), (4, 4, 1))[0]
        return self._submit(score, self.random.sample(names, self.random.randint(1, len(names)))) is not None

    def _submit(self, score: str, names: Sequence[str], lasts: float = 0.0, **more: Any) -> Submission | None:
        """``more``: what else is not left to chance."""
        world, random, host = self.world, self.random, self._host()
        if host is None or not set(names) <= set(world.listed):
            return None
        token = f"t{len(world.submissions)}"
        scope = more.get("scope") or random.choice((Scope.ALL, Scope.ALL, Scope.ONE, Scope.SOME))
        rolls = scope is Scope.ALL and len(names) > 1 and random.random() < 0.4
        later = random.choice((-1.0, 0.5, 5.0)) if random.random() < 0.1 else None
        ask = Ask(
            score=score,
            targets=tuple(names),
            scope=scope,
            count=random.randint(1, len(names)) if scope is Scope.SOME else 1,
            rolling=self._rolling() if rolls else None,
            not_before=None if later is None else max(world.wall("store") / 1000 + later, 0),
            params=self._params(token) | ({"lasts": str(lasts)} if lasts else {}) | more.get("params", {}),
            expire=more.get("expire", random.choice((None, None, None, 4.0, 4.0, 15.0, 15.0, 0))),
            priority=random.choice((0, 0, 0, 5)),
            request_key=random.choice((None, f"key-{token}")),
        )
        submission = Submission(token, ask, host.name)
        world.submissions.append(submission)
        world.timeline.note("submit {} {}", submission, ask.params)
        world.ask(host, submission)
        return submission

    def _rolling(self) -> Rolling:
        random = self.random
        return Rolling(
            batch=random.choice(("1", "1", "2", "50%")),
            canary=random.choice((0, 0, 1)),
            max_failures=random.choice("019"),
            pause=random.choice((0, 0, 1.5)),
        )

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

    def ask_again(self) -> bool | None:
        host, keyed = self._host(), [one for one in self.world.submissions if one.ask.request_key]
        if host is None or not keyed:
            return False
        submission = self.random.choice(keyed)
        if not set(submission.ask.targets) <= set(self.world.listed):
            return False
        if self.random.random() < 0.25:
            self.world.ask_otherwise(host, submission)
        else:
            self.world.ask(host, submission)
        return None

    def cancel(self) -> bool | None:
        host = self._host()
        if host is None or not self.world.submissions:
            return False
        submission = self.random.choice(self.world.submissions[-6:])
        targets = [name for name in submission.ask.targets if name in self.world.listed]
        some = self.random.sample(targets, 1) if targets and self.random.random() < 0.4 else []
        self.world.cancel(host, submission, some)
        return None

    def look(self) -> bool | None:
        host = self._host()
        if host is None or not self.world.submissions:
            return False
        self.world.look(host, self.random.choice(self.world.submissions))
        return None

    # ---- operators

    def wait(self) -> None:
        self.world.timeline.run_for(self.random.uniform(0.3, 6))

    def cancel_many(self) -> bool | None:
        """Everything of a score, of a host, of an owner, or everything."""
        host = self._host()
        if host is None:
            return False
        name, score = self.random.choice(self.world.listed), self.random.choice(tuple(SCORES))
        choices = (Choice(hosts=(name,)), Choice(score=score), Choice(owner="anne"), Choice(everything=True))
        self.world.cancel_many(host, self.random.choice(choices))
        return None

    def hold(self) -> bool | None:
        host = self._host()
        if host is None:
            return False
        name, score = self.random.choice(self.world.listed), self.random.choice(tuple(SCORES))
        choices = (Braking(hosts=(name,)), Braking(scores=(score,)), Braking())
        self.world.hold(host, self.random.choice(choices))
        return None

    def release(self) -> bool | None:
        host = self._host()
        if host is None or not host.dispatch.brake.holds:
            return False
        self.world.release(host)
        return None

    def pause_a_job(self) -> bool | None:
        host = self._host()
        if host is None or not self.world.submissions:
            return False
        self.world.pause(host, self.random.choice(self.world.submissions[-2:]))
        return None

    def resume_a_job(self) -> bool | None:
        host = self._host()
        paused = self.world.store.execute("SELECT job_id FROM gates WHERE paused_at IS NOT NULL").fetchone()
        if host is None or paused is None:
            return False
        self.world.resume(host, paused[0])
        return None

    def drain(self) -> bool | None:
        """A player takes no more work, or takes work again."""
        node = self._node()
        if not node.up:
            return False
        if node.marker.drained is None:
            self.world.on_node(node, lambda: node.player.drain("anne", "to see what happens"))
        else:
            self.world.on_node(node, lambda: node.player.undrain("anne"))
        return None

    def kill_on_the_node(self) -> bool | None:
        """The node's operator ends all that runs there."""
        node = self._node()
        if not node.up or node.player.status().stage.problem:
            return False
        self.world.fact("ended", node.name)
        node.player.kill("anne", None)
        return None

    def prune(self) -> bool | None:
        """Ended jobs leave the store, whole or a few rows at a time."""
        host = self._host()
        if host is None:
            return False
        self.world.prune(host, self.random.choice((0, 1000, 5000)), self.random.choice((2, 5, 2000)))
        return None

    # ---- the network

    def cut(self) -> bool | None:
        """A connection breaks; one end, or both, are told."""
        ends = [end for end in self.network.ends if end.open]
        if not ends:
            return False
        end = self.random.choice(ends)
        self.world.timeline.note("cut: {}", end.label)
        for one in self.random.choice(([end], [end.other], [end, end.other])):
            one.expect("gone")
        if self.random.random() < 0.5:
            end.deaf_until = end.other.deaf_until = inf
        return None

    def deafen(self) -> bool | None:
        """Nothing arrives at one end, or at both, for a while or for ever."""
        ends = [end for end in self.network.ends if end.open]
        if not ends:
            return False
        end = self.random.choice(ends)
        until = self.random.choice((inf, self.world.timeline.now + self.random.uniform(0.2, 20)))
        for one in self.random.choice(([end], [end.other], [end, end.other])):
            one.deaf_until = until
        self.world.timeline.note("deaf until {}: {}", until, end.label)
        return None

    def unreachable(self) -> None:
        host = self.random.choice((*self.world.conductors, *self.world.nodes)).name
        self.network.unreachable[host] = self.world.timeline.now + self.random.uniform(0.5, 10)

    def stale_hello(self) -> bool | None:
        """A connection that its player has left long ago comes through, with the Hello that was said on it."""
        host, node = self._host(), self._node()
        said = self.network.hellos.get(node.name)
        if host is None or said is None:
            return False
        port = self.network.ports[host.name]
        self.world.timeline.note("a stale Hello of {} comes to {}", node.name, host.name)

        def connected(here: object) -> None:
            here.protocol = _Nobody()  # type: ignore[attr-defined]
            here.write(said)  # type: ignore[attr-defined]
            leaves = self.random.choice((0.01, 0.5, 3.0))
            here.process.callLater(leaves, here.abortConnection)  # type: ignore[attr-defined]

        port.process.enter(self.network.accept, port, None, connected, node.name)
        return None

    def two_minds(self) -> bool | None:
        """A player goes to another conductor, and the one it has left does not know; both have work for it."""
        ends = [end for end in self.network.ends if end.open]
        if not ends or len(self.world.conductors) < 2:
            return False
        end = self.random.choice(ends)
        end.other.deaf_until = inf
        end.expect("gone")
        self.world.timeline.run_for(self.random.uniform(0.5, 4))
        for _ in range(4):
            self._submit(
                self.random.choice(("once", "again")), [end.process.name], lasts=self.random.choice((0.0, 0.1))
            )
            self.world.timeline.run_for(self.random.uniform(0, 0.6))
        return None

    # ---- daemons

    def kill_conductor(self) -> bool | None:
        host = self._host()
        return False if host is None else host.kill()

    def conductor_without_power(self) -> bool | None:
        """Nobody is told that it is gone."""
        host = self._host()
        if host is None:
            return False
        assert host.process is not None
        host.process.kill(power=True)
        return None

    def kill_conductor_at_save(self) -> None:
        self.random.choice(self.world.conductors).drive.kill_at = self._soon()

    def _soon(self) -> list[tuple[int, bool]]:
        """Once, or again in its next lives."""
        times = self.random.choice((1, 1, 2, 4))
        return [(self.random.choice((0, 0, 1, 2, 5)), self.random.random() < 0.6) for _ in range(times)]

    def kill_conductor_at_message(self) -> bool | None:
        return self._hears_only(self.random.choice(self.world.conductors).process)

    def _hears_only(self, process: Process | None) -> bool | None:
        if process is None or not process.alive:
            return False
        process.hears_only = self.random.choice((0, 0, 1, 1, 2, 3, 5))
        return None

    def kill_player(self) -> bool | None:
        node = self._node()
        return node.kill() if node.up else False

    def kill_player_at_message(self) -> bool | None:
        return self._hears_only(self._node().process)

    def kill_player_at_save(self) -> None:
        self._node().drive.kill_at = self._soon()

    def kill_stage(self) -> bool | None:
        return self._end_stage(self._node())

    def _end_stage(self, node: Node) -> bool | None:
        stage = self._stage(node)
        return False if stage is None else stage.process.kill()

    def _stage(self, node: Node) -> Stage | None:
        """A node's stage, which is not to live long."""
        if node.machine.stage is None or not node.stage_up:
            return None
        self.world.fact("stage", node.name)
        return node.machine.stage

    def kill_stage_at_point(self) -> bool | None:
        stage = self._stage(self._node())
        if stage is None:
            return False
        stage.kill_at = self.random.choice(("begun", "forked", "exited", "kept"))
        return None

    def kill_stage_at_message(self) -> bool | None:
        stage = self._stage(self._node())
        return False if stage is None else self._hears_only(stage.process)

    def kill_stage_of_a_family(self) -> None:
        """A run has had a child when its stage is killed; the child outlives it, if nobody looks for it."""
        node = self._node()
        self._submit("again", [node.name], lasts=self.random.choice((0.3, 6.0)), params={"child": "15"})
        self.world.timeline.run_for(self.random.uniform(0.05, 0.6))
        self._end_stage(node)

    def kill_player_and_stage(self) -> None:
        node = self._node()
        node.kill()
        self._end_stage(node)

    def new_player_while_the_stage_sleeps(self) -> bool | None:
        """What the old one had asked for and what the new one asks wait side by side."""
        node = self._node()
        if node.machine.stage is None or not node.stage_up:
            return False
        node.machine.stage.process.pause(self.random.uniform(1, 4))
        self._submit(self.random.choice(("once", "again")), [node.name])
        self.world.timeline.run_for(self.random.uniform(0.01, 0.5))
        node.kill()
        node.start()
        return None

    def stop_politely(self) -> bool | None:
        """systemctl stop; and its start later."""
        daemon = self.random.choice((*self.world.conductors, *self.world.nodes))
        process = daemon.process
        if process is None or not process.alive:
            return False
        self.world.timeline.note("{} is stopped", daemon.name)
        service = daemon.player if isinstance(daemon, Node) else daemon.service
        stopped = process.enter(service.stopService)
        process.callLater(2.0, process.kill)
        if stopped is not None:
            stopped.addCallback(lambda _: self.world.timeline.later(0.001, process.kill))
        return None

    def power(self) -> bool | None:
        node = self._node()
        if node.off:
            return False
        node.lose_power()
        self.world.timeline.later(self.random.uniform(0.5, 15), self._switch_on, node)
        return None

    def _switch_on(self, node: Node) -> None:
        node.off = False

    def pause(self) -> bool | None:
        processes = [daemon.process for daemon in (*self.world.conductors, *self.world.nodes)]
        processes += [node.machine.stage.process for node in self.world.nodes if node.machine.stage is not None]
        there = [process for process in processes if process is not None and process.alive]
        return self.random.choice(there).pause(self.random.choice((0.3, 2.0, 9.0))) if there else False

    # ---- disks and clocks

    def journal_lost(self) -> None:
        node = self._node()
        self.world.fact("journal", node.name)
        node.lose_journal()

    def old_journal(self) -> bool | None:
        node = self._node()
        if not node.old_journal():
            return False
        self.world.fact("journal", node.name)
        return None

    def copy_store(self) -> None:
        self.world.copies.append(self.world.store.serialize())

    def put_store_back(self) -> bool | None:
        """An older copy of the store is put in its place, and nobody says a word."""
        if not self.world.copies:
            return False
        self.world.fact("rollback", "store")
        self.world.put_back(self.random.choice(self.world.copies), None)
        return None

    def restore(self) -> bool | None:
        """An older copy of the store is put in its place, as ``orchestra restore`` does it."""
        if not self.world.copies:
            return False
        self.world.fact("restore", "store")
        now = self.world.wall("store")
        mend = lambda store, last: restore._forget(store, last, now)  # noqa: E731
        self.world.put_back(self.random.choice(self.world.copies), mend)
        return None

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

    def lost_and_cancelled(self) -> bool | None:
        """A run is lost while its player takes no work; what may run again waits, and is cancelled or expires."""
        node = self._lose_one()
        if node is None:
            return False
        self.random.choice((self.cancel, self.wait))()
        self.world.timeline.later(self.random.uniform(2, 30), self._some_room, node)
        return None

    def lost_and_removed(self) -> bool | None:
        """A run is lost while its player takes no work; what may run again waits, and its player is removed."""
        node = self._lose_one() if len(self.world.listed) > 1 else None
        if node is None:
            return False
        self.world.listed.remove(node.name)
        self.tell_roster()
        self._for_good = True
        return None

    def _lose_one(self) -> Node | None:
        """Have a run lost, and its player with no room for the next attempt."""
        node = self._node()
        if self._submit("again", [node.name], lasts=20.0, expire=self.random.choice((None, None, 15.0))) is None:
            return None
        self.world.timeline.run_for(self.random.uniform(0.1, 2))
        node.nearly_full = True
        for end in self.network.ends:
            if end.process is node.process and end.open:
                end.expect("gone")
        self._end_stage(node)
        self.world.timeline.run_for(self.random.uniform(2, 9))
        return node

    def _some_room(self, node: Node) -> None:
        node.nearly_full = False

    def lost_and_told_twice(self) -> bool | None:
        """A run is lost, and its conductor dies between the commit of that and its answer: it hears it again while the
        next attempt is under way."""
        node, host = self._node(), self._host()
        if host is None or self._submit("again", [node.name], lasts=6.0) is None:
            return False
        self.world.timeline.run_for(self.random.uniform(0.05, 1))
        self._end_stage(node)
        host.drive.kill_at = [(self.random.choice((0, 0, 1)), True)]
        self.world.timeline.run_for(self.random.uniform(0.2, 2))
        host.start()
        return None

    def cancelled_on_one(self) -> bool | None:
        """One-of work waits while everybody is away; it is cancelled on one of its players, who is the first to be back."""
        nodes = [node for node in self.world.nodes if node.name in self.world.listed]
        if len(nodes) < 2:
            return False
        for node in nodes:
            node.kill()
        submission = self._submit("once", [node.name for node in nodes], lasts=0.1, scope=Scope.ONE)
        self.world.timeline.run_for(self.random.uniform(0.01, 0.1))
        host, denied = self._host(), self.random.choice(nodes)
        if submission is not None and host is not None:
            self.world.cancel(host, submission, [denied.name])
            self.world.timeline.run_for(self.random.choice((0.0, 0.02, 0.1)))
            denied.start()
        return None

    def _cure(self, daemon: Host | Node) -> None:
        daemon.drive.full = False

    def conductor_nearly_full(self) -> bool | None:
        """The conductor's upkeep sees little room: nothing new is accepted or handed out, until there is more."""
        host = self._host()
        if host is None:
            return False
        assert host.process is not None
        host.dispatch.pause("the disk is nearly full")
        self.world.timeline.note("{} is nearly full", host.name)
        self.world.timeline.later(self.random.uniform(0.1, 12), host.process.enter, host.dispatch.resume)
        return None

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
        world.healed = True
        world.skew.clear()
        self.network.unreachable.clear()
        if self.random.random() < 0.6 and not self._for_good:
            world.listed = [node.name for node in world.nodes]
        for node in world.nodes:
            node.off = node.nearly_full = False
            node.journal_in_force()
            if node.machine.stage is not None:
                node.machine.stage.kill_at, node.machine.stage.process.hears_only = "", None
        for daemon in (*world.conductors, *world.nodes):
            daemon.drive.full = daemon.drive.fails = False
            daemon.drive.slow, daemon.drive.kill_at = 0.0, []
            if daemon.process is not None:
                daemon.process.hears_only = None
        self.tell_roster()


class _Nobody:
    """The player's side of a connection that it has left."""

    def dataReceived(self, data: bytes) -> None:
        pass

    def connectionLost(self, reason: object) -> None:
        pass
