"""The players: who there is, who is connected, and what each has to play."""

from collections.abc import Collection, Iterable
from sqlite3 import Cursor
from typing import Final

import msgspec

from orchestra.errors import NotAPlayer, RetiredJournal, Superseded, TooManyRemoved, Unconfirmed
from orchestra.model import Catalogue, Hello, OpenRun
from orchestra.store import moves
from orchestra.store.facts import came_with
from orchestra.store.ledger import Ledger
from orchestra.store.values import Greeting, Removals, Roster

NAMED: Final = 5  # of the players that a file would remove
_catalogue = msgspec.msgpack.Decoder(Catalogue)


def sync_players(cur: Cursor, names: Collection[str], now: int, allowed: Removals | None = None) -> Roster:
    """Make ``names`` the players. One that is no longer among them is removed; its row and its id stay for ever.
    TooManyRemoved, and nothing is changed, if more would be removed than is ``allowed``."""
    wanted, known = set(names), roster(cur)
    added = sorted(wanted - known.keys())
    removed = sorted(name for name, (_, enabled) in known.items() if enabled and name not in wanted)
    returned = sorted(name for name, (_, enabled) in known.items() if not enabled and name in wanted)
    if allowed is not None:
        _check_removals(removed, sum(enabled for _, enabled in known.values()), not wanted, allowed)
    cur.executemany("INSERT INTO players (name) VALUES (?)", [(name,) for name in added])
    changed = [(now, name) for name in removed] + [(None, name) for name in returned]
    cur.executemany("UPDATE players SET disabled_at = ? WHERE name = ?", changed)
    return Roster(players(cur), tuple(added), tuple(removed), tuple(returned))


def _check_removals(removed: list[str], many: int, nobody_left: bool, allowed: Removals) -> None:
    if len(removed) <= allowed.accepted:
        return
    most = allowed.most(many)
    if allowed.accepted:
        limit = f"{allowed.accepted} were accepted"
    elif nobody_left:
        limit = "would leave none"
    else:
        limit = f"'removal_limit' lets {most} go at once"
    if len(removed) > most or (nobody_left and removed):
        more = [f"and {len(removed) - NAMED} more"] if len(removed) > NAMED else []
        some = ", ".join([*removed[:NAMED], *more])
        raise TooManyRemoved(file=allowed.file, many=len(removed), all=many, some=some, limit=limit)


def players(cur: Cursor) -> dict[str, int]:
    """Every player that is not removed, with its id."""
    return {name: player for name, (player, enabled) in roster(cur).items() if enabled}


def roster(cur: Cursor) -> dict[str, tuple[int, bool]]:
    """Every player that ever was: its id, and whether it still is one."""
    rows = cur.execute("SELECT name, player_id, disabled_at IS NULL FROM players ORDER BY player_id")
    return {name: (player, bool(enabled)) for name, player, enabled in rows}


def is_newest(cur: Cursor, player: int, epoch: int, owner: str) -> bool:
    """Lock the player's row; whether this session is its newest."""
    row = cur.execute("SELECT epoch, owner FROM players WHERE player_id = ?", (player,)).fetchone()
    return bool(row == (epoch, owner))


def check_session(cur: Cursor, player: int, epoch: int, owner: str) -> None:
    """Lock the player's row and see that this session is its newest, else raise Superseded."""
    row = cur.execute("SELECT name, epoch, owner FROM players WHERE player_id = ?", (player,)).fetchone()
    if row is None or (row[1], row[2]) != (epoch, owner):
        raise Superseded(player=row[0] if row else f"player {player}", epoch=epoch)


# Coming and going


def hello(
    cur: Cursor, player: int, hello: Hello, owner: str, now: int, address: str, *, confirmed: bool = True
) -> Greeting:
    """Begin a session, which supersedes every earlier one of this player. What is ``open`` then, it is held to.

    :class:`Unconfirmed`: it comes with another journal than before, and nobody has seen that it is ``confirmed``.
    """
    name, journal, next_seq = _admit(cur, player, hello)
    if journal and journal != hello.journal and not confirmed:
        raise Unconfirmed(player=name)
    ledger, notes = Ledger(cur, now), _clones(cur, player, hello.journal)
    if journal and journal != hello.journal:
        notes += _retire(ledger, player, journal)
    if hello.high >= next_seq:
        notes += _rolled_back(ledger, player, hello.high, next_seq)
        next_seq = hello.high + 1
    known = knows_catalogue(cur, hello.catalogue)
    wanted = [hello.catalogue] if hello.catalogue and not known else []
    wanted += [hello.facts] if came_with(cur, player, hello.facts) else []
    epoch = _begin(cur, player, hello, (owner, now, address, next_seq, known))
    open_tasks = moves.open_tasks(cur, player)
    ended = ledger.close()
    return Greeting(
        epoch=epoch,
        next_seq=next_seq,
        open=tuple(OpenRun(task.seq, task.job, task.n, task.attempt, bool(task.cancel)) for task in open_tasks),
        open_scores=_score_names(cur, open_tasks),
        wanted=tuple(wanted),
        jobs=ledger.jobs,
        ended=ended,
        notes=tuple(f"{name}: {note}" for note in notes),
        journal_is_new=journal != hello.journal,
        freed=tuple(ledger.freed),
    )


def _admit(cur: Cursor, player: int, hello: Hello) -> tuple[str, str, int]:
    row = cur.execute(
        "SELECT name, journal, next_seq, disabled_at FROM players WHERE player_id = ?", (player,)
    ).fetchone()
    if row is None or row[3] is not None:
        raise NotAPlayer(player=row[0] if row else f"player {player}")
    retired = cur.execute(
        "SELECT retired_at FROM journals WHERE journal = ? AND player_id = ?", (hello.journal, player)
    ).fetchone()
    if retired is not None and retired[0] is not None:
        raise RetiredJournal(player=row[0], journal=hello.journal)
    return row[0], row[1], row[2]


def _clones(cur: Cursor, player: int, journal: str) -> list[str]:
    rows = cur.execute(
        "SELECT name FROM journals LEFT JOIN players ON players.player_id = journals.player_id "
        "WHERE journals.journal = ? AND journals.player_id <> ?",
        (journal, player),
    )
    return [f"its journal is also that of {name}: was its disk cloned?" for (name,) in rows.fetchall()]


def _retire(ledger: Ledger, player: int, journal: str) -> list[str]:
    ledger.cur.execute(
        "UPDATE journals SET retired_at = ? WHERE journal = ? AND player_id = ?", (ledger.now, journal, player)
    )
    many = moves.lose(ledger, moves.open_tasks(ledger.cur, player), "the player came back with a new journal")
    return [f"it came with a new journal; runs that are lost with the old one: {many}"]


def _rolled_back(ledger: Ledger, player: int, high: int, next_seq: int) -> list[str]:
    reason = "the conductor's store had been put back to an earlier state"
    waiting = moves.rows(ledger.cur, "player_id = ? AND state = 0", (player,))
    waiting += moves.rows(ledger.cur, "player_id = ? AND state = 2", (player,))  # it may have been let go since
    many = moves.lose(ledger, [*moves.open_tasks(ledger.cur, player), *waiting], reason)
    return [f"its journal has seen run {high}, our next is {next_seq}: {reason}; tasks that are lost by it: {many}"]


def _begin(cur: Cursor, player: int, hello: Hello, rest: tuple[str, int, str, int, bool]) -> int:
    owner, now, address, next_seq, known = rest
    cur.execute(
        "INSERT INTO journals (journal, player_id) VALUES (?, ?) ON CONFLICT DO NOTHING", (hello.journal, player)
    )
    if known:
        cur.execute("UPDATE players SET catalogue = ? WHERE player_id = ?", (hello.catalogue, player))
    row = cur.execute(
        "UPDATE players SET epoch = epoch + 1, owner = ?, journal = ?, next_seq = ?, online_at = ?, seen_at = ?, "
        "slots = ?, version = ?, address = ?, note = ? WHERE player_id = ? RETURNING epoch",
        (owner, hello.journal, next_seq, now, now, hello.slots, hello.version, address, hello.note, player),
    ).fetchone()
    return int(row[0])


def _score_names(cur: Cursor, tasks: Iterable[moves.TaskRow]) -> dict[int, str]:
    names: dict[int, str] = {}
    for score in {task.score_id for task in tasks}:
        names[score] = cur.execute("SELECT name FROM scores WHERE score_id = ?", (score,)).fetchone()[0]
    return {task.seq: names[task.score_id] for task in tasks}


def goodbye(cur: Cursor, player: int, epoch: int, now: int) -> None:
    """End a session, unless a newer one has begun."""
    cur.execute("UPDATE players SET owner = '', seen_at = ? WHERE player_id = ? AND epoch = ?", (now, player, epoch))


def forgive(cur: Cursor, player: int) -> int:
    """Let a player come back with a journal that a newer one had replaced; how many were retired."""
    return cur.execute(
        "UPDATE journals SET retired_at = NULL WHERE player_id = ? AND retired_at IS NOT NULL", (player,)
    ).rowcount


def everybody_left(cur: Cursor) -> None:
    """End every session: for a conductor that starts, and knows that it is the only one."""
    cur.execute("UPDATE players SET owner = '' WHERE owner <> ''")


def seen(cur: Cursor, players: Iterable[int], now: int) -> None:
    """Write down that these players are there."""
    cur.executemany("UPDATE players SET seen_at = ? WHERE player_id = ?", [(now, player) for player in players])


# What they have to play


def knows_catalogue(cur: Cursor, digest: str) -> bool:
    """Whether a catalogue's body is here."""
    return cur.execute("SELECT 1 FROM catalogues WHERE digest = ?", (digest,)).fetchone() is not None


def announce(cur: Cursor, player: int, catalogue: Catalogue, now: int) -> None:
    """Give a player this catalogue, and forget the one it had if nobody else has it."""
    body = msgspec.msgpack.encode(catalogue)
    cur.execute(
        "INSERT INTO catalogues (digest, scores, body) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (catalogue.digest, len(catalogue.scores), body),
    )
    old = cur.execute("SELECT catalogue FROM players WHERE player_id = ?", (player,)).fetchone()
    cur.execute("UPDATE players SET catalogue = ?, seen_at = ? WHERE player_id = ?", (catalogue.digest, now, player))
    cur.execute(
        "DELETE FROM catalogues WHERE digest = ? AND NOT EXISTS (SELECT 1 FROM players WHERE catalogue = digest)", old
    )


def catalogue(cur: Cursor, digest: str) -> Catalogue | None:
    """A catalogue by its digest."""
    row = cur.execute("SELECT body FROM catalogues WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else _catalogue.decode(row[0])


def catalogues_in_use(cur: Cursor) -> list[tuple[Catalogue, tuple[int, ...]]]:
    """Every catalogue, with the players that have it and are not removed."""
    holders: dict[str, list[int]] = {}
    for player, digest in player_catalogues(cur).items():
        holders.setdefault(digest, []).append(player)
    rows = cur.execute("SELECT digest, body FROM catalogues ORDER BY digest")
    return [(_catalogue.decode(body), tuple(holders[digest])) for digest, body in rows if digest in holders]


def holders(cur: Cursor) -> dict[str, list[str]]:
    """The players that are not removed, by the digest of their catalogue, in order; "" is one that is not known."""
    found: dict[str, list[str]] = {}
    for digest, name in cur.execute(
        "SELECT catalogue, name FROM players WHERE disabled_at IS NULL ORDER BY catalogue, name"
    ):
        found.setdefault(digest, []).append(name)
    return found


def player_catalogues(cur: Cursor) -> dict[int, str]:
    """Which catalogue each player has, by ascending id; removed players and those without one left out."""
    rows = cur.execute(
        "SELECT player_id, catalogue FROM players WHERE disabled_at IS NULL AND catalogue <> '' ORDER BY player_id"
    )
    return dict(rows.fetchall())
