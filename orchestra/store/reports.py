"""What players report: an outcome counts once, and only for the run that the task is waiting for."""

from collections.abc import Iterable, Sequence
from sqlite3 import Cursor
from typing import Final

import msgspec

from orchestra.model import Piece, Report, Scope, Standing, Started, State, Told, after_run
from orchestra.store import moves, pools
from orchestra.store.ledger import Ledger
from orchestra.store.players import check_session, is_newest
from orchestra.store.values import Batch, Freed, Settled

_JOB: Final = (
    "SELECT scope, idempotent, max_attempts, expires_at, scores.name FROM jobs JOIN scores USING (score_id) "
    "WHERE job_id = ?"
)
_FINISHED: Final = {Told.OK: State.OK, Told.FAILED: State.FAILED, Told.KILLED: State.KILLED}
"""What ends a task whatever else is known of it: :func:`~orchestra.model.after_run` says the same."""

_JobRow = tuple[str, int, int, int | None, str]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Report).decode


class _Settling:
    """Batches of reports, one player's after another's."""

    def __init__(self, cur: Cursor, now: int) -> None:
        self.cur = cur
        self.player = 0
        self.ledger = Ledger(cur, now)
        self.freed: list[Freed] = []
        self.late = 0
        self.unknown = 0
        self._jobs: dict[int, _JobRow | None] = {}

    def job(self, job: int) -> _JobRow | None:
        if job not in self._jobs:
            self._jobs[job] = self.cur.execute(_JOB, (job,)).fetchone()
        return self._jobs[job]

    def settle_all(self, player: int, reports: Iterable[Report]) -> None:
        """What one player reports."""
        self.player = player
        for report in reports:
            self.settle(report)

    def settle(self, report: Report) -> None:
        """The task moves if it waits for exactly this run; else it is remembered as an event."""
        to = _FINISHED.get(report.told)
        if to is not None and moves.finish(self.ledger, self.player, report, to):
            self._keep(report)
            return
        job = self.job(report.job)
        found = moves.rows(self.cur, "job_id = ? AND n = ?", (report.job, report.task)) if job else []
        if job is None or not found:
            self.unknown += 1
            return
        task = found[0]
        awaited = (task.player, task.attempt, task.seq) == (self.player, report.attempt, report.seq)
        if awaited and task.state == State.DISPATCHED:
            self._move(task, report, job)
        elif not self._repeats(report):
            self.late += 1
            detail = f"{report.told} (attempt {report.attempt}): {report.reason}".rstrip(": ")
            self.ledger.note(report.job, "late", task=report.task, player=self.player, detail=detail)

    def _move(self, task: moves.TaskRow, report: Report, job: _JobRow) -> None:
        scope, idempotent, max_attempts, expires_at, score = job
        pooled = scope != Scope.ALL
        standing = Standing(
            scope=Scope(scope),
            idempotent=bool(idempotent),
            max_attempts=max_attempts,
            losses=task.losses,
            maybe_ran=bool(task.maybe_ran),
            cancel=bool(task.cancel),
            expired=expires_at is not None and expires_at <= self.ledger.now,
            candidates_left=pools.spare(self.cur, task.job) if pooled else 0,
        )
        to = after_run(report.told, standing)
        if to.strike:
            pools.strike(self.cur, task, (self.player,))
        if not moves.move(self.ledger, task, to, report.reason):
            return
        self._keep(report)
        if to.state is State.PENDING:
            anybody = pooled and not to.stays
            free = pools.free(self.cur, task.job) if anybody else ()
            self.freed.append(Freed(task.job, task.n, None if anybody else self.player, free, score))

    def _keep(self, report: Report) -> None:
        self.cur.execute(
            "INSERT INTO results (job_id, n, attempt, player_id, told, body) VALUES (?, ?, ?, ?, ?, ?)",
            (report.job, report.task, report.attempt, self.player, report.told, _encode(report)),
        )

    def _repeats(self, report: Report) -> bool:
        """Whether just this was said and settled before."""
        row = self.cur.execute(
            "SELECT player_id, body FROM results WHERE job_id = ? AND n = ? AND attempt = ?",
            (report.job, report.task, report.attempt),
        ).fetchone()
        return row is not None and row[0] == self.player and _decode(row[1]) == report


def settle(cur: Cursor, player: int, epoch: int, owner: str, reports: Sequence[Report], now: int) -> Settled:
    """Take a batch of reports; Superseded if the session is not the player's newest."""
    check_session(cur, player, epoch, owner)
    return settle_all(cur, owner, [Batch(player, epoch, reports)], now)


def settle_all(cur: Cursor, owner: str, batches: Sequence[Batch], now: int) -> Settled:
    """Take the reports of several players at once, so that each job is counted and numbered once for all of them. A
    batch of a session that is not its player's newest is left out, and told."""
    work = _Settling(cur, now)
    superseded = set()
    for batch in sorted(batches, key=lambda batch: batch.player):
        if is_newest(cur, batch.player, batch.epoch, owner):
            work.settle_all(batch.player, batch.reports)
        else:
            superseded.add((batch.player, batch.epoch))
    ended = work.ledger.close()
    freed, gone = (*work.freed, *work.ledger.freed), frozenset(superseded)
    return Settled(work.ledger.jobs, ended, freed, work.late, work.unknown, gone)


def save_pieces(cur: Cursor, player: int, epoch: int, owner: str, pieces: Sequence[Piece]) -> None:
    """Keep output that goes ahead of its report; a repeat does nothing, what nobody waits for is dropped."""
    check_session(cur, player, epoch, owner)
    for piece in pieces:
        row = cur.execute(
            "SELECT job_id, n FROM tasks WHERE player_id = ? AND seq = ? AND state = 1 AND attempt = ?",
            (player, piece.seq, piece.attempt),
        ).fetchone()
        if row is not None:
            cur.execute(
                "INSERT INTO outputs (job_id, n, attempt, stream, position, data) VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT DO NOTHING",
                (*row, piece.attempt, piece.stream, piece.offset, piece.data),
            )


def alarm(cur: Cursor, player: int, epoch: int, owner: str, runs: Sequence[Started], now: int) -> frozenset[int]:
    """Have it in the history of their jobs that these runs should have ended and do not; a repeat does nothing. The
    jobs that changed."""
    check_session(cur, player, epoch, owner)
    ledger = Ledger(cur, now)
    for run in runs:
        where = "player_id = ? AND seq = ? AND state = 1 AND job_id = ? AND n = ?"
        for task in moves.rows(cur, where, (player, run.seq, run.job, run.task)):
            if _alarmed(cur, task, run.alarm):
                ledger.note(task.job, "unkillable", task=task.n, player=player, detail=run.alarm)
    ledger.close()
    return ledger.jobs


def _alarmed(cur: Cursor, task: moves.TaskRow, words: str) -> bool:
    """Whether this is news."""
    news = "UPDATE tasks SET reason = ? WHERE job_id = ? AND n = ? AND state + 0 = 1 AND reason <> ?"
    return bool(cur.execute(news, (words, task.job, task.n, words)).rowcount)
