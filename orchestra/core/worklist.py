"""The player's mind: which runs it has accepted, which are on the stage, which it still has to report.

Pure. Every event returns :class:`Steps`: first ``change`` goes to the journal's disk, then, and only then, the rest
is enacted. The mind moves at once; if the disk does not follow, the daemon stops and starts again from the journal.

A run: accepted -> starting -> done -> forgotten when the conductor has answered its report. ``never`` is a done run
that is proved not to have started (a tombstone).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from orchestra.model import (
    JournalChange,
    JournalEntry,
    OpenRun,
    Perform,
    Report,
    Run,
    RunState,
    Told,
    Welcome,
)

TOO_LATE: Final = "it could not start within the time its job allowed"
CANCELLED: Final = "cancelled before it started"
NOT_KEPT: Final = "the conductor does not hold this player to it any more"
REBOOTED: Final = "the machine was rebooted before it started"
UNASKED: Final = "the stage was never asked to start it"
UNHEARD: Final = "it never reached this player"
FORGOTTEN: Final = "this player's journal has no record of it any more"
DRAINED: Final = "this player was drained before it started"
UNSEALED: Final = "this player was restarted before it started, and keeps secret parameters in memory only"
SWEPT: Final = "the stage died while it ran; what was left of it was ended"
REBOOTED_RUNNING: Final = "the machine was rebooted while it may have been running"


class Steps(Struct, frozen=True, kw_only=True):
    """What to do about an event: save ``change``, then all the others, in this order."""

    change: JournalChange = JournalChange()
    report: tuple[Report, ...] = ()
    start: tuple[JournalEntry, ...] = ()
    kill: tuple[int, ...] = ()
    adopt: tuple[JournalEntry, ...] = ()
    forget: tuple[int, ...] = ()  # runs whose traces the stage may remove


class GapInSequence(Exception):
    """The conductor skipped a number: something was lost or misdirected; the connection is closed."""


class Judgement(Struct, frozen=True):
    """What the repertoire says of a run before it is accepted: a refusal, or how many of its score may run at once,
    and which lock it takes."""

    refusal: str = ""
    concurrency: int = 1
    lock: str = ""


class Worklist:
    """The runs of one journal. ``entries`` holds what the journal holds."""

    def __init__(self, entries: Iterable[JournalEntry], high: int, slots: int, boot: str) -> None:
        self.entries: dict[int, JournalEntry] = {entry.seq: entry for entry in entries}
        self.high = high
        self._high_saved = high
        self.slots = slots
        self.boot = boot
        self.live = False  # welcomed on the present connection
        self.stage_up = False
        self.drained = False
        self._accepted: dict[int, None] = {
            entry.seq: None
            for entry in sorted(self.entries.values(), key=lambda e: e.seq)
            if entry.state is RunState.ACCEPTED
        }
        self._unasked: set[int] = set()  # marked as starting by this process, the stage not asked yet
        self._cancelled: set[int] = set()  # to be killed on the stage, whichever stage that will be
        self._secrets: dict[int, dict[str, str]] = {}  # of what the stage was not asked for yet; never journaled
        self._drops: list[int] = []
        self._on_stage: dict[int, str] = {
            entry.seq: entry.score for entry in self.entries.values() if entry.state is RunState.STARTING
        }

    # ---- the conductor speaks

    def welcomed(self, welcome: Welcome) -> Steps:
        """Settle with the conductor what is open; then report everything it has not acknowledged.

        An open run that the journal does not know is ``never`` if its number is above the high-water mark as it was
        before this message, else ``lost``. A run that waits here and is not open there becomes ``never``.
        """
        known_to = self.high
        touched: list[JournalEntry] = []
        kill: list[int] = []
        for run in welcome.open:
            entry = self.entries.get(run.seq)
            if entry is None:
                told, reason = (Told.NEVER, UNHEARD) if run.seq > known_to else (Told.LOST, FORGOTTEN)
                touched.append(self._done(_ended(run, told, reason)))
            elif run.cancel:
                self._cancel(entry, touched, kill)
        open_there = {run.seq for run in welcome.open}
        for seq in [seq for seq in self._accepted if seq not in open_there]:
            touched.append(self._done(_ended(self.entries[seq], Told.NEVER, NOT_KEPT)))
        self.high = max(self.high, welcome.next_seq - 1)
        self.live = True
        unacknowledged = [entry.report for entry in self.entries.values() if entry.report is not None]
        return self._steps(touched, kill=kill, report=unacknowledged)

    def disconnected(self) -> None:
        """No conductor: what is accepted waits, what runs goes on."""
        self.live = False

    def perform(self, perform: Perform, judge: Callable[[Run], Judgement], now: int) -> Steps:
        """Accept runs, or refuse them. ``now``: boot-time clock, milliseconds. An old number is ignored.

        Raises :class:`GapInSequence` before anything is changed.
        """
        fresh = [run for run in perform.runs if run.seq > self.high]
        if [run.seq for run in fresh] != list(range(self.high + 1, self.high + 1 + len(fresh))):
            raise GapInSequence
        touched: list[JournalEntry] = []
        for run in fresh:
            self.high = run.seq
            judgement = judge(run)
            if self.drained:
                touched.append(self._done(_ended(run, Told.NEVER, DRAINED)))
            elif judgement.refusal:
                touched.append(self._done(_ended(run, Told.REFUSED, judgement.refusal)))
            else:
                touched.append(self._put(self._accept(run, judgement, now)))
                self._accepted[run.seq] = None
                if run.secrets:
                    self._secrets[run.seq] = run.secrets
        return self._steps(touched, report=[entry.report for entry in touched if entry.report is not None])

    def _accept(self, run: Run, judgement: Judgement, now: int) -> JournalEntry:
        due = None if run.start_within is None else now + run.start_within
        return JournalEntry(
            seq=run.seq,
            job=run.job,
            task=run.task,
            attempt=run.attempt,
            state=RunState.ACCEPTED,
            boot=self.boot,
            score=run.score,
            params=run.params,
            digest=run.digest,
            due=due,
            concurrency=judgement.concurrency,
            lock=judgement.lock,
            secret=bool(run.secrets),
            dry_run=run.dry_run,
        )

    def cancelled(self, seqs: Iterable[int]) -> Steps:
        """The conductor cancels runs: what waits is ``never``, what runs is to be killed, what is done stays."""
        touched: list[JournalEntry] = []
        kill: list[int] = []
        for seq in seqs:
            entry = self.entries.get(seq)
            if entry is not None:
                self._cancel(entry, touched, kill)
        return self._steps(touched, kill=kill, report=[entry.report for entry in touched if entry.report is not None])

    def _cancel(self, entry: JournalEntry, touched: list[JournalEntry], kill: list[int]) -> None:
        if entry.state is RunState.ACCEPTED or entry.seq in self._unasked:
            touched.append(self._done(_ended(entry, Told.NEVER, CANCELLED)))
        elif entry.state is RunState.STARTING:
            self._cancelled.add(entry.seq)
            kill.append(entry.seq)

    def drain(self) -> Steps:
        """Take no more work: what has not started is ``never``, and may be given to others; what runs goes on."""
        self.drained = True
        unstarted = [
            entry for entry in self.entries.values() if entry.seq in self._accepted or entry.seq in self._unasked
        ]
        touched = [self._done(_ended(entry, Told.NEVER, DRAINED)) for entry in unstarted]
        return self._steps(touched, report=[entry.report for entry in touched if entry.report is not None])

    def undrain(self) -> None:
        """Take work again."""
        self.drained = False

    def started(self, seq: int) -> bool:
        """Whether the stage was asked to start it, and it has not ended as far as we know."""
        return seq in self._on_stage and seq not in self._unasked

    def reported(self, seqs: Iterable[int]) -> Steps:
        """The conductor has committed these outcomes. They leave the journal with its next change."""
        gone = [seq for seq in seqs if self.entries.pop(seq, None) is not None]
        self._drops.extend(gone)
        return Steps(forget=tuple(gone))

    def flush(self) -> Steps:
        """What waits for a next change of the journal, as a change of its own."""
        return self._steps([])

    # ---- the stage speaks

    def settled(self, there: Mapping[int, Report | None], swept: Iterable[int]) -> Steps:
        """A (new) stage says what it has. ``there``: its report, or None while it runs; ``swept``: had started, and
        nothing of it lives any more.

        What is nowhere to be found was never started if this boot wrote the record; after another it may have run.
        """
        self.stage_up = True
        gone = set(swept)
        touched: list[JournalEntry] = []
        adopt: list[JournalEntry] = []
        starting = [entry for entry in self.entries.values() if entry.state is RunState.STARTING]
        for entry in starting:
            if entry.seq in there:
                report = there[entry.seq]
                if report is None:
                    adopt.append(entry)
                    self._unasked.discard(entry.seq)
                else:
                    touched.append(self._done(report))
            elif entry.seq in gone:
                reason = SWEPT if entry.boot == self.boot else REBOOTED_RUNNING
                touched.append(self._done(_ended(entry, Told.LOST, reason)))
            elif entry.seq not in self._unasked:
                same = entry.boot == self.boot
                told, reason = (Told.NEVER, UNASKED) if same else (Told.LOST, REBOOTED_RUNNING)
                touched.append(self._done(_ended(entry, told, reason)))
        waiting = [
            entry for entry in self.entries.values() if entry.state is RunState.ACCEPTED and entry.boot != self.boot
        ]
        touched += [self._done(_ended(entry, Told.NEVER, REBOOTED)) for entry in waiting]
        touched += [self._done(_ended(entry, Told.NEVER, UNSEALED)) for entry in self._without_secrets()]
        useless = [seq for seq in (*there, *gone) if self._stage_may_forget(seq)]
        report_now = [entry.report for entry in touched if entry.report is not None]
        kill = [entry.seq for entry in adopt if entry.seq in self._cancelled]
        return self._steps(touched, adopt=adopt, kill=kill, report=report_now, forget=useless)

    def _without_secrets(self) -> list[JournalEntry]:
        """What was accepted before a restart, and cannot start without what was only in memory."""
        waiting = [self.entries[seq] for seq in self._accepted]
        return [entry for entry in waiting if entry.secret and entry.seq not in self._secrets]

    def _stage_may_forget(self, seq: int) -> bool:
        entry = self.entries.get(seq)
        return entry is None or (entry.report is not None and not output_is_apart(entry.report))

    def stage_lost(self) -> None:
        """No stage: nothing is started until :meth:`settled`."""
        self.stage_up = False

    def asked(self, seq: int) -> bool:
        """Whether the stage may be asked to start ``seq`` now; from then on only the stage knows if it started."""
        entry = self.entries.get(seq)
        if entry is None or entry.state is not RunState.STARTING or seq not in self._unasked or not self.stage_up:
            return False
        self._unasked.discard(seq)
        return True

    def secrets(self, seq: int) -> dict[str, str]:
        """The secret parameters of a run that the stage is asked for now; they are not kept any longer."""
        return self._secrets.pop(seq, {})

    def ended(self, report: Report) -> Steps:
        """A run is over, or the stage refused to start it; its slot is free."""
        entry = self.entries.get(report.seq)
        if entry is None or entry.state is not RunState.STARTING:
            return Steps()
        done = self._done(report)
        keep = output_is_apart(report)
        return self._steps([done], report=[report], forget=[] if keep else [report.seq])

    # ---- time

    def tick(self, now: int) -> Steps:
        """What is accepted and overdue will not start any more. ``now``: boot-time clock, milliseconds."""
        late = [self.entries[seq] for seq in self._accepted]
        overdue = [entry for entry in late if entry.due is not None and entry.due <= now]
        touched = [self._done(_ended(entry, Told.NEVER, TOO_LATE)) for entry in overdue]
        return self._steps(touched, report=[entry.report for entry in touched if entry.report is not None])

    @property
    def running(self) -> int:
        return len(self._on_stage)

    @property
    def waiting(self) -> int:
        return len(self._accepted)

    # ---- inside

    def _put(self, entry: JournalEntry) -> JournalEntry:
        self.entries[entry.seq] = entry
        return entry

    def _done(self, report: Report) -> JournalEntry:
        self._accepted.pop(report.seq, None)
        self._on_stage.pop(report.seq, None)
        self._unasked.discard(report.seq)
        self._cancelled.discard(report.seq)
        self._secrets.pop(report.seq, None)
        return self._put(
            JournalEntry(
                seq=report.seq,
                job=report.job,
                task=report.task,
                attempt=report.attempt,
                state=RunState.DONE,
                boot=self.boot,
                report=report,
            )
        )

    def _fill(self) -> list[JournalEntry]:
        """Give free slots to what waits, oldest first; what its concurrency or its lock keeps lets others pass."""
        starting: list[JournalEntry] = []
        if not (self.live and self.stage_up):
            return starting
        per_score: dict[str, int] = {}
        locked: set[str] = set()
        for running, score in self._on_stage.items():
            per_score[score] = per_score.get(score, 0) + 1
            locked.add(self.entries[running].lock)
        for seq in list(self._accepted):
            if len(self._on_stage) >= self.slots:
                break
            entry = self.entries[seq]
            if per_score.get(entry.score, 0) >= entry.concurrency or (entry.lock and entry.lock in locked):
                continue
            locked.add(entry.lock)
            per_score[entry.score] = per_score.get(entry.score, 0) + 1
            del self._accepted[seq]
            self._on_stage[seq] = entry.score
            self._unasked.add(seq)
            starting.append(self._put(replace(entry, state=RunState.STARTING, boot=self.boot)))
        return starting

    def _steps(
        self,
        touched: list[JournalEntry],
        *,
        report: Iterable[Report] = (),
        kill: Iterable[int] = (),
        adopt: Iterable[JournalEntry] = (),
        forget: Iterable[int] = (),
    ) -> Steps:
        starting = self._fill()
        puts = {entry.seq: self.entries[entry.seq] for entry in (*touched, *starting) if entry.seq in self.entries}
        drops, self._drops = tuple(self._drops), []
        high = self.high if self.high != self._high_saved else None
        self._high_saved = self.high
        return Steps(
            change=JournalChange(tuple(puts.values()), drops, high),
            report=tuple(report),
            start=tuple(starting),
            kill=tuple(kill),
            adopt=tuple(adopt),
            forget=tuple(forget),
        )


def output_is_apart(report: Report) -> bool:
    """Whether the stage still holds output that has to be sent ahead of ``report``."""
    return any(stream.spans and not stream.data for stream in (report.stdout, report.stderr))


def _ended(run: Run | OpenRun | JournalEntry, told: Told, reason: str) -> Report:
    fields: dict[str, Any] = {"seq": run.seq, "job": run.job, "task": run.task, "attempt": run.attempt}
    return Report(**fields, told=told, reason=reason)
