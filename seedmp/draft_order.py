"""What a draft is asked for: made by the scheduler, carried by ``DraftTask``, read by the draft worker."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np

from seedmp.token_tree.opt_tree import AdaptiveShape
from seedmp.token_tree.tree import ProposalKind

SLOT_DTYPE = np.dtype("<i4")
NO_SLOTS = np.empty(0, SLOT_DTYPE)


def slot_array(slots: list[int]) -> np.ndarray:
    """Slots as they travel: little-endian int32, to be read only."""
    if not slots:
        return NO_SLOTS
    return np.frombuffer(struct.pack(f"<{len(slots)}i", *slots), SLOT_DTYPE)  # half the time of np.array(slots)


@dataclass(frozen=True, eq=False)
class DraftOrder:
    """Grow one proposal; ``slots`` are lent to the worker for this round: it may write them and nothing else.

    Letters: C context tokens, p pending tokens, N draft tokens.

    Args:
        worker_id: who is to draft, by its place in the group.
        branch_id: whose proposal.
        round: of the branch.
        epoch: of the worker; its answer repeats it.
        seed: of the noise, with ``stream``.
        stream: tells apart the continuations of one seed.
        children: [1 + N] child counts of a static tree, breadth first; empty if it is adaptive.
        kind: how children are chosen.
        draft_temperature: of the law that children are chosen by.
        announce: whether ContextReady is wanted.
        context_slots: [C] int32, KV of the committed tokens but the pending ones.
        pending_ids: [p] committed tokens without draft KV, p >= 1.
        slots: [p + most drafted] int32, lent.
        adaptive: what to grow if the tree is not static.
        shared_noise: children by the noise that the target's own tokens are drawn with.
        feature_slots: [p] int32, target slots with the features of the pending tokens' predecessors, -1: none;
            empty without a head.
    """

    worker_id: int
    branch_id: int
    round: int
    epoch: int
    seed: int
    stream: int
    children: tuple[int, ...]
    kind: ProposalKind
    draft_temperature: float
    announce: bool
    context_slots: np.ndarray
    pending_ids: tuple[int, ...]
    slots: np.ndarray
    adaptive: AdaptiveShape | None = None
    shared_noise: bool = False
    feature_slots: np.ndarray = field(default_factory=lambda: NO_SLOTS)
