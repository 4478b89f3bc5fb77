"""Jobs that are not handed out whole and at once: they roll in waves, begin later, or are paused.

Such a job has a row in ``gates``. Of its tasks those below ``opened`` may be handed out; the others are held. Whoever
commits the last outcome of a wave calls :func:`follow`, through the ledger, and so lets the next one go in that same
transaction. What is a matter of time is let go by :func:`open_due`. A job that is shut (paused, or stopped) is handed
out no more: its pending tasks become held when a claim finds them, so pausing costs nothing however large a job is.
"""

from collections.abc import Mapping
from sqlite3 import Cursor
from typing import TYPE_CHECKING, Final, NamedTuple

from orchestra import rolling
from orchestra.model import NewJob, Scope, State, Waves
from orchestra.store import moves, pools
from orchestra.store.values import Freed

if TYPE_CHECKING:
    from orchestra.store.ledger import Ledger

CANCELLED_AT_ONCE: Final = 1_000  # of what is left of a stopped job; the sweep does the rest in such steps
CANCELLER: Final = 60_000  # milliseconds after which a cancel that was broken off is carried on by the sweep

_GATE: Final = (
    "SELECT g.tasks, g.batch, g.canary, g.max_failures, g.pause, g.wave, g.opened, g.due_at, g.stopped, g.stopped_by, "
    "g.paused_at IS NOT NULL, j.expires_at, s.name FROM gates g JOIN jobs j ON j.job_id = g.job_id "
    "JOIN scores s ON s.score_id = j.score_id WHERE g.job_id = ?"
)
_LET_GO: Final = (
    f"UPDATE tasks SET state = 0 WHERE job_id = ? AND n >= ? AND n < ? AND state + 0 = 2 RETURNING {moves.TASK}"
)
_INSERT: Final = (
    "INSERT INTO gates (job_id, tasks, batch, canary, max_failures, pause, not_before, wave, opened, due_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class Opening(NamedTuple):
    """How a job begins: so many waves and tasks are let go at once, and more at ``due_at``, if that is a matter of
    time."""

    wave: int
    opened: int
    due_at: int | None = None


class Gate(NamedTuple):
    """A row of ``gates``, and what else is to be known of its job."""

    job: int
    waves: Waves
    wave: int
    opened: int
    due_at: int | None
    stopped: str
    stopped_by: str
    paused: bool
    expires_at: int | None
    score: str


def opening(new: NewJob, now: int) -> Opening | None:
    """How a new job begins, if it is not handed out whole and at once."""
    if new.not_before is not None and new.not_before > now:
        return Opening(0, 0, new.not_before)
    return None if new.waves is None else Opening(1, rolling.reach(new.waves, 1))


def at_once(new: NewJob, now: int) -> tuple[int, ...]:
    """The players for whom a new job has work now."""
    begins = opening(new, now)
    if begins is None:
        return new.players
    return new.players[: begins.opened] if new.scope is Scope.ALL else ()


def add(ledger: "Ledger", job: int, new: NewJob, tasks: int, begins: Opening) -> None:
    """Give a new job its gate."""
    waves = new.waves or Waves(tasks=tasks, batch=tasks)
    _insert(ledger.cur, job, waves, new.not_before, begins)
    if begins.wave:
        _tell_wave(ledger, job, waves, begins.wave, begins.opened)


def _insert(cur: Cursor, job: int, waves: Waves, not_before: int | None, begins: Opening) -> None:
    limits = (waves.tasks, waves.batch, waves.canary, waves.max_failures, waves.pause)
    cur.execute(_INSERT, (job, *limits, not_before, *begins))


def plain(cur: Cursor, job: int, tasks: int) -> None:
    """Give a job a gate that was handed out whole and at once, if it has none."""
    if gate_of(cur, job) is None:
        _insert(cur, job, Waves(tasks=tasks, batch=tasks), None, Opening(1, tasks))


def gate_of(cur: Cursor, job: int) -> Gate | None:
    """The gate of a job, if it has one."""
    row = cur.execute(_GATE, (job,)).fetchone()
    if row is None:
        return None
    tasks, batch, canary, most, pause, wave, opened, due_at, stopped, by, paused, expires_at, score = row
    waves = Waves(tasks=tasks, batch=batch, canary=canary, max_failures=most, pause=pause)
    return Gate(job, waves, wave, opened, due_at, stopped, by, bool(paused), expires_at, score)


# ---- what follows from what was committed


def follow(ledger: "Ledger", job: int, counts: Mapping[State, int]) -> None:
    """Do what follows from ``counts``, which a job has with this transaction: stop it, or let its next wave go."""
    gate = gate_of(ledger.cur, job)
    if gate is None:
        return
    pending, dispatched, held = (counts.get(state, 0) for state in (State.PENDING, State.DISPATCHED, State.HELD))
    if not pending + held:
        if not dispatched and gate.due_at is not None:
            _due(ledger.cur, job, None)
    elif gate.stopped:
        if gate.due_at is None:  # else somebody is at it
            cancel_rest(ledger, gate)
    elif gate.expires_at is None or gate.expires_at > ledger.now:  # else all that is left expires
        over = not (pending or dispatched or gate.paused) and gate.due_at is None
        if wrong := rolling.trouble(gate.waves, gate.wave, counts, over):
            _stop(ledger, gate, wrong)
        elif over:
            _go_on(ledger, gate)


def _stop(ledger: "Ledger", gate: Gate, reason: str) -> None:
    reason = f"stopped: {reason}"
    _shut(ledger.cur, gate.job, reason, "", None)
    ledger.note(gate.job, "stopped", detail=reason)
    cancel_rest(ledger, gate._replace(stopped=reason))


def _shut(cur: Cursor, job: int, reason: str, actor: str, due_at: int | None) -> None:
    sql = "UPDATE gates SET stopped = ?, stopped_by = ?, due_at = ?, paused_at = NULL WHERE job_id = ?"
    cur.execute(sql, (reason, actor, due_at, job))
    cur.execute("UPDATE jobs SET shut = 1 WHERE job_id = ?", (job,))


def cancel_rest(ledger: "Ledger", gate: Gate) -> int:
    """Cancel what waits of a stopped job, or as much as one transaction should; how many tasks that were."""
    where = "job_id = ? AND state + 0 IN (0, 2) ORDER BY n LIMIT ?"
    rest = moves.rows(ledger.cur, where, (gate.job, CANCELLED_AT_ONCE))
    for task in rest:
        moves.end_waiting(ledger, task, State.CANCELLED, gate.stopped, gate.stopped_by)
    _due(ledger.cur, gate.job, ledger.now if len(rest) == CANCELLED_AT_ONCE else None)
    return len(rest)


def _due(cur: Cursor, job: int, at: int | None) -> None:
    cur.execute("UPDATE gates SET due_at = ? WHERE job_id = ?", (at, job))


def _go_on(ledger: "Ledger", gate: Gate) -> None:
    """A wave is over: let the next one go, or wait as long as was asked for."""
    if not gate.waves.pause:
        open_next(ledger, gate)
        return
    _due(ledger.cur, gate.job, ledger.now + gate.waves.pause)
    ledger.note(gate.job, "waiting", detail=f"{gate.waves.pause / 1000:g} s until wave {gate.wave + 1}")


def open_next(ledger: "Ledger", gate: Gate) -> int:
    """Let the next wave go in which a task is left; how many tasks there are."""
    wave, opened, freed = gate.wave, gate.opened, 0
    while not freed and opened < gate.waves.tasks and not (wave == 1 and gate.wave == 0 and gate.waves.canary):
        wave, first = wave + 1, opened
        opened = rolling.reach(gate.waves, wave)
        freed = _let_go(ledger, gate, first, opened)
        if gate.waves.max_failures is None:
            ledger.note(gate.job, "begun")
        else:
            _tell_wave(ledger, gate.job, gate.waves, wave, freed)
    ledger.cur.execute(
        "UPDATE gates SET wave = ?, opened = ?, due_at = NULL WHERE job_id = ?", (wave, opened, gate.job)
    )
    return freed


def _tell_wave(ledger: "Ledger", job: int, waves: Waves, wave: int, tasks: int) -> None:
    ledger.note(job, "wave", detail=f"wave {wave} of {rolling.how_many(waves)}: {tasks} tasks")


def _let_go(ledger: "Ledger", gate: Gate, first: int, end: int) -> int:
    """Make held tasks pending, from ``first`` to below ``end``; how many."""
    tasks = [moves.TaskRow._make(row) for row in ledger.cur.execute(_LET_GO, (gate.job, first, end)).fetchall()]
    free: tuple[int, ...] = ()
    if tasks and tasks[0].player is None:
        free = pools.free(ledger.cur, gate.job)
        pools.open_to(ledger.cur, tasks[0], free)
    for task in sorted(tasks, key=lambda task: task.n):
        ledger.freed.append(Freed(task.job, task.n, task.player, free if task.player is None else (), gate.score))
    if tasks:
        ledger.count(gate.job, State.HELD, State.PENDING, len(tasks))
    return len(tasks)


# ---- what somebody wants


def give_up(cur: Cursor, job: int, actor: str, now: int) -> None:
    """Let nothing more go of a job that is being cancelled as a whole, in steps; what is broken off, the sweep does."""
    gate = gate_of(cur, job)
    if gate is not None and not gate.stopped:
        _shut(cur, job, f"cancelled by {actor}", actor, now + CANCELLER)


def set_aside(ledger: "Ledger", task: moves.TaskRow) -> None:
    """Hold a pending task of a job that is shut, until that changes."""
    sql = "UPDATE tasks SET state = 2 WHERE job_id = ? AND n = ? AND state + 0 = 0"
    if ledger.cur.execute(sql, (task.job, task.n)).rowcount:
        if task.player is None:
            pools.went(ledger.cur, (task.rank, task.score_id, task.job))
        ledger.count(task.job, State.PENDING, State.HELD)


def take_back(ledger: "Ledger", job: int) -> None:
    """Let go what was set aside of a job that is not shut any more."""
    gate = gate_of(ledger.cur, job)
    if gate is not None:
        _let_go(ledger, gate, 0, gate.opened)
