"""The claim: pending tasks become runs of a player, numbered without a hole, in one transaction.

A claim is a range scan of what waits for the player. Where not everything fits, scores are looked at one by one, so
that a hundred thousand tasks of a busy score do not hide the next score.
"""

from collections.abc import Iterable, Sequence
from heapq import merge
from itertools import islice
from sqlite3 import Cursor
from typing import Final, NamedTuple

import msgspec

from orchestra.model import Run, State
from orchestra.store import moves
from orchestra.store.ledger import Ledger
from orchestra.store.values import ClaimAsk, Claimed

_decode = msgspec.json.Decoder(dict[str, str]).decode


class _Source(NamedTuple):
    """Where pending work of a player is found: its own tasks, or the one-of tasks it is a candidate of."""

    first: str
    next_score: str
    of_score: str


def _source(table: str, where: str) -> _Source:
    start = f"SELECT rank, job_id, n, score_id FROM {table} WHERE player_id = ? {where}"
    return _Source(
        f"{start} ORDER BY rank, score_id, job_id, n LIMIT ?",
        f"SELECT rank, score_id FROM {table} WHERE player_id = ? {where} AND (rank, score_id) > (?, ?) "
        "ORDER BY rank, score_id LIMIT 1",
        f"{start} AND rank = ? AND score_id = ? ORDER BY job_id, n LIMIT ?",
    )


_SOURCES: Final = (_source("tasks", "AND state = 0"), _source("candidates", ""))
_BEFORE_ALL: Final = -(1 << 62)
_CLAIM: Final = (
    "UPDATE tasks SET state = 1, attempt = attempt + 1, player_id = ?, seq = ?, dispatched_at = ?, changed_at = ?, "
    "reason = '' WHERE job_id = ? AND n = ? AND state + 0 = 0 AND cancel = 0 RETURNING attempt"
)
_JOB: Final = (
    "SELECT scores.name, job_params.body, jobs.expires_at, jobs.scope FROM jobs JOIN scores USING (score_id) "
    "JOIN job_params USING (job_id) WHERE job_id = ?"
)
Waiting = tuple[int, int, int, int]  # rank, job, n, score_id


class _Job(NamedTuple):
    score: str
    params: dict[str, str]
    expires_at: int | None
    one_of: bool


class _Books:
    """What one call of :func:`claim` looks up only once."""

    def __init__(self, cur: Cursor, now: int) -> None:
        self.cur = cur
        self.now = now
        self.ledger = Ledger(cur, now)
        self._jobs: dict[int, _Job] = {}
        self._scores: dict[int, str] = {}

    def job(self, job: int) -> _Job:
        if job not in self._jobs:
            name, body, expires_at, scope = self.cur.execute(_JOB, (job,)).fetchone()
            self._jobs[job] = _Job(name, _decode(body), expires_at, scope == "one")
        return self._jobs[job]

    def score(self, score: int) -> str:
        if score not in self._scores:
            row = self.cur.execute("SELECT name FROM scores WHERE score_id = ?", (score,)).fetchone()
            self._scores[score] = row[0]
        return self._scores[score]


def claim(cur: Cursor, asks: Sequence[ClaimAsk], now: int) -> list[Claimed]:
    """Give each player what it has room for, by ascending id. A session that is not the newest gets nothing."""
    books = _Books(cur, now)
    claimed = [_claim_for(books, ask) for ask in sorted(asks, key=lambda ask: ask.player)]
    books.ledger.close()
    return claimed


def _claim_for(books: _Books, ask: ClaimAsk) -> Claimed:
    row = books.cur.execute(
        "SELECT next_seq, epoch, owner FROM players WHERE player_id = ? AND disabled_at IS NULL", (ask.player,)
    ).fetchone()
    if row is None or row[1:] != (ask.epoch, ask.owner):
        return Claimed(ask.player, (), False, frozenset())
    waiting, more = _choose(books, ask)
    runs: list[Run] = []
    for rank, job, n, score in waiting:
        run = _take(books, ask.player, row[0] + len(runs), (rank, job, n, score))
        if run is not None:
            runs.append(run)
    if runs:
        books.cur.execute("UPDATE players SET next_seq = ? WHERE player_id = ?", (row[0] + len(runs), ask.player))
    return Claimed(ask.player, tuple(runs), more, frozenset(run.job for run in runs))


def _take(books: _Books, player: int, seq: int, waiting: Waiting) -> Run | None:
    """Make one pending task this player's; None when it was not pending any more, or is overdue."""
    rank, job, n, score = waiting
    about = books.job(job)
    if about.expires_at is not None and about.expires_at <= books.now:
        return None
    row = books.cur.execute(_CLAIM, (player, seq, books.now, books.now, job, n)).fetchone()
    if row is None:
        return None
    if about.one_of:
        _close_candidates(books.cur, rank, score, job, n)
    books.ledger.count(job, State.PENDING, State.DISPATCHED)
    books.ledger.note(job, State.DISPATCHED.label, task=n, player=player)
    within = None if about.expires_at is None else about.expires_at - books.now
    return Run(seq, job, n, row[0], about.score, about.params, within)


def _close_candidates(cur: Cursor, rank: int, score: int, job: int, n: int) -> None:
    players = moves.candidates_of(cur, job, n) or ()
    cur.executemany(
        "DELETE FROM candidates WHERE player_id = ? AND rank = ? AND score_id = ? AND job_id = ? AND n = ?",
        [(player, rank, score, job, n) for player in players],
    )


def _choose(books: _Books, ask: ClaimAsk) -> tuple[list[Waiting], bool]:
    """What to give, in the order of rank and age; and whether work is left that cannot be given now."""
    everything: list[Waiting] = []
    for source in _SOURCES:
        everything += books.cur.execute(source.first, (ask.player, ask.room + 1)).fetchall()
    if len(everything) <= ask.room:
        chosen = _within_limits(books, ask, sorted(everything))
        return chosen, len(chosen) < len(everything)
    by_score = [_of_each_score(books, ask, source) for source in _SOURCES]
    fitting = _within_limits(books, ask, merge(*(sorted(part) for part in by_score)))
    return list(islice(fitting, ask.room)), True


def _within_limits(books: _Books, ask: ClaimAsk, waiting: Iterable[Waiting]) -> list[Waiting]:
    left: dict[int, int] = {}
    chosen: list[Waiting] = []
    for item in waiting:
        score = item[3]
        if score not in left:
            left[score] = ask.limits.get(books.score(score), ask.default_limit)
        if left[score] > 0:
            left[score] -= 1
            chosen.append(item)
    return chosen


def _of_each_score(books: _Books, ask: ClaimAsk, source: _Source) -> list[Waiting]:
    """The oldest tasks of every score that has any, as many as may be given."""
    found: list[Waiting] = []
    at: tuple[int, int] | None = (_BEFORE_ALL, 0)
    while at is not None:
        at = books.cur.execute(source.next_score, (ask.player, *at)).fetchone()
        if at is None:
            break
        limit = min(ask.room, ask.limits.get(books.score(at[1]), ask.default_limit))
        if limit > 0:
            found += books.cur.execute(source.of_score, (ask.player, *at, limit)).fetchall()
    return found
