"""What the daemons' logs look like: one event, one line; as text for people or as JSON for programs.

``2026-01-02T03:04:05.678Z info  [conductor] sentence``. What came over the wire cannot break a line or move the
cursor of a terminal. A traceback follows, indented, only where the event is ``critical``: a bug of ours.
Where the lines go is twistd's business (``--logfile``, ``--syslog``, ``--nodaemon``); :func:`install` sees to it that
a log file is bounded in size and number.
"""

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Final

from twisted.logger import FileLogObserver, ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python import usage
from twisted.python.failure import Failure
from twisted.python.logfile import LogFile
from zope.interface import implementer

MAX_TEXT: Final = 8192  # characters of one event: a log that is bounded in size has bounded lines

_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_TWISTED_SAYS: Final = ("twisted.scripts.", "twisted.application.", "twisted.internet.base")
# That twistd cannot note its plugins down is so wherever root has installed us, and costs nothing that matters.
_NOISE: Final = re.compile(
    r"(Starting|Stopping) factory |\((.* )?Port .* Closed\)$|.* starting on \S+$|Unable to write to plugin cache "
)

Line = Callable[[LogEvent], str | None]


# ---- one event, one line


def text_line(event: LogEvent) -> str | None:
    """The line of an event, and its traceback if it is a bug of ours; None where there is nothing to say."""
    if not (text := _text(event)):
        return None
    line = f"{_time(event)} {_level(event):<5} [{system(event)}] {one_line(text)}\n"
    return line + "".join(f"    {one_line(part)}\n" for part in _traceback(event))


def json_line(event: LogEvent) -> str | None:
    """The event as one JSON object: time, level, system, text, and if there are any, plain fields and a traceback."""
    if not (text := _text(event)):
        return None
    line: dict[str, Any] = {"time": _time(event), "level": _level(event), "system": system(event), "text": text}
    if fields := {name: value for name, value in event.items() if _is_plain_field(name, value)}:
        line["fields"] = fields
    if traceback := _traceback(event):
        line["traceback"] = traceback
    return json.dumps(line) + "\n"


LINES: Final[dict[str, Line]] = {"text": text_line, "json": json_line}


def one_line(text: str) -> str:
    """``text`` with everything that would break the line, or play with the reader's terminal, escaped."""
    return _UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def system(event: LogEvent) -> str:
    """Who speaks: the room, ``conductor`` for all under ``orchestra.conductor``; ``twisted``; or the namespace."""
    namespace = str(event.get("log_namespace", "-"))
    first, _, rest = namespace.partition(".")
    if first == "orchestra" and rest:
        return rest.partition(".")[0]
    return first if first == "twisted" else namespace


def _text(event: LogEvent) -> str:
    text = formatEvent(event).strip()
    failure = event.get("log_failure")
    if isinstance(failure, Failure):
        said = f"{getattr(failure.type, '__name__', failure.type)}: {failure.getErrorMessage()}"
        text = f"{text.rstrip(':')}: {said}" if text else said
    return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text)} characters)"


def _time(event: LogEvent) -> str:
    moment = datetime.fromtimestamp(event.get("log_time", 0.0), UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def _level(event: LogEvent) -> str:
    level = event.get("log_level")
    return str(level.name) if level is not None else LogLevel.info.name


def _traceback(event: LogEvent) -> list[str]:
    failure = event.get("log_failure")
    if event.get("log_level") is not LogLevel.critical or not isinstance(failure, Failure):
        return []
    return [_cut(line) for line in str(failure.getTraceback()).splitlines()]


def _is_plain_field(name: str, value: object) -> bool:
    if name.startswith("log_") or name in _LEGACY_FIELDS:
        return False
    if isinstance(value, float):
        return value - value == 0  # JSON knows no infinity
    return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT) or isinstance(value, int)


_LEGACY_FIELDS: Final = frozenset({"message", "time", "system", "format", "isError", "failure", "why", "printed"})


# ---- what is worth a line


def worth_saying(event: LogEvent) -> bool:
    """Whether an operator is told: all from ``warn`` on, and of info what is not Twisted's account of its plumbing."""
    level = event.get("log_level", LogLevel.info)
    if level is not LogLevel.info:
        return bool(level > LogLevel.info)
    namespace = str(event.get("log_namespace", ""))
    if namespace.startswith("twisted."):
        return namespace.startswith(_TWISTED_SAYS)
    # A factory of ours starts under our own namespace, and ports speak through the old log.
    said = event.get("log_format") or ""
    return not _NOISE.match(formatEvent(event) if namespace == "log_legacy" else said)


@implementer(ILogObserver)
class LineObserver:
    """Writes a line for every event that is worth one."""

    def __init__(self, stream: Any, line: Line) -> None:
        self._stream = stream  # a text stream that nobody holds closes the bytes below it
        self._write = FileLogObserver(getattr(stream, "buffer", stream), line)

    def __call__(self, event: LogEvent) -> None:
        if worth_saying(event):
            self._write(event)


def observer(stream: Any, log_format: str) -> LineObserver:
    """An observer that writes ``text`` or ``json`` lines, in UTF-8 whatever the locale, to a file or text stream."""
    return LineObserver(stream, LINES[log_format])


# ---- where twistd sends it


class BoundedLog(LogFile):
    """A log file of about ``size`` bytes and ``files`` older ones; it survives being moved, and a failed rotation."""

    def __init__(self, path: str, size: int, files: int) -> None:
        directory, name = os.path.split(os.path.abspath(path))
        super().__init__(name, directory, size, None, files)  # type: ignore[no-untyped-call]  # Twisted's

    def write(self, data: str | bytes) -> None:
        """As LogFile does, but its size is counted in bytes, not characters."""
        super().write(data.encode() if isinstance(data, str) else data)  # type: ignore[no-untyped-call]  # Twisted's

    def rotate(self) -> None:
        """Put the file aside and begin a new one; where something else has moved it already, only begin a new one."""
        try:
            if self._is_in_place():
                super().rotate()  # type: ignore[no-untyped-call]  # Twisted's
            else:
                self.reopen()
        except OSError:
            self.reopen()

    def reopen(self) -> None:
        """Begin the file anew; where that cannot be done the old one is written on."""
        old = self._file
        self._openFile()  # type: ignore[no-untyped-call]  # Twisted's
        old.close()

    def _is_in_place(self) -> bool:
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return False


def install(parent: usage.Options, log_format: str, log_size: int, log_files: int) -> None:
    """Have twistd, whose options are ``parent``, log our lines to where it was told to: call it from ``postOptions``.

    An explicit ``--logger`` or ``--syslog`` is left alone.
    """
    if parent.get("logger") or parent.get("syslog"):
        return
    finish: Callable[[], None] = parent.postOptions

    def post_options() -> None:
        finish()  # this takes "logger" for the name of something to import; so ours is put there afterwards
        parent["logger"] = lambda: _twistd_observer(parent, log_format, log_size, log_files)

    parent.postOptions = post_options  # type: ignore[method-assign]  # of this one object: twistd offers no other hook


def _twistd_observer(parent: usage.Options, log_format: str, log_size: int, log_files: int) -> LineObserver:
    file = parent.get("logfile")
    if file == "-" and not parent.get("nodaemon"):
        raise SystemExit("a daemon has no terminal to log to; add --nodaemon, or name a file with --logfile=FILE")
    if file == "-" or (parent.get("nodaemon") and not file):
        return observer(sys.stdout, log_format)
    try:
        log = BoundedLog(file or "twistd.log", log_size, log_files)
    except OSError as problem:
        raise SystemExit(f"the log file {file} cannot be opened: {problem.strerror}") from None
    _rotate_on_sigusr1(log)
    return observer(log, log_format)


def _rotate_on_sigusr1(log: BoundedLog) -> None:
    if signal.getsignal(signal.SIGUSR1) not in (signal.SIG_DFL, None):
        return

    def rotate(_signum: int, _frame: FrameType | None) -> None:
        from twisted.internet import reactor  # twistd has chosen it by now

        reactor.callFromThread(log.rotate)  # type: ignore[attr-defined]

    signal.signal(signal.SIGUSR1, rotate)
