"""What the audience may see of the store. Nothing here changes anything."""

import time
from collections.abc import Iterable, Sequence
from sqlite3 import Cursor
from typing import Any, Final

import msgspec

from orchestra.errors import JobPruned, JobSkipped, NoSuchJob
from orchestra.model import (
    Course,
    Event,
    JobView,
    Paused,
    PlayerView,
    Report,
    Scope,
    State,
    TaskView,
    Waves,
    verdict,
)
from orchestra.store import history
from orchestra.store.ledger import COUNTED, COUNTS
from orchestra.store.values import PlayerRow, Totals

_params = msgspec.json.Decoder(dict[str, str]).decode
_names = msgspec.json.Decoder(tuple[str, ...]).decode
_report = msgspec.msgpack.Decoder(Report).decode

_JOB: Final = (
    "SELECT jobs.job_id, scores.name, job_params.body, scope, owner, uid, login_uid, request_key, created_at, "
    "expires_at, ended_at, priority, last_event, job_params.secret, dry_run, gated, rerun_of, "
    "(SELECT group_concat(r.job_id) FROM jobs r WHERE r.rerun_of = jobs.job_id), job_params.digest, "
    f"{COUNTS} FROM jobs "
    "LEFT JOIN scores ON scores.score_id = jobs.score_id LEFT JOIN job_params ON job_params.job_id = jobs.job_id "
)
_GATE: Final = (
    "SELECT tasks, batch, canary, max_failures, pause, not_before, wave, opened, due_at, stopped, paused_at, "
    "paused_by, paused_uid, paused_login FROM gates WHERE job_id = ?"
)
_TASK: Final = (
    "SELECT t.n, p.name, t.state, t.attempt, t.reason, t.dispatched_at, t.cancel, t.maybe_ran, r.body FROM tasks t "
    "LEFT JOIN players p ON p.player_id = t.player_id "
    "LEFT JOIN results r ON r.job_id = t.job_id AND r.n = t.n AND r.attempt = t.attempt "
)


def no_such_job(cur: Cursor, job: int) -> NoSuchJob:
    """Why there is no such job: it never was, or is not any more."""
    skipped = cur.execute("SELECT at FROM skipped WHERE ? BETWEEN first AND last", (job,)).fetchone()
    if skipped is not None:
        return JobSkipped(job=job, day=time.strftime("%Y-%m-%d", time.gmtime(skipped[0] // 1000)))
    # ids are given out without a gap, and a submit that is rolled back gives its id back
    given = cur.execute("SELECT seq FROM sqlite_sequence WHERE name = 'jobs'").fetchone()
    return JobPruned(job=job) if given is not None and 0 < job <= given[0] else NoSuchJob(job=job)


def _must_be(cur: Cursor, job: int) -> None:
    """Of a job that is being pruned, rows are left for a while that nobody is to see."""
    if cur.execute("SELECT 1 FROM jobs WHERE job_id = ?", (job,)).fetchone() is None:
        raise no_such_job(cur, job)


def job_view(cur: Cursor, job: int) -> JobView:
    """A job and its counts."""
    row = cur.execute(_JOB + "WHERE jobs.job_id = ?", (job,)).fetchone()
    if row is None:
        raise no_such_job(cur, job)
    return _job(cur, row)


def job_views(cur: Cursor, before: int | None, limit: int, unfinished: bool, owner: str | None) -> list[JobView]:
    """Jobs, newest first."""
    conditions = ["jobs.job_id < ?"] + ["ended_at IS NULL"] * unfinished + ["owner = ?"] * (owner is not None)
    values: list[Any] = [(1 << 62) if before is None else before] + ([owner] if owner is not None else [])
    rows = cur.execute(f"{_JOB} WHERE {' AND '.join(conditions)} ORDER BY jobs.job_id DESC LIMIT ?", (*values, limit))
    return [_job(cur, row) for row in rows]


def _job(cur: Cursor, row: Sequence[Any]) -> JobView:
    job, score, params, scope, owner, uid, login_uid, key, created, expires, ended, priority, last, *rest = row
    secret, dry_run, gated, rerun_of, reruns, pin, *many = rest
    counts = dict(zip(COUNTED, many, strict=True))
    return JobView(
        job=job,
        score=score,
        params=_params(params),
        scope=scope,
        owner=owner,
        uid=uid,
        login_uid=login_uid,
        request_key=key,
        created_at=created,
        expires_at=expires,
        ended_at=ended,
        priority=priority,
        counts={state.label: count for state, count in counts.items() if count},
        verdict=verdict(Scope(scope), counts),
        last_event=last,
        digest=pin,
        secrets=_names(secret) if secret else (),
        dry_run=bool(dry_run),
        rerun_of=rerun_of,
        reruns=tuple(sorted(int(one) for one in reruns.split(","))) if reruns else (),
        **(_gate(cur, job) if gated else {}),
    )


def _gate(cur: Cursor, job: int) -> dict[str, Any]:
    """What the gate of a job says of it."""
    row = cur.connection.execute(_GATE, (job,)).fetchone()
    tasks, batch, canary, most, pause, not_before, wave, opened, due_at, stopped, at, owner, uid, login_uid = row
    waves = Waves(tasks=tasks, batch=batch, canary=canary, max_failures=most, pause=pause)
    course = Course(waves=waves, wave=wave, opened=opened, next_at=None if stopped else due_at, stopped=stopped)
    paused = None if at is None else Paused(at=at, owner=owner, uid=uid, login_uid=login_uid)
    return {"not_before": not_before, "course": course, "paused": paused}


def task_views(cur: Cursor, job: int, after: int, limit: int, states: Sequence[State] = ()) -> list[TaskView]:
    """Tasks of a job by number, each with the result of its last attempt."""
    job_view(cur, job)
    marks = f"AND t.state + 0 IN ({', '.join('?' * len(states))})" if states else ""
    rows = cur.execute(
        f"{_TASK} WHERE t.job_id = ? AND t.n > ? {marks} ORDER BY t.n LIMIT ?", (job, after, *states, limit)
    )
    return [_task(row) for row in rows]


def _task(row: Sequence[Any]) -> TaskView:
    n, player, state, attempt, reason, dispatched_at, cancel, maybe_ran, body = row
    state = State(state)
    found: dict[str, Any] = {}
    if body is not None and state.terminal:
        report = _report(body)
        found = {
            name: getattr(report, name)
            for name in ("rc", "signal", "started_at", "ended_at", "digest", "response", "stdout", "stderr", "notes")
        }
    return TaskView(
        task=n,
        player=player,
        state=state.label,
        attempt=attempt,
        reason=reason,
        dispatched_at=dispatched_at,
        cancelling=bool(cancel) and state is State.DISPATCHED,
        maybe_ran=bool(maybe_ran),
        **found,
    )


def output_pieces(cur: Cursor, job: int, task: int, stream: int, offset: int, limit: int) -> list[tuple[int, bytes]]:
    """Kept output (position, bytes) of a task's last attempt, from ``offset`` on, ``limit`` bytes in all."""
    _must_be(cur, job)
    row = cur.execute(
        "SELECT t.attempt, r.body FROM tasks t LEFT JOIN results r "
        "ON r.job_id = t.job_id AND r.n = t.n AND r.attempt = t.attempt WHERE t.job_id = ? AND t.n = ?",
        (job, task),
    ).fetchone()
    if row is None:
        raise no_such_job(cur, job)
    inline = _inline(_report(row[1]), stream) if row[1] is not None else []
    ahead = cur.execute(
        "SELECT position, data FROM outputs WHERE job_id = ? AND n = ? AND attempt = ? AND stream = ? "
        "AND position + length(data) > ? ORDER BY position",
        (job, task, row[0], stream, offset),
    )
    return _cut(inline or ahead, offset, limit)


def _inline(report: Report, stream: int) -> list[tuple[int, bytes]]:
    kept = report.stdout if stream == 1 else report.stderr
    pieces: list[tuple[int, bytes]] = []
    at = 0
    for offset, length in kept.spans if kept.data else ():
        pieces.append((offset, kept.data[at : at + length]))
        at += length
    return pieces


def _cut(pieces: Iterable[tuple[int, bytes]], offset: int, limit: int) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    for position, data in pieces:
        skip = max(offset - position, 0)
        part = data[skip : skip + limit]
        if part:
            found.append((position + skip, part))
            limit -= len(part)
        if limit <= 0:
            break
    return found


def news(cur: Cursor, job: int, since: int, limit: int) -> tuple[list[Event], JobView | None]:
    """The next events after ``since``; with the last one, or when there are no more, the job if it has ended."""
    found = events(cur, job, since, limit)
    last = not found or any(event.kind == "ended" for event in found)
    return found, ended(cur, job) if last else None


def ended(cur: Cursor, job: int) -> JobView | None:
    """A job, if it has ended."""
    view = job_view(cur, job)
    return view if view.verdict else None


def events(cur: Cursor, job: int, since: int, limit: int) -> list[Event]:
    """Events with n > ``since``, oldest first."""
    _must_be(cur, job)
    return history.of_job(cur, job, since, limit)


def player_rows(cur: Cursor, after: str, limit: int, names: Sequence[str] = ()) -> list[PlayerRow]:
    """Players by name, those past ``after``; ``names`` empty means all."""
    marks = f"AND name IN ({', '.join('?' * len(names))})" if names else ""
    rows = cur.execute(
        "SELECT player_id, owner, epoch, catalogue, name, online_at, seen_at, disabled_at, slots, version, address, "
        "note, (SELECT count(*) FROM tasks t WHERE t.player_id = p.player_id AND t.state = 1), "
        "(SELECT count(*) FROM (SELECT 1 FROM tasks t WHERE t.player_id = p.player_id AND t.state = 0 LIMIT 100000)), "
        "(SELECT scores FROM catalogues c WHERE c.digest = p.catalogue) "
        f"FROM players p WHERE name > ? {marks} ORDER BY name LIMIT ?",
        (after, *names, limit),
    )
    return [_player(row) for row in rows]


def _player(row: Sequence[Any]) -> PlayerRow:
    player, owner, epoch, catalogue, name, online_at, seen_at, disabled_at, slots, version, address, note, *counts = row
    open_runs, pending, scores = counts
    if disabled_at is not None:
        status, since = "removed", disabled_at
    elif owner:
        status, since = "online", online_at
    else:
        status, since = ("never seen" if seen_at is None else "offline"), seen_at
    view = PlayerView(
        name=name,
        status=status,
        since=since,
        version=version,
        address=address,
        slots=slots,
        open_runs=open_runs,
        pending=pending,
        scores=scores,
        note=note,
    )
    return PlayerRow(player, owner, epoch, catalogue, view)


def totals(cur: Cursor) -> Totals:
    """The whole store in a few numbers."""
    many = dict(cur.execute("SELECT state, many FROM totals").fetchall())
    players = cur.execute("SELECT count(*) FROM players WHERE disabled_at IS NULL").fetchone()[0]
    return Totals(players, many.get(State.PENDING, 0), many.get(State.DISPATCHED, 0), many.get(State.HELD, 0))
