"""Rule C, SpecInfer: children drawn independently, tried in draft order.

Dimension letters: V vocabulary, m tokens with draft probability.
"""

from __future__ import annotations

import numpy as np

from seedmp.decoding.accept import SPECINFER
from seedmp.decoding.trials import TrialRule
from seedmp.errors import ProtocolError
from seedmp.token_tree.tree import ProposalKind

# A residual of this mass or less comes from rounding: in exact arithmetic some is left after every rejection.
MIN_RESIDUAL_MASS = 1e-12


class SpecInferTrial:
    """The children of one node before the target: how likely each is accepted, and what is left.

    Lossless if every child is an independent draw from the draft row. With one child this is
    speculative sampling: accept with min(1, target/draft), else draw from the residual.

    Args:
        target_probs: [V] float, the target's law at the node; copied.
        row_ids: [m] int, distinct tokens of the draft's law.
        row_probs: [m] float, their probabilities, in any scale; tokens not named have none.

    Raises:
        ProtocolError: the draft row is no law over V tokens.

    Invariants:
        residual: [V] float64, >= 0, sums to 1: the law of the next token, given that all children
        so far were rejected. No token that was rejected has mass in it, unless no other token has.

    Source: Miao et al. 2023, SpecInfer, multi-step speculative sampling.
    """

    def __init__(self, target_probs: np.ndarray, row_ids: np.ndarray, row_probs: np.ndarray) -> None:
        draft = row_probs.astype(np.float64)
        mass = draft.sum()
        is_law = 0 < mass < np.inf and draft.min() >= 0  # False for NaN and for an empty row
        if not (is_law and row_ids.min() >= 0 and row_ids.max() < len(target_probs)):
            raise ProtocolError(f"draft row is no law over {len(target_probs)} tokens")
        self._target_probs = target_probs
        self._row_ids = row_ids
        self._draft_probs = draft / mass
        self._rejected: list[int] = []
        self.residual = target_probs / target_probs.sum(dtype=np.float64)

    def accept_prob(self, token: int) -> float:
        """Probability that this child, drawn from the draft's law, is accepted.

        Raises:
            ProtocolError: the draft's law cannot have given this token.
        """
        draft_prob = float(self._draft_probs[self._row_ids == token].sum())
        if draft_prob <= 0:
            raise ProtocolError(f"token {token} has no probability in the draft row that it came with")
        return min(float(self.residual[token]) / draft_prob, 1.0)  # in this order NaN rejects

    def reject(self, token: int) -> None:
        """What is left for later children and the recovered token: normalise(max(0, residual - draft))."""
        self._rejected.append(token)
        ids = self._row_ids
        self.residual[ids] = np.maximum(self.residual[ids] - self._draft_probs, 0)
        mass = self.residual.sum()
        if mass > MIN_RESIDUAL_MASS:
            self.residual /= mass
        else:  # rounding only, or NaN
            self.residual = self._fallback()

    def _fallback(self) -> np.ndarray:
        """The target's law without the rejected tokens, or else its argmax."""
        law = np.nan_to_num(self._target_probs.astype(np.float64), posinf=0)
        likeliest = int(law.argmax())
        law[self._rejected] = 0
        if law.sum() <= MIN_RESIDUAL_MASS:
            law[likeliest] = 1
        result: np.ndarray = law / law.sum()
        return result


class SpecInferRule(TrialRule):
    """Rule C, for trees whose children are independent draws."""

    name = SPECINFER
    kinds = frozenset({ProposalKind.IID})

    def trial(self, target_probs: np.ndarray, row_ids: np.ndarray, row_probs: np.ndarray) -> SpecInferTrial:
        return SpecInferTrial(target_probs, row_ids, row_probs)
