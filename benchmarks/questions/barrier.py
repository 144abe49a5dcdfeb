"""Question: is the verifier kept busy when a thought is valued before its siblings are written?

``python -m seedmp.benchmarks.questions.barrier --data STEP_4.jsonl --json FILE``

The same breadth-first searches on Blocksworld run one after another, with and without a barrier between writing a
level and valuing it, under both policies. Repeats are interleaved. All give the same trees (checked). Verifier busy
share = time in forwards ÷ wall time of the search (``seedmp.metrics.verifier_busy``). Queue-dry share = 1 - busy share.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from seedmp import metrics
from seedmp.engine import Engine
from seedmp.errors import SeedmpError
from seedmp.measuring.node import describe_node
from seedmp.search import BFS, Sample, TreeOfThoughts
from seedmp.tasks.registry import get_task

ROWS = {"no-barrier": False, "barrier": True}
POLICIES = ("fcfs", "fcfs-batch")


def measure(
    engine: Engine, problems: Sequence[Any], *, beam: int, thoughts: int, barrier: bool
) -> tuple[dict[str, float], list[str]]:
    """One round over the problems, and the trees that it grew."""
    task = get_task("blocksworld", chat=False)
    engine.spans(reset=True)
    tree = TreeOfThoughts(engine, task, search=BFS(beam), generate=Sample(thoughts, 0.8), barrier=barrier)
    results = [tree.solve(problem) for problem in problems]
    wall_s = sum(result.wall_s for result in results)
    tokens = sum(result.tree.num_tokens for result in results)
    figures = {
        "verifier_busy": metrics.verifier_busy(engine.spans(), wall_s),
        "tokens_per_s": metrics.tokens_per_s(tokens, wall_s),
        "wall_s": wall_s,
    }
    return figures, [result.tree.to_json(timings=False) for result in results]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Blocksworld problems (default: made ones)")
    parser.add_argument("--limit", type=int, default=6, help="problems (default %(default)s)")
    parser.add_argument("--beam", type=int, default=3, help="states kept of a level (default %(default)s)")
    parser.add_argument("--thoughts", type=int, default=4, help="written for each (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shape", default=None, help="what the target is inflated to, 134m say")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    problems = get_task("blocksworld", chat=False).load(args.data, args.limit)
    rows: list[dict[str, Any]] = []
    trees: list[list[str]] = []
    settings: dict[str, Any] = {"num_drafts": 3, "k_config": (1, 1, 1), "dtype": args.dtype, "target_shape": args.shape}
    search = {"beam": args.beam, "thoughts": args.thoughts}
    for policy in POLICIES:
        repeats: dict[str, list[dict[str, float]]] = {name: [] for name in ROWS}
        with Engine(policy=policy, **settings) as engine:
            measure(engine, problems[:1], **search, barrier=True)  # warm-up
            for repeat in track(range(args.repeats), f"measuring {policy}", console=Console(stderr=True)):
                for name in list(ROWS) if repeat % 2 else list(ROWS)[::-1]:
                    figures, grown = measure(engine, problems, **search, barrier=ROWS[name])
                    repeats[name].append(figures)
                    trees.append(grown)
        rows += [
            {"name": name, "policy": policy}
            | {key: statistics.median(one[key] for one in done) for key in done[0]}
            | {"repeats": done}
            for name, done in repeats.items()
        ]
    table = Table("policy", "row", "verifier busy", "min..max", "tokens/s", "wall s")
    for row in rows:
        busy = [one["verifier_busy"] for one in row["repeats"]]
        table.add_row(
            row["policy"], row["name"], f"{row['verifier_busy']:.3f}", f"{min(busy):.3f}..{max(busy):.3f}",
            f"{row['tokens_per_s']:.0f}", f"{row['wall_s']:.1f}",
        )  # fmt: skip
    Console().print(table)
    same = all(grown == trees[0] for grown in trees)
    print(f"same trees: {same}")
    if args.json is not None:
        plain = {"rows": rows, "same_trees": same, "settings": settings | search, "node": describe_node()}
        plain |= {"problems": len(problems), "data": args.data.name if args.data else "made"}
        args.json.write_text(json.dumps(plain, indent=1) + "\n")
    return 0 if same else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SeedmpError as error:
        sys.exit(f"barrier: {error}")
