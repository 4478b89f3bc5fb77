"""The promises, asserted: what the audience was told, what the store says and what processes did must agree.

What may excuse a ``lost``, and what a store that was put back silently takes away, is said here and nowhere else.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from orchestra import rolling
from orchestra.core import worklist
from orchestra.model import MOVES, Report, Scope, State, Told, Waves
from orchestra.store import moves, restore, sweeps
from simulation.machine import TIMEOUT, Start
from simulation.world import MAX_ATTEMPTS, SCORES, Host, Node, World

_report = msgspec.msgpack.Decoder(Report).decode
_params = msgspec.json.Decoder(dict[str, str]).decode
UNSTARTED = (State.CANCELLED, State.EXPIRED, State.REFUSED)


class Task(NamedTuple):
    """A task as the store has it in the end."""

    job: int
    n: int
    player: str | None
    state: State
    attempt: int
    seq: int
    maybe_ran: bool
    reason: str
    token: str
    scope: str
    idempotent: bool
    expires_at: int | None
    give_up_at: int | None

    def __str__(self) -> str:
        where = f"on {self.player}, attempt {self.attempt}, run {self.seq}"
        return f"{self.token} job {self.job}/{self.n} {self.state.label} {where} ({self.reason})"


class Result(NamedTuple):
    """What was settled of an attempt."""

    job: int
    n: int
    attempt: int
    player: str
    told: Told
    report: Report


_TASKS = """
    SELECT tasks.job_id, n, players.name, state, attempt, seq, tasks.maybe_ran, reason, body, scope, idempotent,
           expires_at, give_up_at
    FROM tasks JOIN jobs USING (job_id) JOIN job_params USING (job_id) LEFT JOIN players USING (player_id)
    ORDER BY tasks.job_id, n"""


def tasks_of(world: World) -> list[Task]:
    rows = world.store.execute(_TASKS).fetchall()
    return [
        Task(
            job, n, player, State(state), attempt, seq, bool(maybe), reason, _params(body)["token"], scope, bool(idem),
            *times
        )
        for job, n, player, state, attempt, seq, maybe, reason, body, scope, idem, *times in rows
    ]  # fmt: skip


def results_of(world: World) -> list[Result]:
    rows = world.store.execute(
        "SELECT job_id, n, attempt, name, told, body FROM results JOIN players USING (player_id) ORDER BY 1, 2, 3"
    ).fetchall()
    return [Result(job, n, attempt, name, Told(told), _report(body)) for job, n, attempt, name, told, body in rows]


def unfinished(world: World) -> bool:
    """Whether something is still under way: a task without an outcome, a process, anything that may not be left."""
    if world.store.execute("SELECT 1 FROM tasks WHERE state + 0 < 3 LIMIT 1").fetchone():
        return True
    return any(start.ended_at is None for start in world.starts) or any(_leftovers(world))


def _busy(player: Any) -> bool:
    mind = getattr(player, "_worklist", None)
    return mind is None or bool(mind.entries)


def beyond(world: World) -> bool:
    """Whether what happened is outside of what is promised about starts: a store that was put back and nobody said so,
    or one that was restored where a journal was lost as well."""
    return world.happened("rollback") or (world.happened("restore") and world.happened("journal"))


def check(world: World) -> None:
    """Assert everything."""
    tasks, results = tasks_of(world), results_of(world)
    for problems in (
        _endings(world, tasks),
        _moves(world, results),
        _holds(world),
        _pruning(world),
        _receipts(world, tasks),
        _clients(world, tasks),
        _books(world, tasks),
        _waves(world),
        _leftovers(world),
        _losses(world, tasks, results),
        _honest(world, tasks, results),
        _outputs(world, results),
        _fleet(world),
        () if beyond(world) else _starts(world, tasks, results),
        () if beyond(world) else _candidates(world, tasks, results),
        () if beyond(world) else _distinct(tasks, results),
    ):
        for problem in problems:
            world.violate(problem)


# ---- 7: it heals


def _endings(world: World, tasks: Iterable[Task]) -> Iterator[str]:
    for task in tasks:
        if not task.state.terminal:
            yield f"a task has no outcome long after the last fault: {task}"


# ---- 2: one outcome, 3: work moves on proof only


def _moves(world: World, results: Iterable[Result]) -> Iterator[str]:
    told = {(one.job, one.n, one.attempt): one for one in results}
    idempotent = dict(world.store.execute("SELECT job_id, idempotent FROM jobs").fetchall())
    for job, n, attempt, was, state, _ in world.store.execute("SELECT * FROM moved ORDER BY rowid").fetchall():
        if State(was).terminal or State(state) not in MOVES[State(was)]:
            yield f"task {job}/{n} went from {State(was).label} to {State(state).label}"
        if (was, state) == (State.DISPATCHED, State.PENDING) and job in idempotent:
            proof = told.get((job, n, attempt))
            allowed = {Told.NEVER, Told.REFUSED} | ({Told.LOST} if idempotent[job] else set())
            if proof is None or proof.told not in allowed:
                yield f"task {job}/{n} moved on after attempt {attempt} without a proof: {proof and proof.told}"
    losses = Counter((one.job, one.n) for one in results if one.told is Told.LOST)
    for (job, n), many in losses.items():
        if many > (MAX_ATTEMPTS if idempotent.get(job) else 1):
            yield f"task {job}/{n} was lost {many} times"


# ---- what operators hold is not handed out, what has not ended is not pruned


def _holds(world: World) -> Iterator[str]:
    for job, n, attempt in world.store.execute(
        "SELECT job, task, attempt FROM moved WHERE state = 1 AND held"
    ).fetchall():
        yield f"task {job}/{n} was given away while it was held, for attempt {attempt}"


def _pruning(world: World) -> Iterator[str]:
    for (job,) in world.store.execute("SELECT DISTINCT job FROM pruned WHERE token IS NULL").fetchall():
        yield f"job {job} was pruned, and had not ended"


# ---- 1: accepted is durable


def _receipts(world: World, tasks: Iterable[Task]) -> Iterator[str]:
    by_job: dict[int, list[Task]] = {}
    for task in tasks:
        by_job.setdefault(task.job, []).append(task)
    gone = world.pruned()
    for job, token in world.kept.items():
        if gone.get(token) != job and not any(task.token == token for task in by_job.get(job, ())):
            yield f"job {job} ({token}) was in the copy of the store that was put back, and is not there"
    for one in world.submissions:
        now = [job for job, _, era in one.jobs if era == world.era]
        if world.era and not now:
            continue
        for job in now:
            if gone.get(one.token) != job and not any(task.token == one.token for task in by_job.get(job, ())):
                yield f"the receipt of {one} named job {job}, and that is not there"
        if one.ask.request_key is None:
            continue
        if len(set(now)) > 1 or sum(created for _, created, era in one.jobs if era == world.era) > 1:
            yield f"the request key of {one} has made several jobs: {one.jobs}"


# ---- what clients have seen


def _clients(world: World, tasks: Iterable[Task]) -> Iterator[str]:
    for task in tasks:
        seen = world.seen.get((world.era, task.job, task.n))
        if seen is not None and seen != task.state.label:
            yield f"a client has seen {seen} of {task}"
    for (era, job), events in world.logs.items():
        if era == world.era and [event.n for event in events] != list(range(1, len(events) + 1)):
            yield f"the events of job {job} that a client has read have gaps"


# ---- events and counts


def _books(world: World, tasks: Iterable[Task]) -> Iterator[str]:
    store = world.store
    for job, last, many, most in store.execute(
        "SELECT jobs.job_id, last_event, count(*), max(n) FROM jobs LEFT JOIN events USING (job_id) GROUP BY 1, 2"
    ).fetchall():
        if not last == many == most:
            yield f"job {job} says it has {last} events, there are {many}, the last is {most}"
    columns = ", ".join(state.label for state in State)
    found: dict[int, Counter[State]] = {}
    for task in tasks:
        found.setdefault(task.job, Counter())[task.state] += 1
    for job, *counts in store.execute(f"SELECT job_id, {columns} FROM jobs").fetchall():
        booked = Counter({state: many for state, many in zip(State, counts, strict=True) if many})
        if booked != found[job]:
            yield f"job {job} counts {dict(booked)}, its tasks are {dict(found[job])}"
    totals = dict(store.execute("SELECT state, many FROM totals").fetchall())
    for state in (State.PENDING, State.DISPATCHED, State.HELD):
        if totals[state] != sum(counter[state] for counter in found.values()):
            yield f"the totals say {totals[state]} {state.label}"
    pending = "SELECT 1 FROM tasks t WHERE t.job_id = c.job_id AND t.player_id IS NULL AND t.state + 0 = 0"
    if store.execute(f"SELECT 1 FROM candidates c WHERE NOT EXISTS ({pending})").fetchone():
        yield "there are candidates, and no task is pending for them"


# ---- whose turn it is


def _waves(world: World) -> Iterator[str]:
    """A task is handed out after all of the waves before its own have ended."""
    ends = {state.label for state in State if state.terminal}
    gates = "SELECT job_id, tasks, batch, canary FROM gates WHERE max_failures IS NOT NULL"
    for job, tasks, batch, canary in world.store.execute(gates).fetchall():
        waves = Waves(tasks=tasks, batch=batch, canary=canary)
        over: set[int] = set()
        told = "SELECT kind, task FROM events WHERE job_id = ? AND task IS NOT NULL ORDER BY n"
        for kind, task in world.store.execute(told, (job,)).fetchall():
            before = range(rolling.reach(waves, rolling.wave_of(waves, task) - 1))
            if kind == State.DISPATCHED.label and not over.issuperset(before):
                yield f"task {job}/{task} was handed out before its turn: ended were {sorted(over)}"
            over |= {task} if kind in ends else set()


# ---- 6 and more: nothing dangles when all is over


def _leftovers(world: World) -> Iterator[str]:
    for host in world.conductors:
        for session in host.dispatch.scheduler.sessions.values() if host.up else ():
            if session.open:
                yield f"{host.name} thinks that {session.name} has {session.open}"
            if session.claiming and len(world.conductors) == 1:
                yield f"{host.name} claims for {session.name}, for ever"
    for node in world.nodes:
        if node.name not in world.listed:
            continue
        if not node.up or _busy(node.player):
            entries = getattr(getattr(node.player, "_worklist", None), "entries", "no worklist")
            yield f"{node.name} has not been able to tell all: {entries}"
        if not any(_online(host, node) for host in world.conductors):
            yield f"{node.name} is not back, or its conductor does not know what it can run"
        left = [key for key in node.machine.directories if key[0] == node.journal_name]
        if left:
            yield f"the stage of {node.name} still keeps {left}"


def _online(host: Host, node: Node) -> bool:
    sessions = host.dispatch.scheduler.sessions.values() if host.up else ()
    digest = node.shelf.catalogue.digest
    return any(one.name == node.name and one.ready and one.catalogue == digest for one in sessions)


# ---- 3 and 4: started once


def _starts(world: World, tasks: Iterable[Task], results: Iterable[Result]) -> Iterator[str]:
    starts: dict[tuple[str, int], list[Start]] = {}
    for start in world.starts:
        if start.token not in world.outside:
            starts.setdefault((start.token, start.task), []).append(start)
    told = {(one.job, one.n, one.attempt): one for one in results}
    for task in tasks:
        if task.token in world.outside:
            continue
        mine = starts.pop((task.token, task.n), [])
        yield from _started_once(task, task.idempotent, mine)
        yield from _outcome_is_true(task, mine)
        for start in mine:
            said = told.get((task.job, task.n, start.attempt))
            if said is not None and said.told in (Told.NEVER, Told.REFUSED):
                yield f"{said.player} said {said.told} ({said.report.reason}) of what was started: {start}"
    gone = world.pruned()
    for (token, _), unknown in starts.items():
        if token in gone:
            yield from _started_once(f"job {gone[token]}, pruned", SCORES[unknown[0].score], unknown)
            continue
        yield f"processes were started for a task that does not exist: {[str(start) for start in unknown]}"


def _started_once(task: object, idempotent: bool, starts: list[Start]) -> Iterator[str]:
    attempts = Counter(start.attempt for start in starts)
    for attempt, many in attempts.items():
        if many > 1:
            yield f"attempt {attempt} was started {many} times: {task}"
    if len(starts) > 1 and not idempotent:
        yield f"what may run once was started {len(starts)} times: {task}" + "".join(f"\n    {one}" for one in starts)


def _outcome_is_true(task: Task, starts: list[Start]) -> Iterator[str]:
    if task.state in UNSTARTED and starts:
        yield f"it is {task.state.label}, and was started: {task}\n    {starts[0]}"
    if task.state not in (State.OK, State.FAILED, State.KILLED):
        return
    mine = [start for start in starts if start.attempt == task.attempt and start.node == task.player]
    if not mine:
        yield f"nothing was ever started of {task}"
    elif task.state is not State.KILLED and mine[0].how != task.state.label:
        yield f"{task} in fact ended otherwise: {mine[0]}"


# ---- one-of work goes to whom it may


def _candidates(world: World, tasks: Iterable[Task], results: Iterable[Result]) -> Iterator[str]:
    one_of = {(task.job, task.n): task for task in tasks if task.scope == Scope.ONE}
    refusals: dict[tuple[int, int], set[str]] = {}
    for one in results:
        task = one_of.get((one.job, one.n))
        if task is None:
            continue
        if one.player in refusals.get((one.job, one.n), ()):
            yield f"{one.player} had refused, and was asked again: {task}"
        if one.told is Told.REFUSED:
            refusals.setdefault((one.job, one.n), set()).add(one.player)
        if one.attempt > world.denied.get((task.token, one.player), one.attempt):
            yield f"it was cancelled on {one.player}, and given to it all the same: {task}"


def _distinct(tasks: Iterable[Task], results: Iterable[Result]) -> Iterator[str]:
    """Of a job for some of its targets nobody starts two tasks, and nobody is asked again who has refused."""
    jobs = {task.job: task for task in tasks if task.scope == Scope.SOME}
    mine = [one for one in results if one.job in jobs]
    refusals = Counter((one.job, one.player) for one in mine if one.told is Told.REFUSED)
    started = {(one.job, one.player, one.n) for one in mine if one.told not in (Told.REFUSED, Told.NEVER)}
    for job, player in (key for key, many in refusals.items() if many > 1):
        yield f"{player} had refused, and was asked again: {jobs[job]}"
    for job, player in (key for key, many in Counter(one[:2] for one in started).items() if many > 1):
        yield f"{player} was given several tasks of one job: {jobs[job]}"


# ---- 5: lost is honest


def _losses(world: World, tasks: Iterable[Task], results: Iterable[Result]) -> Iterator[str]:
    told = {(one.job, one.n, one.attempt): one for one in results}
    for one in results:
        if one.told is Told.LOST and not _excused(world, one):
            yield f"{one.player} said lost, and nothing had happened to it: job {one.job}/{one.n} attempt {one.attempt}, {one.report.reason}"
    for task in tasks:
        said = told.get((task.job, task.n, task.attempt))
        was_told = said is not None and said.told is Told.LOST
        if task.state is State.LOST and not was_told and not _lost_for_a_reason(world, task):
            yield f"nothing explains why it is lost: {task}"


def _excused(world: World, said: Result) -> bool:
    """Whether the player could not know better."""
    reason = said.report.reason
    if reason == worklist.FORGOTTEN:
        return _put_back(world)
    if reason == worklist.REBOOTED_RUNNING:
        return world.happened("power", said.player)
    return world.happened("stage", said.player) or world.happened("power", said.player)


def _lost_for_a_reason(world: World, task: Task) -> bool:
    ran_before = task.maybe_ran and _may_have_run(world, task)
    latest = world.widest["most"]
    if task.reason.startswith(("the player came back with a new journal",)):
        return world.happened("journal", task.player or "")
    if task.reason.startswith("the conductor's store had been put back"):
        return _put_back(world)
    if task.reason == restore.REASON:
        return world.happened("restore")
    if task.reason == sweeps.GIVEN_UP:
        return task.give_up_at is not None and latest >= task.give_up_at
    if task.reason == sweeps.REMOVED_RUNNING:
        return world.happened("removed", task.player or "")
    if task.reason == moves.NOT_STARTED:
        return ran_before and task.expires_at is not None and latest >= task.expires_at
    return ran_before  # cancelled, refused, or nobody left


def _may_have_run(world: World, task: Task) -> bool:
    return world.happened("stage") or world.happened("power") or _put_back(world)


def _put_back(world: World) -> bool:
    return world.happened("rollback") or world.happened("restore")


# ---- the other ends are honest too


def _honest(world: World, tasks: Iterable[Task], results: Iterable[Result]) -> Iterator[str]:
    told = {(one.job, one.n, one.attempt): one.told for one in results}
    over = _over_the_top(world, tasks)
    for task in tasks:
        stopped = task.state is State.CANCELLED and task.job in over and task.reason.startswith("stopped:")
        if not stopped and not _for_a_reason(world, task, told.get((task.job, task.n, task.attempt))):
            yield f"nothing explains its end: {task}"


def _over_the_top(world: World, tasks: Iterable[Task]) -> set[int]:
    """The rolling jobs of which more went wrong than was allowed for, or a canary did not end well."""
    wrong = Counter(task.job for task in tasks if task.state in rolling.FAILURES)
    unwell = {(task.job, task.n) for task in tasks if task.state.terminal and task.state is not State.OK}
    limits = "SELECT job_id, max_failures, canary FROM gates WHERE max_failures IS NOT NULL"
    return {
        job
        for job, most, canary in world.store.execute(limits).fetchall()
        if wrong[job] > most or any((job, n) in unwell for n in range(canary))
    }


def _for_a_reason(world: World, task: Task, told: Told | None) -> bool:
    match task.state:
        case State.EXPIRED:
            return task.expires_at is not None and world.widest["most"] >= task.expires_at
        case State.CANCELLED:
            removed = task.reason == sweeps.NOBODY_LEFT and world.happened("removed")
            return removed or task.token in world.cancelled
        case State.REFUSED:
            return told is Told.REFUSED
        case State.KILLED:
            return task.token in world.cancelled or world.happened("ended", task.player or "") or _overdue(world, task)
        case _:
            return True


def _overdue(world: World, task: Task) -> bool:
    """Whether a run of it, or a stage's idea of one, has lasted as long as it may."""
    mine = [one for one in world.starts if (one.token, one.task, one.node) == (task.token, task.n, task.player)]
    return any((one.ended_at or world.timeline.now) - one.at > TIMEOUT - 0.001 for one in mine)


# ---- 6: what a run has said is kept


def _outputs(world: World, results: Iterable[Result]) -> Iterator[str]:
    there = dict(
        world.store.execute(
            "SELECT job_id || '/' || n || '/' || attempt, sum(length(data)) FROM outputs WHERE stream = 1 GROUP BY 1"
        ).fetchall()
    )
    gone = set(world.pruned().values())
    for one in results:
        spans = one.report.stdout.spans
        if one.job in gone or not spans or one.report.stdout.data:
            continue
        if there.get(f"{one.job}/{one.n}/{one.attempt}") != sum(size for _, size in spans):
            yield f"the output of job {one.job}/{one.n} attempt {one.attempt} is not there: {there}"


# ---- the fleet


def _fleet(world: World) -> Iterator[str]:
    rows = world.store.execute(
        "SELECT name FROM players JOIN journals USING (journal, player_id) WHERE retired_at IS NOT NULL"
    )
    for (name,) in rows.fetchall():
        yield f"{name} was let in with a journal that had been retired"
