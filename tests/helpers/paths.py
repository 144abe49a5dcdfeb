"""Paths of thoughts without a search: texts go through the task's own parser."""

from __future__ import annotations

from typing import Any

from seedmp.search.task import Task
from seedmp.search.thought_tree import Thought


def walk(task: Task[Any], problem: Any, *texts: str) -> list[Thought]:
    """The path that these answers make; each must be in the task's format."""
    path: list[Thought] = []
    for depth, text in enumerate(texts):
        parsed = task.read_thought(problem, path, text)
        assert parsed is not None, text
        parent_id = path[-1].thought_id if path else "root"
        thought = Thought(".".join("0" * (depth + 1)), parent_id, text=parsed.text, state=parsed.state or "")
        thought.is_final = parsed.is_final
        path.append(thought)
    return path
