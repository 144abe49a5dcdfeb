"""The picture of the paper's Figure 4(b), drawn from a real run: who drafted, waited and was verified when.

SVG without external assets, from standard tools only. Shown are a dozen forwards in a row, such that half of
all dozens took longer; beside each row stands the process's share of the whole profile in which it worked.
"""

from __future__ import annotations

from xml.sax.saxutils import escape

import numpy as np

from seedmp.profiling.chrome_trace import lanes
from seedmp.profiling.data import ProfileData
from seedmp.profiling.sampler import ProcessRecord, clip
from seedmp.trace import Activity

NUM_FORWARDS = 12
WIDTH, LEFT, RIGHT, TOP = 1080.0, 92.0, 70.0, 54.0
BAR, GAP, LANE, MAX_LANES = 26.0, 12.0, 12.0, 12
FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
INK, GREY, PAPER = "#111111", "#666c77", "#f1f2f4"
# Dark to light in the order of a round, so that print without colour keeps them apart.
COLOURS = {
    Activity.DRAFT: "#4477aa",
    Activity.QUEUE: "#ddcc77",
    Activity.VERIFY: "#cc6677",
    Activity.RESAMPLE: "#882255",
    Activity.COMMIT: "#117733",
    Activity.SCHEDULE: "#44aa99",
    Activity.IPC: "#9aa0a8",
    Activity.WATCH: "#9aa0a8",
}
MEANING = {
    Activity.DRAFT: "draft",
    Activity.QUEUE: "in the queue",
    Activity.VERIFY: "verify",
    Activity.RESAMPLE: "accept and resample",
    Activity.COMMIT: "commit",
    Activity.SCHEDULE: "schedule",
    Activity.IPC: "messages",
}


def svg(data: ProfileData, *, width: float = WIDTH) -> str:
    """The picture as XML; one group of class ``row`` a process."""
    window = choose_window(data)
    return _Picture(data, window, max(width, 480.0)).text()


def choose_window(data: ProfileData, num_forwards: int = NUM_FORWARDS) -> tuple[int, int]:
    """The time of ``num_forwards`` forwards that took as long as is usual; all of the profile without any."""
    verifiers = data.of_kind("verifier")
    rows = [process.spans[process.spans[:, 0] == Activity.VERIFY] for process in verifiers]
    forwards = np.concatenate(rows) if rows else np.empty((0, 5), dtype=np.int64)
    if not len(forwards):
        return data.start_ns, max(data.end_ns, data.start_ns + 1)
    forwards = forwards[np.argsort(forwards[:, 3], kind="stable")]
    num = min(num_forwards, len(forwards))
    lengths = forwards[num - 1 :, 4] - forwards[: len(forwards) - num + 1, 3]
    first = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
    chosen = forwards[first : first + num]
    start, end = int(chosen[0, 3]), int(chosen[:, 4].max())
    margin = (end - start) // (4 * len(chosen)) + 1
    return max(data.start_ns, start - 2 * margin), min(data.end_ns, end + margin)


class _Picture:
    """One picture while it is drawn."""

    def __init__(self, data: ProfileData, window: tuple[int, int], width: float) -> None:
        self.data, self.window, self.width = data, window, width
        self.span_px = width - LEFT - RIGHT
        self.parts: list[str] = []
        self.y = TOP

    def text(self) -> str:
        for process in self.data.of_kind("verifier"):
            self._row(process, "target" if len(self.data.of_kind("verifier")) == 1 else process.name)
            self._queue(process)
        for process in self.data.of_kind("draft"):
            self._row(process, process.name)
        bottom = self.y
        self._axis(bottom)
        self._legend(bottom + 44)
        config = self.data.config
        title = (
            f"{config.schedule.value}, {config.policy}, {config.method.name}, {config.num_drafts} drafts: "
            f"{self._ms(self.window[1] - self.window[0])} of {self.data.wall_s:.1f} s"
        )
        head = [
            f'<text x="{LEFT}" y="24" font-size="14" font-weight="bold" fill="{INK}">{escape(title)}</text>',
            f'<text x="{self.width - 8}" y="{TOP - 8}" font-size="10" text-anchor="end" fill="{GREY}">busy, run</text>',
        ]
        height = bottom + 66
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {self.width:.0f} {height:.0f}" font-family="{FONTS}">\n'
            f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(head + self.parts) + "\n</svg>"
        )

    def _x(self, at_ns: float) -> float:
        start, end = self.window
        return LEFT + self.span_px * (at_ns - start) / (end - start)

    def _row(self, process: ProcessRecord, label: str) -> None:
        self.parts.append(f'<g class="row" data-process="{escape(process.name)}">')
        self.parts.append(
            f'<rect x="{LEFT}" y="{self.y:.1f}" width="{self.span_px:.1f}" height="{BAR}" fill="{PAPER}"/>'
        )
        self._label(label, self.y + BAR / 2 + 4)
        for row in self._visible(process.spans):
            if row[0] != Activity.IDLE:
                self._bar(row, self.y, BAR)
        busy = 1 - process.seconds().get(Activity.IDLE, 0.0) / process.wall_s if process.wall_s > 0 else 0.0
        self.parts.append(
            f'<text x="{self.width - 8}" y="{self.y + BAR / 2 + 4:.1f}" font-size="12" text-anchor="end" '
            f'fill="{INK}">{100 * busy:.0f} %</text></g>'
        )
        self.y += BAR + GAP

    def _queue(self, process: ProcessRecord) -> None:
        waits = self._visible(process.waits)
        lane_of = lanes(waits)
        num_lanes = min(MAX_LANES, max(lane_of, default=0) + 1)
        self.y -= GAP / 2
        self._label("queue", self.y + num_lanes * LANE / 2 + 4)
        for lane, row in zip(lane_of, waits, strict=True):
            if lane < MAX_LANES:
                self._bar(row, self.y + lane * LANE, LANE - 2)
        self.y += num_lanes * LANE + GAP

    def _visible(self, rows: np.ndarray) -> np.ndarray:
        return clip(rows, *self.window)

    def _bar(self, row: np.ndarray, y: float, height: float) -> None:
        activity, branch_id, num = Activity(int(row[0])), int(row[1]), int(row[2])
        left, right = self._x(row[3]), self._x(row[4])
        what = f"{activity.name.lower()} {self._ms(int(row[4] - row[3]))}"
        what += f", branch {branch_id}" if branch_id >= 0 else f", {num} at once" if num > 1 else ""
        self.parts.append(
            f'<rect x="{left:.2f}" y="{y:.1f}" width="{max(right - left, 0.4):.2f}" height="{height}" '
            f'fill="{COLOURS[activity]}"><title>{escape(what)}</title></rect>'
        )
        if activity not in (Activity.DRAFT, Activity.VERIFY, Activity.QUEUE):
            return
        shown = str(branch_id) if branch_id >= 0 else f"×{num}" if activity is Activity.DRAFT else f"{num} rows"
        size = 11 if height > LANE else 9
        if right - left > 0.7 * size * len(shown) + 4:
            self.parts.append(
                f'<text x="{(left + right) / 2:.1f}" y="{y + height / 2 + 0.36 * size:.1f}" font-size="{size}" '
                f'text-anchor="middle" fill="{INK if activity is Activity.QUEUE else "#ffffff"}">{shown}</text>'
            )

    def _label(self, text: str, y: float) -> None:
        self.parts.append(
            f'<text x="{LEFT - 10}" y="{y:.1f}" font-size="12" text-anchor="end" fill="{INK}">{escape(text)}</text>'
        )

    def _axis(self, y: float) -> None:
        start, end = self.window
        step = _nice_step((end - start) / 8)
        self.parts.append(f'<g stroke="{GREY}" fill="{GREY}" font-size="11">')
        self.parts.append(f'<path d="M{LEFT} {y}h{self.span_px:.1f}" fill="none"/>')
        first = -(-(start - self.data.start_ns) // step) * step + self.data.start_ns
        at = first
        while at <= end:
            x = self._x(at)
            digits = 0 if step >= 1_000_000 else 1
            label = f"{(at - self.data.start_ns) / 1e6:.{digits}f}"
            self.parts.append(
                f'<path d="M{x:.1f} {y}v5"/><text x="{x:.1f}" y="{y + 18}" text-anchor="middle" '
                f'stroke="none">{label}</text>'
            )
            at += step
        self.parts.append(f'<text x="{self.width - RIGHT + 8}" y="{y + 18}" stroke="none">ms</text></g>')

    def _legend(self, y: float) -> None:
        x = LEFT
        for activity, meaning in MEANING.items():
            self.parts.append(
                f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="14" height="11" fill="{COLOURS[activity]}"/>'
                f'<text x="{x + 19:.1f}" y="{y:.1f}" font-size="12" fill="{INK}">{meaning}</text>'
            )
            x += 19 + 6.6 * len(meaning) + 18
        note = "numbers: branch; ×n, n rows: several at once"
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" fill="{GREY}">{note}</text>')

    @staticmethod
    def _ms(elapsed_ns: int) -> str:
        ms = elapsed_ns / 1e6
        return f"{ms:.0f} ms" if ms >= 20 else f"{ms:.2f} ms"


def _nice_step(least_ns: float) -> int:
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power * 1000 >= least_ns:
                return factor * power * 1000
        power *= 10
