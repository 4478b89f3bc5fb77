"""The ledger gathers what one transaction does to jobs, and writes each job's counts and events once.

Events are numbered without a gap from the job's own row, a range per batch.
"""

from sqlite3 import Cursor
from typing import Final

from orchestra.model import Scope, State, verdict

COUNTED: Final = tuple(sorted(State))
"""Every state, in the order of the statements below."""

COUNTS: Final = ", ".join(state.label for state in COUNTED)
_ADD = ", ".join(f"{state.label} = {state.label} + ?" for state in COUNTED)
_TALLY = (
    f"UPDATE jobs SET last_event = last_event + ?, {_ADD} WHERE job_id = ? "
    f"RETURNING last_event, scope, sealed, {COUNTS}"
)
_EVENT = "INSERT INTO events (job_id, n, at, kind, actor, task, player_id, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"

EventRow = tuple[str, str, int | None, int | None, str]


class Ledger:
    """The changes of one transaction; nothing is written before :meth:`close`."""

    def __init__(self, cur: Cursor, now: int) -> None:
        self.cur = cur
        self.now = now
        self._events: dict[int, list[EventRow]] = {}
        self._counts: dict[int, dict[State, int]] = {}

    @property
    def jobs(self) -> frozenset[int]:
        """Every job that has an event here."""
        return frozenset(self._events)

    def note(
        self,
        job: int,
        kind: str,
        *,
        task: int | None = None,
        player: int | None = None,
        detail: str = "",
        actor: str = "",
    ) -> None:
        """Add an event."""
        self._events.setdefault(job, []).append((kind, actor, task, player, detail))

    def count(self, job: int, old: State | None, new: State, many: int = 1) -> None:
        """Move ``many`` tasks of a job from one count to another."""
        counts = self._counts.setdefault(job, {})
        if old is not None:
            counts[old] = counts.get(old, 0) - many
        counts[new] = counts.get(new, 0) + many

    def close(self) -> frozenset[int]:
        """Write it all down; returns the jobs that ended with it."""
        ended = frozenset(job for job in sorted(self._events) if self._close_job(job))
        self._close_totals()
        return ended

    def _close_job(self, job: int) -> bool:
        counts, events = self._counts.get(job, {}), self._events[job]
        rows = self.cur.execute(_TALLY, (len(events), *[counts.get(state, 0) for state in COUNTED], job))
        last, scope, sealed, *many = rows.fetchone()
        self._write_events(job, last - len(events) + 1, events)
        ended = bool(counts) and not any(n for state, n in zip(COUNTED, many, strict=True) if not state.terminal)
        if ended:
            self._end(job, last + 1, verdict(Scope(scope), dict(zip(COUNTED, many, strict=True))))
            if sealed:
                self.cur.execute("UPDATE job_params SET sealed = NULL WHERE job_id = ?", (job,))
                self.cur.execute("UPDATE jobs SET sealed = 0 WHERE job_id = ?", (job,))
        return ended

    def _end(self, job: int, n: int, result: str) -> None:
        self.cur.execute("UPDATE jobs SET ended_at = ?, last_event = ? WHERE job_id = ?", (self.now, n, job))
        self._write_events(job, n, [("ended", "", None, None, result)])

    def _write_events(self, job: int, first: int, events: list[EventRow]) -> None:
        rows = [(job, n, self.now, *event) for n, event in enumerate(events, first)]
        self.cur.executemany(_EVENT, rows)

    def _close_totals(self) -> None:
        for state in (State.PENDING, State.DISPATCHED, State.HELD):
            many = sum([counts.get(state, 0) for counts in self._counts.values()])
            if many:
                self.cur.execute("UPDATE totals SET many = many + ? WHERE state = ?", (many, state))
