"""Prompt lookup as a tree: what is found, in which order, and within which limits."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedmp.errors import ConfigError
from seedmp.token_tree.ngram import NgramShape, propose_ngram_tree
from seedmp.token_tree.tree import EMPTY_TREE, NO_PARENT, ProposalKind, TokenTree


def paths(tree: TokenTree) -> list[tuple[int, ...]]:
    """Of each node, in the order of the tree."""
    result: list[tuple[int, ...]] = []
    for token, parent in zip(tree.token_ids, tree.parents, strict=True):
        result.append((*(() if parent == NO_PARENT else result[parent]), token))
    return result


def test_one_match_is_a_chain() -> None:
    tree = propose_ngram_tree([1, 2, 3, 4, 5, 9, 1, 2], [], NgramShape(nodes=3, max_depth=8))
    assert paths(tree) == [(3,), (3, 4), (3, 4, 5)]
    assert tree.kind is ProposalKind.DETERMINISTIC


def test_matches_become_one_trie() -> None:
    others = [[7, 1, 2, 3, 5], [1, 2, 6]]
    tree = propose_ngram_tree([1, 2, 3, 4, 1, 2], others, NgramShape(nodes=9, max_depth=2))
    assert paths(tree)[0] == (3,)  # twice
    assert set(paths(tree)) == {(3,), (3, 4), (3, 5), (6,)}


def test_longest_then_most_frequent_then_most_recent() -> None:
    shape = NgramShape(nodes=4, max_depth=1)
    longer = propose_ngram_tree([1, 2, 3, 50, 8, 3, 60, 9, 3, 60, 1, 2, 3], [], shape)
    assert longer.token_ids == (50, 60)
    frequent = propose_ngram_tree([8, 3, 60, 9, 3, 60, 7, 3, 50, 3], [], shape)
    assert frequent.token_ids == (60, 50)
    recent = propose_ngram_tree([3, 60, 3, 50, 3], [[3, 70], [3, 80]], shape)
    assert recent.token_ids == (50, 60, 70, 80)


def test_a_second_opinion_near_the_root_beats_a_deep_tail() -> None:
    text = [3, *range(10, 20), 3, *range(20, 30), 3]
    tree = propose_ngram_tree(text, [], NgramShape(nodes=6, max_depth=10))
    assert {path[:1] for path in paths(tree)} == {(10,), (20,)}


def test_nothing_to_propose() -> None:
    shape = NgramShape(min_ngram=2)
    cases: list[tuple[list[int], list[list[int]]]] = [
        ([], []),
        ([1], [[1, 2]]),
        ([1, 2, 3], [[]]),
        ([5, 1, 6, 1], [[7, 1]]),
    ]
    for text, others in cases:
        assert propose_ngram_tree(text, others, shape) == EMPTY_TREE
    assert propose_ngram_tree([1, 2, 3, 1], [], shape) == EMPTY_TREE  # a match of 1 is too short
    assert propose_ngram_tree([9, 1], [[9, 1, 4]], shape).token_ids == (4,)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=3),
    st.builds(NgramShape, st.integers(1, 12), st.integers(1, 5), st.integers(2, 4), st.integers(1, 2)),
)
def test_every_path_follows_the_suffix_somewhere(text: list[int], others: list[list[int]], shape: NgramShape) -> None:
    tree = propose_ngram_tree(text, others, shape)
    assert tree == propose_ngram_tree(np.array(text, np.uint32), [np.array(other, np.int32) for other in others], shape)
    found = paths(tree)
    assert len(set(found)) == len(found) <= shape.nodes
    assert all(len(path) <= shape.max_depth for path in found)
    for path in found:
        wanted = text[len(text) - shape.min_ngram :] + list(path)
        assert any(
            searched[i : i + len(wanted)] == wanted
            for searched in (text, *others)
            for i in range(len(searched) - len(wanted) + 1)
        )
    exists = any(
        searched[i : i + shape.min_ngram] == text[len(text) - shape.min_ngram :]
        for searched in (text, *others)
        for i in range(len(searched) - shape.min_ngram)
    )
    assert bool(found) == (exists and len(text) >= shape.min_ngram)


def test_long_texts_of_many_siblings_take_little_time() -> None:
    rng = np.random.default_rng(0)
    texts = [rng.zipf(1.3, 4000).clip(max=30000) for _ in range(31)]
    text = np.append(texts[0], 1)  # the most frequent token
    started = time.perf_counter()
    tree = propose_ngram_tree(text, texts[1:], NgramShape(nodes=64))
    assert len(tree) == 64
    assert time.perf_counter() - started < 1  # about 2 ms; a busy machine may be slow


@pytest.mark.parametrize("values", [(0,), (4, 0), (4, 4, 0), (4, 4, 2, 3), (4, 4, 1000), (4.0,), (10**6,)])
def test_refuses_parameters(values: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError):
        NgramShape(*values)
