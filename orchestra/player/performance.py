"""One run on the stage: started, read, ended in time, and its outcome written down. Standard library only.

The stage's loop owns the clock, the selector and the connection; here is what concerns a single run, and the record
that its directory keeps: ``leader`` while it runs, ``done`` afterwards, ``out`` and ``err`` when much was kept.
"""

import grp
import json
import os
import pwd
import signal
import subprocess
import zlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from orchestra import parameters
from orchestra.player import sweep
from orchestra.player.frames import INLINE
from orchestra.player.scorefile import ScoreFile
from orchestra.player.streams import Answers, Kept

CHUNK: Final = 1 << 16
DRAIN: Final = 64  # chunks read at most when the run is over
OUTPUT_FILES: Final = {1: "out", 2: "err"}


class Refused(Exception):
    """It was not started; str() says why."""


class Identity(NamedTuple):
    """Whom a run runs as; ``switch`` holds the arguments for Popen when that is not us."""

    home: str
    switch: dict[str, Any]


class Request(NamedTuple):
    """What the player asks for: who it is for, not how it is done."""

    journal: str
    seq: int
    job: int
    task: int
    attempt: int
    score: str
    params: Mapping[str, str]
    player: str

    @property
    def mark(self) -> str:
        return f"{self.journal}:{self.seq}"


def identity(score: ScoreFile, score_user: str) -> Identity:
    """The user a score runs as: its own, or the stage's ``score_user``, or whoever we are."""
    wanted = score.rules.user or score_user
    try:
        account = pwd.getpwnam(wanted) if wanted else pwd.getpwuid(os.geteuid())
        gid = grp.getgrnam(score.rules.group).gr_gid if score.rules.group else account.pw_gid
    except KeyError:
        who = wanted or f"with number {os.geteuid()}"
        group = f" or group {score.rules.group}" if score.rules.group else ""
        raise Refused(f"{score.path}: this machine has no user {who}{group}") from None
    if account.pw_uid == os.geteuid() and gid == os.getegid():
        return Identity(account.pw_dir, {})
    if os.geteuid() != 0:
        raise Refused(f"{score.path}: to run as {account.pw_name}, the stage has to run as root, and it does not")
    groups = os.getgrouplist(account.pw_name, gid)
    return Identity(account.pw_dir, {"user": account.pw_uid, "group": gid, "extra_groups": groups})


class Performance:
    """A run that was started, until its outcome is written."""

    def __init__(self, request: Request, score: ScoreFile, directory: str) -> None:
        self.request = request
        self.score = score
        self.directory = directory
        self.pid = 0
        self.started_at = 0
        self.pipes: dict[int, int] = {}  # descriptor -> stream number
        self.killing = ""  # why it is being ended
        self.hard = False  # SIGKILL was sent
        self.over = False
        self._notes: list[str] = []
        self._kept = {1: Kept(score.rules.output_limit), 2: Kept(score.rules.output_limit)}
        self._answers = Answers(self._kept[1]) if score.rules.interface == "pipe" else None

    def start(self, score_user: str, now: int) -> None:
        """Fork and exec; Refused if that cannot be done."""
        who = identity(self.score, score_user)
        pairs = {1: os.pipe2(os.O_CLOEXEC), 2: os.pipe2(os.O_CLOEXEC)}
        try:
            process = self._spawn(who, pairs[1][1], pairs[2][1])
        except BaseException as problem:
            for read, _ in pairs.values():
                os.close(read)
            if isinstance(problem, (OSError, subprocess.SubprocessError, ValueError)):
                raise Refused(f"{self.score.path} could not be started: {_reason(problem, self.score)}") from None
            raise
        finally:
            for _, write in pairs.values():
                os.close(write)
        process.returncode = 0  # the stage reaps, Popen is not to try
        self.pid, self.started_at = process.pid, now
        for stream, (read, _) in pairs.items():
            os.set_blocking(read, False)
            self.pipes[read] = stream
        self._record_leader()

    def _spawn(self, who: Identity, out: int, err: int) -> "subprocess.Popen[bytes]":
        rules = self.score.rules
        return subprocess.Popen(
            [self.score.path],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=rules.dir,
            umask=rules.umask,
            env=self._environment(who.home),
            start_new_session=True,
            close_fds=True,
            **who.switch,
        )

    def _environment(self, home: str) -> dict[str, str]:
        request = self.request
        return {
            **parameters.environment(request.params),
            "PATH": self.score.rules.path,
            "LANG": "C.UTF-8",
            "HOME": home,
            sweep.MARK: request.mark,
            "ORCHESTRA_JOB": str(request.job),
            "ORCHESTRA_PLAYER": request.player,
            "ORCHESTRA_ATTEMPT": str(request.attempt),
            "ORCHESTRA_SCORE": request.score,
            "ORCHESTRA_DRY_RUN": "0",
        }

    def _record_leader(self) -> None:
        leader = sweep.Leader(self.pid, sweep.start_of(self.pid), sweep.boot_id(), sweep.cgroup_of(self.pid))
        with open(os.path.join(self.directory, "leader"), "w") as file:
            json.dump(leader, file)

    # ---- output

    def read(self, descriptor: int) -> bool:
        """Take what a pipe has; False when it is at its end."""
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            return False
        if not self.over:
            self._feed(self.pipes[descriptor], data)
        return True

    def _feed(self, stream: int, data: bytes) -> None:
        if stream == 1 and self._answers is not None:
            self._answers.feed(data)
        else:
            self._kept[stream].feed(data)

    def _drain(self) -> None:
        for descriptor, stream in self.pipes.items():
            for _ in range(DRAIN):
                try:
                    data = os.read(descriptor, CHUNK)
                except BlockingIOError:
                    break
                if not data:
                    break
                self._feed(stream, data)

    # ---- the end

    def signal(self, number: int) -> None:
        """Send a signal to its whole process group, and, the hard way, to whatever of it has left the group."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            pass
        if number == signal.SIGKILL:
            self.hard = True
            for process in sweep.of_run(sweep.scan(), self.request.mark, self.pid):
                sweep.strike(process, number)

    def finish(self, status: int, cpu_ms: int, now: int) -> "Record":
        """The leader has ended with wait status ``status``: the outcome. Pipes that are still held are only emptied."""
        self._drain()
        self.over = True
        if self._answers is not None:
            self._answers.close()
            if self._answers.cut:
                self._notes.append("the response was cut at 64 KiB")
        else:
            self._kept[1].close()
        self._kept[2].close()
        if self.killing:
            self.signal(signal.SIGKILL)
        elif self._group_lives():
            self._notes.append("it left at least one process behind in its process group")
        code = os.waitstatus_to_exitcode(status)
        told = "killed" if self.killing else ("ok" if code == 0 else "failed")
        return Record(
            {
                **_who(self.request),
                "told": told,
                "reason": self.killing or _why_failed(code),
                "rc": code if code >= 0 else None,
                "signal": -code if code < 0 else None,
                "started_at": self.started_at,
                "ended_at": now,
                "digest": self.score.digest,
                "response": self._answers.response if self._answers is not None else None,
                "notes": self._notes,
                "cpu_ms": cpu_ms,
            },
            {number: (kept.total, kept.sha256, kept.spans, kept.data) for number, kept in self._kept.items()},
        )

    def _group_lives(self) -> bool:
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


class Record:
    """An outcome: what is told of a run, and the bytes that go with it when they are few."""

    def __init__(self, fields: dict[str, Any], streams: Mapping[int, tuple[int, str, Any, bytes]]) -> None:
        few = sum(len(data) for *_, data in streams.values()) <= INLINE
        self.fields = dict(fields)
        self.large = {} if few else {number: data for number, (*_, data) in streams.items()}
        self.body = b"".join(streams[number][3] for number in sorted(streams)) if few else b""
        for number, (total, sha256, spans, data) in streams.items():
            name = "stdout" if number == 1 else "stderr"
            inline = len(data) if few else None
            self.fields[name] = {"total": total, "sha256": sha256, "spans": spans, "inline": inline}

    def write(self, directory: str) -> None:
        """Put it into the run's directory: much output on disk for certain, the rest for now only in the cache."""
        for number, data in self.large.items():
            path = os.path.join(directory, OUTPUT_FILES[number])
            with open(path, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        text = json.dumps(self.fields).encode()
        rest = text + self.body
        temporary = os.path.join(directory, "done.new")
        with open(temporary, "wb") as file:
            file.write(b"%08x %d\n" % (zlib.crc32(rest), len(text)) + rest)
        os.rename(temporary, os.path.join(directory, "done"))


def read_record(directory: str) -> tuple[dict[str, Any], bytes] | None:
    """The outcome in a run's directory, and its few bytes; None if there is none that can be believed."""
    try:
        with open(os.path.join(directory, "done"), "rb") as file:
            head, rest = file.readline().split(), file.read()
        crc, length = int(head[0], 16), int(head[1])
        if zlib.crc32(rest) != crc:
            return None
        return json.loads(rest[:length]), rest[length:]
    except (OSError, ValueError, IndexError):
        return None


def sync(directory: str) -> None:
    """Have the outcome in ``directory`` survive a loss of power."""
    for path in (os.path.join(directory, "done"), directory):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def refusal(request: Request, reason: str, now: int) -> Record:
    """The outcome of a run that was not started."""
    nothing = (0, None, [], b"")
    fields = {**_who(request), "told": "refused", "reason": reason, "ended_at": now}
    return Record(fields, {1: nothing, 2: nothing})  # type: ignore[dict-item]  # no stream, no digest


def _who(request: Request) -> dict[str, Any]:
    return {"seq": request.seq, "job": request.job, "task": request.task, "attempt": request.attempt}


def _why_failed(code: int) -> str:
    if code >= 0:
        return ""
    try:
        return f"it was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"it was ended by signal {-code}"


def _reason(problem: BaseException, score: ScoreFile) -> str:
    if isinstance(problem, FileNotFoundError):
        if not os.path.isdir(score.rules.dir):
            return f"its directory {score.rules.dir} does not exist"
        return "the file, or the interpreter its first line names, does not exist"
    if isinstance(problem, OSError):
        return os.strerror(problem.errno or 0)
    return str(problem)
