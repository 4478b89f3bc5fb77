"""The stage's files about runs: ``runs/JOURNAL/SEQ`` says that a run was begun, by whom, and how it ended.

That the file is there says that the run was begun; its beginning holds who the first process is, and the record of
the end is written behind that, in place: a file system may write a file out that another is renamed upon. Nothing is
synced here unasked: who calls decides when that is due. Only long output lies beside.

To make a file and to remove it is dear, so the file of a run that was forgotten is kept as a spare: the next run's
name is made a second one of it, which is as exclusive as to create it. What was in it bears the mark of another run and
counts as nothing, like a record whose checksum is wrong.

Once the file was empty, and a symbolic link ``SEQ.leader`` and a file ``SEQ.done`` lay beside it; a stage that was
upgraded still finds those. Standard library only.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from orchestra.player.frames import BadFrame, Frames, pack, to_json
from orchestra.player.sweep import Leader

Outcome = dict[str, Any]

Key = tuple[str, int]
"""A run: its player's journal, its number there."""

_STREAMS: Final = {1: "stdout", 2: "stderr"}
_BESIDE: Final = (".stdout", ".stderr", ".leader", ".done", ".done.new")
_RECORD_AT: Final = 256  # the room before it is the leader's
_MOST: Final = 1 << 30


class Done(NamedTuple):
    """How a run ended, also as JSON, and its kept output if that is short."""

    outcome: Outcome
    text: str
    body: bytes


def done(outcome: Outcome, body: bytes = b"") -> Done:
    return Done(outcome, to_json(outcome), body)


class RunFiles:
    """What is on disk about one run."""

    def __init__(self, root: str, journal: str, seq: int) -> None:
        self._above = f"{root}/runs/{journal}"
        self._mark = f"{journal}:{seq}".encode()
        self.path = f"{self._above}/{seq}"

    def create(self) -> int:
        """Begin the run; its file, open. FileExistsError if it was begun before."""
        try:
            return _create(self.path)
        except FileNotFoundError:
            os.makedirs(self._above, exist_ok=True)
            _sync(os.path.dirname(self._above))
            return _create(self.path)

    def begin_in(self, spare: str) -> int:
        """Begin the run in a file that is there already; the same."""
        handle = os.open(spare, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.link(spare, self.path)
        except OSError:
            os.close(handle)
            raise
        return handle

    def write_leader(self, file: int, leader: Leader) -> None:
        """Keep who the first process is, for the sweep of a successor, in the file with which the run was begun."""
        _write_at(file, b"%b %b\n" % (self._mark, " ".join(map(str, leader)).encode()), 0)

    def leader(self) -> Leader | None:
        """The first process of the run, if that was recorded."""
        line, end, _ = _read(self.path)[:_RECORD_AT].partition(b"\n")
        mark, _, words = line.partition(b" ")
        try:
            return _leader_in(words.decode() if end and mark == self._mark else os.readlink(f"{self.path}.leader"))
        except (OSError, ValueError):
            return None

    def write_output(self, stream: int, data: bytes) -> None:
        """Keep the output of a stream; it is on disk when this returns."""
        _write_synced(f"{self.path}.{_STREAMS[stream]}", data)

    def read_output(self, stream: int, position: int, size: int) -> bytes:
        """Kept bytes from ``position`` in the joined pieces; fewer, or none, if they are not there."""
        try:
            with open(f"{self.path}.{_STREAMS[stream]}", "rb") as file:
                file.seek(position)
                return file.read(size)
        except OSError:
            return b""

    def write_done(self, done: Done) -> None:
        """Keep how the run ended."""
        frame = pack(done.text.encode(), done.body)
        record = _checksum(frame, self._mark) + frame
        handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_at(handle, record, _RECORD_AT)
        finally:
            os.close(handle)

    def done(self) -> Done | None:
        """How the run ended, or None if that is not, or not readably, on disk."""
        return _done_in(_read(self.path)[_RECORD_AT:], self._mark) or _done_in(_read(f"{self.path}.done"), b"")

    def sync(self) -> None:
        """Have the record outlive a power failure, as soon as the directory above is synced too."""
        _sync(self.path)
        if os.path.exists(f"{self.path}.done"):
            _sync(f"{self.path}.done")

    def sync_above(self) -> None:
        _sync(self._above)

    def remove(self, alone: bool) -> None:
        """Forget the run. ``alone``: nothing lies beside its file, which is not looked for then."""
        for ending in () if alone else _BESIDE:
            _unlink(self.path + ending)
        _unlink(self.path)  # the last to go, for it says that the run was begun

    def become(self, spare: str) -> None:
        """Forget the run, whose file is all there is of it, and keep that under this name."""
        os.rename(self.path, spare)


def _leader_in(text: str) -> Leader:
    words = text.split(" ")
    if len(words) == 4:  # as a symbolic link had it: its start is known to the tick
        words.insert(1, words[1])
    pid, first, last, boot, cgroup = words
    return Leader(int(pid), int(first), int(last), boot, cgroup)


def every_run(root: str) -> Iterator[Key]:
    """Every run that was begun and is not forgotten, whichever of its files there are."""
    above = os.path.join(root, "runs")
    for journal in _names(above):
        begun = {name.partition(".")[0] for name in _names(os.path.join(above, journal))}
        yield from ((journal, int(seq)) for seq in begun if seq.isdecimal())


def sync_group(runs: Iterable[RunFiles]) -> None:
    """Sync several runs, and each directory above them once."""
    above = {}
    for files in runs:
        files.sync()
        above[os.path.dirname(files.path)] = files
    for files in above.values():
        files.sync_above()


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _checksum(frame: bytes, mark: bytes) -> bytes:
    return zlib.crc32(frame, zlib.crc32(mark)).to_bytes(4, "big")


def _done_in(raw: bytes, mark: bytes) -> Done | None:
    """The record, if it is whole and this run's; a longer one may have been there before."""
    frame = raw[4 : 8 + int.from_bytes(raw[4:8], "big")]
    try:
        if _checksum(frame, mark) != raw[:4]:
            return None
        [(text, body)] = Frames(_MOST).feed(frame)
        return Done(json.loads(text), text.decode(), body)
    except (ValueError, BadFrame):
        return None


def _read(path: str) -> bytes:
    """All of a file; nothing if it is not there or cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""


def _write_synced(path: str, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        _write_at(handle, data, 0)
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_at(handle: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(handle, left, at)
        left, at = left[written:], at + written


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
