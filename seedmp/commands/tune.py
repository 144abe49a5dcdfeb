"""The command ``seedmp tune``: measure this node, and write the fastest settings as a plan."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from seedmp.commands.arguments import options_from, read_list
from seedmp.config import DTYPES
from seedmp.errors import ConfigError
from seedmp.measuring.progress import Screen
from seedmp.reporting.output import check_output
from seedmp.system import let_idle_threads_sleep

if TYPE_CHECKING:
    from seedmp.tuning.tune import Tuned

METHODS = ("mcsd", "sd", "coupled")
PLAIN_COLUMNS = 170
MAX_RANKS = 5  # of an acceptance vector, in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp tune``."""
    parser.add_argument("--out", type=Path, default=Path("plan.json"), metavar="PLAN", help="default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured here")
    parser.add_argument("--target", metavar="MODEL", help="folder or hub id (default: the bundled pair)")
    parser.add_argument("--draft", metavar="MODEL", help="folder or hub id of a model with the same vocabulary")
    parser.add_argument("--target-shape", metavar="NAME", help="what a Llama target is inflated to, such as 134m")
    parser.add_argument("--draft-shape", metavar="NAME", help="the same for the draft")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument(
        "--data", type=Path, metavar="FILE",
        help="prompts: .jsonl with a question or prompt a line, else a prompt a line (default: GSM8K of our own); "
        "every other one calibrates",
    )  # fmt: skip
    parser.add_argument("--branches", type=int, default=8, metavar="N", help="requests at once (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="of each request (default 96, --quick 32)")
    parser.add_argument("--method", choices=METHODS, default="mcsd", help="how children are drawn (default mcsd)")
    parser.add_argument(
        "--draft-top-p", type=float, default=0.9, metavar="P",
        help="measure a vector for drafts cut to this nucleus, too (default %(default)s); engines do not cut so",
    )  # fmt: skip
    parser.add_argument("--drafts", default="1,2,3", metavar="N", help="numbers of drafts to choose from; commas")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="in turns (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of sampled texts (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="a minute: short texts, few sizes and candidates")


def run(args: argparse.Namespace) -> int:
    """Tune, print what was measured, and write the plan."""
    let_idle_threads_sleep(os.environ)
    check_output(args.out)
    if args.json is not None:
        check_output(args.json)
        if args.json.resolve() == args.out.resolve():
            raise ConfigError(f"{args.out}: --out and --json are the same file")
    # Only now: loading torch reads the setting above.
    from seedmp.tuning.options import TuneOptions
    from seedmp.tuning.tune import num_steps, tune

    max_tokens = args.max_tokens if args.max_tokens is not None else 32 if args.quick else 96
    drafts = tuple(read_list("--drafts", args.drafts, int))
    options = options_from(TuneOptions, args, max_tokens=max_tokens, drafts=drafts)
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, PLAIN_COLUMNS)
    with Screen(num_steps(options)) as screen:
        tuned = tune(options, screen)
    for table in (acceptance_table(tuned), trials_table(tuned)):
        console.print(table, highlight=False, markup=False)
    for note in tuned.notes:
        console.print(note, highlight=False, markup=False)
    console.print(tuned.plan.in_words, highlight=False, markup=False)
    tuned.plan.save(args.out)
    console.print(f"plan: {args.out}; Engine(plan={str(args.out)!r}) uses it", highlight=False, markup=False)
    if args.json is not None:
        settings = {name: str(value) for name, value in vars(options).items()}
        args.json.write_text(json.dumps({**report(tuned), "options": settings}, indent=1) + "\n")
    return 0


def acceptance_table(tuned: Tuned) -> Table:
    """A line for each vector and depth."""
    shown = Table(title="P(child accepted | its turn came), by rank", title_justify="left")
    for head in ("vector", "depth", *(f"child {rank + 1}" for rank in range(MAX_RANKS))):
        shown.add_column(head, justify="left" if head == "vector" else "right")
    for name, acceptance in tuned.acceptance.items():
        for depth, rates in enumerate(acceptance.rates, start=1):
            cells = [f"{rate:.3f}" for rate in rates[:MAX_RANKS]]
            depths = "all" if len(acceptance.rates) == 1 else str(depth)
            shown.add_row(name if depth == 1 else "", depths, *cells, *[""] * (MAX_RANKS - len(cells)))
    return shown


def trials_table(tuned: Tuned) -> Table:
    """A line for each setting that ran."""
    plain = tuned.trials[0]
    shown = Table(title="tokens/s", title_justify="left")
    for head in ("setting", "formula", "simulated", "predicted", "measured", "low", "high", "error", "x ar", ""):
        shown.add_column(head, justify="left" if head in ("setting", "") else "right")
    for trial in tuned.trials:
        candidate, figures = trial.candidate, trial.figures
        shown.add_row(
            candidate.name, f"{candidate.estimated:.1f}" if candidate.estimated else "–",
            *(f"{rate:.1f}" for rate in (candidate.simulated, trial.predicted, figures.median)),
            f"{figures.low:.1f}", f"{figures.high:.1f}", f"{100 * trial.error:+.1f} %",
            f"{trial.gain_over(plain):.2f}", "<- plan" if is_plan(tuned, trial) else "",
        )  # fmt: skip
    return shown


def is_plan(tuned: Tuned, trial: Any) -> bool:
    """Whether the plan has the settings of this trial."""
    return all(tuned.plan.settings.get(name) == value for name, value in trial.candidate.settings.items())


def report(tuned: Tuned) -> dict[str, Any]:
    """All figures, JSON-able."""
    plain = tuned.trials[0]
    return {
        "plan": tuned.plan.to_plain(),
        "in_words": tuned.plan.in_words,
        "acceptance": {name: acceptance.to_plain() for name, acceptance in tuned.acceptance.items()},
        "costs": {f"{target}+{draft}": costs.to_plain() for (target, draft), costs in tuned.prices.items()},
        "candidates": [{**asdict(candidate), "name": candidate.name} for candidate in tuned.candidates],
        "trials": [
            {
                "name": trial.candidate.name, "settings": dict(trial.candidate.settings),
                "formula": trial.candidate.estimated, "simulated": trial.candidate.simulated,
                "calibrated": trial.calibrated, "predicted": trial.predicted, "measured": trial.measured,
                "error": trial.error, "over_ar": trial.gain_over(plain),
                "same_text_as_ar": trial.token_ids == plain.token_ids, "is_plan": is_plan(tuned, trial),
            }
            for trial in tuned.trials
        ],
        "notes": list(tuned.notes),
    }  # fmt: skip
