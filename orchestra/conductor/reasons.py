"""The one line on what a task waits for, which every status has; in the words of :mod:`orchestra.core.explain`."""

from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from orchestra.conductor.dispatch import Dispatch
from orchestra.core import explain
from orchestra.core.explain import Presence
from orchestra.core.scheduler import Session
from orchestra.model import Hold, JobView, NewJob, Scope, State, TaskView
from orchestra.store.values import PlayerRow

UNFINISHED: Final = (State.PENDING.label, State.DISPATCHED.label, State.HELD.label)


class Reasons:
    """Why, from what the dispatch knows."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch

    def away(self, player: int, name: str, seen: int | None, new: NewJob) -> str:
        """Why a new job will not start at once on this player."""
        return explain.why_waiting(self._presence(player, name, new.score, seen), new.score, new.expires_at)

    def now(self, player: int, name: str, seen: int | None, score: str) -> str:
        """Why a player would not be given a run of this score now, or ""."""
        if self._dispatch.trouble:
            return f"nothing is handed out, {self._dispatch.trouble}"
        return explain.blocker(self._presence(player, name, score, seen), score)

    def told(self, task: TaskView, job: JobView, rows: Mapping[str, PlayerRow]) -> TaskView:
        """A task with its reason, while it has no outcome. ``rows``: what the store knows of players, by name."""
        if task.state not in UNFINISHED:
            return task
        if task.state == State.PENDING.label and self._dispatch.trouble:
            return replace(task, why=f"waits: nothing is handed out, {self._dispatch.trouble}")
        if task.state != State.DISPATCHED.label and (gate := explain.why_not_let_go(job, task)):
            return replace(task, why=gate)
        row = rows.get(task.player or "")
        if row is None:
            there, brake = len(self._dispatch.doors), self._dispatch.brake
            hold = in_words(brake.of_score(job.score))
            why = explain.why_waiting_for_one(there, job.expires_at, hold, brake.some_hosts, job.scope == Scope.SOME)
            return replace(task, why=why)
        presence = self._presence(row.player, row.view.name, job.score, row.view.since)
        if task.state == State.PENDING.label:
            return replace(task, why=explain.why_waiting(presence, job.score, job.expires_at))
        session = self._dispatch.scheduler.sessions.get(row.player)
        started = session.started_at(job.job, task.task) if session else None
        return replace(task, started_at=started, why=explain.why_unfinished(task, presence, started))

    def _presence(self, player: int, name: str, score: str = "", seen: int | None = None) -> Presence:
        session: Session | None = self._dispatch.scheduler.sessions.get(player)
        held = in_words(self._dispatch.brake.of(name, score))
        if session is None:
            return Presence(name=name, online=False, since=seen, removed=name not in self._dispatch.ids, held=held)
        return Presence(
            name=name,
            online=True,
            held=held,
            since=self._dispatch.online_since.get(player),
            note=session.note,
            room=session.room,
            open_of_score=session.count(score),
            limit_of_score=session.limits.get(score, 0),
        )


def in_words(hold: Hold | None) -> str:
    """A hold in one line, or nothing."""
    return "" if hold is None else explain.held(hold)
