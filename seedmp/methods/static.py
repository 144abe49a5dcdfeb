"""``sd``, ``mcsd``, ``specinfer``, ``sequoia``: trees of one shape, whose children a draft model samples.

They differ in the shapes that they take and in how the children of a node are drawn: independently, or without
replacement.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from seedmp.checks import shown
from seedmp.errors import ConfigError
from seedmp.methods.base import Drawing, EngineSettings, Method, sampled
from seedmp.sampling import SamplingParams
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.growmap_file import parse_growmap
from seedmp.token_tree.k_config import MAX_TREE_NODES, parse_k_config
from seedmp.token_tree.tree import ProposalKind

DEFAULT_K_CONFIG = (2, 2, 1)

GivenGrowmap = str | os.PathLike[str] | Growmap | Sequence[Any]


def growmap_counts(given: GivenGrowmap) -> tuple[int, ...]:
    """The child counts of the growmap that a user named, so that no process needs the file.

    Raises:
        ConfigError: it is no growmap, or has no or too many draft tokens.
    """
    try:
        growmap = parse_growmap(given)
    except ConfigError as error:
        raise ConfigError(f"growmap={shown(given)}: {error}") from error
    if not 1 <= growmap.num_nodes <= MAX_TREE_NODES:
        raise ConfigError(
            f"growmap={shown(given)}: {growmap.num_nodes} draft tokens; must be 1 to {MAX_TREE_NODES}, "
            "the root not counted"
        )
    return growmap.num_children


def check_children(growmap: Growmap, draft_top_m: int, given: str) -> None:
    """Refuse a node with more children than a draft can choose from.

    Args:
        given: the setting as the user wrote it, for the message.

    Raises:
        ConfigError: names both numbers.
    """
    if growmap.max_children > draft_top_m:
        raise ConfigError(f"{given}: a node has {growmap.max_children} children, but draft_top_m={draft_top_m}")


@dataclass(frozen=True)
class KConfigTree(Method):
    """A tree given by its k_config.

    Args:
        k_config: children of every node, level by level: (2, 2, 1) is 10 draft tokens on 4 paths.
    """

    k_config: tuple[int, ...] = DEFAULT_K_CONFIG

    samples = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "k_config", parse_k_config(self.k_config))

    @cached_property
    def shape(self) -> Growmap:
        """The shape of every proposal."""
        return Growmap.from_k_config(self.k_config)

    def check(self, settings: EngineSettings) -> None:
        super().check(settings)
        check_children(self.shape, settings.draft_top_m, f"k_config={self.k_config}")


@dataclass(frozen=True)
class AnyStaticTree(KConfigTree):
    """A tree given by its k_config or by a growmap.

    Args:
        growmap: any static tree: the path of a .pt or .json file, "KxD" for K chains of D tokens, or child counts.
            Kept as the child counts of all nodes. None takes the k_config.
    """

    growmap: GivenGrowmap | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.growmap is not None:
            object.__setattr__(self, "growmap", growmap_counts(self.growmap))

    @cached_property
    def shape(self) -> Growmap:
        """The shape of every proposal."""
        return Growmap.from_k_config(self.k_config) if self.growmap is None else parse_growmap(self.growmap)

    def check(self, settings: EngineSettings) -> None:
        Method.check(self, settings)
        given = f"k_config={self.k_config}" if self.growmap is None else f"growmap={self.growmap!r}"
        check_children(self.shape, settings.draft_top_m, given)


@dataclass(frozen=True)
class SpeculativeSampling(KConfigTree):
    """``sd``: children are independent draws, judged by SpecInfer's rule; with a chain it is speculative sampling.

    Source: Leviathan et al. 2023; Miao et al. 2023, SpecInfer.
    """

    name = "sd"

    def drawing(self, params: SamplingParams) -> Drawing:
        return sampled(ProposalKind.IID, params)


@dataclass(frozen=True)
class MultiCandidate(KConfigTree):
    """``mcsd``: children are drawn without replacement, judged by Sequoia's rule.

    Source: Yang et al. 2024, multi-candidate speculative decoding; Chen et al. 2024, Sequoia.
    """

    name = "mcsd"

    def drawing(self, params: SamplingParams) -> Drawing:
        return sampled(ProposalKind.WITHOUT_REPLACEMENT, params)


@dataclass(frozen=True)
class SpecInfer(AnyStaticTree):
    """``specinfer``: independent draws in any static tree.

    Source: Miao et al. 2023, SpecInfer.
    """

    name = "specinfer"

    def drawing(self, params: SamplingParams) -> Drawing:
        return sampled(ProposalKind.IID, params)


@dataclass(frozen=True)
class Sequoia(Method):
    """``sequoia``: draws without replacement in the tree of a growmap.

    Args:
        growmap: the static tree, in any form that ``AnyStaticTree`` takes; required.

    Source: Chen et al. 2024, Sequoia.
    """

    growmap: GivenGrowmap | None = None

    name = "sequoia"
    samples = True

    def __post_init__(self) -> None:
        if self.growmap is None:
            raise ConfigError(
                'growmap=None: method=sequoia needs one: the path of a .pt or .json file, "KxD", or child counts '
                "(`seedmp growmap make` writes one; mcsd is the same with a k_config)"
            )
        object.__setattr__(self, "growmap", growmap_counts(self.growmap))

    @cached_property
    def shape(self) -> Growmap:
        """The shape of every proposal."""
        return parse_growmap(self.growmap)

    def drawing(self, params: SamplingParams) -> Drawing:
        return sampled(ProposalKind.WITHOUT_REPLACEMENT, params)

    def check(self, settings: EngineSettings) -> None:
        super().check(settings)
        check_children(self.shape, settings.draft_top_m, f"growmap={self.growmap!r}")
