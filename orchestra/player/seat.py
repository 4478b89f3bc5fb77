"""The player's seat: a unix socket on the node itself, for 'orchestra reload player'."""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from twisted.application.service import Service

from orchestra.audience.desk import Reloaded
from orchestra.audience.seat import Guest, Method, Nothing, Plain, seat_port
from orchestra.errors import OwnerOnly


def make(reactor: Any, path: str, reload: Callable[[], Awaitable[Reloaded]]) -> Service:
    """The service that listens at ``path``; root and the player's own user may use it."""

    async def answer(_: Nothing, __: object) -> Reloaded:
        return await reload()

    def seat(guest: Guest) -> Plain:
        if guest.asker.uid not in (0, os.geteuid()):
            raise OwnerOnly(who=guest.asker.name, daemon="player")
        return Plain({"reload": Method(Nothing, answer)})

    return seat_port(reactor, path, seat, mode=0o600, what="player")
