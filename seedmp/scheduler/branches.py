"""Branches: what each one is, which states it goes through, and the table of all."""

from __future__ import annotations

import enum
from collections.abc import Hashable
from dataclasses import dataclass, field

from seedmp.errors import InvalidTransitionError, InvariantError
from seedmp.kv.held_path import HeldPath
from seedmp.methods.base import TreeShape
from seedmp.metrics import RequestCounters
from seedmp.sampling import SamplingParams
from seedmp.scheduler.log import EventLog
from seedmp.scheduler.policies import QueueItem, Ticket
from seedmp.scheduler.queue import FirstComeQueue
from seedmp.token_tree.tree import EMPTY_TREE, ProposalKind, TokenTree

MIN_SHARED_TOKENS = 16  # a prefix must save more tokens than this for a branch to wait for it


class BranchState(enum.Enum):
    """What a branch waits for."""

    WAITING = "waiting"  # to be admitted
    DRAFTABLE = "draftable"  # for a draft worker
    DRAFTING = "drafting"  # for a proposal
    PROPOSED = "proposed"  # for a forward
    VERIFYING = "verifying"  # for the forward's end

    __hash__ = object.__hash__  # members are single objects; Enum's own hash costs 4 us a round


_S = BranchState
TRANSITIONS = {
    (_S.WAITING, _S.DRAFTABLE),  # admitted
    (_S.WAITING, _S.PROPOSED),  # admitted to be scored
    (_S.DRAFTABLE, _S.DRAFTING),  # task sent
    (_S.DRAFTABLE, _S.PROPOSED),  # nothing to draft
    (_S.DRAFTING, _S.PROPOSED),  # proposal arrived
    (_S.DRAFTING, _S.DRAFTABLE),  # worker lost or stalled, or its answer refused
    (_S.PROPOSED, _S.VERIFYING),  # forward ordered
    (_S.VERIFYING, _S.DRAFTABLE),  # committed
}


@dataclass
class DraftLease:
    """Slots lent to a worker for one round; they come back when the worker answers or is reaped.

    The branch may give it up before, and be drafted for elsewhere: then it is not the branch's ``task`` any more.
    """

    branch_id: int
    round: int
    worker_id: int
    epoch: int
    sent_ns: int
    pending_ids: tuple[int, ...]
    unused_slots: list[int]  # lent, to be given back at the end of the task; those of pending tokens until registered
    tree_slots: list[int]
    shape: TreeShape
    kind: ProposalKind
    context_known: bool = False  # the pending tokens are registered

    @property
    def is_long(self) -> bool:
        """Whether the pending tokens are worth sharing: one more than those that others can take over."""
        return len(self.pending_ids) > MIN_SHARED_TOKENS


@dataclass
class Branch:
    """One token sequence that is generated, or texts after one that are scored.

    ``target_path`` and ``draft_path`` are the slots of a prefix of ``tokens``.
    """

    branch_id: int
    ticket: Ticket
    stream: int
    params: SamplingParams
    tokens: list[int]
    prompt_len: int
    max_new: int
    target_path: HeldPath
    draft_path: HeldPath
    state: BranchState = BranchState.WAITING
    round: int = 0
    tree: TokenTree = EMPTY_TREE
    drafted_idx: tuple[int, ...] = ()  # into the lease's tree_slots, for each node of the tree
    payload: object = None
    task: DraftLease | None = None
    ready_ns: int = 0
    preempted_ns: int = 0
    score: bool = False
    prompt_owner: Hashable | None = None
    owner: Hashable | None = None
    num_refused: int = 0  # tasks of this round that brought nothing
    avoid: int | None = None  # the worker that had the last of them
    counters: RequestCounters = field(default_factory=RequestCounters)

    @property
    def generated_ids(self) -> list[int]:
        """Tokens after the prompt."""
        return self.tokens[self.prompt_len :]

    def pin(self) -> None:
        """The branch is complete: whoever may continue its prompt or its text has the KV pinned."""
        for path in (self.target_path, self.draft_path):
            if self.prompt_owner is not None:
                path.pin(self.prompt_owner, self.prompt_len)
            if self.owner is not None:
                path.pin(self.owner)

    def queue_item(self) -> QueueItem | None:
        """What it wants of the target, if anything."""
        num_uncached = len(self.tokens) - len(self.target_path.slots)
        if self.state is BranchState.PROPOSED:
            since_ns, num_rows, is_proposal = self.ready_ns, num_uncached + len(self.tree), True
        elif self.state in (BranchState.DRAFTABLE, BranchState.DRAFTING) and num_uncached > 1:
            since_ns = max(self.ticket.submitted_ns, self.preempted_ns)
            num_rows, is_proposal = num_uncached - 1, False
        else:
            return None
        who = self.ticket
        return QueueItem(self.branch_id, since_ns, num_rows, is_proposal, who.submitted_ns, who.priority, who.user)


class BranchTable:
    """All branches by id, in the order of submission; by state; and the queue of those with work for the target.

    Invariants (``validate``): states and queue are what a look at every branch would find.
    """

    def __init__(self, log: EventLog) -> None:
        self.by_id: dict[int, Branch] = {}
        self.queue = FirstComeQueue()
        self._log = log
        self._in_state: dict[BranchState, set[int]] = {state: set() for state in BranchState}

    def add(self, branch: Branch) -> None:
        """A branch in state WAITING."""
        self.by_id[branch.branch_id] = branch
        self._in_state[branch.state].add(branch.branch_id)

    def remove(self, branch: Branch) -> None:
        """A branch is gone."""
        del self.by_id[branch.branch_id]
        self._in_state[branch.state].remove(branch.branch_id)
        self.queue.remove(branch.branch_id)

    def num_in(self, state: BranchState) -> int:
        """How many branches are in a state."""
        return len(self._in_state[state])

    def tickets(self, state: BranchState) -> list[Ticket]:
        """Branches in a state, in the order of submission."""
        return [self.by_id[branch_id].ticket for branch_id in sorted(self._in_state[state])]

    def move(self, branch: Branch, state: BranchState) -> None:
        """Change a branch's state.

        Raises:
            InvalidTransitionError: it may not go there; the error has the branch's story.
        """
        if (branch.state, state) not in TRANSITIONS:
            raise InvalidTransitionError(
                f"branch {branch.branch_id}: {branch.state.value} -> {state.value}", self._log.story(branch.branch_id)
            )
        self._in_state[branch.state].remove(branch.branch_id)
        self._in_state[state].add(branch.branch_id)
        branch.state = state
        self.requeue(branch)

    def requeue(self, branch: Branch) -> None:
        """Give a branch its place in the queue; needed after each change of its target path."""
        item = branch.queue_item()
        if item is None:
            self.queue.remove(branch.branch_id)
        else:
            self.queue.put(item)

    def validate(self) -> None:
        """Check every invariant.

        Raises:
            InvariantError: one does not hold.
        """
        branches = list(self.by_id.values())
        for branch in branches:
            for path in (branch.target_path, branch.draft_path):
                path.validate()
                if len(path) > len(branch.tokens):
                    raise InvariantError(f"branch {branch.branch_id} has more slots than tokens")
        in_state = {state: {b.branch_id for b in branches if b.state is state} for state in BranchState}
        items = [item for b in branches if (item := b.queue_item()) is not None]
        check_kept("branches by state", self._in_state, in_state)
        check_kept("queue", list(self.queue), sorted(items, key=lambda item: (item.ready_ns, item.branch_id)))
        check_kept("order of submission", list(self.by_id), sorted(self.by_id))


def check_kept(name: str, kept: object, found: object) -> None:
    """Compare what is kept up to date with what a look at everything finds.

    Raises:
        InvariantError: they differ.
    """
    if kept != found:
        raise InvariantError(f"{name}: {kept} is kept, {found} is true")
