"""Sending at once what somebody waits for: Twisted would leave it to the reactor's next turn."""

from typing import Any


def send_now(transport: Any) -> None:
    """Hand what was written to ``transport`` to the kernel. What the kernel does not take, or refuses, is the reactor's
    to deal with, as ever; a transport that is not a socket's is left alone."""
    write = getattr(transport, "doWrite", None)
    if write is not None and transport.connected and not transport.disconnecting:
        write()
