"""The stage's log. Standard library only."""

import os
import time
from typing import Final

_LOG_LIMIT: Final = 10 << 20
_CHECK_AFTER: Final = 64 << 10


class Log:
    """One line per event, to a file of bounded size or to stderr; a log that fails stops nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._handle = 2
        self._noted: list[str] = []
        self._hurries = False
        self._unchecked = 0  # bytes, since the size was looked at
        self._second = 0
        self._shown = ""  # that second, as the log has it
        self.reopen()

    def say(self, words: str) -> None:
        self.note(words)
        self.write()

    def note(self, words: str) -> None:
        """Have this in the log when :meth:`write` is next called: nobody should wait for it."""
        self.mention(words)
        self._hurries = True

    def hurry(self) -> None:
        """What was mentioned has waited long enough."""
        self._hurries = True

    def mention(self, words: str) -> None:
        """Have this in the log before the next line."""
        second = int(time.time())
        if second != self._second:
            self._second, self._shown = second, time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(second))
        words = words if words.isprintable() else ascii(words)
        self._noted.append(f"{self._shown} stage: {words}\n")

    def write(self) -> None:
        """Have what was noted in the file."""
        if not (self._hurries and self._noted):
            return
        self._hurries = False
        lines, self._noted = "".join(self._noted).encode(errors="replace"), []
        try:
            os.write(self._handle, lines)
        except OSError:
            pass
        self._unchecked += len(lines)
        if self._unchecked > _CHECK_AFTER:
            self._unchecked = 0
            self._check_size()

    def reopen(self) -> None:
        """Open the file anew (SIGHUP), and put it aside if it has grown large."""
        if self._path is None:
            return
        if os.path.exists(self._path) and os.path.getsize(self._path) > _LOG_LIMIT:
            os.replace(self._path, self._path + ".1")
        fresh = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        if self._handle != 2:
            os.close(self._handle)
        self._handle = fresh

    def _check_size(self) -> None:
        if self._path and os.fstat(self._handle).st_size > _LOG_LIMIT:
            self.try_to_reopen()

    def try_to_reopen(self) -> None:
        try:
            self.reopen()
        except OSError as trouble:
            self.say(f"the log {self._path} cannot be opened: {trouble.strerror}")


def traced(bug: BaseException) -> str:
    """What it is and where it came from, on one line. Python's own module for that is not small, and may be gone when
    it is needed: a stage lives long."""
    places, at = [], bug.__traceback__
    while at:
        code = at.tb_frame.f_code
        places.append(f"{os.path.basename(code.co_filename)}:{at.tb_lineno} {code.co_name}")
        at = at.tb_next
    return f"{type(bug).__name__}: {bug} (in {', in '.join(places)})"
