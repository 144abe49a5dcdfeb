"""Conversations with chat models, and what they mean when they answer loosely."""

from __future__ import annotations

import re
from collections.abc import Mapping

from seedmp.search.task import Chat

_LIST_MARK = re.compile(r"^(?:[-•]|\d+[.)])\s+")
_DECORATION = "*_`\"'“” "


def conversation(*contents: str, answer_prefix: str = "") -> Chat:
    """Words of the user and of the model in turn, the user's first and last.

    There is no system message: many chat templates refuse it.
    """
    assert len(contents) % 2 == 1, "the user speaks first and last"
    roles = ("user", "assistant")
    return Chat(tuple((roles[idx % 2], content) for idx, content in enumerate(contents)), answer_prefix)


def plain_lines(text: str, *labels: str) -> list[str]:
    """Lines with content, without the marks and labels that chat models put around them.

    Args:
        text: an answer.
        labels: words that may stand before a colon at the beginning of a line, ``Answer`` say, in any case.
    """
    label = re.compile(rf"^(?:{'|'.join(map(re.escape, labels))})\s*\d*\s*:\s*", re.IGNORECASE) if labels else None
    lines = []
    for line in text.replace("**", "").split("\n"):
        line = _LIST_MARK.sub("", line.strip(_DECORATION))
        line = label.sub("", line) if label else line
        line = line.rstrip(".").strip(_DECORATION)
        if line:
            lines.append(line)
    return lines


def read_label(text: str, labels: Mapping[str, float], *names: str) -> float | None:
    """The number of the label that the first line begins with, as a whole word; None when there is none.

    Args:
        text: an answer, ``**Evaluation:** Good.`` say.
        labels: numbers by label.
        names: what may stand before a colon in front of the label.
    """
    for line in plain_lines(text, "answer", *names)[:1]:
        for label, value in labels.items():
            if re.match(rf"{re.escape(label.strip())}(?!\w|[.,]\d)", line, re.IGNORECASE):
                return value
    return None


def read_choice(text: str, num_choices: int) -> int | None:
    """Index of the one number from 1 to ``num_choices`` in the first line; None when there is none or several."""
    for line in plain_lines(text)[:1]:
        numbers = {number.lstrip("0") for number in re.findall(r"[0-9]+", line)}
        allowed = [str(number) for number in range(1, num_choices + 1)]
        if len(numbers) == 1 and numbers <= set(allowed):
            return allowed.index(numbers.pop())
    return None
