"""The command ``seedmp solve``: search trees of thoughts for the problems of a task."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from seedmp.commands.arguments import add_engine, engine_settings, options_from
from seedmp.errors import ConfigError
from seedmp.plain_json import parse_json
from seedmp.solve import SolveOptions, run_solve

INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp solve``."""
    parser.add_argument("task", metavar="TASK", help="blocksworld, creative_writing, game24 or gsm8k")
    parser.add_argument("--data", metavar="FILE", help="problems in the published format (default: a few shipped ones)")
    parser.add_argument("--limit", type=int, metavar="N", help="problems at most")
    parser.add_argument(
        "--search", default="bfs", metavar="NAME", help="bfs, dfs, best-first, mcts; greedy: one chain (default bfs)"
    )
    parser.add_argument("--beam", type=int, metavar="B", help="thoughts of a level, or at a time, that go on")
    parser.add_argument("--thoughts", type=int, metavar="N", help="thoughts asked for of each path")
    parser.add_argument("--temperature", type=float, help="of thoughts")
    parser.add_argument("--depth", type=int, metavar="T", help="levels of the tree")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the task, answer=false say; repeatable"
    )
    parser.add_argument("--evaluate", metavar="NAME", help="score, value, vote, self-consistency, none, random")
    parser.add_argument("--values", type=int, metavar="N", help="answers or votes asked for a value")
    parser.add_argument("--max-thoughts", type=int, metavar="N", help="budget of each search")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="the same in tokens, generated and scored")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="the same in time")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first round over the problems (default %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="rounds over the problems, a seed each")
    parser.add_argument("--barrier", action="store_true", help="value a level only when it is written (slower)")
    parser.add_argument("--concurrency", type=int, default=3, metavar="N", help="problems at a time; 1 shows the tree")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON lines (default: solve-TASK-SEARCH.jsonl here)")
    parser.add_argument("--fresh", action="store_true", help="begin anew even if the file has results")
    parser.add_argument("--pages", type=Path, metavar="FOLDER", help="write an HTML page for each tree")
    add_engine(parser, k_config="1,1,1", num_drafts=3)


def run(args: argparse.Namespace) -> int:
    """Solve; what is solved stays in the file when interrupted."""
    options = options_from(
        SolveOptions, args, nodes=args.max_thoughts, tokens=args.max_tokens, seconds=args.max_seconds,
        task_options=dict(_option(text) for text in args.option), engine=engine_settings(args),
    )  # fmt: skip
    out = args.out or Path(f"solve-{args.task}-{args.search}.jsonl")
    try:
        run_solve(options, out, concurrency=args.concurrency, fresh=args.fresh, pages=args.pages)
    except KeyboardInterrupt:
        print(f"\nseedmp: interrupted; what is solved is in {out}, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _option(text: str) -> tuple[str, Any]:
    """A name, and its value as JSON reads it; what JSON does not read is text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--option {text!r}: must be NAME=VALUE")
    try:
        return name, parse_json(value)
    except ValueError:
        return name, value
