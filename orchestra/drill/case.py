"""The evidence, laid out by task: its request, its events, its attempts and the lines of its runs. Judges nothing."""

from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from orchestra.drill.evidence import Evidence, Request, Seen
from orchestra.drill.ledger import END, START, Line
from orchestra.model import Event, Scope, State, TaskView

OUTCOMES = frozenset(state.label for state in State if state.terminal)


class Attempt(NamedTuple):
    """A run as the events tell it: given to ``player``, and over when the task went to ``became``."""

    number: int
    player: str
    at: int
    over_at: int | None
    became: str


class TaskCase:
    """Everything about one task. ``request`` is None for a job that nobody we know has asked for."""

    def __init__(self, seen: Seen, task: TaskView, request: Request | None, lines: tuple[Line, ...]) -> None:
        self.seen = seen
        self.task = task
        self.request = request
        self.lines = lines

    @property
    def job(self) -> int:
        return self.seen.job.job

    @cached_property
    def events(self) -> tuple[Event, ...]:
        """The events of this task alone."""
        return tuple(event for event in self.seen.events if event.task == self.task.task)

    @cached_property
    def attempts(self) -> tuple[Attempt, ...]:
        """Its runs, in order."""
        moves = [event for event in self.events if event.kind in OUTCOMES | {"dispatched", "pending"}]
        found: list[Attempt] = []
        for event, after in zip(moves, [*moves[1:], None], strict=False):  # one that waits still has no moves
            if event.kind == "dispatched":
                over = (after.at, after.kind) if after is not None else (None, "")
                found.append(Attempt(len(found) + 1, event.player or "", event.at, *over))
        return tuple(found)

    @cached_property
    def outcome_at(self) -> int | None:
        """When it got its outcome."""
        return next((event.at for event in self.events if event.kind in OUTCOMES), None)

    def wrote(self, kind: str, attempt: int | None = None) -> tuple[Line, ...]:
        """Its lines of a kind, of one attempt or of all."""
        return tuple(line for line in self.lines if line.kind == kind and attempt in (None, line.attempt))

    @property
    def starts(self) -> tuple[Line, ...]:
        return self.wrote(START)

    def story(self) -> tuple[str, ...]:
        """What can be told of it, for a person."""
        job = self.seen.job
        asked = " ".join(f"{key}={value}" for key, value in job.params.items())
        head = f"job {job.job} task {self.task.task}: {job.score} ({job.scope} of), {asked}; key {job.request_key}"
        task = self.task
        now = f"is {task.state} on {task.player}, attempt {task.attempt}, {task.reason!r} {task.notes}"
        events = [f"event {e.n} at {e.at}: {e.kind} {e.player or ''} {e.detail}".rstrip() for e in self.events]
        return (head, now, *events, *map(str, self.lines))


class Case:
    """Evidence and its indexes; ``final`` is the first of the last looks."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence = evidence
        self.final = evidence.looks[0]
        self._by_key = {r.ask.request_key: r for r in evidence.requests if r.ask.request_key is not None}
        self._by_job = {answer.job: request for request in evidence.requests for answer in request.answers}
        self.strays: list[Line] = []  # lines that belong to no task that the conductor knows
        lines = self._lines()
        self.tasks = tuple(
            TaskCase(seen, task, self.request_of(seen), tuple(lines[seen.job.job, task.task]))
            for seen in self.final.values()
            for task in seen.tasks
        )

    def request_of(self, seen: Seen) -> Request | None:
        """Who asked for this job: by its key, or, where it has none, by what they were answered."""
        key = seen.job.request_key
        return self._by_job.get(seen.job.job) if key is None else self._by_key.get(key)

    def stage_killed(self, attempt: Attempt) -> int | None:
        """When, at the earliest, the stage of a run was killed that died between its dispatch and its end; None: it
        did not."""
        for kill in self.evidence.stage_kills:
            meanwhile = attempt.at <= kill.by and kill.at <= (attempt.over_at or kill.at)
            if kill.player == attempt.player and meanwhile:
                return kill.at
        return None

    def moment(self, line: Line) -> int:
        """When a line was written, in milliseconds since 1970."""
        return self.evidence.booted_at + round(line.up * 1000)

    def wrote(self, kind: str) -> Iterator[tuple[TaskCase, Line]]:
        """Every line of a kind, with its task."""
        return ((case, line) for case in self.tasks for line in case.wrote(kind))

    def _lines(self) -> dict[tuple[int, int], list[Line]]:
        found: dict[tuple[int, int], list[Line]] = defaultdict(list)
        for line in self.evidence.ledger:
            task = self._task_of(line)
            if task is None:
                self.strays.append(line)
            else:
                found[line.job, task].append(line)
        return found

    def _task_of(self, line: Line) -> int | None:
        seen = self.final.get(line.job)
        if seen is None:
            return None
        if seen.job.scope == Scope.ONE:
            return 0
        if seen.job.scope == Scope.SOME:  # one that may have started a task is given no other: it was its last
            given = (event for event in reversed(seen.events) if event.kind == "dispatched")
            return next((event.task for event in given if event.player == line.player), None)
        return next((task.task for task in seen.tasks if task.player == line.player), None)


__all__ = ["END", "OUTCOMES", "START", "Attempt", "Case", "TaskCase"]
