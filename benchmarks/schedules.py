"""Question: what does each schedule make of the same job on the same cores?

``python -m benchmarks.schedules --shape 134m --branches 3 --json FILE``

Rows: ``generate`` (transformers, one prompt after another), ``generate-batch`` (transformers, all
prompts in one padded batch), and ours: ``serial-ar``, ``serial-sd``, ``fcfs``, ``fcfs-batch``,
``parallel``. All engines are alive at the same time and idle while another row runs; repeats are
interleaved (row 1, row 2, ..., row 1, ...). tokens/s = kept tokens ÷ wall time
(``seedmp.metrics.tokens_per_s``); speedup = median over repeats of the ratio to ``generate`` of the
same repeat. Greedy decoding, EOS ignored, so that every row makes the same number of tokens.
The target is the bundled one inflated to a larger shape: real text and acceptance at the larger price.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from seedmp.config import EngineConfig
from seedmp.engine import Engine
from seedmp.errors import SeedmpError
from seedmp.measure import Measurement, describe_node, measure, memory_by_process
from seedmp.models import pair
from seedmp.models.load import ModelSpec, load_model
from seedmp.sampling import SamplingParams
from seedmp.tasks.gsm8k import load_gsm8k

TIMEOUT_S = 900.0
OURS: dict[str, dict[str, Any]] = {
    "serial-ar": {"method": "ar", "schedule": "serial"},
    "serial-sd": {"schedule": "serial"},
    "fcfs": {"policy": "fcfs"},
    "fcfs-batch": {"policy": "fcfs-batch"},
    "parallel": {"schedule": "parallel"},
}
Job = Callable[[], Measurement]


@dataclass
class Row:
    """One schedule and what its repeats measured."""

    name: str
    run: Job
    repeats: list[Measurement]


class Peer:
    """transformers' own generate on the same weights, dtype and device."""

    def __init__(self, spec: ModelSpec, dtype: torch.dtype, device: str, max_tokens: int) -> None:
        self.model: Any = load_model(spec, dtype, device)
        self.device = device
        self.max_tokens = max_tokens

    def run(self, batches: Sequence[Sequence[tuple[int, ...]]]) -> Measurement:
        """Continue each batch in turn; left-padded where prompts differ in length."""
        outputs: list[tuple[int, ...]] = []
        start_s = time.perf_counter()
        for batch in batches:
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in batch], device=self.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=self.device)
            with torch.inference_mode():
                result = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=False,
                    max_new_tokens=self.max_tokens,
                    min_new_tokens=self.max_tokens,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            outputs += [tuple(row) for row in result[:, width:].tolist()]
        wall_s = time.perf_counter() - start_s
        tokens = sum(map(len, outputs))
        return Measurement(wall_s, tuple(outputs), tokens / wall_s, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def agreement(left: tuple[tuple[int, ...], ...], right: tuple[tuple[int, ...], ...]) -> float:
    """Share of tokens before the first difference, over all texts."""
    same, total = 0, 0
    for a, b in zip(left, right, strict=True):
        total += max(len(a), len(b))
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same / total


def summarize(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One dictionary a row: medians, spread and ratios of the same repeat."""
    base = {row.name: row for row in rows}
    result = []
    for row in rows:
        rates = [m.tokens_per_s for m in row.repeats]
        plain = {name: statistics.median(m.to_plain()[name] for m in row.repeats) for name in row.repeats[0].to_plain()}
        texts = [m.token_ids for m in row.repeats]
        ratios = {}
        for other in ("generate", "generate-batch", "serial-ar", "serial-sd"):
            pairs = zip(row.repeats, base[other].repeats, strict=True)
            ratios[f"over_{other}"] = statistics.median(m.tokens_per_s / o.tokens_per_s for m, o in pairs)
        result.append(
            {
                "name": row.name,
                **plain,
                "tokens_per_s_min": min(rates),
                "tokens_per_s_max": max(rates),
                "speedup": ratios["over_generate"],
                **ratios,
                "text_equals_ar": all(text == base["generate"].repeats[0].token_ids for text in texts),
                "agreement_with_ar": min(agreement(text, base["generate"].repeats[0].token_ids) for text in texts),
            }
        )
    return result


def bounds(rows: Sequence[dict[str, Any]], num_drafts: int) -> dict[str, float]:
    """What the schedules can reach at most over serial SD, from its own draft and verify times."""
    serial = next(row for row in rows if row["name"] == "serial-sd")
    batch = next(row for row in rows if row["name"] == "fcfs-batch")
    draft_ms, verify_ms = serial["draft_round_ms"], serial["verify_ms"]
    return {
        "fcfs_over_serial_sd": min(1 + draft_ms / verify_ms, num_drafts) if verify_ms else 0.0,
        "fcfs_batch_over_serial_sd": num_drafts * (draft_ms + verify_ms) / (draft_ms + batch["verify_ms"]),
    }


def print_table(rows: Sequence[dict[str, Any]], limits: dict[str, float], title: str) -> None:
    """The table for people."""
    table = Table(title=title)
    columns = ["row", "tokens/s", "min..max", "x generate", "x batch", "x serial-sd", "accept", "len", "overlap s", "busy", "ms draft", "ms verify", "ms over", "text = AR"]  # fmt: skip # noqa: E501
    for column in columns:
        table.add_column(column, justify="left" if column == "row" else "right")
    for r in rows:
        table.add_row(
            r["name"], f"{r['tokens_per_s']:.1f}", f"{r['tokens_per_s_min']:.0f}..{r['tokens_per_s_max']:.0f}",
            f"{r['over_generate']:.2f}", f"{r['over_generate-batch']:.2f}", f"{r['over_serial-sd']:.2f}",
            f"{r['acceptance_rate']:.2f}", f"{r['mean_accepted_len']:.2f}", f"{r['overlap_s']:.2f}",
            f"{r['verifier_busy']:.2f}", f"{r['draft_round_ms']:.1f}", f"{r['verify_ms']:.1f}",
            f"{r['overhead_ms_per_round'] + r['draft_overhead_ms_per_round']:.2f}",
            "yes" if r["text_equals_ar"] else f"{100 * r['agreement_with_ar']:.0f} %",
        )  # fmt: skip
    console = Console(width=170)
    console.print(table)
    for name, value in limits.items():
        console.print(f"bound {name}: {value:.2f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0 when it finished."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="134m", help="shape that the bundled target is inflated to, or 'none'")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--branches", type=int, default=3)
    parser.add_argument("--drafts", type=int, default=3)
    parser.add_argument("--k-config", default="1,1,1")
    parser.add_argument("--method", default="mcsd", choices=("sd", "mcsd"))
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", type=Path, help="GSM8K file in the published format; default: the project's own")
    parser.add_argument("--rows", help="rows of ours to run, besides serial-ar, serial-sd and fcfs-batch")
    parser.add_argument("--quick", action="store_true", help="2 repeats of 32 tokens")
    parser.add_argument("--smoke", action="store_true", help="does it still run? a small shape in float32, seconds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.quick:
        args.repeats, args.max_tokens = 2, 32
    if args.smoke:
        args.repeats, args.max_tokens, args.shape, args.dtype, args.rows = 1, 12, "13m", "float32", ""
    try:
        return run(args)
    except SeedmpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: argparse.Namespace) -> int:
    """Start everything, interleave the repeats, report."""
    prompts_text = [f"Question: {p.question}\nAnswer:" for p in load_gsm8k(args.data, args.branches)]
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    shape = None if args.shape == "none" else args.shape
    params = SamplingParams(temperature=0.0, max_tokens=args.max_tokens, ignore_eos=True, seed=0)
    always = {"serial-ar", "serial-sd", "fcfs-batch"}
    names = [name for name in OURS if args.rows is None or name in always | set(args.rows.split(","))]
    common = {"num_drafts": args.drafts, "method": args.method, "k_config": args.k_config, "target_shape": shape}
    engines: dict[str, Engine] = {}
    with Progress(*Progress.get_default_columns(), TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("starting", total=len(names) + 1 + (args.repeats + 1) * (len(names) + 2))
        try:
            for name in names:
                engines[name] = Engine(dtype=args.dtype, **{**common, **OURS[name]})
                progress.advance(task)
            config: EngineConfig = engines["fcfs-batch"].config
            device = "cuda:0" if torch.cuda.is_available() else "cpu"
            torch.set_num_threads(config.threads()[0])
            peer = Peer(ModelSpec(str(pair.TARGET), shape), getattr(torch, args.dtype), device, args.max_tokens)
            progress.advance(task)
            prompts = [engines["fcfs-batch"].encode(text, special=True) for text in prompts_text]
            rows = [
                Row("generate", lambda: peer.run([[p] for p in prompts]), []),
                Row("generate-batch", lambda: peer.run([prompts]), []),
                *(Row(name, _job(engines[name], prompts, params), []) for name in names),
            ]
            for repeat in range(args.repeats + 1):  # the first warms up
                for row in rows:
                    progress.update(task, description=f"{row.name} {repeat}/{args.repeats}")
                    measured = row.run()
                    if repeat:
                        row.repeats.append(measured)
                    progress.advance(task)
            memory = {name: memory_by_process(engine) for name, engine in engines.items()}
        finally:
            for engine in engines.values():
                engine.close()
    summary = summarize(rows)
    limits = bounds(summary, args.drafts)
    model = f"bundled target as {args.shape} {args.dtype}"
    title = f"{args.branches} branches, {args.drafts} drafts, k={args.k_config}, {model}"
    print_table(summary, limits, title)
    for name, processes in memory.items():
        print(f"memory {name}: PSS {sum(p['pss'] for p in processes.values()):.0f} MiB in {len(processes)} processes")
    if args.json is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "json"}
        settings["data"] = args.data.name if args.data else "bundled"
        threads = dict(zip(("target", "draft"), config.threads(), strict=True))
        report = {
            "rows": summary,
            "bounds": limits,
            "memory_mib": memory,
            "settings": settings,
            "threads": threads,
            "node": describe_node(),
        }
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _job(engine: Engine, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> Job:
    return lambda: measure(engine, prompts, params, TIMEOUT_S)


if __name__ == "__main__":
    sys.exit(main())
