"""Acceptance vectors: the draft's draws and the accept rules against enumeration, and what runs counted."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from seedmp.config import EngineConfig
from seedmp.decoding.sequoia import SequoiaTrial
from seedmp.errors import ConfigError
from seedmp.simulation.costs import EXAMPLE
from seedmp.simulation.simulate import Simulation, Workload
from seedmp.tuning.acceptance import Acceptance, Drawing, Law, accept_probs, from_stats, teacher_forced

TARGET = (Fraction(6, 10), Fraction(3, 10), Fraction(1, 10))
DRAFT = (Fraction(2, 10), Fraction(5, 10), Fraction(3, 10))
NUM_POSITIONS = 4000  # draws; the rates' standard deviations are below 0.008
TOLERANCE = 0.03


def exact(order_law: Any) -> list[Fraction]:
    """[3] P(the b-th child is the accepted one) by rule D, in rational arithmetic, over all orders of drawing."""
    result = [Fraction(0)] * 3
    for order in itertools.permutations(range(3)):
        weight, residual, draft = order_law(order), list(TARGET), list(DRAFT)
        for rank, token in enumerate(order):
            prob = min(Fraction(1), residual[token] / draft[token])
            result[rank] += weight * prob
            weight *= 1 - prob
            if not weight:
                break
            residual = [max(Fraction(0), r - d) for r, d in zip(residual, draft, strict=True)]
            residual = [r / sum(residual) for r in residual]
            draft[token] = Fraction(0)
            draft = [d / sum(draft) for d in draft] if sum(draft) else draft
    return result


def without_replacement(order: tuple[int, ...]) -> Fraction:
    weight, left = Fraction(1), Fraction(1)
    for token in order:
        weight *= DRAFT[token] / left
        left -= DRAFT[token]
    return weight


def rates(law: Law, num_children: int = 3) -> np.ndarray:
    """[B] P(the b-th child is the accepted one) along a text whose positions all have the same two laws."""
    target, draft = (torch.tensor([[float(p) for p in probs]] * NUM_POSITIONS).log() for probs in (TARGET, DRAFT))
    vector: np.ndarray = teacher_forced(target, draft, law, num_children).vector()[0, 1:]
    return vector


def test_sampling_without_replacement_is_the_enumerated_law() -> None:
    expected = exact(without_replacement)
    assert expected[0] == Fraction(3, 5) and expected[0] + expected[1] == Fraction(129, 175)  # the published vectors
    np.testing.assert_allclose(rates(Law()), [float(p) for p in expected], atol=TOLERANCE)


def test_a_twin_that_draws_all_orders_alike_is_found_out() -> None:
    broken = [float(p) for p in exact(lambda order: Fraction(1, 6))]
    assert np.abs(rates(Law()) - broken).max() > 2 * TOLERANCE


def test_a_trial_is_followed_exactly() -> None:
    ids = np.arange(3)
    target, draft = (np.array([float(p) for p in law]) for law in (TARGET, DRAFT))
    summed = sum(
        float(without_replacement(order)) * np.array(accept_probs(SequoiaTrial(target, ids, draft), order))
        for order in itertools.permutations(range(3))
    )
    np.testing.assert_allclose(summed, [float(p) for p in exact(without_replacement)], atol=1e-12)


def test_the_other_ways_of_drawing() -> None:
    # Independent draws: 1 - |target - draft| / 2 for one child, 17/25 for two (research/tree_methods.md).
    iid = rates(Law(Drawing.IID), 2)
    np.testing.assert_allclose([iid[0], iid.sum()], [0.6, 17 / 25], atol=TOLERANCE)
    # The likeliest of the draft are 1, 2, 0: accepted with the target's own probability.
    np.testing.assert_allclose(rates(Law(Drawing.DETERMINISTIC)), [0.3, 0.1, 0.6], atol=1e-6)
    coupled = rates(Law(Drawing.COUPLED))
    assert 0.45 < coupled[0] < 0.6 and coupled.sum() == pytest.approx(1)
    # Greedy: the target's likeliest token is 0, the draft's third.
    np.testing.assert_allclose(rates(Law(temperature=0.0)), [0, 0, 1], atol=1e-9)


def test_a_draft_cut_to_its_nucleus() -> None:
    # Of mass 0.5 only token 1 is left: a single child is accepted with the target's 0.3 of it.
    assert rates(Law(draft_top_p=0.5), 1)[0] == pytest.approx(0.3, abs=1e-6)
    # Then the rest is drawn uniformly: the next child's turn comes with 0.7, and it may be any.
    assert rates(Law(draft_top_p=0.5)).sum() == pytest.approx(1)
    with pytest.raises(ConfigError, match="top-p"):
        Law(draft_top_p=0.0)


def test_a_tiny_vocabulary_has_fewer_children() -> None:
    assert len(rates(Law(), 8)) == 3


# --- what runs counted -----------------------------------------------------------------------------


def test_a_vector_is_what_is_left_after_earlier_siblings() -> None:
    acceptance = Acceptance(((0.5, 0.5), (0.25,)), ((100, 50), (60,)))
    np.testing.assert_allclose(acceptance.vector(), [[0, 0.5, 0.25], [0, 0.25, 0]])


def test_counters_become_rates_by_depth_and_rank() -> None:
    first = {"tried_child_1_0": 60.0, "accepted_child_1_0": 30.0, "tried_child_1_1": 40.0, "accepted_child_1_1": 10.0}
    second = {"tried_child_1_0": 40.0, "accepted_child_1_0": 30.0, "tried_child_2_0": 10.0, "rounds": 9.0}
    found = from_stats(first, second)
    assert found == Acceptance(((0.6, 0.25), (0.0,)), ((100.0, 40.0), (10.0,)))
    assert from_stats({"rounds": 3.0}) is None


def test_rates_that_were_seen_too_seldom_are_taken_from_elsewhere() -> None:
    seen = Acceptance(((0.7, 0.9), (0.6, 0.1), (0.0,)), ((200, 5), (100, 40), (2,)))
    other = Acceptance(((0.5, 0.3, 0.2),), ((900, 400, 200),))
    filled = seen.filled(other)
    assert filled.rates == ((0.7, 0.3, 0.2), (0.6, 0.1, 0.2))
    assert Acceptance(((0.7,),), ((2,),)).filled(other) == other


def test_scheduler_counts_what_its_verdicts_say() -> None:
    """The simulator accepts by a known law; the scheduler's own counters give it back."""
    law = ((0.7, 0.4), (0.5, 0.2))
    config = EngineConfig("-", "-", k_config=(2, 2, 2), kv_slots=1 << 15)
    run = Simulation(config, EXAMPLE.with_acceptance(law), Workload(branches=16, max_tokens=256))
    run.run()
    counted = from_stats({name: float(value) for name, value in run.groups[0].scheduler.counters.items()})
    assert counted is not None
    for depth, expected in enumerate((*law, law[-1])):
        for rank, rate in enumerate(expected):
            deviation = (rate * (1 - rate) / counted.turns[depth][rank]) ** 0.5
            assert counted.rates[depth][rank] == pytest.approx(rate, abs=4.5 * deviation)
    totals = run.groups[0].scheduler.counters
    assert counted.turns[0][0] == pytest.approx(totals["rounds"], rel=0.05)  # the last may have no tree


@pytest.mark.parametrize("rates", [(), ((),)])
def test_no_rates_are_refused(rates: Any) -> None:
    with pytest.raises(ConfigError, match="acceptance"):
        Acceptance(rates, rates)
