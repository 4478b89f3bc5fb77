"""What a command reads beside its command line."""

import sys
from typing import Final

from orchestra.errors import UsageError

MAX_INPUT: Final = 16 << 20


def read(name: str, option: str) -> str:
    """The text of a file, or of stdin for ``-``."""
    try:
        if name == "-":
            raw = sys.stdin.buffer.read(MAX_INPUT + 1)
        else:
            with open(name, "rb") as file:
                raw = file.read(MAX_INPUT + 1)
    except OSError as problem:
        raise UsageError(problem=f"{option}: {name} cannot be read: {problem.strerror}") from None
    if len(raw) > MAX_INPUT:
        raise UsageError(problem=f"{option}: {name} is larger than 16 MiB")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise UsageError(problem=f"{option}: {name} is not UTF-8 text") from None
