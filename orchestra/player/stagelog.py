"""The stage's log. Standard library only."""

import os
import time
from typing import Final

_LOG_LIMIT: Final = 10 << 20


class Log:
    """One line per event, to a file of bounded size or to stderr; a log that fails stops nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._handle = 2
        self.reopen()

    def say(self, words: str) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        words = words if words.isprintable() else ascii(words)
        try:
            os.write(self._handle, f"{now} stage: {words}\n".encode(errors="replace"))
        except OSError:
            pass

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

    def check_size(self) -> None:
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
