"""The command ``seedmp``: demo, solve, generate, growmap, doctor."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from seedmp import __version__
from seedmp.config import DTYPES, EngineConfig, Method, PolicyName, Schedule, resolve_placement
from seedmp.errors import ConfigError, SeedmpError
from seedmp.growmap_cli import add_growmap

EXIT_OK, EXIT_ERROR, EXIT_INTERRUPTED = 0, 2, 130
SHARED_MEMORY = Path("/dev/shm")
CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "i8mm_bf16")


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
    add_growmap(commands.add_parser("growmap", help="show, make and convert shapes of static token trees"))
    _add_solve(commands.add_parser("solve", help="search trees of thoughts for the problems of a task"))
    doctor = commands.add_parser("doctor", help="what this machine has, and how it would be used")
    doctor.set_defaults(run=_doctor)
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
    parser.add_argument("--draft", metavar="MODEL", help="folder or hub id of a model with the same vocabulary")
    parser.add_argument("--method", choices=[m.value for m in Method], default="mcsd")
    parser.add_argument(
        "--k-config", default=k_config, metavar="K,K,..", help="children, by level (default %(default)s)"
    )
    parser.add_argument(
        "--num-drafts", type=int, default=num_drafts, metavar="N", help="draft processes (default %(default)s)"
    )
    parser.add_argument("--schedule", choices=[s.value for s in Schedule], default="scheduled")
    parser.add_argument("--policy", choices=[p.value for p in PolicyName], default="fcfs-batch")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")


def _engine_settings(args: argparse.Namespace) -> dict[str, Any]:
    names = ("target", "draft", "method", "num_drafts", "schedule", "policy", "dtype")
    return {name: getattr(args, name) for name in names} | {"k_config": _k_config(args.k_config)}


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
    parser.add_argument("--evaluate", metavar="NAME", help="score, value, vote, self-consistency, none, random")
    parser.add_argument("--values", type=int, metavar="N", help="answers or votes asked for a value")
    parser.add_argument("--nodes", type=int, metavar="N", help="budget of each search, in thoughts")
    parser.add_argument("--tokens", type=int, metavar="N", help="budget of each search, in tokens")
    parser.add_argument("--seconds", type=float, metavar="S", help="budget of each search, in seconds")
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
        "task", "data", "limit", "search", "beam", "thoughts", "temperature", "depth", "evaluate", "values", "nodes",
        "tokens", "seconds", "seed", "seeds", "barrier",
    )  # fmt: skip
    options = SolveOptions(**{name: getattr(args, name) for name in names}, engine=_engine_settings(args))
    out = args.out or Path(f"solve-{args.task}-{args.search}.jsonl")
    try:
        run_solve(options, out, concurrency=args.concurrency, fresh=args.fresh, pages=args.pages)
    except KeyboardInterrupt:
        print(f"\nseedmp: interrupted; what is solved is in {out}, the same command goes on", file=sys.stderr)
        return EXIT_INTERRUPTED
    return EXIT_OK


# --- doctor --------------------------------------------------------------------------------------


def _doctor(args: argparse.Namespace) -> int:
    import torch

    from seedmp.models import pair

    lines = [("seedmp", __version__), ("python", sys.version.split()[0])]
    lines += [(name, _version(name)) for name in ("torch", "transformers", "pyzmq", "msgpack", "numpy", "psutil")]
    config = EngineConfig(target=str(pair.TARGET), draft=str(pair.DRAFT))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lines.append(("cores", f"{usable} usable of {os.cpu_count()}"))
    lines.append(("CPU", f"{torch.backends.cpu.get_cpu_capability()}, bfloat16 {_bf16_support()}"))
    lines.append(("shared memory", _shared_memory()))
    lines.append(("GPUs", _gpus() or "none that torch sees"))
    placement = resolve_placement(config)
    target_threads, draft_threads = config.threads()
    if placement.target == "cpu":
        lines.append(("CPU threads", f"target {target_threads}, each draft {draft_threads}"))
    lines.append(("placement", f"target on {placement.target}, {config.num_drafts} drafts on {placement.drafts[0]}"))
    plan = f"method {config.method.value}, k_config {config.k_config}, {config.schedule.value}, {config.policy.value}"
    lines.append(("defaults", plan))
    for name, value in lines:
        print(f"{name:14} {value}")
    return EXIT_OK


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _bf16_support() -> str:
    """Whether the CPU multiplies bfloat16 itself; without, it is slower than float32."""
    import torch

    try:
        flags = CPU_INFO.read_text().split()
    except OSError:
        flags = []
    native = [flag for flag in BF16_FLAGS if flag in flags]
    if native:
        return f"native ({', '.join(native)})"
    return "in software only" if torch.backends.mkldnn.is_available() else "not accelerated"


def _shared_memory() -> str:
    if not SHARED_MEMORY.is_dir():
        return f"no {SHARED_MEMORY}"
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free in {SHARED_MEMORY}"


def _gpus() -> str:
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return "; ".join(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in found)


if __name__ == "__main__":
    sys.exit(main())
