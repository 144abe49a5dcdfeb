"""Pictures of growmaps: text for the terminal, SVG for a page."""

from __future__ import annotations

from seedmp.reporting.drawing import BLUE, GREY, PAPER, SILVER, circle, document, path, text
from seedmp.token_tree.growmap import Growmap

_STEP_X, _STEP_Y, _MARGIN = 22, 46, 40
_MAX_LABELLED = 130  # nodes; beyond, their numbers are too small to read


def draw_text(growmap: Growmap, max_lines: int = 48) -> str:
    """The level widths and the tree, one line for each chain, at most ``max_lines`` of them."""
    head = [
        f"{growmap.size} nodes with the root, {len(growmap.levels)} levels, "
        f"{growmap.num_drafted} draft tokens with children",
        f"nodes by level: {' '.join(map(str, growmap.widths))}",
        f"most children by level: {' '.join(str(max(level)) for level in growmap.branches)}",
    ]
    lines: list[str] = []
    stack = [(0, "", "", "")]  # node, what precedes it, what precedes its children, its connector
    while stack:
        node_id, before, below, connector = stack.pop()
        chain = [node_id]
        while growmap.num_children[chain[-1]] == 1:
            chain += growmap.children[chain[-1]]
        lines.append(before + connector + "─".join(map(str, chain)))
        children = growmap.children[chain[-1]]
        for child in reversed(children):
            last = child == children[-1]
            stack.append((child, below, below + ("   " if last else "│  "), "└─ " if last else "├─ "))
    if len(lines) > max_lines:
        lines[max_lines - 1 :] = [f"... {len(lines) - max_lines + 1} more lines"]
    return "\n".join([*head, *lines]) + "\n"


def draw_svg(growmap: Growmap) -> str:
    """The tree from the root down: first children straight below their parents, leaves evenly apart."""
    column = _columns(growmap)
    labelled = growmap.size <= _MAX_LABELLED
    radius = 9.0 if labelled else 4.0
    width = round(2 * _MARGIN + _STEP_X * (max(column) + 1) + 40)
    height = 2 * _MARGIN + _STEP_Y * growmap.depth

    def at(node_id: int) -> tuple[float, float]:
        return _MARGIN + 40 + _STEP_X * column[node_id], _MARGIN + _STEP_Y * growmap.depths[node_id]

    parts = [
        text(8, _MARGIN + _STEP_Y * depth, str(len(level)), fill=GREY, dominant_baseline="central")
        for depth, level in enumerate(growmap.levels)
    ]
    for node_id, children in enumerate(growmap.children):
        x, y = at(node_id)
        for child in children:
            to_x, to_y = at(child)
            middle = (y + to_y) / 2
            curve = ("M", x, y, "C", x, middle, to_x, middle, to_x, to_y)
            parts.append(path(*curve, stroke=SILVER, stroke_width=1.2))
    for node_id in range(growmap.size):
        x, y = at(node_id)
        is_root = node_id == 0
        parts.append(circle(x, y, radius, fill=BLUE if is_root else PAPER, stroke=BLUE, stroke_width=1.4))
        if labelled:
            colour = {"fill": PAPER} if is_root else {}
            parts.append(text(x, y, str(node_id), text_anchor="middle", dominant_baseline="central", **colour))
    title = f"growmap: {growmap.size} nodes, {len(growmap.levels)} levels"
    return document(width, height, parts, title=title, font_size=10)


def _columns(growmap: Growmap) -> list[int]:
    """[size] column of each node: subtrees side by side, each as wide as it has leaves."""
    leaves = [1] * growmap.size
    for node_id in reversed(range(growmap.size)):
        leaves[node_id] = sum(leaves[child] for child in growmap.children[node_id]) or 1
    column = [0] * growmap.size
    for node_id, children in enumerate(growmap.children):
        start = column[node_id]
        for child in children:
            column[child] = start
            start += leaves[child]
    return column
