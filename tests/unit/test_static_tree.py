"""Trees of a given shape, grown layer by layer: nodes, KV slots, and equal siblings as one node."""

from __future__ import annotations

import random

import pytest

from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.opt_tree import NOT_DRAFTED, AdaptiveShape, AdaptiveTreeBuilder
from seedmp.token_tree.static_tree import GrownStaticTree, StaticTreeBuilder
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree
from tests.helpers.merge import merge_equal_siblings

SWOR, IID = ProposalKind.WITHOUT_REPLACEMENT, ProposalKind.IID
MAPS = [(2, 1, 0, 0), (3, 2, 0, 1, 0, 2, 0, 0, 0), Growmap.chains(3, 3).num_children, (1, 0), (1, 1, 3, 0, 0, 0)]


def random_map(rng: random.Random) -> tuple[int, ...]:
    counts, known = [rng.randrange(1, 4)], 1
    known += counts[0]
    while len(counts) < known:
        counts.append(rng.randrange(4) if known < 20 else 0)
        known += counts[-1]
    return tuple(counts)


def grow(growmap: Growmap, kind: ProposalKind, rng: random.Random, vocab: int) -> tuple[GrownStaticTree, int]:
    """The tree, and how many nodes were run forward; checks each layer."""
    builder = StaticTreeBuilder(growmap, kind)
    num_drafted = depth = 0
    while builder.layer is not None:
        layer = builder.layer
        assert layer.depth == depth and layer.first_drafted_idx == num_drafted
        num_drafted += len(layer.token_ids)
        depth += 1
        draw = rng.choices if kind is IID else rng.sample
        children = [draw(range(vocab), k=num) for num in builder.num_children]
        builder.add_layer(children)
    return builder.grown(), num_drafted


@pytest.mark.parametrize("counts", MAPS)
def test_distinct_children_give_the_shape_itself(counts: tuple[int, ...]) -> None:
    growmap = Growmap(counts)
    grown, num_drafted = grow(growmap, SWOR, random.Random(0), 9)
    assert grown.tree.parents == growmap.parents and grown.draws == ()
    assert num_drafted == growmap.num_drafted
    internal = [i for i in range(len(grown.tree)) if growmap.num_children[i + 1]]
    assert [i for i, drafted in enumerate(grown.drafted_idx) if drafted != NOT_DRAFTED] == internal
    assert [grown.drafted_idx[i] for i in internal] == list(range(len(internal)))


@pytest.mark.parametrize("seed", range(60))
def test_equal_siblings_become_one_node_with_the_children_of_all(seed: int) -> None:
    rng = random.Random(seed)
    growmap = Growmap(random_map(rng))
    grown, num_drafted = grow(growmap, IID, rng, 3)
    tree = grown.tree
    assert len(set(zip(tree.parents, tree.token_ids, strict=True))) == len(tree)
    assert num_drafted <= growmap.num_drafted
    assert num_drafted == sum(node_idx != NO_PARENT for node_idx in tree.internal_nodes)
    draws = grown.draws or tuple(range(len(tree)))
    assert len(draws) == growmap.num_nodes and set(draws) == set(range(len(tree)))
    # The same as merging the whole tree of draws afterwards, if its children were drawn in that order.
    unmerged = unmerge(growmap, grown)
    merged = merge_equal_siblings(unmerged)
    assert sorted(zip(paths(merged.tree), strict=True)) == sorted(zip(paths(tree), strict=True))
    counts = {path: draws.count(i) for i, path in enumerate(paths(tree))}
    assert counts == {path: merged.draws.count(i) for i, path in enumerate(paths(merged.tree))}


def unmerge(growmap: Growmap, grown: GrownStaticTree) -> TokenTree:
    """Each draw as a node of its own: draws of a level go to the copies of their parent in turn."""
    draws = grown.draws or tuple(range(len(grown.tree)))
    node_of = {0: NO_PARENT}
    by_parent: dict[int, list[int]] = {}
    for node_idx in draws:
        by_parent.setdefault(grown.tree.parents[node_idx], []).append(node_idx)
    for growmap_id, children in enumerate(growmap.children):
        for child in children:
            node_of[child] = by_parent[node_of[growmap_id]].pop(0)
    tokens = tuple(grown.tree.token_ids[node_of[i]] for i in range(1, growmap.size))
    return TokenTree(tokens, growmap.parents, IID)


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    result: list[tuple[int, ...]] = []
    for token_id, parent in zip(tree.token_ids, tree.parents, strict=True):
        result.append((*(() if parent == NO_PARENT else result[parent]), token_id))
    return result


def test_a_small_vocabulary_leaves_the_rest_out() -> None:
    builder = StaticTreeBuilder(Growmap((3, 0, 1, 1, 0, 0)), SWOR)
    layer = builder.add_layer([[7, 8]])  # the third child, which has a child, is missing
    assert layer is not None and layer.token_ids == (8,)
    assert builder.add_layer([[9]]) is None
    assert builder.grown() == GrownStaticTree(TokenTree((7, 8, 9), (-1, -1, 1), SWOR), (-1, 0, -1), ())


@pytest.mark.parametrize("depth", range(5))
def test_cut_keeps_the_upper_levels(depth: int) -> None:
    growmap = Growmap((3, 2, 0, 1, 0, 2, 0, 0, 0))
    cut = growmap.cut(depth)
    assert cut.depth == min(depth, growmap.depth)
    assert cut.widths == growmap.widths[: depth + 1]
    assert cut.parents == growmap.parents[: cut.num_nodes]


@pytest.mark.parametrize("seed", range(30))
def test_an_adaptive_tree_never_runs_more_nodes_than_it_said(seed: int) -> None:
    import numpy as np

    rng = np.random.default_rng(seed)
    shape = AdaptiveShape(
        int(rng.integers(1, 7)), int(rng.integers(1, 7)), int(rng.integers(1, 8)), [None, 0.0][seed % 2]
    )
    builder = AdaptiveTreeBuilder(shape)
    while builder.layer is not None:
        rows = max(1, len(builder.layer.token_ids))
        builder.add_layer(np.log(rng.dirichlet(np.full(6, 0.2 + seed / 10), rows) + 1e-12))
    assert builder.num_drafted <= shape.max_drafted
