"""Makes the player: the one place that knows all of its parts."""

import contextlib
import ctypes
import gc
import os
import sys
import time
from functools import partial
from random import SystemRandom
from typing import Any, Final

from twisted.application.service import IService, MultiService, Service

from orchestra import settings
from orchestra.audience.port import Door, LateDoor, SeatPort, free_path
from orchestra.errors import EX_SOFTWARE, OrchestraError, ScoreUserMissing, StoreFailed
from orchestra.hangup import Hangup
from orchestra.options import PlayerOptions, refuse, stop_failing
from orchestra.player import facts
from orchestra.player.backstage import Backstage, start_stage
from orchestra.player.launch import is_user
from orchestra.player.line import Connector
from orchestra.player.repertoire import Repertoire
from orchestra.player.service import Player
from orchestra.security import credentials
from orchestra.security.contexts import ClientCredentials
from orchestra.store import journal
from orchestra.store.writer import Writer
from orchestra.supervisor import tell_ready

Options = PlayerOptions
FILES: Final = ("certificate", "key", "ca", "crl")


def makeService(options: PlayerOptions) -> IService:
    """The player's services; what is wrong with the configuration ends the process."""
    from twisted.internet import reactor as chosen

    reactor: Any = chosen
    sys.setswitchinterval(0.0005)  # SQLite lets go of the interpreter at each statement: its threads get it back soon
    reactor.seconds = time.monotonic  # a clock that jumps must not stop the timers
    try:
        return _make(reactor, options)
    except OrchestraError as problem:
        refuse(problem)


def _make(reactor: Any, options: PlayerOptions) -> IService:
    chosen: settings.PlayerSettings = options.read()
    tls = ClientCredentials(load_credentials(chosen), chosen.key_exchange, [each.name for each in chosen.conductors])
    as_another_user = bool(options.parent is not None and options.parent.get("uid"))
    if chosen.stage_start:
        _check_score_user(options, chosen.score_user, os.geteuid() == 0 and not as_another_user)
    journal.try_lock(chosen.state)
    free_path(chosen.seat, "player")
    book = journal.Journal(chosen.state)
    if not as_another_user:
        book.open()  # here, where what is wrong is still told to whoever starts us

    def fatal(problem: StoreFailed) -> None:
        player.log.critical("{problem}", problem=problem.sentence)
        stop_failing(reactor, EX_SOFTWARE)

    files = _files(chosen)

    def reload_certificates() -> list[str]:
        nonlocal files
        fresh = options.read()
        if not tls.credentials.stale() and _files(fresh) == files:
            return []
        tls.replace(load_credentials(fresh))
        files = _files(fresh)
        return ["certificates read again"]

    player = Player(
        reactor,
        name=tls.credentials.names[0],
        slots=chosen.slots,
        boot=_boot_id(),
        boot_clock=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
        wall=lambda: time.time_ns() // 1_000_000,
        journal=book,
        writer=Writer(book.connect, reactor.callFromThread, fatal, "journal", partial(reactor.callLater, 0)),
        repertoire=Repertoire(chosen.scores, {0, os.geteuid()}),
        start_stage=(lambda: start_stage(reactor, chosen)) if chosen.stage_start else None,
        make_backstage=lambda identity, listener: Backstage(reactor, chosen.stage, identity, listener),
        make_connector=lambda listener: Connector(
            reactor, chosen.conductors, tls, listener, chosen.beat / 1000, SystemRandom()
        ),
        reload_certificates=reload_certificates,
        stale_settings=lambda: settings.differing(chosen, options.read(), FILES),
        warnings=lambda: list(tls.credentials.warnings(time.time_ns() // 1_000_000)),
        fail=lambda status: stop_failing(reactor, status),
        reserve=chosen.reserve,
        read_facts=lambda: facts.read(chosen.facts, {0, os.geteuid()}),
    )
    gc.set_threshold(100_000, 50, 1000)
    services = MultiService()
    door = LateDoor(partial(_open_door, player))
    seat: Service = SeatPort(reactor, chosen.seat, door, mode=0o600, what="player")
    for service in (player, seat, Hangup(reactor, player.reload)):
        service.setServiceParent(services)
    reactor.callWhenRunning(tell_ready)
    reactor.callWhenRunning(give_back)
    return services


def _open_door(player: Player) -> Door:
    from orchestra.player.seat import open_door  # with Perspective Broker: 0.7 MB, for an operator who may never come

    return open_door(player)


def give_back() -> None:
    """Return to the system what it took to load all this. The C library would keep it, 0.7 MB, to use it again."""
    with contextlib.suppress(AttributeError):  # not every one has such a call
        ctypes.CDLL(None).malloc_trim(0)


def _check_score_user(options: PlayerOptions, score_user: str, as_root: bool) -> None:
    """Raise while somebody can be told: the stage would say it to a log, again and again."""
    if score_user and not is_user(score_user):
        raise options.wrong("score_user", f"this machine has no user '{score_user}'")
    if as_root and not score_user:
        raise ScoreUserMissing()


def load_credentials(chosen: settings.PlayerSettings) -> credentials.Credentials:
    """The player's certificates as they are on disk now."""
    return credentials.load(chosen.certificate, chosen.key, chosen.ca, chosen.crl or None, "player")


def _files(chosen: settings.PlayerSettings) -> tuple[str, ...]:
    return tuple(getattr(chosen, key) for key in FILES)


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
