"""Names of the accept rules, and which one is the default for a kind of tree; imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seedmp.registry import Registry
from seedmp.token_tree.tree import ProposalKind

if TYPE_CHECKING:
    from seedmp.decoding.accept import AcceptRule

GREEDY, TARGET_SAMPLE, SPECINFER, SEQUOIA = "greedy", "target-sample", "specinfer", "sequoia"

RULES: Registry[type[AcceptRule]] = Registry(
    "rule",
    {
        GREEDY: "seedmp.decoding.greedy:GreedyRule",
        TARGET_SAMPLE: "seedmp.decoding.target_sample:TargetSampleRule",
        SPECINFER: "seedmp.decoding.specinfer:SpecInferRule",
        SEQUOIA: "seedmp.decoding.sequoia:SequoiaRule",
    },
)
_OF_KIND = {
    ProposalKind.DETERMINISTIC: TARGET_SAMPLE,
    ProposalKind.IID: SPECINFER,
    ProposalKind.WITHOUT_REPLACEMENT: SEQUOIA,
}


def rule_for(kind: ProposalKind, target_temperature: float) -> str:
    """Name of the lossless rule that accepts most for trees of this kind."""
    return GREEDY if target_temperature == 0 else _OF_KIND[kind]
