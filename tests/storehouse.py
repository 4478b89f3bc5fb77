"""A conductor's store in memory, with players that are there: what the tests of the store start from."""

from collections.abc import Sequence
from sqlite3 import Cursor
from typing import Any

from orchestra.model import Asker, Hello, NewJob, Report, Run, Scope, Told
from orchestra.store import sqlite, statements
from orchestra.store.values import ClaimAsk, Claimed, Greeting, Settled, Submitted

OWNER = "conductor-1"
ANNE = Asker(name="anne", uid=1000)
HOUR = 3_600_000


def greet(cur: Cursor, player: int, now: int = 0, *, owner: str = OWNER, **changes: Any) -> Greeting:
    """Have a player say Hello."""
    asked: dict[str, Any] = {"journal": f"journal-{player}", "high": 0, "slots": 8, "catalogue": ""} | changes
    hello = Hello(protocol=1, version="1.0", boot="boot", **asked)
    return statements.hello(cur, player, hello, owner, now, "192.0.2.1")


def job(players: Sequence[int], scope: Scope = Scope.ALL, **changes: Any) -> NewJob:
    """A request that was accepted."""
    asked: dict[str, Any] = {
        "owner": ANNE,
        "request_key": None,
        "score": "uptime",
        "params": {"path": "/"},
        "idempotent": False,
        "max_attempts": 3,
        "priority": 0,
        "expires_at": 24 * HOUR,
        "give_up_after": HOUR,
    }
    return NewJob(scope=scope, players=tuple(players), **(asked | changes))


class Storehouse:
    """A store with players ``web-1`` (id 1) and so on, each with a session."""

    def __init__(self, players: int = 3) -> None:
        self.connection = sqlite.in_memory()
        self.cur = self.connection.cursor()
        self.names = [f"web-{n}" for n in range(1, players + 1)]
        statements.sync_players(self.cur, self.names, 0)
        self.epochs = {player: greet(self.cur, player).epoch for player in range(1, players + 1)}

    def submit(self, players: Sequence[int], scope: Scope = Scope.ALL, now: int = 0, **changes: Any) -> int:
        return self.submitted(players, scope, now, **changes).job

    def submitted(self, players: Sequence[int], scope: Scope = Scope.ALL, now: int = 0, **changes: Any) -> Submitted:
        return statements.submit(self.cur, job(players, scope, **changes), now)

    def ask(self, player: int, room: int = 16, **changes: Any) -> ClaimAsk:
        given: dict[str, Any] = {"epoch": self.epochs[player], "owner": OWNER, "default_limit": 100}
        return ClaimAsk(player=player, room=room, **(given | changes))

    def claimed(self, player: int, room: int = 16, now: int = 0, **changes: Any) -> Claimed:
        return statements.claim(self.cur, [self.ask(player, room, **changes)], now)[0]

    def claim(self, player: int, room: int = 16, now: int = 0, **changes: Any) -> tuple[Run, ...]:
        return self.claimed(player, room, now, **changes).runs

    def settle(self, player: int, *reports: Report, now: int = 0) -> Settled:
        return statements.settle(self.cur, player, self.epochs[player], OWNER, reports, now)

    def states(self, job: int) -> list[str]:
        return [view.state for view in statements.task_views(self.cur, job, -1, 10_000)]

    def state(self, job: int) -> str:
        (state,) = self.states(job)
        return state

    def kinds(self, job: int) -> list[str]:
        return [event.kind for event in statements.events(self.cur, job, 0, 100_000)]


def report(run: Run, told: Told, **changes: Any) -> Report:
    """What a player says of a run."""
    return Report(run.seq, run.job, run.task, run.attempt, told, **changes)
