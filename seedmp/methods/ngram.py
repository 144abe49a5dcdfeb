"""``ngram``: prompt lookup, what came after these words before; no draft model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from seedmp.methods.base import NO_DRAFT, Drawing, Lookup, Method, deterministic
from seedmp.methods.siblings import SiblingTexts
from seedmp.sampling import SamplingParams
from seedmp.token_tree.ngram import NgramShape
from seedmp.token_tree.tree import TokenTree


@dataclass(frozen=True)
class Ngram(Method):
    """Continuations of earlier occurrences of the last words, in this text and in its siblings.

    Args:
        nodes: draft tokens in a tree at most.
        max_depth: draft tokens on a path at most.
    """

    nodes: int = 16
    max_depth: int = 8

    name = "ngram"
    draft_kind = NO_DRAFT

    def __post_init__(self) -> None:
        _ = self.looked_up  # refuses wrong values

    @cached_property
    def looked_up(self) -> NgramShape:
        """What to look for and how much to propose."""
        return NgramShape(self.nodes, self.max_depth)

    @property
    def max_tree_nodes(self) -> int:
        return self.nodes

    def drawing(self, params: SamplingParams) -> Drawing:
        return deterministic(params)

    def make_lookup(self) -> Lookup:
        return _SiblingLookup(self.looked_up)


class _SiblingLookup:
    """Looks in the texts of one scheduler's branches."""

    def __init__(self, shape: NgramShape) -> None:
        self.shape = shape
        self.texts = SiblingTexts()

    def propose(self, branch_id: int, token_ids: Sequence[int], max_depth: int) -> TokenTree:
        shape = replace(self.shape, max_depth=min(self.shape.max_depth, max_depth))
        return self.texts.propose(branch_id, token_ids, shape)

    def end(self, branch_id: int, token_ids: Sequence[int]) -> None:
        self.texts.end(branch_id, token_ids)
