"""Orders that the scheduler gives; the verifier process carries them out.

``cause`` is the id of the entry in the scheduler's log (``log``) that an order follows from.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from seedmp.draft_order import DraftOrder
from seedmp.metrics import RequestCounters
from seedmp.sampling import SamplingParams
from seedmp.token_tree.tree import TokenTree


@dataclass(frozen=True)
class SendDraftTask:
    """Hand a task to the worker that it names; answered by ProposalArrived."""

    draft: DraftOrder
    cause: int = 0


@dataclass(frozen=True)
class Segment:
    """One branch's part of a forward.

    Args:
        context_slots: slots of the committed tokens before the chain.
        position: position of the chain's first token.
        chain_ids: committed tokens to run (prompt chunk, last token).
        chain_slots: their slots.
        verify: whether logits of the chain's last token and of the tree are wanted.
        score: the tree holds texts to score instead of draft tokens.
        tree: draft tokens below the chain's last token.
        tree_slots: their slots.
        payload: draft probabilities, opaque here.
        ready_ns: when the proposal was ready.
        generated_ids: the branch's tokens since the prompt, if they are constrained and ``verify``.
        rope_len: as ``BranchRows`` has it.
    """

    branch_id: int
    context_slots: tuple[int, ...]
    position: int
    chain_ids: tuple[int, ...]
    chain_slots: tuple[int, ...]
    verify: bool
    score: bool
    tree: TokenTree
    tree_slots: tuple[int, ...]
    stream: int
    params: SamplingParams
    payload: object = None
    ready_ns: int = 0
    generated_ids: tuple[int, ...] = ()
    rope_len: int = 0


@dataclass(frozen=True)
class RunForward:
    """Run the target once over all segments; answered by ForwardFinished."""

    segments: tuple[Segment, ...]
    cause: int = 0


@dataclass(frozen=True)
class CommitTokens:
    """Tell the owner of a branch about tokens that are final."""

    branch_id: int
    token_ids: tuple[int, ...]
    cause: int = 0


@dataclass(frozen=True)
class FinishBranch:
    """The request is complete."""

    branch_id: int
    reason: str
    stop: str = ""
    counters: RequestCounters = field(default_factory=RequestCounters)
    cause: int = 0


@dataclass(frozen=True)
class FailBranch:
    """The request failed; ``kind`` names the error class."""

    branch_id: int
    kind: str
    text: str
    cause: int = 0


@dataclass(frozen=True)
class ReplaceWorker:
    """End a draft worker that cannot be relied on; answered by WorkerLost once it writes no more."""

    worker_id: int
    epoch: int
    reason: str
    cause: int = 0


@dataclass(frozen=True)
class WakeAt:
    """Ask the scheduler again at this time even if nothing happens."""

    at_ns: int
    cause: int = 0


Action = SendDraftTask | RunForward | CommitTokens | FinishBranch | FailBranch | ReplaceWorker | WakeAt
