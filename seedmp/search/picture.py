"""A search as a picture for papers: levels from left to right, one mark a thought, as SVG.

Boxes with text where a level has room for them, dots where it is crowded. Told apart without colour:
the solution's path is bold, what was left is grey, what failed is dashed, what was merged dotted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from seedmp.search.showing import children_of, one_line, show_value, solution_path
from seedmp.search.thought_tree import ROOT_ID, Status, Thought, ThoughtTree

MARGIN, LEGEND = 12.0, 26.0
ROW, MIN_ROW = 40.0, 9.0  # height of a thought, and when there are many
MAX_HEIGHT = 1200.0  # rows shrink down to MIN_ROW to stay below
BOX, LINE, FONT = 34.0, 12.0, 9.5
CHAR = 0.55  # mean width of a character ÷ size of the font
GAP = 26.0  # between the columns, for the edges
DOT = 3.2
INK, GREY, LIGHT = "#111111", "#858b95", "#c3c8d0"
GREY_TEXT = "#666c77"  # contrast 5 to 1 on white
FONTS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
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
    """The picture as XML without external assets; one group of class ``thought`` a thought, the root's beside them.

    Args:
        tree: any.
        width: in CSS pixels; the height follows from the tree.
        max_text: characters of a thought shown at most; fewer fit when the tree is deep.
        answer_id: the thought whose path is bold; None takes the final thought of highest value.

    Raises:
        ConfigError: ``answer_id`` names no thought.
    """
    drawing = _Drawing(tree, float(max(width, 200)), max(max_text, 0), answer_id)
    return drawing.text()


# --- where the thoughts lie ----------------------------------------------------------------------


def tidy_rows(children: dict[str, list[Thought]]) -> dict[str, float]:
    """Rows of the thoughts, 0 at the top, at least 1 apart within a level; a parent is centred on its children.

    Subtrees are pushed together until a level touches (Reingold and Tilford 1981), level by level
    instead of along threads: O(thoughts x depth).
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
        # Thoughts of the path that are dots are told below the picture.
        self.told = path if any(not self.places[thought.thought_id].boxed for thought in path) else []
        self.legend_y = 2 * MARGIN + extent * self.row + BOX + LEGEND - 8
        self.height = self.legend_y + MARGIN + (len(self.told) * (LINE + 2) + 6 if self.told else 0)

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

    def text(self) -> str:
        """The whole file."""
        problem = one_line(self.tree.problem, 300)
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width:g}" height="{self.height:.0f}" '
            f'viewBox="0 0 {self.width:g} {self.height:.0f}" font-family="{FONTS}" font-size="{FONT}" role="img">',
            f"<title>{escape(one_line(self.tree.task) or 'Tree of thoughts')}</title>",
            f"<desc>{escape(problem)}</desc>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
        ]
        order = sorted(self.tree, key=lambda thought: thought.thought_id in self.bold)  # the path above the others
        parts += [self._edge(thought) for thought in order if thought.parent_id is not None]
        parts += [self._thought(thought) for thought in order]
        parts += [self._legend(), *self._solution(), "</svg>\n"]
        return "\n".join(parts)

    def _edge(self, thought: Thought) -> str:
        start, end = self.places[thought.parent_id or ROOT_ID], self.places[thought.thought_id]
        bend = (end.left - start.right) / 2
        bold = thought.thought_id in self.bold
        crowded = not end.boxed
        colour = INK if bold else LIGHT if thought.status in LEFT else GREY
        stroke = 2.4 if bold else 0.8 if crowded else 1
        dashes = f' stroke-dasharray="{DASHES[thought.status]}"' if thought.status in DASHES and not crowded else ""
        return (
            f'<path d="M{start.right:.1f} {start.y:.1f}C{start.right + bend:.1f} {start.y:.1f} '
            f'{end.left - bend:.1f} {end.y:.1f} {end.left:.1f} {end.y:.1f}" '
            f'fill="none" stroke="{colour}" stroke-width="{stroke}"{dashes}/>'
        )

    def _thought(self, thought: Thought) -> str:
        place, is_root = self.places[thought.thought_id], thought.thought_id == ROOT_ID
        text = one_line(self.tree.problem) if is_root else one_line(thought.short)
        value = show_value(thought.value)
        says = f"{thought.thought_id} ({thought.status.value}{f', value {value}' if value else ''}): {text}"
        status = "root" if is_root else thought.status.value
        kind = "root" if is_root else "thought"
        parts = [f'<g class="{kind} {status}" data-id={quoteattr(thought.thought_id)}><title>{escape(says)}</title>']
        if place.boxed:
            parts += self._box(thought, place, text or one_line(thought.note), value)
        else:
            parts += _dot(thought, place, thought.thought_id in self.bold)
            if thought in self.told:
                x, y = (place.left + place.right) / 2, place.y
                parts.append(
                    f'<text x="{x:.1f}" y="{y - 7:.1f}" text-anchor="middle" font-weight="bold" fill="{INK}" '
                    f'stroke="#ffffff" stroke-width="3" paint-order="stroke">{self.told.index(thought) + 1}</text>'
                )
        return "".join([*parts, "</g>"])

    def _box(self, thought: Thought, place: _Place, text: str, value: str) -> list[str]:
        bold, is_root = thought.thought_id in self.bold, thought.thought_id == ROOT_ID
        left_out = thought.status in LEFT and not is_root
        width = place.right - place.left
        stroke = 2.2 if bold else 1
        dashes = "" if is_root else DASHES.get(thought.status, "")
        half = BOX / 2
        parts = [
            f'<rect x="{place.left:.1f}" y="{place.y - half:.1f}" width="{width:.1f}" height="{BOX:g}" rx="4" '
            f'fill="{"#f1f3f6" if is_root else "#ffffff"}" stroke="{GREY if left_out and not bold else INK}" '
            f'stroke-width="{stroke}"' + (f' stroke-dasharray="{dashes}"' if dashes else "") + "/>"
        ]
        if thought.status is Status.FINAL:  # a second frame
            parts.append(
                f'<rect x="{place.left + 2.6:.1f}" y="{place.y - half + 2.6:.1f}" width="{width - 5.2:.1f}" '
                f'height="{BOX - 5.2:.1f}" rx="2" fill="none" stroke="{INK}" stroke-width="0.7"/>'
            )
        size = FONT - 1 if width < 90 else FONT
        chars = max(3, int((width - 12) / (size * CHAR)))
        room = 0 if not value else len(value) + 1  # the value stands at the end of the second line
        lines = _wrap(one_line(text, self.max_text or None) if self.max_text else "", chars, max(0, chars - room))
        colour = f' fill="{GREY_TEXT if left_out and not bold else INK}" font-size="{size}"'
        weight = ' font-weight="bold"' if bold else ""
        for number, line in enumerate(lines):
            y = place.y + (-2.6 if number == 0 else 9.4)
            parts.append(f'<text x="{place.left + 6:.1f}" y="{y:.1f}"{colour}{weight}>{escape(line)}</text>')
        if value:
            parts.append(
                f'<text x="{place.right - 6:.1f}" y="{place.y + 9.4:.1f}" text-anchor="end"{colour} '
                f'font-weight="bold">{escape(value)}</text>'
            )
        return parts

    def _legend(self) -> str:
        """Signs that are in the picture, in words."""
        used = [status for status in Status if any(t.status is status for t in self.tree if t.thought_id != ROOT_ID)]
        y = round(self.legend_y, 1)
        x = MARGIN
        parts = [f'<g class="legend" fill="{INK}" font-size="{FONT}">']
        if self.bold:
            parts.append(f'<path d="M{x} {y - 3}h22" stroke="{INK}" stroke-width="2.4"/>')
            parts.append(f'<text x="{x + 27}" y="{y}">{self.path_name}</text>')
            x += 27 + len(self.path_name) * FONT * CHAR + 18
        boxes = any(place.boxed for name, place in self.places.items() if name != ROOT_ID)
        dots = any(not place.boxed for place in self.places.values())
        for status in used:
            if boxes:
                grey = GREY if status in LEFT else INK
                dashes = f' stroke-dasharray="{DASHES[status]}"' if status in DASHES else ""
                parts.append(
                    f'<rect x="{x:.1f}" y="{y - 9}" width="16" height="11" rx="2" fill="none" stroke="{grey}"{dashes}/>'
                )
                if status is Status.FINAL:
                    parts.append(
                        f'<rect x="{x + 2:.1f}" y="{y - 7}" width="12" height="7" fill="none" stroke="{INK}" '
                        'stroke-width="0.7"/>'
                    )
                x += 21
            if dots:
                parts += _dot(Thought("", None, status=status), _Place(x, x + 2 * DOT, y - 3.5, False), False)
                x += 2 * DOT + 5
            word = MEANING[status]
            parts.append(f'<text x="{x:.1f}" y="{y}">{word}</text>')
            x += len(word) * FONT * CHAR + 18
        return "".join([*parts, "</g>"])

    def _solution(self) -> list[str]:
        """The thoughts of the path, one a line."""
        parts = []
        chars = int((self.width - 2 * MARGIN) / (FONT * CHAR))
        for number, thought in enumerate(self.told, start=1):
            value = show_value(thought.value)
            end = f"  ({value})" if value else ""
            says = f"{number}. {one_line(thought.short or thought.note, max(10, chars - len(end) - 5))}{end}"
            y = self.legend_y + 8 + number * (LINE + 2)
            parts.append(f'<text class="step" x="{MARGIN:g}" y="{y:.1f}" fill="{INK}">{escape(says)}</text>')
        return parts


def _dot(thought: Thought, place: _Place, bold: bool) -> list[str]:
    """A small mark; its shape tells the status."""
    x, y, r = (place.left + place.right) / 2, place.y, DOT + (1 if bold else 0)
    grey = GREY if thought.status in LEFT and not bold else INK
    match thought.status:
        case Status.FAILED:
            d = r * math.sqrt(0.5)
            return [
                f'<path d="M{x - d:.1f} {y - d:.1f}l{2 * d:.1f} {2 * d:.1f}m0 {-2 * d:.1f}l{-2 * d:.1f} {2 * d:.1f}" '
                f'stroke="{grey}" stroke-width="1.4" fill="none"/>'
            ]
        case Status.FINAL:
            return [
                f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}" '
                f'fill="{INK if bold else "#ffffff"}" stroke="{INK}" stroke-width="1.2"/>'
            ]
        case _:
            fill = INK if thought.status is Status.CHOSEN else "#ffffff"
            dashes = ' stroke-dasharray="1.5 1.2"' if thought.status in DASHES else ""
            return [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{fill}" stroke="{grey}" '
                f'stroke-width="1.1"{dashes}/>'
            ]


def _wrap(text: str, first: int, second: int) -> list[str]:
    """At most two lines of these lengths, broken between words where that does not waste half a line."""
    if len(text) <= first:
        return [text]
    cut = text.rfind(" ", 0, first + 1)
    cut = cut if cut >= first // 2 else first
    rest = one_line(text[cut:])
    if second < 4:
        return [one_line(text, first)]
    return [text[:cut].rstrip(), one_line(rest, second)]
