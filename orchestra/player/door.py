"""The stage's door: a player's connection, and what a player may say. Standard library only.

What is said is only checked for its form here; what it means is checked against the disk.
"""

import json
import re
import socket
from typing import Any, Final, Protocol

from orchestra.player import handover
from orchestra.player.frames import MOST_TO_STAGE, BadFrame, Frames, encode, pack
from orchestra.player.loop import READ, WRITE, Loop

WORD: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
HOST: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_MOST_UNSENT: Final = 64 << 20
_from_json: Final = json.JSONDecoder().decode

Message = dict[str, Any]


class Nonsense(ValueError):
    """The player said something that makes no sense."""


class Inside(Protocol):
    """Who is behind the door."""

    loop: Loop

    def hear(self, connection: "Connection", message: Message) -> None:
        """A player said something."""

    def left(self, connection: "Connection", why: str) -> None:
        """A connection has ended."""


class Connection:
    """A player's connection. It may ask for something once it has said hello."""

    def __init__(self, inside: Inside, sock: socket.socket, state: handover.State | None = None) -> None:
        """``state`` is of a connection that the program before has had."""
        state = state or {"journal": None, "asks": False, "heard": "", "unsent": ""}
        self.journal: str | None = state["journal"]
        self.asks: bool = state["asks"]  # to be told what became of the upgrade it asked for
        self.open = True
        self._inside = inside
        self._socket = sock
        self._frames = Frames(MOST_TO_STAGE, handover.data(state["heard"]))
        self._unsent = bytearray(handover.data(state["unsent"]))
        self._hurries = True  # what is unsent is to leave with the next flush
        self._waits = False
        inside.loop.watch(sock.fileno(), self._ready)

    @property
    def handle(self) -> int:
        return self._socket.fileno()

    def handed(self) -> handover.State:
        """What the next program needs to go on."""
        heard, unsent = handover.text(self._frames.rest), handover.text(self._unsent)
        return {"handle": self.handle, "journal": self.journal, "asks": self.asks, "heard": heard, "unsent": unsent}

    def send(self, message: Message, body: bytes = b"") -> None:
        self._unsent += encode(message, body)
        self._hurries = True

    def send_text(self, text: str, body: bytes) -> None:
        """Send a message that is JSON already."""
        self._unsent += pack(text.encode(), body)
        self._hurries = True

    def mention_text(self, text: str) -> None:
        """Send a message that is JSON already together with what is said next, or when that is :meth:`hurry`."""
        self._unsent += pack(text.encode())

    def hurry(self) -> None:
        """What was mentioned has waited long enough."""
        self._hurries = True

    def flush(self) -> None:
        """Send what is to leave by now."""
        if not self._hurries or not self.open:
            return
        try:
            if self._unsent:
                del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError as trouble:
            self.close(trouble.strerror or "gone")
            return
        self._hurries = bool(self._unsent)
        if len(self._unsent) > _MOST_UNSENT:
            self.close("it does not read what it asked for")
        elif bool(self._unsent) != self._waits:
            self._waits = not self._waits
            self._inside.loop.change(self._socket.fileno(), READ | WRITE if self._waits else READ)

    def close(self, why: str) -> None:
        """End it. What was read from it and not acted upon is gone with it."""
        if self.open:
            self.open = False
            self._inside.loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._inside.left(self, why)

    def _ready(self, events: int) -> None:
        if events & ~WRITE:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(65536)
            if not data:
                self.close("it went away")
            for text, _ in self._frames.feed(data):
                if self.open:
                    self._inside.hear(self, message_in(text))
        except BlockingIOError:
            return
        except (BadFrame, Nonsense) as mistake:
            self.close(f"it said something that makes no sense: {mistake}")
        except ConnectionError as trouble:
            self.close(trouble.strerror or "gone")


# ---- what a message may hold


def message_in(text: bytes) -> Message:
    try:
        message = _from_json(text.decode())
    except (ValueError, RecursionError):
        raise Nonsense("no JSON") from None
    if not isinstance(message, dict):
        raise Nonsense("no JSON object")
    return message


def matching(pattern: re.Pattern[str], value: Any) -> str:
    if not pattern.fullmatch(a_text(value)):
        raise Nonsense(f"{ascii(value)[:80]}, where a name belongs")
    return str(value)


def a_text(value: Any) -> str:
    if not isinstance(value, str):
        raise Nonsense("no text, where one belongs")
    return value


def a_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise Nonsense("no list, where one belongs")
    return value


def a_number(value: Any, least: int = 1) -> int:
    if type(value) is not int or not least <= value < 1 << 62:
        raise Nonsense("no such number can be meant")
    return value


def texts(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise Nonsense("no parameters")
    return {key: a_text(text) for key, text in value.items()}


def order_in(message: Message) -> Message:
    """The fields of a perform, each checked; what they mean is checked against the disk."""
    return {
        "job": a_number(message.get("job")),
        "task": a_number(message.get("task"), 0),
        "attempt": a_number(message.get("attempt"), 0),
        "score": a_text(message.get("score")),
        "player": matching(HOST, message.get("player")),
        "digest": a_text(message.get("digest") or ""),
        "params": texts(message.get("params")),
        "secrets": texts(message.get("secrets") or {}),
        "dry_run": message.get("dry_run") is True,
    }
