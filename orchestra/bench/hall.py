"""What a case is measured in: one conductor with real and emulated players, all of them processes, and a client.

The daemons are made by whoever opens a :class:`House`; here they are filled with players and work.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater

from orchestra.audience.client import Ask, Orchestra, Scope, blocking, running_reactor
from orchestra.bench import fleet, floors
from orchestra.bench.company import Company
from orchestra.bench.processes import Meter
from orchestra.errors import BenchFailed
from orchestra.model import JobView

T = TypeVar("T")

DOMAIN: Final = "emulated.test"
EMULATED: Final = "noop"
TIMEOUT: Final = 600.0
MEGABYTE: Final = 1_000_000
SCORES: Final = {
    "megabyte": (f"#!/bin/sh\nexec head -c {MEGABYTE} /dev/zero\n", "concurrency = 2\n"),
    "sleeper": ("#!/bin/sh\nexec sleep 0.01\n", "concurrency = 8\n"),
}


class House(Protocol):
    """Real daemons in a directory, as :class:`orchestra.cli.theatre.Theatre` keeps them."""

    home: Path
    port: int
    conductor_name: str
    names: list[str]

    @property
    def socket(self) -> Path: ...
    def build(self, scores_from: Path) -> object: ...
    def start_conductor(self) -> None: ...
    def start_player(self, short: str) -> None: ...
    def pid(self, daemon: str) -> int: ...
    def stages(self) -> list[int]: ...
    def stop(self, daemon: str) -> None: ...
    def kill(self, daemon: str) -> None: ...
    def close(self) -> None: ...


OpenHouse = Callable[[Path, Sequence[str]], House]
"""(empty directory, short names of real players) -> a house that is not built yet."""


class Hall:
    """A house with its fleet and a client."""

    def __init__(self, house: House, emulated: int, absent: int) -> None:
        self.house = house
        self.real = [name.split(".")[0] for name in house.names]
        self.emulated = fleet.names("e", emulated, DOMAIN) if emulated else []
        self.absent = fleet.names("absent", absent, DOMAIN) if absent else []
        self.company: Company | None = None
        self._reactor = running_reactor()
        self._client: Orchestra | None = None

    # ---- the setting

    def build(self) -> None:
        """Certificates, files and scores; nothing is started."""
        scores = self.house.home / "material"
        scores.mkdir()
        for name, (text, conf) in SCORES.items():
            (scores / name).write_text(text)
            (scores / f"{name}.conf").write_text(conf)
        shutil.copy(floors.TRUE, scores / "true")
        (scores / "true.conf").write_text("concurrency = 8\n")
        self.house.build(scores)
        with open(self.house.home / "players", "a") as players:
            players.writelines(f"{name}\n" for name in (*self.emulated, *self.absent))

    def start(self) -> None:
        """The conductor, and the real players."""
        self.house.start_conductor()
        for player in self.real:
            self.house.start_player(player)
        if self.real:
            self.do(self._until_there(len(self.real)))

    def fill(self, seconds: float = 0.0, rate: float = 1000.0) -> float:
        """Start the emulated players; how many seconds they took to connect."""
        arguments = [
            f"--conductor={self.house.conductor_name}@127.0.0.1:{self.house.port}",
            f"--authority={self.house.home / 'ca'}",
            f"--domain={DOMAIN}",
            f"--seconds={seconds}",
            f"--rate={rate}",
        ]
        self.company = Company(arguments, len(self.emulated), self.house.home / "log" / "emulate.log")
        took = self.company.connected()
        self.do(self._until_there(len(self.emulated) + len(self.real)))
        return took

    @property
    def company_pid(self) -> int:
        assert self.company is not None
        return self.company.pid

    def close(self) -> None:
        """End everything that was started here."""
        self.leave()
        if self.company is not None:
            self.company.stop()
        self.house.close()

    # ---- the audience

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """What ``work`` returns, run where the client lives."""
        return blocking(self._reactor, work)

    async def client(self) -> Orchestra:
        """The conductor's client, connected."""
        if self._client is None:
            self._client = await Orchestra.connect(self._reactor, str(self.house.socket))
        return self._client

    def leave(self) -> None:
        """Close the client; the next call makes a new one."""
        client, self._client = self._client, None
        if client is not None:
            self.do(_closed(client))

    async def _until_there(self, many: int) -> None:
        client = await self.client()
        end = self._reactor.seconds() + TIMEOUT
        while (await client.about()).online < many:
            if self._reactor.seconds() > end:
                raise BenchFailed(case="start", problem=f"{many} players were not there after {TIMEOUT:.0f} s")
            await self.pause(0.02)

    async def pause(self, seconds: float) -> None:
        """Let time pass for the client."""
        await deferLater(self._reactor, seconds)

    async def at_once(self, works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        """What all of them return."""
        found: list[T] = await gatherResults([Deferred.fromCoroutine(work) for work in works], consumeErrors=True)
        return found

    def meter(self) -> Meter:
        """What every process here costs from now on."""
        stages = self.house.stages()
        return Meter(
            {
                "conductor": [self.house.pid("conductor")],
                "player": [self.house.pid(player) for player in self.real],
                "stage": stages,
                "emulator": [self.company.pid] if self.company else [],
                "bench": [os.getpid()],
            }
        )


def ask(score: str, targets: Sequence[str], scope: Scope = Scope.ALL) -> Ask:
    """A request that waits as long as it must."""
    return Ask(score=score, targets=tuple(targets), scope=scope, expire=0)


def check(case: str, job: JobView, tasks: int) -> None:
    """Every task of a job has ended ``ok``, or the case is void."""
    if job.counts != {"ok": tasks} or job.verdict != "ok":
        raise BenchFailed(
            case=case, problem=f"job {job.job} should have {tasks} tasks that are ok, and has {job.counts}"
        )


def check_performed(case: str, hall: Hall, tasks: int) -> None:
    """The emulated players were given every task once, and all are still there."""
    assert hall.company is not None
    counts = hall.company.counts()
    if counts["performed"] != tasks or counts["losses"]:
        raise BenchFailed(
            case=case, problem=f"{tasks} runs on {len(hall.emulated)} players were expected, not {counts}"
        )


@contextlib.contextmanager
def opened(
    open_house: OpenHouse, home: Path, real: Sequence[str] = (), emulated: int = 0, absent: int = 0
) -> Iterator[Hall]:
    """A hall that is built, and in the end closed and removed."""
    home.mkdir(parents=True)
    hall = Hall(open_house(home, real), emulated, absent)
    try:
        hall.build()
        yield hall
    finally:
        hall.close()
        shutil.rmtree(home)


async def _closed(client: Orchestra) -> None:
    client.close()
