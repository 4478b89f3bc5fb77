"""What a player tells the operator of its own node: its runs, its outcomes, its stage and its line, in plain values."""

import os
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace
from twisted.internet.defer import Deferred

from orchestra.audience.node import Drained, NodeOutcome, NodeRun, Reach, StageSeen
from orchestra.core.explain import moment
from orchestra.core.worklist import Worklist
from orchestra.errors import UnfitScore
from orchestra.model import JournalEntry, RunState, Started
from orchestra.player.backstage import Backstage, Standing
from orchestra.player.repertoire import Repertoire
from orchestra.player.sweep import start_of

MOST_OUTCOMES: Final = 100
_TICKS: Final = os.sysconf("SC_CLK_TCK")


def drained_note(drained: Drained) -> str:
    """Why a drained player takes no work, for whoever asks the conductor."""
    because = f": {drained.reason}" if drained.reason else ""
    return f"drained on {moment(drained.at)} by {drained.by}{because}"


def runs(
    worklist: Worklist, backstage: Backstage, repertoire: Repertoire, boot_clock: int, alarms: Mapping[int, Started]
) -> tuple[NodeRun, ...]:
    """Every run that has not ended, by number. ``boot_clock``: now, in milliseconds since the machine was booted."""
    found = sorted(worklist.entries.values(), key=lambda entry: entry.seq)
    return tuple(
        _run(entry, worklist, backstage, repertoire, boot_clock, alarms)
        for entry in found
        if entry.state is not RunState.DONE
    )


def _run(
    entry: JournalEntry,
    worklist: Worklist,
    backstage: Backstage,
    repertoire: Repertoire,
    boot_clock: int,
    alarms: Mapping[int, Started],
) -> NodeRun:
    run = NodeRun(
        seq=entry.seq, job=entry.job, task=entry.task, attempt=entry.attempt, score=entry.score, state="waiting"
    )
    process = backstage.process(entry.seq)
    if process is None:
        return replace(run, state="starting") if worklist.started(entry.seq) else run
    alarm = alarms.get(entry.seq)
    return replace(
        run,
        state="running",
        pid=process.pid,
        since=process.started_at,
        left=_left(process.pid, entry.score, repertoire, boot_clock),
        alarm=alarm.alarm if alarm else "",
    )


def _left(pid: int | None, score: str, repertoire: Repertoire, boot_clock: int) -> int | None:
    """Until the timeout, by the clock that no wall clock's jump disturbs: that of the process itself."""
    started = start_of(pid) if pid else 0
    try:
        timeout = repertoire.find(score).rules.timeout
    except UnfitScore:  # gone from the disk since; the stage has read its rules
        return None
    return max(0, timeout - (boot_clock - started * 1000 // _TICKS)) if started else None


def outcomes(worklist: Worklist) -> tuple[NodeOutcome, ...]:
    """What the conductor has yet to answer for, the first of it."""
    found = [entry.report for entry in worklist.entries.values() if entry.report is not None]
    return tuple(
        NodeOutcome(seq=one.seq, job=one.job, task=one.task, told=one.told.value, reason=one.reason)
        for one in sorted(found, key=lambda report: report.seq)[:MOST_OUTCOMES]
    )


def stage(backstage: Backstage, standing: Standing | None, problem: str) -> StageSeen:
    """The stage, or why there is none."""
    if standing is None or not backstage.up:
        return StageSeen(socket=backstage.socket, problem=problem)
    return StageSeen(socket=backstage.socket, pid=standing.pid, version=standing.program)


def reach(found: Reach, connected_at: int | None) -> Reach:
    """The line, with the moment since which it is up."""
    return found if found.problem or found.next_try is not None else replace(found, since=connected_at)


def why_not_running(worklist: Worklist, seq: int) -> str:
    """What there is to say of a run that cannot be killed."""
    entry = worklist.entries.get(seq)
    if entry is None:
        return "nor is anything known of it"
    return (
        "it has ended"
        if entry.state is RunState.DONE
        else "it waits for a slot; 'orchestra player drain' sends it back"
    )


def fire(waiting: "Deferred[None]", among: "list[Deferred[None]]") -> None:
    """Let one who waits go on, if that was not done before."""
    if waiting in among:
        among.remove(waiting)
        waiting.callback(None)
