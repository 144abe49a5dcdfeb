"""Sequoia's tree search: the static tree of a given size and depth that should emit most tokens.

Assumption (Chen et al. 2024, positional acceptance): whether the b-th child of a node is the accepted one depends on b
alone, or on b and the node's depth. Then the expected tokens of a round are a sum over nodes, and a
dynamic programme finds the best tree.

Dimension letters: K rows of the acceptance table, B most children, N most nodes (the root included),
L most levels (the root's included).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seedmp.errors import ConfigError
from seedmp.token_tree.growmap import MAX_GROWMAP_SIZE, Growmap

MAX_LEVELS = 128
# Published vectors are counts of some thousand trials in float32.
_SUM_TOLERANCE = 1e-3


def parse_acceptance(values: object, ends_with_none: bool | None = None, name: str = "acceptance vector") -> np.ndarray:
    """An acceptance vector, or one vector per depth, as it was measured.

    Args:
        values: [B + 1], [B + 2], [K, B + 1] or [K, B + 2] numbers in [0, 1]; entry 0 is 0, entry b
            the probability that the b-th child drawn at a node is the accepted one, and a last entry
            may be the probability that none is. Row k is for children of nodes of depth k.
        ends_with_none: whether the last entry is P(none), the probability that no child is accepted. Sequoia's
            test_accept.py writes it, and its fast_test.py does not. (Its tree_search.py always drops the last entry,
            so it loses the widest branch of fast_test.py's vectors.) None finds out: with P(none) a row sums to 1.

    Returns:
        [K, B + 1] float64 without P(none); K is 1 for a single vector.

    Raises:
        ConfigError: no such table; says why.
    """
    try:
        table = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: must be a list of numbers, or one list per depth ({error})") from None
    if table.ndim == 1:
        table = table[None]
    if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] < 2:
        raise ConfigError(
            f"{name}: must be [0, P(1st child), ...], or one such list per depth, not of shape {table.shape}"
        )
    if table.shape[0] > MAX_LEVELS or table.shape[1] > MAX_GROWMAP_SIZE + 2:
        raise ConfigError(f"{name}: {table.shape} is larger than any tree")
    if not (np.isfinite(table).all() and (table >= 0).all()):
        raise ConfigError(f"{name}: has entries that are no probabilities (negative, infinite or NaN)")
    if (table[:, 0] != 0).any():
        raise ConfigError(f"{name}: must begin with 0 (entry b is for the b-th child), not {table[:, 0].max():g}")
    sums = table.sum(-1)
    if sums.max() > 1 + _SUM_TOLERANCE:
        raise ConfigError(f"{name}: sums to {sums.max():g}: at most one child is accepted, so it must be 1 or less")
    full = bool((sums > 1 - _SUM_TOLERANCE).all())
    if ends_with_none and not full:
        raise ConfigError(f"{name}: sums to {sums.min():g}, but with P(none) as its last entry it must sum to 1")
    if full if ends_with_none is None else ends_with_none:
        if table.shape[1] < 3:
            raise ConfigError(f"{name}: has no entry for a first child before P(none)")
        table = table[:, :-1]
    return table


def expected_tokens(growmap: Growmap, acceptance: np.ndarray) -> float:
    """F(tree): tokens that a round emits, the recovered or bonus token included.

    Args:
        acceptance: [K, B + 1] of ``parse_acceptance``; depths from K on use the last row, children
            beyond B are never accepted.

    Source: Sequoia, Proposition 3.4: the sum over nodes of the product of acceptances on the path.
    """
    reach = np.zeros(growmap.size)
    reach[0] = 1
    for node_id, children in enumerate(growmap.children):
        row = acceptance[min(growmap.depths[node_id], len(acceptance) - 1)]
        for branch, child in enumerate(children[: len(row) - 1], 1):
            reach[child] = reach[node_id] * row[branch]
    return float(reach.sum())


@dataclass(frozen=True)
class SearchTable:
    """The best tree of every size and depth.

    Args:
        expected: [N + 1, L + 1] float64; most expected tokens of trees with exactly n nodes in at most
            l levels, the root's included; -inf where there is none.
    """

    expected: np.ndarray
    _num_children: np.ndarray  # [K, L + 1, N + 1] children of the subtree's root
    _split: np.ndarray  # [K, L + 1, B + 1, N + 1] nodes that stay with the root's first b - 1 subtrees

    def growmap(self, size: int, levels: int) -> Growmap:
        """The tree that ``expected[size, levels]`` is of; among equals the one with fewer children above.

        Raises:
            ConfigError: there is no such tree.
        """
        if not np.isfinite(self.expected[size, levels]):
            raise ConfigError(f"no tree of {size} nodes in {levels} levels: too few children per node")
        counts = []
        queue = [(0, levels, size)]  # breadth first: acceptance row, levels, nodes of each subtree
        for row, num_levels, num_nodes in queue:
            num_children = int(self._num_children[row, num_levels, num_nodes])
            counts.append(num_children)
            sizes = []
            for branch in range(num_children, 0, -1):
                kept = int(self._split[row, num_levels, branch, num_nodes])
                sizes.append(num_nodes - kept)
                num_nodes = kept
            below = min(row + 1, len(self._split) - 1)
            queue += [(below, num_levels - 1, child_size) for child_size in reversed(sizes)]
        return Growmap(tuple(counts))


def search_trees(acceptance: np.ndarray, max_size: int, max_levels: int) -> SearchTable:
    """Sequoia's dynamic programme over (nodes, levels, children of the root).

    T[n][l][b], the most expected tokens of a tree of n nodes in at most l levels whose root has b children, is
    max over y of T[y][l][b - 1] + p[b] * max_j T[n - y][l - 1][j], with T[1][l][0] = 1. With one
    vector per depth T also depends on the depth of the subtree's root. O(K N^2 L B), offline.

    Args:
        acceptance: [K, B + 1] of ``parse_acceptance``.

    Raises:
        ConfigError: a size or depth out of range.

    Source: Sequoia, section 3.2 and its tree_search.py; several vectors: its appendix on self-speculation.
    """
    if not (1 <= max_size <= MAX_GROWMAP_SIZE and 1 <= max_levels <= MAX_LEVELS):
        raise ConfigError(
            f"trees of {max_size} nodes in {max_levels} levels: at most {MAX_GROWMAP_SIZE} and {MAX_LEVELS}, at least 1"
        )
    num_rows = min(len(acceptance), max_levels)
    max_children = min(acceptance.shape[1] - 1, max(max_size - 1, 1))
    sizes = max_size + 1
    best = np.full((num_rows, max_levels + 1, sizes), -np.inf)
    num_children = np.zeros((num_rows, max_levels + 1, sizes), np.int16)
    split = np.zeros((num_rows, max_levels + 1, max_children + 1, sizes), np.int16)
    sums = np.empty((sizes, sizes))
    for levels in range(1, max_levels + 1):
        for row in range(min(num_rows, max_levels - levels + 1)):
            last = np.full(sizes, -np.inf)  # T[.][levels][branch]
            last[1] = 1
            best[row, levels] = last
            below = best[min(row + 1, num_rows - 1), levels - 1]
            if not np.isfinite(below).any():  # a single level
                continue
            for branch in range(1, max_children + 1):
                gain = np.full(sizes, -np.inf)  # of a further subtree of n nodes
                np.multiply(below, acceptance[row, branch], out=gain, where=np.isfinite(below))
                # [n, y]: y nodes for the root and its earlier subtrees, n - y for this one
                padded = np.concatenate([gain[::-1], np.full(max_size, -np.inf)])
                shifted = np.lib.stride_tricks.sliding_window_view(padded, sizes)[::-1]
                np.add(shifted, last, out=sums)
                chosen = sums.argmax(1)
                last = sums[np.arange(sizes), chosen]
                split[row, levels, branch] = chosen
                better = last > best[row, levels]
                best[row, levels][better] = last[better]
                num_children[row, levels][better] = branch
    return SearchTable(best[0].T, num_children, split)


@dataclass(frozen=True)
class BudgetChoice:
    """What the published tree search prints.

    Args:
        cost: time per emitted token, in the unit of the times that were given.
        speedup: over the first target time of the list.
    """

    growmap: Growmap
    expected_tokens: float
    cost: float
    speedup: float


def choose_by_budget(
    table: SearchTable, draft_time: float, budgets: Sequence[int], target_times: Sequence[float]
) -> BudgetChoice:
    """The published hardware-aware choice: least (levels * draft_time + target_time) / expected tokens.

    It charges one draft forward for each level, the leaves' level too. A forward has one price for any width, and there
    is one branch. ``tree_cost.choose_tree`` is our own choice, without these limits.

    Args:
        table: of all budgets.
        budgets: sizes to choose from, the root included.
        target_times: time of a target forward of that many rows; the first is plain decoding's.

    Source: Sequoia, section 3.4 and its tree_search.py, which takes the first of equals as we do.
    """
    best: tuple[float, int, int] | None = None
    for size, target_time in zip(budgets, target_times, strict=True):
        for levels in range(1, table.expected.shape[1]):
            tokens = table.expected[size, levels]
            if np.isfinite(tokens):
                cost = (levels * draft_time + target_time) / float(tokens)
                if best is None or cost < best[0]:
                    best = (cost, size, levels)
    if best is None:
        raise ConfigError(f"no tree of {list(budgets)} nodes exists within the depth and the acceptance vector's width")
    cost, size, levels = best
    growmap = table.growmap(size, levels)
    return BudgetChoice(growmap, float(table.expected[size, levels]), cost, target_times[0] / cost)
