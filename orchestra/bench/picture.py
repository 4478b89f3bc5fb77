"""The figures as a picture: an SVG of the fan-out's curve and the latency's histogram, drawn by hand."""

import math
from collections.abc import Iterable, Sequence
from typing import Final
from xml.sax.saxutils import escape

from orchestra.bench.figures import Row, quantile
from orchestra.bench.table import number

WIDTH: Final = 420
HEIGHT: Final = 300
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 40, 45
BARS: Final = 30
INK: Final = "#24435c"


def svg(rows: Iterable[Row]) -> str:
    """The picture; a panel for each of the two cases that was measured."""
    every = list(rows)
    fans = [row for row in every if row.case == "fanout" and row.size]
    late = [row for row in every if row.case == "latency" and row.samples]
    panels = [_curve(fans)] if len(fans) > 1 else []
    panels += [_histogram(row) for row in late]
    body = "".join(f'<g transform="translate({n * WIDTH},0)">{panel}</g>' for n, panel in enumerate(panels))
    width = max(1, len(panels)) * WIDTH
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>{body}</svg>\n'
    )


class _Scale:
    """Values on a line of so many pixels, straight or by powers of ten."""

    def __init__(self, least: float, most: float, start: float, end: float, *, log: bool = False) -> None:
        self._log = log
        self._least, self._most = self._place(least), self._place(most)
        self._start, self._end = start, end

    def _place(self, value: float) -> float:
        return math.log10(value) if self._log else value

    def __call__(self, value: float) -> float:
        share = (self._place(value) - self._least) / ((self._most - self._least) or 1)
        return round(self._start + share * (self._end - self._start), 1)


def _curve(fans: Sequence[Row]) -> str:
    """Time over players, both by powers of ten; the dashed line is straight growth from the first point."""
    fans = sorted(fans, key=lambda row: row.size or 0)
    sizes = [row.size or 1 for row in fans]
    straight = fans[0].median * sizes[-1] / sizes[0]
    low, high = min(row.least for row in fans), max(*(row.most for row in fans), straight)
    x = _Scale(sizes[0], sizes[-1], LEFT, WIDTH - RIGHT, log=True)
    y = _Scale(low, high, HEIGHT - BOTTOM, TOP, log=True)
    parts = [_title("All of N players, until all is committed"), _axes("players", "ms")]
    parts.append(_line(x(sizes[0]), y(fans[0].median), x(sizes[-1]), y(straight), dashed=True))
    points = " ".join(f"{x(row.size or 1)},{y(row.median)}" for row in fans)
    parts.append(f'<polyline points="{points}" fill="none" stroke="{INK}" stroke-width="2"/>')
    for row in fans:
        at = x(row.size or 1)
        parts.append(_line(at, y(row.least), at, y(row.most)))
        parts.append(f'<circle cx="{at}" cy="{y(row.median)}" r="3" fill="{INK}"/>')
        parts.append(_text(at, HEIGHT - BOTTOM + 15, f"{row.size:,}", "middle"))
        parts.append(_text(at, y(row.median) - 8, number(row.median), "end" if row is fans[-1] else "start"))
    return "".join(parts)


def _histogram(row: Row) -> str:
    """How many jobs took how long; what is above the 99.5th percentile is in the last bar."""
    least, most = min(row.samples), quantile(row.samples, 0.995)
    step = ((most - least) / BARS) or 1.0
    many = [0] * BARS
    for sample in row.samples:
        many[min(BARS - 1, int((sample - least) / step))] += 1
    x = _Scale(least, least + step * BARS, LEFT, WIDTH - RIGHT)
    y = _Scale(0, max(many), HEIGHT - BOTTOM, TOP)
    parts = [_title(f"{row.what}: {len(row.samples)} jobs"), _axes("ms", "jobs")]
    for n, count in enumerate(many):
        left, right, top = x(least + n * step), x(least + (n + 1) * step), y(count)
        size = f'width="{right - left - 1:.1f}" height="{HEIGHT - BOTTOM - top:.1f}"'
        parts.append(f'<rect x="{left}" y="{top}" {size} fill="{INK}"/>')
    for value in (least, row.median, most):
        parts.append(_text(x(value), HEIGHT - BOTTOM + 15, number(value), "middle"))
    parts.append(_text(LEFT - 6, y(max(many)) + 4, str(max(many)), "end"))
    return "".join(parts)


def _title(words: str) -> str:
    return f'<text x="{LEFT}" y="22" font-size="13" fill="{INK}">{escape(words)}</text>'


def _axes(below: str, beside: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    return (
        _line(LEFT, bottom, right, bottom)
        + _line(LEFT, bottom, LEFT, TOP)
        + _text(right, HEIGHT - 10, below, "end")
        + _text(LEFT - 6, TOP - 6, beside, "end")
    )


def _line(x1: float, y1: float, x2: float, y2: float, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#888"{dash}/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(words)}</text>'
