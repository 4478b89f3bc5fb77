"""The supervisor's word for being ready: sd_notify(3). Standard library only: the stage says it too."""

import contextlib
import os
import socket

_ADDRESS = "NOTIFY_SOCKET"


def tell_ready() -> None:
    """Tell systemd, if it has started us, that who was waiting for us need wait no longer; once."""
    address = os.environ.pop(_ADDRESS, "")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.sendto(b"READY=1", name)
