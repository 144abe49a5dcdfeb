"""Sizes to which a forward is filled up, so that few shapes occur: what is compiled or captured runs only those.

Rows that fill up are ghosts: they see what the last row sees, and write to a slot of the arena that nobody reads
(``seedmp.ipc.arena.ArenaLayout``). Their logits are cut off. Columns that fill up are masked.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace

import numpy as np

from seedmp.models.rows import Rows


@dataclass(frozen=True)
class Buckets:
    """The sizes, each list ascending; what is larger than the last stays as it is.

    Args:
        rows: of a forward, and of the rows whose logits are wanted.
        columns: slots that the rows read.
    """

    rows: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
    columns: tuple[int, ...] = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)

    def num_rows(self, num: int) -> int:
        """The smallest size that holds so many rows."""
        return _fitting(self.rows, num)

    def num_columns(self, num: int) -> int:
        """The smallest size that holds so many columns."""
        return _fitting(self.columns, num)

    def fill(self, rows: Rows, ghost_slot: int) -> Rows:
        """The rows with ghosts behind them; the last wanted row is wanted as often as needed."""
        num_ghosts = self.num_rows(len(rows.token_ids)) - len(rows.token_ids)
        num_repeats = self.num_rows(len(rows.wanted)) - len(rows.wanted) if len(rows.wanted) else 0
        return replace(
            rows,
            token_ids=_repeat_last(rows.token_ids, num_ghosts),
            positions=_repeat_last(rows.positions, num_ghosts),
            slots=np.append(rows.slots, np.full(num_ghosts, ghost_slot)),
            matrix=_repeat_last(rows.allowed, num_ghosts),
            wanted=_repeat_last(rows.wanted, num_repeats),
            lengths=(len(rows.token_ids) + num_ghosts,),  # attended for together
        )


def _fitting(sizes: tuple[int, ...], num: int) -> int:
    at = bisect_left(sizes, num)
    return sizes[at] if at < len(sizes) else num


def _repeat_last(array: np.ndarray, num: int) -> np.ndarray:
    return np.concatenate([array, np.repeat(array[-1:], num, axis=0)])
