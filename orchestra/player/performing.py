"""What a stage does: starts scores, once each, watches them, keeps their outcomes, sweeps up after the dead.

Everything it knows is in ``runs/``, can be found by the mark, or is handed to the program that replaces it. Standard
library only. How it becomes a process is in :mod:`orchestra.player.stage`.
"""

import os
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

from orchestra import __version__
from orchestra.errors import NotStarted, UnfitScore
from orchestra.parameters import environment
from orchestra.parameters.declared import complete, no_dry_run, plain, typed
from orchestra.parameters.declared import refusal as breach
from orchestra.player import handover
from orchestra.player.door import (
    WORD,
    Connection,
    Message,
    Nonsense,
    a_list,
    a_number,
    a_text,
    matching,
    order_in,
)
from orchestra.player.frames import VERSION, to_json
from orchestra.player.keeping import Keeper
from orchestra.player.launch import Users, launch
from orchestra.player.loop import Loop
from orchestra.player.pins import Pins
from orchestra.player.records import Key, done
from orchestra.player.running import Ended, House, Run, Strays, Terms, refusal
from orchestra.player.scorefile import ScoreFile, current, load, other_digest
from orchestra.player.stagelog import Log, traced
from orchestra.player.stageoptions import StageOptions
from orchestra.player.sweep import (
    MARK,
    Leader,
    Seen,
    boot_id,
    cgroup_of,
    leftovers,
    now,
    scan,
    strike,
)
from orchestra.supervisor import tell_ready

SWEEP_PATIENCE: Final = 10.0
LOST: Final = "the stage that ran it died while it ran"

_BETWEEN_SCANS: Final = 0.1
_SCAN_KEEPS: Final = 0.02
_MOST_STRANGERS: Final = 8
_MOST_FETCHED: Final = 1 << 20


class Stage:
    """Performs scores, each run once; everything it knows is in ``runs/`` or can be found by the mark."""

    def __init__(self, options: StageOptions, log: Log) -> None:
        self.loop = Loop(self._after_turn)
        self._options = options
        self._log = log
        self._boot = boot_id()
        self._cgroup = cgroup_of(os.getpid())
        self._trusted = {0, os.geteuid()} | ({options.player_uid} if options.player_uid is not None else set())
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._strays = Strays(self.loop)
        self._house = House(self.loop, self._strays, self._scan_since, self.reap, self._grown, self._ended, self._alarm)
        self._renewal = handover.Renewal(self.loop, self._stay)
        self._listening: socket.socket | None = None
        self._connections: list[Connection] = []
        self._users = Users(options.score_user)
        self._scores: dict[str, ScoreFile] = {}
        self._keeper = Keeper(options.dir, self.loop, log.say)
        self._pins = Pins(options.dir, self.loop, self._digests, log.say)
        self._running: dict[Key, Run] = {}
        self._keys: dict[int, Key] = {}  # by pid
        self._swept: set[Key] = set()
        self._unswept: dict[Key, Leader | None] = {}
        self._scanned: tuple[float, list[Seen]] = (float("-inf"), [])
        self._stopping = False
        self._hears: dict[str, Callable[[Connection, Message], None]] = {
            "hello": self._hello,
            "perform": self._perform,
            "kill": self._kill,
            "forget": self._forget,
            "fetch": self._fetch,
            "upgrade": self._upgrade,
        }

    # ---- starting and stopping

    def recover(self) -> None:
        """Read what a stage before left in the directory, and kill what it left running."""
        self._unswept = {key: self._keeper.files(key).leader() for key in self._keeper.recover()}
        self._pins.recover()
        patience = time.monotonic() + SWEEP_PATIENCE
        before, alive = set(self._unswept), self._sweep()
        while before | alive and time.monotonic() < patience:
            time.sleep(_BETWEEN_SCANS)
            before, alive = alive, self._sweep()
        self._settle_swept(before | alive)

    def serve(self, listener: socket.socket) -> None:
        """Perform until told to stop."""
        self._listening = listener
        self.loop.watch(listener.fileno(), lambda _: self._accept(listener))
        self.loop.catch(handover.HANDED, self._caught)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handover.HANDED)  # the program before may have held them back
        self._after_turn()
        lost = len(self._swept) + len(self._unswept)
        self._log.say(f"ready, {len(self._keeper.done)} outcomes kept, {lost} runs lost")
        tell_ready()
        try:
            self.loop.run()
        except Exception as bug:
            self._log.say(f"this is a bug, the stage ends: {traced(bug)}")
            raise
        self._remove_socket()

    def _remove_socket(self) -> None:
        try:
            os.unlink(self._options.socket)
        except FileNotFoundError:
            pass

    def _caught(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self.reap()
            self._flush()  # this first: somebody waits for it
        elif number == signal.SIGHUP:
            self._log.try_to_reopen()
            self._renewal.ask()
        else:
            self._stop()

    def _stop(self) -> None:
        """End every run and then this process; outcomes stay on disk for the next stage."""
        self._log.say(f"told to stop, {len(self._running)} runs are ended")
        self._stopping = True
        for run in list(self._running.values()):
            run.kill("the stage was stopped")

    def _after_turn(self) -> None:
        self._flush()
        self._keeper.tidy()
        self._log.write()
        if self._stopping and not self._running:
            self._keeper.sync()
            self.loop.stop()
        elif self._renewal.due:
            self._hand_over()

    def _flush(self) -> None:
        for connection in tuple(self._connections):
            connection.flush()

    # ---- going on as another program

    def take_over(self, state: handover.State) -> socket.socket:
        """Go on where the program before stopped, which was the same process; its listening socket."""
        self._keeper.take_over()
        for handle in state["strays"]:
            self._strays.take(handle)
        for of_run in state["runs"]:
            self._watch(Run.resumed(self._house, of_run))
        self._swept = {(journal, seq) for journal, seq in state["swept"]}
        self._unswept = {key: self._keeper.files(key).leader() for key in map(_key_of, state["unswept"])}
        if self._unswept:
            self.loop.later(0, self._sweep_again)
        self._pins.recover()
        self._connections = [
            Connection(self, socket.socket(fileno=of_it["handle"]), of_it) for of_it in state["connections"]
        ]
        self._log.say(f"replaced {state['program']} by {__version__}, {len(self._running)} runs go on")
        self._tell_askers("")
        return socket.socket(fileno=state["listener"])

    def _hand_over(self) -> None:
        self._keeper.sync()
        if not self._keeper.whole:
            self._renewal.refuse("outcomes are not on disk yet")
            return
        for run in list(self._running.values()):
            run.grow()
        self._log.write()
        assert self._listening  # for the type checker: it serves
        listener = self._listening.fileno()
        handles = [listener, self._options.lock, *self._strays.handles]
        handles += [connection.handle for connection in self._connections]
        handles += [handle for run in self._running.values() for handle in run.handles]
        self._renewal.become(self._handed(listener), handles)

    def _handed(self, listener: int) -> handover.State:
        return {
            "program": __version__,
            "lock": self._options.lock,
            "listener": listener,
            "strays": list(self._strays.handles),
            "connections": [connection.handed() for connection in self._connections],
            "runs": [run.handed() for run in self._running.values()],
            "swept": list(self._swept),
            "unswept": [_mark(key) for key in self._unswept],
        }

    def _stay(self, reason: str) -> None:
        self._log.say(f"not replaced: {reason}")
        self._tell_askers(reason)

    def _tell_askers(self, reason: str) -> None:
        for connection in self._connections:
            if connection.asks:
                connection.asks = False
                connection.send({"type": "upgraded", "program": __version__, "reason": reason})

    # ---- connections

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        uid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if uid not in self._trusted:
            self._log.say(f"turned away uid {uid}, who is neither root nor the player's user")
            sock.close()
            return
        strangers = [one for one in self._connections if one.journal is None]
        if len(strangers) >= _MOST_STRANGERS:
            strangers[0].close("it never said hello")
        self._connections.append(Connection(self, sock))

    def left(self, connection: Connection, why: str) -> None:
        """A connection has ended."""
        self._connections.remove(connection)
        if connection.journal:
            self._log.say(f"player disconnected: {why}")

    def hear(self, connection: Connection, message: Message) -> None:
        """A player said something."""
        kind = a_text(message.get("type"))
        if kind not in self._hears or (connection.journal is None and kind != "hello"):
            raise Nonsense(f"{kind[:40]!a}, here and now")
        self._hears[kind](connection, message)

    def _hello(self, connection: Connection, message: Message) -> None:
        journal = matching(WORD, message.get("journal"))
        for other in list(self._connections):
            if other is not connection:
                other.close("a newer connection takes over")
        connection.journal = journal
        runs: dict[str, Message] = {}
        body = bytearray()
        for (owner, seq), kept in self._keeper.done.items():
            if owner == journal:
                runs[str(seq)] = {"state": "done", "outcome": kept.outcome}
                body += kept.body
        for (owner, seq), run in self._running.items():
            if owner == journal:
                known = {"pid": run.pid, "started_at": run.started_at, "alarm": run.alarm}
                runs[str(seq)] = {"state": "running", **known}
        runs |= {str(seq): {"state": "running"} for owner, seq in self._unswept if owner == journal}
        runs |= {str(seq): {"state": "swept"} for owner, seq in self._swept if owner == journal}
        answer = {"type": "stage", "boot": self._boot, "pid": os.getpid(), "version": VERSION}
        answer |= {"program": __version__, "runs": runs}
        connection.send(answer, bytes(body))
        self._log.say(f"player connected, journal {journal}, {len(runs)} runs known")

    def _tell(self, key: Key, message: Message) -> None:
        if listener := self._listener(key[0]):
            listener.send({**message, "seq": key[1]})

    def _listener(self, journal: str) -> Connection | None:
        """The player with this journal, if it is connected."""
        for one in self._connections:
            if one.journal == journal:
                return one
        return None

    # ---- performing

    def _perform(self, connection: Connection, message: Message) -> None:
        key = _key(connection, message)
        order = order_in(message)
        try:
            file = self._keeper.begin(key)
        except FileExistsError:
            connection.send({"type": "repeated", "seq": key[1]})
            self._log.say(f"run {key[1]} was asked for again; it was begun before, nothing is started")
            return
        except OSError as trouble:
            words = f"the stage cannot write to its directory: {trouble.strerror}"
            self._tell(key, {"type": "refused", "reason": words})
            self._log.say(f"run {key[1]} of {order['score']}: refused: {words}")
            return
        try:
            self._start(key, order, file)
        except (NotStarted, UnfitScore) as refused:
            self._refuse(key, order["score"], refused.sentence)
        except OSError as trouble:
            self._refuse(key, order["score"], f"score {order['score']} cannot be read: {trouble}")
        finally:
            os.close(file)

    def _start(self, key: Key, order: Message, file: int) -> None:
        score = self._fit_score(order)
        who = self._users.identity(score.rules)
        mark = _mark(key)
        env = {MARK: mark, "PATH": score.rules.path, "LANG": "C.UTF-8", "HOME": who.home}
        env |= {
            "ORCHESTRA_JOB": str(order["job"]),
            "ORCHESTRA_PLAYER": order["player"],
            "ORCHESTRA_ATTEMPT": str(order["attempt"]),
            "ORCHESTRA_SCORE": score.name,
            "ORCHESTRA_DRY_RUN": "1" if order["dry_run"] else "0",
        }
        declared, told = score.rules.params, None
        if score.rules.interface == "json":
            told = to_json(typed(declared, complete(declared, order["params"] | order["secrets"]))).encode()
        else:
            env |= environment(plain(declared, complete(declared, order["params"])))
        before = now()
        process = launch(score, who, env, self._null, told)
        self._keep_leader(key, file, Leader(process.pid, before, now(), self._boot, self._cgroup))
        run = Run(self._house, key[1], mark, _terms(score), score.digest, process)
        self._watch(run)
        if listener := self._listener(key[0]):
            listener.mention_text(f'{{"type":"started","seq":{run.seq},"pid":{run.pid},"at":{run.started_at}}}')
        self._log.mention(f"run {key[1]} of {score.name}: started, pid {run.pid}")

    def _watch(self, run: Run) -> None:
        key = _key_of(run.mark)
        self._running[key] = run
        if not run.gone:
            self._keys[run.pid] = key

    def _fit_score(self, order: Message) -> ScoreFile:
        """The score as it is on disk now, and fit to be run with these parameters."""
        if self._stopping:
            raise NotStarted(reason="the stage is being stopped")
        name = order["score"]
        known = self._scores.pop(name, None)
        if known:
            score = current(known, self._options.scores, self._trusted)
        else:
            score = load(self._options.scores, name, self._trusted)
        self._scores[name] = score
        if wrong := breach(score.rules.params, order["params"], order["secrets"]):
            raise NotStarted(reason=wrong)
        if order["dry_run"] and not score.rules.dry_run:
            raise NotStarted(reason=no_dry_run(name))
        return self._pinned(score, order["digest"]) if order["digest"] else score

    def _pinned(self, score: ScoreFile, digest: str) -> ScoreFile:
        """Our own copy of the score that the disk has now, if that is the one with this digest."""
        if score.digest != digest:
            raise NotStarted(reason=other_digest(score.name, score.digest, digest))
        return self._pins.pinned(score)

    def _digests(self) -> set[str] | None:
        """Of all that runs; None while something may live of which nobody knows that."""
        return None if self._unswept else {run.digest for run in self._running.values()}

    def _keep_leader(self, key: Key, file: int, leader: Leader) -> None:
        try:
            self._keeper.files(key).write_leader(file, leader)
        except OSError as trouble:  # the mark is enough to find it
            self._log.say(f"run {key[1]}: its process is not recorded: {trouble.strerror}")

    def _refuse(self, key: Key, score: str, reason: str) -> None:
        self._keeper.keep(key, done(refusal(reason)), heard=self._listener(key[0]) is not None)
        self._tell(key, {"type": "refused", "reason": reason})
        self._log.note(f"run {key[1]} of {score}: refused: {reason}")

    def _kill(self, connection: Connection, message: Message) -> None:
        key, reason = _key(connection, message), a_text(message.get("reason"))
        self.reap()  # it may have ended by itself by now
        if run := self._running.get(key):
            run.kill(reason[:500])
            self._log.say(f"run {key[1]}: being ended: {reason[:500]}")

    # ---- ending

    def reap(self) -> None:
        """Take the exit of every child that has one."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if key := self._keys.pop(pid, None):
                self._running[key].exited(status, usage)
            else:
                self._renewal.reaped(pid, status)
            if not self._keys and not self._renewal.tries:
                return

    def _grown(self, run: Run) -> None:
        if listener := self._listener(_key_of(run.mark)[0]):
            listener.hurry()
        self._log.hurry()

    def _ended(self, run: Run, ended: Ended) -> None:
        key = _key_of(run.mark)
        del self._running[key]
        outcome = ended.outcome
        self._keeper.keep_output(key, ended)
        kept = done(outcome, ended.body)
        listener = self._listener(key[0])
        self._keeper.keep(key, kept, heard=listener is not None)
        if listener:
            listener.send_text(f'{{"type":"ended","seq":{run.seq},"outcome":{kept.text}}}', kept.body)
        how = f"signal {outcome['signal']}" if outcome["signal"] else f"exit status {outcome['rc']}"
        self._log.note(f"run {run.seq}: {outcome['told']}, {how}, {outcome['ended_at'] - outcome['started_at']} ms")

    def _alarm(self, run: Run, reason: str) -> None:
        self._tell(_key_of(run.mark), {"type": "alarm", "reason": reason})
        self._log.say(f"run {run.seq}: {reason}")

    # ---- what is kept

    def _forget(self, connection: Connection, message: Message) -> None:
        for seq in a_list(message.get("seqs")):
            key = connection.journal or "", a_number(seq)
            if key in self._keeper.done or key in self._swept:
                self._swept.discard(key)
                self._keeper.forget(key)

    def _fetch(self, connection: Connection, message: Message) -> None:
        key, stream, offset = (
            _key(connection, message),
            a_number(message.get("stream")),
            a_number(message.get("offset"), 0),
        )
        size = min(a_number(message.get("size")), _MOST_FETCHED)
        data = self._keeper.piece(key, stream, offset, size)
        answer = {"type": "piece", "seq": key[1], "stream": stream, "offset": offset, "gone": not data}
        connection.send(answer, data)

    def _upgrade(self, connection: Connection, message: Message) -> None:
        connection.asks = True
        self._renewal.ask()

    # ---- sweeping

    def _scan_since(self, since: float) -> list[Seen]:
        """The processes of this machine; many runs that end together share one look."""
        now = time.monotonic()
        if self._scanned[0] < max(since, now - _SCAN_KEEPS):
            self._scanned = now, scan()
        return self._scanned[1]

    def _sweep(self) -> set[Key]:
        """Kill what lives of the unswept runs; those of which something did."""
        runs = {_mark(key): leader for key, leader in self._unswept.items()}
        found = leftovers(scan(), runs)
        for mark, processes in found.items():
            for process in processes:
                strike(process, signal.SIGKILL)
                self._log.say(f"killed process {process.pid}, left by run {mark.rpartition(':')[2]} of a dead stage")
        return {key for key in self._unswept if _mark(key) in found}

    def _settle_swept(self, alive: set[Key]) -> None:
        """What is surely gone is lost; what cannot be killed is looked at again, and counts as running till then."""
        for key in set(self._unswept) - alive:
            del self._unswept[key]
            self._swept.add(key)
            self._tell(key, {"type": "ended", "outcome": {"told": "lost", "reason": LOST}})
        for key in alive:
            self._log.say(f"run {key[1]} of a dead stage cannot be killed; it is looked at again every second")
        if alive:
            self.loop.later(1.0, self._sweep_again)

    def _sweep_again(self) -> None:
        alive = self._sweep()
        self.loop.later(_BETWEEN_SCANS, lambda: self._settle_swept(alive | self._sweep()))


# ---- runs


def _key(connection: Connection, message: Message) -> Key:
    return connection.journal or "", a_number(message.get("seq"))


def _mark(key: Key) -> str:
    return f"{key[0]}:{key[1]}"


def _key_of(mark: str) -> Key:
    journal, _, seq = mark.rpartition(":")
    return journal, int(seq)


def _terms(score: ScoreFile) -> Terms:
    rules = score.rules
    return Terms(rules.interface, rules.timeout, rules.kill_grace, rules.output_limit, rules.response_limit)
