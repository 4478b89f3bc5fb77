"""A request becomes a job and its tasks, once per request key."""

import hashlib
from sqlite3 import Cursor

import msgspec

from orchestra.errors import RequestKeyConflict
from orchestra.model import NewJob, Scope
from orchestra.store import gates, history, moves, pools
from orchestra.store.ledger import Ledger
from orchestra.store.values import Submitted


def submit(cur: Cursor, new: NewJob, now: int) -> Submitted:
    """Save a job, or find the one that this request key has made before."""
    sha = _body_sha(new)
    before = _made_before(cur, new, sha)
    if before is not None:
        return before
    score = score_id(cur, new.score)
    tasks = len(new.players) if new.scope is Scope.ALL else new.count
    begins = gates.opening(new, now)
    opened = tasks if begins is None else begins.opened
    job = _insert_job(cur, new, score, (opened, tasks - opened), begins is not None, now)
    if new.scope is Scope.ALL:
        _insert_all(cur, new, job, score, opened)
    else:
        _insert_some(cur, new, job, score, opened)
    if begins is not None:
        ledger = Ledger(cur, now)
        gates.add(ledger, job, new, tasks, begins)
        ledger.close()
        cur.execute("UPDATE totals SET many = many + ? WHERE state = 2", (tasks - opened,))
    cur.execute("UPDATE totals SET many = many + ? WHERE state = 0", (opened,))
    if new.request_key is not None:
        cur.execute(
            "INSERT INTO request_keys (owner, request_key, job_id, tasks, body_sha) VALUES (?, ?, ?, ?, ?)",
            (new.owner.name, new.request_key, job, tasks, sha),
        )
    return Submitted(job, True, tasks)


def _body_sha(new: NewJob) -> bytes:
    body = (
        *(new.score, sorted(new.params.items()), new.scope, new.wording or new.players, new.priority, new.count),
        # when it expires or begins, and what it is pinned to, differs at every try, whether it does so does not
        *(new.expires_at is None, new.not_before is None, bool(new.digest), new.waves, new.rerun_of),
        new.dry_run,
        new.secrets and new.secrets.likeness,  # keyed: of the secrets themselves a hash could be guessed at
    )
    return hashlib.sha256(msgspec.msgpack.encode(body)).digest()


def made_before(cur: Cursor, new: NewJob) -> Submitted | None:
    """The job that this request has made already, if its request key says so."""
    return _made_before(cur, new, _body_sha(new))


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


def _insert_job(cur: Cursor, new: NewJob, score: int, tasks: tuple[int, int], gated: bool, now: int) -> int:
    """``tasks``: how many are pending and how many held."""
    give_up = None if new.expires_at is None else new.expires_at + new.give_up_after
    row = cur.execute(
        "INSERT INTO jobs (score_id, scope, idempotent, max_attempts, priority, created_at, expires_at, give_up_at, "
        "last_event, pending, held, owner, uid, login_uid, request_key, dry_run, sealed, gated, rerun_of) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING job_id",
        (
            *(score, new.scope, new.idempotent, new.max_attempts, new.priority, now, new.expires_at, give_up),
            *(*tasks, new.owner.name, new.owner.uid, new.owner.login_uid, new.request_key),
            *(new.dry_run, new.secrets is not None, gated, new.rerun_of),
        ),
    ).fetchone()
    job = int(row[0])
    secret, sealed = (msgspec.json.encode(new.secrets.names), new.secrets.sealed) if new.secrets else (None, None)
    cur.execute(
        "INSERT INTO job_params (job_id, body, secret, sealed, digest) VALUES (?, ?, ?, ?, ?)",
        (job, msgspec.json.encode(new.params), secret, sealed, new.digest),
    )
    detail = f"{sum(tasks)} tasks{', a dry run' if new.dry_run else ''}"
    history.write(cur, job, 1, now, [("submitted", new.owner.name, None, None, detail)])
    return job


def _insert_all(cur: Cursor, new: NewJob, job: int, score: int, opened: int) -> None:
    """Tasks with numbers below ``opened`` are pending, the others held."""
    cur.executemany(
        "INSERT INTO tasks (job_id, n, player_id, score_id, rank, state) VALUES (?, ?, ?, ?, ?, ?)",
        [(job, n, player, score, -new.priority, 0 if n < opened else 2) for n, player in enumerate(new.players)],
    )


def _insert_some(cur: Cursor, new: NewJob, job: int, score: int, opened: int) -> None:
    """Either all tasks are pending, or none is."""
    cur.executemany(
        "INSERT INTO tasks (job_id, n, player_id, score_id, rank, state) VALUES (?, ?, NULL, ?, ?, ?)",
        [(job, n, score, -new.priority, 0 if opened else 2) for n in range(new.count)],
    )
    pools.make(cur, job, new.players)
    if opened:
        task = moves.rows(cur, "job_id = ? AND n = 0", (job,))[0]
        pools.open_to(cur, task, new.players)
