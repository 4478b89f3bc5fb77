"""The store against a small model of it, in any order of events: one outcome, gapless events, true counts."""

from collections import Counter
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from storehouse import ANNE, Storehouse, greet, report

from orchestra.errors import JobOver, RetiredJournal
from orchestra.model import Report, Run, Scope, State, Told, Waves, verdict
from orchestra.store import statements

PLAYERS = (1, 2, 3)
HOUR = 3_600_000
FAILURES = (State.FAILED, State.KILLED, State.EXPIRED, State.REFUSED, State.LOST)
WAITING = (State.PENDING, State.HELD)
player_ids = st.sampled_from(PLAYERS)


class Task:
    """A task as the promises have it."""

    def __init__(self, job: "Job", n: int, player: int | None) -> None:
        self.job = job
        self.n = n
        self.player = player  # whose it is; None: anybody's who is free
        self.state = State.PENDING
        self.run: tuple[int, int] | None = None  # player and seq
        self.attempt = 0
        self.losses = 0
        self.maybe_ran = False
        self.cancel = False

    def may_go_to(self, player: int) -> bool:
        return player == self.player if self.player else player in self.job.free()

    def end(self, state: State) -> None:
        never_started = state in (State.CANCELLED, State.EXPIRED, State.REFUSED)
        self.state = State.LOST if never_started and self.maybe_ran else state
        self.run = None

    def again(self, now: int, stays: bool = False) -> None:
        self.run = None
        if self.cancel:
            self.end(State.CANCELLED)
        elif self.job.expired(now):
            self.end(State.EXPIRED)
        else:
            self.state = State.PENDING
            if self.job.pool is not None and not stays:
                self.player = None

    def told(self, told: Told, now: int) -> None:
        assert self.run is not None
        player = self.run[0]
        if told is Told.REFUSED and self.job.pool is not None:
            self.job.strike({player})
            self.again(now) if self.job.spare() > 0 else self.end(State.REFUSED)
        elif told is Told.NEVER:
            self.again(now, self.job.some and self.maybe_ran and self.job.spare() <= 0)
        elif told is Told.LOST:
            self.losses += 1
            self.maybe_ran = True
            tired = not self.job.idempotent or self.losses >= self.job.max_attempts
            if tired or self.cancel or self.job.expired(now):
                self.end(State.LOST)
            else:
                if self.job.some:
                    self.job.strike({player})
                self.again(now, self.job.some and self.job.spare() <= 0)
        else:
            self.end(State[told.name])


class Job:
    def __init__(self, number: int, asked: dict[str, Any], expires_at: int | None) -> None:
        self.number = number
        self.scope = asked["scope"]
        self.some = self.scope is Scope.SOME
        self.pool = None if self.scope is Scope.ALL else list(asked["players"])
        self.score = asked["score"]
        self.rank = -asked["priority"]
        self.idempotent = asked["idempotent"]
        self.max_attempts = asked["max_attempts"]
        self.expires_at = expires_at
        whose = asked["players"] if self.pool is None else [None] * asked["count"]
        self.tasks = [Task(self, n, player) for n, player in enumerate(whose)]
        self.ahead: list[list[Task]] = []  # waves that have not been let go
        self.behind: list[Task] = list(self.tasks)  # what has been let go
        self.canaries: list[Task] = []
        self.limit: int | None = None
        self.between = 0
        self.due: int | None = None  # when the next wave is let go, if time decides that
        self.paused = False
        self.stopped = False

    def free(self) -> list[int]:
        """Who may be given a task that is nobody's yet."""
        return [player for player in self.pool or () if player not in {task.player for task in self.tasks}]

    def spare(self) -> int:
        """How many are free beyond what waits for them."""
        return len(self.free()) - len(self.nobodys())

    def nobodys(self) -> list[Task]:
        return [task for task in self.tasks if task.player is None and task.state in WAITING]

    def strike(self, players: set[int]) -> None:
        self.pool = [player for player in self.pool or () if player not in players]

    def roll(self, waves: Waves | None, not_before: int | None, now: int) -> None:
        """Be handed out in waves, or later."""
        self.ahead = [list(self.tasks)]
        if waves is not None:
            self.limit, self.between = waves.max_failures, waves.pause
            self.canaries, rest = self.tasks[: waves.canary], self.tasks[waves.canary :]
            batches = [rest[n : n + waves.batch] for n in range(0, len(rest), waves.batch)]
            self.ahead = [wave for wave in (self.canaries, *batches) if wave]
        self.behind = []
        for task in self.tasks:
            task.state = State.HELD
        if not_before is not None and not_before > now:
            self.due = not_before
        else:
            self.let_go()

    def let_go(self) -> None:
        """The next wave in which somebody waits; but the canaries are never passed over."""
        self.due = None
        waiting: list[Task] = []
        while self.ahead and not waiting:
            wave = self.ahead.pop(0)
            self.behind += wave
            waiting = [task for task in wave if task.state is State.HELD]
            if wave is self.canaries:
                break
        for task in waiting:
            task.state = State.PENDING

    def follow(self, now: int) -> None:
        """What follows, for a job that rolls, from how its tasks stand."""
        states = Counter(task.state for task in self.tasks)
        if not any(states[state] for state in WAITING) or self.expired(now):
            return
        if self.stopped or self.is_wrong():
            self.stopped, self.paused = True, False
            for task in self.tasks:
                if task.state in WAITING:
                    task.end(State.CANCELLED)
        elif self.over() and self.ahead:
            if self.between:
                self.due = now + self.between
            else:
                self.let_go()

    def over(self) -> bool:
        """Whether everything that was let go has ended."""
        return self.due is None and not self.paused and all(task.state.terminal for task in self.behind)

    def is_wrong(self) -> bool:
        """Whether more has failed than may."""
        failures = sum(task.state in FAILURES for task in self.tasks)
        if self.limit is None:
            return False
        if self.canaries and self.behind in ([], self.canaries):
            good = all(task.state is State.OK for task in self.canaries)
            return failures > (0 if self.behind else self.limit) or (self.over() and bool(self.behind) and not good)
        return failures > self.limit

    def expired(self, now: int) -> bool:
        return self.expires_at is not None and self.expires_at <= now


class StoreAndModel(RuleBasedStateMachine):
    only: Scope | None = None  # jobs of no other scope

    @initialize()
    def begin(self) -> None:
        self.store = Storehouse(len(PLAYERS))
        self.now = 0
        self.jobs: list[Job] = []
        self.seqs = dict.fromkeys(PLAYERS, 0)
        self.journals = dict.fromkeys(PLAYERS, 0)
        self.removed_at: dict[int, int] = {}
        self.said: list[tuple[int, Report]] = []
        self.runs: list[tuple[int, Run]] = []
        self.outcomes: dict[tuple[int, int], str] = {}
        self.logs: dict[int, list[object]] = {}

    # ---- what happens

    @rule(
        asked=st.fixed_dictionaries(
            {
                "players": st.sets(player_ids, min_size=1).map(sorted),
                "scope": st.sampled_from(Scope),
                "count": st.integers(1, 3),
                "score": st.sampled_from("ab"),
                "priority": st.integers(0, 1),
                "idempotent": st.booleans(),
                "max_attempts": st.integers(1, 3),
            }
        ),
        expire=st.sampled_from([None, 1, 3]),
        rolls=st.none()
        | st.fixed_dictionaries(
            {
                "batch": st.integers(1, 3),
                "canary": st.integers(0, 2),
                "max_failures": st.integers(0, 2),
                "pause": st.sampled_from([0, HOUR]),
            }
        ),
        later=st.sampled_from([None, None, -1, 1]),
    )
    def submit(
        self, asked: dict[str, Any], expire: int | None, rolls: dict[str, int] | None, later: int | None
    ) -> None:
        expires_at = None if expire is None else self.now + expire * HOUR
        not_before = None if later is None else self.now + later * HOUR
        many = len(asked["players"])
        asked = {**asked, "scope": self.only or asked["scope"]}
        asked = {**asked, "count": min(asked["count"], many) if asked["scope"] is Scope.SOME else 1}
        waves = None if rolls is None or asked["scope"] is not Scope.ALL else Waves(
            **{**rolls, "tasks": many, "canary": min(rolls["canary"], many)}  # type: ignore[arg-type]
        )  # fmt: skip
        number = self.store.submit(**asked, now=self.now, expires_at=expires_at, waves=waves, not_before=not_before)
        job = Job(number, asked, expires_at)
        if waves is not None or (not_before is not None and not_before > self.now):
            job.roll(waves, not_before, self.now)
        self.jobs.append(job)

    @rule(player=player_ids, room=st.integers(0, 4), limit=st.integers(1, 3))
    def claim(self, player: int, room: int, limit: int) -> None:
        self.expire()
        waiting = [] if player in self.removed_at else [task for task in self.pending() if task.may_go_to(player)]
        shut = [task for task in waiting if task.job.paused]
        waiting = [task for task in waiting if not task.job.paused]
        left = {"a": limit, "b": limit}
        expected = []
        for task in sorted(waiting, key=lambda task: (task.job.rank, task.job.number, task.n)):
            another = any(task.job is one.job and one.player is None for one in expected)
            if len(expected) < room and left[task.job.score] > 0 and not another:
                left[task.job.score] -= 1
                expected.append(task)
        runs = self.store.claim(player, room, self.now, default_limit=limit)
        assert [(run.job, run.task) for run in runs] == [(task.job.number, task.n) for task in expected]
        for run, task in zip(runs, expected, strict=True):
            self.seqs[player] += 1
            task.attempt += 1
            task.player = player
            task.state, task.run = State.DISPATCHED, (player, self.seqs[player])
            assert (run.seq, run.attempt) == (self.seqs[player], task.attempt)
            self.runs.append((player, run))
        for task in shut:  # how many of them stood in the way is the store's own matter
            [(state,)] = self.rows("SELECT state FROM tasks WHERE job_id = ? AND n = ?", task.job.number, task.n)
            assert state in WAITING
            task.state = State(state)

    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        job = self.one_job(data)
        if job is None:
            return
        if job.stopped or all(task.state.terminal for task in job.tasks):
            self.refused(statements.pause, job)
            return
        done = statements.pause(self.store.cur, job.number, ANNE, self.now)
        assert (done.new, done.going_on) == (not job.paused, sum(task.run is not None for task in job.tasks))
        job.paused = True

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        job = self.one_job(data)
        if job is None:
            return
        if job.stopped or all(task.state.terminal for task in job.tasks):
            self.refused(statements.resume, job)
            return
        done = statements.resume(self.store.cur, job.number, ANNE, self.now)
        assert (done.was is not None) == job.paused
        before = {task for task in job.tasks if task.state is State.PENDING}
        if job.paused:
            job.paused = False
            for task in job.behind:
                if task.state is State.HELD:
                    task.state = State.PENDING
            job.follow(self.now)
        freed = {task for task in job.tasks if task.state is State.PENDING} - before
        assert {one.n for one in done.freed} == {task.n for task in freed}

    def one_job(self, data: st.DataObject) -> Job | None:
        return data.draw(st.sampled_from(self.jobs)) if self.jobs else None

    def refused(self, ask: Any, job: Job) -> None:
        try:
            ask(self.store.cur, job.number, ANNE, self.now)
            raise AssertionError("a job that is over was paused or resumed")
        except JobOver:
            pass

    @rule()
    def open_due(self) -> None:
        self.expire()
        statements.open_due(self.store.cur, self.now)
        for job in self.jobs:
            if job.due is not None and job.due <= self.now and not (job.paused or job.stopped):
                job.let_go()
        self.follow()

    def follow(self) -> None:
        for job in self.jobs:
            job.follow(self.now)

    @rule(data=st.data(), told=st.sampled_from(Told))
    def report(self, data: st.DataObject, told: Told) -> None:
        """Of any run there ever was: most are of use once."""
        if not self.runs:
            return
        player, run = data.draw(st.sampled_from(self.runs))
        self.say(player, report(run, told, reason=f"it was {told}"))

    @rule(told=st.sampled_from(Told))
    def report_the_newest(self, told: Told) -> None:
        if self.runs:
            player, run = self.runs[-1]
            self.say(player, report(run, told))

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        """What was settled is not even an event when it is said again."""
        if self.said:
            player, said = data.draw(st.sampled_from(self.said))
            before = self.store.kinds(said.job)
            self.store.settle(player, said, now=self.now)
            assert self.store.kinds(said.job) == before

    def say(self, player: int, said: Report) -> None:
        task = self.task(said.job, said.task)
        settled = self.store.settle(player, said, now=self.now)
        if task.state is State.DISPATCHED and task.run == (player, said.seq):
            task.told(said.told, self.now)
            self.said.append((player, said))
            assert settled.late == 0
            task.job.follow(self.now)
        else:
            assert settled.late == (0 if (player, said) in self.said else 1)
        for one in settled.freed:
            assert one.job == task.job.number
            assert self.task(one.job, one.n).state is State.PENDING or task.job.stopped

    @rule(data=st.data(), players=st.none() | st.sets(player_ids))
    def cancel(self, data: st.DataObject, players: set[int] | None) -> None:
        if not self.jobs:
            return
        job = data.draw(st.sampled_from(self.jobs))
        done = statements.cancel(self.store.cur, job.number, players, "anne", self.now)
        orders: dict[int, tuple[int, ...]] = {}
        for task in job.tasks:
            if task.state.terminal:
                continue
            if players is not None:
                if job.pool is not None:
                    job.strike(players)
                nobody_left = task in job.nobodys() and job.spare() < 0
                if not (task.player in players or nobody_left):
                    continue
            if task.run is None:
                task.end(State.CANCELLED)
            else:
                task.cancel = True
                orders[task.run[0]] = (*orders.get(task.run[0], ()), task.run[1])
        if players is None and self.is_gated(job):
            job.stopped, job.paused = True, False
        job.follow(self.now)
        assert done.orders == {player: tuple(sorted(seqs)) for player, seqs in orders.items()}

    @rule(player=player_ids)
    def reconnect(self, player: int) -> None:
        self.greet(player, high=self.seqs[player])

    @rule(player=player_ids)
    def come_with_a_new_journal(self, player: int) -> None:
        """What it had is lost, for ever, idempotent or not; the old journal is refused."""
        if player in self.removed_at:
            return
        old, self.journals[player] = self.journals[player], self.journals[player] + 1
        for task in self.open(player):
            task.end(State.LOST)
        self.follow()
        self.greet(player, high=0)
        try:
            greet(self.store.cur, player, self.now, journal=f"journal-{player}" if old == 0 else f"{player}/{old}")
            raise AssertionError("a retired journal was let in")
        except RetiredJournal:
            pass

    @rule(player=player_ids, further=st.integers(0, 3))
    def be_further_than_the_store(self, player: int, further: int) -> None:
        """The store was put back: nothing of this player's can be told any more."""
        if player in self.removed_at:
            return
        waiting = (task for task in self.waiting() if task.player == player)
        for task in [*self.open(player), *waiting]:
            task.end(State.LOST)
        self.follow()
        high = self.seqs[player] + 1 + further
        self.seqs[player] = high
        self.greet(player, high=high)

    def greet(self, player: int, high: int) -> None:
        if player in self.removed_at:
            return
        number = self.journals[player]
        journal = f"{player}/{number}" if number else f"journal-{player}"
        greeting = greet(self.store.cur, player, self.now, journal=journal, high=high)
        self.store.epochs[player] = greeting.epoch
        assert greeting.next_seq == self.seqs[player] + 1
        expected = sorted((t.run[1], t.job.number, t.n, t.attempt, t.cancel) for t in self.open(player) if t.run)
        assert [(o.seq, o.job, o.task, o.attempt, o.cancel) for o in greeting.open] == expected

    @rule(hours=st.integers(1, 3))
    def time_passes(self, hours: int) -> None:
        self.now += hours * HOUR

    @rule()
    def expire(self) -> None:
        statements.expire(self.store.cur, self.now)
        for task in self.waiting():
            if task.job.expired(self.now):
                task.end(State.EXPIRED)

    @rule(connected=st.sets(player_ids))
    def give_up(self, connected: set[int]) -> None:
        statements.give_up(self.store.cur, self.now, connected)
        for player in set(PLAYERS) - connected:
            for task in self.open(player):
                expires_at = task.job.expires_at
                if expires_at is not None and expires_at + HOUR <= self.now:
                    task.end(State.LOST)
        self.follow()

    @rule(names=st.sets(player_ids))
    def change_the_players_file(self, names: set[int]) -> None:
        statements.sync_players(self.store.cur, [f"web-{player}" for player in names], self.now)
        self.removed_at = {player: self.removed_at.get(player, self.now) for player in PLAYERS if player not in names}

    @rule()
    def sweep_removed(self) -> None:
        statements.sweep_removed(self.store.cur, self.now, HOUR)
        statements.strike_removed(self.store.cur, self.now, HOUR)
        gone = {player for player, at in self.removed_at.items() if at <= self.now - HOUR}
        for player in gone:
            for task in self.open(player):
                task.end(State.LOST)
        for task in self.waiting():
            if task.player in gone:
                task.end(State.CANCELLED)
        for job in self.jobs:
            if job.nobodys():
                job.strike(gone)
            for task in job.nobodys()[: max(0, -job.spare())]:
                task.end(State.CANCELLED)
        self.follow()

    # ---- what is true whatever happened

    @invariant()
    def every_task_is_where_the_model_has_it(self) -> None:
        for job in getattr(self, "jobs", []):
            rows = self.rows(
                "SELECT state, attempt, maybe_ran, losses FROM tasks WHERE job_id = ? ORDER BY n", job.number
            )
            for task, (state, attempt, maybe_ran, losses) in zip(job.tasks, rows, strict=True):
                assert (state, attempt) == (task.state, task.attempt)
                if not task.state.terminal:
                    assert (bool(maybe_ran), losses) == (task.maybe_ran, task.losses)

    @invariant()
    def an_outcome_never_changes(self) -> None:
        for job in getattr(self, "jobs", []):
            for view in statements.task_views(self.store.cur, job.number, -1, 100):
                if State[view.state.upper()].terminal:
                    assert self.outcomes.setdefault((job.number, view.task), view.state) == view.state

    @invariant()
    def counts_and_verdict_are_true(self) -> None:
        everything: Counter[State] = Counter()
        for job in getattr(self, "jobs", []):
            counts = Counter(task.state for task in job.tasks)
            everything += counts
            view = statements.job_view(self.store.cur, job.number)
            assert view.counts == {state.label: many for state, many in counts.items()}
            assert view.verdict == verdict(job.scope, counts)
            assert (view.ended_at is not None) == all(task.state.terminal for task in job.tasks)
        if hasattr(self, "store"):
            totals = statements.totals(self.store.cur)
            found = (totals.pending, totals.dispatched, totals.held)
            assert found == tuple(everything[s] for s in (State.PENDING, State.DISPATCHED, State.HELD))

    @invariant()
    def the_event_log_only_grows_and_has_no_gap(self) -> None:
        for job in getattr(self, "jobs", []):
            events: list[Any] = list(statements.events(self.store.cur, job.number, 0, 10_000))
            known = self.logs.get(job.number, [])
            assert events[: len(known)] == known
            assert [event.n for event in events] == list(range(1, len(events) + 1))
            assert len(events) == statements.job_view(self.store.cur, job.number).last_event
            ends = [event for event in events if event.kind == "ended"]
            assert len(ends) == all(task.state.terminal for task in job.tasks)
            self.logs[job.number] = events

    @invariant()
    def who_is_free_may_claim_while_a_task_is_pending(self) -> None:
        if hasattr(self, "store"):
            rows = self.store.cur.execute("SELECT job_id, player_id FROM candidates ORDER BY 1, 2").fetchall()
            pooled = {task.job.number: task.job for task in self.pending() if task.player is None}
            assert rows == [(number, player) for number, job in sorted(pooled.items()) for player in job.free()]

    @invariant()
    def nobody_ever_has_two_tasks_of_a_job_for_some(self) -> None:
        """Of those that may have started: whoever proved that it never started one may be given another."""
        for job in getattr(self, "jobs", []):
            kept = [task.player for task in job.tasks if task.player is not None]
            assert len(set(kept)) == len(kept)
            assert job.pool is None or job.spare() >= 0

    # ---- helpers

    def tasks(self) -> list[Task]:
        return [task for job in self.jobs for task in job.tasks]

    def task(self, job: int, n: int) -> Task:
        return next(task for task in self.tasks() if (task.job.number, task.n) == (job, n))

    def pending(self) -> list[Task]:
        return [task for task in self.tasks() if task.state is State.PENDING]

    def waiting(self) -> list[Task]:
        return [task for task in self.tasks() if task.state in WAITING]

    def is_gated(self, job: Job) -> bool:
        return self.rows("SELECT gated FROM jobs WHERE job_id = ?", job.number) == [(1,)]

    def open(self, player: int) -> list[Task]:
        return [task for task in self.tasks() if task.run is not None and task.run[0] == player]

    def rows(self, sql: str, *values: object) -> list[tuple[int, ...]]:
        return self.store.cur.execute(sql, values).fetchall()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.connection.close()


TestStoreAndModel = StoreAndModel.TestCase
TestStoreAndModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


class SomeOfAndModel(StoreAndModel):
    """What jobs for some of their targets promise is rarely at stake among others."""

    only = Scope.SOME


TestSomeOfAndModel = SomeOfAndModel.TestCase
TestSomeOfAndModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
