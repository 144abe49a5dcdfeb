"""Merging of a whole tree of draws afterwards: what growing a merged tree must come to."""

from __future__ import annotations

from seedmp.errors import ConfigError
from seedmp.token_tree.merge import MergedTree
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree


def merge_equal_siblings(tree: TokenTree) -> MergedTree:
    """Make one node of equal siblings, level by level, their subtrees united.

    Args:
        tree: IID, N nodes as drawn; node i becomes node ``draws[i]`` of the result.

    Raises:
        ConfigError: the tree is of another kind: drawn otherwise, children are distinct already.
    """
    if tree.kind is not ProposalKind.IID:
        raise ConfigError(f"equal siblings are merged in {ProposalKind.IID.value} trees, not {tree.kind.value} ones")
    token_ids: list[int] = []
    parents: list[int] = []
    known: dict[tuple[int, int], int] = {}
    draws: list[int] = []
    for token_id, old_parent in zip(tree.token_ids, tree.parents, strict=True):
        parent = NO_PARENT if old_parent == NO_PARENT else draws[old_parent]
        node_idx = known.setdefault((parent, token_id), len(token_ids))
        if node_idx == len(token_ids):
            token_ids.append(token_id)
            parents.append(parent)
        draws.append(node_idx)
    return MergedTree(TokenTree(tuple(token_ids), tuple(parents), tree.kind), tuple(draws))
