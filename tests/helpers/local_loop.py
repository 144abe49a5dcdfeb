"""The engine's parts in one process: scheduler, target and drafts, without sockets, under a virtual clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from seedmp.config import EngineConfig
from seedmp.draft_order import DraftOrder
from seedmp.drafts.head_model import HeadModel
from seedmp.drafts.tree_drafter import DraftModel, TreeDrafter, WholeModel
from seedmp.ipc.arena import layout_for
from seedmp.metrics import RequestCounters
from seedmp.models.eagle import EagleHead, load_head, read_head
from seedmp.models.eagle_runner import HeadRunner
from seedmp.models.features import FeatureTap
from seedmp.models.load import ModelSpec, load_model, max_positions
from seedmp.models.rope import route_ropes
from seedmp.models.runner import Runner, make_runner
from seedmp.sampling import SamplingParams
from seedmp.scheduler import actions, events
from seedmp.scheduler.hosts import perform
from seedmp.scheduler.scheduler import Scheduler
from seedmp.scheduler.state import Limits
from seedmp.workers.target import ProposalLimits, TargetRunner, read_proposal

MAX_TICKS = 20_000


@dataclass(frozen=True)
class Models:
    """A loaded pair; used again by many loops."""

    target: Any
    draft: Any
    vocab_size: int

    @classmethod
    def load(cls, target: Path, draft: Path) -> Models:
        """Load a pair as the workers do, in float32 on the CPU."""
        model = load_model(ModelSpec(str(target)), torch.float32)
        vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        return cls(model, load_model(ModelSpec(str(draft)), torch.float32), vocab_size)

    @classmethod
    def with_head(cls, target: Path, head: Path) -> Models:
        """The same with an EAGLE head as the draft."""
        spec = ModelSpec(str(target))
        model = load_model(spec, torch.float32)
        loaded = load_head(read_head(str(head), spec), torch.float32, "cpu", spec, model)
        return cls(model, loaded, loaded.spec.vocab_size)


@dataclass
class Outcome:
    """What became of one request."""

    token_ids: list[int] = field(default_factory=list)
    reason: str = ""
    counters: RequestCounters = field(default_factory=RequestCounters)


class LocalLoop:
    """Performs the scheduler's orders at once, or one draft worker at a time; every tick is 1 ms.

    A worker drafts all its tasks in one forward, as a draft process does. While it drafts nothing
    else moves, so that which proposals meet in a forward depends on the order of the workers alone.
    """

    def __init__(self, models: Models, *, eos_token_ids: Sequence[int] = (), **settings: Any) -> None:
        self.config = EngineConfig(target="-", draft="-", validate=True, **settings)
        is_head = isinstance(models.draft, EagleHead)
        drafting = [] if is_head else [models.draft.config]
        limits = Limits(
            min(max_positions(config) for config in (models.target.config, *drafting)),
            models.vocab_size,
            frozenset(eos_token_ids),
            route_ropes(models.target),
        )
        self.scheduler = Scheduler(self.config, limits)
        self.now_ns = 0
        tap: FeatureTap | None = None
        draft: DraftModel
        if is_head:
            spec = models.draft.spec
            features = torch.zeros(self.config.kv_slots, spec.feature_size)
            tap = FeatureTap(models.target, spec.feature_layers, features)
            layout = layout_for(spec.config, self.config.num_draft_slots, torch.float32)
            draft = HeadModel(HeadRunner(models.draft, torch.zeros(layout.shape), models.vocab_size), features)
        else:
            draft = WholeModel(self._runner(models.draft, self.config.num_draft_slots, models.vocab_size))
        self.runner = TargetRunner(self._runner(models.target, self.config.kv_slots, models.vocab_size, tap))
        self.drafter = TreeDrafter(draft, self.config.draft_top_m, self._tick, noise=self.config.draft_noise)
        self.tasks: deque[tuple[int, list[DraftOrder]]] = deque()
        self.outcomes: dict[int, Outcome] = {}
        self.failures: dict[int, str] = {}
        self.max_segments = 0
        if self.config.drafts_per_group:
            for worker_id in range(self.config.num_drafts):
                self._tell(events.WorkerJoined(worker_id, 0))

    def _runner(self, model: Any, num_slots: int, vocab_size: int, tap: FeatureTap | None = None) -> Runner:
        layout = layout_for(model.config, num_slots, torch.float32)
        return make_runner(self.config.runner, model, torch.zeros(layout.shape), vocab_size, tap)

    def run(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Outcome]:
        """Serve prompts, all submitted at once; asserts that every one finishes."""
        for branch_id, prompt in enumerate(prompts):
            self.outcomes[branch_id] = Outcome()
            self._tell(events.BranchSubmitted(branch_id, branch_id, tuple(prompt), (), params))
        for _ in range(MAX_TICKS):
            if not self.scheduler.branches:
                break
            perform(self.scheduler.decide(self._tick()), self)
            if self.tasks:
                self._draft(*self.tasks.popleft())
        assert not self.scheduler.branches, "requests are stuck"
        assert not self.failures, self.failures
        for slots in (self.scheduler.forwards.slots, self.scheduler.drafting.slots):
            slots.validate()
            assert slots.num_leased == 0
        return [self.outcomes[branch_id] for branch_id in range(len(prompts))]

    def _tick(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def _tell(self, event: events.Event) -> None:
        perform(self.scheduler.handle(event, self._tick()), self)

    # --- the scheduler's host ---

    def run_forward(self, order: actions.RunForward) -> None:
        self.max_segments = max(self.max_segments, len(order.segments))
        outcomes, _ = self.runner.run(order.segments)
        self._tell(events.ForwardFinished(1_000_000, tuple(outcomes)))

    def commit_tokens(self, order: actions.CommitTokens) -> None:
        self.outcomes[order.branch_id].token_ids += order.token_ids

    def finish_branch(self, order: actions.FinishBranch) -> None:
        self.outcomes[order.branch_id].reason = order.reason
        self.outcomes[order.branch_id].counters = order.counters

    def fail_branch(self, order: actions.FailBranch) -> None:
        self.failures[order.branch_id] = f"{order.kind}: {order.text}"

    def replace_worker(self, order: actions.ReplaceWorker) -> None:
        raise AssertionError(order)

    def wake_at(self, order: actions.WakeAt) -> None:
        self.now_ns = max(self.now_ns, order.at_ns)

    def send_draft_task(self, order: actions.SendDraftTask) -> None:
        draft = order.draft
        for worker_id, tasks in self.tasks:
            if worker_id == draft.worker_id:
                tasks.append(draft)
                return
        self.tasks.append((draft.worker_id, [draft]))

    def _draft(self, worker_id: int, tasks: list[DraftOrder]) -> None:
        def announce(task: DraftOrder) -> None:
            self._tell(events.ContextComputed(worker_id, task.branch_id, task.round))

        for proposal in self.drafter.draft(tasks, announce):
            limits = ProposalLimits(self.runner.vocab_size, self.config.method.max_tree_nodes, self.config.draft_top_m)
            tree, rows = read_proposal(proposal, limits)
            self._tell(
                events.ProposalArrived(
                    worker_id, proposal.branch_id, proposal.round, proposal.started_ns, proposal.ready_ns,
                    tree, rows, proposal.drafted_idx,
                )
            )  # fmt: skip
