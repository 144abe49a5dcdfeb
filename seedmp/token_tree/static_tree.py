"""A token tree of a given shape, grown layer by layer; the caller runs the draft model and chooses children."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.opt_tree import NOT_DRAFTED, Layer
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree


@dataclass(frozen=True)
class GrownStaticTree:
    """The tree and what travels beside it.

    Args:
        tree: siblings in the order of drawing; of an IID tree they are distinct.
        drafted_idx: [N] which forwarded node it is, NOT_DRAFTED for leaves.
        draws: [M] node of each draw of an IID tree (``MergedTree.draws``); empty if no draw was repeated.
    """

    tree: TokenTree
    drafted_idx: tuple[int, ...]
    draws: tuple[int, ...]


class StaticTreeBuilder:
    """Grows one tree. Give ``add_layer`` the children of the nodes of ``layer``, the root's first, until it is None.

    Equal siblings of an IID tree become one node before it is run forward. A node that was drawn j times gets the
    children of all j copies, drawn from its one row. ``merge`` explains why the law of the output stays the same.

    Invariants:
        node_idxs and num_children have an entry for each row of ``layer``; those of the root for the first.
        Drafted indices count nodes with children, in order of node_idx.
    """

    def __init__(self, growmap: Growmap, kind: ProposalKind) -> None:
        self.growmap = growmap
        self.kind = kind
        self.layer: Layer | None = Layer((), (), 0, 0)
        self.node_idxs: tuple[int, ...] = (NO_PARENT,)
        self._wanted: list[list[int]] = [list(growmap.children[0])]  # growmap ids of the children of each row
        self._token_ids: list[int] = []
        self._parents: list[int] = []
        self._draws: list[int] = []
        self._drafted_idx: list[int] = []
        self._depth = 0
        self._num_drafted = 0

    @property
    def num_children(self) -> tuple[int, ...]:
        """[R] children that each node of ``layer`` gets."""
        return tuple(map(len, self._wanted))

    def add_layer(self, children: Sequence[Sequence[int]]) -> Layer | None:
        """Take the children of each node of ``layer``.

        Args:
            children: [R] token ids in the order of drawing, ``num_children`` of each. There may be fewer where the
                draft has no more tokens to choose from. Then the nodes below the missing ones are left out.

        Returns:
            the nodes to run forward next, or None when the tree is done.
        """
        assert self.layer is not None, "the tree is done"
        below: dict[int, list[int]] = {}
        for parent, wanted, token_ids in zip(self.node_idxs, self._wanted, children, strict=True):
            known: dict[int, int] = {}
            for growmap_id, token_id in zip(wanted, token_ids, strict=False):
                node_idx = known.get(token_id, len(self._token_ids))
                if node_idx == len(self._token_ids):
                    self._token_ids.append(token_id)
                    self._parents.append(parent)
                    self._drafted_idx.append(NOT_DRAFTED)
                    below[node_idx] = []
                    if self.kind is ProposalKind.IID:
                        known[token_id] = node_idx
                self._draws.append(node_idx)
                below[node_idx] += self.growmap.children[growmap_id]
        self._depth += 1
        self.node_idxs = tuple(node_idx for node_idx, wanted in below.items() if wanted)
        self._wanted = [wanted for wanted in below.values() if wanted]
        if not self.node_idxs:
            self.layer = None
            return None
        parents = [self._parents[i] for i in self.node_idxs]
        self.layer = Layer(
            tuple(self._token_ids[i] for i in self.node_idxs),
            tuple(NO_PARENT if parent == NO_PARENT else self._drafted_idx[parent] for parent in parents),
            self._depth,
            self._num_drafted,
        )
        for node_idx in self.node_idxs:
            self._drafted_idx[node_idx] = self._num_drafted
            self._num_drafted += 1
        return self.layer

    def grown(self) -> GrownStaticTree:
        """The tree of the layers so far."""
        tree = TokenTree(tuple(self._token_ids), tuple(self._parents), self.kind)
        repeated = len(self._draws) > len(self._token_ids)
        return GrownStaticTree(tree, tuple(self._drafted_idx), tuple(self._draws) if repeated else ())
