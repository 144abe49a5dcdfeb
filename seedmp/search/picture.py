"""A search as a picture for papers: levels from left to right, one mark a thought, as SVG.

A thought is a box with text where its level has room for boxes, and a dot where the level is crowded. Without
colour one can still tell: the solution's path is bold, thoughts that were left are grey, failed ones are dashed,
merged ones are dotted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from seedmp.reporting.drawing import GREY, INK, MIST, PAPER, SHADE, circle, document, group, path, rect, text, tooltip
from seedmp.search.showing import children_of, one_line, show_value, solution_path
from seedmp.search.thought_tree import ROOT_ID, Status, Thought, ThoughtTree

MARGIN, LEGEND = 12.0, 26.0
ROW, MIN_ROW = 40.0, 9.0  # height of a thought, and the least where there are many
MAX_HEIGHT = 1200.0  # rows shrink down to MIN_ROW to stay below
BOX, LINE, FONT = 34.0, 12.0, 9.5
CHAR = 0.55  # mean width of a character ÷ size of the font
GAP = 26.0  # between the columns, for the edges
DOT = 3.2
LIGHT = "#c3c8d0"  # edges to what was left
LEFT = {Status.PRUNED, Status.CANCELLED, Status.MERGED, Status.FAILED}  # drawn in grey
DASHES = {Status.FAILED: "4 2.5", Status.MERGED: "1 2", Status.CANCELLED: "1 2", Status.RUNNING: "1 2"}
MEANING = {
    Status.RUNNING: "running",
    Status.OPEN: "open",
    Status.CHOSEN: "continued",
    Status.PRUNED: "pruned",
    Status.FINAL: "final",
    Status.MERGED: "merged",
    Status.FAILED: "failed",
    Status.CANCELLED: "cancelled",
}


def save_svg(
    tree: ThoughtTree, path: str | Path, *, width: float = 960, max_text: int = 60, answer_id: str | None = None
) -> None:
    """Write the picture; see ``svg``.

    Raises:
        ConfigError: a number is too small, or ``answer_id`` names no thought.
        OSError: the file cannot be written.
    """
    Path(path).write_text(svg(tree, width=width, max_text=max_text, answer_id=answer_id), encoding="utf-8")


def svg(tree: ThoughtTree, *, width: float = 960, max_text: int = 60, answer_id: str | None = None) -> str:
    """The picture as SVG without external assets. Each thought is a group of class ``thought``, the root of ``root``.

    Args:
        tree: any.
        width: in CSS pixels; the height follows from the tree.
        max_text: characters of a thought shown at most; fewer fit when the tree is deep.
        answer_id: the thought whose path is bold; None takes the final thought of highest value.

    Raises:
        ConfigError: ``answer_id`` names no thought.
    """
    drawing = _Drawing(tree, float(max(width, 200)), max(max_text, 0), answer_id)
    return drawing.whole()


# --- where the thoughts lie ----------------------------------------------------------------------


def tidy_rows(children: dict[str, list[Thought]]) -> dict[str, float]:
    """Rows of the thoughts, 0 at the top, at least 1 apart within a level.

    A parent is centred on its children.

    Subtrees are pushed together until they touch in some level (Reingold and Tilford 1981). All levels are compared,
    without that paper's threads, so it takes O(thoughts x depth).
    """
    offset: dict[str, float] = {}  # to the parent's row
    outlines: dict[str, list[tuple[float, float]]] = {}  # of a subtree: (first, last) row of each level below it

    for thought_id in _parents_last(children):
        merged: list[tuple[float, float]] = []
        places: list[float] = []
        below = children.get(thought_id, [])
        for child in below:
            outline = outlines.pop(child.thought_id)
            gap = 1.0 if not children.get(child.thought_id) else 1.15  # families stand a little apart
            place = max((last + gap - first for (_, last), (first, _) in zip(merged, outline, strict=False)), default=0)
            places.append(place)
            moved = [(first + place, last + place) for first, last in outline]
            merged = [
                (merged[d][0] if d < len(merged) else moved[d][0], moved[d][1] if d < len(moved) else merged[d][1])
                for d in range(max(len(merged), len(moved)))
            ]
        centre = (places[0] + places[-1]) / 2 if places else 0.0
        for child, place in zip(below, places, strict=True):
            offset[child.thought_id] = place - centre
        outlines[thought_id] = [(0.0, 0.0), *((first - centre, last - centre) for first, last in merged)]

    top = min(first for first, _ in outlines[ROOT_ID])
    rows = {ROOT_ID: -top}
    for thought_id in reversed(_parents_last(children)):
        for child in children.get(thought_id, []):
            rows[child.thought_id] = rows[thought_id] + offset[child.thought_id]
    return rows


def _parents_last(children: dict[str, list[Thought]]) -> list[str]:
    """Ids of the tree, each after all below it."""
    order, waiting = [], [ROOT_ID]
    while waiting:
        thought_id = waiting.pop()
        order.append(thought_id)
        waiting += [child.thought_id for child in children.get(thought_id, [])]
    return order[::-1]


# --- the drawing ---------------------------------------------------------------------------------


@dataclass
class _Place:
    """Where a thought is drawn: the left and right end of its mark, and its middle."""

    left: float
    right: float
    y: float
    boxed: bool


class _Drawing:
    """One picture, while it is written."""

    def __init__(self, tree: ThoughtTree, width: float, max_text: int, answer_id: str | None) -> None:
        self.tree, self.width, self.max_text = tree, width, max_text
        self.children = children_of(tree.thoughts.values())
        path = solution_path(tree, answer_id)
        self.path_name = "solution" if path and path[-1].status is Status.FINAL else "best path"
        self.bold = {thought.thought_id for thought in path}
        self.bold |= {ROOT_ID} if self.bold else set()
        rows = tidy_rows(self.children)
        extent = max(rows.values())
        self.row = min(ROW, max(MIN_ROW, MAX_HEIGHT / (extent + 1)))
        self.places = self._place(rows, MARGIN + BOX / 2)
        # Thoughts of the path that are dots have no room for words: they are listed below the picture.
        self.listed = path if any(not self.places[thought.thought_id].boxed for thought in path) else []
        self.legend_y = 2 * MARGIN + extent * self.row + BOX + LEGEND - 8
        self.height = self.legend_y + MARGIN + (len(self.listed) * (LINE + 2) + 6 if self.listed else 0)

    def _place(self, rows: dict[str, float], top: float) -> dict[str, _Place]:
        levels = self.tree.levels()
        column = (self.width - 2 * MARGIN + GAP) / len(levels)
        places: dict[str, _Place] = {}
        for depth, level in enumerate(levels):
            left = MARGIN + depth * column
            ys = [top + rows[thought.thought_id] * self.row for thought in level]
            # Boxes where they do not touch; a crowded level has dots.
            boxed = column - GAP >= 44 and all(b - a >= BOX + 2 for a, b in pairwise(ys))
            for thought, y in zip(level, ys, strict=True):
                centre = left + (column - GAP) / 2
                ends = (left, left + column - GAP) if boxed else (centre - DOT, centre + DOT)
                places[thought.thought_id] = _Place(*ends, y, boxed)
        return places

    def whole(self) -> str:
        """The whole file."""
        order = sorted(self.tree, key=lambda thought: thought.thought_id in self.bold)  # the path above the others
        parts = [self._edge(thought) for thought in order if thought.parent_id is not None]
        parts += [self._thought(thought) for thought in order]
        parts += [self._legend(), *self._solution()]
        title = one_line(self.tree.task) or "Tree of thoughts"
        about = one_line(self.tree.problem, 300)
        return document(self.width, self.height, parts, title=title, description=about, font_size=FONT)

    def _edge(self, thought: Thought) -> str:
        start, end = self.places[thought.parent_id or ROOT_ID], self.places[thought.thought_id]
        bend = (end.left - start.right) / 2
        bold = thought.thought_id in self.bold
        crowded = not end.boxed
        colour = INK if bold else LIGHT if thought.status in LEFT else MIST
        curve = ("M", start.right, start.y, "C", start.right + bend, start.y, end.left - bend, end.y, end.left, end.y)
        return path(
            *curve, stroke=colour, stroke_width=2.4 if bold else 0.8 if crowded else 1,
            stroke_dasharray=None if crowded else DASHES.get(thought.status),
        )  # fmt: skip

    def _thought(self, thought: Thought) -> str:
        place, is_root = self.places[thought.thought_id], thought.thought_id == ROOT_ID
        words = one_line(self.tree.problem) if is_root else one_line(thought.short)
        value = show_value(thought.value)
        says = f"{thought.thought_id} ({thought.status.value}{f', value {value}' if value else ''}): {words}"
        parts = [tooltip(says)]
        if place.boxed:
            parts += self._box(thought, place, words or one_line(thought.note), value)
        else:
            parts.append(_dot(thought, place, thought.thought_id in self.bold))
            if thought in self.listed:
                number = str(self.listed.index(thought) + 1)
                parts.append(
                    text(
                        (place.left + place.right) / 2, place.y - 7, number, text_anchor="middle", font_weight="bold",
                        stroke=PAPER, stroke_width=3, paint_order="stroke",
                    )
                )  # fmt: skip
        kind = "root root" if is_root else f"thought {thought.status.value}"
        return group(parts, class_=kind, data_id=thought.thought_id)

    def _box(self, thought: Thought, place: _Place, words: str, value: str) -> list[str]:
        bold, is_root = thought.thought_id in self.bold, thought.thought_id == ROOT_ID
        is_grey = thought.status in LEFT and not is_root and not bold
        width, half = place.right - place.left, BOX / 2
        parts = [
            rect(
                place.left, place.y - half, width, BOX, rx=4, fill=SHADE if is_root else PAPER,
                stroke=MIST if is_grey else INK, stroke_width=2.2 if bold else 1,
                stroke_dasharray=None if is_root else DASHES.get(thought.status),
            )
        ]  # fmt: skip
        if thought.status is Status.FINAL:  # a second frame
            frame = (place.left + 2.6, place.y - half + 2.6, width - 5.2, BOX - 5.2)
            parts.append(rect(*frame, rx=2, fill="none", stroke=INK, stroke_width=0.7))
        size = FONT - 1 if width < 90 else FONT
        chars = max(3, int((width - 12) / (size * CHAR)))
        room = 0 if not value else len(value) + 1  # the value stands at the end of the second line
        lines = _wrap(one_line(words, self.max_text or None) if self.max_text else "", chars, max(0, chars - room))
        colour = GREY if is_grey else INK
        for y, line in zip((place.y - 2.6, place.y + 9.4), lines, strict=False):
            weight = "bold" if bold else None
            parts.append(text(place.left + 6, y, line, fill=colour, font_size=size, font_weight=weight))
        if value:
            end = {"text_anchor": "end", "font_weight": "bold"}
            parts.append(text(place.right - 6, place.y + 9.4, value, fill=colour, font_size=size, **end))
        return parts

    def _legend(self) -> str:
        """What the signs in this picture mean."""
        used = [status for status in Status if any(t.status is status for t in self.tree if t.thought_id != ROOT_ID)]
        x, y = MARGIN, self.legend_y
        parts = []
        if self.bold:
            parts.append(path("M", x, y - 3, "h", 22, stroke=INK, stroke_width=2.4))
            parts.append(text(x + 27, y, self.path_name))
            x += 27 + len(self.path_name) * FONT * CHAR + 18
        boxes = any(place.boxed for name, place in self.places.items() if name != ROOT_ID)
        dots = any(not place.boxed for place in self.places.values())
        for status in used:
            if boxes:
                colour, dashes = MIST if status in LEFT else INK, DASHES.get(status)
                parts.append(rect(x, y - 9, 16, 11, rx=2, fill="none", stroke=colour, stroke_dasharray=dashes))
                if status is Status.FINAL:
                    parts.append(rect(x + 2, y - 7, 12, 7, fill="none", stroke=INK, stroke_width=0.7))
                x += 21
            if dots:
                parts.append(_dot(Thought("", None, status=status), _Place(x, x + 2 * DOT, y - 3.5, False), False))
                x += 2 * DOT + 5
            parts.append(text(x, y, MEANING[status]))
            x += len(MEANING[status]) * FONT * CHAR + 18
        return group(parts, class_="legend")

    def _solution(self) -> list[str]:
        """The thoughts of the path, each on a line of its own."""
        parts = []
        chars = int((self.width - 2 * MARGIN) / (FONT * CHAR))
        for number, thought in enumerate(self.listed, start=1):
            value = show_value(thought.value)
            end = f"  ({value})" if value else ""
            says = f"{number}. {one_line(thought.short or thought.note, max(10, chars - len(end) - 5))}{end}"
            parts.append(text(MARGIN, self.legend_y + 8 + number * (LINE + 2), says, class_="step"))
        return parts


def _dot(thought: Thought, place: _Place, bold: bool) -> str:
    """A small mark; its shape shows the status."""
    x, y, r = (place.left + place.right) / 2, place.y, DOT + (1 if bold else 0)
    grey = MIST if thought.status in LEFT and not bold else INK
    match thought.status:
        case Status.FAILED:
            d = r * math.sqrt(0.5)
            cross = ("M", x - d, y - d, "l", 2 * d, 2 * d, "m", 0, -2 * d, "l", -2 * d, 2 * d)
            return path(*cross, stroke=grey, stroke_width=1.4)
        case Status.FINAL:
            return rect(x - r, y - r, 2 * r, 2 * r, fill=INK if bold else PAPER, stroke=INK, stroke_width=1.2)
        case _:
            fill = INK if thought.status is Status.CHOSEN else PAPER
            dashes = "1.5 1.2" if thought.status in DASHES else None
            return circle(x, y, r, fill=fill, stroke=grey, stroke_width=1.1, stroke_dasharray=dashes)


def _wrap(text: str, first: int, second: int) -> list[str]:
    """At most two lines of these lengths. A line is broken between words, unless that would waste half of it."""
    if len(text) <= first:
        return [text]
    cut = text.rfind(" ", 0, first + 1)
    cut = cut if cut >= first // 2 else first
    rest = one_line(text[cut:])
    if second < 4:
        return [one_line(text, first)]
    return [text[:cut].rstrip(), one_line(rest, second)]
