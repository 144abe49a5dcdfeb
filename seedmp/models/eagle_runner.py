"""Forwards of an EAGLE head over its arena: rows that take features and give features.

Letters: T rows, W wanted rows, F feature size, H hidden size of the head, D its vocabulary.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from seedmp.models.eager import EagerRunner, Inputs
from seedmp.models.eagle import EagleHead
from seedmp.models.rows import Rows


class HeadRunner(EagerRunner):
    """A head and its arena. Logits have the head's own columns; ``target_ids`` says which tokens they are.

    Args:
        head: the module.
        arena: [1, 2, S + ghosts, heads, head size].
        vocab_size: real tokens of the target; what the head has beyond them is never likely.
    """

    def __init__(self, head: EagleHead, arena: torch.Tensor, vocab_size: int) -> None:
        super().__init__(head, arena, head.spec.draft_vocab_size)
        self.head = head
        ids = head.target_ids()
        self.target_ids: np.ndarray = ids.cpu().numpy()  # [D]
        self.own_features = torch.empty(0)  # [W, H] of the last forward
        self._unreal = (ids >= vocab_size).nonzero()[:, 0]  # padding of the target's vocabulary
        self._features = torch.empty(0)  # [T, H] that the next forward takes

    def run_with(self, rows: Rows, features: torch.Tensor, *, own: bool) -> torch.Tensor:
        """As ``run``, with the features of the tokens' predecessors.

        Args:
            rows: as ``head_rows`` gives them.
            features: [T, F] of the target, or with ``own`` [T, H] that the head made.

        Returns:
            [W, D] logits; those rows' own features are in ``own_features``.
        """
        with torch.inference_mode():
            features = features.to(self.device, self.head.fc.weight.dtype)
            self._features = features if own else self.head.fuse(features)
            logits = self.run(rows)
            return logits.index_fill_(1, self._unreal, -torch.inf) if len(self._unreal) else logits

    def _call(self, inputs: Inputs) -> torch.Tensor:
        made = self.head(
            inputs.token_ids, self._features[None], inputs.positions, inputs.attention.any_mask, self._cache
        )[0]
        self.own_features = made[inputs.keep]
        logits: torch.Tensor = self.head.logits(self.own_features)
        return logits


def head_rows(rows: Rows) -> tuple[Rows, np.ndarray]:
    """The rows as a head has them: one position earlier, and without the first token, which nobody sees.

    Returns:
        the rows, and which of the given rows they are.
    """
    has_row = rows.positions > 0
    kept = np.flatnonzero(has_row)
    assert has_row[rows.wanted].all(), "nothing follows from the first token alone"
    allowed = rows.allowed[kept]
    for branch in rows.branches:
        first = branch.context_slots if len(branch.context_slots) else branch.chain_slots
        allowed[:, first[0]] = False
    own = replace(
        rows,
        token_ids=rows.token_ids[kept],
        positions=rows.positions[kept] - 1,
        slots=rows.slots[kept],
        matrix=allowed,
        wanted=np.searchsorted(kept, rows.wanted),
        lengths=(len(kept),),  # attended for together
    )
    return own, kept
