"""Charts: lines with ranges, and groups of bars with ranges and marks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from seedmp.reporting.drawing import FAINT, PALETTE, circle, document, line, path, polyline, rect, text

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 44, 56
TICKS = 5


@dataclass(frozen=True)
class Figure:
    """One drawing; ``key`` names its file."""

    key: str
    title: str
    svg: str


@dataclass
class Series:
    """Points of one line, each with or without a range.

    Args:
        dashed: such a line shows a bound of another line.
        of: name of that other line; both have one colour.
    """

    name: str
    dashed: bool = False
    of: str = ""
    points: list[tuple[float, float, float, float]] = field(default_factory=list)

    def add(self, x: float, y: float, low: float | None = None, high: float | None = None) -> None:
        """A point; without a range it has none."""
        self.points.append((x, y, y if low is None else low, y if high is None else high))


@dataclass(frozen=True)
class Bar:
    """One bar; ``mark`` is a dash at another value."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None


def line_chart(
    key: str, title: str, x_label: str, y_label: str, series: Sequence[Series], *, log_x: bool = False
) -> Figure:
    """Lines against a common x; ``log_x`` gives doublings equal room."""
    xs = sorted({point[0] for one in series for point in one.points})
    top = nice_ceiling(max((point[3] for one in series for point in one.points), default=1.0))
    low_x, high_x = (xs[0], xs[-1]) if xs else (0.0, 1.0)
    if not log_x and low_x >= 0 and low_x < high_x / 2:
        low_x = 0.0

    def at_x(x: float) -> float:
        span = math.log(high_x / low_x) if log_x and high_x > low_x else high_x - low_x
        share = (math.log(x / low_x) if log_x else x - low_x) / span if span else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    ticks_x = xs if log_x or len(xs) <= 6 else ticks(high_x)
    ticks_x = [x for x in ticks_x if low_x <= x <= high_x]
    parts = _frame(title, x_label, y_label, top, WIDTH, HEIGHT)
    for x in ticks_x:
        parts.append(text(at_x(x), HEIGHT - BOTTOM + 18, _number(x), text_anchor="middle"))
    for number, one in enumerate(series):
        same = next((place for place, other in enumerate(series) if other.name == one.of), number)
        colour = PALETTE[same % len(PALETTE)]
        points = [
            (at_x(x), _y(y, top, HEIGHT), _y(low, top, HEIGHT), _y(high, top, HEIGHT))
            for x, y, low, high in sorted(one.points)
        ]
        dashes = "6 4" if one.dashed else None
        parts.append(polyline([point[:2] for point in points], stroke=colour, stroke_width=2, stroke_dasharray=dashes))
        for x, y, low, high in () if one.dashed else points:
            parts += [line(x, low, x, high, stroke=colour), circle(x, y, 3.5, fill=colour)]
        parts += _legend(number, one.name, colour, WIDTH, dashed=one.dashed)
    return Figure(key, title, document(WIDTH, HEIGHT, parts, title=title))


def bar_chart(
    key: str, title: str, y_label: str, groups: Mapping[str, Sequence[Bar]], *, baseline: float | None = None
) -> Figure:
    """Groups of bars. The name of a group has at most two lines; bars of one name have one colour.

    Args:
        baseline: value at which a line is drawn across, such as that of plain decoding.
    """
    names = list(dict.fromkeys(bar.name for bars in groups.values() for bar in bars))
    every = [bar for bars in groups.values() for bar in bars]
    top = nice_ceiling(max((max(bar.value, bar.high or 0, bar.mark or 0) for bar in every), default=1.0))
    width = max(WIDTH, LEFT + RIGHT + len(every) * 13 + len(groups) * 22)
    height = HEIGHT + 14
    parts = _frame(title, "", y_label, top, width, height)
    slot = (width - LEFT - RIGHT) / max(1, len(groups))
    for number, (group, bars) in enumerate(groups.items()):
        each = min(46.0, (slot - 14) / max(1, len(bars)))
        begin = LEFT + number * slot + (slot - each * len(bars)) / 2
        for place, bar in enumerate(bars):
            colour = PALETTE[names.index(bar.name) % len(PALETTE)]
            parts += _bar(bar, begin + place * each, each * 0.82, top, height, colour)
        first, _, rest = group.partition(" ")
        for row, words in enumerate((first, rest)):
            below = height - BOTTOM + 18 + 15 * row
            parts.append(text(LEFT + (number + 0.5) * slot, below, words, text_anchor="middle"))
    if baseline is not None:
        y = _y(baseline, top, height)
        parts.append(line(LEFT, y, width - RIGHT, y, stroke_dasharray="2 3"))
    for number, name in enumerate(names):
        parts += _legend(number, name, PALETTE[number % len(PALETTE)], width)
    return Figure(key, title, document(width, height, parts, title=title))


def nice_ceiling(value: float) -> float:
    """The next of 1, 1.2, 1.6, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    scale = 10.0 ** math.floor(math.log10(value))
    return next((step * scale for step in (1, 1.2, 1.6, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * scale >= value), value)


def ticks(top: float) -> list[float]:
    """Evenly spaced values from 0 to ``top``."""
    return [top * number / TICKS for number in range(TICKS + 1)]


def _bar(bar: Bar, x: float, width: float, top: float, height: int, colour: str) -> list[str]:
    y = _y(bar.value, top, height)
    middle = x + width / 2
    bottom = height - BOTTOM
    parts = [rect(x, y, width, max(0.0, bottom - y), fill=colour)]
    if bar.low is not None and bar.high is not None:
        parts.append(line(middle, _y(bar.low, top, height), middle, _y(bar.high, top, height)))
    if bar.mark is not None:
        at = _y(bar.mark, top, height)
        parts.append(line(x, at, x + width, at, stroke_width=2))
    return parts


def _frame(title: str, x_label: str, y_label: str, top: float, width: int, height: int) -> list[str]:
    parts = [text(LEFT, 24, title, font_size=15, font_weight=600)]
    for value in ticks(top):
        y = _y(value, top, height)
        parts.append(line(LEFT, y, width - RIGHT, y, stroke=FAINT))
        parts.append(text(LEFT - 8, y + 4, _number(value), text_anchor="end"))
    parts.append(text((LEFT + width - RIGHT) / 2, height - 14, x_label, text_anchor="middle"))
    middle = (TOP + height - BOTTOM) / 2
    parts.append(text(18, middle, y_label, text_anchor="middle", transform=f"rotate(-90 18 {middle})"))
    return parts


def _legend(number: int, name: str, colour: str, width: int, *, dashed: bool = False) -> list[str]:
    x, y = width - RIGHT + 16, TOP + 6 + 20 * number
    sign = rect(x, y - 9, 12, 10, fill=colour)
    if dashed:
        sign = path("M", x, y - 4, "h", 5, "m", 3, 0, "h", 5, stroke=colour, stroke_width=2)
    return [sign, text(x + 18, y, name)]


def _y(value: float, top: float, height: int) -> float:
    return height - BOTTOM - min(max(value / top, 0.0), 1.0) * (height - TOP - BOTTOM)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
