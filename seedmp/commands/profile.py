"""The command ``seedmp profile``: run another command, or a script, and look at its engines."""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from seedmp.checks import check_number, check_whole
from seedmp.errors import ConfigError
from seedmp.profiling import overhead
from seedmp.profiling.engines import profile_engines
from seedmp.reporting.output import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp profile``."""
    parser.add_argument("--out", type=Path, default=Path("profile"), metavar="FOLDER", help="default ./%(default)s")
    parser.add_argument("--period", type=float, default=0.1, metavar="S", help="between samples (default %(default)s)")
    parser.add_argument("--overhead", action="store_true", help="measure what profiling itself costs, and stop")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="of --overhead (default %(default)s)")
    parser.add_argument(
        "args", nargs=argparse.REMAINDER, metavar="-- ARGS",
        help="what to run: a seedmp command such as `solve gsm8k --limit 3`, or a Python script with its arguments",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Profile what ``args.args`` names; ``args.main`` runs a command of seedmp."""
    check_number("--period", args.period, 0.005, 60)
    if args.overhead:
        return _overhead(check_folder(args.out), args.repeats, args.period)
    what = args.args[1:] if args.args[:1] == ["--"] else args.args
    if not what:
        raise ConfigError("nothing to profile: seedmp profile -- solve gsm8k --limit 3, or -- script.py")
    if what[0] == "profile":
        raise ConfigError("a profile of a profile: name the command itself")
    profiles = []
    try:
        with profile_engines(args.out, period_s=args.period) as profiles:
            status = _run(what, args.main)
    finally:
        for profile in profiles:
            print(f"\n{profile.summary}\n\n{profile.folder}: " + ", ".join(sorted(p.name for p in profile.files)))
    if not profiles:
        print("no engine was opened: there is nothing to tell", file=sys.stderr)
    return status


def _run(what: Sequence[str], main: Callable[[Sequence[str]], int]) -> int:
    if what[0].endswith(".py"):
        if not Path(what[0]).is_file():
            raise ConfigError(f"{what[0]}: no such script")
        argv, sys.argv = sys.argv, list(what)
        try:
            runpy.run_path(what[0], run_name="__main__")
        finally:
            sys.argv = argv
        return 0
    return main(what)


def _overhead(folder: Path, repeats: int, period_s: float) -> int:
    check_whole("--repeats", repeats, 1, 1000)
    result = overhead.measure_overhead(folder, repeats, period_s)
    (folder / "overhead.json").write_text(json.dumps(result, indent=1) + "\n")
    low, high = result["spread"]
    print(
        f"profiling costs {100 * result['overhead']:.1f} % (median of {repeats}; "
        f"{100 * low:.1f} to {100 * high:.1f} %); "
        f"two runs without it differ by {100 * result['noise']:.1f} %"
    )
    return 0
