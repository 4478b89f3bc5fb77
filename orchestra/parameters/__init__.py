"""The parameters of a job: what they may be, and the environment a score finds them in.

Checked wherever they enter: at the audience, the conductor, the player and once more on the stage. What a score
declares of its own is checked by :mod:`orchestra.parameters.declared`. Standard library only, for the stage's sake.
"""

import re
from collections.abc import Mapping
from typing import Final

MAX_VALUE: Final = 16 * 1024
MAX_TOTAL: Final = 64 * 1024

_KEY: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


def problem(params: Mapping[str, str]) -> str | None:
    """What is wrong with ``params`` in one sentence that names the parameter and the rule, or None."""
    total = 0
    for key, value in params.items():
        if not is_key(key):
            return f"parameter {_shown(key)}: a name is a letter or _, then at most 63 letters, digits or _"
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            return f"parameter '{key}': the value holds a character that UTF-8 cannot encode"
        if "\0" in value:
            return f"parameter '{key}': the value holds a NUL byte, which no environment can carry"
        if size > MAX_VALUE:
            return f"parameter '{key}': the value has {size} bytes; at most {MAX_VALUE} (16 KiB) are allowed"
        total += len(key) + size
        if total > MAX_TOTAL:
            return f"parameter '{key}': the parameters together exceed {MAX_TOTAL} bytes (64 KiB of keys and values)"
    return None


def is_key(text: str) -> bool:
    """Whether a parameter may have this name."""
    return bool(_KEY.fullmatch(text))


def environment(params: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that carry ``params``: ``ORC_`` and the key as it is written."""
    return {f"ORC_{key}": value for key, value in params.items()}


def _shown(key: str) -> str:
    return ascii(key if len(key) <= 80 else f"{key[:77]}...")
