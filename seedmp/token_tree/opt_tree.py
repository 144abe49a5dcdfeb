"""Trees that follow the draft's confidence: OPT-Tree, and EAGLE-2's tree as a case of it.

p_hat of a node is the product of draft probabilities on its path: the draft's guess that the node is accepted.
The n nodes of largest p_hat form a tree of their own (a child's p_hat is never above its parent's), the one
with most expected tokens. Pure: the caller runs the draft model, layer by layer.

Dimension letters: R nodes of the newest layer, V vocabulary, m candidates given for each node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from seedmp.checks import shown
from seedmp.errors import ConfigError
from seedmp.token_tree.k_config import MAX_TREE_NODES
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree

NOT_DRAFTED = -1


@dataclass(frozen=True)
class AdaptiveShape:
    """When to stop drafting and what to keep.

    Args:
        nodes: draft tokens that are verified, the root not counted.
        layer_width: nodes of a layer that may be drafted further, and children that each may get.
        max_depth: most layers, the newest counted: it is kept, though it was never run forward.
        threshold: stop when a layer adds this much or less to the sum of p_hat. The paper
            advises [mu, 1], mu = draft forward / target forward. None goes on to ``max_depth``.

    Raises:
        ConfigError: a value is out of range.
    """

    nodes: int
    layer_width: int
    max_depth: int
    threshold: float | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "layer_width", "max_depth"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= MAX_TREE_NODES:
                raise ConfigError(f"{name}={shown(value)}: must be a whole number from 1 to {MAX_TREE_NODES}")
        if self.threshold is not None and not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ConfigError(f"threshold={shown(self.threshold)}: must be a finite number >= 0")

    @property
    def max_drafted(self) -> int:
        """The most nodes that are run forward. When a layer is run, its nodes and their ancestors are kept nodes."""
        depths = range(1, min(self.max_depth, self.nodes + 1))
        return sum(min(self.layer_width, self.nodes - depth + 1) for depth in depths)


def opt_tree(nodes: int = 50, threshold: float = 0.5, max_depth: int = 10) -> AdaptiveShape:
    """OPT-Tree's parameters: layers as wide as the tree, stopped by the threshold.

    Source: Wang et al. 2024, OPT-Tree, algorithm 1. Its code drafts one layer more than it keeps;
        here the newest layer is kept, so ``max_depth`` 10 is ten layers for the work of its nine.
    """
    return AdaptiveShape(nodes, nodes, max_depth, threshold)


def eagle2(total_tokens: int = 60, depth: int = 7, top_k: int = 10) -> AdaptiveShape:
    """EAGLE-2's parameters, as its command line has them: the root counts in ``total_tokens``.

    Source: Li et al. 2024, EAGLE-2: a top-k layer, ``depth`` further ones, then the best of all.
    """
    return AdaptiveShape(total_tokens - 1, top_k, depth + 1)


@dataclass(frozen=True)
class Layer:
    """Nodes to be run forward next.

    Args:
        token_ids: [R].
        parents: [R] drafted index of each parent, NO_PARENT for the root.
        depth: of all R nodes; 1 below the root.
        first_drafted_idx: row r gets this plus r.

    A drafted index counts the nodes that were run forward, in that order; the KV of the i-th is in
    the branch's i-th draft slot.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    depth: int
    first_drafted_idx: int


@dataclass(frozen=True)
class GrownTree:
    """The kept tree.

    Args:
        tree: DETERMINISTIC, at most ``nodes`` tokens, layer by layer, siblings likeliest first.
        drafted_idx: [N] which forwarded node it is, NOT_DRAFTED for those without a KV slot.
        log_probs: [N] float64, log p_hat.
        num_drafted: nodes run forward in all, those that were dropped too.
    """

    tree: TokenTree
    drafted_idx: tuple[int, ...]
    log_probs: np.ndarray
    num_drafted: int

    @property
    def expected_tokens(self) -> float:
        """1 + sum of p_hat: the draft's own prediction of the round."""
        return 1 + float(np.exp(self.log_probs).sum())


class AdaptiveTreeBuilder:
    """Grows one tree. Give ``add_layer`` the root's row first, then the rows of each ``layer`` until it is None.

    Only nodes that are among the best ``nodes`` so far are drafted further. The others cannot become one of the best
    again, nor can the nodes below them. So the tree is the same as if whole layers were drafted.

    Ties: larger p_hat, then the shallower layer, then the row, then the earlier candidate (of a dense
    row the smaller token id). So equal numbers give equal trees on every machine.

    Invariants:
        candidates are listed layer by layer, in falling p_hat within a layer: list order is tie order.
    """

    def __init__(self, shape: AdaptiveShape) -> None:
        self.shape = shape
        self.layer: Layer | None = Layer((), (), 0, 0)
        self._token_ids: list[int] = []  # of every candidate that was among the best when it came
        self._parents: list[int] = []  # candidate index
        self._log_probs = np.empty(0)
        self._drafted: list[int] = []  # candidate index of each drafted node
        self._drafted_idx: list[int] = []  # the reverse
        self._depth = 0
        self._expected = 0.0

    @property
    def num_drafted(self) -> int:
        return len(self._drafted)

    def add_layer(self, log_probs: np.ndarray, token_ids: np.ndarray | None = None) -> Layer | None:
        """Take the draft's output after the nodes of ``layer`` (first: after the root).

        Args:
            log_probs: [R, V], or [R, m] with ``token_ids``: log-probabilities of the next token at temperature 1,
                whatever the sampling temperature is. NaN and -inf are no candidates.
            token_ids: [R, m] int, distinct in a row. ``layer_width`` pairs a row are all that is ever used, and
                torch.topk finds them 50 times faster than this does in whole rows.

        Returns:
            the nodes to run forward next, or None when the tree is done.
        """
        assert self.layer is not None, "the tree is done"
        start = [NO_PARENT] if self._depth == 0 else self._drafted[self.layer.first_drafted_idx :]
        assert len(log_probs) == len(start), f"{len(log_probs)} rows for {len(start)} nodes"
        ids, values = _best_of_rows(log_probs, token_ids, self.shape.layer_width)
        path = self._log_probs[start] if self._depth else np.zeros(1)
        values = values + path[:, None]
        order = np.argsort(-values, axis=None, kind="stable")[: self.shape.nodes]
        order = order[values.flat[order] > -np.inf]
        first = len(self._token_ids)
        self._token_ids += ids.flat[order].tolist()
        self._parents += [start[row] for row in order // values.shape[1]]
        self._log_probs = np.concatenate([self._log_probs, values.flat[order]])
        self._drafted_idx += [NOT_DRAFTED] * len(order)
        self._depth += 1

        kept = self._best()
        expected = float(np.exp(self._log_probs[kept]).sum())
        gain, self._expected = expected - self._expected, expected
        further = kept[(kept >= first) & (kept < first + self.shape.layer_width)]
        stop = self.shape.threshold is not None and gain <= self.shape.threshold
        if stop or self._depth == self.shape.max_depth or not len(further):
            self.layer = None
            return None
        parents = [self._parents[i] for i in further]
        self.layer = Layer(
            tuple(self._token_ids[i] for i in further),
            tuple(NO_PARENT if parent == NO_PARENT else self._drafted_idx[parent] for parent in parents),
            self._depth,
            len(self._drafted),
        )
        for i in further.tolist():
            self._drafted_idx[i] = len(self._drafted)
            self._drafted.append(i)
        return self.layer

    def grown(self) -> GrownTree:
        """The tree of the layers so far: the ``nodes`` candidates of largest p_hat."""
        kept = self._best()
        place = {NO_PARENT: NO_PARENT} | {i: node_idx for node_idx, i in enumerate(kept.tolist())}
        tree = TokenTree(
            tuple(self._token_ids[i] for i in kept),
            tuple(place[self._parents[i]] for i in kept),
            ProposalKind.DETERMINISTIC,
        )
        drafted_idx = tuple(self._drafted_idx[i] for i in kept)
        return GrownTree(tree, drafted_idx, self._log_probs[kept], len(self._drafted))

    def _best(self) -> np.ndarray:
        """Candidate indices of the best ``nodes``, in list order, so parents before children."""
        return np.sort(np.argsort(-self._log_probs, kind="stable")[: self.shape.nodes])


def _best_of_rows(log_probs: np.ndarray, token_ids: np.ndarray | None, k: int) -> tuple[np.ndarray, np.ndarray]:
    """[R, min(k, m)] ids and float64 values of each row's k largest, largest first, ties in row order."""
    values = log_probs.astype(np.float64)
    values[np.isnan(values)] = -np.inf
    np.minimum(values, 0, out=values)  # rounding above 0 would put a child before its parent
    k = min(k, values.shape[1])
    if token_ids is None and k < values.shape[1]:  # a whole vocabulary: do not sort it
        cuts = np.partition(values, -k, axis=1)[:, -k]
        top = np.empty((len(values), k), np.int64)
        for row, (row_values, cut) in enumerate(zip(values, cuts, strict=True)):
            at_least = np.flatnonzero(row_values >= cut)
            top[row] = at_least[np.argsort(-row_values[at_least], kind="stable")[:k]]
    else:
        top = np.argsort(-values, axis=1, kind="stable")[:, :k]
    ids = top if token_ids is None else np.take_along_axis(token_ids, top, 1)
    return ids, np.take_along_axis(values, top, 1)
