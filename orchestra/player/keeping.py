"""What the stage keeps of runs that are over, until their player has it.

An outcome is on disk before anybody hears of it. That is not synced yet: the player will have it on its own disk soon,
and says so. What it has not taken over within a second, or what no player hears of, is synced here. What nobody waits
for, as the removal of what is forgotten, is done when that is asked for. Standard library only.
"""

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final

from orchestra.player.loop import Loop
from orchestra.player.records import Done, Key, RunFiles, every_run, sync_group
from orchestra.player.running import Ended

SYNC_AFTER: Final = 1.0
_MOST_SPARES: Final = 32


class Keeper:
    """The outcomes of runs, in memory and in ``directory``."""

    def __init__(self, directory: str, loop: Loop, say: Callable[[str], None]) -> None:
        self.done: dict[Key, Done] = {}
        self._directory = directory
        self._loop = loop
        self._say = say
        self._unwritten: set[Key] = set()
        self._unsynced: dict[Key, float] = {}  # since when (monotonic)
        self._sync_due = False
        self._cluttered: set[Key] = set()  # more than their one file may be on disk
        self._forgotten: list[Key] = []
        self._spares = Spares(directory)

    @property
    def whole(self) -> bool:
        """Whether all that is kept is on disk."""
        return not self._unwritten

    def files(self, key: Key) -> RunFiles:
        return RunFiles(self._directory, *key)

    def take_over(self) -> set[Key]:
        """Go on with what the program before has left; the runs that have no outcome."""
        self._spares.discard()
        self._cluttered = set(every_run(self._directory))
        for key in self._cluttered:
            if kept := self.files(key).done():
                self.done[key] = kept
        return self._cluttered - self.done.keys()

    def recover(self) -> set[Key]:
        """The same, of a stage that is dead: nobody knows whether what it has left is synced."""
        without_outcome = self.take_over()
        for key in self._cluttered:
            with contextlib.suppress(OSError):
                os.close(self.files(key).create())  # a power failure may have left the end and taken the beginning
        self._unsynced = dict.fromkeys(self.done, time.monotonic())
        self._plan_sync()
        return without_outcome

    # ---- keeping

    def begin(self, key: Key) -> int:
        """Begin a run: from here on it is known that it may have started. Its file, open; FileExistsError if it was
        begun before."""
        return self._spares.begin(key, self.files(key))

    def keep(self, key: Key, kept: Done, heard: bool) -> None:
        """Have it on disk; synced at once only if no player has ``heard`` of it."""
        self.done[key] = kept
        self._unwritten.add(key)
        self._write(key)
        self._unsynced[key] = time.monotonic()
        if heard:
            self._plan_sync()
        else:
            self.sync()

    def keep_output(self, key: Key, ended: Ended) -> None:
        """Long output is on disk before the outcome that speaks of it; where it cannot be, the outcome says so."""
        if not ended.long_output:
            return
        self._cluttered.add(key)
        try:
            for stream, data in ended.long_output.items():
                self.files(key).write_output(stream, data)
        except OSError as trouble:
            outcome = ended.outcome
            outcome["notes"].append(f"the output could not be kept: {trouble.strerror}")
            outcome["stdout"]["spans"], outcome["stderr"]["spans"] = [], []
            outcome["inline"] = True

    def _write(self, key: Key) -> None:
        try:
            self.files(key).write_done(self.done[key])
            self._unwritten.discard(key)
        except OSError as trouble:
            self._say(f"run {key[1]}: its outcome is not on disk yet: {trouble.strerror}")

    def sync(self) -> None:
        """What nobody has taken over yet outlives a power failure from here on. A failed sync is not tried again."""
        self._sync_up_to(time.monotonic())

    def _sync_up_to(self, latest: float) -> None:
        for key in list(self._unwritten):
            self._write(key)
        ready = [key for key, since in self._unsynced.items() if since <= latest]
        for key in ready:
            del self._unsynced[key]
        self._unsynced |= dict.fromkeys(self._unwritten, time.monotonic())
        try:
            sync_group(self.files(key) for key in ready if key not in self._unwritten)
        except OSError as trouble:
            self._say(f"outcomes may not outlive a power failure: {trouble.strerror}")
        self._plan_sync()

    def _plan_sync(self) -> None:
        if self._unsynced and not self._sync_due:
            self._sync_due = True
            self._loop.at(min(self._unsynced.values()) + SYNC_AFTER, self._sync_later)

    def _sync_later(self) -> None:
        self._sync_due = False
        self._sync_up_to(time.monotonic() - SYNC_AFTER / 2)  # and what would be due soon, for that costs the same

    # ---- handing out, and forgetting

    def piece(self, key: Key, stream: int, offset: int, size: int) -> bytes:
        """Kept bytes of a stream from its true ``offset`` on, at most to the end of that span."""
        kept = self.done.get(key)
        if kept is None or stream not in (1, 2):
            return b""
        streams = [kept.outcome.get(name, {}).get("spans", []) for name in ("stdout", "stderr")]
        position = 0
        for start, length in streams[stream - 1]:
            if start <= offset < start + length:
                position, size = position + offset - start, min(size, start + length - offset)
                if not kept.outcome["inline"]:
                    return self.files(key).read_output(stream, position, size)
                position += sum(length for _, length in streams[0]) if stream == 2 else 0
                return kept.body[position : position + size]
            position += length
        return b""

    def forget(self, key: Key) -> None:
        """Its player has it. The files are gone after :meth:`tidy`."""
        self.done.pop(key, None)
        self._unsynced.pop(key, None)
        self._unwritten.discard(key)
        self._forgotten.append(key)

    def tidy(self) -> None:
        """Remove what was forgotten."""
        if not self._forgotten:
            return
        forgotten, self._forgotten = self._forgotten, []
        for key in forgotten:
            try:
                self._spares.take_back(key, self.files(key), alone=key not in self._cluttered)
                self._cluttered.discard(key)
            except OSError as trouble:
                self._say(f"run {key[1]} cannot be removed: {trouble}")


class Spares:
    """Files of runs that were forgotten, to begin others in. They are in a directory of their own, so that a program
    that starts need not know what they were for."""

    def __init__(self, directory: str) -> None:
        self._above = f"{directory}/spare"
        self._free: list[str] = []
        self._lent: dict[Key, str] = {}
        self._made = 0

    def discard(self) -> None:
        """Begin without any; what a program before has lent out stays with its run."""
        try:
            os.makedirs(self._above, exist_ok=True)
            for name in os.listdir(self._above):
                os.unlink(f"{self._above}/{name}")
        except OSError:
            self._made = _MOST_SPARES  # then there are none

    def begin(self, key: Key, files: RunFiles) -> int:
        """Begin a run in a spare file, or else in a new one."""
        if not self._free:
            return files.create()
        try:
            file = files.begin_in(self._free[-1])
        except FileExistsError:
            raise
        except OSError:  # its journal may have no directory yet, or the file system know no second names
            return files.create()
        self._lent[key] = self._free.pop()
        return file

    def take_back(self, key: Key, files: RunFiles, alone: bool) -> None:
        """Remove a run; its file stays as a spare one if that is all there is of it."""
        spare = self._lent.get(key)
        if spare is None and alone and self._made < _MOST_SPARES:
            files.become(f"{self._above}/{self._made}")
            self._free.append(f"{self._above}/{self._made}")
            self._made += 1
            return
        files.remove(alone)
        if spare is not None:
            self._free.append(self._lent.pop(key))
