"""Growmaps: the shape of a static token tree, the root included, before any token is known.

Node ids count in breadth-first order from the root, which is 0: so the children of a node have
consecutive ids, and growmap node i > 0 is node i - 1 of the ``TokenTree`` that is grown from it.
Files are in ``growmap_file``, pictures in ``growmap_draw``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from seedmp.checks import shown
from seedmp.errors import ConfigError
from seedmp.token_tree.k_config import MAX_TREE_NODES, parse_k_config
from seedmp.token_tree.tree import NO_PARENT

# The published ones have 768 nodes at most; a file's mask has 8 bytes for each pair of nodes.
MAX_GROWMAP_SIZE = 2048


@dataclass(frozen=True)
class Growmap:
    """The shape of a static token tree.

    Args:
        num_children: [size] children of each node in breadth-first order. This determines the shape:
            (2, 1, 0, 0) is a root with two children, of which the first has a child.

    Raises:
        ConfigError: those are no child counts of one tree of at most MAX_GROWMAP_SIZE nodes.

    Source: Chen et al. 2024, Sequoia, whose files hold the same in six keys (``growmap_file``).
    """

    num_children: tuple[int, ...]

    def __post_init__(self) -> None:
        size = len(self.num_children)
        if not 1 <= size <= MAX_GROWMAP_SIZE:
            raise ConfigError(f"a growmap of {size} nodes: must have 1 to {MAX_GROWMAP_SIZE}, the root included")
        known = 1
        for node_id, count in enumerate(self.num_children):
            if type(count) is not int or count < 0:
                raise ConfigError(f"growmap node {node_id} has {shown(count)} children: must be a whole number >= 0")
            if node_id >= known:
                raise ConfigError(f"growmap node {node_id} is nobody's child: nodes must be in breadth-first order")
            known += count
        if known != size:
            raise ConfigError(f"a growmap of {size} nodes whose child counts add up to {known - 1}, not {size - 1}")

    # --- constructors ------------------------------------------------------------------------------

    @classmethod
    def from_children_counts(cls, levels: Iterable[Sequence[int]]) -> Growmap:
        """From child counts by level, the layout of ``branches``: [[2], [1, 0], [0]]."""
        return cls(tuple(count for level in levels for count in level))

    @classmethod
    def from_k_config(cls, k_config: object) -> Growmap:
        """Every node of level i - 1 gets k_i children: (2, 2, 1) has 11 nodes with the root."""
        counts: list[int] = []
        width = 1
        for num_children in parse_k_config(k_config):
            counts += [num_children] * width
            width *= num_children
        return cls((*counts, *[0] * width))

    @classmethod
    def expansion(cls, *num_children: int) -> Growmap:
        """SpecInfer's expansion configuration <k1, k2, ...>: the same shape as a k-configuration."""
        return cls.from_k_config(num_children)

    @classmethod
    def chains(cls, num_chains: int, length: int) -> Growmap:
        """K x D independent chains: 5 x 8 has 41 nodes with the root."""
        if num_chains < 1 or length < 1:
            raise ConfigError(f"{num_chains} chains of {length} tokens: both must be 1 or more")
        if num_chains * length > MAX_TREE_NODES:
            raise ConfigError(f"{num_chains} chains of {length} tokens: at most {MAX_TREE_NODES} in all")
        return cls.from_k_config((num_chains, *[1] * (length - 1)))

    def cut(self, depth: int) -> Growmap:
        """The upper levels: no path has more than ``depth`` tokens."""
        if depth >= self.depth:
            return self
        num_internal = sum(self.widths[:depth])
        return Growmap((*self.num_children[:num_internal], *[0] * self.widths[depth]))

    # --- properties --------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Nodes with the root: rows of the target's forward."""
        return len(self.num_children)

    @property
    def num_nodes(self) -> int:
        """Draft tokens, the root not counted."""
        return self.size - 1

    @property
    def num_drafted(self) -> int:
        """Draft tokens with children: those that the draft model has to run forward."""
        return sum(count > 0 for count in self.num_children[1:])

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """[size] ids of each node's children, in the order in which they are drawn."""
        result, first = [], 1
        for count in self.num_children:
            result.append(tuple(range(first, first + count)))
            first += count
        return tuple(result)

    @cached_property
    def levels(self) -> tuple[tuple[int, ...], ...]:
        """Node ids by depth, the root's level (0,) first."""
        result: list[tuple[int, ...]] = [(0,)]
        while below := tuple(child for node_id in result[-1] for child in self.children[node_id]):
            result.append(below)
        return tuple(result)

    @property
    def widths(self) -> tuple[int, ...]:
        """Nodes of each level, the root's 1 first."""
        return tuple(map(len, self.levels))

    @property
    def depth(self) -> int:
        """Draft tokens on the longest path: levels below the root."""
        return len(self.levels) - 1

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """[size] depth of each node, the root's is 0."""
        return tuple(depth for depth, level in enumerate(self.levels) for _ in level)

    @property
    def branches(self) -> tuple[tuple[int, ...], ...]:
        """Child counts by level; those of the last level are zeros."""
        return tuple(tuple(self.num_children[node_id] for node_id in level) for level in self.levels)

    @property
    def max_children(self) -> int:
        return max(self.num_children)

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """[size - 1] ``TokenTree.parents`` of a tree of this shape: NO_PARENT below the root."""
        result = [NO_PARENT] * self.num_nodes
        for node_id, children in enumerate(self.children):
            for child in children:
                result[child - 1] = node_id - 1
        return tuple(result)
