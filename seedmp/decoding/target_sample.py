"""Rule B, target sample: the target draws its own token; a child is accepted iff it is that token.

The walk is rule A's (``greedy.follow_target``). With noise addressed by position the text is
the one that plain sampling with the same seed gives, whatever was drafted.
Dimension letters: V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch


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
