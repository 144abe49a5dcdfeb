"""Rule B, target sample: the target draws its own token; a child is accepted iff it is that token.

The walk is rule A's (``greedy.follow_target``). With noise addressed by position the text is
the one that plain sampling with the same seed gives, whatever was drafted.
Dimension letters: V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch

from seedmp.decoding.accept import TARGET_SAMPLE, AcceptRule, DraftRows, Verdict, target_probs
from seedmp.decoding.greedy import follow_target
from seedmp.sampling import Noise, Purpose, TargetLaw
from seedmp.token_tree.tree import NO_PARENT, TokenTree


def sample_token(probs_row: np.ndarray | torch.Tensor, gumbel: np.ndarray) -> int:
    """One draw from a law by the Gumbel-max trick: argmax(log p + g).

    Args:
        probs_row: [V] float32 or float64, any positive scale. If nothing has mass the result
            is token 0, so that a broken row ends no request.
        gumbel: [V] float64 standard Gumbel noise; same noise, same token.
    """
    probs = probs_row.cpu().numpy() if isinstance(probs_row, torch.Tensor) else probs_row
    with np.errstate(divide="ignore", invalid="ignore"):
        keys = np.log(probs, dtype=np.float64)
    keys += gumbel
    return int(keys.argmax())


class TargetSampleRule(AcceptRule):
    """Rule B, for any tree at any temperature."""

    name = TARGET_SAMPLE

    def judge(
        self,
        tree: TokenTree,
        draft_rows: DraftRows | None,
        logits: torch.Tensor,
        law: TargetLaw,
        noise: Noise,
        position: int,
    ) -> Verdict:
        def sampled(node_idx: int) -> int:
            depth = 0 if node_idx == NO_PARENT else tree.depths[node_idx]
            probs = target_probs(law, logits, node_idx)
            return sample_token(probs, noise.gumbel(position + depth, Purpose.TARGET_TOKEN, len(probs)))

        return Verdict(*follow_target(tree, sampled))
