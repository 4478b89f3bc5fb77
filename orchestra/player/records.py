"""The run directories of the stage: ``runs/JOURNAL/SEQ/`` says that a run was begun, ``done`` in it how it ended.

Standard library only. A record is written beside, renamed and not synced: who calls decides when :func:`sync` is due.
A record whose checksum is wrong counts as none.
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
_FILES: Final = ("leader", "done", "stdout", "stderr", "done.new")
_MOST: Final = 1 << 30


class Done(NamedTuple):
    """How a run ended, also as JSON, and its kept output if that is short."""

    outcome: Outcome
    text: str
    body: bytes


def done(outcome: Outcome, body: bytes = b"") -> Done:
    return Done(outcome, to_json(outcome), body)


class RunDirectory:
    """What is on disk about one run."""

    def __init__(self, root: str, journal: str, seq: int) -> None:
        self._above = f"{root}/runs/{journal}"
        self.path = f"{self._above}/{seq}"

    def create(self) -> None:
        """Begin the run; FileExistsError if it was begun before."""
        try:
            os.mkdir(self.path)
        except FileNotFoundError:
            os.makedirs(self._above, exist_ok=True)
            _sync(os.path.dirname(self._above))
            os.mkdir(self.path)

    def write_leader(self, leader: Leader) -> None:
        """Keep who the first process is, for the sweep of a successor."""
        # the text of a symbolic link: whole or not there, in one system call
        os.symlink(" ".join(map(str, leader)), f"{self.path}/leader")

    def leader(self) -> Leader | None:
        try:
            pid, start, boot, cgroup = os.readlink(f"{self.path}/leader").split(" ")
            return Leader(int(pid), int(start), boot, cgroup)
        except (OSError, ValueError):
            return None

    def write_output(self, stream: int, data: bytes) -> None:
        """Keep the output of a stream; it is on disk when this returns."""
        _write(f"{self.path}/{_STREAMS[stream]}", data, synced=True)

    def read_output(self, stream: int, position: int, size: int) -> bytes:
        """Kept bytes from ``position`` in the joined pieces; fewer, or none, if they are not there."""
        try:
            with open(f"{self.path}/{_STREAMS[stream]}", "rb") as file:
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
        _sync(self.path)

    def sync_above(self) -> None:
        _sync(self._above)

    def remove(self) -> None:
        """Forget the run."""
        for name in _FILES[:2]:
            _unlink(f"{self.path}/{name}")
        try:
            os.rmdir(self.path)
        except OSError:
            for name in _FILES[2:]:
                _unlink(f"{self.path}/{name}")
            os.rmdir(self.path)

    @property
    def _record(self) -> str:
        return f"{self.path}/done"


def every_run(root: str) -> Iterator[tuple[str, int]]:
    """The (journal, seq) of every run that was begun and is not forgotten."""
    above = os.path.join(root, "runs")
    for journal in _names(above):
        for name in _names(os.path.join(above, journal)):
            if name.isdecimal():
                yield journal, int(name)


def sync_group(directories: Iterable[RunDirectory]) -> None:
    """Sync several runs, and each directory above them once."""
    above = {}
    for directory in directories:
        directory.sync()
        above[os.path.dirname(directory.path)] = directory
    for directory in above.values():
        directory.sync_above()


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


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
