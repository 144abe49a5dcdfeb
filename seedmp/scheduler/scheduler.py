"""The scheduler: events in, orders out; no torch, sockets, clock or randomness inside.

It owns the branches, the first-come queue and the slot trees of both arenas. The verifier process
drives it with real events, a simulator with invented ones; ``hosts`` has what such a host must do.

A branch goes WAITING → DRAFTABLE → DRAFTING → PROPOSED → VERIFYING → DRAFTABLE ... → gone. The
target runs a long prompt in chunks while the branch is DRAFTABLE or DRAFTING.

Files: ``branches`` what a branch is and where it stands; ``drafting`` who drafts, with which slots; ``forwards`` who is
verified, with which slots; ``policies`` who comes first; ``log`` what happened. Here: events, commits, admission.
"""

from __future__ import annotations

from collections.abc import Callable

from seedmp import metrics
from seedmp.config import EngineConfig, Schedule
from seedmp.kv.held_path import HeldPath
from seedmp.sampling import SamplingParams
from seedmp.scheduler.actions import Action, CommitTokens, FailBranch, FinishBranch, Segment
from seedmp.scheduler.branches import Branch, BranchState
from seedmp.scheduler.drafting import Drafting
from seedmp.scheduler.events import (
    AnswerRefused,
    BranchCancelled,
    BranchSubmitted,
    ContextComputed,
    Event,
    ForwardFinished,
    Outcome,
    OwnersLeft,
    ProposalArrived,
    ScoreRequested,
    WorkerJoined,
    WorkerLost,
)
from seedmp.scheduler.forwards import Forwards
from seedmp.scheduler.log import EventLog
from seedmp.scheduler.policies import Ticket
from seedmp.scheduler.state import Limits, State
from seedmp.scheduler.stopping import Decode, Stop, find_stop
from seedmp.token_tree.tree import EMPTY_TREE, NO_PARENT, TokenTree


class Scheduler:
    """Decides who drafts, who is verified and who gets which slots.

    Everything is told by ``handle`` and asked by ``decide``; the properties are for reading only.

    Invariants (``validate``): those of the branches, of drafting and of the forwards.

    Raises:
        PolicyError: the configuration's policy is none.
    """

    def __init__(self, config: EngineConfig, limits: Limits, decode: Decode | None = None) -> None:
        self.config = config
        self.limits = limits
        self.decode = decode
        self.state = State.of(config, limits)
        self.forwards = Forwards(self.state, config.method.needs_features)
        self.drafting = Drafting(self.state, self.forwards)
        self._handlers: dict[type, Callable[..., list[Action]]] = {
            BranchSubmitted: self._on_submitted,
            ScoreRequested: self._on_score_requested,
            BranchCancelled: self._on_cancelled,
            OwnersLeft: self._on_owners_left,
            WorkerJoined: self._on_worker_joined,
            WorkerLost: self._on_worker_lost,
            ContextComputed: self._on_context_computed,
            ProposalArrived: self._on_proposal,
            AnswerRefused: self._on_answer_refused,
            ForwardFinished: self._on_forward_finished,
        }

    # --- the two ways in ------------------------------------------------------------------------

    def handle(self, event: Event, now_ns: int) -> list[Action]:
        """Take note of a fact; orders that follow from it at once are returned.

        Raises:
            InvalidTransitionError: the event cannot happen now; the error has the story.
        """
        self.log.add(event, now_ns)
        orders = self._handlers[type(event)](event, now_ns)
        self.log.note(orders)
        if self.config.validate:
            self.validate()
        return orders

    def decide(self, now_ns: int) -> list[Action]:
        """Orders for what can be done now: replace stalled workers, admit, send draft tasks, run the target.

        To be asked now and then even if nothing happens: what is late is noticed here.

        Raises:
            PolicyError: the policy decided something impossible.
        """
        if not self.branches and not self.drafting.leases:
            return []
        self.log.add(None, now_ns)
        orders: list[Action] = self.drafting.replace_stalled(now_ns)
        self._admit()
        orders += self.drafting.send_tasks(now_ns)
        orders += self.forwards.order(now_ns, self.drafting.expected_ready_ns, is_woken=bool(self.drafting.leases))
        self.log.note(orders)
        if self.config.validate:
            self.validate()
        return orders

    # --- looking in -----------------------------------------------------------------------------

    @property
    def branches(self) -> dict[int, Branch]:
        """Branches that have not ended, by id."""
        return self.state.branches.by_id

    @property
    def workers(self) -> dict[int, int]:
        """Epoch of each draft worker that is there."""
        return self.drafting.workers

    @property
    def counters(self) -> dict[str, int]:
        """What was counted since the beginning, by name."""
        return self.state.counters

    @property
    def log(self) -> EventLog:
        """The last events and decisions."""
        return self.state.log

    def figures(self) -> dict[str, float]:
        """Counters, and how things stand now, by name."""
        target, draft = self.forwards.slots, self.drafting.slots
        return {
            **self.counters,
            "active_branches": len(self.branches),
            "queue_len": len(self.state.branches.queue),
            "drafts_alive": len(self.workers),
            "target_slots_free": target.num_free,
            "draft_slots_free": draft.num_free,
            "branches_kept": target.num_pinned,
            "target_slots_leased": target.num_leased,
            "draft_slots_leased": draft.num_leased,
        }

    def story(self, branch_id: int) -> str:
        """What happened to a branch and what was ordered for it, oldest first; times are the host's, in ns."""
        return self.log.story(branch_id)

    def validate(self) -> None:
        """Check every invariant.

        Raises:
            InvariantError: one does not hold.
        """
        self.state.branches.validate()
        self.forwards.validate()
        self.drafting.validate()

    # --- requests come and go -------------------------------------------------------------------

    def _on_submitted(self, event: BranchSubmitted, now_ns: int) -> list[Action]:
        if event.branch_id in self.branches:
            return []
        room = self.limits.max_model_len - len(event.prompt_ids)
        branch = Branch(
            event.branch_id, Ticket(event.branch_id, now_ns, event.priority, event.user), event.stream, event.params,
            [*event.prompt_ids, *event.committed_ids], len(event.prompt_ids), min(event.params.max_tokens, room),
            HeldPath(self.forwards.slots), HeldPath(self.drafting.slots),
            prompt_owner=event.prompt_owner, owner=event.owner,
        )  # fmt: skip
        problem = self._why_never(branch, self.config.method.max_tree_nodes)
        if problem:
            return [self._fail(branch, "RejectedError", problem)]
        if event.committed_ids:  # an earlier verifier may have died between the last token and its message
            *old_ids, last_id = event.committed_ids
            stop = self._find_stop(branch, old_ids, [last_id])
            if stop.reason:
                return [self._finished(branch, stop.reason, stop.text)]
        self._add(branch)
        return []

    def _on_score_requested(self, event: ScoreRequested, now_ns: int) -> list[Action]:
        branch = Branch(
            event.branch_id, Ticket(event.branch_id, now_ns), 0, SamplingParams(), list(event.prompt_ids),
            len(event.prompt_ids), max(event.tree.depths, default=0), HeldPath(self.forwards.slots),
            HeldPath(self.drafting.slots), score=True, tree=event.tree, prompt_owner=event.prompt_owner,
        )  # fmt: skip
        problem = self._why_never(branch, len(event.tree))
        if problem:
            return [self._fail(branch, "RejectedError", problem)]
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
        arenas = [("kv_slots", self.forwards.slots, num_tree)]
        if self.config.drafts_per_group and not branch.score:
            arenas.append(("draft_kv_slots", self.drafting.slots, self.config.method.max_drafted))
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
            self.forwards.cancel(branch)
        self._drop(branch)
        return [self._fail(branch, "CancelledError", "the request was cancelled")]

    def _on_owners_left(self, event: OwnersLeft, now_ns: int) -> list[Action]:
        for slots in (self.forwards.slots, self.drafting.slots):
            for owner in event.owners:
                slots.unpin(owner, free=event.free)
        gone = set(event.owners)
        for branch in self.branches.values():  # nobody would ever unpin what they would pin
            branch.prompt_owner = None if branch.prompt_owner in gone else branch.prompt_owner
            branch.owner = None if branch.owner in gone else branch.owner
        return []

    def _admit(self) -> None:
        table, is_serial = self.state.branches, self.config.schedule is Schedule.SERIAL
        num_waiting = table.num_in(BranchState.WAITING)
        num_active = len(self.branches) - num_waiting
        if not num_waiting or (is_serial and num_active):
            return
        admitted = self.state.policy.admit(table.tickets(BranchState.WAITING), num_active)
        for branch_id in admitted[: 1 if is_serial else None]:
            branch = self.branches[branch_id]
            branch.ready_ns = branch.ticket.submitted_ns
            table.move(branch, BranchState.PROPOSED if branch.score else BranchState.DRAFTABLE)

    def _add(self, branch: Branch) -> None:
        self.forwards.settle_kind(branch)
        self.state.branches.add(branch)
        self.state.policy.submitted(branch.ticket)

    def _drop(self, branch: Branch) -> None:
        """Forget a branch; its KV stays as a cached prefix until room is needed."""
        self.drafting.forget(branch)
        branch.target_path.drop()
        branch.draft_path.drop()
        self.state.branches.remove(branch)
        self.state.policy.ended(branch.ticket)

    def _finished(self, branch: Branch, reason: str, text: str = "") -> FinishBranch:
        return FinishBranch(branch.branch_id, reason, text, branch.counters, self.log.cause)

    def _fail(self, branch: Branch, kind: str, text: str) -> FailBranch:
        self.counters["failed"] += 1
        return FailBranch(branch.branch_id, kind, text, self.log.cause)

    # --- drafts ---------------------------------------------------------------------------------

    def _on_worker_joined(self, event: WorkerJoined, now_ns: int) -> list[Action]:
        self.drafting.welcome(event.worker_id, event.epoch)
        return []

    def _on_worker_lost(self, event: WorkerLost, now_ns: int) -> list[Action]:
        self.drafting.lose(event.worker_id, event.epoch)
        return []

    def _on_context_computed(self, event: ContextComputed, now_ns: int) -> list[Action]:
        self.drafting.note_context(event.worker_id, event.branch_id, event.round)
        return []

    def _on_proposal(self, event: ProposalArrived, now_ns: int) -> list[Action]:
        return self.drafting.take_proposal(event, now_ns)

    def _on_answer_refused(self, event: AnswerRefused, now_ns: int) -> list[Action]:
        return self.drafting.refuse(event.worker_id, event.branch_id, event.round, event.reason)

    # --- committing -----------------------------------------------------------------------------

    def _on_forward_finished(self, event: ForwardFinished, now_ns: int) -> list[Action]:
        segments = self.forwards.finish(event.elapsed_ns, now_ns)
        orders: list[Action] = []
        for outcome in event.outcomes:
            branch = self.branches.get(outcome.branch_id)
            if branch is not None and branch.state is BranchState.VERIFYING:
                orders += self._commit(branch, segments[outcome.branch_id], outcome, now_ns)
        return orders

    def _commit(self, branch: Branch, segment: Segment, outcome: Outcome, now_ns: int) -> list[Action]:
        if outcome.problem:
            self.forwards.give_back_tree(segment)
            self._drop(branch)
            return [self._fail(branch, outcome.problem_kind, outcome.problem)]
        if branch.score:
            self.forwards.give_back_tree(segment)
            return [self._complete(branch, "score")]
        new_ids = [*(segment.tree.token_ids[i] for i in outcome.accepted), outcome.next_token]
        stop = self._find_stop(branch, branch.generated_ids, new_ids)
        end = outcome.num_kept
        if end is not None and (end < stop.num_kept or (end == stop.num_kept and stop.reason != "stop")):
            stop = Stop(end, "stop")  # the constrained text is complete
        new_ids = new_ids[: stop.num_kept]
        self._count_round(branch, segment, min(len(outcome.accepted), stop.num_kept), len(new_ids), now_ns)
        if self.config.method.static_tree is not None:
            self._count_children(segment.tree, outcome.accepted)
        self.state.policy.served(branch.ticket, len(new_ids))
        kept = outcome.accepted[: stop.num_kept]
        self.forwards.keep_accepted(branch, segment, kept)
        self.drafting.keep_accepted(branch, segment, kept)
        branch.tokens += new_ids
        self.forwards.settle_kind(branch)
        branch.tree, branch.payload, branch.task = EMPTY_TREE, None, None
        branch.num_refused, branch.avoid = 0, None
        branch.round += 1
        orders: list[Action] = [CommitTokens(branch.branch_id, tuple(new_ids), self.log.cause)] if new_ids else []
        if stop.reason:
            return [*orders, self._complete(branch, stop.reason, stop.text)]
        self.state.branches.move(branch, BranchState.DRAFTABLE)
        return orders

    def _complete(self, branch: Branch, reason: str, text: str = "") -> FinishBranch:
        branch.pin()
        self._drop(branch)
        self.counters["finished"] += 1
        return self._finished(branch, reason, text)

    def _find_stop(self, branch: Branch, old_ids: list[int], new_ids: list[int]) -> Stop:
        eos = self.limits.eos_token_ids
        return find_stop(old_ids, new_ids, branch.params, eos, branch.max_new, self.decode)

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
