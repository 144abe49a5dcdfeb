"""``opt-tree``: trees that follow the draft's confidence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from seedmp.checks import check_number
from seedmp.methods.base import Drawing, Method, deterministic
from seedmp.sampling import SamplingParams
from seedmp.token_tree import opt_tree
from seedmp.token_tree.opt_tree import AdaptiveShape


@dataclass(frozen=True)
class OptTree(Method):
    """The tree from which the draft expects most accepted tokens.

    Args:
        nodes: draft tokens in a tree at most.
        max_depth: draft tokens on a path at most.
        threshold: drafting stops when a layer adds this much or less to the tokens that are expected; 0 goes on
            to ``max_depth``.

    Source: Wang et al. 2024, OPT-Tree.
    """

    nodes: int = 50
    max_depth: int = 10
    threshold: float = 0.5

    name = "opt-tree"

    def __post_init__(self) -> None:
        check_number("threshold", self.threshold, 0)
        _ = self.shape  # refuses the other values

    @cached_property
    def shape(self) -> AdaptiveShape:
        """When a draft stops, and what it keeps."""
        return opt_tree.opt_tree(self.nodes, self.threshold, self.max_depth)

    def drawing(self, params: SamplingParams) -> Drawing:
        return deterministic(params)
