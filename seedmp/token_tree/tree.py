"""The token tree: draft tokens with a parent each, in an order in which parents come first."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import cached_property

from seedmp.errors import ProtocolError

NO_PARENT = -1


class ProposalKind(enum.Enum):
    """How the children of a node were chosen: it decides which accept rules are lossless."""

    IID = "iid"
    WITHOUT_REPLACEMENT = "without-replacement"
    DETERMINISTIC = "deterministic"


@dataclass(frozen=True)
class TokenTree:
    """N draft tokens below the last committed token (the root, which is not part of the arrays).

    Args:
        token_ids: [N] token of each node.
        parents: [N] node_idx of the parent, NO_PARENT for children of the root. Parents come
            before children; siblings stand in the order in which they were drawn.
        kind: how children were chosen.

    Raises:
        ProtocolError: lengths differ or a parent does not come before its child.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    kind: ProposalKind

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.parents):
            raise ProtocolError(f"{len(self.token_ids)} tokens but {len(self.parents)} parents")
        for node_idx, parent in enumerate(self.parents):
            if not NO_PARENT <= parent < node_idx:
                raise ProtocolError(f"node {node_idx} has parent {parent}: must be in [{NO_PARENT}, {node_idx})")

    def __len__(self) -> int:
        return len(self.token_ids)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """[N + 1] children of each node in draft order; entry 0 is the root's, entry 1 + i node i's."""
        lists: list[list[int]] = [[] for _ in range(len(self) + 1)]
        for node_idx, parent in enumerate(self.parents):
            lists[parent + 1].append(node_idx)
        return tuple(map(tuple, lists))

    @cached_property
    def depths(self) -> tuple[int, ...]:
        """[N] depth of each node; children of the root have depth 1."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(1 if parent == NO_PARENT else depths[parent] + 1)
        return tuple(depths)

    @cached_property
    def internal_nodes(self) -> tuple[int, ...]:
        """Nodes with children, the root (NO_PARENT) first: row r of the draft's laws belongs to entry r."""
        return tuple(i - 1 for i, children in enumerate(self.children) if children)


EMPTY_TREE = TokenTree((), (), ProposalKind.DETERMINISTIC)
