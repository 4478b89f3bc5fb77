"""Before anything is asked for: who a request is meant for, and what would become of it. Nothing is stored."""

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from orchestra.conductor.dispatch import Dispatch
from orchestra.conductor.reasons import Reasons
from orchestra.conductor.targeting import Targeting
from orchestra.conductor.vetting import Vetted, misfits
from orchestra.core import explain, plan
from orchestra.core.plan import Standing
from orchestra.errors import OrchestraError
from orchestra.model import Ask, Asker, NewJob, Plan, PlanRow, Scope, ScoreEntry, Selection
from orchestra.store import gates, statements
from orchestra.store.saver import Loader

SHOWN: Final = 12  # of a digest


class Weighed(NamedTuple):
    """What a request comes to: the job that it would be, its players by number, the score on those whose disks are
    known. ``unfit``: why nothing ever came of it; with a ``refusal`` nothing new may."""

    new: NewJob
    players: dict[int, str]
    scores: dict[int, ScoreEntry | None]
    fit: Vetted
    unfit: OrchestraError | None = None
    refusal: OrchestraError | None = None
    warnings: tuple[str, ...] = ()

    @property
    def token(self) -> str:
        """What stands for all this."""
        digests = {player: entry.digest if entry else "" for player, entry in self.scores.items()}
        return plan.token(self.new, self.fit.secrets, digests)


class Planner:
    """A :class:`~orchestra.audience.desk.Planner` of requests to a dispatch."""

    def __init__(
        self,
        dispatch: Dispatch,
        reader: Loader,
        targeting: Targeting,
        reasons: Reasons,
        weigh: Callable[[Asker, Ask], Awaitable[Weighed]],
        now: Callable[[], int],
    ) -> None:
        """``weigh``: as the desk does it when a request is to be accepted."""
        self._dispatch = dispatch
        self._reader = reader
        self._targeting = targeting
        self._reasons = reasons
        self._weigh = weigh
        self._now = now

    async def targets(self, selection: Selection) -> tuple[str, ...]:
        """Who is meant, by name."""
        return await self._targeting.select(selection)

    async def plan(self, asker: Asker, ask: Ask) -> tuple[Plan, list[PlanRow]]:
        """What would become of a request, and on each of its targets."""
        weighed = await self._weigh(asker, ask)
        new, now = weighed.new, self._now()
        seen = await self._reader.read(lambda cursor: statements.last_seen(cursor))
        standings = self._standings(ask, weighed, seen)
        rows = plan.rows(standings, new.scope, new.count, frozenset(gates.at_once(new, now)), _later(new, now))
        refused = weighed.unfit or weighed.refusal
        summary = Plan(
            token=weighed.token,
            score=new.score,
            scope=new.scope,
            targets=len(new.players),
            tasks=len(new.players) if new.scope is Scope.ALL else new.count,
            would=dict(Counter(row.would for row in rows)),
            refused="" if refused is None else refused.sentence,
            warnings=weighed.warnings,
            waves=new.waves,
        )
        return summary, rows

    def _standings(self, ask: Ask, weighed: Weighed, seen: Mapping[str, int | None]) -> list[Standing]:
        """Each target by name, with what keeps it."""
        by_name = {name: player for player, name in weighed.players.items()}
        told = {weighed.players[player]: entry for player, entry in weighed.scores.items()}
        unfit = misfits(ask, told)
        return [
            self._standing(by_name[name], name, ask.score, weighed, unfit.get(name, ""), seen.get(name))
            for name in sorted(by_name)
        ]

    def _standing(self, player: int, name: str, score: str, weighed: Weighed, unfit: str, seen: int | None) -> Standing:
        session = self._dispatch.scheduler.sessions.get(player)
        refusal = self._refusal(player, score, weighed) or unfit
        busy = len(session.open) if session else 0
        return Standing(player, name, refusal, "" if refusal else self._reasons.now(player, name, seen, score), busy)

    def _refusal(self, player: int, score: str, weighed: Weighed) -> str:
        """Why a player would not run it whatever its parameters are."""
        if player not in weighed.scores:
            return ""  # nothing is known of its disk yet
        entry, pinned = weighed.scores[player], weighed.new.digest
        if entry is None:
            return self._dispatch.repertoires.refusal(player, score) or f"it has no score '{score}'"
        if pinned and entry.digest != pinned:
            return f"its '{score}' is another one, {entry.digest[:SHOWN]}"
        return ""


def _later(new: NewJob, now: int) -> str:
    """Why who is not among the first is given nothing yet."""
    begins = gates.opening(new, now)
    if begins is not None and begins.due_at is not None:
        return f"the job begins {explain.moment(begins.due_at)}"
    return "its wave has not begun"
