"""Measuring a job on an engine: the figures of one run, all by the formulas of ``seedmp.metrics``."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from seedmp import metrics
from seedmp.engine import Engine, Prompt
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams


@dataclass(frozen=True)
class Measurement:
    """One job on one engine.

    Args:
        wall_s: from submission of all prompts to the last output.
        token_ids: what was generated, per prompt.
        draft_round_ms: mean time of one proposal, in the draft.
        verify_ms: mean time of one forward of the target.
        overhead_ms_per_round: verifier's time outside forwards, per round.
        draft_overhead_ms_per_round: drafts' time outside forwards, per round.
        spans_lost: if not 0, times and shares are short: spans were overwritten before they were read.
    """

    wall_s: float
    token_ids: tuple[tuple[int, ...], ...]
    tokens_per_s: float
    acceptance_rate: float
    mean_accepted_len: float
    overlap_s: float
    verifier_busy: float
    draft_round_ms: float
    verify_ms: float
    overhead_ms_per_round: float
    draft_overhead_ms_per_round: float
    queue_wait_ms: float
    spans_lost: int = 0

    def to_plain(self) -> dict[str, Any]:
        """A JSON-able dictionary without the tokens."""
        plain = asdict(self)
        del plain["token_ids"]
        return plain


def measure(engine: Engine, prompts: Sequence[Prompt], params: SamplingParams, timeout: float) -> Measurement:
    """Run a job once and account for it."""
    return account(engine, lambda: engine.generate(prompts, params, timeout=timeout))


def account(engine: Engine, job: Callable[[], Sequence[RequestOutput]]) -> Measurement:
    """Run any job of one engine once and account for it; nothing else may run there meanwhile."""
    engine.spans(reset=True)
    before = engine.stats()
    start_s = time.perf_counter()
    outputs = job()
    wall_s = time.perf_counter() - start_s
    spans = engine.spans()
    after = engine.stats()
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    rounds = max(1.0, used["rounds"])
    verifies = [span for span in spans if span.kind == "verify"]
    return Measurement(
        wall_s,
        tuple(output.token_ids for output in outputs),
        metrics.tokens_per_s(sum(len(output.token_ids) for output in outputs), wall_s),
        metrics.acceptance_rate(int(used["accepted"]), int(used["drafted"])),
        metrics.mean_accepted_len(int(used["accepted"]), int(used["rounds"])),
        metrics.overlap_s(spans),
        metrics.verifier_busy(spans, wall_s),
        1e3 * metrics.draft_round_s(spans),
        sum(span.end_ns - span.start_ns for span in verifies) / 1e6 / max(1, len(verifies)),
        used["overhead_ns"] / 1e6 / rounds,
        used["draft_overhead_ns"] / 1e6 / rounds,
        used["queue_wait_ns"] / 1e6 / rounds,
        int(used["spans_lost"]),
    )


def memory_by_process(engine: Engine) -> dict[str, dict[str, float]]:
    """RSS, USS and PSS (its share of shared pages) of every process of an engine, in MiB."""
    result = {}
    for name, pid in engine.worker_pids().items():
        info = psutil.Process(pid).memory_full_info()
        result[name] = {kind: getattr(info, kind, 0) / 2**20 for kind in ("rss", "uss", "pss")}
    return result


def describe_node() -> dict[str, Any]:
    """What a figure was measured on: hardware, versions, commit."""
    import torch
    import transformers
    import zmq

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "cores": cores,
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pyzmq": zmq.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """The checkout's commit, with + when files differ from it; empty outside a checkout."""
    folder = Path(__file__).resolve().parent.parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
