"""The stage's files about runs: ``runs/JOURNAL/SEQ`` says that a run was begun, ``SEQ.done`` how it ended.

No directory for each run: it would be a block of the disk each time, and some file systems wait for the disk when they
give one back. A record is written beside, renamed and not synced: who calls decides when :func:`sync` is due. A record
whose checksum is wrong counts as none. Standard library only.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from orchestra.player.frames import BadFrame, Frames, pack, to_json
from orchestra.player.sweep import Leader

Outcome = dict[str, Any]

_STREAMS: Final = {1: "stdout", 2: "stderr"}
_FILES: Final = (".leader", ".done", ".stdout", ".stderr", ".done.new", "")  # the last to go says that it was begun
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
        self.path = f"{self._above}/{seq}"

    def create(self) -> None:
        """Begin the run; FileExistsError if it was begun before."""
        try:
            _create(self.path)
        except FileNotFoundError:
            os.makedirs(self._above, exist_ok=True)
            _sync(os.path.dirname(self._above))
            _create(self.path)

    def write_leader(self, leader: Leader) -> None:
        """Keep who the first process is, for the sweep of a successor."""
        # the text of a symbolic link: whole or not there, in one system call
        os.symlink(" ".join(map(str, leader)), f"{self.path}.leader")

    def leader(self) -> Leader | None:
        try:
            pid, start, boot, cgroup = os.readlink(f"{self.path}.leader").split(" ")
            return Leader(int(pid), int(start), boot, cgroup)
        except (OSError, ValueError):
            return None

    def write_output(self, stream: int, data: bytes) -> None:
        """Keep the output of a stream; it is on disk when this returns."""
        _write(f"{self.path}.{_STREAMS[stream]}", data, synced=True)

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
        _write(f"{self._record}.new", zlib.crc32(frame).to_bytes(4, "big") + frame)
        os.rename(f"{self._record}.new", self._record)

    def done(self) -> Done | None:
        """How the run ended, or None if that is not, or not readably, on disk."""
        try:
            with open(self._record, "rb") as file:
                raw = file.read()
            if zlib.crc32(raw[4:]).to_bytes(4, "big") != raw[:4]:
                return None
            [(text, body)] = Frames(_MOST).feed(raw[4:])
            return Done(json.loads(text), text.decode(), body)
        except (OSError, ValueError, BadFrame):
            return None

    def sync(self) -> None:
        """Have the record outlive a power failure, as soon as the directory above is synced too."""
        _sync(self._record)

    def sync_above(self) -> None:
        _sync(self._above)

    def remove(self) -> None:
        """Forget the run."""
        for ending in _FILES:
            _unlink(self.path + ending)

    @property
    def _record(self) -> str:
        return f"{self.path}.done"


def every_run(root: str) -> Iterator[tuple[str, int]]:
    """The (journal, seq) of every run that was begun and is not forgotten, whichever of its files there are."""
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


def _create(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _write(path: str, data: bytes, synced: bool = False) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(handle, left) :]
        if synced:
            os.fsync(handle)
    finally:
        os.close(handle)


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
