"""OPT-Tree and EAGLE-2 trees: equal to brute force, stopped in time, deterministic."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seedmp.errors import ConfigError
from seedmp.token_tree.opt_tree import (
    NOT_DRAFTED,
    AdaptiveShape,
    AdaptiveTreeBuilder,
    GrownTree,
    eagle2,
    opt_tree,
)
from seedmp.token_tree.tree import NO_PARENT, ProposalKind

VOCAB = 4
Path = tuple[int, ...]


class ToyDraft:
    """A law for each path, random but fixed; with ``coarse`` there are many ties and zeros."""

    def __init__(self, seed: int, coarse: bool = False) -> None:
        self.seed, self.coarse = seed, coarse

    def log_probs(self, path: Path) -> np.ndarray:
        rng = np.random.default_rng([self.seed, len(path), *path])
        weights = rng.exponential(size=VOCAB) ** 2 + 1e-9
        if self.coarse:
            weights = rng.integers(0, 3, VOCAB).astype(float)
            weights[0] += not weights.any()
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(weights / weights.sum()))


def grow(draft: ToyDraft, shape: AdaptiveShape, top: int | None = None) -> tuple[GrownTree, list[Path], int]:
    """The tree, the paths of drafted nodes, and the layers taken. ``top``: give (id, log-prob) pairs."""
    builder = AdaptiveTreeBuilder(shape)
    drafted: list[Path] = []
    starts: list[Path] = [()]
    for layers in itertools.count(1):
        rows = np.stack([draft.log_probs(path) for path in starts])
        if top is None:
            layer = builder.add_layer(rows)
        else:
            ids = np.argsort(-rows, axis=1, kind="stable")[:, :top]
            layer = builder.add_layer(np.take_along_axis(rows, ids, 1), ids)
        if layer is None:
            return builder.grown(), drafted, layers
        assert layer.first_drafted_idx == len(drafted)
        assert layer.depth == layers
        starts = [
            (*(() if parent == NO_PARENT else drafted[parent]), token)
            for token, parent in zip(layer.token_ids, layer.parents, strict=True)
        ]
        assert all(len(path) == layer.depth for path in starts)
        drafted += starts
    raise AssertionError


def paths_of(grown: GrownTree) -> list[Path]:
    paths: list[Path] = []
    for token, parent in zip(grown.tree.token_ids, grown.tree.parents, strict=True):
        paths.append((*(() if parent == NO_PARENT else paths[parent]), token))
    return paths


def whole_layers(draft: ToyDraft, shape: AdaptiveShape) -> tuple[dict[Path, float], int]:
    """The published algorithm word for word: every layer drafted as a whole, one list of all candidates."""
    pool: list[tuple[float, int, int, Path]] = []  # (-log p_hat, depth, place in the layer, path)
    starts: list[tuple[Path, float]] = [((), 0.0)]
    before = 0.0
    for depth in range(1, shape.max_depth + 1):
        candidates = []
        for path, log_prob in starts:
            row = draft.log_probs(path)
            best = np.argsort(-row, kind="stable")[: shape.layer_width].tolist()
            candidates += [((*path, token), log_prob + float(row[token])) for token in best]
        candidates.sort(key=lambda item: -item[1])
        candidates = [item for item in candidates if item[1] > -math.inf]
        pool += [(-value, depth, place, path) for place, (path, value) in enumerate(candidates)]
        starts = candidates[: shape.layer_width]
        expected = sum(math.exp(-item[0]) for item in sorted(pool)[: shape.nodes])
        if not starts or (shape.threshold is not None and expected - before <= shape.threshold + 1e-15):
            break
        before = expected
    return {path: -value for value, _, _, path in sorted(pool)[: shape.nodes]}, depth


shapes = st.builds(
    AdaptiveShape,
    nodes=st.integers(1, 12),
    layer_width=st.integers(1, 6),
    max_depth=st.integers(1, 4),
    threshold=st.sampled_from([None, 0.0, 0.0513, 0.317]),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.booleans(), shapes)
@example(3, True, opt_tree(12, 0.0, 4))
@example(3, False, eagle2(11, 3, 3))
def test_is_the_tree_of_whole_layers(seed: int, coarse: bool, shape: AdaptiveShape) -> None:
    draft = ToyDraft(seed, coarse)
    grown, drafted, layers = grow(draft, shape)
    expected, most_layers = whole_layers(draft, shape)
    paths = paths_of(grown)
    assert dict(zip(paths, grown.log_probs, strict=True)) == pytest.approx(expected, abs=1e-12)
    assert layers <= most_layers
    assert len(set(paths)) == len(paths) <= shape.nodes
    assert grown.tree.kind is ProposalKind.DETERMINISTIC
    assert grown.num_drafted == len(drafted)
    for path, idx in zip(paths, grown.drafted_idx, strict=True):
        assert idx == NOT_DRAFTED or drafted[idx] == path
    for parent in grown.tree.parents:
        assert parent == NO_PARENT or paths[parent] in drafted


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 3))
def test_opt_tree_has_the_largest_p_hat_of_all_paths(seed: int, nodes: int, max_depth: int) -> None:
    """Layers as wide as the vocabulary's paths: then the best n of everything that could be drafted."""
    draft = ToyDraft(seed)
    grown, _, _ = grow(draft, AdaptiveShape(nodes, VOCAB**3, max_depth))
    everything = []
    for depth in range(1, max_depth + 1):
        for path in itertools.product(range(VOCAB), repeat=depth):
            everything.append(sum(float(draft.log_probs(path[:i])[token]) for i, token in enumerate(path)))
    best = sorted(everything, reverse=True)[:nodes]
    assert sorted(grown.log_probs, reverse=True) == pytest.approx(best, abs=1e-12)
    assert grown.expected_tokens == pytest.approx(1 + sum(map(math.exp, best)))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_pairs_of_enough_candidates_are_as_good_as_whole_rows(seed: int, nodes: int) -> None:
    draft, shape = ToyDraft(seed, coarse=True), opt_tree(nodes, 0.1, 4)
    dense, sparse = grow(draft, shape)[0], grow(draft, shape, top=min(nodes, VOCAB))[0]
    assert dense.tree == sparse.tree
    assert dense.drafted_idx == sparse.drafted_idx


def test_newest_layer_is_used() -> None:
    rows = np.log([[0.7, 0.3]])
    builder = AdaptiveTreeBuilder(opt_tree(nodes=4, threshold=0.5, max_depth=2))
    layer = builder.add_layer(rows)
    assert layer is not None
    assert layer.token_ids == (0, 1)
    assert builder.add_layer(np.repeat(rows, 2, 0)) is None  # the second of two layers
    grown = builder.grown()
    assert paths_of(grown) == [(0,), (1,), (0, 0), (0, 1)]
    assert grown.drafted_idx == (0, 1, NOT_DRAFTED, NOT_DRAFTED)
    assert grown.expected_tokens == pytest.approx(1 + 1 + 0.7)


@pytest.mark.parametrize(("threshold", "layers"), [(1.1, 1), (0.9, 2), (0.7, 3), (0.1, 4)])
def test_threshold_stops_after_a_layer_of_little_gain(threshold: float, layers: int) -> None:
    """Three nodes and the law (.9, .1): the sum of p_hat is 1, then 1.81, then 2.439, and stays so."""
    builder = AdaptiveTreeBuilder(opt_tree(nodes=3, threshold=threshold, max_depth=9))
    count = 0
    while builder.layer is not None:
        builder.add_layer(np.repeat(np.log([[0.9, 0.1]]), max(1, len(builder.layer.token_ids)), 0))
        count += 1
    assert count == layers
    assert builder.grown().expected_tokens == pytest.approx(1 + [1, 1.81, 2.439, 2.439][layers - 1])


def test_only_nodes_that_may_be_kept_are_drafted() -> None:
    builder = AdaptiveTreeBuilder(AdaptiveShape(nodes=3, layer_width=3, max_depth=5))
    assert builder.add_layer(np.log([[0.9, 0.06, 0.04]])) is not None
    layer = builder.add_layer(np.log([[0.98, 0.01, 0.01]] * 3))
    assert layer is not None
    assert (layer.token_ids, layer.parents) == ((0,), (0,))  # one row, not three


def test_eagle2_counts_as_its_command_line() -> None:
    assert eagle2(60, 5, 10) == AdaptiveShape(nodes=59, layer_width=10, max_depth=6)
    grown, drafted, layers = grow(ToyDraft(1), eagle2(total_tokens=30, depth=3, top_k=2))
    assert layers == 4
    assert len(drafted) == 3 * 2  # no early stop: all of 2 + 3 * 4 candidates are kept
    assert len(grown.tree) == 14


def test_broken_rows_end_the_tree_and_not_the_request() -> None:
    builder = AdaptiveTreeBuilder(opt_tree(4))
    assert builder.add_layer(np.full((1, 5), np.nan)) is None
    assert len(builder.grown().tree) == 0
    assert builder.grown().expected_tokens == 1
    rows = np.log([[0.5, 0.3, 0.2]])
    rows[0, 0] = np.nan
    builder = AdaptiveTreeBuilder(opt_tree(4, 0.0))
    layer = builder.add_layer(rows)
    assert layer is not None
    assert layer.token_ids == (1, 2)


def test_equal_probabilities_are_taken_in_token_order() -> None:
    builder = AdaptiveTreeBuilder(AdaptiveShape(nodes=5, layer_width=3, max_depth=2))
    layer = builder.add_layer(np.full((1, 1000), -math.log(1000), np.float32))
    assert layer is not None
    assert layer.token_ids == (0, 1, 2)


@pytest.mark.parametrize(
    "values",
    [(0, 1, 1), (1, 0, 1), (1, 1, 0), (10**9, 1, 1), (1.5, 1, 1), (1, 1, 1, -0.1), (1, 1, 1, math.nan)],
)
def test_refuses_parameters(values: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        AdaptiveShape(*values)
