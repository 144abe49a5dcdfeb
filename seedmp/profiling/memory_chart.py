"""Resident memory of each process over time, as lines with their names at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seedmp.reporting.drawing import GREY, PALETTE, document, path, polyline, text

if TYPE_CHECKING:
    from seedmp.profiling.data import ProfileData

MIB = 2**20
WIDTH, HEIGHT = 1080.0, 180.0
LEFT, RIGHT, TOP, BOTTOM = 60.0, 130.0, 6.0, 24.0
NAME_GAP = 13.0  # between names, where lines end close together


def svg(data: ProfileData) -> str:
    """The picture as SVG; the vertical axis is in MiB. The picture grows when many names need room."""
    most = 1.1 * max((sample.rss_bytes for process in data.processes for sample in process.samples), default=1)
    span_ns = max(data.end_ns - data.start_ns, 1)
    floor, right = HEIGHT - BOTTOM, WIDTH - RIGHT

    def at_y(rss_bytes: int) -> float:
        return floor - (floor - TOP) * rss_bytes / most

    parts = [
        path("M", LEFT, TOP, "V", floor, "H", right, stroke=GREY),
        text(LEFT - 6, TOP + 10, f"{most / MIB:.0f}", text_anchor="end", fill=GREY),
        text(LEFT - 6, floor, "0", text_anchor="end", fill=GREY),
        text(LEFT, HEIGHT - 8, "0 s", fill=GREY),
        text(right, HEIGHT - 8, f"{data.wall_s:.1f} s", text_anchor="end", fill=GREY),
    ]
    shown = sorted((p for p in data.processes if p.samples), key=lambda p: -p.samples[-1].rss_bytes)
    name_y = 0.0
    for number, process in enumerate(shown):
        colour = PALETTE[number % len(PALETTE)]
        points = [
            (LEFT + (right - LEFT) * (sample.at_ns - data.start_ns) / span_ns, at_y(sample.rss_bytes))
            for sample in process.samples
        ]
        parts.append(polyline(points, stroke=colour, stroke_width=1.6))
        last = process.samples[-1].rss_bytes
        name_y = max(at_y(last) + 4, name_y + NAME_GAP)
        parts.append(text(right + 6, name_y, f"{process.name} {last / MIB:.0f}", fill=colour))
    title = "Resident memory of each process over time, MiB"
    return document(WIDTH, max(HEIGHT, name_y + 6), parts, title=title, font_size=11)
