"""Runs a benchmark: starts what it needs, checks texts, interleaves the repeats, writes what it has at any time.

A plan has groups; the rows of a group are measured side by side: every repeat runs each row once, and
the order is rotated by one from repeat to repeat, so that no row is always the first after a pause.
Before the repeats each row decodes greedily once: that warms it up and shows whether it makes the same text.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from seedmp.benchmarks.summary import Result, Texts, compare_texts, row_of
from seedmp.errors import ConfigError, SeedmpError
from seedmp.measuring.account import rotated
from seedmp.measuring.engines import Subject
from seedmp.measuring.node import describe_node
from seedmp.measuring.progress import Progress

MAX_REPEATS = 100


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Args:
        name: unique in its group.
        subject: what is measured.
        work: run the job once; gets the started subject and the number of the repeat.
        greedy: warm up with greedy decoding; gives the texts that are compared with the base row's.
            None warms up with ``work``.
        settings: reported with the row.
    """

    name: str
    subject: Subject
    work: Callable[[Any, int], Result]
    greedy: Callable[[Any], Texts] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """Rows that are measured side by side.

    Args:
        cell: what they have in common, in a few words; part of each row's key.
        base: the row that ratios refer to.
        labels: the same in figures, reported with each row.
    """

    cell: str
    rows: Sequence[Row]
    base: str
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A benchmark, ready to run: all files are read, all settings checked, no model is loaded.

    Args:
        settings: reported.
        finish: more entries for the report, made of its rows.
        num_repeats: repeats that this benchmark needs. None: the number that all benchmarks have.
    """

    name: str
    groups: Sequence[Group]
    settings: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]] = lambda rows: {}
    num_repeats: int | None = None

    @property
    def num_steps(self) -> int:
        """Starts, warm-ups and runs of one repeat, for the time left."""
        return sum(len(group.rows) for group in self.groups)


@dataclass(frozen=True)
class Repeats:
    """How often the rows of a group are measured.

    Args:
        least: repeats that are always made.
        precision: share of a speed-up. Repeats are added until no speed-up's notch (``summary.notch``) is larger than
            this share of it, or until ``most`` is reached. None adds none.
    """

    least: int
    precision: float | None = None

    @property
    def most(self) -> int:
        """A machine that is never quiet must not keep a run for ever."""
        return self.least if self.precision is None else max(self.least, MAX_REPEATS)


class Pool(Protocol):
    """Started subjects, kept for later groups as long as there is room."""

    def prepare(self, subjects: Sequence[Subject], on_started: Callable[[], object]) -> dict[Subject, Any]: ...

    def memory_mib(self, subject: Subject) -> dict[str, float]: ...


def run_plan(
    plan: Plan, repeats: Repeats, pool: Pool, progress: Progress, path: Path, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Run all groups and write the report to ``path``: after each group, and when interrupted.

    A report is marked ``"complete": false`` until all is measured.

    Raises:
        KeyboardInterrupt: passed on; what was measured is written.
    """
    started_s = time.monotonic()
    settings = {**about["settings"], **plan.settings}
    report: dict[str, Any] = {"benchmark": plan.name, "complete": False, "rows": [], **about, "settings": settings}
    report["node"] = describe_node()
    try:
        for group in plan.groups:
            run = _GroupRun(group, repeats, pool, progress)
            try:
                run.run()
            finally:
                report["rows"] += run.rows()
                _write(report, path, plan, started_s)
        report["complete"] = True
    finally:
        _write(report, path, plan, started_s)
    return report


class _GroupRun:
    """One group while it is measured."""

    def __init__(self, group: Group, repeats: Repeats, pool: Pool, progress: Progress) -> None:
        self.group = group
        self.repeats = repeats
        self.pool = pool
        self.progress = progress
        self.texts: dict[str, Texts] = {}
        self.results: dict[str, dict[int, Result]] = {row.name: {} for row in group.rows}
        self.why_not: dict[str, str] = {}
        self.memory: dict[str, dict[str, float]] = {}

    def run(self) -> None:
        subjects = list(dict.fromkeys(row.subject for row in self.group.rows))
        self.progress.step(f"{self.group.cell}: starting")
        self.started = self.pool.prepare(subjects, lambda: None)
        for row in self.group.rows:
            self._guarded(row, "warm-up", self._warm_up)
        for repeat in range(self.repeats.most):
            if repeat >= self.repeats.least:
                if self._is_precise():
                    break
                self.progress.extend(len(self.group.rows))
            for row in rotated(self.group.rows, repeat):
                self._guarded(row, f"{repeat + 1}/{max(repeat + 1, self.repeats.least)}", self._measure, repeat)
        for row in self.group.rows:
            if row.name not in self.why_not:
                self.memory[row.name] = self.pool.memory_mib(row.subject)

    def _is_precise(self) -> bool:
        """Whether no speed-up's notch is wider than asked for."""
        wide = self.repeats.precision or 0.0
        return all(line["speedup_notch"] <= wide * line["speedup"] for line in self.rows() if "speedup" in line)

    def _guarded(self, row: Row, what: str, call: Callable[..., None], *args: Any) -> None:
        """Run a part of a row. If it fails, its line of the report says so, and the other rows go on."""
        if row.name not in self.why_not:
            self.progress.step(f"{self.group.cell}: {row.name} {what}".strip(": "))
            try:
                started = self.started[row.subject]
                if isinstance(started, SeedmpError):
                    raise started
                call(row, started, *args)
            except ConfigError:
                raise
            except SeedmpError as error:
                self.why_not[row.name] = str(error).splitlines()[0]
        self.progress.advance()

    def _warm_up(self, row: Row, started: Any) -> None:
        if row.greedy is None:
            row.work(started, 0)
        else:
            self.texts[row.name] = row.greedy(started)

    def _measure(self, row: Row, started: Any, repeat: int) -> None:
        self.results[row.name][repeat] = row.work(started, repeat)

    def rows(self) -> list[dict[str, Any]]:
        """The results so far, without the rows that have not run yet."""
        lines = []
        for row in self.group.rows:
            head = {"name": row.name, "cell": self.group.cell, **self.group.labels, **row.settings}
            results = self.results[row.name]
            if row.name in self.why_not:
                lines.append({**head, "not_run": self.why_not[row.name]})
            if row.name in self.why_not or not results:
                continue
            both = sorted(results.keys() & self.results[self.group.base].keys())
            base = [self.results[self.group.base][repeat] for repeat in both]
            paired = [results[repeat] for repeat in both] + [r for n, r in results.items() if n not in both]
            line = row_of(row.name, paired, base)
            if row.name in self.texts and self.group.base in self.texts:
                compare_texts(line, self.texts[row.name], self.texts[self.group.base])
            if row.name in self.memory:
                line["memory_mib"] = self.memory[row.name]
            lines.append({**head, **line})
        return lines


def _write(report: dict[str, Any], path: Path, plan: Plan, started_s: float) -> None:
    """Replace the file in one go: it is a valid report at any time."""
    report["took_s"] = round(time.monotonic() - started_s, 1)
    report |= plan.finish(report["rows"])
    part = path.with_suffix(".part")
    part.write_text(json.dumps(report, indent=1) + "\n")
    os.replace(part, path)
