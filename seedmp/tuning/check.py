"""Question: how far is the simulator from real runs? ``python -m seedmp.tuning.check --json FILE``

Twelve settings of drafts, k_config and policy are compared on the bundled pair, with an inflated target. The verifier's
overheads and the acceptance come from two runs, one with chains and one with trees. Each setting then runs ``repeats``
times. Its median tokens/s is compared with the mean of eight simulations: error = simulated ÷ real − 1.

Prices are those of each model alone (``measure_costs``). They are measured before and after every setting, because the
speed of a shared machine changes with time. The acceptance is chosen such that simulated texts have the accepted length
of real texts of the same number of tokens, whose first and last rounds can accept little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from seedmp.config import EngineConfig
from seedmp.engine import Engine
from seedmp.measuring.account import measure
from seedmp.measuring.node import describe_node
from seedmp.models import pair
from seedmp.sampling import SamplingParams
from seedmp.simulation.costs import Costs, Curve, load_costs
from seedmp.simulation.simulate import Workload, simulate
from seedmp.system import let_idle_threads_sleep

DRAFTS, POLICIES = (1, 2, 3), ("fcfs", "fcfs-batch")
CHAIN, TREE = (1, 1, 1), (2, 2, 1)
PROMPT = "Question: There are {} birds and {} fish. How many animals?\nAnswer:"
TIMEOUT_S = 600.0
NUM_SEEDS = 8


def fit_acceptance(k_config: tuple[int, ...], mean_accepted_len: float, work: Workload, *earlier: float) -> float:
    """The acceptance of the child after ``earlier`` ones that makes a tree's simulated accepted length the real one.

    If no value in [0, 1] does, the nearer end.
    """
    config = EngineConfig(target="-", draft="-", k_config=k_config, num_drafts=3)
    low, high = 0.0, 1.0
    for _ in range(10):
        middle = (low + high) / 2
        costs = Costs(Curve((1,), (1.0,)), Curve((1,), (1.0,)), acceptance=((*earlier, middle),))
        each = (simulate(config, costs, replace(work, seed=seed), hardware="ideal") for seed in range(NUM_SEEDS))
        is_less = statistics.mean(outcome.mean_accepted_len for outcome in each) < mean_accepted_len
        low, high = (middle, high) if is_less else (low, middle)
    return (low + high) / 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 when it finished."""
    let_idle_threads_sleep(os.environ)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="134m", help="of the target; none: as it is (default %(default)s)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--branches", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    common = {"target_shape": None if args.shape == "none" else args.shape, "dtype": args.dtype, "kv_slots": 4096}
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens, ignore_eos=True, seed=0)
    prompts = [PROMPT.format(i, i + 2) for i in range(args.branches)]
    config = EngineConfig(target=str(pair.TARGET), draft=str(pair.DRAFT), **common)
    known = _known_from_runs(common, prompts, params)
    from seedmp.tuning.measure import LoadedPair, measure_costs, num_slots

    loaded = LoadedPair.load(config, num_slots())
    prices = measure_costs(config, temperature=0.0, loaded=loaded)
    rows: list[dict[str, Any]] = []
    for drafts, k_config, policy in itertools.product(DRAFTS, (CHAIN, TREE), POLICIES):
        settings: dict[str, Any] = {"num_drafts": drafts, "k_config": k_config, "policy": policy}
        with Engine(**settings, **common) as engine:
            prompt_len = len(engine.encode(prompts[0], special=True))
            runs = [measure(engine, prompts, params, TIMEOUT_S) for _ in range(args.repeats + 1)][1:]  # one warms up
            engine_config = engine.config
        before, prices = prices, measure_costs(config, temperature=0.0, loaded=loaded)
        costs = _between(before, prices).with_overheads(known).with_acceptance(known.acceptance)
        simulated = statistics.mean(
            simulate(
                engine_config, costs, Workload(args.branches, prompt_len, 0, args.max_tokens, seed),
                hardware="cpu" if costs.cores else "gpu",
            ).tokens_per_s
            for seed in range(NUM_SEEDS)
        )  # fmt: skip
        real = statistics.median(run.tokens_per_s for run in runs)
        error = simulated / real - 1
        rows.append({**settings, "real": real, "simulated": simulated, "prices": costs.to_plain(), "error": error})
        told = f"real {real:7.1f} simulated {simulated:7.1f} {error:+.1%}"
        print(f"{drafts} drafts {k_config} {policy:10} {told}", flush=True)
    worst = max(abs(row["error"]) for row in rows)
    print(f"largest error {worst:.1%}, median {statistics.median(abs(row['error']) for row in rows):.1%}")
    if args.json is not None:
        settings = {name: str(value) for name, value in vars(args).items()}
        report = {
            "rows": rows,
            "worst": worst,
            "settings": settings,
            "node": describe_node(),
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _between(before: Costs, after: Costs) -> Costs:
    """The mean of two measurements of the same sizes."""

    def mean(first: Curve, second: Curve) -> Curve:
        return Curve(first.sizes, tuple((a + b) / 2 for a, b in zip(first.ms, second.ms, strict=True)))

    return replace(
        before, target=mean(before.target, after.target), draft=mean(before.draft, after.draft),
        draft_overhead_ms=(before.draft_overhead_ms + after.draft_overhead_ms) / 2,
        context_ms=(before.context_ms + after.context_ms) / 2,
    )  # fmt: skip


def _known_from_runs(common: dict[str, Any], prompts: Sequence[str], params: SamplingParams) -> Costs:
    """Overheads and acceptance, of one run with chains and one with trees."""
    lengths = []
    with tempfile.TemporaryDirectory() as folder:
        for k_config in (CHAIN, TREE):
            with Engine(num_drafts=3, k_config=k_config, **common) as engine:
                prompt_len = len(engine.encode(prompts[0], special=True))
                engine.generate(prompts, params, timeout=TIMEOUT_S)
                lengths.append(measure(engine, prompts, params, TIMEOUT_S).mean_accepted_len)
                with engine.profile(folder):  # forwards of many branches and forwards of one show what a branch costs
                    engine.generate(prompts, params, timeout=TIMEOUT_S)
                    engine.generate(prompts[:1], params, timeout=TIMEOUT_S)
        seen = load_costs(folder)
    chain_len, tree_len = lengths
    work = Workload(len(prompts), prompt_len, 0, params.max_tokens)
    first = fit_acceptance(CHAIN, chain_len, work)
    return seen.with_acceptance(((first, fit_acceptance(TREE, tree_len, work, first)),))


if __name__ == "__main__":
    sys.exit(main())
