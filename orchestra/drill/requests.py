"""What a drill asks for: a stream of requests that is a function of the seed alone. Pure."""

from collections.abc import Iterator, Sequence
from random import Random
from typing import Final

from msgspec import Struct

from orchestra.model import Ask, Rolling, Scope

SHARES: Final = {
    "once": 34,
    "again": 26,
    "narrow": 8,
    "brief": 6,
    "somewhere": 6,
    "left": 5,
    "right": 5,
    "sworn": 10,
}
"""How much of the work each score is."""

HASTY: Final = 0.08  # share of submits whose asker hangs up before the answer
KEYLESS: Final = 0.05
REPEATED: Final = 0.10  # share of keys that are sent again later
CONFLICTING: Final = 0.03
CANCELLED: Final = 0.10
ROLLING: Final = 0.25  # of all-of work
LONG_OUTPUT: Final = 30_000  # bytes: more than travels with a report


class Wish(Struct, frozen=True, kw_only=True):
    """A request and its asker's manners. ``cancel_after``: seconds or None; ``cancel_on``: only there, if any."""

    ask: Ask
    hasty: bool = False
    repeat: bool = False
    conflict: bool = False
    cancel_after: float | None = None
    cancel_on: tuple[str, ...] = ()


def wishes(seed: int, players: Sequence[str]) -> Iterator[Wish]:
    """One after another, without end."""
    chance = Random(f"requests of {seed}")
    n = 0
    while True:
        n += 1
        yield _wish(chance, f"drill-{seed}-{n}", players)


def _wish(chance: Random, key: str, players: Sequence[str]) -> Wish:
    score = chance.choices(tuple(SHARES), tuple(SHARES.values()))[0]
    scope = chance.choices((Scope.ALL, Scope.ONE, Scope.SOME), (55, 30, 15))[0]
    targets = tuple(sorted(chance.sample(list(players), chance.randint(1, len(players)))))
    if score == "somewhere" and len(players) > 1 and targets == (players[-1],):
        targets = (players[0],)  # what no target has is refused at once, and is no work
    keyless = chance.random() < KEYLESS
    cancel = chance.random() < CANCELLED
    ask = Ask(
        score=score,
        targets=targets,
        scope=scope,
        count=chance.randint(1, len(targets)) if scope is Scope.SOME else 1,
        params=_params(chance, key, score),
        expire=chance.uniform(0.3, 3.0) if chance.random() < 0.1 else None,
        request_key=None if keyless else key,
        priority=chance.choice((0, 0, 0, 5)),
        rolling=_rolling(chance) if scope is Scope.ALL and chance.random() < ROLLING else None,
        private={"token": f"secret of {key}"} if score == "sworn" else {},
    )
    return Wish(
        ask=ask,
        hasty=chance.random() < HASTY,
        repeat=not keyless and chance.random() < REPEATED,
        conflict=not keyless and chance.random() < CONFLICTING,
        cancel_after=chance.uniform(0.0, 2.0) if cancel else None,
        cancel_on=targets[:1] if cancel and chance.random() < 0.3 else (),
    )


def _rolling(chance: Random) -> Rolling:
    return Rolling(
        batch=chance.choice(("1", "1", "2")),
        canary=chance.choice((0, 0, 1)),
        max_failures=chance.choice(("0", "1", "9")),
        pause=chance.choice((0.0, 0.0, 0.5)),
    )


def _params(chance: Random, key: str, score: str) -> dict[str, str]:
    params = {"word": key}
    if score == "brief":
        params["seconds"] = chance.choice(("0", "20"))
    elif chance.random() < 0.3:
        params["seconds"] = f"{chance.uniform(1, 3):.2f}"
    if chance.random() < 0.1:
        params["status"] = str(chance.randint(1, 9))
    if chance.random() < 0.1:
        params["bytes"] = str(chance.randint(1, LONG_OUTPUT))
    return params
