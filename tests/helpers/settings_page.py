"""Writes docs/settings.md from the docstrings of the settings: ``python -m tests.helpers.settings_page``.

The page holds ``<!-- settings: NAME -->`` and ``<!-- end -->``; the table of a dataclass is written between them, or
with the name ``methods`` one table of the settings of all methods.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from pathlib import Path
from typing import Any

from seedmp.config import EngineConfig
from seedmp.methods.registry import METHODS
from seedmp.sampling import SamplingParams

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
SETTINGS: dict[str, type[Any]] = {"EngineConfig": EngineConfig, "SamplingParams": SamplingParams}
_MARKED = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str) -> str:
    """The page with its tables made anew."""
    return _MARKED.sub(lambda match: f"{match[1]}{_written(match[2])}{match[3]}", page)


def _written(name: str) -> str:
    return _methods_table() if name == "methods" else _table(SETTINGS[name])


def _methods_table() -> str:
    """A row for each meaning of each setting, with the methods that it is for."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for name in METHODS.names():
        cls = METHODS.load(name)
        meanings = described_with_bases(cls)
        for field in dataclasses.fields(cls):
            if field.name != "rule":
                rows.setdefault((field.name, _default(field), meanings[field.name]), []).append(f"`{name}`")
    order = list(dict.fromkeys(setting for setting, _, _ in rows))
    lines = ["| setting | methods | default | |\n| --- | --- | --- | --- |\n"]
    for (setting, default, meaning), users in sorted(rows.items(), key=lambda row: order.index(row[0][0])):
        lines.append(f"| `{setting}` | {', '.join(users)} | {default} | {_plain(meaning)} |\n")
    return "".join(lines)


def described_with_bases(cls: type[Any]) -> dict[str, str]:
    """As ``described``, with the settings that a class inherits."""
    result: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        result |= described(base)
    return result


def _table(settings: type[Any]) -> str:
    meanings = described(settings)
    lines = ["| setting | default | |\n| --- | --- | --- |\n"]
    for field in dataclasses.fields(settings):
        lines.append(f"| `{field.name}` | {_default(field)} | {_plain(meanings[field.name])} |\n")
    return "".join(lines)


def _plain(meaning: str) -> str:
    return meaning.replace("``", "`").replace("|", "\\|")


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
