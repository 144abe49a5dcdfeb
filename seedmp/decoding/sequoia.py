"""Rule D, Sequoia: children drawn WITHOUT replacement, tried in the order of sampling."""

from __future__ import annotations

import numpy as np

from seedmp.decoding.accept import SEQUOIA
from seedmp.decoding.specinfer import SpecInferTrial
from seedmp.decoding.trials import TrialRule
from seedmp.token_tree.tree import ProposalKind


class SequoiaTrial(SpecInferTrial):
    """SpecInfer's trial with a draft law that forgets each rejected token, as the draft's own sampling did.

    When the draft's law is exhausted, it becomes uniform over all tokens that were not tried. A draft that still adds
    children must draw them from that law. ``propose_children`` never needs to: all m tokens of its rows have mass, and
    it draws at most m.

    Source: Chen et al. 2024, Sequoia, sampling and verification without replacement.
    """

    def reject(self, token: int) -> None:
        """Subtract the draft's law from the residual, then take the token out of the draft's law."""
        super().reject(token)
        self._draft_probs[self._row_ids == token] = 0
        mass = self._draft_probs.sum()
        if mass > 0:
            self._draft_probs /= mass
        else:
            untried = np.ones(len(self.residual), dtype=bool)
            untried[self._rejected] = False
            self._row_ids = np.flatnonzero(untried)
            self._draft_probs = np.full(len(self._row_ids), 1 / max(1, len(self._row_ids)))


class SequoiaRule(TrialRule):
    """Rule D, for trees whose children were drawn without replacement."""

    name = SEQUOIA
    kinds = frozenset({ProposalKind.WITHOUT_REPLACEMENT})

    def trial(self, target_probs: np.ndarray, row_ids: np.ndarray, row_probs: np.ndarray) -> SequoiaTrial:
        return SequoiaTrial(target_probs, row_ids, row_probs)
