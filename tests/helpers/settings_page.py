"""Writes docs/settings.md from the docstrings of the settings: ``python -m tests.helpers.settings_page``.

The page holds ``<!-- settings: NAME -->`` and ``<!-- end -->``; the table of a dataclass is written between them.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from pathlib import Path
from typing import Any

from seedmp.config import EngineConfig
from seedmp.sampling import SamplingParams

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
SETTINGS: dict[str, type[Any]] = {"EngineConfig": EngineConfig, "SamplingParams": SamplingParams}
_MARKED = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str) -> str:
    """The page with its tables made anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{_table(SETTINGS[match[2]])}{match[3]}", page)


def _table(settings: type[Any]) -> str:
    meanings = described(settings)
    lines = ["| setting | default | |\n| --- | --- | --- |\n"]
    for field in dataclasses.fields(settings):
        meaning = meanings[field.name].replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{field.name}` | {_default(field)} | {meaning} |\n")
    return "".join(lines)


def described(settings: type[Any]) -> dict[str, str]:
    """What the ``Args:`` of a docstring say of each setting."""
    _, _, rest = inspect.cleandoc(settings.__doc__ or "").partition("Args:\n")
    section = rest.partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "the bundled one" if field.name in ("target", "draft") else "–"
    if isinstance(value, enum.Enum):
        value = value.value
    return f"`{value}`" if value not in ("", ()) else "none"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
