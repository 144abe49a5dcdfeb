"""The formulas of the figures, on spans that can be added up by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from seedmp import metrics
from seedmp.request import RequestMetrics
from seedmp.trace import Span, intersection_ns, total_ns, union

S = 1_000_000_000


def span(kind: str, start_s: float, end_s: float, worker_id: int = 0) -> Span:
    return Span(kind, worker_id, 0, int(start_s * S), int(end_s * S))


SPANS = [
    span("draft", 0, 2, 0),
    span("draft", 1, 3, 1),  # two drafts at once count once
    span("verify", 2, 5, -1),
    span("queue", 0, 9),  # waiting is no work
    span("draft", 6, 7, 0),
    span("verify", 6.5, 6.75, -1),
    span("verify", 8, 9, -1),
]


def test_overlap() -> None:
    assert metrics.overlap_s(SPANS) == pytest.approx(1.25)
    assert metrics.overlap_s([s for s in SPANS if s.kind != "draft"]) == 0
    assert metrics.overlap_s([]) == 0


def test_serial_work_does_not_overlap() -> None:
    serial = [span("draft", 2 * i, 2 * i + 1) for i in range(5)]
    serial += [span("verify", 2 * i + 1, 2 * i + 2, -1) for i in range(5)]
    assert metrics.overlap_s(serial) == 0


def test_busy() -> None:
    assert metrics.verifier_busy(SPANS, 10) == pytest.approx(0.425)
    assert metrics.verifier_busy(SPANS, 0) == 0
    assert metrics.draft_busy_s(SPANS) == pytest.approx(5)


def test_time_of_a_proposal() -> None:
    """Three drafted together in 2 s and one alone in 1 s."""
    together, alone = Span("draft", 0, -1, 0, 2 * S, 3), Span("draft", 0, 0, 2 * S, 3 * S)
    assert metrics.draft_round_s([together, alone, span("verify", 0, 9)]) == pytest.approx(7 / 4)
    assert metrics.draft_round_s([]) == 0


def test_rates() -> None:
    assert metrics.acceptance_rate(3, 12) == 0.25
    assert metrics.acceptance_rate(0, 0) == 0
    assert metrics.mean_accepted_len(6, 4) == 2.5
    assert metrics.mean_accepted_len(0, 0) == 0
    assert metrics.tokens_per_s(30, 1.5) == 20
    assert metrics.tokens_per_s(30, 0) == 0


def test_a_request_uses_the_same_formulas() -> None:
    cost = RequestMetrics(
        rounds=4, drafted=12, accepted=6, queue_wait_s=0, first_token_s=0, elapsed_s=1,
        target_prefill_tokens=0, draft_prefill_tokens=0,
    )  # fmt: skip
    assert cost.acceptance_rate == metrics.acceptance_rate(6, 12)
    assert cost.mean_accepted_len == metrics.mean_accepted_len(6, 4)


@pytest.mark.parametrize("seed", range(20))
def test_unions_and_intersections_count_covered_time(seed: int) -> None:
    """Against counting every nanosecond of a short time."""
    rng = random.Random(seed)

    def some() -> list[Span]:
        starts = [rng.randrange(60) for _ in range(rng.randrange(8))]
        return [Span("draft", 0, 0, start, start + rng.randrange(12)) for start in starts]

    left, right = some(), some()
    covered = [{t for s in spans for t in range(s.start_ns, s.end_ns)} for spans in (left, right)]
    assert total_ns(union(left)) == len(covered[0])
    assert intersection_ns(union(left), union(right)) == len(covered[0] & covered[1])
    merged = union(left)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(merged))
