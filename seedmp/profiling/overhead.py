"""Question: how much slower is a run that is profiled? Formula: median over repeats of (wall with ÷ wall without) − 1.

Every repeat runs the same greedy job three times on one engine: without a profile, with one, and without again. The
two runs without give the noise: in half of all repeats these two differ by more than the noise.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from seedmp.engine import Engine
from seedmp.measuring.node import describe_node
from seedmp.profiling.profile import Profile
from seedmp.sampling import SamplingParams

PROMPTS = [f"Question: There are {i} birds and {i + 2} fish. How many animals?\nAnswer:" for i in range(6)]
TIMEOUT_S = 300.0


def measure_overhead(
    folder: Path, repeats: int, period_s: float, *, max_tokens: int = 128, **settings: Any
) -> dict[str, Any]:
    """Interleaved repeats; ``overhead`` and ``noise`` are shares of the wall time."""
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, seed=0)
    costs, noises, walls = [], [], []
    with Engine(**{"target_shape": "134m", **settings}) as engine:

        def run() -> float:
            start_s = time.perf_counter()
            engine.generate(PROMPTS, params, timeout=TIMEOUT_S)
            return time.perf_counter() - start_s

        run()  # warms up
        for _ in range(repeats):
            before = run()
            profile = Profile(engine, folder, period_s=period_s)
            with profile:
                profiled = run()
            after = run()
            costs.append(2 * profiled / (before + after) - 1)
            noises.append(abs(after / before - 1))
            walls.append((before, profiled, after))
        return {
            "overhead": statistics.median(costs),
            "spread": (min(costs), max(costs)),
            "noise": statistics.median(noises),
            "walls_s": walls,
            "settings": engine.config.to_plain(),
            "period_s": period_s,
            "node": describe_node(),
        }
