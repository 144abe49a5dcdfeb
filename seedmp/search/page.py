"""A search as one HTML file: the tree to fold, values and timings to read, the search to replay.

The file needs no network: ``page.html`` holds its style and script, and the tree is put in as JSON.
The script shows texts of models through ``textContent`` alone, so they are never markup.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from seedmp.search.showing import show_value, solution_path
from seedmp.search.thought_tree import Status, ThoughtTree

TEMPLATE = "page.html"
TITLE_MARK, DATA_MARK = "@@TITLE@@", "@@DATA@@"


def save_html(
    tree: ThoughtTree,
    path: str | Path,
    *,
    title: str | None = None,
    summary: Mapping[str, str] | None = None,
    answer_id: str | None = None,
) -> None:
    """Write the page.

    Args:
        tree: finished or not.
        path: of the file; replaced when it exists.
        title: of the page; None takes the task's name.
        summary: outcome in words, shown at the top: ``{"solved": "yes", "tokens/s": "41"}``.
        answer_id: the thought that the search returned, whose path is marked; None takes the final thought of
            highest value.

    Raises:
        ConfigError: ``answer_id`` names no thought.
        OSError: the file cannot be written.
    """
    page = to_html(tree, title=title, summary=summary, answer_id=answer_id)
    Path(path).write_bytes(page.encode("utf-8", "replace"))


def to_html(
    tree: ThoughtTree,
    *,
    title: str | None = None,
    summary: Mapping[str, str] | None = None,
    answer_id: str | None = None,
) -> str:
    """The page as text; see ``save_html``."""
    title = title or tree.task or "Tree of thoughts"
    template = files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    head, _, rest = template.partition(TITLE_MARK)
    body, _, tail = rest.partition(DATA_MARK)
    return "".join((head, html.escape(title), body, _script_json(_data(tree, title, summary or {}, answer_id)), tail))


def _data(tree: ThoughtTree, title: str, summary: Mapping[str, str], answer_id: str | None) -> dict[str, Any]:
    """What the page's script reads; ``parent`` is an index into ``thoughts``, parents come first."""
    numbers = {thought.thought_id: number for number, thought in enumerate(tree)}
    rows = []
    for thought in tree:
        value = thought.value
        rows.append(
            {
                "id": thought.thought_id,
                "parent": -1 if thought.parent_id is None else numbers[thought.parent_id],
                "text": thought.text,
                "label": thought.label,
                "state": thought.state,
                "value": value if value is not None and math.isfinite(value) else None,
                "shown": show_value(value),
                "status": thought.status.value,
                "note": thought.note,
                "tokens": thought.num_tokens,
                "valueTokens": thought.num_value_tokens,
                "times": [thought.started_s, thought.finished_s, thought.valued_s],
            }
        )
    path = solution_path(tree, answer_id)
    return {
        "title": title,
        "task": tree.task,
        "problem": tree.problem,
        "search": tree.search,
        "summary": [[str(name), str(text)] for name, text in summary.items()],
        "solution": [numbers[thought.thought_id] for thought in path],
        "solved": bool(path) and path[-1].status is Status.FINAL,
        "thoughts": rows,
    }


def _script_json(data: Any) -> str:
    """JSON that may stand inside a script element: no ``</script>``, no ``<!--``, nothing outside ASCII."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
