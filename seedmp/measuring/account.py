"""Measuring a job on an engine: the figures of one run, all by the formulas of ``seedmp.metrics``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import psutil

from seedmp import metrics
from seedmp.engine import Engine, Prompt
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams

T = TypeVar("T")


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


def rotated(rows: Sequence[T], repeat: int) -> list[T]:
    """The order of a repeat: the rows, begun one later each time."""
    at = repeat % len(rows) if rows else 0
    return [*rows[at:], *rows[:at]]
