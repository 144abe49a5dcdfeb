"""The scheduler: events in, actions out; no torch, sockets, clock or randomness inside.

It owns the branches, the first-come queue and the slot trees of both arenas. The verifier process
drives it with real events, a simulator with invented ones.

A branch goes WAITING → DRAFTABLE → DRAFTING → PROPOSED → VERIFYING → DRAFTABLE ... → gone. The
target runs a long prompt in chunks while the branch is DRAFTABLE or DRAFTING.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace

from seedmp import metrics
from seedmp.config import EngineConfig, Method, Schedule
from seedmp.draft_order import DraftOrder, slot_array
from seedmp.errors import InvalidTransitionError, InvariantError, OutOfSlotsError
from seedmp.kv.slot_tree import NO_SLOT, SlotTree
from seedmp.metrics import RequestCounters
from seedmp.sampling import SamplingParams
from seedmp.scheduler.actions import (
    Action,
    CommitTokens,
    FailBranch,
    FinishBranch,
    RunForward,
    Segment,
    SendDraftTask,
    WakeAt,
)
from seedmp.scheduler.checked_policy import make_policy
from seedmp.scheduler.events import (
    BranchCancelled,
    BranchSubmitted,
    ContextComputed,
    Event,
    ForwardFinished,
    KeepersLeft,
    Outcome,
    ProposalArrived,
    ScoreRequested,
    WorkerJoined,
    WorkerLost,
)
from seedmp.scheduler.policies import Outlook, QueueItem, Ticket
from seedmp.scheduler.queue import FirstComeQueue, QueueView
from seedmp.scheduler.siblings import SiblingTexts
from seedmp.stopping import Decode, Stop, find_stop
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.tree import EMPTY_TREE, NO_PARENT, TokenTree

MIN_SHARED_TOKENS = 16  # a branch waits for another's draft prefill only if it saves so many tokens
COST_MEMORY = 32  # forwards that the cost estimate looks back on


class BranchState(enum.Enum):
    """What a branch waits for."""

    WAITING = "waiting"  # to be admitted
    DRAFTABLE = "draftable"  # for a draft worker
    DRAFTING = "drafting"  # for a proposal
    PROPOSED = "proposed"  # for a forward
    VERIFYING = "verifying"  # for the forward's end


_S = BranchState
TRANSITIONS = {
    (_S.WAITING, _S.DRAFTABLE),  # admitted
    (_S.WAITING, _S.PROPOSED),  # admitted to be scored
    (_S.DRAFTABLE, _S.DRAFTING),  # task sent
    (_S.DRAFTABLE, _S.PROPOSED),  # nothing to draft
    (_S.DRAFTING, _S.PROPOSED),  # proposal arrived
    (_S.DRAFTING, _S.DRAFTABLE),  # worker lost
    (_S.PROPOSED, _S.VERIFYING),  # forward ordered
    (_S.VERIFYING, _S.DRAFTABLE),  # committed
}


@dataclass
class Branch:
    """One token sequence that is generated.

    ``target_path`` and ``draft_path`` are the slots of a prefix of ``tokens``; the branch holds their tails.
    """

    branch_id: int
    ticket: Ticket
    stream: int
    params: SamplingParams
    tokens: list[int]
    prompt_len: int
    max_new: int
    state: BranchState = BranchState.WAITING
    round: int = 0
    target_path: list[int] = field(default_factory=list)
    draft_path: list[int] = field(default_factory=list)
    tree: TokenTree = EMPTY_TREE
    drafted_idx: tuple[int, ...] = ()  # into the lease's tree_slots, for each node of the tree
    payload: object = None
    task: DraftLease | None = None
    ready_ns: int = 0
    preempted_ns: int = 0
    score: bool = False
    prompt_keeper: Hashable | None = None
    keeper: Hashable | None = None
    counters: RequestCounters = field(default_factory=RequestCounters)


@dataclass
class DraftLease:
    """Slots lent to a worker for one round; they come back when the worker answers or is reaped."""

    branch_id: int
    round: int
    worker_id: int
    epoch: int
    sent_ns: int
    pending_ids: tuple[int, ...]
    context_slots: list[int]  # of the pending tokens, once registered
    unused_slots: list[int]  # lent, to be given back at the end of the task
    tree_slots: list[int]
    announced: bool
    context_known: bool = False


@dataclass(frozen=True)
class Limits:
    """What requests are held to.

    Args:
        max_model_len: positions of target and draft.
        vocab_size: token ids must be below it.
        eos_token_ids: of the target.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]


class Scheduler:
    """Decides who drafts, who is verified and who gets which slots.

    Invariants (``validate``): those of both slot trees; every branch is in a state that an event or a
    worker will end; a DRAFTING branch has exactly one lease; what is kept so that no decision looks at
    every branch (``_in_state``, ``_queue``, ``_computing``, ``_loads``) is what a look at all would find.
    """

    def __init__(self, config: EngineConfig, limits: Limits, decode: Decode | None = None) -> None:
        self.config = config
        self.limits = limits
        self.decode = decode
        self.policy = make_policy(config.policy)
        self.branches: dict[int, Branch] = {}
        self.workers: dict[int, int] = {}  # worker_id -> epoch
        self.leases: dict[tuple[int, int], DraftLease] = {}  # by (branch_id, round)
        self.target_slots = SlotTree(config.kv_slots)
        self.draft_slots = SlotTree(config.num_draft_slots)
        self.siblings = SiblingTexts()  # of use to ``ngram`` alone
        self.forward: tuple[Segment, ...] | None = None
        self._in_state: dict[BranchState, set[int]] = {state: set() for state in BranchState}
        self._queue = FirstComeQueue()  # of branches with work for the target
        self._computing: dict[int, Branch] = {}  # whose long context a draft has announced and not yet computed
        self._loads: Counter[int] = Counter()  # worker_id -> leases
        self._cut_trees: dict[int, Growmap] = {}  # the static tree by the depth that is of use
        self.counters = {
            name: 0
            for name in (
                "rounds", "drafted", "accepted", "committed_tokens", "forwards", "forward_rows",
                "target_prefill_tokens", "draft_prefill_tokens", "shared_target_tokens", "shared_draft_tokens",
                "queue_wait_ns", "stale_proposals", "preempted", "finished", "failed",
            )
        }  # fmt: skip
        self._by_features = config.method is Method.EAGLE  # drafts read the target's hidden states
        self._draft_ns = 0.0
        self._forward_ns: deque[int] = deque(maxlen=COST_MEMORY)
        self._free_ns = 0  # when the last forward ended
        self._log: deque[tuple[int, int, str]] = deque(maxlen=4096)
        self._handlers: dict[type, Callable[..., list[Action]]] = {
            BranchSubmitted: self._on_submitted,
            ScoreRequested: self._on_score_requested,
            BranchCancelled: self._on_cancelled,
            KeepersLeft: self._on_keepers_left,
            WorkerJoined: self._on_worker_joined,
            WorkerLost: self._on_worker_lost,
            ContextComputed: self._on_context_computed,
            ProposalArrived: self._on_proposal,
            ForwardFinished: self._on_forward_finished,
        }

    # --- the two ways in ------------------------------------------------------------------------

    def handle(self, event: Event, now_ns: int) -> list[Action]:
        """Take note of a fact; orders that follow from it at once are returned."""
        self._log.append((now_ns, getattr(event, "branch_id", -1), type(event).__name__))
        actions = self._handlers[type(event)](event, now_ns)
        if self.config.validate:
            self.validate()
        return actions

    def decide(self, now_ns: int) -> list[Action]:
        """Orders for what can be done now: admit, send draft tasks, run the target."""
        self._admit()
        actions: list[Action] = [*self._send_draft_tasks(now_ns), *self._order_forward(now_ns)]
        if self.config.validate:
            self.validate()
        return actions

    # --- events ---------------------------------------------------------------------------------

    def _on_submitted(self, event: BranchSubmitted, now_ns: int) -> list[Action]:
        if event.branch_id in self.branches:
            return []
        tokens = [*event.prompt_ids, *event.committed_ids]
        room = self.limits.max_model_len - len(event.prompt_ids)
        branch = Branch(
            event.branch_id, Ticket(event.branch_id, now_ns, event.priority, event.user), event.stream, event.params,
            tokens, len(event.prompt_ids), min(event.params.max_tokens, room),
            prompt_keeper=event.prompt_keeper, keeper=event.keeper,
        )  # fmt: skip
        problem = self._why_never(branch, self.config.max_tree_nodes)
        if problem:
            self.counters["failed"] += 1
            return [FailBranch(event.branch_id, "RejectedError", problem)]
        if event.committed_ids:  # an earlier verifier may have died between the last token and its message
            *old_ids, last_id = event.committed_ids
            stop = self._find_stop(branch, old_ids, [last_id])
            if stop.reason:
                return [FinishBranch(event.branch_id, stop.reason, stop.text, branch.counters)]
        self._add(branch)
        return []

    def _find_stop(self, branch: Branch, old_ids: list[int], new_ids: list[int]) -> Stop:
        eos = self.limits.eos_token_ids
        return find_stop(old_ids, new_ids, branch.params, eos, branch.max_new, self.decode)

    def _on_score_requested(self, event: ScoreRequested, now_ns: int) -> list[Action]:
        branch = Branch(
            event.branch_id, Ticket(event.branch_id, now_ns), 0, SamplingParams(), list(event.prompt_ids),
            len(event.prompt_ids), max(event.tree.depths, default=0), score=True, tree=event.tree,
            prompt_keeper=event.prompt_keeper,
        )  # fmt: skip
        problem = self._why_never(branch, len(event.tree))
        if problem:
            self.counters["failed"] += 1
            return [FailBranch(event.branch_id, "RejectedError", problem)]
        self._add(branch)
        return []

    def _why_never(self, branch: Branch, num_tree: int) -> str:
        """Why a request can never be served, or nothing."""
        if branch.prompt_len == 0:
            return "the prompt is empty: at least one token is needed"
        strange = next(
            (t for t in (*branch.tokens, *branch.tree.token_ids) if not 0 <= t < self.limits.vocab_size), None
        )
        if strange is not None:
            return f"token id {strange}: must be in [0, {self.limits.vocab_size})"
        if branch.params.seed is None and not branch.score:
            return "the seed is not set"
        new = branch.max_new if branch.score else 1
        if branch.prompt_len + new > self.limits.max_model_len:
            return (
                f"the prompt has {branch.prompt_len} tokens: the models allow {self.limits.max_model_len}, "
                "new tokens included"
            )
        arenas = [("kv_slots", self.target_slots, num_tree)]
        if self.config.drafts_per_group and not branch.score:
            arenas.append(("draft_kv_slots", self.draft_slots, self.config.max_drafted))
        for name, slots, num in arenas:
            needed = branch.prompt_len + branch.max_new + num + 1
            if needed > slots.num_slots:
                return (
                    f"prompt of {branch.prompt_len} tokens + {branch.max_new} new + a tree of {num} "
                    f"need {needed} KV slots: {name} is {slots.num_slots}"
                )
        return ""

    def _on_cancelled(self, event: BranchCancelled, now_ns: int) -> list[Action]:
        branch = self.branches.get(event.branch_id)
        if branch is None:
            return []
        if branch.state is BranchState.VERIFYING:
            self._give_back_tree(self._segment_of(branch), ())
        self._drop(branch)
        self.counters["failed"] += 1
        return [FailBranch(event.branch_id, "CancelledError", "the request was cancelled")]

    def _on_keepers_left(self, event: KeepersLeft, now_ns: int) -> list[Action]:
        for slots in (self.target_slots, self.draft_slots):
            for keeper in event.keepers:
                slots.drop_keeper(keeper, free=event.free)
        return []

    def _on_worker_joined(self, event: WorkerJoined, now_ns: int) -> list[Action]:
        self.workers[event.worker_id] = event.epoch
        return []

    def _on_worker_lost(self, event: WorkerLost, now_ns: int) -> list[Action]:
        if self.workers.get(event.worker_id) == event.epoch:
            del self.workers[event.worker_id]
        for key, lease in list(self.leases.items()):
            if lease.worker_id != event.worker_id or lease.epoch != event.epoch:
                continue
            del self.leases[key]
            self._loads[lease.worker_id] -= 1
            self.draft_slots.give_back([*lease.unused_slots, *lease.tree_slots])
            branch = self.branches.get(lease.branch_id)
            if branch is not None and branch.task is lease:
                branch.task = None
                self._computing.pop(branch.branch_id, None)
                if len(branch.draft_path) == len(branch.tokens):
                    # It had announced the context: but who drafts instead needs a token to start from.
                    tail = branch.draft_path.pop()
                    self._move_hold(self.draft_slots, tail, branch.draft_path[-1] if branch.draft_path else NO_SLOT)
                self._move(branch, BranchState.DRAFTABLE)
        return []

    def _on_context_computed(self, event: ContextComputed, now_ns: int) -> list[Action]:
        lease = self.leases.get((event.branch_id, event.round))
        if lease is not None:
            self._register_context(lease)
        return []

    def _on_proposal(self, event: ProposalArrived, now_ns: int) -> list[Action]:
        lease = self.leases.pop((event.branch_id, event.round), None)
        if lease is None or lease.worker_id != event.worker_id:
            if lease is not None:
                self.leases[event.branch_id, event.round] = lease
            self.counters["stale_proposals"] += 1
            return []
        self._loads[lease.worker_id] -= 1
        self._register_context(lease)
        self.draft_slots.give_back(lease.unused_slots)
        branch = self.branches.get(event.branch_id)
        if branch is None or branch.task is not lease:
            self.draft_slots.give_back(lease.tree_slots)
            return []
        if len(lease.pending_ids) < MIN_SHARED_TOKENS:
            taken = event.ready_ns - lease.sent_ns
            self._draft_ns = taken if not self._draft_ns else 0.8 * self._draft_ns + 0.2 * taken
        branch.tree, branch.payload, branch.ready_ns = event.tree, event.payload, event.ready_ns
        branch.drafted_idx = event.drafted_idx
        self._move(branch, BranchState.PROPOSED)
        return []

    def _on_forward_finished(self, event: ForwardFinished, now_ns: int) -> list[Action]:
        if self.forward is None:
            raise InvalidTransitionError("a forward finished that was never ordered")
        segments, self.forward = self.forward, None
        self._forward_ns.append(event.elapsed_ns)
        self._free_ns = now_ns
        self.counters["forwards"] += 1
        self.counters["forward_rows"] += sum(len(s.chain_ids) + len(s.tree) for s in segments)
        by_branch = {segment.branch_id: segment for segment in segments}
        actions: list[Action] = []
        for outcome in event.outcomes:
            branch = self.branches.get(outcome.branch_id)
            if branch is not None and branch.state is BranchState.VERIFYING:
                actions += self._commit(branch, by_branch[outcome.branch_id], outcome, now_ns)
        return actions

    # --- committing -----------------------------------------------------------------------------

    def _commit(self, branch: Branch, segment: Segment, outcome: Outcome, now_ns: int) -> list[Action]:
        if branch.score:
            self._give_back_tree(segment, ())
            self._keep(branch)
            self._drop(branch)
            self.counters["finished"] += 1
            return [FinishBranch(branch.branch_id, "score", counters=branch.counters)]
        if outcome.problem:
            self._give_back_tree(segment, ())
            self._drop(branch)
            self.counters["failed"] += 1
            return [FailBranch(branch.branch_id, "RequestError", outcome.problem)]
        new_ids = [*(segment.tree.token_ids[i] for i in outcome.accepted), outcome.next_token]
        stop = self._find_stop(branch, branch.tokens[branch.prompt_len :], new_ids)
        end = outcome.num_kept
        if end is not None and (end < stop.num_kept or (end == stop.num_kept and stop.reason != "stop")):
            stop = Stop(end, "stop")  # the constrained text is complete
        new_ids = new_ids[: stop.num_kept]
        self.policy.served(branch.ticket, len(new_ids))
        self._count_round(branch, segment, min(len(outcome.accepted), stop.num_kept), len(new_ids), now_ns)
        if self.config.static_tree is not None:
            self._count_children(segment.tree, outcome.accepted)
        kept = outcome.accepted[: stop.num_kept]
        self._extend_paths(branch, segment, kept)
        branch.tokens += new_ids
        branch.tree, branch.payload, branch.task = EMPTY_TREE, None, None
        branch.round += 1
        actions: list[Action] = [CommitTokens(branch.branch_id, tuple(new_ids))] if new_ids else []
        if stop.reason:
            self._keep(branch)
            self._drop(branch)
            self.counters["finished"] += 1
            return [*actions, FinishBranch(branch.branch_id, stop.reason, stop.text, branch.counters)]
        self._move(branch, BranchState.DRAFTABLE)
        return actions

    def _count_round(self, branch: Branch, segment: Segment, accepted: int, committed: int, now_ns: int) -> None:
        depth = max(segment.tree.depths, default=0)
        for counters in (branch.counters.__dict__, self.counters):
            counters["rounds"] += 1
            counters["drafted"] += depth
            counters["accepted"] += accepted
        self.counters["committed_tokens"] += committed
        if not branch.counters.first_token_ns:
            branch.counters.first_token_ns = now_ns

    def _count_children(self, tree: TokenTree, accepted: tuple[int, ...]) -> None:
        """Along the accepted path: which children's turn came, and which of them was accepted, by depth and rank."""
        node_idx = NO_PARENT
        for depth, chosen in enumerate((*accepted, None), start=1):
            for rank, child in enumerate(tree.children[node_idx + 1]):
                names = [metrics.TRIED_CHILD.format(depth, rank)]
                if child == chosen:
                    names.append(metrics.ACCEPTED_CHILD.format(depth, rank))
                for name in names:
                    self.counters[name] = self.counters.get(name, 0) + 1
                if child == chosen:
                    break
            if chosen is not None:
                node_idx = chosen

    def _extend_paths(self, branch: Branch, segment: Segment, accepted: tuple[int, ...]) -> None:
        """Keep the slots of accepted nodes in both arenas, free those of the others."""
        self._set_path(
            self.target_slots,
            branch.target_path,
            [(segment.tree.token_ids[node_idx], segment.tree_slots[node_idx]) for node_idx in accepted],
        )
        self._give_back_tree(segment, accepted)
        lease = branch.task
        if lease is not None:
            kept: list[tuple[int, int]] = []
            for node_idx in accepted[: len(branch.drafted_idx)]:
                drafted_idx = branch.drafted_idx[node_idx]
                if not 0 <= drafted_idx < len(lease.tree_slots):
                    break  # a leaf: it has no draft KV, nor has what may follow it
                kept.append((segment.tree.token_ids[node_idx], lease.tree_slots[drafted_idx]))
            self._set_path(self.draft_slots, branch.draft_path, kept)
            taken = {slot for _, slot in kept}
            self.draft_slots.give_back(slot for slot in lease.tree_slots if slot not in taken)

    def _set_path(self, slots: SlotTree, path: list[int], new: Iterable[tuple[int, int]]) -> None:
        """Append (token, leased slot) pairs to a path; the hold moves to the new tail."""
        old_tail = path[-1] if path else NO_SLOT
        for token_id, slot in new:
            path.append(slots.register(path[-1] if path else NO_SLOT, token_id, slot))
        self._move_hold(slots, old_tail, path[-1] if path else NO_SLOT)

    @staticmethod
    def _move_hold(slots: SlotTree, old_tail: int, new_tail: int) -> None:
        if old_tail == new_tail:
            return
        if new_tail != NO_SLOT:
            slots.hold(new_tail)
        if old_tail != NO_SLOT:
            slots.release(old_tail)

    def _give_back_tree(self, segment: Segment, accepted: tuple[int, ...]) -> None:
        kept = set(accepted)
        self.target_slots.give_back(slot for i, slot in enumerate(segment.tree_slots) if i not in kept)

    def _share(self, slots: SlotTree, path: list[int], tokens: list[int]) -> int:
        """Extend a path by what is registered already, short of the last token; the number gained."""
        old_tail, before = (path[-1] if path else NO_SLOT), len(path)
        while len(path) < len(tokens) - 1:
            slot = slots.find_child(path[-1] if path else NO_SLOT, tokens[len(path)])
            if slot is None:
                break
            path.append(slot)
        self._move_hold(slots, old_tail, path[-1] if path else NO_SLOT)
        return len(path) - before

    def _share_target(self, branch: Branch) -> None:
        self.counters["shared_target_tokens"] += self._share(self.target_slots, branch.target_path, branch.tokens)
        self._requeue(branch)

    def _keep(self, branch: Branch) -> None:
        """A branch is complete: whoever may continue its prompt or its text keeps the KV."""
        for slots, path in ((self.target_slots, branch.target_path), (self.draft_slots, branch.draft_path)):
            if path and branch.prompt_keeper is not None:
                slots.keep(branch.prompt_keeper, path[: branch.prompt_len][-1])
            if path and branch.keeper is not None:
                slots.keep(branch.keeper, path[-1])

    def _drop_path(self, slots: SlotTree, path: list[int]) -> None:
        if path:
            slots.release(path[-1])
            path.clear()

    def _drop(self, branch: Branch) -> None:
        """Forget a branch; its KV stays as a cached prefix until room is needed."""
        lease = branch.task
        if lease is not None and (branch.branch_id, lease.round) not in self.leases:
            self.draft_slots.give_back(lease.tree_slots)  # proposed, not committed
        branch.task = None
        self._drop_path(self.target_slots, branch.target_path)
        self._drop_path(self.draft_slots, branch.draft_path)
        if self.config.method is Method.NGRAM and not branch.score:
            self.siblings.end(branch.branch_id, branch.tokens)
        self.policy.ended(branch.ticket)
        del self.branches[branch.branch_id]
        self._in_state[branch.state].remove(branch.branch_id)
        self._queue.remove(branch.branch_id)
        self._computing.pop(branch.branch_id, None)

    # --- drafting -------------------------------------------------------------------------------

    def _admit(self) -> None:
        waiting = self._in_state[BranchState.WAITING]
        num_active = len(self.branches) - len(waiting)
        is_serial = self.config.schedule is Schedule.SERIAL
        if not waiting or (is_serial and num_active):
            return
        admitted = self.policy.admit([self.branches[branch_id].ticket for branch_id in sorted(waiting)], num_active)
        for branch_id in admitted[: 1 if is_serial else None]:
            branch = self.branches[branch_id]
            branch.ready_ns = branch.ticket.submitted_ns
            self._move(branch, BranchState.PROPOSED if branch.score else BranchState.DRAFTABLE)

    def _send_draft_tasks(self, now_ns: int) -> list[Action]:
        actions: list[Action] = []
        draftable = [self.branches[branch_id].ticket for branch_id in sorted(self._in_state[BranchState.DRAFTABLE])]
        for ticket in self.policy.draft_order(draftable):
            branch = self.branches[ticket.branch_id]
            room = self._room_of(branch)
            if not self.config.drafts_per_group or room < 1 or (self._by_features and len(branch.tokens) < 2):
                self._propose_without_draft(branch, room, now_ns)
                continue
            if self._by_features and not self._has_features(branch):
                continue  # the target runs its tokens first
            if not self.workers:
                break
            self.counters["shared_draft_tokens"] += self._share(self.draft_slots, branch.draft_path, branch.tokens)
            if self._worth_waiting(branch):
                continue
            task = self._lend(branch, room, now_ns)
            if task is None:
                break
            actions.append(task)
        return actions

    def _has_features(self, branch: Branch) -> bool:
        """Whether the target has computed every token but the last: so a head can continue its hidden states."""
        self._share_target(branch)
        path = branch.target_path
        if len(path) < len(branch.tokens) - 1:
            return False
        return not any(path[-1] in segment.chain_slots for segment in self.forward or ())  # still in flight

    def _feature_slots(self, branch: Branch) -> list[int]:
        """Target slots of the pending tokens' predecessors; the first token of a text has none.

        The branch holds them, and ``_preempt`` leaves it alone, until the worker has answered.
        """
        first, end = len(branch.draft_path), len(branch.tokens)
        return [branch.target_path[idx - 1] if idx else NO_SLOT for idx in range(first, end)]

    def _room_of(self, branch: Branch) -> int:
        """The depth of a tree that can still be of use: not beyond ``max_tokens`` or the models' positions."""
        num_left = branch.prompt_len + branch.max_new - len(branch.tokens)
        return min(num_left - 1, self.limits.max_model_len - len(branch.tokens))

    def _propose_without_draft(self, branch: Branch, room: int, now_ns: int) -> None:
        """Prompt lookup, or nothing but the target's next token."""
        shape = self.config.ngram_shape
        if shape is not None and room >= 1:
            shape = replace(shape, max_depth=min(shape.max_depth, room))
            branch.tree = self.siblings.propose(branch.branch_id, branch.tokens, shape)
        branch.ready_ns = now_ns
        self._move(branch, BranchState.PROPOSED)

    def _static_tree(self, room: int) -> Growmap | None:
        """The configured tree without the levels that are of no use."""
        growmap = self.config.static_tree
        if growmap is None or room >= growmap.depth:
            return growmap
        if room not in self._cut_trees:
            self._cut_trees[room] = growmap.cut(room)
        return self._cut_trees[room]

    def _worth_waiting(self, branch: Branch) -> bool:
        """Whether another branch is just computing a prompt that this one could share."""
        known = len(branch.draft_path)
        if len(branch.tokens) - known <= MIN_SHARED_TOKENS:
            return False
        shared = branch.tokens[: known + MIN_SHARED_TOKENS]
        return any(other.tokens[: len(shared)] == shared for other in self._computing.values())

    def _lend(self, branch: Branch, room: int, now_ns: int) -> SendDraftTask | None:
        """Slots for the most that the draft can run forward; those that it did not need come back."""
        pending = tuple(branch.tokens[len(branch.draft_path) :])
        static, adaptive = self._static_tree(room), self.config.adaptive_shape
        num_tree = static.num_drafted if static is not None else 0
        if adaptive is not None:
            adaptive = replace(adaptive, max_depth=min(adaptive.max_depth, room))
            num_tree = adaptive.max_drafted
        try:
            slots = self._lease_draft(branch, len(pending) + num_tree)
        except OutOfSlotsError:
            return None
        worker_id = self.policy.worker(branch.ticket, {worker: self._loads[worker] for worker in self.workers})
        self._loads[worker_id] += 1
        num_prefill = max(0, branch.prompt_len - 1 - len(branch.draft_path))
        self.counters["draft_prefill_tokens"] += num_prefill
        branch.counters.draft_prefill_tokens += num_prefill
        announce = len(pending) > MIN_SHARED_TOKENS
        branch.task = DraftLease(
            branch.branch_id, branch.round, worker_id, self.workers[worker_id], now_ns, pending, [],
            slots[: len(pending)], slots[len(pending) :], announce,
        )  # fmt: skip
        self.leases[branch.branch_id, branch.round] = branch.task
        if announce:
            self._computing[branch.branch_id] = branch
        self._move(branch, BranchState.DRAFTING)
        coupled = self.config.method is Method.COUPLED
        draft_temperature = branch.params.effective_draft_temperature
        if coupled and branch.params.temperature == 0:
            draft_temperature = 0.0  # the target draws nothing: there is no noise to share
        assert branch.params.seed is not None
        draft = DraftOrder(
            worker_id, branch.branch_id, branch.round, self.workers[worker_id], branch.params.seed, branch.stream,
            static.num_children if static is not None else (),
            self.config.proposal_kind(draft_temperature), draft_temperature, announce,
            slot_array(branch.draft_path), pending, slot_array(slots), adaptive, coupled and draft_temperature > 0,
            slot_array(self._feature_slots(branch) if self._by_features else []),
        )  # fmt: skip
        return SendDraftTask(draft)

    def _lease_draft(self, branch: Branch, num: int) -> list[int]:
        try:
            return self.draft_slots.lease(num)
        except OutOfSlotsError:
            if self.leases or any(b.task is not None for b in self.branches.values()):
                raise  # a round in flight will free slots
            for other in self.branches.values():
                if other is not branch:
                    self._drop_path(self.draft_slots, other.draft_path)
            return self.draft_slots.lease(num)

    def _register_context(self, lease: DraftLease) -> None:
        """Make a task's pending tokens known: they are in the arena now, for everybody."""
        if lease.context_known:
            return
        lease.context_known = True
        branch = self.branches.get(lease.branch_id)
        if branch is None or branch.task is not lease:
            return
        self._computing.pop(branch.branch_id, None)
        slots, lease.unused_slots = lease.unused_slots, []
        path, old_tail = branch.draft_path, (branch.draft_path[-1] if branch.draft_path else NO_SLOT)
        for token_id, slot in zip(lease.pending_ids, slots, strict=True):
            parent = path[-1] if path else NO_SLOT
            known = self.draft_slots.find_child(parent, token_id)
            if known is None:
                path.append(self.draft_slots.register(parent, token_id, slot))
            else:  # the worker goes on reading its own copy until it answers
                path.append(known)
                lease.unused_slots.append(slot)
        self._move_hold(self.draft_slots, old_tail, path[-1])

    # --- the target -----------------------------------------------------------------------------

    @property
    def queue(self) -> QueueView:
        """Branches with work for the target, first come first."""
        return QueueView(self._queue)

    def _queue_item(self, branch: Branch) -> QueueItem | None:
        """What a branch wants of the target, if anything."""
        num_uncached = len(branch.tokens) - len(branch.target_path)
        if branch.state is BranchState.PROPOSED:
            return self._item_of(branch.ticket, branch.ready_ns, num_uncached + len(branch.tree), True)
        if branch.state in (BranchState.DRAFTABLE, BranchState.DRAFTING) and num_uncached > 1:
            since_ns = max(branch.ticket.submitted_ns, branch.preempted_ns)
            return self._item_of(branch.ticket, since_ns, num_uncached - 1, False)
        return None

    @staticmethod
    def _item_of(ticket: Ticket, ready_ns: int, num_rows: int, is_proposal: bool) -> QueueItem:
        return QueueItem(
            ticket.branch_id, ready_ns, num_rows, is_proposal, ticket.submitted_ns, ticket.priority, ticket.user
        )

    def _requeue(self, branch: Branch) -> None:
        """Give a branch its place in the queue; needed after each change of its state or its target path."""
        item = self._queue_item(branch)
        if item is None:
            self._queue.remove(branch.branch_id)
        else:
            self._queue.put(item)

    def _order_forward(self, now_ns: int) -> list[Action]:
        if self.forward is not None:
            return []
        max_rows = self.config.max_forward_tokens
        preempted: set[int] = set()
        while queue := QueueView(self._queue, preempted):
            expected = (
                lease.sent_ns + int(self._draft_ns)
                for lease in self.leases.values()
                if (branch := self.branches.get(lease.branch_id)) is not None
                and branch.task is lease
                and len(lease.pending_ids) <= MIN_SHARED_TOKENS
            )
            outlook = Outlook(now_ns, max_rows, expected, min(self._forward_ns, default=0), self._free_ns)
            selection = self.policy.select(queue, outlook, is_woken=bool(self.leases))
            if not selection.branch_ids:
                return [] if selection.hold_until_ns is None else [WakeAt(selection.hold_until_ns)]
            segments, out_of_slots = self._plan(selection.branch_ids, now_ns)
            if segments:
                self.forward = tuple(segments)
                return [RunForward(self.forward)]
            if out_of_slots:
                victim = self._preempt(selection.branch_ids[0], now_ns)
                if victim is None:
                    return []
                preempted.add(victim)  # or it would take its slots again before they are used
            # else sharing has left the items without work
        return []

    def _plan(self, branch_ids: Iterable[int], now_ns: int) -> tuple[list[Segment], bool]:
        """Segments for branches, in order, and whether slots ran out before all had theirs."""
        budget = self.config.max_forward_tokens
        segments: list[Segment] = []
        for branch_id in branch_ids:
            if budget <= 0 and segments:
                break
            try:
                segment = self._plan_branch(self.branches[branch_id], budget, now_ns)
            except OutOfSlotsError:
                return segments, True
            if segment is not None:
                segments.append(segment)
                budget -= len(segment.chain_ids) + len(segment.tree_slots)
        return segments, False

    def _plan_branch(self, branch: Branch, budget: int, now_ns: int) -> Segment | None:
        """Lease and register slots for one branch's rows; None when there is nothing to run."""
        self._share_target(branch)
        path = branch.target_path
        start, num_uncached = len(path), len(branch.tokens) - len(path)
        verify = branch.state is BranchState.PROPOSED and (num_uncached == 1 or num_uncached <= budget)
        end = len(branch.tokens) if verify else min(len(branch.tokens) - 1, start + max(budget, 1))
        tree = branch.tree if verify else EMPTY_TREE
        if end == start:
            return None
        slots = self.target_slots.lease(end - start + len(tree))
        context = tuple(path)
        chain_ids = branch.tokens[start:end]
        self._set_path(self.target_slots, path, zip(chain_ids, slots, strict=False))
        self._requeue(branch)
        num_prefill = max(0, min(end, branch.prompt_len - 1) - start)
        self.counters["target_prefill_tokens"] += num_prefill
        branch.counters.target_prefill_tokens += num_prefill
        if verify:
            self._move(branch, BranchState.VERIFYING)
            wait_ns = max(0, now_ns - branch.ready_ns)
            branch.counters.queue_wait_ns += wait_ns
            self.counters["queue_wait_ns"] += wait_ns
        return Segment(
            branch.branch_id, context, start, tuple(chain_ids), tuple(path[start:end]), verify, branch.score and verify,
            tree, tuple(slots[end - start :]), branch.stream, branch.params, branch.payload, branch.ready_ns,
            tuple(branch.tokens[branch.prompt_len :]) if verify and branch.params.is_constrained else (),
        )  # fmt: skip

    def _preempt(self, keep: int, now_ns: int) -> int | None:
        """Free the target's slots of a branch that the policy chooses, never of ``keep``."""
        in_use = {BranchState.VERIFYING, *([BranchState.DRAFTING] if self._by_features else [])}
        candidates = [
            b.ticket for b in self.branches.values()
            if b.branch_id != keep and b.target_path and b.state not in in_use
        ]  # fmt: skip
        if not candidates:
            return None
        victim = self.branches[self.policy.victim(candidates)]
        self._drop_path(self.target_slots, victim.target_path)
        self.counters["preempted"] += 1
        victim.preempted_ns = now_ns  # behind those that wait, or two could preempt each other for ever
        self._requeue(victim)
        return victim.branch_id

    # --- state ----------------------------------------------------------------------------------

    def _add(self, branch: Branch) -> None:
        self.branches[branch.branch_id] = branch
        self.policy.submitted(branch.ticket)
        self._in_state[branch.state].add(branch.branch_id)

    def _move(self, branch: Branch, state: BranchState) -> None:
        if (branch.state, state) not in TRANSITIONS:
            raise InvalidTransitionError(
                f"branch {branch.branch_id}: {branch.state.value} -> {state.value}\n{self.story(branch.branch_id)}"
            )
        self._in_state[branch.state].remove(branch.branch_id)
        self._in_state[state].add(branch.branch_id)
        branch.state = state
        self._requeue(branch)

    def _segment_of(self, branch: Branch) -> Segment:
        assert self.forward is not None
        return next(segment for segment in self.forward if segment.branch_id == branch.branch_id)

    def story(self, branch_id: int) -> str:
        """The last events of a branch, oldest first."""
        return "\n".join(f"{at} {name}" for at, branch, name in self._log if branch in (branch_id, -1))

    def validate(self) -> None:
        """Check every invariant.

        Raises:
            InvariantError: one does not hold.
        """
        self.target_slots.validate()
        self.draft_slots.validate()
        for branch in self.branches.values():
            in_flight = branch.task is not None and (branch.branch_id, branch.task.round) in self.leases
            if (branch.state is BranchState.DRAFTING) != in_flight:
                raise InvariantError(f"branch {branch.branch_id} is {branch.state.value}, lease in flight: {in_flight}")
            if len(branch.target_path) > len(branch.tokens) or len(branch.draft_path) > len(branch.tokens):
                raise InvariantError(f"branch {branch.branch_id} has more slots than tokens")
        self._validate_indexes()

    def _validate_indexes(self) -> None:
        """Compare what is kept up to date with what a look at every branch and lease finds."""
        branches, leases = list(self.branches.values()), list(self.leases.values())
        in_state = {state: {b.branch_id for b in branches if b.state is state} for state in BranchState}
        items = [item for b in branches if (item := self._queue_item(b)) is not None]
        computing = {
            b.branch_id: b for b in branches
            if b.state is BranchState.DRAFTING and b.task and b.task.announced and not b.task.context_known
        }  # fmt: skip
        for name, kept, found in (
            ("branches by state", self._in_state, in_state),
            ("queue", list(self._queue), sorted(items, key=lambda item: (item.ready_ns, item.branch_id))),
            ("contexts that are computed", self._computing, computing),
            ("loads", self._loads, Counter(lease.worker_id for lease in leases)),
            ("order of submission", list(self.branches), sorted(self.branches)),
        ):
            if kept != found:
                raise InvariantError(f"{name}: {kept} is kept, {found} is true")
