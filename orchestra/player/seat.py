"""The player's seat: a unix socket on the node itself, for its operator. What is asked is in
:mod:`orchestra.audience.node`; root and the player's own user may ask."""

import os
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Protocol

from msgspec import Meta, Struct

from orchestra.audience.node import Idle, Killing, NodeStatus
from orchestra.audience.port import Door
from orchestra.audience.seat import Guest, Method, Nothing, Plain, door
from orchestra.errors import OwnerOnly
from orchestra.model import Reloaded

MOST_SECONDS = 30.0  # an answer is to come while somebody still waits for it


class Why(Struct, frozen=True, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(max_length=500)] = ""


class Within(Struct, frozen=True, forbid_unknown_fields=True):
    within: Annotated[float, Meta(ge=0, le=MOST_SECONDS)]


class Runs(Struct, frozen=True, forbid_unknown_fields=True):
    seqs: tuple[Annotated[int, Meta(ge=1, le=2**63 - 1)], ...] | None = None


class Player(Protocol):
    """What the node's operator may have a player do."""

    async def reload(self) -> Reloaded: ...
    def status(self) -> NodeStatus: ...
    async def drain(self, by: str, reason: str) -> Idle: ...
    async def undrain(self, by: str) -> bool: ...
    async def idle(self, within: float) -> Idle: ...
    def kill(self, by: str, seqs: tuple[int, ...] | None) -> Killing: ...


def open_door(player: Player) -> Door:
    """The door to a player's seat; root and the player's own user may come in."""

    def seat(guest: Guest) -> Plain:
        if guest.asker.uid not in (0, os.geteuid()):
            raise OwnerOnly(who=guest.asker.name, daemon="player")
        return Plain(_methods(player, guest.asker.name))

    return door(seat)


def _methods(player: Player, who: str) -> dict[str, Method]:
    async def status(given: Any) -> NodeStatus:
        return player.status()

    async def kill(given: Runs) -> Killing:
        return player.kill(who, given.seqs)

    return {
        "reload": _method(Nothing, lambda given: player.reload()),
        "status": _method(Nothing, status),
        "drain": _method(Why, lambda given: player.drain(who, given.reason)),
        "undrain": _method(Nothing, lambda given: player.undrain(who)),
        "idle": _method(Within, lambda given: player.idle(given.within)),
        "kill": _method(Runs, kill),
    }


def _method(takes: type[Struct], answer: Callable[[Any], Awaitable[object]]) -> Method:
    """A call that has no use for a watcher."""
    return Method(takes, lambda given, _: answer(given))
