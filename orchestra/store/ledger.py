"""The ledger gathers what one transaction does to jobs, and writes each job's counts and events once.

Events are numbered without a gap from the job's own row, a range per batch.
"""

from sqlite3 import Cursor
from typing import Final

from orchestra.model import Scope, State, verdict
from orchestra.store import gates, history
from orchestra.store.history import EventRow
from orchestra.store.values import Freed

COUNTED: Final = tuple(sorted(State))
"""Every state, in the order of the statements below."""

COUNTS: Final = ", ".join(state.label for state in COUNTED)
_ADD = ", ".join(f"{state.label} = {state.label} + ?" for state in COUNTED)
_TALLY = (
    f"UPDATE jobs SET last_event = last_event + ?, {_ADD} WHERE job_id = ? "
    f"RETURNING last_event, scope, gated, sealed, {COUNTS}"
)


class Ledger:
    """The changes of one transaction; nothing is written before :meth:`close`."""

    def __init__(self, cur: Cursor, now: int) -> None:
        self.cur = cur
        self.now = now
        self.freed: list[Freed] = []
        """Tasks that were held and may be handed out from this transaction on."""
        self._events: dict[int, list[EventRow]] = {}
        self._counts: dict[int, dict[State, int]] = {}
        self._totals: dict[State, int] = {}

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
        """Write it all down, and do what follows from it; returns the jobs that ended with it."""
        touched = self._events.keys() | self._counts.keys()
        ended = frozenset(job for job in sorted(touched) if self._close_job(job, follow=True))
        self._close_totals()
        return ended

    def _close_job(self, job: int, *, follow: bool) -> bool:
        counts, events = self._counts.get(job, {}), self._events.get(job, [])
        changes = [counts.get(state, 0) for state in COUNTED]
        (row,) = self.cur.execute(_TALLY, (len(events), *changes, job)).fetchall()
        last, scope, gated, sealed, *many = row
        for state, change in counts.items():
            self._totals[state] = self._totals.get(state, 0) + change
        standing = dict(zip(COUNTED, many, strict=True))
        ended = bool(counts) and not any(n for state, n in standing.items() if not state.terminal)
        if ended:
            last += 1
            events = [*events, ("ended", "", None, None, verdict(Scope(scope), standing))]
            self.cur.execute("UPDATE jobs SET ended_at = ?, last_event = ? WHERE job_id = ?", (self.now, last, job))
            if sealed:
                self._forget_secrets(job)
        if events:
            history.write(self.cur, job, last - len(events) + 1, self.now, events)
        return (gated and follow and self._follow(job, standing)) or ended

    def _forget_secrets(self, job: int) -> None:
        self.cur.execute("UPDATE job_params SET sealed = NULL WHERE job_id = ?", (job,))
        self.cur.execute("UPDATE jobs SET sealed = 0 WHERE job_id = ?", (job,))

    def _follow(self, job: int, counts: dict[State, int]) -> bool:
        """Write down what follows for a job that is not handed out whole and at once; whether it ended with that."""
        more = Ledger(self.cur, self.now)
        gates.follow(more, job, counts)
        if not more._events:
            return False
        ended = more._close_job(job, follow=False)
        self._events.setdefault(job, [])
        self.freed += more.freed
        for state, change in more._totals.items():
            self._totals[state] = self._totals.get(state, 0) + change
        return ended

    def _close_totals(self) -> None:
        for state in (State.PENDING, State.DISPATCHED, State.HELD):
            many = self._totals.get(state)
            if many:
                self.cur.execute("UPDATE totals SET many = many + ? WHERE state = ?", (many, state))
