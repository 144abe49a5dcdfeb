"""Sequoia's tree search against brute force and published figures; what a round costs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
import pytest

from seedmp.errors import ConfigError
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.sequoia import choose_by_budget, expected_tokens, parse_acceptance, search_trees
from seedmp.token_tree.tree_cost import Fleet, RoundPolicy, choose_tree, draft_round_time, time_per_round

# The demo acceptance vector of Infini-AI-Lab/Sequoia (0ff3ff7): counts of 667 trials, the last is P(none).
DEMO = (
    0.0, 0.6341829299926758, 0.10794602334499359, 0.056971512734889984, 0.022488756105303764, 0.019490255042910576,
    0.014992503449320793, 0.004497751127928495, 0.002998500829562545, 0.01199400331825018, 0.004497751127928495,
    0.007496251724660397, 0.004497751127928495, 0.00599700165912509, 0.002998500829562545, 0.0014992504147812724,
    0.002998500829562545, 0.0014992504147812724, 0.002998500829562545, 0.0, 0.002998500829562545,
    0.002998500829562545, 0.002998500829562545, 0.0, 0.0014992504147812724, 0.0, 0.0014992504147812724, 0.0, 0.0, 0.0,
    0.0014992504147812724, 0.0014992504147812724, 0.0014992504147812724, 0.07346326857805252,
)  # fmt: skip


@lru_cache
def shapes(size: int) -> tuple[tuple[object, ...], ...]:
    """Every ordered tree of ``size`` nodes, as nested tuples of subtrees."""

    def forests(total: int) -> Iterator[tuple[object, ...]]:
        if total == 0:
            yield ()
        for first in range(1, total + 1):
            for tree in shapes(first):
                for rest in forests(total - first):
                    yield (tree, *rest)

    return tuple(forests(size - 1))


def as_growmap(shape: tuple[object, ...]) -> Growmap:
    queue = [shape]
    for node in queue:
        queue += node  # type: ignore[arg-type]
    return Growmap(tuple(map(len, queue)))


def formula(growmap: Growmap, acceptance: np.ndarray) -> float:
    """Proposition 3.4, written down again: the sum over nodes of the product along the path."""

    def below(node_id: int, depth: int) -> float:
        row = acceptance[min(depth, len(acceptance) - 1)]
        return 1 + sum(
            (row[b] if b < len(row) else 0) * below(child, depth + 1)
            for b, child in enumerate(growmap.children[node_id], 1)
        )

    return float(below(0, 0))


# --- published figures -----------------------------------------------------------------------------


def test_demo_configuration() -> None:
    table = search_trees(parse_acceptance(DEMO), 32, 10)
    choice = choose_by_budget(table, 0.3, [1, 2, 4, 8, 16, 32], [10, 10, 10, 12, 14, 18])
    assert choice.growmap == Growmap.chains(1, 3)
    assert round(choice.expected_tokens, 4) == 2.2914
    assert round(choice.cost, 4) == 4.8878
    assert round(choice.speedup, 3) == 2.046


def test_demo_expected_tokens_by_size() -> None:
    acceptance = parse_acceptance(DEMO)
    table = search_trees(acceptance, 64, 10)
    published = {4: 2.291, 8: 2.732, 16: 3.130, 32: 3.501, 64: 3.852}
    assert {size: round(float(table.expected[size, 10]), 3) for size in published} == published
    for size in published:
        growmap = table.growmap(size, 10)
        assert growmap.size == size
        assert expected_tokens(growmap, acceptance) == pytest.approx(table.expected[size, 10], abs=1e-12)


# --- the programme ---------------------------------------------------------------------------------

TABLES = {
    "falling": [[0, 0.6, 0.2, 0.1]],
    "not falling": [[0, 0.1, 0.5, 0.05, 0.3]],
    "with zeros": [[0, 0.4, 0.0, 0.5]],
    "one child": [[0, 0.7]],
    "by depth": [[0, 0.8, 0.1, 0.05], [0, 0.3, 0.3, 0.1], [0, 0.1, 0.6, 0.2]],
}


@pytest.mark.parametrize("rows", TABLES.values(), ids=TABLES)
def test_equals_brute_force(rows: list[list[float]]) -> None:
    acceptance = np.array(rows)
    max_size, max_levels = 8, 5
    table = search_trees(acceptance, max_size, max_levels)
    most_children = acceptance.shape[1] - 1
    for size in range(1, max_size + 1):
        growmaps = [growmap for growmap in map(as_growmap, shapes(size)) if growmap.max_children <= most_children]
        values = [(len(growmap.levels), formula(growmap, acceptance)) for growmap in growmaps]
        for levels in range(1, max_levels + 1):
            best = max((value for used, value in values if used <= levels), default=-np.inf)
            assert table.expected[size, levels] == pytest.approx(best, abs=1e-12)
            if np.isfinite(best):
                found = table.growmap(size, levels)
                assert (found.size, found in growmaps) == (size, True)
                assert len(found.levels) <= levels
                assert expected_tokens(found, acceptance) == pytest.approx(best, abs=1e-12)
            else:
                with pytest.raises(ConfigError, match="no tree"):
                    table.growmap(size, levels)


def test_expected_tokens_of_trees_wider_than_the_vector() -> None:
    acceptance = np.array([[0, 0.5, 0.25], [0, 0.4, 0.1]])
    for growmap in map(as_growmap, shapes(6)):
        assert expected_tokens(growmap, acceptance) == pytest.approx(formula(growmap, acceptance), abs=1e-15)


def test_equal_vectors_at_every_depth_are_one_vector() -> None:
    one = parse_acceptance(DEMO)
    single, several = search_trees(one, 40, 8), search_trees(np.repeat(one, 8, 0), 40, 8)
    np.testing.assert_array_equal(single.expected, several.expected)
    assert single.growmap(40, 8) == several.growmap(40, 8)


def test_refuses_sizes_and_depths() -> None:
    for size, levels in [(0, 3), (3, 0), (10**6, 3), (3, 10**6)]:
        with pytest.raises(ConfigError, match="at most"):
            search_trees(parse_acceptance(DEMO), size, levels)


# --- acceptance vectors ----------------------------------------------------------------------------


def test_last_entry_is_dropped_only_if_it_is_none() -> None:
    assert parse_acceptance(DEMO).shape == (1, 33)
    np.testing.assert_array_equal(parse_acceptance([0, 0.5, 0.25]), [[0, 0.5, 0.25]])  # as fast_test.py writes
    np.testing.assert_array_equal(parse_acceptance([0, 0.5, 0.25, 0.25]), [[0, 0.5, 0.25]])
    np.testing.assert_array_equal(parse_acceptance([0, 0.75, 0.25], ends_with_none=False), [[0, 0.75, 0.25]])
    np.testing.assert_array_equal(parse_acceptance([[0, 0.75, 0.25], [0, 0.5, 0.5]]), [[0, 0.75], [0, 0.5]])


@pytest.mark.parametrize(
    "values",
    [[], [0], [0, 1.2], [0, -0.1], [0, float("nan")], [0.5, 0.5], [0, 0.7, 0.7], "abc", [[0, 0.5], [0]], [0, 1.0],
     [[[0, 0.5]]], None, 3],
)  # fmt: skip
def test_refuses_what_is_no_acceptance_vector(values: object) -> None:
    with pytest.raises(ConfigError, match=r"^here: "):
        parse_acceptance(values, name="here")
    with pytest.raises(ConfigError, match="must sum to 1"):
        parse_acceptance([0, 0.5, 0.25], ends_with_none=True)


# --- what a round costs ----------------------------------------------------------------------------

TREE = Growmap((2, 2, 0, 1, 0, 0))  # rows run by the draft: 1, 1, 1


def test_draft_time_counts_levels_and_rows_with_children() -> None:
    assert draft_round_time(TREE, float) == 3
    assert draft_round_time(TREE, lambda width: 1 + width, num_branches=4) == 3 + 12
    assert draft_round_time(Growmap.from_k_config((2, 2, 1)), float) == 1 + 2 + 4
    assert draft_round_time(Growmap((0,)), float) == 0


def test_time_per_round() -> None:
    def cost(policy: RoundPolicy, branches: int, drafts: int) -> float:
        return time_per_round(TREE, lambda _: 2.0, lambda rows: 9 + rows / 6, policy, Fleet(branches, drafts))

    d, v1, v2, v3 = 6, 10, 11, 12
    assert cost(RoundPolicy.SERIAL, 3, 3) == d + v1
    assert cost(RoundPolicy.FCFS, 1, 3) == cost(RoundPolicy.FCFS_BATCH, 1, 3) == d + v1
    assert cost(RoundPolicy.FCFS, 3, 3) == max(v1, (d + v1) / 3)
    assert cost(RoundPolicy.FCFS_BATCH, 2, 2) == min(d + v2, 2 * max(d, v1)) / 2
    assert cost(RoundPolicy.FCFS_BATCH, 3, 3) == min(d + v3, max(d, v2) + max(d, v1)) / 3
    slow = Fleet(3, 1)  # drafting is the bottleneck
    assert time_per_round(TREE, lambda _: 20.0, lambda _: 1.0, RoundPolicy.FCFS, slow) == 60
    assert time_per_round(TREE, lambda _: 20.0, lambda _: 1.0, RoundPolicy.FCFS, Fleet(3, 3)) == 61 / 3


@pytest.mark.parametrize("policy", RoundPolicy)
def test_choice_is_the_best_of_its_table(policy: RoundPolicy) -> None:
    acceptance = parse_acceptance(DEMO)
    choice = choose_tree(acceptance, lambda w: 9e-4 + 1e-5 * w, lambda r: 0.0145 + 4e-4 * r, policy, Fleet(3, 3))
    assert choice.options[0].growmap == Growmap((0,))
    assert choice.best.tokens_per_s == max(option.tokens_per_s for option in choice.options)
    assert choice.best.tokens_per_s > 1.3 * choice.options[0].tokens_per_s
    assert len({option.growmap for option in choice.options}) == len(choice.options)
    for option in choice.options:
        assert option.expected_tokens == pytest.approx(expected_tokens(option.growmap, acceptance), abs=1e-12)


def _constant(seconds: float, rows: int) -> float:
    return seconds


def test_choice_of_none_and_bad_input() -> None:
    acceptance = parse_acceptance([0, 0.1])
    choice = choose_tree(acceptance, lambda _: 1.0, lambda _: 1.0, RoundPolicy.SERIAL, Fleet())
    assert choice.best.growmap == Growmap((0,))
    bad: list[tuple[tuple[int, ...], float]] = [((), 1.0), ((0, 4), 1.0), ((4,), float("nan")), ((4,), -5.0)]
    for sizes, seconds in bad:
        with pytest.raises(ConfigError):
            choose_tree(acceptance, partial(_constant, seconds), lambda _: 1.0, RoundPolicy.SERIAL, Fleet(), sizes)
    with pytest.raises(ConfigError, match="1 or more"):
        Fleet(0, 1)
