"""Equal siblings of an independently drawn tree as one node (``static_tree`` makes them), without changing the law.

Independent draws repeat themselves. Of three children two may be the same token, and each copy would cost a row of
both models. So the copies become one node. But every draw stays a trial of rule C, which tries children in the order
of drawing: a draw that repeats a rejected token is rejected for certain, because nothing of that token is left in the
residual, and then the draft's law is subtracted once more.

The copies' own children become children of that one node, in the order of the tree. They were drawn independently from
one law, and their elder siblings' trials do not change that, so rule C stays lossless. It accepts no less than without
merging, where the children of a second copy are never reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from seedmp.token_tree.tree import TokenTree


@dataclass(frozen=True)
class MergedTree:
    """A tree whose siblings are distinct, and the draws that it came from.

    Args:
        tree: IID, N nodes, siblings in the order of their first draw.
        draws: [M] node of each draw, M >= N; those of one parent are in the order of drawing. How draws of
            different parents interleave means nothing. This is all that must travel beside the tree.
    """

    tree: TokenTree
    draws: tuple[int, ...]

    @cached_property
    def trials(self) -> tuple[tuple[int, ...], ...]:
        """[N + 1] children of each node as rule C tries them, with repeats; entry 0 is the root's.

        For a tree without equal siblings this is ``tree.children``.
        """
        lists: list[list[int]] = [[] for _ in range(len(self.tree) + 1)]
        for node_idx in self.draws:
            lists[self.tree.parents[node_idx] + 1].append(node_idx)
        return tuple(map(tuple, lists))
