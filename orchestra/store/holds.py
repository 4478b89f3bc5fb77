"""What is not to be handed out, until somebody releases it."""

from collections.abc import Collection, Iterable, Sequence
from sqlite3 import Cursor

from orchestra.model import Asker, Held, Hold
from orchestra.store.values import HeldBack, Lifted

Mark = tuple[Held, str]
"""What a hold is of, and its name."""


def hold(cur: Cursor, marks: Iterable[Mark], reason: str, who: Asker, now: int) -> HeldBack:
    """Hold these from this commit on. What is held already stays as it was, with its first reason."""
    before = {(one.kind, one.name) for one in holds(cur)}
    wanted = list(marks)
    cur.executemany(
        "INSERT INTO holds (kind, name, reason, at, owner, uid, login_uid) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT DO NOTHING",
        [(kind, name, reason, now, who.name, who.uid, who.login_uid) for kind, name in wanted],
    )
    found = [one for one in holds(cur) if (one.kind, one.name) in wanted]
    known = tuple(one for one in found if (one.kind, one.name) in before)
    made = tuple(one for one in found if one not in known)
    return HeldBack(made, known, sum(_handed_over(cur, one) for one in found))


def release(cur: Cursor, marks: Collection[Mark] | None) -> Lifted:
    """Lift these holds, or all; what was held, and what still is."""
    found = [one for one in holds(cur) if marks is None or (one.kind, one.name) in marks]
    cur.executemany("DELETE FROM holds WHERE kind = ? AND name = ?", [(one.kind, one.name) for one in found])
    return Lifted(tuple(found), tuple(holds(cur)))


def holds(cur: Cursor) -> list[Hold]:
    """Everything that is held: everything itself first, then hosts and scores by name."""
    rows = cur.execute("SELECT kind, name, reason, at, owner, uid, login_uid FROM holds ORDER BY kind, name")
    return [_hold(row) for row in rows]


def _hold(row: Sequence[object]) -> Hold:
    kind, name, reason, at, owner, uid, login_uid = row
    given: dict[str, object] = {"name": name, "reason": reason, "at": at, "owner": owner, "uid": uid}
    return Hold(kind=Held(str(kind)), login_uid=login_uid, **given)  # type: ignore[arg-type]  # the table is STRICT


def _handed_over(cur: Cursor, of: Hold) -> int:
    """How many tasks a player has already, which go on."""
    match of.kind:
        case Held.EVERYTHING:
            row = cur.execute("SELECT many FROM totals WHERE state = 1").fetchone()
        case Held.HOST:
            row = cur.execute(
                "SELECT count(*) FROM tasks WHERE state = 1 AND player_id = "
                "(SELECT player_id FROM players WHERE name = ?)",
                (of.name,),
            ).fetchone()
        case Held.SCORE:
            row = cur.execute(
                "SELECT coalesce(sum(dispatched), 0) FROM jobs WHERE ended_at IS NULL AND score_id = "
                "(SELECT score_id FROM scores WHERE name = ?)",
                (of.name,),
            ).fetchone()
    return int(row[0])
