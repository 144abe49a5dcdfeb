"""Question: what do the bundled pair, the tree and the evaluator each contribute to solving problems?

``python -m seedmp.benchmarks.questions.solve_rates --data FOLDER --json FILE``

Rows: the tree as the task searches it, one greedy chain, and the same tree with random values. Problems are all of
``blocksworld/step_2``, ``step_4`` and ``step_6``, and every third puzzle of ``game24/24.csv``, with several seeds each.
Solved = problems whose best path is right by the task's checker ÷ problems. The interval is Wilson's at 95 % over
problems and seeds together. These are not independent, because seeds share problems.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from seedmp import metrics
from seedmp.benchmarks.tables import NAME, Column, Table, table
from seedmp.engine import Engine
from seedmp.errors import SeedmpError
from seedmp.measuring.node import describe_node
from seedmp.search import SearchResult, TreeOfThoughts
from seedmp.solve import SolveOptions

# With ``coupled`` a text is a function of target, prompt and seed: the draft decides about speed alone.
ENGINE: dict[str, Any] = {
    "method": "coupled", "num_drafts": 1, "k_config": (1, 1, 1, 1, 1), "kv_slots": 16384, "target_threads": 1,
}  # fmt: skip
FILES = {
    "blocksworld step_2": ("blocksworld", "blocksworld/step_2.jsonl"),
    "blocksworld step_4": ("blocksworld", "blocksworld/step_4.jsonl"),
    "blocksworld step_6": ("blocksworld", "blocksworld/step_6.jsonl"),
    "game24": ("game24", "game24/24.csv"),
}
WAYS: dict[str, dict[str, Any]] = {
    "tree": {},
    "greedy": {"search": "greedy"},
    "random": {"evaluate": "random"},
}
EVERY = {"game24": 3}  # the file is ordered by difficulty


def wilson(successes: int, num: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, successes / num
    middle = share + z * z / (2 * num)
    half = z * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    return (middle - half) / (1 + z * z / num), (middle + half) / (1 + z * z / num)


def measure(engine: Engine, name: str, way: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    task_name, file = FILES[name]
    options = replace(SolveOptions(task_name, task_options=dict(args.option.get(task_name, {}))), **WAYS[way])
    task = options.make_task(chat=False)
    problems = list(task.load(folder / file, None))[:: EVERY.get(task_name, 1)][: args.limit]
    seeds = range(1 if way == "greedy" else args.seeds)
    results: list[SearchResult] = []
    started = time.monotonic()
    bar = Progress(
        TextColumn(f"{name} {way}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    with bar:
        job = bar.add_task(name, total=len(problems) * len(seeds))
        for seed in seeds:
            tree = TreeOfThoughts(
                engine, task, search=options.make_strategy(task), generate=options.make_generator(task),
                evaluate=options.make_evaluators(task), seed=seed,
            )  # fmt: skip
            results += tree.solve_all(
                problems, concurrency=args.concurrency, on_result=lambda index, result: bar.advance(job)
            )
    wall_s = time.monotonic() - started
    solved, num = sum(bool(result.is_correct) for result in results), len(results)
    tokens = sum(result.tree.num_tokens for result in results)
    return {
        "name": f"{name} {way}", "problems": len(problems), "seeds": len(seeds), "solved": solved, "results": num,
        "share": metrics.share(solved, num), "interval": wilson(solved, num),
        "by_seed": [
            sum(bool(result.is_correct) for result in results[i * len(problems) : (i + 1) * len(problems)])
            for i in range(len(seeds))
        ],
        "any": sum(bool(result.any_correct) for result in results),
        "steps_correct": sum(bool(result.score.get("steps_correct")) for result in results),
        "claimed": sum(bool(result.solutions) for result in results),
        "thoughts": sum(len(result.tree) for result in results),
        "failed": sum(result.counts().get("failed", 0) for result in results),
        "tokens": tokens, "wall_s": wall_s, "tokens_per_s": metrics.tokens_per_s(tokens, wall_s),
        "search": str(results[0].tree.search),
    }  # fmt: skip


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Rows as they are; the best path's verdict, and whether some claimed solution was right."""
    columns = (
        NAME,
        Column("solved", lambda row: f"{row['solved']} of {row['results']}"),
        Column("share", "share", ".1%"),
        Column("95 %", lambda row: "{:.0%}..{:.0%}".format(*row["interval"])),
        Column("some claim right", "any"),
        Column("thoughts", "thoughts"),
        Column("not in the format", "failed"),
    )
    return [table("solved", "Problems solved", report["rows"], columns)]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure row by row; the JSON is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with blocksworld/ and game24/")
    parser.add_argument("--only", action="append", default=[], help="rows whose name contains this; repeatable")
    parser.add_argument("--limit", type=int, help="problems of each file at most")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--option", type=json.loads, default={}, help='of tasks, {"game24": {"answer": false}} say')
    parser.add_argument("--target", help="folder or hub id (default: the bundled pair)")
    parser.add_argument("--draft", help="the same for the draft")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    if args.json is not None and args.json.exists():
        rows = json.loads(args.json.read_text())["rows"]  # rows that the file has are not measured again
    wanted = [(name, way) for name in FILES for way in WAYS]
    wanted = [job for job in wanted if not args.only or any(part in " ".join(job) for part in args.only)]
    with Engine(args.target, args.draft, **ENGINE) as engine:
        for name, way in wanted:
            if any(row["name"] == f"{name} {way}" for row in rows):
                continue
            rows.append(measure(engine, name, way, args.data, args))
            if args.json is not None:
                plain = {
                    "benchmark": "solve_rates",
                    "rows": rows,
                    "engine": ENGINE,
                    "concurrency": args.concurrency,
                    "node": describe_node(),
                }
                args.json.write_text(json.dumps(plain, indent=1) + "\n")
    print(tables({"rows": rows})[0].markdown(), end="")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SeedmpError as error:
        sys.exit(f"solve_rates: {error}")
