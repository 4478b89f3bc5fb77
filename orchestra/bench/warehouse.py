"""The store alone: claims and finishes in transactions of about a hundred, with nobody to tell."""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from sqlite3 import Cursor
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred

from orchestra.bench import figures
from orchestra.bench.figures import Row
from orchestra.bench.processes import Meter
from orchestra.bench.sizes import Setting
from orchestra.errors import BenchFailed
from orchestra.model import Asker, Hello, NewJob, Report, Run, Scope, Told
from orchestra.store import sqlite, statements
from orchestra.store.values import Batch, ClaimAsk, Claimed
from orchestra.store.writer import commit

OWNER: Final = "bench"
ROOM: Final = 2  # tasks for each player of a claim
PLAYERS: Final = 50  # players in one transaction
ASKER: Final = Asker(name="bench", uid=0)

T = TypeVar("T")


class Warehouse:
    """A store on disk with ``players`` players, all of them there."""

    def __init__(self, home: Path, players: int) -> None:
        self._home = home
        self._store = sqlite.Store(str(home))
        self._store.open()
        self._connection = self._store.connect()
        names = [f"p{n:05d}" for n in range(players)]
        self._players = sorted(self._do(lambda cur: statements.sync_players(cur, names, 0)).ids.values())
        self._epochs = {player: self._greet(player) for player in self._players}

    def __enter__(self) -> "Warehouse":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._store.close()
        shutil.rmtree(self._home)

    def _greet(self, player: int) -> int:
        hello = Hello(1, "bench", f"journal-{player}", "boot", 0, 8, "")
        return self._do(lambda cur: statements.hello(cur, player, hello, OWNER, 0, "127.0.0.1")).epoch

    def _do(self, work: Callable[[Cursor], T]) -> T:
        """Do ``work`` in a transaction of its own, as the conductor's writer does."""
        [(_, result)], problem = commit(self._connection, "store", [(work, Deferred())])
        if problem is not None:
            raise BenchFailed(case="store", problem=str(problem))
        return _good(result)  # type: ignore[no-any-return]

    def fill(self, tasks: int) -> None:
        """Have so many tasks wait, evenly."""
        new = NewJob(
            owner=ASKER,
            request_key=None,
            score="noop",
            params={},
            scope=Scope.ALL,
            players=tuple(self._players),
            idempotent=False,
            max_attempts=1,
            priority=0,
            expires_at=None,
            give_up_after=0,
        )
        for _ in range(tasks // len(self._players)):
            self._do(lambda cur: statements.submit(cur, new, 0))

    def claim(self) -> list[Claimed]:
        """Claim all that waits, a few tasks for some players at a time."""
        found: list[Claimed] = []
        more = True
        while more:
            turn = [claimed for some in self._groups() for claimed in self._claim(some)]
            found += turn
            more = any(claimed.more for claimed in turn)
        return found

    def _claim(self, players: list[int]) -> list[Claimed]:
        asks = [ClaimAsk(player, self._epochs[player], OWNER, ROOM, default_limit=100) for player in players]
        return self._do(lambda cur: statements.claim(cur, asks, 1))

    def _groups(self) -> Iterator[list[int]]:
        for begin in range(0, len(self._players), PLAYERS):
            yield self._players[begin : begin + PLAYERS]

    def finish(self, claims: list[Claimed]) -> int:
        """Settle all of them as ``ok``, a hundred in a transaction; how many."""
        for begin in range(0, len(claims), PLAYERS):
            self._settle(claims[begin : begin + PLAYERS])
        done = self._connection.execute("SELECT sum(ok), sum(pending), sum(dispatched) FROM jobs").fetchone()
        finished = sum(len(claimed.runs) for claimed in claims)
        if done[1] or done[2] or done[0] < finished:
            raise BenchFailed(case="store", problem=f"ok, pending and dispatched are {done} after {finished} tasks")
        return finished

    def _settle(self, claims: Iterable[Claimed]) -> None:
        batches = [Batch(one.player, self._epochs[one.player], [_report(run) for run in one.runs]) for one in claims]
        self._do(lambda cur: statements.settle_all(cur, OWNER, batches, 2))

    def both(self, tasks: int) -> float:
        """Tasks per second, submitted, claimed and finished."""
        begun = time.perf_counter()
        self.fill(tasks)
        done = self.finish(self.claim())
        return done / (time.perf_counter() - begun)


def _report(run: Run) -> Report:
    return Report(run.seq, run.job, run.task, run.attempt, Told.OK, rc=0, started_at=1, ended_at=2)


def _good(result: Any) -> Any:
    if hasattr(result, "raiseException"):
        result.raiseException()
    return result


def store(setting: Setting) -> Iterator[Row]:
    """Claims and finishes per second on the store alone."""
    sizes = setting.sizes
    claims, finishes = [], []
    with Warehouse(setting.home / "store", 1000 if sizes.store_tasks >= 10_000 else 100) as warehouse:
        meter = Meter({"bench": [os.getpid()]})
        for _ in range(sizes.repeats):
            warehouse.fill(sizes.store_tasks)
            begun = time.perf_counter()
            claimed = warehouse.claim()
            claims.append(sizes.store_tasks / (time.perf_counter() - begun))
            begun = time.perf_counter()
            done = warehouse.finish(claimed)
            finishes.append(done / (time.perf_counter() - begun))
            if done != sizes.store_tasks:
                raise BenchFailed(case="store", problem=f"{done} tasks were finished of {sizes.store_tasks}")
        cpu = meter.per(sizes.store_tasks * sizes.repeats)
    yield figures.values("store", "claims, 50 players x 2 a transaction", "/s", claims, cpu=cpu)
    yield figures.values("store", "finishes, 100 a transaction", "/s", finishes)
