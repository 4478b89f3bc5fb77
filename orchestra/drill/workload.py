"""Askers: programs that submit, hang up, try again, cancel and look, and write down what they were told.

They live in the reactor's thread. What was answered is kept in :class:`Log`, from which the evidence is made.
"""

from collections.abc import Callable, Coroutine, Iterator
from random import Random
from typing import Any, Final

from msgspec.structs import replace
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from orchestra.audience.client import Orchestra
from orchestra.drill.evidence import Answer, Glance, Request, Seen
from orchestra.drill.requests import Wish
from orchestra.errors import EX_TEMPFAIL, EX_UNAVAILABLE, NoConductor, OrchestraError, Unanswered
from orchestra.model import Ask, State

ASKERS: Final = 4
PAUSE: Final = 0.25  # seconds, at most, between two wishes of an asker
BACKLOG: Final = 25  # tasks for each player, above which nothing more is asked for
RETRY: Final = (0.05, 0.4)
ANSWER_WITHIN: Final = 8.0  # seconds; a conductor may be paused for nearly that long


class Log:
    """What the askers were told, request by request."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.glances: list[Glance] = []
        self.complaints: list[str] = []  # what should never be said to an asker

    def begin(self, ask: Ask) -> int:
        """A new request; its number."""
        self.requests.append(Request(ask=ask))
        return len(self.requests) - 1

    def note(self, number: int, **more: Any) -> None:
        """Add what was told of a request."""
        self.requests[number] = replace(self.requests[number], **more)


class Workload:
    """All the askers. ``wishes`` is shared: whoever is free takes the next."""

    def __init__(self, reactor: Any, socket: str, wishes: Iterator[Wish], players: int, chance: Random) -> None:
        self.log = Log()
        self._reactor = reactor
        self._socket = socket
        self._wishes = wishes
        self._most = BACKLOG * players
        self._chance = chance
        self._backlog = 0
        self._going = True
        self._work: list[Deferred[None]] = []

    def start(self) -> None:
        """Begin to ask."""
        for _ in range(ASKERS):
            self._begin(self._ask_on())
        self._begin(self._look_on())

    async def stop(self) -> None:
        """Ask for nothing more; returns when everybody has the answers to what they have sent."""
        self._going = False
        for work in self._work:  # which may still grow meanwhile
            await work

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        done = Deferred.fromCoroutine(work)
        done.addErrback(lambda failure: self.log.complaints.append(f"an asker failed: {failure.getTraceback()}"))
        self._work.append(done)

    # ---- asking

    async def _ask_on(self) -> None:
        client = self._client()
        while self._going:
            if self._backlog < self._most:
                await self._fulfil(client, next(self._wishes))
            await self._sleep(self._chance.uniform(0, PAUSE))
        client.close()

    async def _fulfil(self, client: Orchestra, wish: Wish) -> None:
        number = self.log.begin(wish.ask)
        answered = await self._submit(client, number, wish.ask, wish.hasty)
        if not answered:
            return
        if wish.cancel_after is not None:
            self._begin(self._cancel(number, wish))
        if wish.repeat:
            await self._submit(client, number, wish.ask, hasty=False)
        if wish.conflict:
            await self._conflict(client, number, wish.ask)

    async def _submit(self, client: Orchestra, number: int, ask: Ask, hasty: bool) -> bool:
        """Ask until there is an answer; without a key only once, for nobody could tell two jobs from one."""
        while True:
            calling = Deferred.fromCoroutine(client.submit(ask))
            if hasty:
                self._reactor.callLater(self._chance.uniform(0, 0.01), client.close)
                hasty = False
            try:
                receipt = await calling
            except Unanswered:
                self.log.note(number, unanswered=self.log.requests[number].unanswered + 1)
                if ask.request_key is None:
                    return False
            except OrchestraError as problem:
                if problem.status not in (EX_TEMPFAIL, EX_UNAVAILABLE):
                    self._refused(number, problem)
                    return False
            else:
                before = self.log.requests[number].answers
                self.log.note(number, answers=(*before, Answer(receipt.job, receipt.created)))
                return True
            await self._sleep(self._chance.uniform(*RETRY))

    def _refused(self, number: int, problem: OrchestraError) -> None:
        self.log.note(number, refusals=(*self.log.requests[number].refusals, problem.code))
        self.log.complaints.append(f"a good request was refused: {problem.sentence}")

    async def _conflict(self, client: Orchestra, number: int, ask: Ask) -> None:
        """The same key for other work must be an error."""
        other = replace(ask, params={**ask.params, "other": "work"})
        answer = await self._patiently(lambda: client.submit(other), lambda _: "")
        if answer is not None:
            self.log.note(number, conflicts=(*self.log.requests[number].conflicts, answer))

    async def _cancel(self, number: int, wish: Wish) -> None:
        assert wish.cancel_after is not None
        await self._sleep(wish.cancel_after)
        job = self.log.requests[number].answers[-1].job
        self.log.note(number, cancelled=True)
        client = self._client()
        await self._patiently(lambda: client.cancel(job, wish.cancel_on), lambda _: "")
        client.close()

    async def _patiently(self, ask: Callable[[], Coroutine[Any, Any, Any]], said: Callable[[Any], str]) -> str | None:
        """Ask until there is an answer; the code of its refusal, or what ``said`` makes of it. Gives up at the end."""
        while self._going:
            try:
                return said(await ask())
            except OrchestraError as problem:
                if problem.status not in (EX_TEMPFAIL, EX_UNAVAILABLE):
                    return problem.code
            await self._sleep(self._chance.uniform(*RETRY))
        return None

    # ---- looking

    async def _look_on(self) -> None:
        client = self._client()
        while self._going:
            try:
                about = await client.about()
                self._backlog = about.pending + about.dispatched
                await self._glance(client)
            except (NoConductor, Unanswered):
                pass
            await self._sleep(PAUSE)
        client.close()

    async def _glance(self, client: Orchestra) -> None:
        """Look at the outcomes of one job, to compare them at the end."""
        answered = [request for request in self.log.requests if request.answers]
        if answered:
            job = self._chance.choice(answered).answers[0].job
            seen = [task async for task in client.tasks(job)]
            self.log.glances += [Glance(job, t.task, t.state) for t in seen if State[t.state.upper()].terminal]

    def _client(self) -> Orchestra:
        return Orchestra(self._reactor, self._socket, ANSWER_WITHIN)

    def _sleep(self, seconds: float) -> "Deferred[Any]":
        return deferLater(self._reactor, seconds)


async def look(client: Orchestra) -> dict[int, Seen]:
    """Every job with all that is known of it."""
    found: dict[int, Seen] = {}
    async for job in client.jobs():
        tasks = [task async for task in client.tasks(job.job)]
        events = [event async for event in client.events(job.job)]
        output = {task.task: await _output(client, job.job, task.task) for task in tasks if task.stdout.total}
        found[job.job] = Seen(job=job, tasks=tuple(tasks), events=tuple(events), output=output)
    return found


async def _output(client: Orchestra, job: int, task: int) -> bytes:
    """All that is kept of a task's standard output."""
    whole = b""
    while pieces := await client.output(job, task, 1, len(whole)):
        whole += b"".join(data for _, data in pieces)
    return whole
