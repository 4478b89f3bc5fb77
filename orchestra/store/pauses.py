"""Pausing a job and resuming it: between the two nothing of it is handed out, whatever daemon is killed meanwhile."""

from sqlite3 import Cursor

from orchestra.errors import JobOver
from orchestra.model import Asker, JobView, Paused
from orchestra.store import gates
from orchestra.store.ledger import Ledger
from orchestra.store.values import PausedJob, Resumed
from orchestra.store.views import job_view


def pause(cur: Cursor, job: int, who: Asker, now: int) -> PausedJob:
    """Hand out nothing of a job from this commit on; what a player has already goes on. A job that is paused already
    stays as it was."""
    view = _going_on(cur, job)
    going_on = view.counts.get("dispatched", 0)
    if view.paused is not None:
        return PausedJob(view.paused, False, going_on, frozenset())
    gates.plain(cur, job, sum(view.counts.values()))
    paused = Paused(at=now, owner=who.name, uid=who.uid, login_uid=who.login_uid)
    _put(cur, job, paused)
    ledger = Ledger(cur, now)
    ledger.note(job, "paused", actor=who.name)
    ledger.close()
    return PausedJob(paused, True, going_on, ledger.jobs)


def resume(cur: Cursor, job: int, who: Asker, now: int) -> Resumed:
    """Hand out again what is to be handed out of a job; if it was paused between two waves, the next one."""
    view = _going_on(cur, job)
    if view.paused is None:
        return Resumed(None, frozenset(), frozenset(), ())
    _put(cur, job, None)
    ledger = Ledger(cur, now)
    ledger.note(job, "resumed", actor=who.name)
    gates.take_back(ledger, job)
    ended = ledger.close()
    return Resumed(view.paused, ledger.jobs, ended, tuple(ledger.freed))


def _going_on(cur: Cursor, job: int) -> JobView:
    view = job_view(cur, job)
    if view.ended_at is not None:
        raise JobOver(job=job, problem="has ended")
    if view.course is not None and view.course.stopped:
        raise JobOver(job=job, problem=f"is ending: {view.course.stopped}")
    return view


def _put(cur: Cursor, job: int, paused: Paused | None) -> None:
    values = (None,) * 4 if paused is None else (paused.at, paused.owner, paused.uid, paused.login_uid)
    cur.execute(
        "UPDATE gates SET paused_at = ?, paused_by = ?, paused_uid = ?, paused_login = ? WHERE job_id = ?",
        (*values, job),
    )
    cur.execute("UPDATE jobs SET gated = 1, shut = ? WHERE job_id = ?", (paused is not None, job))
