"""The command ``seedmp demo``: a reasoning tree that grows before your eyes, then what scheduling bought.

The tree: thoughts of one problem, each valued as soon as it is there, drafted by three draft processes and verified by
one target. The table after it: the same greedy prompts, first and second thoughts of three other problems, by four
schedules in turn.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from seedmp.checks import check_whole
from seedmp.config import DTYPES
from seedmp.engine import Engine
from seedmp.measuring.account import Measurement, account
from seedmp.measuring.node import describe_node
from seedmp.models.inflate import get_shape
from seedmp.reporting.output import check_output
from seedmp.request import RequestOutput
from seedmp.sampling import MAX_SEED
from seedmp.search.asking import Asker
from seedmp.search.generators import Generator, Sample
from seedmp.search.live import LiveView
from seedmp.search.strategies import BFS
from seedmp.search.task import Ask, Task
from seedmp.search.thought_tree import ThoughtTree
from seedmp.search.tree_of_thoughts import TreeOfThoughts
from seedmp.tasks.registry import TASKS, get_task

NUM = 3  # draft processes, thoughts of a thought, and problems of the comparison
BEAM = 2  # thoughts of a level that go on
SHAPE = "134m"
K_CONFIG = (1, 1, 1)
PLAIN_COLUMNS = 110
SCHEDULES: dict[str, dict[str, Any]] = {
    "AR serial": {"method": "ar", "schedule": "serial"},
    "SD serial": {"method": "mcsd", "schedule": "serial"},
    "scheduled fcfs": {"method": "mcsd", "schedule": "scheduled", "policy": "fcfs"},
    "scheduled fcfs-batch": {"method": "mcsd", "schedule": "scheduled", "policy": "fcfs-batch"},
}
PLAIN, *_, SCHEDULED = SCHEDULES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp demo``."""
    parser.add_argument("--task", choices=sorted(TASKS), default="blocksworld")
    parser.add_argument("--data", type=Path, metavar="FILE", help="problems as published, one JSON object a line")
    parser.add_argument("--limit", type=int, default=9, metavar="N", help="problems to read (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--seed", type=int, default=0, help="of the tree's thoughts (default %(default)s)")
    parser.add_argument("--temperature", type=float, help="of the tree's thoughts (default: the task's)")
    parser.add_argument("--shape", default=SHAPE, help="what the bundled target is inflated to (default %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default %(default)s: equal texts")


def run(args: argparse.Namespace) -> int:
    """Grow the tree, then compare the schedules.

    Raises:
        ConfigError: an option or the data file is wrong; no process was started.
        SeedmpError: an engine failed.
    """
    task = get_task(args.task, chat=False)
    problems = task.load(args.data, args.limit)  # the last is for the tree, the first for the comparison
    get_shape(args.shape)
    generate = Sample(NUM, task.defaults.temperature if args.temperature is None else args.temperature)
    check_whole("seed", args.seed, 0, MAX_SEED)
    if args.json is not None:
        check_output(args.json)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_COLUMNS)
    _announce(console, args, len(problems))
    comparison = Comparison(task, [problems[i % len(problems)] for i in range(NUM)])
    with _engine(SCHEDULED, args, console) as (engine, start_s):
        _grow_tree(engine, task, problems[-1], generate, args.seed, console)
        rows = [comparison.measure(engine, SCHEDULED, start_s, console)]
    for name in list(SCHEDULES)[:-1]:
        with _engine(name, args, console) as (engine, start_s):
            rows.append(comparison.measure(engine, name, start_s, console))
    rows = [*rows[1:], rows[0]]  # in the order of SCHEDULES
    _print_table(console, rows)
    if args.json is not None:
        _write_json(args, rows)
    return 0


def _announce(console: Console, args: argparse.Namespace, num_problems: int) -> None:
    own = "problems of the project's own" if args.data is None else str(args.data)
    text = (
        f"{args.task}: {own}; {NUM} drafts propose chains of {len(K_CONFIG)} tokens, one target verifies them.\n"
        f"The bundled target (5.8M parameters) is embedded exactly in a {args.shape} shape, {args.dtype}: "
        "text and acceptance are\nthe small model's, the time of a forward is the big one's."
    )
    if num_problems <= NUM:
        text += f"\nOnly {num_problems} problem(s): the comparison repeats prompts, whose work is shared."
    console.print(text, markup=False, highlight=False)


@contextmanager
def _engine(name: str, args: argparse.Namespace, console: Console) -> Iterator[tuple[Engine, float]]:
    """An engine and the seconds that its start took; closed with the block."""
    began_s = time.monotonic()
    with console.status(f"{name}: starting processes"):
        engine = Engine(target_shape=args.shape, dtype=args.dtype, k_config=K_CONFIG, num_drafts=NUM, **SCHEDULES[name])
    with engine:
        yield engine, time.monotonic() - began_s


# --- the tree ------------------------------------------------------------------------------------


def _grow_tree(engine: Engine, task: Task[Any], problem: Any, generate: Generator, seed: int, console: Console) -> None:
    """Search for one problem, and show the tree while it grows."""
    with LiveView(console, task.describe(problem)) as view:
        result = TreeOfThoughts(
            engine, task, search=BFS(BEAM), generate=generate, seed=seed,
            on_change=lambda run: view.update(run.tree, tokens=run.tree.num_tokens, progress=run.progress or None),
        ).solve(problem)  # fmt: skip
        verdict = {True: "right", False: "wrong", None: "nobody can tell whether it is right"}[result.is_correct]
        view.finish(result.tree, f"The best path is {verdict}: {', '.join(result.answer.splitlines()) or 'no answer'}")


# --- the comparison ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A schedule and its figures."""

    name: str
    measured: Measurement
    start_s: float


class Comparison:
    """The same greedy prompts for all: first thoughts of some problems, then second ones.

    The second prompts go on from the first thoughts of the schedule that runs first.
    """

    def __init__(self, task: Task[Any], problems: Sequence[Any]) -> None:
        self.task, self.problems = task, problems
        self.second: list[Ask] = []

    def measure(self, engine: Engine, name: str, start_s: float, console: Console) -> Row:
        """Run all prompts once on one engine, after a few tokens that warm it up."""
        first = [self.task.thought_ask(problem, []) for problem in self.problems]
        asker = Asker(engine)

        def serve(asks: Sequence[Ask]) -> list[RequestOutput]:
            handles = [asker.start(ask, 1, 0.0, 0)[0] for ask in asks]
            return [handle.result() for handle in handles]

        def job() -> list[RequestOutput]:
            outputs = serve(first)
            if not self.second:
                self.second = [self._next(*pair) for pair in zip(self.problems, outputs, strict=True)]
            return outputs + serve(self.second)

        with console.status(f"{name}: {NUM} first and {NUM} second thoughts"):
            serve([Ask("\n", 8)] * NUM)
            measured = account(engine, job)
        num_tokens = sum(map(len, measured.token_ids))
        console.print(
            f"{name}: processes ready after {start_s:.1f} s, {num_tokens} tokens in {measured.wall_s:.2f} s",
            markup=False, highlight=False,
        )  # fmt: skip
        return Row(name, measured, start_s)

    def _next(self, problem: Any, output: RequestOutput) -> Ask:
        """What asks for the thought after this one; for the first one again where it cannot be read."""
        parsed = self.task.read_thought(problem, [], output.text)
        if parsed is None:
            return self.task.thought_ask(problem, [])
        tree = ThoughtTree()
        thought = tree.add(tree.root, 0, 0.0)
        thought.text, thought.label, thought.state = parsed.text, parsed.label, parsed.state or ""
        return self.task.thought_ask(problem, [thought])


def _print_table(console: Console, rows: Sequence[Row]) -> None:
    plain = rows[0].measured
    table = Table(
        title=f"{NUM} first and {NUM} second thoughts, temperature 0, {sum(map(len, plain.token_ids))} tokens",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    table.add_column("schedule", no_wrap=True)
    heads = ("tokens\n/s", "speed-\nup", "accept-\nance", "mean\nlength", "overlap\ns", "verifier\nbusy", "text\n= AR")
    for head in heads:
        table.add_column(head, justify="right")
    for row in rows:
        figures, drafts = row.measured, row.name != PLAIN
        table.add_row(
            row.name, f"{figures.tokens_per_s:.1f}", f"{figures.tokens_per_s / plain.tokens_per_s:.2f}x",
            f"{figures.acceptance_rate:.2f}" if drafts else "-", f"{figures.mean_accepted_len:.2f}",
            f"{figures.overlap_s:.2f}" if drafts else "-", f"{figures.verifier_busy:.0%}",
            "yes" if figures.token_ids == plain.token_ids else "NO",
        )  # fmt: skip
    console.print(table)
    console.print(
        "tokens/s: kept tokens ÷ wall time. overlap: seconds in which a draft and the verifier were busy at once\n"
        "(fcfs-batch waits for proposals that come soon and verifies them in one forward: less overlap, more width).",
        markup=False, highlight=False,
    )  # fmt: skip
    different = [row.name for row in rows if row.measured.token_ids != plain.token_ids]
    if different:
        console.print(
            f"Not the text of AR: {', '.join(different)}. Forwards of different width round differently, and a tie "
            "of two tokens can turn: expected in bfloat16 now and then, not in float32.", markup=False,
        )  # fmt: skip


def _write_json(args: argparse.Namespace, rows: Sequence[Row]) -> None:
    plain = rows[0].measured
    report = {
        "rows": [
            {
                "name": row.name, **row.measured.to_plain(),
                "speedup": row.measured.tokens_per_s / plain.tokens_per_s,
                "text_equals_ar": row.measured.token_ids == plain.token_ids,
                "kept_tokens": sum(map(len, row.measured.token_ids)), "start_s": row.start_s,
            }
            for row in rows
        ],
        "node": describe_node(), "seed": args.seed, "shape": args.shape, "dtype": args.dtype, "task": args.task,
        "temperature": 0.0, "k_config": K_CONFIG,
    }  # fmt: skip
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
