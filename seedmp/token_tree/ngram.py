"""Prompt lookup as a tree: it proposes what followed the last tokens earlier, in this text or in a sibling's.

Branches of one reasoning tree repeat each other and their prompt. So the texts themselves serve as a draft model.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from seedmp.checks import shown
from seedmp.errors import ConfigError
from seedmp.token_tree.k_config import MAX_TREE_NODES
from seedmp.token_tree.tree import EMPTY_TREE, NO_PARENT, ProposalKind, TokenTree

# Both are flat: mean accepted length over GSM8K and Blocksworld solutions that follow four others changes by
# less than 5 % for bases of 2 to 8 and decays of 0.6 to 0.95.
# A match one token longer weighs as much as this many shorter ones.
MATCH_BASE = 4.0
# Share of a match's weight that is left one token further on. It makes room for other matches near the root.
DEPTH_DECAY = 0.8
# Occurrences that are followed up, the best ones: a newline may have thousands.
MAX_OCCURRENCES = 64
MAX_NGRAM = 32


@dataclass(frozen=True)
class NgramShape:
    """What to look for and how much to propose.

    Args:
        nodes: most draft tokens.
        max_depth: most tokens on a path.
        max_ngram, min_ngram: length of the suffix that must have occurred before.

    Raises:
        ConfigError: a value is out of range.
    """

    nodes: int = 16
    max_depth: int = 8
    max_ngram: int = 6
    min_ngram: int = 1

    def __post_init__(self) -> None:
        tree, match = MAX_TREE_NODES, MAX_NGRAM
        for name, limit in {"nodes": tree, "max_depth": tree, "max_ngram": match, "min_ngram": match}.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ConfigError(f"{name}={shown(value)}: must be a whole number from 1 to {limit}")
        if self.min_ngram > self.max_ngram:
            raise ConfigError(f"min_ngram={self.min_ngram} is above max_ngram={self.max_ngram}")


@dataclass
class _Node:
    """A trie node while occurrences are merged."""

    token_id: int
    depth: int
    weight: float
    rank: int  # of the best occurrence through it
    children: dict[int, _Node]


def propose_ngram_tree(
    token_ids: Sequence[int] | np.ndarray, others: Sequence[Sequence[int] | np.ndarray], shape: NgramShape
) -> TokenTree:
    """Continuations of earlier occurrences of the text's last tokens, merged into one tree.

    An occurrence that agrees with the text in its last j tokens (at most ``max_ngram``) weighs MATCH_BASE ** j: the
    longer the context, the surer its continuation. A node weighs the sum over the occurrences that pass through it,
    times DEPTH_DECAY ** depth. So frequency counts, too. The heaviest nodes are kept. Among equal ones the nearest to
    the root is kept, then the one from the most recent text.

    Args:
        token_ids: [L] the branch's text so far, prompt included; integer arrays spare a copy.
        others: texts to look in besides, such as siblings', most useful first. Leave out what they
            share with ``token_ids``: it would count once for each.

    Returns:
        DETERMINISTIC tree of at most ``shape.nodes`` nodes, heaviest first; empty if nothing matches.
        The same arguments give the same tree.

    Cost: a few passes over the texts: 0.5 to 2 ms for 30 of 4,000 tokens, if they are arrays.
    Source: Saxena 2023, prompt lookup decoding, for one chain; here several matches at once, as in a trie.
    """
    text = np.asarray(token_ids)
    suffix = text[len(text) - shape.max_ngram :] if len(text) > shape.max_ngram else text
    if len(suffix) < shape.min_ngram:
        return EMPTY_TREE
    texts = [text, *(np.asarray(other) for other in others)]
    ends, lengths = zip(*(_occurrences(searched, suffix, shape.min_ngram) for searched in texts), strict=True)
    text_idx = np.repeat(np.arange(len(texts)), list(map(len, ends)))
    all_ends, all_lengths = np.concatenate(ends), np.concatenate(lengths)
    # Stable: among equally long matches the text itself comes first, and in each text the latest.
    best_first = np.argsort(-all_lengths, kind="stable")[:MAX_OCCURRENCES]

    root = _Node(-1, 0, 0.0, 0, {})
    for rank, i in enumerate(best_first.tolist()):
        node, weight, end = root, MATCH_BASE ** int(all_lengths[i]), int(all_ends[i])
        for token_id in texts[text_idx[i]][end : end + shape.max_depth].tolist():
            weight *= DEPTH_DECAY
            child = node.children.get(token_id)
            if child is None:
                child = node.children[token_id] = _Node(token_id, node.depth + 1, 0.0, rank, {})
            child.weight += weight
            node = child
    return _heaviest(root, shape.nodes)


def _occurrences(searched: np.ndarray, suffix: np.ndarray, min_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the suffix occurs with a token after it: positions after the match, latest first, and its length."""
    ends = np.flatnonzero(searched[:-1] == suffix[-1])[::-1] + 1
    lengths = np.ones(len(ends), np.int8)  # MAX_NGRAM fits; sorted in linear time
    alive = np.arange(len(ends))
    for back in range(2, len(suffix) + 1):
        alive = alive[ends[alive] >= back]
        alive = alive[searched[ends[alive] - back] == suffix[-back]]
        lengths[alive] = back
    long_enough = lengths >= min_len
    return ends[long_enough], lengths[long_enough]


def _heaviest(root: _Node, num_nodes: int) -> TokenTree:
    """The heaviest nodes of the trie: a child is lighter than its parent, so they form a tree."""
    tokens: list[int] = []
    parents: list[int] = []
    pending: list[tuple[float, int, int, int, int, _Node]] = []

    def add(node: _Node, parent: int) -> None:
        order = (-node.weight, node.depth, node.rank)
        heapq.heappush(pending, (*order, parent, node.token_id, node))  # no two agree in all but the node

    for child in root.children.values():
        add(child, NO_PARENT)
    while pending and len(tokens) < num_nodes:
        *_, parent, token_id, node = heapq.heappop(pending)
        for child in node.children.values():
            add(child, len(tokens))
        tokens.append(token_id)
        parents.append(parent)
    return TokenTree(tuple(tokens), tuple(parents), ProposalKind.DETERMINISTIC)
