"""One table, shown three ways: in the terminal, in the HTML report, and in Markdown pages.

A Markdown page holds ``<!-- table: FILE.json KEY -->`` and ``<!-- end -->``; ``fill`` writes the table between
them, so that no figure of a page is typed. FILE is relative to ``benchmarks/``, KEY names one of the report's tables.
``<!-- compare: FIRST.json SECOND.json ... -->`` takes any number of pairs and holds a table of how alike two runs are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedmp.benchmarks.summary import SAME, Likeness, compare, num_apart
from seedmp.errors import ConfigError

_MARKED = re.compile(r"(<!-- table: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_COMPARED = re.compile(r"(<!-- compare: ([^\n]+) -->\n).*?(<!-- end -->)", re.DOTALL)
DASH = "–"


@dataclass(frozen=True)
class Column:
    """A column: its head, and how a row's cell is written (a key and a format, or a function)."""

    head: str
    key: str | Callable[[Mapping[str, Any]], Any]
    form: str = ""

    def text(self, row: Mapping[str, Any]) -> str:
        """The cell; a dash where the row has no such figure."""
        value = self.key(row) if callable(self.key) else row.get(self.key)
        return DASH if value is None else format(value, self.form)


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column is on the left, the others on the right."""

    key: str
    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As in a Markdown page."""
        lines = [self.heads, ("---",) * len(self.heads), *self.rows]
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def table(key: str, title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column]) -> Table:
    """A table of some rows of a report; a row that did not run says why in its last cell."""
    lines = []
    for row in rows:
        cells = [column.text(row) for column in columns]
        if "not_run" in row:
            cells[-1] = f"not run: {row['not_run']}"
        lines.append(tuple(cells))
    return Table(key, title, tuple(column.head for column in columns), tuple(lines))


def rate(row: Mapping[str, Any]) -> str | None:
    """tokens/s with its range."""
    if "tokens_per_s" not in row:
        return None
    return f"{row['tokens_per_s']:.1f} ({row['tokens_per_s_min']:.1f}..{row['tokens_per_s_max']:.1f})"


def speedup(row: Mapping[str, Any]) -> str | None:
    """Speed-up over the base row, and how far chance may move this median."""
    if "speedup" not in row:
        return None
    off = row.get("speedup_notch", 0.0)
    return f"{row['speedup']:.2f} ±{off:.2f}" if off else f"{row['speedup']:.2f}"


def same_text(row: Mapping[str, Any]) -> str | None:
    """Whether the greedy texts equal the base row's, or how far they do."""
    if "text_equals_base" not in row:
        return None
    return "yes" if row["text_equals_base"] else f"{100 * row['agreement']:.0f} %"


NAME = Column("row", lambda row: f"`{row['name']}`")
RATE = Column("tokens/s (range)", rate)
SPEEDUP = Column("speed-up", speedup)
ACCEPTANCE = Column("acceptance", "acceptance_rate", ".2f")
ACCEPTED_LEN = Column("accepted length", "mean_accepted_len", ".2f")
SAME_TEXT = Column("same greedy text", same_text)
USUAL = (NAME, RATE, SPEEDUP, ACCEPTANCE, ACCEPTED_LEN, SAME_TEXT)


def by_cell(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows of each cell, in order."""
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row.get("cell", ""), []).append(row)
    return cells


# --- Markdown pages ------------------------------------------------------------------------------


def fill(page: str, folder: Path, tables_of: Callable[[Mapping[str, Any]], Sequence[Table]]) -> str:
    """A page with all its marked tables made anew.

    Args:
        folder: that the files of the markers are relative to.
        tables_of: the tables of a report.

    Raises:
        ConfigError: a marker names no file, or a table that the report does not have.
    """

    def replaced(match: re.Match[str]) -> str:
        opening, file, key, end = match.groups()
        known = {made.key: made for made in tables_of(read_report(folder / file))}
        if key not in known:
            raise ConfigError(f"{file} has no table {key!r}; it has {', '.join(known)}")
        return f"{opening}{known[key].markdown()}{end}"

    def compared(match: re.Match[str]) -> str:
        opening, files, end = match.groups()
        paths = [folder / file for file in files.split()]
        if len(paths) % 2:
            raise ConfigError(f"{files}: a comparison needs two reports a line, {len(paths)} given")
        return f"{opening}{alike(list(zip(paths[::2], paths[1::2], strict=True))).markdown()}{end}"

    return _COMPARED.sub(compared, _MARKED.sub(replaced, page))


def alike(pairs: Sequence[tuple[Path, Path]]) -> Table:
    """For each pair of runs: how many speed-ups are the same, and how many differ by more than chance explains."""
    within = f"speed-ups within {100 * SAME:.0f} %"
    heads = ("first run", "second run", within, "further apart than their ±")
    lines = []
    for paths in pairs:
        changes = compare(*map(read_report, paths))
        likeness = Likeness.of(change.ratio_of_speedups for change in changes)
        lines.append((*(f"`{path.stem}`" for path in paths), str(likeness or DASH), num_apart(changes) or DASH))
    return Table("compare", "How alike two runs are", heads, tuple(lines))


def read_report(path: Path) -> dict[str, Any]:
    """A report that a benchmark wrote.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON: {error}") from None
    rows = report.get("rows") if isinstance(report, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "name" in row for row in rows):
        raise ConfigError(f"{path}: is no report of seedmp bench (no rows)")
    return dict(report)
