"""The drafts' side: workers, what they are asked for, and the slots that they are lent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from seedmp.draft_order import DraftOrder, slot_array
from seedmp.errors import InvariantError, OutOfSlotsError
from seedmp.kv.slot_tree import NO_SLOT, SlotTree
from seedmp.methods.base import TreeShape, num_drafted
from seedmp.scheduler.actions import Action, ReplaceWorker, Segment, SendDraftTask
from seedmp.scheduler.branches import MIN_SHARED_TOKENS, Branch, BranchState, DraftLease, check_kept
from seedmp.scheduler.events import ProposalArrived
from seedmp.scheduler.forwards import Forwards
from seedmp.scheduler.state import State
from seedmp.token_tree.growmap import Growmap

MAX_REFUSED = 3  # answers of a worker, then it is replaced; tasks of a round, then it goes on without a draft
STALLS = 2  # stall timeouts until an answer is late: a worker may be in another task, which has one of its own
NO_TASK = -1


class Drafting:
    """Hands out tasks and keeps the books of the drafts' arena.

    Invariants (``validate``): a DRAFTING branch has exactly one lease in flight; ``loads`` and the contexts that are
    being computed are what a look at all leases and branches would find.
    """

    def __init__(self, state: State, forwards: Forwards) -> None:
        self.state = state
        self.forwards = forwards
        self.slots = SlotTree(state.config.num_draft_slots)
        self.workers: dict[int, int] = {}  # worker_id -> epoch
        self._lost: set[tuple[int, int]] = set()  # (worker_id, epoch) that are gone
        self.leases: dict[tuple[int, int], DraftLease] = {}  # by (branch_id, round)
        self.method = state.config.method
        self.lookup = self.method.make_lookup()  # proposes here, without a draft
        self.by_features = self.method.needs_features  # drafts read the target's hidden states
        self._loads: Counter[int] = Counter()  # worker_id -> leases
        self._computing: dict[int, Branch] = {}  # whose long context a draft computes just now
        self._num_refused: Counter[int] = Counter()  # worker_id -> answers of this incarnation
        self._late_ns = int(STALLS * 1e9 * state.config.stall_timeout_s)
        self._draft_ns = 0.0  # from a task with a short context to its proposal

    # --- giving orders --------------------------------------------------------------------------

    def send_tasks(self, now_ns: int) -> list[Action]:
        """A task for each branch that can be drafted for; without a draft a branch is proposed at once."""
        config = self.state.config
        orders: list[Action] = []
        for ticket in self.state.policy.draft_order(self.state.branches.tickets(BranchState.DRAFTABLE)):
            branch = self.state.branches.by_id[ticket.branch_id]
            room = self._room_of(branch)
            is_hopeless = branch.num_refused >= MAX_REFUSED or (self.by_features and len(branch.tokens) < 2)
            if not config.drafts_per_group or room < 1 or is_hopeless:
                self._propose_without_draft(branch, room, now_ns)
                continue
            if self.by_features and not self.forwards.has_computed(branch):
                continue  # the target runs its tokens first
            if not self.workers:
                break
            self.state.counters["shared_draft_tokens"] += branch.draft_path.share(branch.tokens)
            if self._computing and self._worth_waiting(branch):
                continue
            shape = self.method.shape_within(room)
            assert shape is not None, f"method {self.method.name} has drafts, but no tree for them to grow"
            try:
                task = self._lend(branch, shape, now_ns)
            except OutOfSlotsError:
                break
            orders.append(SendDraftTask(self._order(branch, task, shape), self.state.log.cause))
        return orders

    def _room_of(self, branch: Branch) -> int:
        """The depth of a tree that can still be of use: not beyond ``max_tokens`` or the models' positions."""
        limits, length = self.state.limits, len(branch.tokens)
        rooms = [branch.prompt_len + branch.max_new - length - 1, limits.max_model_len - length]
        if limits.rope is not None and (room := limits.rope.room(length)) is not None:
            rooms.append(room)
        return min(rooms)

    def _propose_without_draft(self, branch: Branch, room: int, now_ns: int) -> None:
        """Prompt lookup, or nothing but the target's next token."""
        if self.lookup is not None and room >= 1:
            branch.tree = self.lookup.propose(branch.branch_id, branch.tokens, room)
        branch.ready_ns = now_ns
        self.state.branches.move(branch, BranchState.PROPOSED)

    def _worth_waiting(self, branch: Branch) -> bool:
        """Whether another branch is just computing a prompt that this one could share."""
        known = len(branch.draft_path.slots)
        if len(branch.tokens) - known <= MIN_SHARED_TOKENS:
            return False
        shared = branch.tokens[: known + MIN_SHARED_TOKENS]
        return any(other.tokens[: len(shared)] == shared for other in self._computing.values())

    def _lend(self, branch: Branch, shape: TreeShape, now_ns: int) -> DraftLease:
        """Slots for the most that the draft can run forward; those that it did not need come back.

        Raises:
            OutOfSlotsError: there are none until a round in flight ends.
        """
        pending = tuple(branch.tokens[len(branch.draft_path.slots) :])
        slots = self._lease_slots(branch, len(pending) + num_drafted(shape))
        others = [worker for worker in self.workers if worker != branch.avoid] or self.workers
        worker_id = self.state.policy.worker(branch.ticket, {worker: self._loads[worker] for worker in others})
        lease = branch.task = DraftLease(
            branch.branch_id, branch.round, worker_id, self.workers[worker_id], now_ns, pending,
            slots[: len(pending)], slots[len(pending) :], shape, self.method.drawing(branch.params).kind,
        )  # fmt: skip
        self._loads[worker_id] += 1
        self.leases[branch.branch_id, branch.round] = lease
        if lease.is_long:
            self._computing[branch.branch_id] = branch
        num_prefill = max(0, branch.prompt_len - 1 - len(branch.draft_path.slots))
        self.state.counters["draft_prefill_tokens"] += num_prefill
        branch.counters.draft_prefill_tokens += num_prefill
        self.state.branches.move(branch, BranchState.DRAFTING)
        return lease

    def _lease_slots(self, branch: Branch, num: int) -> list[int]:
        try:
            return self.slots.lease(num)
        except OutOfSlotsError:
            branches = self.state.branches.by_id.values()
            if self.leases or any(other.task is not None for other in branches):
                raise  # a round in flight will free slots
            for other in branches:
                if other is not branch:
                    other.draft_path.drop()
            return self.slots.lease(num)

    def _order(self, branch: Branch, task: DraftLease, shape: TreeShape) -> DraftOrder:
        params, drawing = branch.params, self.method.drawing(branch.params)
        assert params.seed is not None
        return DraftOrder(
            task.worker_id, branch.branch_id, branch.round, task.epoch, params.seed, branch.stream,
            shape.num_children if isinstance(shape, Growmap) else (), drawing.kind, drawing.temperature, task.is_long,
            slot_array(branch.draft_path.slots), task.pending_ids,
            slot_array([*task.unused_slots, *task.tree_slots]), None if isinstance(shape, Growmap) else shape,
            drawing.shared_noise,
            slot_array(self._feature_slots(branch) if self.by_features else []),
        )  # fmt: skip

    @staticmethod
    def _feature_slots(branch: Branch) -> list[int]:
        """Target slots of the pending tokens' predecessors; the first token of a text has none.

        The branch holds them, and no preemption takes them, until the worker has answered.
        """
        first, end = len(branch.draft_path), len(branch.tokens)
        return [branch.target_path[idx - 1] if idx else NO_SLOT for idx in range(first, end)]

    # --- what workers do ------------------------------------------------------------------------

    def welcome(self, worker_id: int, epoch: int) -> None:
        """A worker says hello. One that died meanwhile is not welcome: nobody would answer for it."""
        if (worker_id, epoch) not in self._lost:
            self.workers[worker_id] = epoch

    def lose(self, worker_id: int, epoch: int) -> None:
        """A worker is gone: its leases come back, and its branches are drafted for by others."""
        self._lost.add((worker_id, epoch))
        if self.workers.get(worker_id) == epoch:
            del self.workers[worker_id]
            self._num_refused.pop(worker_id, None)
        for lease in self._owed_by(worker_id, epoch):
            self._end(lease)
            self._draft_again(lease)

    def note_context(self, worker_id: int, branch_id: int, round_: int) -> None:
        """A worker says that the pending tokens of a task are in the arena."""
        lease = self._lease_of(worker_id, branch_id, round_)
        if lease is not None:
            self._register_context(lease)

    def take_proposal(self, event: ProposalArrived, now_ns: int) -> list[Action]:
        """A worker answers; what nobody awaits is counted and refused."""
        lease = self._lease_of(event.worker_id, event.branch_id, event.round)
        if lease is None:
            self.state.counters["stale_proposals"] += 1
            return self.refuse(event.worker_id, NO_TASK, NO_TASK, "nobody awaits a proposal of that round")
        problem = _why_unusable(lease, event)
        if problem:
            return self.refuse(event.worker_id, event.branch_id, event.round, problem)
        del self.leases[event.branch_id, event.round]
        self._loads[lease.worker_id] -= 1
        self._register_context(lease)
        self.slots.give_back(lease.unused_slots)
        branch = self.state.branches.by_id.get(event.branch_id)
        if branch is None or branch.task is not lease:
            self.slots.give_back(lease.tree_slots)
            return []
        ready_ns = event.ready_ns if lease.sent_ns <= event.ready_ns <= now_ns else now_ns
        if not lease.is_long:
            taken_ns = ready_ns - lease.sent_ns
            self._draft_ns = taken_ns if not self._draft_ns else 0.8 * self._draft_ns + 0.2 * taken_ns
        branch.tree, branch.payload, branch.ready_ns = event.tree, event.payload, ready_ns
        branch.drafted_idx = event.drafted_idx
        self.state.branches.move(branch, BranchState.PROPOSED)
        return []

    def refuse(self, worker_id: int, branch_id: int, round_: int, reason: str) -> list[Action]:
        """What a worker sent cannot be used: whoever may have waited for it is drafted for again.

        If it answers a task, the slots of the task come back. Otherwise it may have been the answer to any of the
        worker's tasks: their branches go on, and their slots stay lent until the worker answers or is reaped.
        """
        lease = self._lease_of(worker_id, branch_id, round_)
        if lease is not None:
            self._end(lease)
        for given_up in self._owed_by(worker_id, self.workers.get(worker_id)) if lease is None else [lease]:
            self._give_up(given_up)
        if worker_id in self.workers:
            self._num_refused[worker_id] += 1
        if self._num_refused[worker_id] < MAX_REFUSED:
            return []
        return [self._replace(worker_id, f"{MAX_REFUSED} answers were refused, the last one because: {reason}")]

    def replace_stalled(self, now_ns: int) -> list[Action]:
        """End the workers that owe an answer for too long."""
        stalled: dict[int, int] = {}
        for lease in self.leases.values():  # oldest first
            if now_ns - lease.sent_ns <= self._late_ns:
                break
            if self.workers.get(lease.worker_id) == lease.epoch:  # else it is being ended already
                stalled.setdefault(lease.worker_id, now_ns - lease.sent_ns)
        return [self._replace(worker_id, f"no answer for {ns / 1e9:.1f} s") for worker_id, ns in stalled.items()]

    def _replace(self, worker_id: int, reason: str) -> ReplaceWorker:
        """No more tasks for a worker; what it has been lent comes back when it is reaped."""
        epoch = self.workers.pop(worker_id)
        self._num_refused.pop(worker_id, None)
        for lease in self._owed_by(worker_id, epoch):
            self._give_up(lease)
        return ReplaceWorker(worker_id, epoch, reason, self.state.log.cause)

    def _lease_of(self, worker_id: int, branch_id: int, round_: int) -> DraftLease | None:
        """What a worker, as it is now, has been lent for a round."""
        lease = self.leases.get((branch_id, round_))
        if lease is None or lease.worker_id != worker_id or lease.epoch != self.workers.get(worker_id):
            return None
        return lease

    def _owed_by(self, worker_id: int, epoch: int | None) -> list[DraftLease]:
        return [lease for lease in self.leases.values() if (lease.worker_id, lease.epoch) == (worker_id, epoch)]

    def _end(self, lease: DraftLease) -> None:
        """The worker writes no more: all that it was lent comes back."""
        del self.leases[lease.branch_id, lease.round]
        self._loads[lease.worker_id] -= 1
        self.slots.give_back([*lease.unused_slots, *lease.tree_slots])

    def _give_up(self, lease: DraftLease) -> None:
        """The branch of a lease is drafted for by somebody else, if there is anybody; at last by nobody."""
        branch = self.state.branches.by_id.get(lease.branch_id)
        if branch is not None and branch.task is lease:
            branch.num_refused += 1
            branch.avoid = lease.worker_id
        self._draft_again(lease)

    def _draft_again(self, lease: DraftLease) -> None:
        """The branch of a lease does not wait for its answer any more."""
        branch = self.state.branches.by_id.get(lease.branch_id)
        if branch is None or branch.task is not lease:
            return
        branch.task = None
        branch.round += 1  # or a late answer would be taken for that of the next task
        self._computing.pop(branch.branch_id, None)
        if len(branch.draft_path) == len(branch.tokens):
            # It had announced the context: but who drafts instead needs a token to start from.
            branch.draft_path.pop()
        self.state.branches.move(branch, BranchState.DRAFTABLE)

    def expected_ready_ns(self) -> Iterator[int]:
        """When the proposals that are being drafted should be ready, as far as that can be foreseen."""
        for lease in self.leases.values():
            branch = self.state.branches.by_id.get(lease.branch_id)
            if branch is not None and branch.task is lease and not lease.is_long:
                yield lease.sent_ns + int(self._draft_ns)

    def _register_context(self, lease: DraftLease) -> None:
        """Make a task's pending tokens known: they are in the arena now, for everybody."""
        if lease.context_known:
            return
        lease.context_known = True
        branch = self.state.branches.by_id.get(lease.branch_id)
        if branch is None or branch.task is not lease:
            return
        self._computing.pop(branch.branch_id, None)
        # Of tokens that are known already, the worker goes on reading its own copies until it answers.
        lease.unused_slots = branch.draft_path.extend(lease.pending_ids, lease.unused_slots)

    # --- the end of a round ---------------------------------------------------------------------

    def keep_accepted(self, branch: Branch, segment: Segment, accepted: tuple[int, ...]) -> None:
        """Keep the slots of accepted nodes as far as the draft ran them, free the others."""
        lease = branch.task
        if lease is None:
            return
        token_ids, slots = [], []
        for node_idx in accepted[: len(branch.drafted_idx)]:
            drafted_idx = branch.drafted_idx[node_idx]
            if not 0 <= drafted_idx < len(lease.tree_slots):
                break  # a leaf: it has no draft KV, nor has what may follow it
            token_ids.append(segment.tree.token_ids[node_idx])
            slots.append(lease.tree_slots[drafted_idx])
        if slots:
            self.slots.give_back(branch.draft_path.extend(token_ids, slots))
        self.slots.give_back(slot for slot in lease.tree_slots if slot not in slots)

    def forget(self, branch: Branch) -> None:
        """A branch is gone; a lease in flight comes back when its worker answers."""
        lease = branch.task
        if lease is not None and (branch.branch_id, lease.round) not in self.leases:
            self.slots.give_back(lease.tree_slots)  # proposed, not committed
        branch.task = None
        if self.lookup is not None and not branch.score:
            self.lookup.end(branch.branch_id, branch.tokens)
        self._computing.pop(branch.branch_id, None)

    def validate(self) -> None:
        """Check every invariant.

        Raises:
            InvariantError: one does not hold.
        """
        branches = list(self.state.branches.by_id.values())
        self.slots.validate(branch.draft_path.tail for branch in branches if branch.draft_path)
        for b in branches:
            in_flight = b.task is not None and (b.branch_id, b.task.round) in self.leases
            if (b.state is BranchState.DRAFTING) != in_flight:
                raise InvariantError(f"branch {b.branch_id} is {b.state.value}, lease in flight: {in_flight}")
        computing = {
            b.branch_id: b for b in branches
            if b.state is BranchState.DRAFTING and b.task and b.task.is_long and not b.task.context_known
        }  # fmt: skip
        check_kept("contexts that are computed", self._computing, computing)
        check_kept("loads", self._loads, Counter(lease.worker_id for lease in self.leases.values()))


def _why_unusable(lease: DraftLease, event: ProposalArrived) -> str:
    """Why a proposal is not what was ordered, or nothing."""
    tree, shape = event.tree, lease.shape
    if isinstance(shape, Growmap):
        max_nodes, max_depth = shape.num_nodes, shape.depth
    else:
        max_nodes, max_depth = shape.nodes, shape.max_depth
    depth = max(tree.depths, default=0)
    if len(tree) > max_nodes or depth > max_depth:
        return f"a tree of {len(tree)} nodes, {depth} deep: at most {max_nodes} nodes, {max_depth} deep, were ordered"
    if len(tree) and tree.kind is not lease.kind:
        return f"the tree is {tree.kind.value}: {lease.kind.value} was ordered"
    return ""
