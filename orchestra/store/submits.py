"""A request becomes a job and its tasks, once per request key; and a job is cancelled."""

import hashlib
from collections.abc import Iterable
from sqlite3 import Cursor

import msgspec

from orchestra.errors import NoSuchJob, RequestKeyConflict
from orchestra.model import NewJob, Scope, State
from orchestra.store import moves
from orchestra.store.ledger import Ledger
from orchestra.store.values import Cancelled, Submitted


def submit(cur: Cursor, new: NewJob, now: int) -> Submitted:
    """Save a job, or find the one that this request key has made before."""
    sha = _body_sha(new)
    before = _made_before(cur, new, sha)
    if before is not None:
        return before
    score = score_id(cur, new.score)
    tasks = len(new.players) if new.scope is Scope.ALL else 1
    job = _insert_job(cur, new, score, tasks, now)
    if new.scope is Scope.ALL:
        _insert_all(cur, new, job, score)
    else:
        _insert_one(cur, new, job, score)
    cur.execute("UPDATE totals SET many = many + ? WHERE state = 0", (tasks,))
    if new.request_key is not None:
        cur.execute(
            "INSERT INTO request_keys (owner, request_key, job_id, tasks, body_sha) VALUES (?, ?, ?, ?, ?)",
            (new.owner.name, new.request_key, job, tasks, sha),
        )
    return Submitted(job, True, tasks)


def _body_sha(new: NewJob) -> bytes:
    body = (
        *(new.score, sorted(new.params.items()), new.scope, new.players, new.priority),
        new.expires_at is None,  # when it expires differs at every try, whether it does so does not
    )
    return hashlib.sha256(msgspec.msgpack.encode(body)).digest()


def _made_before(cur: Cursor, new: NewJob, sha: bytes) -> Submitted | None:
    if new.request_key is None:
        return None
    row = cur.execute(
        "SELECT job_id, tasks, body_sha FROM request_keys WHERE owner = ? AND request_key = ?",
        (new.owner.name, new.request_key),
    ).fetchone()
    if row is None:
        return None
    if row[2] != sha:
        raise RequestKeyConflict(key=new.request_key, job=row[0])
    return Submitted(row[0], False, row[1])


def score_id(cur: Cursor, name: str) -> int:
    """The number of a score's name."""
    row = cur.execute("SELECT score_id FROM scores WHERE name = ?", (name,)).fetchone()
    if row is None:
        row = cur.execute("INSERT INTO scores (name) VALUES (?) RETURNING score_id", (name,)).fetchone()
    return int(row[0])


def _insert_job(cur: Cursor, new: NewJob, score: int, tasks: int, now: int) -> int:
    give_up = None if new.expires_at is None else new.expires_at + new.give_up_after
    row = cur.execute(
        "INSERT INTO jobs (score_id, scope, idempotent, max_attempts, priority, created_at, expires_at, give_up_at, "
        "last_event, pending, owner, uid, login_uid, request_key) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?) "
        "RETURNING job_id",
        (
            *(score, new.scope, new.idempotent, new.max_attempts, new.priority, now, new.expires_at, give_up),
            *(tasks, new.owner.name, new.owner.uid, new.owner.login_uid, new.request_key),
        ),
    ).fetchone()
    job = int(row[0])
    cur.execute("INSERT INTO job_params (job_id, body) VALUES (?, ?)", (job, msgspec.json.encode(new.params)))
    cur.execute(
        "INSERT INTO events (job_id, n, at, kind, actor, task, player_id, detail) "
        "VALUES (?, 1, ?, 'submitted', ?, NULL, NULL, ?)",
        (job, now, new.owner.name, f"{tasks} tasks"),
    )
    return job


def _insert_all(cur: Cursor, new: NewJob, job: int, score: int) -> None:
    cur.executemany(
        "INSERT INTO tasks (job_id, n, player_id, score_id, rank) VALUES (?, ?, ?, ?, ?)",
        [(job, n, player, score, -new.priority) for n, player in enumerate(new.players)],
    )


def _insert_one(cur: Cursor, new: NewJob, job: int, score: int) -> None:
    cur.execute(
        "INSERT INTO tasks (job_id, n, player_id, score_id, rank) VALUES (?, 0, NULL, ?, ?)",
        (job, score, -new.priority),
    )
    moves.choose_from(cur, job, 0, new.players)
    task = moves.rows(cur, "job_id = ? AND n = 0", (job,))[0]
    moves.open_candidates(cur, task, new.players)


def cancel(cur: Cursor, job: int, players: Iterable[int] | None, actor: str, now: int) -> Cancelled:
    """Cancel a job, or its tasks on ``players``: what waits ends, whoever runs one is to be told. A one-of task may
    still go to its other candidates."""
    if cur.execute("SELECT 1 FROM jobs WHERE job_id = ?", (job,)).fetchone() is None:
        raise NoSuchJob(job=job)
    chosen = None if players is None else set(players)
    ledger = Ledger(cur, now)
    states: list[State] = []
    orders: dict[int, list[int]] = {}
    for task in moves.rows(cur, "job_id = ? ORDER BY n", (job,)):
        if chosen is None or _concerns(cur, task, chosen):
            states.append(_cancel(ledger, task, actor, orders))
    ended = ledger.close()
    return Cancelled(
        jobs=ledger.jobs,
        ended=ended,
        cancelled=states.count(State.CANCELLED),
        cancelling=states.count(State.DISPATCHED),
        finished=states.count(State.OK),
        lost=states.count(State.LOST),
        orders={player: tuple(sorted(seqs)) for player, seqs in orders.items()},
    )


def _concerns(cur: Cursor, task: moves.TaskRow, players: set[int]) -> bool:
    """Whether a cancel on ``players`` is one of this task. They are struck from a one-of task's candidates, whoever
    has it; it is concerned when they had it, or were the last."""
    candidates = moves.candidates_of(cur, task.job, task.n)
    if candidates is None or State(task.state).terminal:
        return task.player in players
    left = moves.strike(cur, task, players.intersection(candidates)) if players.intersection(candidates) else candidates
    return task.player in players or (task.player is None and not left)


def _cancel(ledger: Ledger, task: moves.TaskRow, actor: str, orders: dict[int, list[int]]) -> State:
    """Cancel one task; CANCELLED, LOST, DISPATCHED (its player is to be told) or OK (had ended before)."""
    if State(task.state).terminal:
        return State.OK
    if task.state != State.DISPATCHED:
        return moves.end_waiting(ledger, task, State.CANCELLED, f"cancelled by {actor}", actor)
    if not task.cancel:
        ledger.cur.execute("UPDATE tasks SET cancel = 1 WHERE job_id = ? AND n = ?", (task.job, task.n))
        ledger.note(task.job, "cancelling", task=task.n, player=task.player, actor=actor)
    assert task.player is not None
    orders.setdefault(task.player, []).append(task.seq)
    return State.DISPATCHED
