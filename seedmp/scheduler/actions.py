"""Orders that the scheduler gives; the verifier process carries them out."""

from __future__ import annotations

from dataclasses import dataclass, field

from seedmp.sampling import SamplingParams
from seedmp.token_tree.opt_tree import AdaptiveShape
from seedmp.token_tree.tree import ProposalKind, TokenTree


@dataclass(frozen=True)
class SendDraftTask:
    """Lend slots to a worker and let it grow one proposal; fields as in DraftTask."""

    worker_id: int
    branch_id: int
    round: int
    seed: int
    stream: int
    children: tuple[int, ...]
    kind: ProposalKind
    draft_temperature: float
    announce: bool
    context_slots: tuple[int, ...]
    pending_ids: tuple[int, ...]
    slots: tuple[int, ...]
    adaptive: AdaptiveShape | None = None
    shared_noise: bool = False
    feature_slots: tuple[int, ...] = ()


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
        generated_ids: the branch's tokens since the prompt, if they are constrained and ``verify``.
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
    generated_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunForward:
    """Run the target once over all segments; answered by ForwardFinished."""

    segments: tuple[Segment, ...]


@dataclass(frozen=True)
class CommitTokens:
    """Tell the owner of a branch about tokens that are final."""

    branch_id: int
    token_ids: tuple[int, ...]


@dataclass
class BranchCounters:
    """What one branch cost."""

    rounds: int = 0
    drafted: int = 0
    accepted: int = 0
    queue_wait_ns: int = 0
    first_token_ns: int = 0
    target_prefill_tokens: int = 0
    draft_prefill_tokens: int = 0


@dataclass(frozen=True)
class FinishBranch:
    """The request is complete."""

    branch_id: int
    reason: str
    stop: str = ""
    counters: BranchCounters = field(default_factory=BranchCounters)


@dataclass(frozen=True)
class FailBranch:
    """The request failed; ``kind`` names the error class."""

    branch_id: int
    kind: str
    text: str


@dataclass(frozen=True)
class WakeAt:
    """Ask the scheduler again at this time even if nothing happens."""

    at_ns: int


Action = SendDraftTask | RunForward | CommitTokens | FinishBranch | FailBranch | WakeAt
