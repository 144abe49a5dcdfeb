"""What the page, the picture and the terminal share: values, one-line texts, the solution's path."""

from __future__ import annotations

import math
from collections.abc import Iterable

from seedmp.errors import ConfigError
from seedmp.search.thought_tree import Status, Thought, ThoughtTree


def show_value(value: float | None) -> str:
    """A value in at most eight characters; empty when there is none."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        text = f"{value:.1e}"
    elif size >= 1000:
        text = f"{value:.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def one_line(text: str, max_len: int | None = None) -> str:
    """Text of a model without line ends and control characters, which a terminal would obey and XML would refuse.

    Args:
        text: any characters.
        max_len: longer text is cut and ends with an ellipsis.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    if max_len is not None and len(line) > max_len:
        line = line[: max(0, max_len - 1)].rstrip() + "…"
    return line


def children_of(thoughts: Iterable[Thought]) -> dict[str, list[Thought]]:
    """Children by parent's id, in the order asked for: one pass for all; ``ThoughtTree.children`` needs one each."""
    children: dict[str, list[Thought]] = {}
    for thought in sorted(thoughts, key=lambda t: (t.depth, t.order)):
        if thought.parent_id is not None:
            children.setdefault(thought.parent_id, []).append(thought)
    return children


def solution_path(tree: ThoughtTree, answer_id: str | None = None) -> list[Thought]:
    """The path to show as the outcome, from the root's child down; empty when nothing claims to be a solution.

    Args:
        tree: any.
        answer_id: the thought that the search returned; None takes the final thought of highest value,
            the first of equals.

    Raises:
        ConfigError: the tree has no such thought.
    """
    if answer_id is not None:
        if answer_id not in tree.thoughts:
            raise ConfigError(f"answer_id: the tree has no thought {answer_id!r}")
        return tree.path(tree.thoughts[answer_id])
    finals = [thought for thought in tree if thought.status is Status.FINAL]
    return tree.path(max(finals, key=_worth)) if finals else []


def _worth(thought: Thought) -> float:
    value = thought.value
    return -math.inf if value is None or math.isnan(value) else value
