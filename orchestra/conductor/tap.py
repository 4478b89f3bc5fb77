"""Makes the conductor: the one place that knows all of its parts."""

import gc
import grp
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from orchestra import settings
from orchestra.audience.perspective import audience_port
from orchestra.audience.port import free_path
from orchestra.conductor.clock import StoreClock
from orchestra.conductor.desk import FrontDesk
from orchestra.conductor.dispatch import Dispatch
from orchestra.conductor.feed import Feed
from orchestra.conductor.service import Conductor, Roster, Store, load_credentials, whole
from orchestra.conductor.targeting import load_groups
from orchestra.conductor.upkeep import Upkeep
from orchestra.errors import EX_SOFTWARE, OrchestraError, StoreFailed
from orchestra.hangup import Hangup
from orchestra.options import ConductorOptions, refuse, stop_failing
from orchestra.security.contexts import ServerCredentials
from orchestra.security.vault import Vault
from orchestra.store import sqlite, statements
from orchestra.store.writer import Reader, Writer
from orchestra.supervisor import tell_ready

Options = ConductorOptions
T = TypeVar("T")


def makeService(options: ConductorOptions) -> IService:
    """The conductor's services, in the order they start; what is wrong with the configuration ends the process."""
    from twisted.internet import reactor as chosen

    reactor: Any = chosen
    sys.setswitchinterval(0.0005)  # SQLite lets go of the interpreter at each statement: its threads get it back soon
    reactor.seconds = time.monotonic  # a clock that jumps must not stop the timers
    try:
        return _make(reactor, options)
    except OrchestraError as problem:
        refuse(problem)


def _make(reactor: Any, options: ConductorOptions) -> IService:
    chosen: settings.ConductorSettings = options.read()
    names = settings.players_file(chosen.players, chosen.default_domain)
    groups = load_groups(chosen)
    tls = ServerCredentials(load_credentials(chosen), chosen.key_exchange)
    now = StoreClock(_wall, _boot_clock)
    gid = _group(options, chosen)
    sqlite.try_lock(chosen.state)
    _check_ports(options, chosen)

    def fatal(problem: StoreFailed) -> None:
        store.doubted = True
        conductor.log.critical("{problem}", problem=problem.sentence)
        stop_failing(reactor, EX_SOFTWARE)

    store = sqlite.Store(chosen.state)
    writer = Writer(store.connect, reactor.callFromThread, fatal, "store", partial(reactor.callLater, 0))
    reader = Reader(store.connect, reactor.callFromThread)
    feed = Feed(
        lambda job, since, limit: reader.read(lambda cursor: statements.news(cursor, job, since, limit)),
        lambda job: reader.read(lambda cursor: statements.ended(cursor, job)),
        lambda since, limit: reader.read(lambda cursor: statements.all_events(cursor, since, limit)),
    )
    vault = Vault(chosen.secret_key)
    dispatch = Dispatch(writer, reactor, now, uuid.uuid4().hex, feed, vault)
    roster = Roster(dispatch, writer, now)
    conductor = Conductor(
        reactor, options.read, tls, dispatch, roster, names, now, lambda status: stop_failing(reactor, status)
    )

    def in_thread(work: Callable[[], T]) -> "Deferred[T]":
        return deferToThreadPool(reactor, reactor.getThreadPool(), work)

    conductor.upkeep = upkeep = Upkeep(dispatch, writer, reactor, in_thread, store.connect, now, chosen)
    desk = FrontDesk(
        dispatch,
        reader,
        feed,
        now=now,
        started_at=now(),
        default_domain=chosen.default_domain,
        default_expire=chosen.default_expire,
        audience_group=chosen.audience_group,
        gid=gid,
        reload=conductor.reload,
        upkeep=upkeep,
        troubles=lambda: tuple(filter(None, (upkeep.trouble, roster.refused))),
    )

    desk.targeting.groups = groups
    conductor.targeting = desk.targeting

    # here, where what is wrong is still told to whoever starts us; with --uid only later, as the user it will be
    as_another_user = bool(options.parent is not None and options.parent.get("uid"))
    if not as_another_user:
        store.open()
        vault.open()

    def whole_after_all(_: object) -> None:
        store.unchecked = False

    def not_whole(failure: Failure) -> None:
        if upkeep.stopping:
            return
        store.doubted = True
        conductor.log.critical("{problem}", problem=failure.value)
        stop_failing(reactor, getattr(failure.value, "status", EX_SOFTWARE))

    def start() -> None:
        if as_another_user:
            store.open()
            vault.open()
        writer.start()
        reader.start()
        if store.unchecked:
            Deferred.fromCoroutine(upkeep.look_through()).addCallbacks(whole_after_all, not_whole)
        gc.set_threshold(100_000, 50, 1000)
        gc.freeze()

    def stop() -> Any:
        return reader.stop().addCallback(lambda _: writer.stop()).addCallback(lambda _: store.close())

    conductor.ready = tell_ready
    conductor.seat = audience_port(reactor, chosen.audience, 0o660, chosen.audience_group, desk)
    hangup = Hangup(reactor, conductor.reload)
    return whole(Store(start, stop), conductor, hangup)


def _check_ports(options: ConductorOptions, chosen: settings.ConductorSettings) -> None:
    """Raise while somebody can be told, not when the daemon is in the background."""
    free_path(chosen.audience, "conductor")
    for listen in chosen.listen:
        with socket.socket(socket.AF_INET6 if ":" in listen.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((listen.host, listen.port))
            except OSError as problem:
                where, why = f"{listen.host}:{listen.port}", os.strerror(problem.errno or 0)
                raise options.wrong("listen", f"cannot listen on {where}: {why}") from None


def _group(options: ConductorOptions, chosen: settings.ConductorSettings) -> int | None:
    if not chosen.audience_group:
        return None
    try:
        return grp.getgrnam(chosen.audience_group).gr_gid
    except KeyError:
        problem = f"this machine has no group '{chosen.audience_group}'; 'groupadd --system' makes one"
        raise options.wrong("audience_group", problem) from None


def _wall() -> int:
    """The wall clock, in milliseconds."""
    return time.time_ns() // 1_000_000


def _boot_clock() -> int:
    """Milliseconds since the machine was booted, sleep included."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
