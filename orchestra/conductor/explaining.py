"""All that keeps the tasks of a job from starting: what the store, the players' sessions and the brake know, brought
together. Words and reasons are those of :mod:`orchestra.core.blockers`."""

from collections.abc import Collection, Mapping, Sequence
from sqlite3 import Cursor
from typing import NamedTuple

from orchestra.conductor.dispatch import Dispatch
from orchestra.core import blockers, gating
from orchestra.core.blockers import Ahead, Blocker, Facts, Standstill
from orchestra.model import JobView, State
from orchestra.store import statements
from orchestra.store.saver import Loader
from orchestra.store.standing import OpenRun, Seen, Waiting


class _Page(NamedTuple):
    """What the store knows of some tasks."""

    job: JobView
    waiting: Sequence[Waiting]
    players: Mapping[int, Seen]
    runs: Mapping[int, Sequence[OpenRun]]


class Explainer:
    """Answers why, from what there is."""

    def __init__(self, dispatch: Dispatch, reader: Loader) -> None:
        self._dispatch = dispatch
        self._reader = reader

    async def explain(
        self, job: int, after: tuple[int, int], limit: int, only: Collection[int] | None
    ) -> list[Standstill]:
        """The tasks that have not started, past ``after`` (task, nth), ``only`` with these players."""
        found: list[Standstill] = []
        more = True
        while more and len(found) < limit:
            page = await self._page(job, after, limit, only)
            found += [self._standstill(page, one) for one in page.waiting if not self._started(page.job, one)]
            more = len(page.waiting) == limit  # those that have started leave room, which is not the end
            after = page.waiting[-1][:2] if page.waiting else after
        return found[:limit]

    async def _page(self, job: int, after: tuple[int, int], limit: int, only: Collection[int] | None) -> _Page:
        def look(cursor: Cursor) -> _Page:
            view = statements.job_view(cursor, job)
            found = statements.waiting(cursor, job, after, limit, only)
            players = {one.player for one in found}
            return _Page(view, found, statements.seen_players(cursor, players), statements.open_runs(cursor, players))

        return await self._reader.read(look)

    def _started(self, job: JobView, one: Waiting) -> bool:
        session = self._dispatch.scheduler.sessions.get(one.player)
        return session is not None and session.started_at(job.job, one.task) is not None

    def _standstill(self, page: _Page, one: Waiting) -> Standstill:
        state, facts = State(one.state), self._facts(page, one.player)
        if state is State.DISPATCHED:
            found = blockers.of_handed_over(one.seq, page.job.score, facts)
        else:
            found = self._of_pending(page, one, facts)
        return Standstill(
            task=one.task,
            nth=one.nth,
            player=page.players[one.player].name,
            state=state.label,
            blockers=found,
            choice=one.choice,
        )

    def _of_pending(self, page: _Page, one: Waiting, facts: Facts) -> tuple[Blocker, ...]:
        job = page.job
        holds = self._dispatch.brake.all_of(page.players[one.player].name, job.score)
        trouble = (blockers.conductors_disk(self._dispatch.trouble),) if self._dispatch.trouble else ()
        return blockers.of_pending(job.score, job.digest, holds, facts, (*trouble, *gating.of_task(job, one.task)))

    def _facts(self, page: _Page, player: int) -> Facts:
        session, book = self._dispatch.scheduler.sessions.get(player), self._dispatch.repertoires
        seen, score = page.players[player], page.job.score
        entry, refusal = book.entry(player, score), book.refusal(player, score)
        if session is None:
            return Facts(
                online=False,
                since=seen.seen_at,
                removed_at=seen.disabled_at,
                known=book.seen(player),
                entry=entry,
                refusal=refusal,
            )
        started = {seq: at for seq, (_, _, at) in session.started.items()}
        return Facts(
            online=True,
            since=self._dispatch.online_since.get(player),
            removed_at=seen.disabled_at,
            note=session.note,
            known=bool(session.catalogue),
            entry=entry,
            refusal=refusal,
            slots=session.slots,
            open=tuple(_ahead(run, started) for run in page.runs.get(player, ())),
            locks=session.locks,
        )


def _ahead(run: OpenRun, started: Mapping[int, int]) -> Ahead:
    return Ahead(run.seq, run.job, run.score, run.dispatched_at, started.get(run.seq))
