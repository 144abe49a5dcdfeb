"""The picture of the paper's Figure 4(b), drawn from a real run: who drafted, waited and was verified when.

It shows twelve forwards in a row. Of all such twelves, half took longer. The number beside each row is the share of the
whole profile in which the process worked.
"""

from __future__ import annotations

import numpy as np

from seedmp.profiling.chrome_trace import lanes
from seedmp.profiling.data import ProfileData
from seedmp.profiling.sampler import ProcessRecord, clip
from seedmp.reporting import drawing
from seedmp.reporting.drawing import GREY, INK, PAPER, SHADE, document, group, path, rect, text, tooltip
from seedmp.trace import Activity

NUM_FORWARDS = 12
WIDTH, LEFT, RIGHT, TOP = 1080.0, 92.0, 70.0, 54.0
BAR, GAP, LANE, MAX_LANES = 26.0, 12.0, 12.0, 12
# Dark to light in the order of a round, so that print without colour keeps them apart.
COLOURS = {
    Activity.DRAFT: drawing.BLUE,
    Activity.QUEUE: drawing.SAND,
    Activity.VERIFY: drawing.ROSE,
    Activity.RESAMPLE: drawing.WINE,
    Activity.COMMIT: drawing.GREEN,
    Activity.SCHEDULE: drawing.TEAL,
    Activity.IPC: drawing.SILVER,
    Activity.WATCH: drawing.SILVER,
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
    """The picture as SVG; one group of class ``row`` a process."""
    window = choose_window(data)
    return _Picture(data, window, max(width, 480.0)).whole()


def choose_window(data: ProfileData, num_forwards: int = NUM_FORWARDS) -> tuple[int, int]:
    """The time of ``num_forwards`` forwards in a row of median length. Without forwards, the whole profile."""
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

    def whole(self) -> str:
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
            text(LEFT, 24, title, font_size=14, font_weight="bold"),
            text(self.width - 8, TOP - 8, "busy, run", font_size=10, text_anchor="end", fill=GREY),
        ]
        return document(self.width, bottom + 66, head + self.parts, title=title)

    def _x(self, at_ns: float) -> float:
        start, end = self.window
        return LEFT + self.span_px * (at_ns - start) / (end - start)

    def _row(self, process: ProcessRecord, label: str) -> None:
        parts = [rect(LEFT, self.y, self.span_px, BAR, fill=SHADE), self._label(label, self.y + BAR / 2 + 4)]
        for row in self._visible(process.spans):
            if row[0] != Activity.IDLE:
                parts += self._bar(row, self.y, BAR)
        busy = 1 - process.seconds().get(Activity.IDLE, 0.0) / process.wall_s if process.wall_s > 0 else 0.0
        parts.append(text(self.width - 8, self.y + BAR / 2 + 4, f"{100 * busy:.0f} %", text_anchor="end"))
        self.parts.append(group(parts, class_="row", data_process=process.name))
        self.y += BAR + GAP

    def _queue(self, process: ProcessRecord) -> None:
        waits = self._visible(process.waits)
        lane_of = lanes(waits)
        num_lanes = min(MAX_LANES, max(lane_of, default=0) + 1)
        self.y -= GAP / 2
        self.parts.append(self._label("queue", self.y + num_lanes * LANE / 2 + 4))
        for lane, row in zip(lane_of, waits, strict=True):
            if lane < MAX_LANES:
                self.parts += self._bar(row, self.y + lane * LANE, LANE - 2)
        self.y += num_lanes * LANE + GAP

    def _visible(self, rows: np.ndarray) -> np.ndarray:
        return clip(rows, *self.window)

    def _bar(self, row: np.ndarray, y: float, height: float) -> list[str]:
        activity, branch_id, num = Activity(int(row[0])), int(row[1]), int(row[2])
        left, right = self._x(row[3]), self._x(row[4])
        what = f"{activity.name.lower()} {self._ms(int(row[4] - row[3]))}"
        what += f", branch {branch_id}" if branch_id >= 0 else f", {num} at once" if num > 1 else ""
        parts = [rect(left, y, max(right - left, 0.4), height, tooltip(what), fill=COLOURS[activity])]
        if activity not in (Activity.DRAFT, Activity.VERIFY, Activity.QUEUE):
            return parts
        shown = str(branch_id) if branch_id >= 0 else f"×{num}" if activity is Activity.DRAFT else f"{num} rows"
        size = 11 if height > LANE else 9
        if right - left > 0.7 * size * len(shown) + 4:
            middle = ((left + right) / 2, y + height / 2 + 0.36 * size)
            colour = INK if activity is Activity.QUEUE else PAPER
            parts.append(text(*middle, shown, font_size=size, text_anchor="middle", fill=colour))
        return parts

    def _label(self, words: str, y: float) -> str:
        return text(LEFT - 10, y, words, text_anchor="end")

    def _axis(self, y: float) -> None:
        start, end = self.window
        step = _nice_step((end - start) / 8)
        parts = [path("M", LEFT, y, "h", self.span_px)]
        at = -(-(start - self.data.start_ns) // step) * step + self.data.start_ns
        while at <= end:
            label = f"{(at - self.data.start_ns) / 1e6:.{0 if step >= 1_000_000 else 1}f}"
            parts.append(path("M", self._x(at), y, "v", 5))
            parts.append(text(self._x(at), y + 18, label, text_anchor="middle", fill=GREY, stroke="none"))
            at += step
        parts.append(text(self.width - RIGHT + 8, y + 18, "ms", fill=GREY, stroke="none"))
        self.parts.append(group(parts, stroke=GREY, font_size=11))

    def _legend(self, y: float) -> None:
        x = LEFT
        for activity, meaning in MEANING.items():
            self.parts.append(rect(x, y - 10, 14, 11, fill=COLOURS[activity]))
            self.parts.append(text(x + 19, y, meaning))
            x += 19 + 6.6 * len(meaning) + 18
        self.parts.append(text(x, y, "numbers: branch; ×n, n rows: several at once", font_size=11, fill=GREY))

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
