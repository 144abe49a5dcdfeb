"""The target's side: who is served by the next forward, with which slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from seedmp.errors import InvalidTransitionError, OutOfSlotsError
from seedmp.kv.slot_tree import SlotTree
from seedmp.scheduler.actions import Action, RunForward, Segment, WakeAt
from seedmp.scheduler.branches import Branch, BranchState
from seedmp.scheduler.log import NO_BRANCH
from seedmp.scheduler.policies import Outlook
from seedmp.scheduler.queue import QueueView
from seedmp.scheduler.state import State
from seedmp.token_tree.tree import EMPTY_TREE

COST_MEMORY = 32  # forwards that the cost estimate looks back on


class Forwards:
    """Orders forwards, one at a time, and keeps the books of the target's arena.

    Args:
        drafts_read_target: drafts read hidden states at target slots, so those of a branch that drafts stay.
    """

    def __init__(self, state: State, drafts_read_target: bool) -> None:
        self.state = state
        self.slots = SlotTree(state.config.kv_slots)
        self.in_flight: tuple[Segment, ...] | None = None
        self._in_use = {BranchState.VERIFYING, *([BranchState.DRAFTING] if drafts_read_target else [])}
        self._forward_ns: deque[int] = deque(maxlen=COST_MEMORY)
        self._free_ns = 0  # when the last forward ended

    def order(self, now_ns: int, expected_ready_ns: Callable[[], Iterable[int]], *, is_woken: bool) -> list[Action]:
        """A forward of what the policy selects, or the time at which to ask it again, or nothing.

        Args:
            expected_ready_ns: of proposals that are being drafted.
            is_woken: a proposal will arrive.
        """
        if self.in_flight is not None:
            return []
        state, max_rows = self.state, self.state.config.max_forward_tokens
        preempted: set[int] = set()
        while queue := QueueView(state.branches.queue, preempted):
            outlook = Outlook(now_ns, max_rows, expected_ready_ns(), min(self._forward_ns, default=0), self._free_ns)
            selection = state.policy.select(queue, outlook, is_woken=is_woken)
            if not selection.branch_ids:
                hold_ns = selection.hold_until_ns
                return [] if hold_ns is None else [WakeAt(hold_ns, state.log.cause)]
            segments, out_of_slots = self._plan(selection.branch_ids, now_ns)
            if segments:
                self.in_flight = tuple(segments)
                return [RunForward(self.in_flight, state.log.cause)]
            if out_of_slots:
                victim = self._preempt(selection.branch_ids[0], now_ns)
                if victim is None:
                    return []
                preempted.add(victim)  # or it would take its slots again before they are used
            # else sharing has left the selected ones without work
        return []

    def finish(self, elapsed_ns: int, now_ns: int) -> dict[int, Segment]:
        """The forward is done; its segments, by branch.

        Raises:
            InvalidTransitionError: there was none.
        """
        if self.in_flight is None:
            raise InvalidTransitionError("a forward finished that was never ordered", self.state.log.story(NO_BRANCH))
        segments, self.in_flight = self.in_flight, None
        self._forward_ns.append(elapsed_ns)
        self._free_ns = now_ns
        self.state.counters["forwards"] += 1
        self.state.counters["forward_rows"] += sum(len(s.chain_ids) + len(s.tree) for s in segments)
        return {segment.branch_id: segment for segment in segments}

    def settle_kind(self, branch: Branch) -> None:
        """KV of the kind that a text of this length has; to be called whenever it grows."""
        if self.state.limits.rope is not None:
            branch.target_path.become(self.state.limits.rope.rope_len(branch.prompt_len, len(branch.tokens)))

    def share(self, branch: Branch) -> None:
        """Let a branch take over what others have computed."""
        self.state.counters["shared_target_tokens"] += branch.target_path.share(branch.tokens)
        self.state.branches.requeue(branch)

    def has_computed(self, branch: Branch) -> bool:
        """Whether hidden states of all tokens but the last are there: so a head can continue them."""
        self.share(branch)
        path = branch.target_path
        if len(path) < len(branch.tokens) - 1:
            return False
        return not any(path.tail in segment.chain_slots for segment in self.in_flight or ())  # still in flight

    def keep_accepted(self, branch: Branch, segment: Segment, accepted: tuple[int, ...]) -> None:
        """Keep the slots of accepted nodes, free those of the others."""
        token_ids, slots = segment.tree.token_ids, segment.tree_slots
        path = branch.target_path
        if accepted:
            self.slots.give_back(path.extend([token_ids[idx] for idx in accepted], [slots[idx] for idx in accepted]))
        self.give_back_tree(segment, accepted)

    def give_back_tree(self, segment: Segment, accepted: tuple[int, ...] = ()) -> None:
        """Free the slots of a tree but those of accepted nodes."""
        self.slots.give_back(slot for idx, slot in enumerate(segment.tree_slots) if idx not in accepted)

    def cancel(self, branch: Branch) -> None:
        """A branch in the forward is given up: nobody will look at its tree."""
        assert self.in_flight is not None
        self.give_back_tree(next(segment for segment in self.in_flight if segment.branch_id == branch.branch_id))

    def _plan(self, branch_ids: Iterable[int], now_ns: int) -> tuple[list[Segment], bool]:
        """Segments for branches, in order, and whether slots ran out before all had theirs."""
        budget = self.state.config.max_forward_tokens
        segments: list[Segment] = []
        for branch_id in branch_ids:
            if budget <= 0 and segments:
                break
            try:
                segment = self._plan_branch(self.state.branches.by_id[branch_id], budget, now_ns)
            except OutOfSlotsError:
                return segments, True
            if segment is not None:
                segments.append(segment)
                budget -= len(segment.chain_ids) + len(segment.tree_slots)
        return segments, False

    def _plan_branch(self, branch: Branch, budget: int, now_ns: int) -> Segment | None:
        """Lease and register slots for one branch's rows; None when there is nothing to run."""
        self.share(branch)
        path = branch.target_path
        start = len(path.slots)
        num_uncached = len(branch.tokens) - start
        verify = branch.state is BranchState.PROPOSED and (num_uncached == 1 or num_uncached <= budget)
        end = len(branch.tokens) if verify else min(len(branch.tokens) - 1, start + max(budget, 1))
        tree = branch.tree if verify else EMPTY_TREE
        if end == start:
            return None
        slots = self.slots.lease(end - start + len(tree))
        context = tuple(path.slots)
        chain_ids = branch.tokens[start:end]
        self.slots.give_back(path.extend(chain_ids, slots[: end - start]))
        self.state.branches.requeue(branch)
        self._count(branch, start, end)
        if verify:
            self.state.branches.move(branch, BranchState.VERIFYING)
            wait_ns = max(0, now_ns - branch.ready_ns)
            branch.counters.queue_wait_ns += wait_ns
            self.state.counters["queue_wait_ns"] += wait_ns
        return Segment(
            branch.branch_id, context, start, tuple(chain_ids), tuple(path.slots[start:end]), verify,
            branch.score and verify, tree, tuple(slots[end - start :]), branch.stream, branch.params, branch.payload,
            branch.ready_ns, tuple(branch.generated_ids) if verify and branch.params.is_constrained else (),
            path.kind,
        )  # fmt: skip

    def _count(self, branch: Branch, start: int, end: int) -> None:
        num_prefill = max(0, min(end, branch.prompt_len - 1) - start)
        self.state.counters["target_prefill_tokens"] += num_prefill
        branch.counters.target_prefill_tokens += num_prefill

    def _preempt(self, keep: int, now_ns: int) -> int | None:
        """Free the target's slots of a branch that the policy chooses, never of ``keep``."""
        candidates = [
            b.ticket for b in self.state.branches.by_id.values()
            if b.branch_id != keep and b.target_path and b.state not in self._in_use
        ]  # fmt: skip
        if not candidates:
            return None
        victim = self.state.branches.by_id[self.state.policy.victim(candidates)]
        victim.target_path.drop()
        self.state.counters["preempted"] += 1
        victim.preempted_ns = now_ns  # behind those that wait, or two could preempt each other for ever
        self.state.branches.requeue(victim)
        return victim.branch_id

    def validate(self) -> None:
        """Check every invariant of the target's arena.

        Raises:
            InvariantError: one does not hold.
        """
        paths = (branch.target_path for branch in self.state.branches.by_id.values())
        self.slots.validate(path.tail for path in paths if path)
