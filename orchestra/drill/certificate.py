"""The certificate: what a drill did, what it checked and what it found, as a value, as text and as JSON."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from orchestra.drill.checker import Check, Violation
from orchestra.drill.evidence import Evidence, Vitals
from orchestra.drill.ledger import START

WIDTH: Final = 13
SHOWN: Final = 20  # violations told in full


class Certificate(Struct, frozen=True, kw_only=True):
    """A drill in figures. ``left_out``: faults that could not be injected here, each with its reason."""

    version: str
    seed: int
    seconds: float
    players: int
    took: float
    faults: dict[str, int]
    left_out: tuple[str, ...]
    jobs: int
    tasks: int
    starts: int
    later_starts: int  # of an attempt that was not the first
    unanswered: int
    outcomes: dict[str, int]
    before: tuple[Vitals, ...]
    third: tuple[Vitals, ...]
    end: tuple[Vitals, ...]
    checks: tuple[Check, ...]

    @property
    def violations(self) -> list[tuple[str, Violation]]:
        """Every violation with the promise that it broke."""
        return [(check.promise, violation) for check in self.checks for violation in check.violations]


def certify(
    evidence: Evidence,
    checks: tuple[Check, ...],
    *,
    version: str,
    seed: int,
    seconds: float,
    players: int,
    took: float,
    faults: dict[str, int],
    left_out: tuple[str, ...],
) -> Certificate:
    """The certificate of a drill that has been checked."""
    tasks = [task for seen in evidence.looks[0].values() for task in seen.tasks]
    starts = [line for line in evidence.ledger if line.kind == START]
    return Certificate(
        version=version,
        seed=seed,
        seconds=seconds,
        players=players,
        took=round(took, 1),
        faults=dict(sorted(faults.items())),
        left_out=left_out,
        jobs=len(evidence.looks[0]),
        tasks=len(tasks),
        starts=len(starts),
        later_starts=sum(line.attempt > 1 for line in starts),
        unanswered=sum(request.unanswered for request in evidence.requests),
        outcomes=dict(Counter(task.state for task in tasks).most_common()),
        before=evidence.remains.before,
        third=evidence.remains.third,
        end=evidence.remains.end,
        checks=checks,
    )


def text(certificate: Certificate) -> str:
    """The certificate for people."""
    return "\n".join(_lines(certificate))


def _lines(c: Certificate) -> Iterator[str]:
    yield f"Orchestra {c.version}: drill with seed {c.seed}"
    yield ""
    yield _row("Time", f"{c.seconds:g} s of faults, {c.took:g} s in all; a conductor and {c.players} players")
    yield _row("Faults", f"{sum(c.faults.values())}: " + (_counted(c.faults) or "none"))
    for line in c.left_out:
        yield _row("Left out", line)
    yield _row("Work", f"{c.jobs:,} jobs, {c.tasks:,} tasks, {c.starts:,} starts ({c.later_starts} of later attempts)")
    yield _row("", f"{c.unanswered} submits were not answered; those with a key were sent again")
    yield _row("Outcomes", _counted(c.outcomes))
    for now in c.end:
        yield _row("Size", _size(c, now))
    yield ""
    for check in c.checks:
        broken = len(check.violations)
        yield f"  {check.checked:>9,}  {f'BROKEN {broken}' if broken else 'kept':<9}  {check.promise}"
    yield ""
    yield from _verdict(c)


def _verdict(c: Certificate) -> Iterator[str]:
    violations = c.violations
    if not violations:
        yield f"No violation in {sum(check.checked for check in c.checks):,} checks."
        return
    yield f"{len(violations)} violations:"
    for promise, violation in violations[:SHOWN]:
        yield ""
        yield f"  {promise}: {violation.what}"
        yield from (f"      {line}" for line in violation.story)
    if len(violations) > SHOWN:
        yield f"\n  and {len(violations) - SHOWN} more (--json has all)"


def _row(head: str, words: str) -> str:
    return f"{head:<{WIDTH}}{words}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{many:,} {what}" for what, many in counts.items())


def _size(c: Certificate, now: Vitals) -> str:
    then = next((one for one in c.third if one.role == now.role), now)
    first = next((one for one in c.before if one.role == now.role), now)
    memory = f"{then.rss / 1000:.0f} MB after a third, {now.rss / 1000:.0f} MB at the end"
    return f"{now.role}: {memory}; {first.descriptors} then {now.descriptors} descriptors; {now.age:.0f} s old"
