"""Counters of a request, and the only formulas of the figures that seedmp reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seedmp.trace import Span, intersection_ns, total_ns, union

# Counters of static trees, by depth (from 1) and rank (from 0): the child's turn came; it was accepted.
TRIED_CHILD, ACCEPTED_CHILD = "tried_child_{}_{}", "accepted_child_{}_{}"


@dataclass
class RequestCounters:
    """What one request cost.

    Args:
        rounds: target passes.
        drafted: draft tokens along the depth of the trees, summed over rounds.
        accepted: draft tokens that were accepted.
        queue_wait_ns: time its proposals waited for the target.
        first_token_ns: CLOCK_MONOTONIC of the first committed token; 0 before.
        target_prefill_tokens: prompt tokens computed for it by the target (not shared with others).
        draft_prefill_tokens: the same by drafts.
    """

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    queue_wait_ns: int = 0
    first_token_ns: int = 0
    target_prefill_tokens: int = 0
    draft_prefill_tokens: int = 0


def tokens_per_s(kept_tokens: int, wall_s: float) -> float:
    """Kept tokens ÷ wall time."""
    return kept_tokens / wall_s if wall_s > 0 else 0.0


def share(part: float, whole: float) -> float:
    """Part ÷ whole; 0 of nothing."""
    return part / whole if whole else 0.0


def acceptance_rate(accepted: int, drafted: int) -> float:
    """Accepted ÷ drafted, where a round drafts as many tokens as its tree is deep."""
    return share(accepted, drafted)


def mean_accepted_len(accepted: int, rounds: int) -> float:
    """1 + accepted ÷ rounds: tokens committed by a target pass."""
    return 1 + accepted / rounds if rounds else 0.0


def overlap_s(spans: Sequence[Span]) -> float:
    """Seconds in which a draft and the verifier were busy at the same time."""
    drafting = union(span for span in spans if span.kind == "draft")
    verifying = union(span for span in spans if span.kind == "verify")
    return intersection_ns(drafting, verifying) / 1e9


def verifier_busy(spans: Sequence[Span], wall_s: float) -> float:
    """Share of the wall time in which the verifier ran the target."""
    busy_s = total_ns(union(span for span in spans if span.kind == "verify")) / 1e9
    return busy_s / wall_s if wall_s > 0 else 0.0


def draft_busy_s(spans: Sequence[Span]) -> float:
    """Seconds of drafting, summed over workers."""
    return sum(span.end_ns - span.start_ns for span in spans if span.kind == "draft") / 1e9


def draft_round_s(spans: Sequence[Span]) -> float:
    """Mean seconds from a draft's start to a proposal; proposals that were drafted together took the same time."""
    drafts = [span for span in spans if span.kind == "draft"]
    total_ns = sum((span.end_ns - span.start_ns) * span.num for span in drafts)
    return share(total_ns / 1e9, sum(span.num for span in drafts))
