"""The command ``seedmp bench``: run benchmarks, compare two reports, make report and tables anew."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from seedmp.benchmarks.options import Options
from seedmp.config import DTYPES
from seedmp.errors import ConfigError
from seedmp.measuring.progress import Screen
from seedmp.system import let_idle_threads_sleep

ALL = "all"
NAMES = ("peers", "schedules", "table1", "acceptance", "accepted", "sequoia", "mtbench", "scale")
OTHERS = ("compare", "report", "tables")
PLAIN_COLUMNS = 170


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp bench``."""
    parser.add_argument(
        "name", metavar="NAME",
        help=f"all, {', '.join(NAMES)}; or compare A.json B.json; report DIR: make report.html anew; "
        "tables PAGE.md ...: fill the marked tables of Markdown pages",
    )  # fmt: skip
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="of compare, report and tables")
    parser.add_argument("--quick", action="store_true", help="minutes: short texts, 2 repeats")
    parser.add_argument("--smoke", action="store_true", help="seconds: does it run? Figures mean nothing")
    parser.add_argument("--repeats", type=int, metavar="N", help="interleaved repeats (default 5; with --precision 20)")
    parser.add_argument(
        "--precision", type=float, metavar="PERCENT",
        help="repeat until chance moves no speed-up by more, 100 times at most; at 2.5 a second run agrees within 5 %%",
    )  # fmt: skip
    parser.add_argument("--target", metavar="MODEL", help="folder or hub id (default: the bundled pair, inflated)")
    parser.add_argument("--draft", metavar="MODEL", help="folder or hub id of a model with the same vocabulary")
    parser.add_argument("--head", metavar="MODEL", help="an EAGLE head of the target (default: the bundled target's)")
    parser.add_argument("--data", type=Path, metavar="PATH", help="a published file, or a folder with several")
    parser.add_argument("--shape", metavar="NAME", help="what the target is inflated to; none (default: by node)")
    parser.add_argument("--draft-shape", metavar="NAME", help="the same for the draft")
    parser.add_argument("--dtype", choices=DTYPES, help="of both models (default: by node)")
    parser.add_argument("--seed", type=int, default=0, help="of sampled texts (default %(default)s)")
    parser.add_argument("--nodes", type=int, metavar="N", help="draft tokens of a tree, for accepted (default 16)")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path("bench-report"), help="default %(default)s")


def run(args: argparse.Namespace) -> int:
    """Do what was asked for.

    Raises:
        ConfigError: something is wrong with it; no model was loaded.
    """
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_COLUMNS)
    if args.name in OTHERS:
        handlers = {"compare": _compare, "report": _report, "tables": _tables}
        return handlers[args.name](args.files, console)
    if args.files:
        raise ConfigError(f"{args.files[0]}: bench {args.name} takes no file; problems are given with --data")
    names = NAMES if args.name == ALL else (args.name,)
    if not set(names) <= set(NAMES):
        raise ConfigError(f"there is no benchmark {args.name!r}; known are {ALL}, {', '.join((*NAMES, *OTHERS))}")
    given = {name: getattr(args, name) for name in Options.__dataclass_fields__}
    return run_benchmarks(names, Options(**given), console)


def run_benchmarks(names: Sequence[str], options: Options, console: Console) -> int:
    """Run benchmarks on common engines; write JSON, plots and the report.

    Raises:
        ConfigError: before any model is loaded.
        KeyboardInterrupt: passed on; what was measured is written.
    """
    let_idle_threads_sleep(os.environ)
    options = options.resolved()
    from seedmp.benchmarks import harness, report
    from seedmp.config import EngineConfig
    from seedmp.measuring.engines import EnginePool

    plans = [report.BENCHMARKS[name].plan(options) for name in names]
    threads = dict(zip(("target", "draft"), EngineConfig("-", "-").threads(), strict=True))
    about = {"model": options.describe_model(), "threads": threads, "settings": options.to_plain()}
    console.print(f"{options.describe_model()}; {options.num_repeats} repeats; into {options.out}", highlight=False)
    try:
        with Screen(sum(_steps(plan, options.num_repeats) for plan in plans)) as screen, EnginePool() as pool:
            for plan in plans:
                screen.title = plan.name
                repeats = harness.Repeats(plan.num_repeats or options.num_repeats)
                if options.precision and plan.num_repeats is None:
                    repeats = harness.Repeats(options.num_repeats, options.precision / 100)
                made = harness.run_plan(plan, repeats, pool, screen, options.out / f"{plan.name}.json", about)
                for table in report.tables_of(made):
                    _print(table, screen.console if screen.console.is_terminal else console)
    finally:
        if any((options.out / f"{plan.name}.json").is_file() for plan in plans):
            console.print(f"report: {report.write_report(options.out)}", highlight=False)
    return 0


START_STEPS = 2  # a group's starts take about as long as so many runs, when most engines are there already


def _steps(plan: Any, repeats: int) -> int:
    return int(plan.num_steps * ((plan.num_repeats or repeats) + 1) + START_STEPS * len(plan.groups))


def _print(made: Any, console: Console) -> None:
    shown = RichTable(title=made.title, title_justify="left")
    for number, head in enumerate(made.heads):
        shown.add_column(head, justify="right" if number and head not in ("row", "by") else "left")
    for row in made.rows:
        shown.add_row(*(cell.strip("`") for cell in row))
    console.print(shown, highlight=False, markup=False)


# --- of results that are there ---------------------------------------------------------------------------


def _compare(files: Sequence[Path], console: Console) -> int:
    from seedmp.benchmarks.summary import SAME, Likeness, compare, num_apart
    from seedmp.benchmarks.tables import read_report

    if len(files) != 2:
        raise ConfigError(f"bench compare needs two reports, {len(files)} given")
    before, after = map(read_report, files)
    changes = compare(before, after)
    if not changes:
        raise ConfigError(f"{files[0]} and {files[1]} have no row in common")
    shown = RichTable(title=f"{files[1]} ÷ {files[0]}", title_justify="left")
    for head in ("row", "before", "after", "ratio", "noise ±", "of speed-ups", ""):
        shown.add_column(head, justify="left" if head == "row" else "right")
    for change in changes:
        speedups = "–" if change.ratio_of_speedups is None else f"{change.ratio_of_speedups:.2f}"
        verdict = ("faster" if change.ratio > 1 else "SLOWER") if change.is_beyond_noise else ""
        shown.add_row(
            change.row, f"{change.before:.1f}", f"{change.after:.1f}", f"{change.ratio:.2f}",
            f"{100 * change.noise:.0f} %", speedups, verdict,
        )  # fmt: skip
    console.print(shown, highlight=False, markup=False)
    beyond = sum(change.is_beyond_noise for change in changes)
    console.print(f"{beyond} of {len(changes)} rows changed beyond the noise of their repeats", highlight=False)
    if likeness := Likeness.of(change.ratio_of_speedups for change in changes):
        console.print(f"speed-ups within {100 * SAME:.0f} %: {likeness}", highlight=False)
    if apart := num_apart(changes):
        console.print(f"speed-ups further apart than their ±: {apart}", highlight=False)
    return 0


def _report(files: Sequence[Path], console: Console) -> int:
    from seedmp.benchmarks.report import write_report

    if len(files) != 1:
        raise ConfigError("bench report needs one folder")
    console.print(f"report: {write_report(files[0])}", highlight=False)
    return 0


def _tables(files: Sequence[Path], console: Console) -> int:
    from seedmp.benchmarks.report import tables_of
    from seedmp.benchmarks.tables import fill

    if not files:
        raise ConfigError("bench tables needs the pages to fill, docs/benchmarks.md say")
    for path in files:
        try:
            page = path.read_text()
            filled = fill(page, Path(__file__).resolve().parent, tables_of)
            if filled != page:
                path.write_text(filled)
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        console.print(f"{path}: {'filled' if filled != page else 'unchanged'}", highlight=False)
    return 0
