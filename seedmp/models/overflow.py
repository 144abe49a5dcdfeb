"""Numbers that overflowed: how they are noticed, and which slots they are in.

Masked attention multiplies what a row may not see by 0, and 0 x NaN is NaN: one overflowed slot would spoil every
row that reads past it. So K and V that overflow are written as 0 once they are noticed, and ``Spoilt`` remembers
their slots: whoever may attend to one of them has no result. Letters: T rows, W wanted rows, S slots of the arena.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from seedmp.models.rows import Rows

LARGEST = 1e18  # norm of K and V: a score, the product with another row's numbers, is far from float32's end


def may_have_overflowed(logits: torch.Tensor) -> bool:
    """Whether ``have_overflowed`` needs to be asked; reads all logits once, which takes 50 to 120 us from memory."""
    return not math.isfinite(logits.sum().item())


def have_overflowed(logits: torch.Tensor) -> torch.Tensor:
    """[W] bool for [W, V] logits: no token can be chosen by such a row. Tokens that are ruled out are -inf."""
    return ~logits.amax(-1).isfinite()  # a NaN is larger than anything


def have_no_result(logits: torch.Tensor) -> torch.Tensor:
    """[W] bool for [W, V] logits of a ``Runner``, which gives such rows NaN in every column: one column says it."""
    return logits[:, 0].isnan()


def are_sound(numbers: torch.Tensor, dim: int | tuple[int, ...] | None = None) -> torch.Tensor:
    """Whether K and V have no NaN, no infinity and nothing too large.

    Args:
        numbers: of any shape.
        dim: dimensions that are judged together; None is all.
    """
    sound: torch.Tensor = torch.linalg.vector_norm(numbers, dim=dim, dtype=torch.float32) <= LARGEST  # a NaN is not
    return sound


class Spoilt:
    """Slots of one arena whose K and V overflowed, as one writer knows them.

    Args:
        num_slots: of the arena, ghosts too.
    """

    def __init__(self, num_slots: int) -> None:
        self._slots = np.zeros(num_slots, dtype=bool)
        self._num = 0

    def add(self, slots: np.ndarray) -> None:
        """Note slots that some earlier forward wrote."""
        self._slots[slots] = True
        self._num = int(self._slots.sum())

    def note(self, rows: Rows, overflowed: np.ndarray | None) -> np.ndarray | None:
        """Which rows of a forward that was run have no result: they overflowed, or attend to a slot that did.

        Args:
            rows: of the forward.
            overflowed: [T] bool rows whose K or V did; None is no row.

        Returns:
            [T] bool, or None if no row is concerned.
        """
        if overflowed is None and not self._num:
            return None
        self._slots[rows.slots] = np.zeros(len(rows.slots), dtype=bool) if overflowed is None else overflowed
        seen = rows.allowed[:, self._slots[: rows.allowed.shape[1]]]
        spoilt: np.ndarray = np.asarray(seen.any(axis=1))
        self._slots[rows.slots] = spoilt  # a row sees all that it follows from, so one pass is enough
        self._num = int(self._slots.sum())
        return spoilt if spoilt.any() else None
