"""What was measured, as values: a row of the table with its spread, its floor, and what it cost each process."""

import math
from collections.abc import Mapping, Sequence

from msgspec import Struct


class Row(Struct, frozen=True, kw_only=True):
    """One line of the table. ``least`` and ``most`` are over the repeats; ``cpu`` is milliseconds per operation."""

    case: str
    what: str
    unit: str
    median: float
    p99: float | None = None
    least: float
    most: float
    repeats: int
    floor: float | None = None
    floor_is: str = ""
    cpu: dict[str, float] = {}
    size: int | None = None  # of what grows: players, pending tasks
    samples: tuple[float, ...] = ()  # each measurement, where a histogram is of use


class Report(Struct, frozen=True, kw_only=True):
    """A whole run of the benchmark."""

    version: str
    commit: str
    at: str
    machine: dict[str, str]
    rows: tuple[Row, ...]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that ``share`` of ``values`` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(len(ordered) * share) - 1))]


def median(values: Sequence[float]) -> float:
    """The middle one, or between the two middle ones."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def times(
    case: str,
    what: str,
    rounds: Sequence[Sequence[float]],
    *,
    cpu: Mapping[str, float],
    floor: float | None = None,
    floor_is: str = "",
    size: int | None = None,
) -> Row:
    """A row of milliseconds from rounds of seconds: median and p99 of all, least and most of the rounds' medians."""
    every = [1000 * second for one in rounds for second in one]
    middles = [1000 * median(one) for one in rounds]
    return Row(
        case=case,
        what=what,
        unit="ms",
        median=median(every),
        p99=quantile(every, 0.99),
        least=min(middles),
        most=max(middles),
        repeats=len(rounds),
        floor=None if floor is None else 1000 * floor,
        floor_is=floor_is,
        cpu=dict(cpu),
        size=size,
        samples=tuple(every),
    )


def values(
    case: str,
    what: str,
    unit: str,
    found: Sequence[float],
    *,
    cpu: Mapping[str, float] | None = None,
    floor: float | None = None,
    floor_is: str = "",
    size: int | None = None,
) -> Row:
    """A row of one value per repeat."""
    return Row(
        case=case,
        what=what,
        unit=unit,
        median=median(found),
        least=min(found),
        most=max(found),
        repeats=len(found),
        floor=floor,
        floor_is=floor_is,
        cpu=dict(cpu or {}),
        size=size,
    )


def growth(rows: Sequence[Row]) -> float:
    """The exponent with which the median grows between the two largest sizes: 1 is straight, 2 is quadratic."""
    small, large = sorted(rows, key=lambda row: row.size or 0)[-2:]
    return math.log(large.median / small.median) / math.log((large.size or 1) / (small.size or 1))
