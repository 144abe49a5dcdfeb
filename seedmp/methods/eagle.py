"""``eagle``: a small head continues the target's hidden states, in trees that follow its confidence."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from seedmp.checks import check_number
from seedmp.errors import ConfigError
from seedmp.methods.base import HEAD, Drawing, EngineSettings, Method, deterministic
from seedmp.sampling import SamplingParams
from seedmp.token_tree.opt_tree import AdaptiveShape, eagle2


@dataclass(frozen=True)
class Eagle(Method):
    """EAGLE-1, -2 and -3 heads with EAGLE-2's dynamic tree.

    Args:
        nodes: draft tokens in a tree at most; None is EAGLE-2's 59.
        max_depth: draft tokens on a path at most; None is EAGLE-2's 8.
        threshold: makes the tree an OPT-Tree, which stops at this gain; None goes on to ``max_depth``.
        top_k: nodes of a layer that are drafted further, and children that each may get; 1 makes chains.
            None is 10, with a threshold ``nodes``.

    Source: Li et al. 2024, EAGLE-2.
    """

    nodes: int | None = None
    max_depth: int | None = None
    threshold: float | None = None
    top_k: int | None = None

    name = "eagle"
    draft_kind = HEAD
    needs_features = True

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_number("threshold", self.threshold, 0)
        _ = self.shape  # refuses the other values

    @cached_property
    def shape(self) -> AdaptiveShape:
        """When a draft stops, and what it keeps."""
        default = eagle2()
        nodes = default.nodes if self.nodes is None else self.nodes
        width = default.layer_width if self.threshold is None else nodes
        return AdaptiveShape(
            nodes,
            width if self.top_k is None else self.top_k,
            default.max_depth if self.max_depth is None else self.max_depth,
            self.threshold,
        )

    def drawing(self, params: SamplingParams) -> Drawing:
        return deterministic(params)

    def check(self, settings: EngineSettings) -> None:
        super().check(settings)
        if settings.draft_shape is not None:
            raise ConfigError(f"draft_shape={settings.draft_shape!r}: a head has the shape that its target asks for")
