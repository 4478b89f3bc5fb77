"""The conductor as a service: opens the store, lets players and audience in, lets time pass, reloads, stops.

What work there is and who gets it is the dispatch's; here is only the life of the daemon around it.
"""

import contextlib
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from orchestra import __version__, settings
from orchestra.conductor.dispatch import Dispatch
from orchestra.conductor.door import Limits, Porch
from orchestra.conductor.targeting import Targeting, load_groups
from orchestra.conductor.upkeep import Upkeep
from orchestra.errors import EX_SOFTWARE, FileProblem, OrchestraError, TooManyRemoved
from orchestra.model import Reloaded
from orchestra.security import credentials as security
from orchestra.security.contexts import ServerCredentials
from orchestra.security.credentials import Credentials, is_revoked
from orchestra.settings import ConductorSettings
from orchestra.store import statements
from orchestra.store.saver import Saver
from orchestra.store.values import Removals

BACKLOG: Final = 4096
GIVE_UP_EVERY: Final = 30.0
FILES_EVERY: Final = 60.0
LOOK_EVERY: Final = 1.0  # at the room on the store's disk
PRUNE_EVERY: Final = 10.0
LIVE: Final = ("removal_limit", "removal_grace", "reserve", "keep", "keep_size")
WARN_EVERY: Final = 86_400.0  # between two warnings of what will expire


class Store(Service):
    """Opens the store when the daemon starts and closes it when everything else has stopped."""

    def __init__(self, start: Callable[[], None], stop: Callable[[], "Deferred[Any]"]) -> None:
        self._start = start
        self._stop = stop

    def startService(self) -> None:
        Service.startService(self)
        self._start()

    def stopService(self) -> "Deferred[Any]":
        Service.stopService(self)
        return self._stop()


def load_credentials(chosen: ConductorSettings) -> Credentials:
    """The conductor's certificates as they are on disk now."""
    return security.load(chosen.certificate, chosen.key, chosen.ca, chosen.crl or None, "conductor")


class Roster:
    """The players file, the store's players, and the dispatch's: kept the same."""

    log = Logger()

    def __init__(self, dispatch: Dispatch, writer: Saver, now: Callable[[], int]) -> None:
        self._dispatch = dispatch
        self._writer = writer
        self._now = now
        self.refused = ""  # why the players file is not the list that is in force

    async def begin(self, names: Iterable[str], allowed: Removals | None = None) -> None:
        """These are the players at the start; nobody is connected yet, whatever a conductor that died has left. A list
        that lacks too many is refused as at a reload: then the players are those of before."""
        await self._writer.write(statements.everybody_left)
        try:
            await self.put(names, allowed)
        except TooManyRemoved as problem:
            self.log.error("{problem} Until then the players are those of before.", problem=problem.sentence)
            self._dispatch.ids = await self._writer.write(statements.players)

    async def put(self, names: Iterable[str], allowed: Removals | None = None) -> tuple[str, ...]:
        """These are the players from now on; what changed, in sentences. TooManyRemoved, and nothing is changed, if it
        lacks more than is ``allowed``."""
        wanted = tuple(names)
        try:
            roster = await self._writer.write(
                lambda cursor: statements.sync_players(cursor, wanted, self._now(), allowed)
            )
        except TooManyRemoved as problem:
            self.refused = problem.sentence
            raise
        self.refused = ""
        self._dispatch.ids = roster.ids
        for name in roster.removed:
            for door in [door for door in self._dispatch.doors.values() if door.name == name]:
                door.dismiss(f"{name} was removed from the conductor's players file", 60.0)
        said = [f"player {name} added" for name in roster.added]
        said += [f"player {name} is back" for name in roster.returned]
        return (*said, *(f"player {name} removed" for name in roster.removed))

    async def learn_catalogues(self) -> None:
        """What players had on their disks when they were last seen."""
        for catalogue, players in await self._writer.write(statements.catalogues_in_use):
            self._dispatch.repertoires.learn(catalogue)
            for player in players:
                self._dispatch.repertoires.of[player] = catalogue.digest


class Conductor(Service):
    """Listens for players, sweeps the store, reloads."""

    log = Logger()

    def __init__(
        self,
        reactor: Any,
        read_settings: Callable[[], ConductorSettings],
        tls: ServerCredentials,
        dispatch: Dispatch,
        roster: Roster,
        names: tuple[str, ...],
        now: Callable[[], int],
        fail: Callable[[int], object],
    ) -> None:
        """``fail`` stops the daemon with an exit status. The audience's seat and the groups are added once there is a
        desk, and the upkeep of a store that is on a disk."""
        self._reactor = reactor
        self._read_settings = read_settings
        self._settings = read_settings()
        self._tls = tls
        self._dispatch = dispatch
        self._roster = roster
        self._names = names
        self._now = now
        self._fail = fail
        self.seat: Service | None = None
        self.ready: Callable[[], object] = lambda: None
        self.upkeep: Upkeep | None = None
        self.targeting: Targeting | None = None
        self._reloading = DeferredLock()
        self._warned_at: float | None = None
        self._ports: list[IListeningPort] = []
        self._loops: list[LoopingCall] = []
        self.addresses: list[tuple[str, int]] = []

    # ---- start and stop

    def startService(self) -> None:
        """Listen once the players are known to the store."""
        Service.startService(self)
        Deferred.fromCoroutine(self._open()).addErrback(self._cannot_open)

    async def _open(self) -> None:
        chosen = self._settings
        await self._roster.begin(self._names, _removals(chosen))
        await self._roster.learn_catalogues()
        await self._dispatch.learn_holds()
        if self.upkeep is not None:
            self.upkeep.look()
        limits = Limits(
            handshake=chosen.handshake_timeout / 1000,
            hello=chosen.hello_timeout / 1000,
            handshakes=chosen.max_handshakes,
            per_address=chosen.max_handshakes_per_address,
            queue=chosen.send_queue,
        )
        porch = Porch(self._reactor, self._tls, self._dispatch, limits)
        for listen in chosen.listen:
            endpoint: Any = TCP6ServerEndpoint if ":" in listen.host else TCP4ServerEndpoint
            try:
                port = await endpoint(self._reactor, listen.port, BACKLOG, listen.host).listen(porch)
            except OSError as problem:
                where = f"{listen.host}:{listen.port}"
                raise FileProblem(
                    file=f"{chosen.config}/conductor.conf", problem=f"cannot listen on {where}: {problem}"
                ) from None
            except Exception as problem:  # noqa: BLE001 - Twisted's CannotListenError carries the reason
                where = f"{listen.host}:{listen.port}"
                reason = getattr(problem, "socketError", problem)
                raise FileProblem(
                    file=f"{chosen.config}/conductor.conf", problem=f"cannot listen on {where}: {reason}"
                ) from None
            self._ports.append(port)
            address = port.getHost()
            self.addresses.append((address.host, address.port))
            self.log.info("players may connect to {host}:{port}", host=address.host, port=address.port)
        if self.seat is not None:
            self.seat.startService()
        self._start_loops(chosen.beat / 1000)
        many = len(self._dispatch.ids)
        players = "1 player" if many == 1 else f"{many} players"
        self.log.info("conductor {version} is running, {players}", version=__version__, players=players)
        self.ready()

    def _cannot_open(self, failure: Failure) -> None:
        if isinstance(failure.value, OrchestraError):
            self.log.error("the conductor cannot start: {problem}", problem=failure.value.sentence)
            self._fail(failure.value.status)
        else:
            self.log.failure("the conductor cannot start", failure=failure)
            self._fail(EX_SOFTWARE)

    def _start_loops(self, beat: float) -> None:
        self._loop(1.0, self._expire)
        self._loop(GIVE_UP_EVERY, self._give_up)
        if self.upkeep is not None:
            self._loop(LOOK_EVERY, self.upkeep.look)
            self._loop(PRUNE_EVERY, self.upkeep.prune)
        self._loop(FILES_EVERY, self._watch_files)
        self._loop(beat, self._sweep_silent, 3 * beat)

    def _loop(self, seconds: float, work: Callable[..., Any], *args: Any) -> None:
        said: list[str] = []  # a disk that stays full would have the same said every second

        def once() -> "Deferred[Any] | None":
            done = work(*args)
            if done is None:
                return None
            return Deferred.fromCoroutine(done).addCallbacks(
                lambda _: said.clear(), self._loop_failed, errbackArgs=(said,)
            )

        loop = LoopingCall(once)
        loop.clock = self._reactor
        self._loops.append(loop)
        loop.start(seconds, now=False).addErrback(lambda failure: self.log.failure("a sweep failed", failure=failure))

    def _loop_failed(self, failure: Failure, said: list[str]) -> None:
        if isinstance(failure.value, OrchestraError):
            if said != [failure.value.sentence]:
                said[:] = [failure.value.sentence]
                self.log.error("{problem}", problem=failure.value.sentence)
        else:
            self.log.failure("a sweep failed", failure=failure)

    def stopService(self) -> "Deferred[Any]":
        """Stop listening, let the players go; what they run goes on."""
        Service.stopService(self)
        for loop in self._loops:
            if loop.running:
                loop.stop()
        if self.upkeep is not None:
            self.upkeep.stop()
        done: Deferred[Any] = succeed(None)
        if self.seat is not None and self.seat.running:
            done.addCallback(partial(_stop, self.seat))
        for port in self._ports:
            done.addCallback(partial(_stop_listening, port))
        for door in tuple(self._dispatch.doors.values()):
            door.abort()
        return done

    # ---- time passes

    async def _expire(self) -> None:
        await self._dispatch.sweep(statements.expire)
        await self._dispatch.sweep(statements.open_due)

    async def _give_up(self) -> None:
        grace = self._settings.removal_grace
        await self._dispatch.give_up()
        await self._dispatch.sweep(lambda cursor, now: statements.sweep_removed(cursor, now, grace))
        await self._dispatch.sweep(lambda cursor, now: statements.strike_removed(cursor, now, grace))

    def _sweep_silent(self, seconds: float) -> None:
        self._dispatch.sweep_silent(seconds)

    async def _watch_files(self) -> None:
        ours = self._tls.credentials
        seconds = self._reactor.seconds()  # a clock that was put back must not keep a warning away
        if self._warned_at is None or seconds - self._warned_at >= WARN_EVERY:
            self._warned_at = seconds
            for warning in ours.warnings(self._now()):
                self.log.warn("{warning}", warning=warning)
        if ours.stale():
            changed = self._reload_credentials(self._settings)
            self.log.info("{changed}", changed=", ".join(changed))

    # ---- reload

    async def reload(self, accept_removals: int = 0) -> Reloaded:
        """Read players, groups, certificates and CRL again; what cannot be used is refused and the old one stays."""
        async with self._reloading:
            return await self._reload(accept_removals)

    async def _reload(self, accept_removals: int) -> Reloaded:
        changed: list[str] = []
        refused: list[str] = []
        try:
            chosen = self._read_settings()
        except OrchestraError as problem:
            return self._said([], [problem.sentence])
        restart = settings.differing(self._settings, chosen, {"players", "groups", *LIVE, *_files(chosen)})
        if restart:
            refused.append(settings.needs_restart(restart, "conductor"))
        changed += self._take_over(chosen)
        try:
            names = settings.players_file(chosen.players, chosen.default_domain)
            changed += await self._roster.put(names, _removals(chosen, accept_removals))
        except OrchestraError as problem:
            refused.append(problem.sentence)
        try:
            changed += self._reload_groups(chosen)
        except OrchestraError as problem:
            refused.append(problem.sentence)
        try:
            changed += self._reload_credentials(chosen)
        except OrchestraError as problem:
            refused.append(problem.sentence)
        return self._said(changed, refused)

    def _reload_groups(self, chosen: ConductorSettings) -> list[str]:
        if self.targeting is None:
            return []
        return self.targeting.take_over(load_groups(chosen._replace(default_domain=self._settings.default_domain)))

    def _take_over(self, chosen: ConductorSettings) -> list[str]:
        fresh = {key: getattr(chosen, key) for key in LIVE if getattr(chosen, key) != getattr(self._settings, key)}
        self._settings = self._settings._replace(**fresh)
        if self.upkeep is not None:
            self.upkeep.follow(self._settings)
        return [f"{', '.join(fresh)}: as in conductor.conf from now on"] if fresh else []

    def _said(self, changed: list[str], refused: list[str]) -> Reloaded:
        for line in changed:
            self.log.info("reload: {line}", line=line)
        for line in refused:
            self.log.error("reload refused: {line}", line=line)
        if not changed and not refused:
            self.log.info("reload: nothing has changed")
        return Reloaded(changed=tuple(changed), refused=tuple(refused))

    def _reload_credentials(self, chosen: ConductorSettings) -> list[str]:
        fresh = load_credentials(chosen)
        if not self._tls.credentials.stale() and _files(chosen) == _files(self._settings):
            return []
        self._tls.replace(fresh)
        self._settings = self._settings._replace(**_files(chosen))  # type: ignore[arg-type]  # these four are strings
        revoked = [door for door in self._dispatch.doors.values() if is_revoked(fresh, door.certificate)]
        for door in revoked:
            door.dismiss(f"the certificate of {door.name} was revoked", 600.0)
        closed = [f"closed the connection of {door.name}: its certificate was revoked" for door in revoked]
        return ["certificates read again", *closed]


def _files(chosen: ConductorSettings) -> dict[str, str]:
    return {key: getattr(chosen, key) for key in ("certificate", "key", "ca", "crl")}


def _removals(chosen: ConductorSettings, accepted: int = 0) -> Removals:
    return Removals(chosen.players, chosen.removal_limit.of, accepted)


def whole(*services: Service) -> MultiService:
    """The services as one: started in this order, stopped in the opposite one, each when the one before has stopped."""
    return _InOrder(services)


class _InOrder(MultiService):
    def __init__(self, services: Iterable[Service]) -> None:
        MultiService.__init__(self)
        for service in services:
            service.setServiceParent(self)

    def stopService(self) -> "Deferred[Any]":
        Service.stopService(self)
        done: Deferred[Any] = succeed(None)
        for service in reversed(list(self)):
            done.addCallback(partial(_stop, service))
        return done


def _stop(service: Any, _: object) -> Awaitable[Any] | None:
    with contextlib.suppress(NotImplementedError):
        return service.stopService()  # type: ignore[no-any-return]
    return None


def _stop_listening(port: Any, _: object) -> Any:
    return port.stopListening()
