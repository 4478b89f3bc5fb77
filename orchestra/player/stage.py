"""The stage: the small process on which scores are performed; it outlives the player daemon.

Run by its path, ``python -I -S -X utf8 stage.py --socket PATH --dir DIR --scores DIR``; standard library only. It is
the privilege wall: a player may name a score and its parameters and nothing else; as whom, where and how long it runs
is read from disk here. What is said on the socket is in :mod:`orchestra.player.frames`.
"""

import argparse
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Final, NoReturn

if __name__ == "__main__":  # -I leaves our own directory out; behind the standard library nothing of it can be hidden
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from orchestra.errors import (
    AlreadyRunning,
    NotStarted,
    OrchestraError,
    ScoreUserMissing,
    StageNotStarted,
    UnfitScore,
)
from orchestra.parameters import environment, problem
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
from orchestra.player.frames import VERSION
from orchestra.player.launch import Launched, Users, launch
from orchestra.player.loop import Loop
from orchestra.player.records import Done, RunDirectory, done, every_run, sync_group
from orchestra.player.running import Ended, House, Run, refusal
from orchestra.player.scorefile import ScoreFile, current, load
from orchestra.player.stagelog import Log
from orchestra.player.sweep import (
    MARK,
    Leader,
    Seen,
    boot_id,
    cgroup_of,
    leftovers,
    scan,
    start_of,
    strike,
)

SYNC_AFTER: Final = 1.0
SWEEP_PATIENCE: Final = 10.0
LOST: Final = "the stage that ran it died while it ran"

_BETWEEN_SCANS: Final = 0.1
_SCAN_KEEPS: Final = 0.02
_MOST_STRANGERS: Final = 8
_MOST_FETCHED: Final = 1 << 20

Key = tuple[str, int]
"""A run: its player's journal, its number there."""


class Stage:
    """Performs scores, one directory per run; everything it knows is in ``runs/`` or can be found by the mark."""

    def __init__(self, options: argparse.Namespace, log: Log) -> None:
        self.loop = Loop(self._after_turn)
        self._options = options
        self._log = log
        self._boot = boot_id()
        self._cgroup = cgroup_of(os.getpid())
        self._trusted = {0, os.geteuid()} | ({options.player_uid} if options.player_uid is not None else set())
        self._null = os.open(os.devnull, os.O_RDONLY)
        self._house = House(self.loop, self._scan_since, self.reap, self._ended, self._alarm)
        self._connections: list[Connection] = []
        self._users = Users(options.score_user)
        self._scores: dict[str, ScoreFile] = {}
        self._running: dict[Key, Run] = {}
        self._keys: dict[int, Key] = {}  # by pid
        self._done: dict[Key, Done] = {}
        self._unsynced: set[Key] = set()
        self._unwritten: set[Key] = set()
        self._sync_due = False
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
        for key in every_run(self._options.dir):
            if kept := self._directory(key).done():
                self._done[key] = kept
            else:
                self._unswept[key] = self._directory(key).leader()
        self._unsynced.update(self._done)
        patience = time.monotonic() + SWEEP_PATIENCE
        before, alive = set(self._unswept), self._sweep()
        while before | alive and time.monotonic() < patience:
            time.sleep(_BETWEEN_SCANS)
            before, alive = alive, self._sweep()
        self._settle_swept(before | alive)

    def serve(self, listener: socket.socket) -> None:
        self.loop.watch(listener.fileno(), lambda _: self._accept(listener))
        self.loop.catch((signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._caught)
        self._plan_sync()
        self._log.say(f"ready, {len(self._done)} outcomes kept, {len(self._swept) + len(self._unswept)} runs lost")
        try:
            self.loop.run()
        except Exception:
            self._log.say(f"this is a bug, the stage ends: {traceback.format_exc()}")
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
        elif number == signal.SIGHUP:
            self._log.try_to_reopen()
        else:
            self._stop()

    def _stop(self) -> None:
        """End every run and then this process; outcomes stay on disk for the next stage."""
        self._log.say(f"told to stop, {len(self._running)} runs are ended")
        self._stopping = True
        for run in list(self._running.values()):
            run.kill("the stage was stopped")

    def _after_turn(self) -> None:
        for connection in list(self._connections):
            connection.flush()
        if self._stopping and not self._running:
            self._sync()
            self.loop.stop()

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
        for (owner, seq), kept in self._done.items():
            if owner == journal:
                runs[str(seq)] = {"state": "done", "outcome": kept.outcome}
                body += kept.body
        for (owner, seq), run in self._running.items():
            if owner == journal:
                runs[str(seq)] = {"state": "running", "pid": run.pid, "started_at": run.started_at}
        runs |= {str(seq): {"state": "running"} for owner, seq in self._unswept if owner == journal}
        runs |= {str(seq): {"state": "swept"} for owner, seq in self._swept if owner == journal}
        answer = {"type": "stage", "boot": self._boot, "pid": os.getpid(), "version": VERSION, "runs": runs}
        connection.send(answer, bytes(body))
        self._log.say(f"player connected, journal {journal}, {len(runs)} runs known")

    def _tell(self, key: Key, message: Message) -> None:
        if listener := self._listener(key[0]):
            listener.send({**message, "seq": key[1]})

    def _listener(self, journal: str) -> Connection | None:
        """The player with this journal, if it is connected."""
        return next((one for one in self._connections if one.journal == journal), None)

    # ---- performing

    def _perform(self, connection: Connection, message: Message) -> None:
        key = _key(connection, message)
        order = order_in(message)
        try:
            self._directory(key).create()
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
            self._start(key, order)
        except (NotStarted, UnfitScore) as refused:
            self._refuse(key, order["score"], refused.sentence)
        except OSError as trouble:
            self._refuse(key, order["score"], f"score {order['score']} cannot be read: {trouble}")

    def _start(self, key: Key, order: Message) -> None:
        score = self._fit_score(order)
        who = self._users.identity(score.rules)
        mark = _mark(key)
        env = {MARK: mark, "PATH": score.rules.path, "LANG": "C.UTF-8", "HOME": who.home}
        env |= environment(order["params"])
        env |= {
            "ORCHESTRA_JOB": str(order["job"]),
            "ORCHESTRA_PLAYER": order["player"],
            "ORCHESTRA_ATTEMPT": str(order["attempt"]),
            "ORCHESTRA_SCORE": score.name,
            "ORCHESTRA_DRY_RUN": "0",
        }
        process = launch(score, who, env, self._null)
        self._keep_leader(key, process)
        try:
            run = Run(self._house, key[1], mark, score.rules, score.digest, process)
        except OSError as trouble:  # it runs and cannot be watched: it is swept away, and lost
            self._log.say(f"run {key[1]} of {score.name} cannot be watched: {trouble.strerror}")
            self._unswept[key] = self._directory(key).leader()
            self.loop.later(0, self._sweep_again)
            return
        self._running[key] = run
        self._keys[run.pid] = key
        self._tell(key, {"type": "started", "pid": run.pid, "at": run.started_at})
        self._log.say(f"run {key[1]} of {score.name}: started, pid {run.pid}")

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
        if order["digest"] and order["digest"] != score.digest:
            reason = (
                f"score {name} is not what was asked for: its digest is {score.digest[:12]}, not {order['digest'][:12]}"
            )
            raise NotStarted(reason=reason)
        if wrong := problem(order["params"]):
            raise NotStarted(reason=wrong)
        return score

    def _keep_leader(self, key: Key, process: Launched) -> None:
        leader = Leader(process.pid, start_of(process.pid), self._boot, self._cgroup)
        try:
            self._directory(key).write_leader(leader)
        except OSError as trouble:  # the mark is enough to find it
            self._log.say(f"run {key[1]}: its process is not recorded: {trouble.strerror}")

    def _refuse(self, key: Key, score: str, reason: str) -> None:
        self._keep(key, done(refusal(reason)))
        self._tell(key, {"type": "refused", "reason": reason})
        self._log.say(f"run {key[1]} of {score}: refused: {reason}")

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

    def _ended(self, run: Run, ended: Ended) -> None:
        key = _key_of(run.mark)
        del self._running[key]
        outcome = ended.outcome
        self._keep_output(key, ended)
        kept = done(outcome, ended.body)
        self._keep(key, kept)
        self._tell_end(key, kept)
        how = f"signal {outcome['signal']}" if outcome["signal"] else f"exit status {outcome['rc']}"
        self._log.say(f"run {run.seq}: {outcome['told']}, {how}, {outcome['ended_at'] - outcome['started_at']} ms")

    def _tell_end(self, key: Key, kept: Done) -> None:
        if listener := self._listener(key[0]):
            listener.send_text(f'{{"type":"ended","seq":{key[1]},"outcome":{kept.text}}}', kept.body)

    def _keep_output(self, key: Key, ended: Ended) -> None:
        """Long output is on disk before the outcome that speaks of it; where it cannot be, the outcome says so."""
        try:
            for stream, data in ended.long_output.items():
                self._directory(key).write_output(stream, data)
        except OSError as trouble:
            outcome = ended.outcome
            outcome["notes"].append(f"the output could not be kept: {trouble.strerror}")
            outcome["stdout"]["spans"], outcome["stderr"]["spans"] = [], []
            outcome["inline"] = True

    def _keep(self, key: Key, kept: Done) -> None:
        """Have it on disk, lazily: synced at once only if no daemon hears of it."""
        self._done[key] = kept
        self._unwritten.add(key)
        self._write(key)
        self._unsynced.add(key)
        if self._listener(key[0]):
            self._plan_sync()
        else:
            self._sync()

    def _write(self, key: Key) -> None:
        try:
            self._directory(key).write_done(self._done[key])
            self._unwritten.discard(key)
        except OSError as trouble:
            self._log.say(f"run {key[1]}: its outcome is not on disk yet: {trouble.strerror}")

    def _plan_sync(self) -> None:
        if self._unsynced and not self._sync_due:
            self._sync_due = True
            self.loop.later(SYNC_AFTER, self._sync_later)

    def _sync_later(self) -> None:
        self._sync_due = False
        self._sync()
        self._log.check_size()

    def _sync(self) -> None:
        """What nobody has taken over yet outlives a power failure from here on. A failed sync is not tried again."""
        for key in list(self._unwritten):
            self._write(key)
        ready, self._unsynced = self._unsynced - self._unwritten, set(self._unwritten)
        try:
            sync_group(self._directory(key) for key in ready)
        except OSError as trouble:
            self._log.say(f"outcomes may not outlive a power failure: {trouble.strerror}")
        self._plan_sync()

    def _alarm(self, run: Run, reason: str) -> None:
        self._tell(_key_of(run.mark), {"type": "alarm", "reason": reason})
        self._log.say(f"run {run.seq}: {reason}")

    # ---- what is kept

    def _forget(self, connection: Connection, message: Message) -> None:
        for seq in a_list(message.get("seqs")):
            key = connection.journal or "", a_number(seq)
            if self._done.pop(key, None) is None and key not in self._swept:
                continue
            for runs in (self._swept, self._unsynced, self._unwritten):
                runs.discard(key)
            try:
                self._directory(key).remove()
            except OSError as trouble:
                self._log.say(f"run {seq} cannot be removed: {trouble}")

    def _fetch(self, connection: Connection, message: Message) -> None:
        key, stream, offset = (
            _key(connection, message),
            a_number(message.get("stream")),
            a_number(message.get("offset"), 0),
        )
        size = min(a_number(message.get("size")), _MOST_FETCHED)
        kept = self._done.get(key)
        data = self._piece(key, kept, stream, offset, size) if kept else b""
        answer = {"type": "piece", "seq": key[1], "stream": stream, "offset": offset, "gone": not data}
        connection.send(answer, data)

    def _piece(self, key: Key, kept: Done, stream: int, offset: int, size: int) -> bytes:
        """Kept bytes of a stream from its true ``offset`` on, at most to the end of that span."""
        streams = [kept.outcome.get(name, {}).get("spans", []) for name in ("stdout", "stderr")]
        position = 0
        for start, length in streams[stream - 1] if stream in (1, 2) else []:
            if start <= offset < start + length:
                position, size = position + offset - start, min(size, start + length - offset)
                if not kept.outcome["inline"]:
                    return self._directory(key).read_output(stream, position, size)
                position += sum(length for _, length in streams[0]) if stream == 2 else 0
                return kept.body[position : position + size]
            position += length
        return b""

    def _upgrade(self, connection: Connection, message: Message) -> None:
        reason = "this stage cannot be replaced while it runs; stop it when it is idle and start the new one"
        connection.send({"type": "upgraded", "version": VERSION, "reason": reason})

    def _directory(self, key: Key) -> RunDirectory:
        return RunDirectory(self._options.dir, *key)

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


# ---- the process


def _lock(directory: str) -> int:
    """The lock of the directory. Close-on-exec: who holds it knows that every child of a dead stage has exec'ed."""
    path = os.path.join(directory, "lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    patience = time.monotonic() + 1.0  # a child of a dead stage may be about to exec
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > patience:
                raise AlreadyRunning(what="stage", path=directory) from None
            time.sleep(0.05)


def _listen(path: str, owner: int | None) -> socket.socket:
    """The socket, for root and the player's user only."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if _answers(path):
            raise AlreadyRunning(what="stage", path=path)
        if os.path.lexists(path):
            os.unlink(path)
        listener.bind(path)
        os.chmod(path, 0o600)
        if owner is not None and os.geteuid() == 0:
            os.chown(path, owner, -1)
        listener.listen(16)
    except OSError as trouble:
        raise StageNotStarted(problem=f"its socket {path} cannot be made: {trouble.strerror or trouble}") from None
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(path) in (0, errno.EAGAIN)


def _open_stage(options: argparse.Namespace) -> tuple[Stage, socket.socket]:
    """A stage that is ready to serve, alone in its directory."""
    if os.geteuid() == 0 and not options.score_user:
        raise ScoreUserMissing()
    os.umask(0o077)
    try:
        os.makedirs(os.path.join(options.dir, "runs"), exist_ok=True)
        options.lock = _lock(options.dir)
        log = Log(options.log)
    except OSError as trouble:
        raise StageNotStarted(problem=f"{trouble.filename}: {trouble.strerror}") from None
    _plain_signals()
    os.chdir("/")
    stage = Stage(options, log)
    stage.recover()
    return stage, _listen(options.socket, options.player_uid)


def _plain_signals() -> None:
    """Undo what a shell or nohup may have set; scores would inherit it."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _detach(options: argparse.Namespace) -> int:
    """Go on as nobody's child; the process that was started returns when the stage is ready, or with its complaint."""
    inlet, outlet = os.pipe()
    if os.fork():
        os.close(outlet)
        with open(inlet, encoding="utf-8") as verdict:
            status, _, words = verdict.read().partition(" ")
        if words:
            print(words, file=sys.stderr)
        return int(status) if status else os.EX_SOFTWARE
    os.close(inlet)
    os.setsid()
    if os.fork():
        os._exit(0)
    _serve_detached(options, outlet)


def _serve_detached(options: argparse.Namespace, outlet: int) -> NoReturn:
    status = os.EX_SOFTWARE
    try:
        stage, listener = _open_stage(options)
        null = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            os.dup2(null, handle)
        os.write(outlet, b"0 ")
        os.close(outlet)
        stage.serve(listener)
        status = 0
    except OrchestraError as wrong:
        status = wrong.status
        os.write(outlet, f"{status} {wrong.sentence}".encode())
    finally:
        os._exit(status)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stage", description="The stage on which a player's scores are performed.")
    parser.add_argument("--check", action="store_true", help="only see whether this program loads")
    parser.add_argument("--socket", type=os.path.abspath, help="where the player finds it")
    parser.add_argument("--dir", type=os.path.abspath, help="where it keeps what it knows about runs")
    parser.add_argument("--scores", type=os.path.abspath, help="the directory of the scores")
    parser.add_argument("--score-user", help="as whom scores run that name no user; needed if this runs as root")
    parser.add_argument("--player-uid", type=int, help="the player's user, who may ask for scores beside root")
    parser.add_argument("--log", type=os.path.abspath, help="a log file; stderr without")
    parser.add_argument("--detach", action="store_true", help="go on in the background once it is ready")
    options = parser.parse_args(arguments)
    if not options.check and not (options.socket and options.dir and options.scores):
        parser.error("--socket, --dir and --scores are needed")
    return options


def main(arguments: list[str]) -> int:
    options = _options(arguments)
    if options.check:
        print("ok")
        return 0
    if options.detach:
        return _detach(options)
    try:
        stage, listener = _open_stage(options)
    except OrchestraError as wrong:
        print(wrong.sentence, file=sys.stderr)
        return wrong.status
    stage.serve(listener)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
