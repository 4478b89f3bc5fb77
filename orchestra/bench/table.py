"""The figures for people: a table, with what it cost each process beneath each row; and as a page of the docs."""

from collections.abc import Iterable, Sequence

from orchestra.bench.figures import Report, Row

HEADER = f"{'':56} {'median':>9} {'p99':>8} {'min-max':>17} {'floor':>8}"


def lines(row: Row) -> list[str]:
    """A row as it is printed, and its cost."""
    what = f"{row.what} [{row.unit}]" if row.unit else row.what
    spread = f"{number(row.least)}-{number(row.most)}" if row.repeats > 1 else ""
    p99, floor = ("" if each is None else number(each) for each in (row.p99, row.floor))
    notes = [f"floor: {row.floor_is}"] if row.floor_is else []
    if cost := costs(row):
        notes.append(f"CPU each: {cost}")
    first = f"{what:<56} {number(row.median):>9} {p99:>8} {spread:>17} {floor:>8}".rstrip()
    return [first, f"    {'; '.join(notes)}"] if notes else [first]


def costs(row: Row) -> str:
    """The milliseconds of CPU of each process, largest first."""
    return ", ".join(f"{name} {number(ms)} ms" for ms, name in _some(row))


def _some(row: Row) -> list[tuple[float, str]]:
    return sorted(((ms, name) for name, ms in row.cpu.items() if ms >= 0.0005), reverse=True)


def number(value: float) -> str:
    """``value`` with as many digits as mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3f}"


def text(rows: Iterable[Row]) -> str:
    """All rows under one heading."""
    return "\n".join([HEADER, *(line for row in rows for line in lines(row))])


def conditions(report: Report) -> str:
    """Where and when, in a line or two."""
    commit = f" ({report.commit})" if report.commit else ""
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    return f"Orchestra {report.version}{commit}, {report.at}\n{machine}"


# ---- for the docs

_COLUMNS = ("what", "unit", "median", "p99", "min-max", "floor", "CPU each, ms")


def rst(report: Report) -> str:
    """The whole report in reStructuredText: its conditions, a table, and what the floors are."""
    machine = "; ".join(f"{key}: {value}" for key, value in report.machine.items())
    commit = f" at commit {report.commit}" if report.commit else ""
    opening = f"Orchestra {report.version}{commit}, {report.at}. {machine}."
    floors = {row.floor_is: row.case for row in report.rows if row.floor_is}
    notes = "".join(f"* ``{case}``: {what}\n" for what, case in floors.items())
    table = _simple_table([_COLUMNS, *map(_cells, report.rows)])
    return f"{opening}\n\n{table}\n" + (f"Floors:\n\n{notes}" if notes else "")


def _cells(row: Row) -> tuple[str, ...]:
    spread = f"{number(row.least)} - {number(row.most)}" if row.repeats > 1 else ""
    p99, floor = ("" if each is None else number(each) for each in (row.p99, row.floor))
    cost = ", ".join(f"{name} {number(ms)}" for ms, name in _some(row))
    return f"``{row.case}``: {row.what}", row.unit, number(row.median), p99, spread, floor, cost


def _simple_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of reStructuredText; a first cell must not be empty."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, ""])
