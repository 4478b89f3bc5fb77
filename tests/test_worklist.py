"""The player's mind: what it accepts it settles once, and it starts nothing that it should not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import msgpack
from msgspec.structs import replace

from orchestra.core.worklist import GapInSequence, Judgement, Steps, Worklist, output_is_apart
from orchestra.model import JournalEntry, OpenRun, Perform, Report, Run, RunState, Stream, Told, Welcome

BOOT = "this boot"


def run(seq: int, score: str = "s", within: int | None = None) -> Run:
    return Run(seq, 10 + seq, 0, 1, score, {"k": "v"}, within)


def entry(seq: int, state: RunState, boot: str = BOOT) -> JournalEntry:
    return JournalEntry(seq=seq, job=10 + seq, task=0, attempt=1, state=state, boot=boot, score="s")


def report(seq: int, told: Told = Told.OK, **more: object) -> Report:
    return Report(seq, 10 + seq, 0, 1, told, **more)  # type: ignore[arg-type]


def open_run(seq: int, cancel: bool = False) -> OpenRun:
    return OpenRun(seq, 10 + seq, 0, 1, cancel)


def fit(run: Run) -> Judgement:
    return Judgement(concurrency=4)


def live(slots: int = 8, high: int = 0, entries: tuple[JournalEntry, ...] = ()) -> Worklist:
    """A worklist with a stage and a conductor."""
    work = Worklist(entries, high, slots, BOOT)
    work.settled({}, ())
    work.welcomed(Welcome(1, high + 1, 5.0, ()))
    return work


def told(steps: Steps) -> dict[int, Told]:
    return {each.seq: each.told for each in steps.report}


def test_an_open_run_above_the_mark_was_never_heard_of_and_one_below_is_lost() -> None:
    """The mark is the one from before this Welcome, even when the Welcome raises it."""
    work = Worklist((), 5, 8, BOOT)
    work.settled({}, ())
    steps = work.welcomed(Welcome(1, 9, 5.0, (open_run(5), open_run(6), open_run(8))))
    assert told(steps) == {5: Told.LOST, 6: Told.NEVER, 8: Told.NEVER}
    assert steps.change.high == 8
    assert {put.seq for put in steps.change.puts} == {5, 6, 8}


def test_what_waits_here_and_is_not_open_there_never_starts() -> None:
    """Nothing is started that the conductor does not hold this player to."""
    work = Worklist((entry(3, RunState.ACCEPTED), entry(4, RunState.ACCEPTED)), 4, 8, BOOT)
    work.settled({}, ())
    steps = work.welcomed(Welcome(1, 5, 5.0, (open_run(4),)))
    assert told(steps) == {3: Told.NEVER}
    assert [one.seq for one in steps.start] == [4]


def test_nothing_starts_before_welcome_or_without_a_stage() -> None:
    """After a restart what was accepted waits for both."""
    work = Worklist((entry(1, RunState.ACCEPTED),), 1, 8, BOOT)
    assert work.settled({}, ()).start == ()
    work = Worklist((entry(1, RunState.ACCEPTED),), 1, 8, BOOT)
    assert work.welcomed(Welcome(1, 2, 5.0, (open_run(1),))).start == ()
    assert [one.seq for one in work.settled({}, ()).start] == [1]


def test_a_drained_player_starts_nothing_more() -> None:
    """What it had accepted and what comes all the same is ``never``; what the stage was asked for goes on."""
    work = live(slots=2)
    steps = work.perform(Perform(1, (run(1), run(2), run(3))), fit, 0)
    assert [one.seq for one in steps.start] == [1, 2]
    assert work.asked(1)
    assert told(work.drain()) == {2: Told.NEVER, 3: Told.NEVER}
    assert not work.asked(2)
    assert (work.started(1), work.started(2), work.running, work.waiting) == (True, False, 1, 0)
    assert told(work.perform(Perform(1, (run(4),)), fit, 0)) == {4: Told.NEVER}
    assert told(work.ended(report(1))) == {1: Told.OK}
    work.undrain()
    assert [one.seq for one in work.perform(Perform(1, (run(5),)), fit, 0).start] == [5]


def test_a_gap_in_the_numbers_changes_nothing() -> None:
    """A skipped number is an error, an old one is ignored."""
    work = live()
    with pytest.raises(GapInSequence):
        work.perform(Perform(1, (run(1), run(3))), fit, 0)
    assert work.high == 0
    work.perform(Perform(1, (run(1), run(2))), fit, 0)
    again = work.perform(Perform(1, (run(1), run(2))), fit, 0)
    assert again.change.puts == ()


def test_slots_and_concurrency_hold_and_a_full_score_lets_others_pass() -> None:
    """A run that waits for its score's concurrency takes no slot."""
    work = live(slots=2)
    runs = (run(1, "slow"), run(2, "slow"), run(3, "quick"), run(4, "quick"))
    steps = work.perform(Perform(1, runs), lambda _: Judgement(concurrency=1), 0)
    assert [one.seq for one in steps.start] == [1, 3]
    assert [one.seq for one in work.ended(report(3)).start] == [4]


def test_starting_is_saved_before_the_stage_is_asked_and_only_once() -> None:
    """What starts is in the change that is saved first; the stage is asked at most once."""
    work = live()
    steps = work.perform(Perform(1, (run(1),)), fit, 0)
    assert [put.state for put in steps.change.puts] == [RunState.STARTING]
    assert work.asked(1)
    assert not work.asked(1)


def test_a_refused_run_is_a_journaled_outcome() -> None:
    """A bad score or parameter is an answer, not an error."""
    steps = live().perform(Perform(1, (run(1),)), lambda _: Judgement(refusal="no such score"), 0)
    assert told(steps) == {1: Told.REFUSED}
    assert steps.change.puts[0].state is RunState.DONE


@pytest.mark.parametrize("asked", [True, False])
def test_a_cancel_of_what_the_stage_was_asked_for_is_a_kill_else_it_never_starts(asked: bool) -> None:
    """Only what the stage may have started has to be killed there."""
    work = live()
    work.perform(Perform(1, (run(1),)), fit, 0)
    if asked:
        work.asked(1)
    steps = work.cancelled([1])
    assert (steps.kill, told(steps)) == (((1,), {}) if asked else ((), {1: Told.NEVER}))
    assert not work.asked(1)


def test_a_cancelled_run_is_killed_again_on_the_next_stage() -> None:
    """A kill that the lost stage did not hear is said to the one that follows."""
    work = live()
    work.perform(Perform(1, (run(1),)), fit, 0)
    work.asked(1)
    work.stage_lost()
    work.cancelled([1])
    assert work.settled({1: None}, ()).kill == (1,)


@pytest.mark.parametrize(
    ("there", "swept", "boot", "expected"),
    [
        ({1: report(1)}, (), BOOT, Told.OK),
        ({}, (1,), BOOT, Told.LOST),
        ({}, (), BOOT, Told.NEVER),
        ({}, (), "another boot", Told.LOST),
        ({}, (1,), "another boot", Told.LOST),
    ],
)
def test_a_starting_run_is_settled_with_the_stage(
    there: dict[int, Report | None], swept: tuple[int, ...], boot: str, expected: Told
) -> None:
    """Outcome there: that; swept: lost; nowhere: never, if this boot wrote the record."""
    work = Worklist((entry(1, RunState.STARTING, boot),), 1, 8, BOOT)
    steps = work.settled(there, swept)
    assert told(steps) == {1: expected}
    if expected is Told.LOST:
        assert ("rebooted" in steps.report[0].reason) is (boot != BOOT)


def test_what_runs_on_the_stage_is_adopted() -> None:
    """A run outlives its player daemon."""
    work = Worklist((entry(1, RunState.STARTING),), 1, 1, BOOT)
    steps = work.settled({1: None}, ())
    assert [one.seq for one in steps.adopt] == [1]
    assert work.running == 1


def test_what_waited_over_a_reboot_never_starts() -> None:
    """Nothing starts late on a machine that comes back."""
    work = Worklist((entry(1, RunState.ACCEPTED, "another boot"),), 1, 8, BOOT)
    assert told(work.settled({}, ())) == {1: Told.NEVER}


def test_runs_with_one_lock_exclude_each_other_and_let_others_pass() -> None:
    """What waits for a lock takes no slot, and is next when it is free."""
    work = live(slots=2)
    runs = (run(1, "t"), run(2, "u"), run(3, "t"), run(4, "s"))
    assert [one.seq for one in work.perform(Perform(1, runs), judge_by_lock, 0).start] == [1, 4]
    work.asked(1)
    assert [one.seq for one in work.ended(report(1)).start] == [2]


def test_a_lock_is_kept_over_a_restart() -> None:
    """The journal knows which lock a run that goes on has."""
    running = replace(entry(1, RunState.STARTING), lock="both")
    work = Worklist((running, replace(entry(2, RunState.ACCEPTED), lock="both")), 2, 8, BOOT)
    work.settled({1: None}, ())
    assert work.welcomed(Welcome(1, 3, 5.0, (open_run(1), open_run(2)))).start == ()
    assert [one.seq for one in work.ended(report(1)).start] == [2]


def test_concurrency_is_kept_over_a_restart() -> None:
    entries = tuple(replace(entry(seq, RunState.ACCEPTED), concurrency=2) for seq in (1, 2, 3))
    work = Worklist(entries, 3, 8, BOOT)
    work.settled({}, ())
    opened = tuple(open_run(seq) for seq in (1, 2, 3))
    assert [one.seq for one in work.welcomed(Welcome(1, 4, 5.0, opened)).start] == [1, 2]


def test_secrets_are_never_journaled_and_given_to_the_stage_once() -> None:
    work = live()
    steps = work.perform(Perform(1, (replace(run(1), secrets=SECRET),)), fit, 0)
    assert all(b"canary" not in msgpack.encode(put) for put in steps.change.puts)
    assert work.asked(1) and work.secrets(1) == SECRET
    assert work.secrets(1) == {}


def test_what_waits_with_secrets_never_starts_after_a_restart() -> None:
    """They were in memory only; the conductor may hand it out again."""
    waiting = replace(entry(1, RunState.ACCEPTED), secret=True)
    work = Worklist((waiting, entry(2, RunState.ACCEPTED)), 2, 8, BOOT)
    assert told(work.settled({}, ())) == {1: Told.NEVER}
    assert work.waiting == 1


def test_what_waits_with_secrets_waits_on_while_the_stage_changes() -> None:
    """It is the player's memory that counts, not the stage's."""
    work = live(slots=1)
    runs = tuple(replace(run(seq), secrets=SECRET) for seq in (1, 2))
    work.perform(Perform(1, runs), fit, 0)
    work.asked(1)
    work.secrets(1)
    work.stage_lost()
    assert [one.seq for one in work.settled({}, (1,)).start] == [2]
    assert work.secrets(2) == SECRET


def test_overdue_work_never_starts() -> None:
    """start_within counts from receipt, on the clock that counts through a suspend."""
    work = live(slots=1)
    work.perform(Perform(1, (run(1), run(2, within=1000))), fit, 5000)
    assert told(work.tick(5999)) == {}
    assert told(work.tick(6000)) == {2: Told.NEVER}


def test_reported_runs_leave_the_journal_with_its_next_change() -> None:
    """Forgetting costs no sync of its own."""
    work = live()
    work.perform(Perform(1, (run(1),)), fit, 0)
    work.ended(report(1))
    assert work.reported([1]).change.drops == ()
    assert work.flush().change.drops == (1,)


def test_long_output_stays_on_the_stage_until_it_is_reported() -> None:
    """The stage forgets short outcomes at once, long ones when the conductor has them."""
    long = report(1, stdout=Stream(total=9000, spans=((0, 9000),)))
    assert output_is_apart(long)
    work = live()
    work.perform(Perform(1, (run(1), run(2))), fit, 0)
    assert work.ended(long).forget == ()
    assert work.ended(report(2)).forget == (2,)
    assert work.reported([1]).forget == (1,)


@given(
    st.lists(st.sampled_from(["perform", "end", "cancel", "stage lost", "settle", "welcome", "line lost"]), max_size=60)
)
def test_no_run_is_asked_for_twice_and_every_run_has_one_outcome(events: list[str]) -> None:
    """Whatever happens in whatever order."""
    work = live(slots=2)
    seq = 0
    asked: list[int] = []
    started: set[int] = set()
    outcomes: dict[int, Told] = {}

    def enact(steps: Steps) -> None:
        for one in steps.start:
            if work.asked(one.seq):
                asked.append(one.seq)
                started.add(one.seq)
        for one in steps.report:
            assert outcomes.setdefault(one.seq, one.told) is one.told

    for event in events:
        if event == "perform" and work.live:
            seq += 1
            enact(work.perform(Perform(1, (run(seq),)), fit, 0))
        elif event == "end" and started and work.stage_up:
            one = min(started)
            started.discard(one)
            enact(work.ended(report(one)))
        elif event == "cancel" and work.live and seq:
            enact(work.cancelled([seq]))
        elif event == "stage lost":
            work.stage_lost()
        elif event == "settle":
            enact(work.settled(dict.fromkeys(started), ()))
        elif event == "line lost":
            work.disconnected()
        elif event == "welcome":
            enact(
                work.welcomed(
                    Welcome(1, seq + 1, 5.0, tuple(open_run(n) for n in range(1, seq + 1) if n not in outcomes))
                )
            )
    assert len(asked) == len(set(asked))
    assert not {n for n, word in outcomes.items() if word in (Told.NEVER,)} & set(asked)


@pytest.mark.parametrize("state", list(RunState))
@pytest.mark.parametrize("cancel", [True, False])
def test_a_welcome_settles_a_known_run_in_each_state(state: RunState, cancel: bool) -> None:
    """What waits is started or called off, what runs goes on or is killed, what is done is reported again."""
    known = replace(entry(1, state), report=report(1) if state is RunState.DONE else None)
    work = Worklist((known,), 1, 8, BOOT)
    work.settled({1: None} if state is RunState.STARTING else {}, ())
    steps = work.welcomed(Welcome(1, 2, 5.0, (open_run(1, cancel),)))
    expected = {
        RunState.ACCEPTED: ({1: Told.NEVER}, (), []) if cancel else ({}, (), [1]),
        RunState.STARTING: ({}, (1,) if cancel else (), []),
        RunState.DONE: ({1: Told.OK}, (), []),
    }
    assert (told(steps), steps.kill, [one.seq for one in steps.start]) == expected[state]


def test_a_cancel_of_what_is_over_or_unknown_changes_nothing() -> None:
    """The outcome stays; the answer to a Cancel is 'settled' all the same."""
    work = live()
    work.perform(Perform(1, (run(1),)), fit, 0)
    work.asked(1)
    work.ended(report(1))
    assert work.cancelled([1, 99]) == Steps()


def test_what_was_never_asked_of_the_lost_stage_is_asked_of_the_next() -> None:
    """Marked as starting by this very process and not sent: it is neither never nor lost."""
    work = live()
    work.perform(Perform(1, (run(1),)), fit, 0)
    work.stage_lost()
    assert not work.asked(1)
    assert told(work.settled({}, ())) == {}
    assert work.asked(1)


def test_what_nobody_needs_any_more_the_stage_may_forget() -> None:
    """Runs that the journal has settled, or does not know; not those whose output is still to be sent."""
    long = report(2, stdout=Stream(total=9000, spans=((0, 9000),)))
    done = [replace(entry(one.seq, RunState.DONE), report=one) for one in (report(1), long)]
    work = Worklist(done, 2, 8, BOOT)
    assert set(work.settled({1: report(1), 2: long, 7: None}, (8,)).forget) == {1, 7, 8}


def test_numbers_that_begin_in_the_past_go_on_where_the_mark_is() -> None:
    """An old number is ignored, the next one is taken, and a gap behind an old one is a gap."""
    work = live(high=5)
    assert [put.seq for put in work.perform(Perform(1, (run(4), run(5), run(6))), fit, 0).change.puts] == [6]
    with pytest.raises(GapInSequence):
        work.perform(Perform(1, (run(6), run(8))), fit, 0)
    assert work.high == 6


SECRET = {"password": "canary"}


def judge_by_lock(run: Run) -> Judgement:
    return Judgement(concurrency=2, lock="" if run.score == "s" else "both")


class Player(RuleBasedStateMachine):
    """A player around its worklist: its daemon, its stage and its machine die when they like."""

    def __init__(self) -> None:
        super().__init__()
        self.boot = 1
        self.journal: dict[int, JournalEntry] = {}
        self.high = self.seq = self.now = 0
        self.open: set[int] = set()  # as the conductor has it
        self.to_ask: list[int] = []
        self.running: set[int] = set()
        self.finished: dict[int, Report] = {}
        self.swept: set[int] = set()
        self.ever_started: set[int] = set()
        self.scores: dict[int, str] = {}
        self.outcomes: dict[int, Report] = {}
        self.drained = False
        self.start_daemon()

    def start_daemon(self) -> None:
        self.to_ask = []
        self.work = Worklist(self.journal.values(), self.high, 2, f"boot {self.boot}")
        if self.drained:
            self.enact(self.work.drain())

    def enact(self, steps: Steps) -> None:
        """Save, then speak."""
        for put in steps.change.puts:
            before = self.journal.get(put.seq)
            assert before is None or before.state < put.state
            assert b"canary" not in msgpack.encode(put)
            self.journal[put.seq] = put
        for seq in steps.change.drops:
            del self.journal[seq]
        self.high = steps.change.high or self.high
        assert self.high == self.work.high
        for one in steps.report:
            assert self.journal[one.seq].report == one, "said before it was saved"
            assert self.outcomes.setdefault(one.seq, one) == one
            assert one.told is not Told.NEVER or one.seq not in self.ever_started
        assert all(self.journal[one.seq].state is RunState.STARTING for one in steps.start)
        self.to_ask += [one.seq for one in steps.start]
        assert {one.seq for one in steps.adopt} <= self.running
        for seq in steps.forget:
            self.finished.pop(seq, None)
            self.swept.discard(seq)

    @initialize()
    def begins_with_work(self) -> None:
        self.settles()
        self.is_welcomed()
        self.performs(["s", "t"], None)
        self.asks()

    @rule(scores=st.lists(st.sampled_from("stu"), min_size=1, max_size=3), within=st.sampled_from([None, 2]))
    def performs(self, scores: list[str], within: int | None) -> None:
        """The scores t and u exclude each other, and u takes a secret."""
        if self.work.live:
            runs = tuple(run(self.seq + 1 + n, score, within) for n, score in enumerate(scores))
            runs = tuple(replace(one, secrets=SECRET if one.score == "u" else {}) for one in runs)
            self.seq += len(runs)
            self.open |= {one.seq for one in runs}
            self.scores.update((one.seq, one.score) for one in runs)
            self.enact(self.work.perform(Perform(1, runs), judge_by_lock, self.now))

    @rule()
    def asks(self) -> None:
        if self.to_ask and self.work.asked(seq := self.to_ask.pop(0)):
            assert seq not in self.ever_started, "started twice"
            assert not self.drained, "started though drained"
            self.ever_started.add(seq)
            self.running.add(seq)
            assert len(self.running) <= 2 and seq in self.journal
            assert self.work.secrets(seq) == (SECRET if self.scores[seq] == "u" else {})

    @rule()
    def a_run_ends(self) -> None:
        if self.running:
            seq = min(self.running)
            self.running.discard(seq)
            self.finished[seq] = report(seq)
            if self.work.stage_up:
                self.enact(self.work.ended(report(seq)))

    @rule(back=st.integers(0, 2))
    def cancels(self, back: int) -> None:
        if self.work.live:
            self.enact(self.work.cancelled([self.seq - back]))

    @rule(dies=st.booleans())
    def stage_is_lost(self, dies: bool) -> None:
        self.work.stage_lost()
        if dies:
            self.swept |= self.running
            self.running.clear()

    @rule()
    def settles(self) -> None:
        self.to_ask = [] if not self.work.stage_up else self.to_ask
        waits = [seq for seq, one in self.work.entries.items() if one.state is RunState.STARTING]
        self.enact(self.work.settled(dict.fromkeys(self.running) | self.finished, set(self.swept)))
        self.to_ask = [seq for seq in waits if seq not in self.to_ask] + self.to_ask

    @rule()
    def line_is_lost(self) -> None:
        self.work.disconnected()

    @rule()
    def is_welcomed(self) -> None:
        welcome = Welcome(1, self.seq + 1, 5.0, tuple(open_run(seq) for seq in sorted(self.open)))
        self.enact(self.work.welcomed(welcome))

    @rule()
    def is_answered(self) -> None:
        said = [seq for seq in self.outcomes if seq in self.open]
        if self.work.live and said:
            self.open -= set(said)
            self.enact(self.work.reported(said))

    @rule()
    def is_drained(self) -> None:
        self.drained = True
        self.enact(self.work.drain())
        assert self.work.waiting == 0

    @rule()
    def is_undrained(self) -> None:
        self.drained = False
        self.work.undrain()

    @rule()
    def time_passes(self) -> None:
        self.now += 1
        self.enact(self.work.tick(self.now))

    @rule()
    def daemon_restarts(self) -> None:
        self.start_daemon()

    @rule()
    def machine_reboots(self) -> None:
        self.boot += 1
        self.running.clear()
        self.finished.clear()
        self.swept.clear()
        self.start_daemon()

    @invariant()
    def mind_and_disk_agree(self) -> None:
        assert {seq: one for seq, one in self.journal.items() if seq in self.work.entries} == self.work.entries
        assert self.work.running <= 2

    @invariant()
    def locks_and_concurrency_hold(self) -> None:
        """Over every restart of the daemon, for what runs on goes on."""
        running = [self.scores[seq] for seq in self.running]
        assert running.count("s") <= 2 and running.count("t") + running.count("u") <= 1

    def teardown(self) -> None:
        """When the faults stop, every run that was handed over has exactly one outcome."""
        for _ in range(2 * self.seq + 2):
            self.is_welcomed()
            self.settles()
            while self.to_ask:
                self.asks()
            while self.running:
                self.a_run_ends()
            self.is_answered()
        assert self.open == set()
        assert set(self.outcomes) == set(range(1, self.seq + 1))


TestPlayer = Player.TestCase
TestPlayer.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
