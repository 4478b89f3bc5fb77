"""``orchestra emulate`` as a process of the bench: started, listened to, ended."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Final

from orchestra.errors import BenchFailed

PATIENCE: Final = 30.0  # seconds, and more for many players
EACH: Final = 0.02


class Company:
    """A process of emulated players."""

    def __init__(self, arguments: Sequence[str], players: int, log: Path) -> None:
        self.players = players
        self._log = log
        command = [str(Path(sys.executable).with_name("orchestra")), "emulate", "--json", f"--players={players}"]
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [*command, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=0
            )
        assert self._process.stdout is not None
        self._out = self._process.stdout
        self._heard = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def connected(self) -> float:
        """Wait until all are there; the seconds from their first step to their last."""
        return float(self._line("connected")["seconds"])

    def counts(self) -> dict[str, Any]:
        """What they have done so far."""
        os.kill(self.pid, signal.SIGHUP)
        return self._line("count")

    def complete(self) -> bool:
        """Whether they have said, and nobody has heard yet, that all are there."""
        return b"\n" in self._heard or _readable(self._out, 0)

    def stop(self) -> None:
        """End it."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(PATIENCE)
        self._out.close()

    def _line(self, event: str) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE + EACH * self.players
        while b"\n" not in self._heard:
            self._hear(end - time.monotonic())
        line, _, self._heard = self._heard.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        if told["event"] != event:
            raise BenchFailed(case="emulate", problem=f"'{event}' was expected of the emulated players, not {told}")
        return told

    def _hear(self, seconds: float) -> None:
        if not _readable(self._out, max(seconds, 0)):
            raise BenchFailed(case="emulate", problem=f"the emulated players say nothing.{self._tail()}")
        data = self._out.read(65536)
        if not data:
            raise BenchFailed(case="emulate", problem=f"the emulated players have ended.{self._tail()}")
        self._heard += data

    def _tail(self) -> str:
        text = self._log.read_text(errors="replace").strip()
        return f" {text[-1000:]}" if text else ""


def _readable(file: IO[bytes], seconds: float) -> bool:
    return bool(select.select([file], [], [], seconds)[0])
