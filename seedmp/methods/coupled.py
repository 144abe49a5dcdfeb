"""``coupled``: draft and target draw with the same noise, so the text is that of plain sampling with the seed."""

from __future__ import annotations

from dataclasses import dataclass

from seedmp.methods.base import Drawing
from seedmp.methods.static import AnyStaticTree
from seedmp.sampling import SamplingParams
from seedmp.token_tree.tree import ProposalKind


@dataclass(frozen=True)
class Coupled(AnyStaticTree):
    """Children are the largest of log q + g, with the noise g that the target draws its own token with.

    A child is accepted if it is the token that the target itself draws. To the rule the tree is fixed, so the text
    is a function of model, prompt and seed alone.
    """

    name = "coupled"
    samples = False

    def drawing(self, params: SamplingParams) -> Drawing:
        # A greedy target draws nothing: there is no noise to share.
        temperature = params.effective_draft_temperature if params.temperature > 0 else 0.0
        return Drawing(ProposalKind.DETERMINISTIC, temperature, shared_noise=temperature > 0)
