"""``seedmp solve``: search trees for the problems of a task; a JSON line a problem, resumed when interrupted.

The first line of the file has the settings of the run, every other one a result. A second run with the same
settings goes on where the first stopped; one with other settings is refused.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from seedmp import metrics
from seedmp.checks import check_one_of, check_whole
from seedmp.engine import Engine
from seedmp.errors import ConfigError
from seedmp.plain_json import parse_json
from seedmp.reporting.output import check_folder
from seedmp.search.evaluators import EVALUATORS, Evaluator, NoValue, make_evaluators
from seedmp.search.generators import Generator, Sample, make_generator
from seedmp.search.live import LiveView
from seedmp.search.result import SearchResult
from seedmp.search.run import Budget, SearchRun
from seedmp.search.strategies import BFS, DFS, MCTS, BestFirst, Strategy
from seedmp.search.task import Task
from seedmp.search.tree_of_thoughts import TreeOfThoughts
from seedmp.tasks.registry import get_task

SEARCHES = ("bfs", "dfs", "best-first", "mcts", "greedy")


@dataclass(frozen=True)
class SolveOptions:
    """What to solve and how; fields that are None are what the task says.

    Args:
        task: name of a task.
        data: file of problems in the published format; None takes those that are shipped.
        limit: problems at most.
        search: one of ``SEARCHES``; ``greedy`` is a chain without search, for comparison.
        beam, thoughts, temperature, depth: of the search.
        evaluate: one of ``EVALUATORS``.
        values: answers or votes asked for a value.
        seeds: each problem is solved so many times, with seeds ``seed``, ``seed + 1``, ...
        task_options: options of the task, by name.
    """

    task: str
    data: str | None = None
    limit: int | None = None
    search: str = "bfs"
    beam: int | None = None
    thoughts: int | None = None
    temperature: float | None = None
    depth: int | None = None
    evaluate: str | None = None
    values: int | None = None
    nodes: int | None = None
    tokens: int | None = None
    seconds: float | None = None
    seed: int = 0
    seeds: int = 1
    barrier: bool = False
    task_options: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_one_of("search", self.search, SEARCHES)
        if self.evaluate is not None:
            check_one_of("evaluate", self.evaluate, EVALUATORS)
        for name in ("beam", "thoughts", "depth", "values", "seeds"):
            if (value := getattr(self, name)) is not None:
                check_whole(name, value, 1)

    def make_task(self, *, chat: bool) -> Task[Any]:
        """The task, in the words that a model understands."""
        options = dict(self.task_options) | ({} if self.depth is None else {"depth": self.depth})
        return get_task(self.task, chat=chat, **options)

    def budget(self) -> Budget:
        """Where each search ends at the latest."""
        return Budget(self.nodes, self.tokens, self.seconds)

    def make_strategy(self, task: Task[Any]) -> Strategy:
        """The search; its width is the task's beam unless told otherwise."""
        width = self.beam or task.defaults.beam
        searches: dict[str, Callable[[], Strategy]] = {
            "bfs": lambda: BFS(width, task.defaults.stop_at_solution),
            "dfs": lambda: DFS(max_children=width),
            "best-first": lambda: BestFirst(width),
            "mcts": lambda: MCTS(width=width),
            "greedy": lambda: BFS(1),
        }
        return searches[self.search]()

    def make_generator(self, task: Task[Any]) -> Generator:
        """How thoughts are written."""
        if self.search == "greedy":
            return Sample(1, 0.0)
        defaults = task.defaults
        temperature = defaults.temperature if self.temperature is None else self.temperature
        return make_generator(defaults.generate, self.thoughts or defaults.num_thoughts, temperature)

    def make_evaluators(self, task: Task[Any]) -> list[Evaluator]:
        """How thoughts are valued, level by level."""
        if self.search == "greedy":
            return [NoValue()]
        return make_evaluators(self.evaluate or task.defaults.evaluate, self.values or task.defaults.num_values)


@dataclass(frozen=True)
class Report:
    """How a run went.

    Args:
        solved: results whose best path is right.
        any_solved: results with a right path among the claimed solutions.
        judged: results of which the task can tell.
        done: results, those of earlier runs included.
        tokens: generated and scored by this run.
        wall_s: of this run.
    """

    solved: int
    any_solved: int
    judged: int
    done: int
    thoughts: int
    failed: int
    tokens: int
    wall_s: float


def run_solve(
    options: SolveOptions,
    out: Path,
    *,
    concurrency: int = 3,
    fresh: bool = False,
    pages: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Solve, print and write as results come.

    Args:
        out: JSON lines; results that are there already are not computed again.
        concurrency: problems at a time.
        fresh: begin anew even if ``out`` exists.
        pages: folder for one HTML page a problem.

    Raises:
        ConfigError: wrong settings, data of another format, or ``out`` belongs to another run: before
            any model is loaded.
    """
    console = console or Console()
    check_whole("concurrency", concurrency, 1)
    task = options.make_task(chat=False)
    problems = task.load(Path(options.data) if options.data else None, options.limit)
    for make in (options.make_strategy, options.make_generator, options.make_evaluators):
        make(task)
    options.budget()
    if pages is not None:
        check_folder(pages)
    with _Lines(out, options, fresh=fresh) as lines:
        jobs = [
            (seed, index)
            for seed in range(options.seed, options.seed + options.seeds)
            for index in range(len(problems))
        ]
        todo = [job for job in jobs if job not in lines.results]
        console.print(
            f"{options.task}: {len(problems)} problems x {options.seeds} seeds, {options.search}; "
            f"{len(jobs) - len(todo)} of {len(jobs)} results are in {out} already", highlight=False,
        )  # fmt: skip
        started, tokens = time.monotonic(), 0
        if todo:
            with Engine(**options.engine) as engine:
                console.print(f"target {engine.config.target}", highlight=False, soft_wrap=True)
                started = time.monotonic()
                tokens = _solve(engine, options, problems, todo, lines, concurrency, pages, console)
        report = _report([lines.results[job] for job in jobs], tokens, time.monotonic() - started)
    _print(console, options, report)
    return report


def _solve(
    engine: Engine,
    options: SolveOptions,
    problems: Sequence[Any],
    todo: Sequence[tuple[int, int]],
    lines: _Lines,
    concurrency: int,
    pages: Path | None,
    console: Console,
) -> int:
    """Solve what is to be done; tokens that it took."""
    chat = engine.tokenizer is not None and bool(getattr(engine.tokenizer, "chat_template", None))
    task = options.make_task(chat=chat)
    tokens = 0
    screen = _Screen(console, len(todo), live=concurrency == 1 and console.is_terminal)

    def search(seed: int) -> TreeOfThoughts:
        return TreeOfThoughts(
            engine, task, search=options.make_strategy(task), generate=options.make_generator(task),
            evaluate=options.make_evaluators(task), seed=seed, budget=options.budget(), barrier=options.barrier,
            on_change=screen.update,
        )  # fmt: skip

    with screen:
        for seed in sorted({seed for seed, _ in todo}):
            indices = [index for job_seed, index in todo if job_seed == seed]

            def note(at: int, result: SearchResult, seed: int = seed, indices: list[int] = indices) -> None:
                nonlocal tokens
                tokens += result.tree.num_tokens
                lines.add(seed, indices[at], result)
                screen.done(indices[at], result)
                if pages is not None:
                    result.save_html(pages / f"{options.task}-{seed}-{indices[at]}.html")

            search(seed).solve_all([problems[i] for i in indices], concurrency=concurrency, on_result=note)
    return tokens


class _Lines:
    """The file of results: read at the start, appended to after each one, whole lines only."""

    def __init__(self, path: Path, options: SolveOptions, *, fresh: bool) -> None:
        self.path = path
        self.head = json.loads(json.dumps({"seedmp_solve": 1, **asdict(options)}))
        self.results: dict[tuple[int, int], dict[str, Any]] = {}
        try:
            whole = b"" if fresh or not path.exists() else self._whole_lines(path.read_bytes())
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(whole or json.dumps(self.head).encode() + b"\n")
            self.file = path.open("a")
        except OSError as error:
            raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None

    def _whole_lines(self, content: bytes) -> bytes:
        """The file without a line that an interruption left unfinished."""
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                row = parse_json(line)
                if number == 1:
                    self._check_head(row)
                else:
                    self.results[row["seed"], row["index"]] = row
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if isinstance(error, ConfigError):
                    raise
                raise ConfigError(
                    f"{self.path}, line {number}: no result of seedmp solve; choose another file"
                ) from None
        return whole

    def _check_head(self, row: Any) -> None:
        if row.get("seedmp_solve") != 1:
            raise ConfigError(f"{self.path} is no file of seedmp solve; choose another one")
        for name, value in self.head.items():
            if row.get(name) != value and name not in ("limit", "seeds"):  # more of the same may follow
                raise ConfigError(
                    f"{self.path} was made with {name}={row.get(name)!r}, not {value!r}: choose another, or --fresh"
                )

    def add(self, seed: int, index: int, result: SearchResult) -> None:
        """Write one result; it is on the disk when this returns."""
        row = {
            "seed": seed, "index": index, "problem": result.tree.problem, "correct": result.is_correct,
            "any_correct": result.any_correct, "claimed": len(result.solutions), "answer": result.answer,
            "score": result.score, "ended": result.ended, "path": [thought.text for thought in result.path],
            "value": result.best.value if result.best is not None else None, "counts": result.counts(),
            "wall_s": round(result.wall_s, 3), "tokens_per_s": round(result.tokens_per_s, 1),
        }  # fmt: skip
        self.results[seed, index] = row
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()


class _Screen:
    """The tree of the one problem in work, or a bar with the time left; plain lines where there is no terminal."""

    def __init__(self, console: Console, num: int, *, live: bool) -> None:
        self.console = console
        self.live = live
        self.view: LiveView | None = None
        self.num_done = self.num_solved = 0
        self.num = num
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=console, transient=True,
            disable=live or not console.is_terminal,
        )  # fmt: skip
        self.job = self.bar.add_task("solving", total=num)

    def update(self, run: SearchRun) -> None:
        if not self.live:
            return
        if self.view is None:
            self.view = LiveView(self.console, run.tree.problem)
            self.view.__enter__()
        self.view.update(run.tree, tokens=run.tree.num_tokens, progress=run.progress or None)

    def done(self, index: int, result: SearchResult) -> None:
        self.num_done += 1
        self.num_solved += bool(result.is_correct)
        verdict = {True: "solved", False: "not solved", None: "done"}[result.is_correct]
        line = (
            f"problem {index}: {verdict}, {len(result.tree)} thoughts, {result.wall_s:.1f} s, "
            f"{result.tokens_per_s:.0f} tokens/s; {self.num_solved} of {self.num_done} solved"
        )
        if self.view is not None:
            self.view.finish(result.tree, line)
            self.view = None
        else:
            self.bar.console.print(line, highlight=False)
        self.bar.update(self.job, advance=1)

    def __enter__(self) -> _Screen:
        self.bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.view is not None:
            self.view.__exit__(None, None, None)
        self.bar.stop()


def _report(rows: Sequence[dict[str, Any]], tokens: int, wall_s: float) -> Report:
    judged = [row for row in rows if row["correct"] is not None]
    return Report(
        sum(bool(row["correct"]) for row in judged), sum(bool(row["any_correct"]) for row in judged),
        len(judged), len(rows), sum(row["counts"]["thoughts"] for row in rows),
        sum(row["counts"].get("failed", 0) for row in rows), tokens, wall_s,
    )  # fmt: skip


def _print(console: Console, options: SolveOptions, report: Report) -> None:
    table = Table(show_header=False, box=None)
    table.add_row("results", str(report.done))
    if report.judged:
        share = metrics.share(report.solved, report.judged)
        table.add_row("solved", f"{report.solved} of {report.judged} = {share:.1%} (best path is right)")
        if options.search != "greedy":
            share = metrics.share(report.any_solved, report.judged)
            table.add_row(
                "any", f"{report.any_solved} of {report.judged} = {share:.1%} (some claimed solution is right)"
            )
    table.add_row("thoughts", f"{report.thoughts}, {report.failed} not in the format or refused")
    if report.tokens:
        rate = metrics.tokens_per_s(report.tokens, report.wall_s)
        table.add_row("speed", f"{report.tokens} tokens in {report.wall_s:.1f} s = {rate:.0f} tokens/s (this run)")
    console.print(table, highlight=False)
