"""A node's machine: its processes, its boot, and the stage that starts scores on it.

The stage is a simulated one. It keeps the documented rules of the real one (a directory per run made before the fork,
older connections closed before a new one is answered, outcomes written lazily, a sweep by mark at its start) and
speaks the real frames with the real player. Its processes outlive it.
"""

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred, fail

from orchestra import __version__
from orchestra.errors import StageNotStarted
from orchestra.player import frames
from orchestra.player.door import message_in, order_in
from simulation.clockwork import Killed, Process
from simulation.network import End

SYNC_AFTER: Final = 1.0
TIMEOUT: Final = 20.0
GRACE: Final = 2.0
PIDS: Final = range(100, 112)  # few, so that they are used again soon

Key = tuple[str, int]
"""A run: its journal, its number there."""


class Start:
    """A process that was started for a task: the truth, for the checker."""

    def __init__(self, key: Key, order: dict[str, Any], node: str, at: float) -> None:
        self.key = key
        self.token = order["params"].get("token", "")
        self.job, self.task, self.attempt = order["job"], order["task"], order["attempt"]
        self.score: str = order["score"]
        self.node = node
        self.at = at
        self.ended_at: float | None = None
        self.how = ""  # ok, failed, killed; swept (by a later stage), power

    def __str__(self) -> str:
        ended = "runs" if self.ended_at is None else f"{self.how} at {self.ended_at:.3f}"
        where = f"on {self.node}, run {self.key[0]}:{self.key[1]}, started at {self.at:.3f}, {ended}"
        return f"{self.token} job {self.job}/{self.task} attempt {self.attempt} {where}"


class Living:
    """A process. ``mark`` is empty for one that is none of ours."""

    def __init__(self, pid: int, at: float, mark: Key | None, start: Start | None, first: bool) -> None:
        self.pid = pid
        self.at = at
        self.mark = mark
        self.start = start
        self.first = first  # the first process of its run
        self.stuck_until = 0.0  # even SIGKILL does not end it before


class Directory:
    """``runs/JOURNAL/SEQ``: begun; ended if there is an outcome in it."""

    def __init__(self) -> None:
        self.leader: tuple[int, float, str] | None = None  # pid, start time, boot
        self.outcome: dict[str, Any] | None = None
        self.synced = False


class Machine:
    """What a node has beside its daemons."""

    def __init__(self, world: Any, name: str) -> None:
        self.world = world
        self.name = name
        self.path = f"/{name}/stage"
        self.boots = 0
        self.booted_at = 0.0
        self.directories: dict[Key, Directory] = {}
        self.removed: dict[Key, Directory] = {}  # of late: nobody has synced that
        self.living: list[Living] = []
        self.stage: Stage | None = None
        self._next_pid = 0
        self._strangers()

    @property
    def boot(self) -> str:
        return f"{self.name}-boot-{self.boots}"

    def boot_clock(self) -> int:
        return int((self.world.timeline.now - self.booted_at) * 1000)

    def _strangers(self) -> None:
        for _ in range(3):
            self.fork(None, None, first=True)

    def fork(self, mark: Key | None, start: Start | None, *, first: bool) -> Living:
        """Another process, with a number that nobody has now."""
        taken = {one.pid for one in self.living}
        while True:
            self._next_pid += 1
            pid = self._next_pid
            if len(taken) < len(PIDS):
                pid = PIDS[self._next_pid % len(PIDS)]
            if pid not in taken:
                break
        living = Living(pid, self.world.timeline.now, mark, start, first)
        self.living.append(living)
        return living

    def end(self, living: Living, how: str) -> None:
        """A process is gone; if it was the first of its run, that is how the run ended."""
        if living not in self.living:
            return
        self.living.remove(living)
        if living.start is not None:
            self._note_end(living, how)
        stage = self.stage
        if living.first and living.mark is not None and stage is not None and stage.process.alive:
            stage.process.callLater(0, stage.exited, living, how)

    def _note_end(self, living: Living, how: str) -> None:
        start = living.start
        assert start is not None
        if living.first:
            start.how = how
        elif how in ("swept", "power"):
            start.how = start.how or how
        if not any(one.start is start for one in self.living):
            start.ended_at = self.world.timeline.now
        self.world.timeline.note("process {} of {}: {}", living.pid, start.token, how)

    def lose_power(self) -> None:
        """Everything stops; what was not synced may be gone."""
        if self.stage is not None:
            self.stage.process.kill(power=True)
        for living in list(self.living):
            self.end(living, "power")
        self.living.clear()
        for key, directory in list(self.directories.items()):
            if directory.outcome is not None and not directory.synced and self.world.timeline.chance(0.6):
                directory.outcome = None
            if directory.outcome is None and self.world.timeline.chance(0.3):
                del self.directories[key]
        self._back_from_the_dead()
        self.boots += 1
        self.booted_at = self.world.timeline.now
        self._strangers()

    def _back_from_the_dead(self) -> None:
        """What was removed and not synced may be there again, or a part of it."""
        for key, directory in self.removed.items():
            if self.world.timeline.chance(0.3):
                if self.world.timeline.chance(0.5):
                    directory.outcome = None
                self.directories[key] = directory
        self.removed.clear()

    def begin_stage(self) -> bool:
        """As its unit does it, or the player; False if one is there."""
        if self.stage is not None and self.stage.process.alive:
            return False
        self.stage = Stage(self)
        return True

    def start_stage(self, player: Process) -> "Deferred[None]":
        """As a player does it: fires when the stage answers, fails with its complaint, or when it dies before."""
        if not self.begin_stage():
            return fail(StageNotStarted(problem="another one is there"))
        done: Deferred[None] = Deferred()
        player.callLater(0.05, self._launched, player, self.stage, done)
        return done

    def _launched(self, player: Process, stage: "Stage", done: "Deferred[None]") -> None:
        if not stage.process.alive:
            done.errback(StageNotStarted(problem="it died"))
        elif stage.ready:
            done.callback(None)
        else:
            player.callLater(0.05, self._launched, player, stage, done)


class Talk:
    """A player's connection, on the stage's side."""

    def __init__(self, stage: "Stage", end: End) -> None:
        self.stage = stage
        self.end = end
        self.journal: str | None = None
        self._frames = frames.Frames(frames.MOST_TO_STAGE)

    def dataReceived(self, data: bytes) -> None:
        for text, _ in self._frames.feed(data):
            if self in self.stage.talks:
                self.stage.hear(self, message_in(text))

    def connectionLost(self, reason: object) -> None:
        self.stage.left(self)

    def send(self, message: dict[str, Any], body: bytes = b"") -> None:
        self.end.write(frames.encode(message, body))


class Stage:
    """One life of a stage."""

    FENCES = True  # older connections are closed before a new one is answered
    DIRECTORY_FIRST = True  # made before the fork
    BY_MARK = True  # what a dead stage left is known by its mark

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.world = machine.world
        self.process = Process(self.world.timeline, f"stage-{machine.name}", self.world.network, machine.name)
        self.talks: list[Talk] = []
        self.running: dict[Key, Living] = {}
        self.why: dict[Key, str] = {}  # runs that are being killed
        self.swept: set[Key] = set()
        self.unswept: set[Key] = set()
        self.kill_at = ""  # the point at which it dies
        self.ready = False
        self.process.callLater(0.05 + self.world.timeline.random.random() * 0.2, self._recover)
        self._syncing = False

    def point(self, name: str) -> None:
        """A moment between two things; it may be its last."""
        if self.kill_at == name:
            self.world.timeline.counts["fault: killed on the stage"] += 1
            self.process.kill()
            raise Killed

    # ---- at its start

    def _recover(self) -> None:
        directories = self.machine.directories
        self.unswept = {key for key, one in directories.items() if one.outcome is None}
        self._sync()
        self._sweep(patience=5)

    def _sweep(self, patience: int) -> None:
        alive = {key for key in sorted(self.unswept) if self._strike(key)}
        if alive and patience:
            self.process.callLater(0.1, self._sweep, patience - 1)
            return
        self._settle(alive)
        self.world.network.stages[self.machine.path] = self
        self.ready = True

    def _strike(self, key: Key) -> bool:
        """Kill what lives of a run; whether something did."""
        found = self._of_run(key) if self.BY_MARK else self._of_pid(key)
        for living in found:
            if living.stuck_until <= self.process.seconds():
                self.machine.end(living, "swept")
                if living.mark is None:
                    self.world.timeline.bugs.append(f"{self.process.name} killed a process that was not ours")
        return bool(found)

    def _of_run(self, key: Key) -> list[Living]:
        return [one for one in self.machine.living if one.mark == key]

    def _of_pid(self, key: Key) -> list[Living]:
        leader = self.machine.directories[key].leader
        return [one for one in self.machine.living if leader is not None and one.pid == leader[0]]

    def _settle(self, alive: set[Key]) -> None:
        for key in sorted(self.unswept - alive):
            self.swept.add(key)
            self._tell(key, {"type": "ended", "outcome": {"told": "lost", "reason": "its stage died while it ran"}})
        self.unswept = alive
        if alive:
            self.process.callLater(1.0, self._sweep_again)

    def _sweep_again(self) -> None:
        self._settle({key for key in sorted(self.unswept) if self._strike(key)})

    # ---- connections

    def accepted(self, end: End) -> Talk:
        talk = Talk(self, end)
        self.talks.append(talk)
        return talk

    def left(self, talk: Talk) -> None:
        if talk in self.talks:
            self.talks.remove(talk)

    def hear(self, talk: Talk, message: dict[str, Any]) -> None:
        kind = message["type"]
        handlers: dict[str, Callable[[Talk, dict[str, Any]], None]] = {
            "hello": self._hello,
            "perform": self._perform,
            "kill": self._kill,
            "forget": self._forget,
            "fetch": self._fetch,
            "upgrade": self._upgrade,
        }
        handlers[kind](talk, message)

    def _hello(self, talk: Talk, message: dict[str, Any]) -> None:
        for other in list(self.talks) if self.FENCES else ():
            if other is not talk:
                self.talks.remove(other)
                other.end.abortConnection()
        journal = talk.journal = message["journal"]
        runs: dict[str, Any] = {}
        body = b""
        for (owner, seq), one in self.machine.directories.items():
            if owner == journal and one.outcome is not None:
                runs[str(seq)] = {"state": "done", "outcome": one.outcome}
                body += _body(one.outcome)
        for (owner, seq), living in self.running.items():
            if owner == journal:
                runs[str(seq)] = {
                    "state": "running",
                    "pid": living.pid,
                    "started_at": self.world.wall(self.machine.name),
                }
        runs |= {str(seq): {"state": "running"} for owner, seq in sorted(self.unswept) if owner == journal}
        runs |= {str(seq): {"state": "swept"} for owner, seq in sorted(self.swept) if owner == journal}
        answer = {"type": "stage", "boot": self.machine.boot, "pid": 1, "version": frames.VERSION}
        talk.send(answer | {"program": __version__, "runs": runs}, body)

    def _tell(self, key: Key, message: dict[str, Any], body: bytes = b"") -> None:
        for talk in self.talks:
            if talk.journal == key[0]:
                talk.send({**message, "seq": key[1]}, body)
                return

    # ---- runs

    def _perform(self, talk: Talk, message: dict[str, Any]) -> None:
        key, order = (talk.journal or "", message["seq"]), order_in(message)
        if not self.DIRECTORY_FIRST:
            living = self._fork(key, order)
            self.point("begun")
        if key in self.machine.directories:
            talk.send({"type": "repeated", "seq": key[1]})
            return
        directory = self.machine.directories[key] = Directory()
        if self.DIRECTORY_FIRST:
            self.point("begun")
            if order["params"].get("unfit"):
                self._keep(key, self._refusal())
                self._tell(key, {"type": "refused", "reason": "the score cannot be executed"})
                return
            living = self._fork(key, order)
        directory.leader = living.pid, living.at, self.machine.boot
        self.running[key] = living
        self.point("forked")
        self._tell(key, {"type": "started", "pid": living.pid, "at": self.world.wall(self.machine.name)})

    def _fork(self, key: Key, order: dict[str, Any]) -> Living:
        start = Start(key, order, self.machine.name, self.process.seconds())
        self.world.started(start)
        living = self.machine.fork(key, start, first=True)
        params = order["params"]
        lasts, how = float(params["lasts"]), params["ends"]
        self.world.timeline.later(lasts, self.machine.end, living, how)
        if "child" in params:
            child = self.machine.fork(key, start, first=False)
            self.world.timeline.later(lasts + float(params["child"]), self.machine.end, child, "left")
        if "stuck" in params:
            living.stuck_until = self.process.seconds() + float(params["stuck"])
        self.process.callLater(TIMEOUT, self._end_run, key, "it ran too long")
        return living

    def _end_run(self, key: Key, reason: str) -> None:
        living = self.running.get(key)
        if living is not None and key not in self.why:
            self.why[key] = reason
            grace = self.world.timeline.random.random() * GRACE
            self.process.callLater(grace, self._insist, key)

    def _insist(self, key: Key) -> None:
        found = self._of_run(key)
        for living in found:
            if living.stuck_until <= self.process.seconds():
                self.machine.end(living, "killed")
        if found:
            self.process.callLater(0.1, self._insist, key)

    def exited(self, living: Living, how: str) -> None:
        """A child of ours is gone and reaped. One that is killed ends when nothing of it lives any more."""
        key = living.mark
        assert key is not None
        if self.running.get(key) is not living:
            return
        if key in self.why and self._of_run(key):
            self.process.callLater(0.05, self.exited, living, how)
            return
        self.point("exited")
        del self.running[key]
        outcome = self._outcome(living, "killed" if key in self.why else how, self.why.pop(key, ""))
        self._keep(key, outcome)
        self.point("kept")
        self._tell(key, {"type": "ended", "outcome": outcome}, _body(outcome))

    def _outcome(self, living: Living, told: str, reason: str) -> dict[str, Any]:
        wall, loud = self.world.wall(self.machine.name), 0
        assert living.mark is not None
        if living.mark[1] % 5 == 0:
            loud = 10_000
        return {
            "told": told,
            "reason": reason,
            "rc": {"ok": 0, "failed": 3}.get(told),
            "signal": 15 if told == "killed" else None,
            "started_at": wall,
            "ended_at": wall,
            "stdout": {"total": loud or 5, "sha256": None, "spans": [[0, loud or 5]]},
            "stderr": {},
            "inline": not loud,
            "notes": [],
        }

    def _refusal(self) -> dict[str, Any]:
        return {"told": "refused", "reason": "the score cannot be executed", "inline": True}

    def _keep(self, key: Key, outcome: dict[str, Any]) -> None:
        directory = self.machine.directories[key]
        directory.outcome, directory.synced = outcome, False
        if any(talk.journal == key[0] for talk in self.talks):
            self._plan_sync()
        else:
            self._sync()

    def _plan_sync(self) -> None:
        if not self._syncing:
            self._syncing = True
            self.process.callLater(SYNC_AFTER, self._sync)

    def _sync(self) -> None:
        self._syncing = False
        above: set[str] = set()
        for (journal, _), directory in self.machine.directories.items():
            if directory.outcome is not None and not directory.synced:
                directory.synced = True
                above.add(journal)
        self.machine.removed = {key: one for key, one in self.machine.removed.items() if key[0] not in above}

    def _kill(self, talk: Talk, message: dict[str, Any]) -> None:
        self._end_run((talk.journal or "", message["seq"]), message["reason"])

    def _forget(self, talk: Talk, message: dict[str, Any]) -> None:
        for seq in message["seqs"]:
            key = talk.journal or "", seq
            directory = self.machine.directories.get(key)
            if directory is not None and (directory.outcome is not None or key in self.swept):
                self.machine.removed[key] = self.machine.directories.pop(key)
                self.swept.discard(key)

    def _fetch(self, talk: Talk, message: dict[str, Any]) -> None:
        directory = self.machine.directories.get((talk.journal or "", message["seq"]))
        there = directory is not None and directory.outcome is not None
        offset = message["offset"]
        body = b"x" * min(message["size"], 10_000 - offset) if there and message["stream"] == 1 else b""
        fields = {key: message[key] for key in ("seq", "stream", "offset")}
        talk.send({"type": "piece", **fields, "gone": not body}, body)

    def _upgrade(self, talk: Talk, message: dict[str, Any]) -> None:
        talk.send({"type": "upgraded", "program": __version__, "reason": ""})


def _body(outcome: dict[str, Any]) -> bytes:
    return b"hello" if outcome["inline"] and outcome.get("stdout") else b""
