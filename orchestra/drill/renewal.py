"""Asks a stage to become the program that is on its disk now, as a player does that was upgraded."""

import contextlib
import socket
from pathlib import Path
from typing import Final

from orchestra.player import frames

PATIENCE: Final = 2.0  # seconds for the stage to hear it
NOBODY: Final = "drill"  # no player's journal


def ask_to_upgrade(stage: Path) -> None:
    """Say so at the stage's socket. Its player is turned out by that, and comes back at once: the newest one counts."""
    with socket.socket(socket.AF_UNIX) as talk, contextlib.suppress(OSError):
        talk.settimeout(PATIENCE)
        talk.connect(str(stage))
        hello = frames.encode({"type": "hello", "journal": NOBODY, "version": frames.VERSION})
        talk.sendall(hello + frames.encode({"type": "upgrade"}))
        while talk.recv(4096):  # until it closes: it has read everything by then
            pass
