"""All results of a folder as one HTML page that needs nothing else: tables, drawings, and what they do not show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
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

# In the order of the page, and of ``all``.
BENCHMARKS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module
    for module in (peers, schedules, table1, acceptance, accepted, sequoia, mtbench, scale)
}
INFLATED = (
    "The target is <strong>inflated</strong>: the bundled model, embedded exactly in a larger shape. Tokens and "
    "acceptance are the small model's, the price of each forward the larger shape's."
)

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1100px; }
body { margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { margin-top: 2.2em; border-bottom: 1px solid #ddd; }
h3 { margin-bottom: .3em; font-size: 1em; }
table { border-collapse: collapse; margin: .5em 0 1.2em; font-size: 13px; }
th, td { padding: 3px 9px; border-bottom: 1px solid #e5e5e5; text-align: right; white-space: nowrap; }
td:has(code), .facts td { text-align: left; }
th:first-child, td:first-child { text-align: left; } th { background: #f5f5f5; }
.scroll { overflow-x: auto; } .note { color: #555; }
.warn { background: #fff3cd; padding: .5em .8em; border-radius: 4px; }
code { background: #f3f3f3; padding: 0 3px; } svg { max-width: 100%; height: auto; } nav a { margin-right: 1em; }
"""


def tables_of(report: Mapping[str, Any]) -> list[Table]:
    """The tables of a report; reports without a name are from before ``seedmp bench`` and compare schedules."""
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
    """The page."""
    first = next(iter(reports.values()))
    links = "".join(f'<a href="#{name}">{name}</a>' for name in reports)
    sections = "".join(_section(name, report) for name, report in reports.items())
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>seedmp bench</title><style>{_STYLE}</style></head>\n<body><h1>seedmp bench</h1>\n"
        f"{_about(first)}<nav>{links}</nav>\n{sections}</body></html>\n"
    )


def _about(report: Mapping[str, Any]) -> str:
    settings, node = report["settings"], report["node"]
    facts = [("models", report.get("model", "")), ("node", describe(node))]
    versions = ", ".join(
        f"{name} {node[name]}" for name in ("python", "torch", "transformers", "pyzmq") if name in node
    )
    threads = report.get("threads") or {}
    facts += [
        ("versions", versions), ("commit", f"{node.get('commit') or 'unknown'} (+: with changes)"),
        ("threads", ", ".join(f"{name} {number}" for name, number in threads.items())),
        ("seed, texts", f"{settings.get('seed')}; {settings.get('data')}"),
    ]  # fmt: skip
    lines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in facts if value)
    inflated = f"<p>{INFLATED}</p>" if settings.get("shape", "none") != "none" else ""
    return (
        f"<table class='facts'>{lines}</table>{inflated}<p class='note'>tokens/s is the median over interleaved "
        "repeats, its range in brackets; a speed-up is the median of the ratios within one repeat, ± what it may be "
        "off by chance (a box plot's notch: 1.57 x interquartile range ÷ √repeats). <em>same greedy text</em>: does "
        "the row write what its base row writes without chance; a percentage is the share of tokens before the first "
        "difference.</p>"
    )


def describe(node: Mapping[str, Any]) -> str:
    """Hardware in a line."""
    gpus = ", ".join(node.get("gpus") or ()) or "no GPU"
    return f"{node.get('cores')} cores ({node.get('machine')}), {node.get('memory_gib')} GiB, {gpus}"


def _section(name: str, report: Mapping[str, Any]) -> str:
    module = BENCHMARKS[name]
    settings = report["settings"]
    parts = [f'<section><h2 id="{name}">{name}</h2>{_question(module)}']
    if not report.get("complete", True):
        parts.append('<p class="warn">Interrupted: not all of it was measured.</p>')
    if settings.get("size") not in (None, "full"):
        parts.append(f'<p class="warn">Measured with <code>--{settings["size"]}</code>: short texts, few repeats.</p>')
    parts += [f"<div class='scroll'>{figure.svg}</div>" for figure in figures_of(report)]
    parts += [_table(made) for made in tables_of(report)]
    parts.append(f"<h3>What it shows</h3>{_list(module.SHOWS)}<h3>What it does not show</h3>{_list(module.SHOWS_NOT)}")
    own = ", ".join(f"{key} {value}" for key, value in settings.items() if key not in ("data", "seed", "size"))
    parts.append(
        f"<p class='note'>{escape(own)}; took {report.get('took_s', 0):.0f} s. Raw: {name}.json</p></section>\n"
    )
    return "\n".join(parts)


def _question(module: ModuleType) -> str:
    """The module's docstring: the question first, then how the figures are made."""
    question, _, how = (module.__doc__ or "").partition("\n\n")
    text = escape(how.strip()).split("``")
    how = "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(text))
    question = question.removeprefix("Question: ").strip()
    return f"<p><strong>{escape(question[:1].upper() + question[1:])}</strong></p><p>{how}</p>"


def _table(made: Table) -> str:
    def cell(text: str) -> str:
        return f"<code>{escape(text[1:-1])}</code>" if text[:1] == text[-1:] == "`" else escape(text.replace("`", ""))

    head = "".join(f"<th>{cell(text)}</th>" for text in made.heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell(text)}</td>' for text in row)}</tr>" for row in made.rows)
    return f"<h3>{escape(made.title)}</h3><div class='scroll'><table><tr>{head}</tr>{body}</table></div>"


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>"  # our own texts, with markup


def _module(report: Mapping[str, Any]) -> ModuleType:
    name = report.get("benchmark", "schedules")
    if name not in BENCHMARKS:
        raise ConfigError(f"a report of an unknown benchmark {name!r}; known are {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
