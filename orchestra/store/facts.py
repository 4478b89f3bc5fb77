"""What is known of the players' machines. Players of which the same is known share one body, by its digest."""

from collections.abc import Iterable
from sqlite3 import Cursor
from typing import Final

import msgspec

from orchestra.model import Facts

_decode = msgspec.msgpack.Decoder(Facts).decode
_encode = msgspec.msgpack.Encoder().encode
_OF_ALL: Final = "SELECT name, facts FROM players WHERE facts <> ''"


def came_with(cur: Cursor, player: int, digest: str) -> bool:
    """A player says that this is known of its machine; whether the body is to be announced first. Until then, nothing
    is known of it: what was known before may have ceased to be true."""
    known = cur.execute("SELECT 1 FROM facts WHERE digest = ?", (digest,)).fetchone() is not None
    _give(cur, player, digest if known else "")
    return bool(digest) and not known


def announce_facts(cur: Cursor, player: int, facts: Facts) -> None:
    """Give a player these facts, and forget the ones it had if nobody else has them."""
    row = (facts.digest, _encode(facts))
    cur.execute("INSERT INTO facts (digest, body) VALUES (?, ?) ON CONFLICT DO NOTHING", row)
    _give(cur, player, facts.digest)


def _give(cur: Cursor, player: int, digest: str) -> None:
    (before,) = cur.execute("SELECT facts FROM players WHERE player_id = ?", (player,)).fetchone()
    if before != digest:
        cur.execute("UPDATE players SET facts = ? WHERE player_id = ?", (digest, player))
        nobody = "NOT EXISTS (SELECT 1 FROM players WHERE players.facts = facts.digest)"
        cur.execute(f"DELETE FROM facts WHERE digest = ? AND {nobody}", (before,))


def facts_of(cur: Cursor, names: Iterable[str]) -> dict[str, Facts | None]:
    """What is known of the machines of these players, in their order; None: nothing yet. Each body is decoded once."""
    digests = dict(cur.execute(_OF_ALL).fetchall())
    wanted = list(names)
    needed = {digests[name] for name in wanted if name in digests}
    bodies = cur.execute("SELECT digest, body FROM facts").fetchall() if needed else ()
    found = {digest: _decode(body) for digest, body in bodies if digest in needed}
    return {name: found.get(digests.get(name, "")) for name in wanted}
