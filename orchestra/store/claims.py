"""The claim: pending tasks become runs of a player, numbered without a hole, in one transaction.

A claim is a range scan of what waits for the player. Where not everything fits, scores are looked at one by one, so
that a hundred thousand tasks of a busy score do not hide the next score. Nothing that is held is given: a held score
is one of which no more may be given.
"""

from collections.abc import Iterable, Sequence
from sqlite3 import Cursor
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace

from orchestra.model import Held, Run, Scope, State
from orchestra.store import gates, moves, pools
from orchestra.store.ledger import Ledger
from orchestra.store.values import ClaimAsk, Claimed

_decode = msgspec.json.Decoder(dict[str, str]).decode


class _Source(NamedTuple):
    """Where pending work of a player is found: its own tasks, or the jobs of which it may be given one."""

    first: str
    next_score: str
    of_score: str


def _source(table: str, where: str) -> _Source:
    start = f"SELECT rank, job_id, n, score_id FROM {table} WHERE player_id = ? {where}"
    return _Source(
        f"{start} ORDER BY rank, score_id, job_id, n LIMIT ?",
        f"SELECT rank, score_id FROM {table} WHERE player_id = ? {where} AND (rank, score_id) >= (?, ?) "
        "ORDER BY rank, score_id LIMIT 1",
        f"{start} AND rank = ? AND score_id = ? ORDER BY job_id, n LIMIT ?",
    )


_SOURCES: Final = (_source("tasks", "AND state = 0"), _source("candidates", ""))
_BEFORE_ALL: Final = -(1 << 62)
_CLAIM: Final = (
    "UPDATE tasks SET state = 1, attempt = attempt + 1, player_id = ?, seq = ?, dispatched_at = ?, changed_at = ?, "
    "reason = '' WHERE job_id = ? AND n = ? AND state + 0 = 0 AND cancel = 0 RETURNING n, attempt"
)
_JOB: Final = (
    "SELECT scores.name, job_params.body, jobs.expires_at, jobs.scope, jobs.dry_run, job_params.sealed, jobs.shut, "
    "job_params.digest FROM jobs "
    "JOIN scores USING (score_id) JOIN job_params USING (job_id) WHERE job_id = ?"
)
Waiting = tuple[int, int, int, int]
"""rank, job, n, score_id; n is 0 for whatever task is pending of a job that has a pool."""


class _Job(NamedTuple):
    score: str
    params: dict[str, str]
    expires_at: int | None
    scope: Scope
    dry_run: bool
    sealed: bytes | None
    shut: bool
    digest: str


class _Books:
    """What one call of :func:`claim` looks up only once."""

    def __init__(self, cur: Cursor, now: int) -> None:
        self.cur = cur
        self.now = now
        self.ledger = Ledger(cur, now)
        self.held = frozenset(cur.execute("SELECT kind, name FROM holds").fetchall())
        self._jobs: dict[int, _Job] = {}
        self._scores: dict[int, str] = {}

    def job(self, job: int) -> _Job:
        if job not in self._jobs:
            name, body, expires_at, scope, dry_run, sealed, shut, digest = self.cur.execute(_JOB, (job,)).fetchone()
            marks = bool(dry_run), sealed, bool(shut), digest
            self._jobs[job] = _Job(name, _decode(body), expires_at, Scope(scope), *marks)
        return self._jobs[job]

    def score(self, score: int) -> str:
        if score not in self._scores:
            row = self.cur.execute("SELECT name FROM scores WHERE score_id = ?", (score,)).fetchone()
            self._scores[score] = row[0]
        return self._scores[score]

    def held_score(self, score: int) -> bool:
        return bool(self.held) and (Held.SCORE, self.score(score)) in self.held

    def held_player(self, name: str) -> bool:
        return bool(self.held) and not self.held.isdisjoint({(Held.EVERYTHING, ""), (Held.HOST, name)})


def claim(cur: Cursor, asks: Sequence[ClaimAsk], now: int) -> list[Claimed]:
    """Give each player what it has room for, by ascending id. A session that is not the newest gets nothing and is told
    so; a player that is held gets nothing, and its release asks again."""
    books = _Books(cur, now)
    claimed = [_claim_for(books, ask) for ask in sorted(asks, key=lambda ask: ask.player)]
    ended = books.ledger.close()
    return [replace(one, ended=one.jobs & ended) for one in claimed] if ended else claimed


def _claim_for(books: _Books, ask: ClaimAsk) -> Claimed:
    row = books.cur.execute(
        "SELECT next_seq, epoch, owner, name FROM players WHERE player_id = ? AND disabled_at IS NULL", (ask.player,)
    ).fetchone()
    superseded = row is not None and row[1:3] != (ask.epoch, ask.owner)
    if row is None or superseded or books.held_player(row[3]):
        return Claimed(ask.player, (), False, frozenset(), superseded=superseded)
    turn = _Turn(books, ask, row[0])
    turn.fill(max(ask.room, 0))
    if turn.runs:
        books.cur.execute("UPDATE players SET next_seq = ? WHERE player_id = ?", (turn.next_seq, ask.player))
    return Claimed(ask.player, tuple(turn.runs), turn.more, frozenset(turn.jobs), sealed=turn.sealed)


class _Turn:
    """One player's turn in a claim."""

    def __init__(self, books: _Books, ask: ClaimAsk, next_seq: int) -> None:
        self.books = books
        self.player = ask.player
        self.limits = ask.limits
        self.default_limit = ask.default_limit
        self.locks = ask.locks
        self.next_seq = next_seq
        self.room = 0
        self.left: dict[int, int] = {}  # score_id -> how many more may be given
        self.of_lock: dict[str, int] = {}  # how many were given of all its scores
        self.sealed: dict[int, bytes] = {}
        self.runs: list[Run] = []
        self.jobs: set[int] = set()
        self.more = False

    def fill(self, room: int) -> None:
        """Give up to ``room`` runs. Work that is overdue ends on the way, what is of a job that is shut is set aside:
        neither must hide what is behind it."""
        self.room = room
        again = True
        while again:
            before = len(self.runs)
            waiting, self.more = self._choose()
            cleared = self._give(waiting)
            # a score whose limit was used up may have stood in the way of what is behind it
            again = cleared or (self.more and before < len(self.runs) < room)

    def _give(self, waiting: Iterable[Waiting]) -> bool:
        """Give what fits; whether anything was cleared away."""
        cleared = False
        for item in waiting:
            about = self.books.job(item[1])
            if about.expires_at is not None and about.expires_at <= self.books.now:
                self._expire(item)
                cleared = True
            elif about.shut:
                self._set_aside(item)
                cleared = True
            elif not self._fits(item[3]):
                self.more = True
            elif (run := _take(self.books, self.player, self.next_seq, item)) is not None:
                self._given(run, item[3])
        return cleared

    def _given(self, run: Run, score: int) -> None:
        self.next_seq += 1
        if lock := self._lock(score):
            self.of_lock[lock] = self.of_lock.get(lock, 0) + 1
        else:
            self.left[score] -= 1
        self.runs.append(run)
        self.jobs.add(run.job)
        if sealed := self.books.job(run.job).sealed:
            self.sealed[run.job] = sealed

    def _lock(self, score: int) -> str | None:
        return self.locks.get(self.books.score(score)) if self.locks else None

    def _expire(self, item: Waiting) -> None:
        for task in self._pending(item):
            moves.end_waiting(self.books.ledger, task, State.EXPIRED, moves.NOT_STARTED)
            self.jobs.add(task.job)

    def _set_aside(self, item: Waiting) -> None:
        for task in self._pending(item):
            gates.set_aside(self.books.ledger, task)

    def _pending(self, item: Waiting) -> list[moves.TaskRow]:
        """The task, or all that are alike."""
        if _of_a_pool(self.books, self.player, item):
            return moves.rows(self.books.cur, "job_id = ? AND player_id IS NULL AND state + 0 = 0", (item[1],))
        return moves.rows(self.books.cur, "job_id = ? AND n = ? AND state + 0 = 0", item[1:3])

    def _allowed(self, score: int) -> int:
        if score not in self.left:
            limit = self.limits.get(self.books.score(score), self.default_limit)
            self.left[score] = 0 if self.books.held_score(score) else limit
        left = self.left[score]
        if lock := self._lock(score):
            left -= self.of_lock.get(lock, 0)
        return min(left, self.room - len(self.runs))

    def _fits(self, score: int) -> bool:
        return self._allowed(score) > 0

    def _choose(self) -> tuple[list[Waiting], bool]:
        """What may be given, best first; and whether there surely is more than that."""
        room = self.room - len(self.runs)
        everything: list[Waiting] = []
        for source in _SOURCES:
            everything += self.books.cur.execute(source.first, (self.player, room + 1)).fetchall()
        if len(everything) <= room or room == 0:
            return (sorted(everything), False) if room else ([], bool(everything))
        return sorted(item for source in _SOURCES for item in self._of_each_score(source, room)), True

    def _of_each_score(self, source: _Source, room: int) -> list[Waiting]:
        """The oldest tasks of every score that has any, as many as may be given, down to the rank that fills up."""
        found: list[Waiting] = []
        taken: dict[int, int] = {}  # score_id -> how many of it, of all ranks: more than fit are no reason to stop
        rank, score = _BEFORE_ALL, 0
        while True:
            # from score + 1 on: SQLite would walk through all of a score to find what is greater than it
            lane = self.books.cur.execute(source.next_score, (self.player, rank, score + 1)).fetchone()
            if lane is None:
                break
            if len(found) >= room and lane[0] > rank:
                break
            rank, score = lane
            allowed = self._allowed(score) - taken.get(score, 0)
            if allowed > 0:
                some = self.books.cur.execute(source.of_score, (self.player, rank, score, allowed)).fetchall()
                taken[score] = taken.get(score, 0) + len(some)
                found += some
        return found


def _take(books: _Books, player: int, seq: int, waiting: Waiting) -> Run | None:
    """Make one pending task this player's; None when it was not pending any more."""
    rank, job, n, score = waiting
    about = books.job(job)
    lane = rank, score, job
    some = _of_a_pool(books, player, waiting)
    if some and not pools.may_claim(books.cur, lane, player):
        return None
    which = pools.next_pending(books.cur, lane) if some else n
    row = books.cur.execute(_CLAIM, (player, seq, books.now, books.now, job, which)).fetchone()
    if row is None:
        return None
    if some:
        pools.went(books.cur, lane, player)
    elif about.scope is Scope.ONE:
        pools.close(books.cur, lane)
    books.ledger.count(job, State.PENDING, State.DISPATCHED)
    books.ledger.note(job, State.DISPATCHED.label, task=row[0], player=player)
    within = None if about.expires_at is None else about.expires_at - books.now
    taken, attempt = row
    return Run(seq, job, taken, attempt, about.score, about.params, within, about.digest, dry_run=about.dry_run)


def _of_a_pool(books: _Books, player: int, waiting: Waiting) -> bool:
    """Whether any pending task of a job for some of its targets will do; not so for one that has stayed with its
    player."""
    _, job, n, _ = waiting
    if books.job(job).scope is not Scope.SOME:
        return False
    stayed = "SELECT 1 FROM tasks WHERE job_id = ? AND n = ? AND player_id = ? AND state + 0 = 0"
    return books.cur.execute(stayed, (job, n, player)).fetchone() is None
