"""All results of a folder as one HTML page that needs nothing else: tables, drawings, and what they do not show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from seedmp.benchmarks.questions import (
    acceptance,
    accepted,
    mtbench,
    peers,
    scale,
    schedules,
    sequoia,
    solve_rates,
    table1,
)
from seedmp.benchmarks.svg import Figure
from seedmp.benchmarks.tables import Table, read_report
from seedmp.errors import ConfigError
from seedmp.reporting.pages import render as render_page

# In the order of the page, and of ``all``.
BENCHMARKS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (peers, schedules, table1, acceptance, accepted, sequoia, mtbench, scale)
}


def tables_of(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report. Reports without a name are older than ``seedmp bench``; they compare schedules."""
    if report.get("benchmark") == "solve_rates":  # a script of its own: it measures solving, not speed
        return solve_rates.tables(report)
    return list(_module(report).tables(report))


def figures_of(report: Mapping[str, Any]) -> list[Figure]:
    """The drawings of a report."""
    return list(_module(report).figures(report))


def write_report(folder: Path) -> Path:
    """Write ``report.html``, and each drawing as a file, for the reports that lie in a folder.

    Raises:
        ConfigError: there is none.
    """
    reports = {name: folder / f"{name}.json" for name in BENCHMARKS}
    found = {name: read_report(path) for name, path in reports.items() if path.is_file()}
    if not found:
        raise ConfigError(f"{folder}: has no result of seedmp bench")
    for name, report in found.items():
        for figure in figures_of(report):
            (folder / f"{figure.key}.svg").write_text(figure.svg)
        if not figures_of(report):
            (folder / f"{name}.svg").unlink(missing_ok=True)
    page = folder / "report.html"
    page.write_text(render(found))
    return page


def render(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """The page: what all reports have in common, from the first of them; then a section for each."""
    first = next(iter(reports.values()))
    return render_page(
        "bench", facts=_facts(first), is_inflated=first["settings"].get("shape", "none") != "none",
        sections=[_section(name, report) for name, report in reports.items()],
    )  # fmt: skip


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, with what, where."""
    settings, node = report["settings"], report["node"]
    versions = [f"{name} {node[name]}" for name in ("python", "torch", "transformers", "pyzmq") if name in node]
    threads = [f"{name} {number}" for name, number in (report.get("threads") or {}).items()]
    return [
        ("models", str(report.get("model", ""))), ("node", describe(node)), ("versions", ", ".join(versions)),
        ("commit", f"{node.get('commit') or 'unknown'} (+: with changes)"), ("threads", ", ".join(threads)),
        ("seed, texts", f"{settings.get('seed')}; {settings.get('data')}"),
    ]  # fmt: skip


def describe(node: Mapping[str, Any]) -> str:
    """Hardware in a line."""
    gpus = ", ".join(node.get("gpus") or ()) or "no GPU"
    return f"{node.get('cores')} cores ({node.get('machine')}), {node.get('memory_gib')} GiB, {gpus}"


def _section(name: str, report: Mapping[str, Any]) -> dict[str, Any]:
    """What the template says of one report. The module's docstring is the question, then how figures are made."""
    module = BENCHMARKS[name]
    settings = report["settings"]
    question, _, how = (module.__doc__ or "").partition("\n\n")
    question = question.removeprefix("Question: ").strip()
    return {
        "name": name, "question": question[:1].upper() + question[1:], "how": how.strip(),
        "is_complete": report.get("complete", True), "size": settings.get("size"),
        "figures": figures_of(report), "tables": tables_of(report),
        "shows": module.SHOWS, "shows_not": module.SHOWS_NOT, "took_s": report.get("took_s", 0),
        "settings": ", ".join(f"{key} {val}" for key, val in settings.items() if key not in ("data", "seed", "size")),
    }  # fmt: skip


def _module(report: Mapping[str, Any]) -> ModuleType:
    name = report.get("benchmark", "schedules")
    if name not in BENCHMARKS:
        raise ConfigError(f"a report of an unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
