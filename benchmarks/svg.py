"""Charts as plain SVG: lines with ranges, and groups of bars with ranges and marks. No library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 44, 56
COLOURS = (
    "#2563a8", "#d9730d", "#2f8f4e", "#b3374f", "#7a55b5", "#8a6d3b", "#4b9cc4", "#777777", "#c55a9d",
    "#9aa832", "#1c2f4a", "#e3b23c",
)  # fmt: skip
INK, FAINT = "#222222", "#dddddd"
TICKS = 5


@dataclass(frozen=True)
class Figure:
    """One drawing; ``key`` names its file."""

    key: str
    title: str
    svg: str


@dataclass
class Series:
    """Points of one line, with a range where there is one; a dashed line has the colour of the one that it is of."""

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
    xs = sorted({point[0] for line in series for point in line.points})
    top = nice_ceiling(max((point[3] for line in series for point in line.points), default=1.0))
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
        parts.append(_text(at_x(x), HEIGHT - BOTTOM + 18, _number(x), "middle"))
    for number, line in enumerate(series):
        same = next((place for place, other in enumerate(series) if other.name == line.of), number)
        colour = COLOURS[same % len(COLOURS)]
        points = [
            (at_x(x), _y(y, top, HEIGHT), _y(low, top, HEIGHT), _y(high, top, HEIGHT))
            for x, y, low, high in sorted(line.points)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        for x, y, low, high in () if line.dashed else points:
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
        parts += _legend(number, line.name, colour, WIDTH, dashed=line.dashed)
    return Figure(key, title, _svg(parts, WIDTH, HEIGHT, title))


def bar_chart(
    key: str, title: str, y_label: str, groups: Mapping[str, Sequence[Bar]], *, baseline: float | None = None
) -> Figure:
    """Groups of bars, two lines of group names at most; bars of one name have one colour.

    Args:
        baseline: a line across, at plain decoding say.
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
            parts += _bar(
                bar, begin + place * each, each * 0.82, top, height, COLOURS[names.index(bar.name) % len(COLOURS)]
            )
        words = group.split(" ")
        for line, text in enumerate((words[0], " ".join(words[1:]))):
            parts.append(_text(LEFT + (number + 0.5) * slot, height - BOTTOM + 18 + 15 * line, text, "middle"))
    if baseline is not None:
        y = _y(baseline, top, height)
        parts.append(
            f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{INK}" stroke-dasharray="2 3"/>'
        )
    for number, name in enumerate(names):
        parts += _legend(number, name, COLOURS[number % len(COLOURS)], width)
    return Figure(key, title, _svg(parts, width, height, title))


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
    parts = [f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(0.0, bottom - y):.1f}" fill="{colour}"/>']
    if bar.low is not None and bar.high is not None:
        low, high = _y(bar.low, top, height), _y(bar.high, top, height)
        parts.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{INK}"/>')
    if bar.mark is not None:
        at = _y(bar.mark, top, height)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x + width:.1f}" y1="{at:.1f}" y2="{at:.1f}" stroke="{INK}" stroke-width="2"/>'
        )
    return parts


def _frame(title: str, x_label: str, y_label: str, top: float, width: int, height: int) -> list[str]:
    parts = [f'<text x="{LEFT}" y="24" font-size="15" font-weight="600" fill="{INK}">{escape(title)}</text>']
    for value in ticks(top):
        y = _y(value, top, height)
        parts.append(f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{FAINT}"/>')
        parts.append(_text(LEFT - 8, y + 4, _number(value), "end"))
    parts.append(_text((LEFT + width - RIGHT) / 2, height - 14, x_label, "middle"))
    middle = (TOP + height - BOTTOM) / 2
    parts.append(
        f'<text x="18" y="{middle}" text-anchor="middle" fill="{INK}" transform="rotate(-90 18 {middle})">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _legend(number: int, name: str, colour: str, width: int, *, dashed: bool = False) -> list[str]:
    x, y = width - RIGHT + 16, TOP + 6 + 20 * number
    sign = f'<rect x="{x}" y="{y - 9}" width="12" height="10" fill="{colour}"/>'
    if dashed:
        sign = f'<path d="M{x} {y - 4}h5m3 0h5" stroke="{colour}" stroke-width="2"/>'
    return [sign, _text(x + 18, y, name, "start")]


def _y(value: float, top: float, height: int) -> float:
    return height - BOTTOM - min(max(value / top, 0.0), 1.0) * (height - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{INK}">{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _svg(parts: Sequence[str], width: int, height: int, title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="12">'
    )
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *parts, "</svg>\n"])
