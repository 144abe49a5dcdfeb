"""Equal siblings as one node: the law of the output is unchanged, by enumeration of everything that may happen."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import pytest

from seedmp.decoding.specinfer import SpecInferTrial
from seedmp.errors import ConfigError
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.merge import MergedTree
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree
from tests.helpers.merge import merge_equal_siblings

VOCAB = 3
Path = tuple[int, ...]
Trials = tuple[tuple[int, ...], ...]


# Of two tokens that the target likes better than the draft does: so what is left after one rejection
# differs from what is left after two.
ROOT = {"target": (0.5, 0.35, 0.15), "draft": (0.3, 0.1, 0.6)}


@lru_cache(None)
def law(name: str, path: Path) -> np.ndarray:
    """The target's or the draft's law after a path: fixed, and quite unlike each other."""
    if not path:
        return np.array(ROOT[name])
    rng = np.random.default_rng([len(name), len(path), *path])
    weights = rng.exponential(size=VOCAB) ** 1.5 + 0.05
    return np.asarray(weights / weights.sum())


def accept_exactly(tree: TokenTree, trials: Trials) -> dict[Path, float]:
    """Rule C without chance: the probability of each (accepted path, next token)."""
    result: dict[Path, float] = defaultdict(float)

    def visit(node_idx: int, path: Path, prob: float) -> None:
        tried = trials[node_idx + 1]
        residual = law("target", path)
        if tried:
            trial = SpecInferTrial(residual, np.arange(VOCAB), law("draft", path))
            for child in tried:
                token = tree.token_ids[child]
                accepted = trial.accept_prob(token)
                if accepted > 0:
                    visit(child, (*path, token), prob * accepted)
                prob *= 1 - accepted
                if prob == 0:
                    return
                trial.reject(token)
            residual = trial.residual
        for token in range(VOCAB):
            emitted = (*path, token)
            result[emitted] += prob * float(residual[token])

    visit(NO_PARENT, (), 1.0)
    return result


def output_law(shape: Growmap, merge: Callable[[TokenTree], tuple[TokenTree, Trials]]) -> tuple[np.ndarray, float]:
    """Over every tree that the draft may draw: joint law of the first depth + 1 tokens, mean tokens emitted."""
    length = shape.depth + 1
    joint = np.zeros((VOCAB,) * length)
    mean = 0.0
    for tokens in itertools.product(range(VOCAB), repeat=shape.num_nodes):
        tree = TokenTree(tokens, shape.parents, ProposalKind.IID)
        drawn = 1.0
        paths: list[Path] = []
        for token, parent in zip(tokens, shape.parents, strict=True):
            path = () if parent == NO_PARENT else paths[parent]
            drawn *= law("draft", path)[token]
            paths.append((*path, token))
        for emitted, prob in accept_exactly(*merge(tree)).items():
            mean += drawn * prob * len(emitted)
            for rest in itertools.product(range(VOCAB), repeat=length - len(emitted)):
                text, more = emitted, 1.0
                for token in rest:
                    more *= law("target", text)[token]
                    text = (*text, token)
                joint[text] += drawn * prob * more
    return joint, mean


def target_law(length: int) -> np.ndarray:
    joint = np.zeros((VOCAB,) * length)
    for text in itertools.product(range(VOCAB), repeat=length):
        joint[text] = np.prod([law("target", text[:i])[token] for i, token in enumerate(text)])
    return joint


def unmerged(tree: TokenTree) -> tuple[TokenTree, Trials]:
    return tree, tree.children


def merged(tree: TokenTree) -> tuple[TokenTree, Trials]:
    result = merge_equal_siblings(tree)
    return result.tree, result.trials


def without_repeats(tree: TokenTree) -> tuple[TokenTree, Trials]:
    """Broken: forgets that a token was drawn twice."""
    result = merge_equal_siblings(tree)
    return result.tree, result.tree.children


def repeats_together(tree: TokenTree) -> tuple[TokenTree, Trials]:
    """Broken: keeps how often each was drawn, but not in which order."""
    result = merge_equal_siblings(tree)
    return result.tree, tuple(tuple(sorted(trials)) for trials in result.trials)


SHAPES = [
    Growmap((2, 2, 1, 0, 0, 0)),
    Growmap((3, 1, 1, 1, 0, 0, 0)),
    Growmap((2, 1, 1, 1, 1, 0, 0)),
    Growmap((4, 0, 0, 0, 0)),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_law_is_the_targets(shape: Growmap) -> None:
    expected = target_law(shape.depth + 1)
    plain, plain_mean = output_law(shape, unmerged)
    joined, joined_mean = output_law(shape, merged)
    np.testing.assert_allclose(plain, expected, atol=1e-12)
    np.testing.assert_allclose(joined, expected, atol=1e-12)
    assert joined_mean >= plain_mean - 1e-12
    if shape.depth > 1:
        assert joined_mean > plain_mean + 1e-3  # second copies' children are of use


@pytest.mark.parametrize("broken", [without_repeats, repeats_together])
def test_broken_twins_are_biased(broken: Callable[[TokenTree], tuple[TokenTree, Trials]]) -> None:
    shape = SHAPES[-1]
    joint, _ = output_law(shape, broken)
    assert abs(joint - target_law(shape.depth + 1)).sum() / 2 > 1e-3


def test_what_merging_makes() -> None:
    #        root: 5 7 5;  5 -> 1 2;  7 -> 1;  5 -> 2 3;  the second 5's 2 -> 9
    tree = TokenTree((5, 7, 5, 1, 2, 1, 2, 3, 9), (-1, -1, -1, 0, 0, 1, 2, 2, 6), ProposalKind.IID)
    result = merge_equal_siblings(tree)
    assert result.tree == TokenTree((5, 7, 1, 2, 1, 3, 9), (-1, -1, 0, 0, 1, 0, 3), ProposalKind.IID)
    assert result.draws == (0, 1, 0, 2, 3, 4, 3, 5, 6)
    assert result.trials[0] == (0, 1, 0)
    assert result.trials[1] == (2, 3, 3, 5)


def test_distinct_siblings_are_left_alone() -> None:
    tree = TokenTree((5, 7, 5, 5), (-1, -1, 0, 1), ProposalKind.IID)
    result = merge_equal_siblings(tree)
    assert result == MergedTree(tree, (0, 1, 2, 3))
    assert result.trials == tree.children


def test_refuses_other_kinds() -> None:
    with pytest.raises(ConfigError, match="not deterministic"):
        merge_equal_siblings(TokenTree((1,), (-1,), ProposalKind.DETERMINISTIC))
