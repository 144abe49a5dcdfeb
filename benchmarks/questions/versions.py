"""Is this checkout slower than another one? The rows of ``peers`` and ``schedules``, in turns with the other's.

``python -m seedmp.benchmarks.questions.versions --before CHECKOUT --json FILE``

Each row opens one engine by the code of either checkout, in a process of its own. Both do the same job in turns, and
take turns in being first, so that what else the machine does meets both alike. The figure of a row is the median over
pairs of tokens per second here ÷ tokens per second there. Texts must be equal before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seedmp.measuring.node import describe_node

HERE = Path(__file__).resolve().parents[2]
CHAIN = {"k_config": [1, 1, 1]}
# name -> settings, requests at once
ROWS: dict[str, tuple[dict[str, Any], int]] = {
    "ar": ({"method": "ar", "schedule": "serial", "num_drafts": 1}, 3),
    "ar-batch": ({"method": "ar"}, 3),
    "serial-sd": ({"method": "mcsd", "schedule": "serial", "num_drafts": 1, **CHAIN}, 3),
    "fcfs": ({"method": "mcsd", "policy": "fcfs", **CHAIN}, 3),
    "fcfs-batch": ({"method": "mcsd", "policy": "fcfs-batch", **CHAIN}, 3),
    "fcfs-batch-16": ({"method": "mcsd", "policy": "fcfs-batch", **CHAIN}, 16),
    "opt-tree": ({"method": "opt-tree", "nodes": 10, "max_depth": 5}, 3),
    "eagle": ({"method": "eagle", "nodes": 10, "max_depth": 4}, 3),
    "ngram": ({"method": "ngram"}, 3),
    "parallel": ({"method": "mcsd", "schedule": "parallel", "num_drafts": 3, **CHAIN}, 3),
}
# Runs in either version: so it uses what both have.
JOB = """
import hashlib, json, sys, time
from seedmp import Engine, SamplingParams
settings, num, max_tokens = json.loads(sys.argv[1])
text = "Question: Tom has %d pears and buys %d more. He gives %d to Ann. How many has he now?\\nAnswer:"
questions = [text % (n + 3, 2 * n + 4, n) for n in range(num)]
params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=0)
with Engine(**{name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}) as engine:
    for line in sys.stdin:
        before, start = engine.stats(), time.perf_counter()
        outputs = engine.generate(questions, params, timeout=300)
        wall = time.perf_counter() - start
        after = engine.stats()
        ids = [out.token_ids for out in outputs]
        rounds = max(1.0, after["rounds"] - before["rounds"])
        print(json.dumps({
            "tokens_per_s": sum(map(len, ids)) / wall,
            "overhead_ms": (after["overhead_ns"] - before["overhead_ns"]) / 1e6 / rounds,
            "text": hashlib.sha256(repr(ids).encode()).hexdigest(),
        }), flush=True)
"""


class Version:
    """An engine by the code of one checkout."""

    def __init__(self, checkout: Path, settings: dict[str, Any], num: int, max_tokens: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, json.dumps([settings, num, max_tokens])],
            cwd="/", env={**os.environ, "PYTHONPATH": str(checkout)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    def run(self) -> dict[str, Any]:
        """Do the job once."""
        to, back = self.process.stdin, self.process.stdout
        assert to is not None and back is not None
        to.write("go\n")
        to.flush()
        line = back.readline()
        if not line:
            raise SystemExit(f"versions: a process ended with {self.process.wait()}")
        result: dict[str, Any] = json.loads(line)
        return result

    def close(self) -> None:
        """End the engine."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)


def compare(before: Path, name: str, repeats: int, max_tokens: int, common: dict[str, Any]) -> dict[str, Any]:
    """One row: the ratio of each pair, and the medians of either version."""
    settings, num = ROWS[name]
    versions = [Version(path, common | settings, num, max_tokens) for path in (before, HERE)]
    try:
        first = [version.run() for version in versions]
        runs: list[list[dict[str, Any]]] = [[], []]
        for repeat in range(repeats):
            for which in (0, 1) if repeat % 2 else (1, 0):
                runs[which].append(versions[which].run())
    finally:
        for version in versions:
            version.close()
    speeds = [[run["tokens_per_s"] for run in side] for side in runs]
    ratios = sorted(new / old for old, new in zip(*speeds, strict=True))
    quarter = statistics.quantiles(ratios, n=4)
    return {
        "row": name,
        "same_text": first[0]["text"] == first[1]["text"],
        "before_tokens_per_s": statistics.median(speeds[0]),
        "after_tokens_per_s": statistics.median(speeds[1]),
        "ratio": statistics.median(ratios),
        "quartiles": [quarter[0], quarter[2]],
        "overhead_ms_a_round": [statistics.median(run["overhead_ms"] for run in side) for side in runs],
        "repeats": repeats,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Print a line a row, and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT", help="folder of the other version")
    parser.add_argument("--rows", default=",".join(ROWS), metavar="NAME,..", help="default: all")
    parser.add_argument("--repeats", type=int, default=10, metavar="N", help="pairs (default %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="of each text (default %(default)s)")
    parser.add_argument("--shape", default="134m", help="what the target is inflated to (default %(default)s)")
    parser.add_argument("--dtype", default="bfloat16", help="default %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    args = parser.parse_args(argv)
    common = {"target_shape": args.shape, "dtype": args.dtype}
    results = []
    for name in args.rows.split(","):
        result = compare(args.before.resolve(), name, args.repeats, args.max_tokens, common)
        results.append(result)
        old_ms, new_ms = result["overhead_ms_a_round"]
        print(
            f"{name:14} {result['before_tokens_per_s']:7.1f} -> {result['after_tokens_per_s']:7.1f} tokens/s, "
            f"x{result['ratio']:.3f} ({result['quartiles'][0]:.3f} to {result['quartiles'][1]:.3f}), "
            f"outside forwards {old_ms:.2f} -> {new_ms:.2f} ms a round"
            f"{'' if result['same_text'] else '; TEXTS DIFFER'}",
            flush=True,
        )
    if args.json is not None:
        settings = common | {"max_tokens": args.max_tokens}
        plain = {"before": args.before.name, "settings": settings, "rows": results, "node": describe_node()}
        args.json.write_text(json.dumps(plain, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
