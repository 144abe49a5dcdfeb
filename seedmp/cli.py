"""The command ``seedmp``: demo, solve, generate, growmap, profile, simulate, tune, doctor."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seedmp import __version__
from seedmp.benchmarks.command import add_bench
from seedmp.config import DTYPES, POLICIES, Method, Schedule
from seedmp.doctor import add_doctor
from seedmp.errors import ConfigError, SeedmpError
from seedmp.growmap_cli import add_growmap
from seedmp.profiling.cli import add_profile
from seedmp.tuning.simulate_cli import add_simulate
from seedmp.tuning.tune_cli import add_tune

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        the exit status: 0, 2 after an error that is told in one line, 130 after Ctrl-C.
    """
    args = _parser().parse_args(argv)
    try:
        status: int = args.run(args)
        return status
    except SeedmpError as error:
        print(f"seedmp: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("seedmp: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="seedmp", description="Reasoning trees by scheduled speculative decoding.")
    parser.add_argument("--version", action="version", version=f"seedmp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_demo(commands.add_parser("demo", help="grow a reasoning tree, then compare the schedules"))
    _add_generate(commands.add_parser("generate", help="continue a prompt"))
    add_bench(commands.add_parser("bench", help="measure this machine, with what it shows and does not"))
    add_growmap(commands.add_parser("growmap", help="show, make and convert shapes of static token trees"))
    _add_solve(commands.add_parser("solve", help="search trees of thoughts for the problems of a task"))
    add_profile(commands.add_parser("profile", help="run a command or script and see where its time goes"))
    add_simulate(commands.add_parser("simulate", help="what other numbers of drafts, trees and policies would reach"))
    add_tune(commands.add_parser("tune", help="measure this machine, and write the fastest settings as a plan"))
    add_doctor(commands.add_parser("doctor", help="what this machine has, and how it would be used"))
    return parser


# --- demo ----------------------------------------------------------------------------------------


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", choices=("blocksworld", "gsm8k"), default="blocksworld")
    parser.add_argument("--data", type=Path, metavar="FILE", help="problems as published, one JSON object a line")
    parser.add_argument("--limit", type=int, default=9, metavar="N", help="problems to read (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--seed", type=int, default=0, help="of the tree's thoughts (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the tree's thoughts (default %(default)s)")
    parser.add_argument("--shape", default="134m", help="what the bundled target is inflated to (default %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="default %(default)s: equal texts")
    parser.set_defaults(run=_demo)


def _demo(args: argparse.Namespace) -> int:
    from seedmp.demo import DemoOptions, run_demo

    run_demo(
        DemoOptions(args.task, args.data, args.limit, args.json, args.seed, args.temperature, args.shape, args.dtype)
    )
    return EXIT_OK


# --- generate ------------------------------------------------------------------------------------


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", metavar="PROMPT", help="text to continue; - reads it from standard input")
    _add_engine(parser, k_config="1,1,1", num_drafts=1)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="default %(default)s")
    parser.add_argument("--seed", type=int, help="repeats a sampled text")
    parser.add_argument("--n", type=int, default=1, help="continuations, one after another (default %(default)s)")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="ends the text; may be repeated")
    parser.set_defaults(run=_generate)


def _generate(args: argparse.Namespace) -> int:
    from seedmp.engine import Engine
    from seedmp.sampling import SamplingParams

    params = SamplingParams(
        temperature=args.temperature, max_tokens=args.max_tokens, stop=tuple(args.stop), seed=args.seed, n=args.n
    )
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    with Engine(**_engine_settings(args)) as engine:
        handles = engine.submit_all(prompt, params)
        for number, handle in enumerate(handles, start=1):
            if len(handles) > 1:
                print(f"--- {number} of {len(handles)} ---")
            for chunk in handle:
                print(chunk.text if engine.tokenizer is not None else f"{chunk.token_ids} ", end="", flush=True)
            print()
    return EXIT_OK


def _add_engine(parser: argparse.ArgumentParser, *, k_config: str, num_drafts: int) -> None:
    parser.add_argument("--target", metavar="MODEL", help="folder or hub id (default: the bundled pair)")
    parser.add_argument(
        "--draft", metavar="MODEL", help="folder or hub id of a model with the same vocabulary; eagle: of a head"
    )
    parser.add_argument("--method", choices=[m.value for m in Method], default="mcsd")
    parser.add_argument(
        "--k-config", default=k_config, metavar="K,K,..", help="children, by level (default %(default)s)"
    )
    parser.add_argument("--growmap", metavar="MAP", help="static tree: a .pt or .json file, or KxD chains")
    parser.add_argument("--nodes", type=int, metavar="N", help="draft tokens in a tree, for opt-tree, eagle and ngram")
    parser.add_argument("--max-depth", type=int, metavar="N", help="draft tokens on a path, for the same")
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="stop at layers that add no more tokens, for opt-tree and eagle"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="nodes of a layer that go on, for eagle; 1 is a chain")
    parser.add_argument(
        "--num-drafts", type=int, default=num_drafts, metavar="N", help="draft processes (default %(default)s)"
    )
    parser.add_argument("--schedule", choices=[s.value for s in Schedule], default="scheduled")
    policies = f"{', '.join(POLICIES.names())} or module:Class"
    parser.add_argument("--policy", metavar="NAME", default="fcfs-batch", help=f"{policies} (default %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")


def _engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("target", "draft", "method", "num_drafts", "schedule", "policy", "dtype")
    settings = {name: getattr(args, name) for name in names} | {"k_config": _k_config(args.k_config)}
    optional = ("growmap", "nodes", "max_depth", "threshold", "top_k")
    return settings | {name: value for name in optional if (value := getattr(args, name)) is not None}


def _k_config(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--k-config {text!r}: must be whole numbers with commas, such as 2,2,1") from None


# --- solve ---------------------------------------------------------------------------------------


def _add_solve(parser: argparse.ArgumentParser) -> None:
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
    _add_engine(parser, k_config="1,1,1", num_drafts=3)
    parser.set_defaults(run=_solve)


def _solve(args: argparse.Namespace) -> int:
    from seedmp.solve import SolveOptions, run_solve

    names = (
        "task", "data", "limit", "search", "beam", "thoughts", "temperature", "depth", "evaluate", "values", "seed",
        "seeds", "barrier",
    )  # fmt: skip
    options = SolveOptions(
        **{name: getattr(args, name) for name in names},
        nodes=args.max_thoughts, tokens=args.max_tokens, seconds=args.max_seconds,
        task_options=dict(_option(text) for text in args.option), engine=_engine_settings(args),
    )  # fmt: skip
    out = args.out or Path(f"solve-{args.task}-{args.search}.jsonl")
    try:
        run_solve(options, out, concurrency=args.concurrency, fresh=args.fresh, pages=args.pages)
    except KeyboardInterrupt:
        print(f"\nseedmp: interrupted; what is solved is in {out}, the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


def _option(text: str) -> tuple[str, Any]:
    """A name, and its value as JSON reads it; what JSON does not read is text."""
    name, sign, value = text.partition("=")
    if not sign:
        raise ConfigError(f"--option {text!r}: must be NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


if __name__ == "__main__":
    sys.exit(main())
