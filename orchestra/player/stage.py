"""The stage: the small process on which scores are performed. Run by file path, with the standard library only.

It starts scores, reads what they write, ends them in time, and keeps each outcome until the player has it. It outlives
the player daemon, so that stopping or killing that neither ends a run nor loses its outcome. Where it runs as root it
is the privilege wall: it takes the name of a score and parameters, never a path or a user, and reads both from disk.

A run is started when ``runs/JOURNAL/SEQ`` is made, just before the fork; what has a directory is never started again.
What :mod:`orchestra.player.frames` draws is spoken on the socket.
"""

import argparse
import contextlib
import errno
import fcntl
import heapq
import json
import os
import selectors
import shutil
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, Final

if __name__ == "__main__":  # -I leaves the path to the standard library alone
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from orchestra import parameters
from orchestra.errors import EX_CONFIG, AlreadyRunning, OrchestraError, ScoreUserMissing, StageNotStarted, UnfitScore
from orchestra.player import performance, scorefile, sweep
from orchestra.player.frames import MOST_TO_STAGE, VERSION, BadFrame, Frames, encode
from orchestra.player.performance import Performance, Record, Refused, Request

LAZY: Final = 1.0  # seconds after which an outcome nobody has forgotten is synced
UNKILLABLE: Final = 10.0
SWEEP_PAUSE: Final = 0.1
PIECE_MOST: Final = 1 << 18
LOG_MOST: Final = 10 << 20
Key = tuple[str, int]  # journal, seq


class Done:
    """An outcome that the player has not told us to forget."""

    def __init__(self, fields: dict[str, Any], body: bytes) -> None:
        self.fields = fields
        self.body = body


class Guest:
    """The player's connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.frames = Frames(MOST_TO_STAGE)
        self.journal = ""
        self.pending = bytearray()


class Stage:
    """The loop: one thread, no waiting but in the selector."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._runs: dict[Key, Performance | Done | None] = {}  # None: had started, and nothing of it lives
        self._by_pid: dict[int, Performance] = {}
        self._scores: dict[str, scorefile.ScoreFile] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_count = 0
        self._unsynced: list[Key] = []
        self._guest: Guest | None = None
        self._lonely_since = time.monotonic()
        self._going = True
        self._selector = selectors.DefaultSelector()
        self._trusted = {0, os.geteuid(), options.player_uid}

    # ---- before the first guest

    def prepare(self) -> None:
        """Lock, sweep what a dead stage left running, read its outcomes, listen."""
        os.makedirs(os.path.join(self._options.dir, "runs"), mode=0o700, exist_ok=True)
        self._lock = os.open(os.path.join(self._options.dir, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise AlreadyRunning(what="stage", path=self._options.dir) from None
        self._sweep()
        self._listen()

    def _sweep(self) -> None:
        unfinished: dict[str, sweep.Leader | None] = {}
        for journal in sorted(os.listdir(os.path.join(self._options.dir, "runs"))):
            for name in os.listdir(os.path.join(self._options.dir, "runs", journal)):
                if not name.isdigit():
                    continue
                directory = self._directory((journal, int(name)))
                found = performance.read_record(directory)
                self._runs[journal, int(name)] = Done(*found) if found else None
                if found is None:
                    unfinished[f"{journal}:{name}"] = _leader(directory)
        clean = 0 if unfinished else 2
        while clean < 2:
            left = sweep.leftovers(sweep.scan(), unfinished)
            for process in (process for processes in left.values() for process in processes):
                sweep.strike(process, signal.SIGKILL)
            clean = 0 if left else clean + 1
            time.sleep(SWEEP_PAUSE)
        for mark in unfinished:
            say(f"run {mark} had started under a stage that died; nothing of it is left")

    def _listen(self) -> None:
        path = self._options.socket
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        self._door = socket.socket(socket.AF_UNIX)
        before = os.umask(0o177)
        try:
            self._door.bind(path)
        except OSError as problem:
            raise StageNotStarted(
                problem=f"its socket {path} cannot be made: {os.strerror(problem.errno or 0)}"
            ) from None
        finally:
            os.umask(before)
        if os.geteuid() == 0 and self._options.player_uid:
            os.chown(path, self._options.player_uid, -1)
        self._door.listen(8)
        self._door.setblocking(False)

    # ---- the loop

    def run(self) -> None:
        """Until told to stop."""
        wake, poke = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(poke)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._selector.register(wake, selectors.EVENT_READ, lambda: self._woken(wake))
        self._selector.register(self._door, selectors.EVENT_READ, self._accept)
        self._reap()
        while self._going:
            for key, _ in self._selector.select(self._patience()):
                if key.fileobj in self._selector.get_map():
                    key.data()
            self._due()
        self._sync_all()
        os.unlink(self._options.socket)

    def _patience(self) -> float | None:
        linger = self._options.linger
        waits = [self._timers[0][0]] if self._timers else []
        if linger and self._guest is None and not self._by_pid:
            waits.append(self._lonely_since + linger)
        return max(0.0, min(waits) - time.monotonic()) if waits else None

    def _due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        linger = self._options.linger
        if linger and self._guest is None and not self._by_pid and now >= self._lonely_since + linger:
            self._going = False

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (time.monotonic() + seconds, self._timer_count, action))

    def _woken(self, wake: int) -> None:
        signals = os.read(wake, 4096)
        if signal.SIGTERM in signals or signal.SIGINT in signals:
            self._stop()
        self._reap()

    def _stop(self) -> None:
        """End what runs, then end: a stage that is stopped leaves nothing running and says so of each run."""
        say("told to stop")
        if not self._by_pid:
            self._going = False
        for run in list(self._by_pid.values()):
            self._kill(run, "the stage was stopped")
            self._after(run.score.rules.kill_grace / 1000 + UNKILLABLE, self._stop_now)

    def _stop_now(self) -> None:
        self._going = False

    # ---- the player

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = self._door.accept()
            uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid not in self._trusted:
                connection.close()
                say(f"user {uid} is not our player: turned away")
                return
            # what an older connection has sent and we have not started is void before this one is answered
            self._leave()
            connection.setblocking(False)
            self._guest = Guest(connection)
            self._selector.register(connection, selectors.EVENT_READ, self._hear)

    def _leave(self) -> None:
        guest, self._guest = self._guest, None
        if guest is not None:
            self._selector.unregister(guest.connection)
            guest.connection.close()
            self._lonely_since = time.monotonic()
            self._sync_all()

    def _hear(self) -> None:
        guest = self._guest
        if guest is None:
            return
        try:
            data = guest.connection.recv(1 << 18)
        except BlockingIOError:
            data = None
        except OSError:
            data = b""
        if data == b"":
            self._leave()
            return
        self._flush(guest)
        try:
            for text, _ in guest.frames.feed(data or b""):
                if self._guest is guest:
                    self._obey(guest, json.loads(text))
        except (BadFrame, ValueError, KeyError, TypeError) as problem:
            say(f"the player said what cannot be understood ({type(problem).__name__}): its connection is closed")
            self._leave()

    def _obey(self, guest: Guest, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "hello":
            guest.journal = _journal(message["journal"])
            self._forget_others(guest.journal)
            self._introduce(guest)
        elif not guest.journal:
            raise BadFrame("hello comes first")
        elif kind == "perform":
            self._perform(guest, message)
        elif kind == "kill":
            run = self._runs.get((guest.journal, int(message["seq"])))
            if isinstance(run, Performance) and not run.killing:
                self._kill(run, str(message["reason"]))
        elif kind == "forget":
            for seq in message["seqs"]:
                self._forget((guest.journal, int(seq)))
        elif kind == "fetch":
            self._fetch(guest, message)
        else:
            raise BadFrame(f"unknown message {kind}")

    def _introduce(self, guest: Guest) -> None:
        runs: dict[str, dict[str, Any]] = {}
        body = b""
        for (journal, seq), run in sorted(self._runs.items(), key=lambda item: item[0]):
            if journal != guest.journal:
                continue
            if isinstance(run, Performance):
                runs[str(seq)] = {"state": "running", "pid": run.pid, "started_at": run.started_at}
            elif run is None:
                runs[str(seq)] = {"state": "swept"}
            else:
                runs[str(seq)] = {"state": "done", "outcome": run.fields}
                body += run.body
        about = {"type": "stage", "boot": sweep.boot_id(), "pid": os.getpid(), "version": VERSION, "runs": runs}
        self._say(about, body)

    def _say(self, message: dict[str, Any], body: bytes = b"") -> None:
        guest = self._guest
        if guest is not None:
            guest.pending += encode(message, body)
            self._flush(guest)

    def _flush(self, guest: Guest) -> None:
        try:
            while guest.pending:
                sent = guest.connection.send(guest.pending)
                del guest.pending[:sent]
        except BlockingIOError:
            pass
        except OSError:
            if self._guest is guest:
                self._leave()
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if guest.pending else 0)
        if self._guest is guest:
            self._selector.modify(guest.connection, events, self._hear)

    # ---- runs

    def _directory(self, key: Key) -> str:
        return os.path.join(self._options.dir, "runs", key[0], str(key[1]))

    def _perform(self, guest: Guest, message: dict[str, Any]) -> None:
        params = {str(name): str(value) for name, value in message["params"].items()}
        request = Request(
            guest.journal,
            int(message["seq"]),
            int(message["job"]),
            int(message["task"]),
            int(message["attempt"]),
            str(message["score"]),
            params,
            str(message["player"]),
        )
        key = (request.journal, request.seq)
        directory = self._directory(key)
        try:
            os.makedirs(directory, mode=0o700)
        except FileExistsError:
            say(f"run {request.mark} was asked for a second time; it is not started again")
            return
        except OSError as problem:
            reason = f"the stage cannot write {self._options.dir}: {os.strerror(problem.errno or 0)}"
            self._say({"type": "refused", "seq": request.seq, "reason": reason})
            return
        try:
            score = self._fit(request, str(message.get("digest", "")))
            run = Performance(request, score, directory)
            run.start(self._options.score_user, _now())
        except (Refused, UnfitScore) as problem:
            self._keep(key, performance.refusal(request, str(problem), _now()))
            self._say({"type": "refused", "seq": request.seq, "reason": str(problem)})
            return
        self._runs[key] = run
        self._by_pid[run.pid] = run
        for descriptor in run.pipes:
            self._selector.register(descriptor, selectors.EVENT_READ, lambda d=descriptor: self._read(run, d))
        limit = score.rules.timeout
        self._after(limit / 1000, lambda: self._overdue(run, limit))
        self._say({"type": "started", "seq": request.seq, "pid": run.pid, "at": run.started_at})

    def _fit(self, request: Request, digest: str) -> scorefile.ScoreFile:
        problem = parameters.problem(request.params)
        if problem:
            raise Refused(problem)
        known = self._scores.get(request.score)
        if known is None:
            known = scorefile.load(self._options.scores, request.score, self._trusted)
        score = self._scores[request.score] = scorefile.current(known, self._options.scores, self._trusted)
        if digest and digest != score.digest:
            raise Refused(f"{score.path} is not the one that was asked for")
        return score

    def _read(self, run: Performance, descriptor: int) -> None:
        if not run.read(descriptor):
            self._selector.unregister(descriptor)
            os.close(descriptor)
            del run.pipes[descriptor]

    def _reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            run = self._by_pid.pop(pid, None)
            if run is not None:
                self._ended(run, status, int((usage.ru_utime + usage.ru_stime) * 1000))

    def _ended(self, run: Performance, status: int, cpu_ms: int) -> None:
        key = (run.request.journal, run.request.seq)
        record = run.finish(status, cpu_ms, _now())
        self._lonely_since = time.monotonic()
        self._keep(key, record)
        guest = self._guest
        if guest is not None and guest.journal == key[0]:
            self._say({"type": "ended", "seq": key[1], "outcome": record.fields}, record.body)
        if not self._by_pid and any(timer[2] == self._stop_now for timer in self._timers):
            self._going = False

    def _keep(self, key: Key, record: Record) -> None:
        try:
            record.write(self._directory(key))
        except OSError as problem:
            say(f"the outcome of run {key[0]}:{key[1]} could not be written: {os.strerror(problem.errno or 0)}")
        self._runs[key] = Done(record.fields, record.body)
        self._unsynced.append(key)
        if self._guest is None:
            self._sync_all()
        elif len(self._unsynced) == 1:
            self._after(LAZY, self._sync_all)

    def _sync_all(self) -> None:
        waiting, self._unsynced = self._unsynced, []
        for key in waiting:
            if key in self._runs:
                with contextlib.suppress(OSError):
                    performance.sync(self._directory(key))

    def _overdue(self, run: Performance, limit: int) -> None:
        if not run.over and not run.killing:
            self._kill(run, f"it ran longer than its timeout of {_duration(limit)}")

    def _kill(self, run: Performance, reason: str) -> None:
        run.killing = reason
        run.signal(signal.SIGTERM)
        self._after(run.score.rules.kill_grace / 1000, lambda: self._kill_hard(run))

    def _kill_hard(self, run: Performance) -> None:
        if not run.over:
            run.signal(signal.SIGKILL)
            self._after(UNKILLABLE, lambda: self._alarm(run))

    def _alarm(self, run: Performance) -> None:
        if not run.over:
            say(f"run {run.request.mark} survives SIGKILL")
            self._say({"type": "alarm", "seq": run.request.seq, "reason": "unkillable"})

    def _forget(self, key: Key) -> None:
        run = self._runs.get(key)
        if not isinstance(run, Performance):
            self._runs.pop(key, None)
            shutil.rmtree(self._directory(key), ignore_errors=True)

    def _forget_others(self, journal: str) -> None:
        """Outcomes of a journal that is no more; nobody will ask for them."""
        for key in [key for key in self._runs if key[0] != journal]:
            self._forget(key)

    def _fetch(self, guest: Guest, message: dict[str, Any]) -> None:
        seq, stream, offset = int(message["seq"]), int(message["stream"]), int(message["offset"])
        size = min(int(message["size"]), PIECE_MOST)
        run = self._runs.get((guest.journal, seq))
        spans = run.fields["stdout" if stream == 1 else "stderr"]["spans"] if isinstance(run, Done) else []
        data = b""
        at = 0
        for start, length in spans:
            if start <= offset < start + length:
                path = os.path.join(self._directory((guest.journal, seq)), performance.OUTPUT_FILES[stream])
                with contextlib.suppress(OSError), open(path, "rb") as file:
                    file.seek(at + offset - start)
                    data = file.read(min(size, start + length - offset))
            at += length
        self._say({"type": "piece", "seq": seq, "stream": stream, "offset": offset, "gone": not data}, data)


def _leader(directory: str) -> sweep.Leader | None:
    try:
        with open(os.path.join(directory, "leader")) as file:
            return sweep.Leader(*json.load(file))
    except (OSError, ValueError, TypeError):
        return None


def _journal(value: object) -> str:
    text = str(value)
    if not text.isalnum() or len(text) > 64:
        raise BadFrame("a journal's id is letters and digits")
    return text


def _duration(milliseconds: int) -> str:
    seconds = milliseconds / 1000
    return f"{seconds:g} s"


def _now() -> int:
    return time.time_ns() // 1_000_000


def say(sentence: str) -> None:
    """One line in the log."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(OSError):
        if os.fstat(2).st_size > LOG_MOST and os.path.isfile("/proc/self/fd/2"):
            os.ftruncate(2, 0)
        os.write(2, f"{moment} [stage] {sentence}\n".encode("utf-8", "backslashreplace"))


def detach(log: str) -> None:
    """Go on without the one who started us: a session of our own, no terminal, the log as our output."""
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else null
    for target, source in ((0, null), (1, out), (2, out)):
        os.dup2(source, target)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="stage", description="Performs the scores of an Orchestra player.")
    parser.add_argument("--socket", required=True, help="where the player finds us")
    parser.add_argument("--dir", required=True, help="where outcomes are kept")
    parser.add_argument("--scores", required=True, help="the directory of the scores")
    parser.add_argument("--score-user", default="", help="the user scores run as; required where the stage is root")
    parser.add_argument("--player-uid", type=int, default=os.geteuid(), help="the user the player runs as")
    parser.add_argument("--log", default="", help="with --detach: the log file")
    parser.add_argument("--linger", type=float, default=0.0, help="end after so many seconds alone and idle; 0: never")
    parser.add_argument("--detach", action="store_true", help="go into the background when ready")
    parser.add_argument("--check", action="store_true", help="say that all is in place, and start nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Run a stage; the exit status is 78 for what its operator has to mend."""
    options = parse(arguments)
    try:
        if os.geteuid() == 0 and not options.score_user:
            raise ScoreUserMissing
        if options.check:
            print(f"stage {VERSION} ok")
            return 0
        stage = Stage(options)
        stage.prepare()
    except OrchestraError as problem:
        print(problem.sentence, file=sys.stderr)
        return EX_CONFIG
    except OSError as problem:
        reason = os.strerror(problem.errno or errno.EIO)
        print(f"The stage cannot use {problem.filename or options.dir}: {reason}.", file=sys.stderr)
        return EX_CONFIG
    if options.detach:
        detach(options.log)
    say("ready")
    stage.run()
    say("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
