"""The scheduler under any order of events, with models that are functions: text, KV bookkeeping, progress."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from seedmp.config import EngineConfig, Schedule
from seedmp.draft_order import DraftOrder
from seedmp.errors import InvalidTransitionError
from seedmp.kv.rope_border import RopeBorder
from seedmp.kv.slot_tree import NO_SLOT
from seedmp.methods.registry import METHODS
from seedmp.sampling import SamplingParams
from seedmp.scheduler import actions, events
from seedmp.scheduler.forwards import Forwards
from seedmp.scheduler.hosts import perform
from seedmp.scheduler.scheduler import Scheduler
from seedmp.scheduler.state import Limits
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.opt_tree import NOT_DRAFTED, AdaptiveTreeBuilder
from seedmp.token_tree.static_tree import StaticTreeBuilder
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree
from tests.helpers.same import same

VOCAB_SIZE = 5
MAX_MODEL_LEN = 56
MS = 1_000_000
MAX_PREEMPTIONS = 200  # in one decision; more would never end


def target_token(prefix: Sequence[int]) -> int:
    """What the fake target says after a prefix."""
    return (sum(prefix) * 7 + len(prefix) * 3 + prefix[-1]) % VOCAB_SIZE


def draft_token(prefix: Sequence[int]) -> int:
    """What the fake draft says: right three times out of four."""
    return (target_token(prefix) + (sum(prefix) % 4 == 0)) % VOCAB_SIZE


def plain_text(request: events.BranchSubmitted) -> list[int]:
    """Plain decoding by the fake target."""
    text: list[int] = []
    max_new = min(request.params.max_tokens, MAX_MODEL_LEN - len(request.prompt_ids))
    while len(text) < max_new:
        text.append(target_token([*request.prompt_ids, *text]))
        if text[-1] in request.params.stop_token_ids:
            break
    return text


class BoundedForwards(Forwards):
    """Fails, instead of hanging, when a decision preempts without end."""

    num_preempted = 0

    def order(self, *args: Any, **kwargs: Any) -> list[actions.Action]:
        self.num_preempted = 0
        return super().order(*args, **kwargs)

    def _preempt(self, *args: Any) -> Any:
        self.num_preempted += 1
        assert self.num_preempted < MAX_PREEMPTIONS, "one decision preempts for ever"
        return super()._preempt(*args)


@dataclass
class World:
    """Fake drafts and a fake target that remember what KV is in which slot, and check what they are given."""

    config: EngineConfig
    rng: random.Random
    now_ns: int = 0
    tokens: dict[int, list[int]] = field(default_factory=dict)
    expected: dict[int, list[int]] = field(default_factory=dict)
    finished: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    tasks: list[tuple[DraftOrder, int]] = field(default_factory=list)
    forward: actions.RunForward | None = None
    target_kv: dict[int, tuple[int, ...]] = field(default_factory=dict)
    draft_kv: dict[int, tuple[int, ...]] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)
    verified: list[int] = field(default_factory=list)
    given: list[actions.Action] = field(default_factory=list)
    announced: set[int] = field(default_factory=set)
    to_reap: list[actions.ReplaceWorker] = field(default_factory=list)
    rope: RopeBorder | None = None
    target_kinds: dict[int, int] = field(default_factory=dict)  # slot -> rope_len of its KV

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config, Limits(MAX_MODEL_LEN, VOCAB_SIZE, frozenset(), self.rope))
        self.scheduler.forwards.__class__ = BoundedForwards

    # --- events ---

    def tell(self, event: events.Event) -> None:
        self.now_ns += self.rng.randrange(1, 3 * MS)
        self.obey(self.scheduler.handle(event, self.now_ns))

    def decide(self) -> None:
        self.now_ns += self.rng.randrange(1, MS)
        self.obey(self.scheduler.decide(self.now_ns))

    def obey(self, orders: list[actions.Action]) -> None:
        self.given += orders
        perform(orders, self)

    def submit(self, prompt: Sequence[int], params: SamplingParams, num_committed: int = 0) -> int:
        branch_id = len(self.tokens)
        request = events.BranchSubmitted(
            branch_id, 0, tuple(prompt), (), params, priority=branch_id % 3, user="ab"[branch_id % 2]
        )
        self.expected[branch_id] = plain_text(request)
        committed = tuple(self.expected[branch_id][:num_committed])
        self.tokens[branch_id] = [*prompt, *committed]
        self.tell(replace(request, committed_ids=committed))
        return branch_id

    def join(self, worker_id: int) -> None:
        self.epochs[worker_id] = self.epochs.get(worker_id, -1) + 1
        self.tell(events.WorkerJoined(worker_id, self.epochs[worker_id]))

    def lose(self, worker_id: int, epoch: int | None = None) -> None:
        """It may have written some of what was lent, or none; it answers no more."""
        who = worker_id, self.epochs[worker_id] if epoch is None else epoch
        for order, _epoch in self.tasks:
            if (order.worker_id, order.epoch) == who and self.rng.random() < 0.5:
                self.write_context(order)
        self.tasks = [entry for entry in self.tasks if (entry[0].worker_id, entry[0].epoch) != who]
        self.tell(events.WorkerLost(*who))

    def reap(self) -> None:
        """A worker that was to be replaced is gone; until now it may have done anything but answer."""
        order = self.to_reap.pop(0)
        self.lose(order.worker_id, order.epoch)

    def misbehave(self, index: int) -> None:
        """A worker answers wrongly, or never."""
        order, _ = self.tasks[index]
        if not self.is_current(order):
            return
        worker_id, key = order.worker_id, (order.branch_id, order.round)
        what = self.rng.randrange(5)
        if what == 0:  # what cannot be read, or is of no task that is known
            self.tell(events.AnswerRefused(worker_id, -1, -1, "noise"))
        elif what == 1:
            strange = TokenTree((0,), (NO_PARENT,), order.kind)
            self.tell(events.ProposalArrived(worker_id, key[0], key[1] + 1000, 0, -(2**63), strange, None))
        elif what == 2:
            self.now_ns += int(self.config.stall_timeout_s * 3e9)
        else:
            self.write_context(order)
            del self.tasks[index]
            size = 1000 if what == 3 else 1
            odd = next(kind for kind in ProposalKind if kind is not order.kind) if what == 4 else order.kind
            tree = TokenTree((0,) * size, (NO_PARENT, *range(size - 1)), odd)
            self.tell(events.ProposalArrived(worker_id, *key, 0, 2**63 - 1, tree, None))

    def is_current(self, order: DraftOrder) -> bool:
        """Whether the worker of a task is heard; the verifier drops what others send."""
        return self.scheduler.workers.get(order.worker_id) == order.epoch

    def is_awaited(self, order: DraftOrder) -> bool:
        """Whether the branch of a task still waits for it; else its context may be anything."""
        branch = self.scheduler.branches.get(order.branch_id)
        return branch is not None and branch.task is not None and branch.task.round == order.round

    def cancel(self, branch_id: int) -> None:
        self.tell(events.BranchCancelled(branch_id))

    # --- fakes ---

    def write_context(self, order: DraftOrder) -> list[int]:
        """Run the pending tokens of a task: reads the context, writes the slots lent for them.

        The context of a request that was cancelled meanwhile, or is drafted for elsewhere, may be anything: its
        proposal is dropped.
        """
        tokens: list[int] = []
        for position, slot in enumerate(order.context_slots):
            prefix = self.draft_kv[slot]
            if self.is_awaited(order):
                assert prefix[:-1] == tuple(tokens) and len(prefix) == position + 1
            tokens.append(prefix[-1])
        assert order.pending_ids, "a draft needs a token to start from"
        if self.config.method.name == "eagle" and self.is_awaited(order):
            self.read_features(order, tokens)
        for token_id, slot in zip(order.pending_ids, order.slots, strict=False):
            tokens.append(token_id)
            if id(order) not in self.announced:
                self.draft_kv[slot] = tuple(tokens)
        return tokens

    def read_features(self, order: DraftOrder, context: list[int]) -> None:
        """The target's hidden states of each pending token's predecessor, at any time until the answer."""
        tokens = [*context, *order.pending_ids]
        for idx, slot in enumerate(order.feature_slots, len(context)):
            assert slot == NO_SLOT if idx == 0 else self.target_kv[slot] == tuple(tokens[:idx])
        assert len(order.feature_slots) == len(order.pending_ids) and len(tokens) > 1

    def announce(self, order: DraftOrder) -> None:
        self.write_context(order)
        if not self.is_current(order):
            return
        self.announced.add(id(order))
        self.tell(events.ContextComputed(order.worker_id, order.branch_id, order.round))

    def propose(self, index: int) -> None:
        order, _ = self.tasks.pop(index)
        tokens = self.write_context(order)
        if self.is_awaited(order):
            assert tokens == self.tokens[order.branch_id]
        lent = order.slots[len(order.pending_ids) :]
        builder: StaticTreeBuilder | AdaptiveTreeBuilder
        if order.adaptive is None:
            builder = StaticTreeBuilder(Growmap(order.children), order.kind)
            assert len(lent) == builder.growmap.num_drafted
        else:
            builder = AdaptiveTreeBuilder(order.adaptive)
            assert len(lent) == order.adaptive.max_drafted
        drafted: list[list[int]] = []
        rows = [tokens]
        while builder.layer is not None:
            if isinstance(builder, StaticTreeBuilder):
                builder.add_layer([self.children_of(row, n) for row, n in zip(rows, builder.num_children, strict=True)])
            else:
                builder.add_layer(np.log([self.law_after(row) for row in rows]))
            layer = builder.layer
            if layer is not None:
                rows = []
                for token_id, parent in zip(layer.token_ids, layer.parents, strict=True):
                    rows.append([*(tokens if parent == NO_PARENT else drafted[parent]), token_id])
                assert len(drafted) == layer.first_drafted_idx
                drafted += rows
        for path, slot in zip(drafted, lent, strict=False):  # it may have needed fewer than it was lent
            self.draft_kv[slot] = tuple(path)
        assert len(drafted) <= len(lent)
        grown = builder.grown()
        if not self.is_current(order):
            return
        kept = grown.drafted_idx if self.config.method.name != "eagle" else (NOT_DRAFTED,) * len(grown.tree)
        self.tell(
            events.ProposalArrived(
                order.worker_id, order.branch_id, order.round, self.now_ns - MS, self.now_ns, grown.tree, "rows",
                kept,
            )
        )  # fmt: skip

    def children_of(self, prefix: list[int], num: int) -> list[int]:
        """Distinct ones or, as independent draws are, with repeats."""
        if self.config.method.name in ("sd", "specinfer"):
            return [(draft_token(prefix) + self.rng.randrange(2)) % VOCAB_SIZE for _ in range(num)]
        return [(draft_token(prefix) + child) % VOCAB_SIZE for child in range(num)]

    def law_after(self, prefix: list[int]) -> list[float]:
        sure = 0.5 + 0.1 * (sum(prefix) % 5)
        rest = (1 - sure) / (VOCAB_SIZE - 1)
        return [max(sure if token_id == draft_token(prefix) else rest, 1e-9) for token_id in range(VOCAB_SIZE)]

    def finish_forward(self) -> None:
        assert self.forward is not None
        segments, self.forward = self.forward.segments, None
        outcomes = []
        assert sum(len(s.chain_ids) + len(s.tree) for s in segments) <= self.max_rows(segments)
        for s in segments:
            tokens: list[int] = []
            for slot in s.context_slots:
                tokens = self.read_target(tokens, slot)
                assert self.target_kinds[slot] == s.rope_len
            assert len(tokens) == s.position
            self.target_kinds |= dict.fromkeys([*s.chain_slots, *s.tree_slots], s.rope_len)
            self.check_rope(s)
            for token_id, slot in zip(s.chain_ids, s.chain_slots, strict=True):
                tokens = [*tokens, token_id]
                self.target_kv[slot] = tuple(tokens)
            outcome = self.verify(s, tokens)
            if outcome is not None:
                outcomes.append(outcome)
        self.tell(events.ForwardFinished(self.rng.randrange(1, 3 * MS), tuple(outcomes)))

    def max_rows(self, segments: Sequence[actions.Segment]) -> int:
        """The budget may be passed by the last item of the prefix, as one tree must always fit."""
        return self.config.max_forward_tokens + max(len(s.tree) for s in segments)

    def check_rope(self, s: actions.Segment) -> None:
        """Its KV is of the kind that a text of its length has, and no tree reaches over the border."""
        branch = self.scheduler.branches.get(s.branch_id)
        if self.rope is None or branch is None:
            return
        length = len(branch.tokens)
        assert s.rope_len == self.rope.rope_len(branch.prompt_len, length)
        if self.rope.recomputes and not s.rope_len:
            assert length + max(s.tree.depths, default=0) <= self.rope.length

    def read_target(self, tokens: list[int], slot: int) -> list[int]:
        prefix = self.target_kv[slot]
        assert prefix[:-1] == tuple(tokens)
        return list(prefix)

    def verify(self, s: actions.Segment, tokens: list[int]) -> events.Outcome | None:
        if not s.verify:
            assert not len(s.tree)
            return None
        if s.branch_id in self.scheduler.branches:
            assert tokens == self.tokens[s.branch_id]
        self.verified.append(s.branch_id)
        paths: list[list[int]] = []
        for token_id, parent, slot in zip(s.tree.token_ids, s.tree.parents, s.tree_slots, strict=True):
            paths.append([*(tokens if parent == NO_PARENT else paths[parent]), token_id])
            self.target_kv[slot] = tuple(paths[-1])
        accepted: list[int] = []
        while True:
            at = accepted[-1] if accepted else NO_PARENT
            wanted = target_token(paths[at] if accepted else tokens)
            hits = [i for i in s.tree.children[at + 1] if s.tree.token_ids[i] == wanted]
            if not hits:
                return events.Outcome(s.branch_id, tuple(accepted), wanted)
            accepted.append(hits[0])

    # --- the scheduler's host ---

    def send_draft_task(self, order: actions.SendDraftTask) -> None:
        draft = order.draft
        assert self.scheduler.workers[draft.worker_id] == self.epochs[draft.worker_id] == draft.epoch
        self.tasks.append((draft, draft.epoch))

    def run_forward(self, order: actions.RunForward) -> None:
        assert self.forward is None
        self.forward = order

    def commit_tokens(self, order: actions.CommitTokens) -> None:
        assert order.branch_id not in self.finished and order.branch_id not in self.failed
        self.tokens[order.branch_id] += order.token_ids

    def finish_branch(self, order: actions.FinishBranch) -> None:
        self.finished[order.branch_id] = order.reason

    def fail_branch(self, order: actions.FailBranch) -> None:
        self.failed[order.branch_id] = order.text

    def replace_worker(self, order: actions.ReplaceWorker) -> None:
        assert order.worker_id not in self.scheduler.workers
        self.to_reap.append(order)

    def wake_at(self, order: actions.WakeAt) -> None:
        self.now_ns = max(self.now_ns, order.at_ns)

    # --- driving ---

    def drain(self) -> None:
        """Nothing surprising happens any more: all that is left must finish."""
        for worker_id in range(self.config.num_drafts):
            if worker_id not in self.scheduler.workers and self.config.drafts_per_group:
                self.join(worker_id)
        for _ in range(3000):
            self.decide()
            if self.tasks:
                self.propose(self.rng.randrange(len(self.tasks)))
            if self.forward is not None:
                self.finish_forward()
            if self.to_reap:
                self.reap()
            for worker_id in range(self.config.drafts_per_group):
                if worker_id not in self.scheduler.workers:
                    self.join(worker_id)
            if not self.scheduler.branches and not self.tasks and not self.scheduler.drafting.leases:
                break
        story = {b.branch_id: b.state.value for b in self.scheduler.branches.values()}
        assert not story, f"not finished: {story}"
        figures = self.scheduler.figures()
        assert figures["target_slots_leased"] == figures["draft_slots_leased"] == 0

    def check_texts(self) -> None:
        for branch_id, expected in self.expected.items():
            assert (branch_id in self.finished) != (branch_id in self.failed)
            got = self.tokens[branch_id][-len(expected) :] if branch_id in self.finished else expected
            assert got == expected
            if branch_id in self.finished:
                assert self.finished[branch_id] in ("stop", "length")


def random_params(rng: random.Random) -> SamplingParams:
    stops = (rng.randrange(VOCAB_SIZE),) if rng.random() < 0.3 else ()
    return SamplingParams(
        temperature=0.0, draft_temperature=rng.choice([None, 1.0]), max_tokens=rng.randrange(1, 16), seed=1,
        stop_token_ids=stops,
    )  # fmt: skip


def run_randomly(
    config: EngineConfig, seed: int, num_events: int, rogue: float = 0, rope: RopeBorder | None = None
) -> World:
    """Requests, cancellations, deaths, and answers in any order, a share of them wrong; then the rest is served."""
    rng = random.Random(seed)
    world = World(config, rng, rope=rope)
    common = [rng.randrange(VOCAB_SIZE) for _ in range(24)]
    draft_ids = range(config.drafts_per_group)
    for worker_id in draft_ids:
        if rng.random() < 0.8:
            world.join(worker_id)
    for _ in range(num_events):
        what = rng.random()
        if what < 0.12:
            prompt = [*common[: rng.randrange(25)], rng.randrange(VOCAB_SIZE)]
            resumed = rng.randrange(6) if rng.random() < 0.2 else 0
            world.submit(prompt, random_params(rng), resumed)
        elif what < 0.15 and world.tokens:
            world.cancel(rng.randrange(len(world.tokens)))
        elif what < 0.18 and world.scheduler.workers:
            world.lose(rng.choice(sorted(world.scheduler.workers)))
        elif what < 0.24:
            missing = [w for w in draft_ids if w not in world.scheduler.workers]
            if missing:
                world.join(rng.choice(missing))
        elif what < 0.3 and world.tasks:
            order, _ = rng.choice(world.tasks)
            if order.announce:
                world.announce(order)
        elif rogue and what < 0.55 and world.tasks and rng.random() < rogue:
            world.misbehave(rng.randrange(len(world.tasks)))
        elif rogue and world.to_reap and rng.random() < 0.3:
            world.reap()
        elif what < 0.55 and world.tasks:
            world.propose(rng.randrange(len(world.tasks)))
        elif what < 0.8 and world.forward is not None:
            world.finish_forward()
        else:
            world.decide()
    world.drain()
    return world


GROWMAPS = ("3x2", (3, 2, 1, 0, 0, 1, 0, 0), ((1,), (2,), (0, 2), (0, 0)))


def tree_settings(rng: random.Random, method: str) -> dict[str, Any]:
    """A tree that the method could be given."""
    if method == "sequoia" or (method in ("specinfer", "coupled") and rng.random() < 0.5):
        return {"growmap": rng.choice(GROWMAPS)}
    if method == "opt-tree":
        return {"nodes": rng.randrange(1, 6), "max_depth": rng.randrange(1, 5), "threshold": rng.choice([0.0, 0.3])}
    if method == "eagle":
        threshold, top_k = rng.choice([(None, 2), (None, 1), (0.1, None)])
        return {"nodes": rng.randrange(1, 6), "max_depth": rng.randrange(1, 5), "threshold": threshold, "top_k": top_k}
    if method == "ngram":
        return {"nodes": rng.randrange(1, 9), "max_depth": rng.randrange(1, 5)}
    return {}


def config_of(seed: int, kv_slots: int, only: str | None = None) -> EngineConfig:
    rng = random.Random(seed)
    method = only or rng.choice(METHODS.names())
    return EngineConfig(
        target="-", draft="-", num_drafts=rng.randrange(1, 4),
        method=method, **tree_settings(rng, method),  # type: ignore[arg-type]
        k_config=rng.choice([(1,), (2, 1), (2, 2, 1), (1, 1, 1)]), policy=rng.choice(["fcfs", "fcfs-batch"]),
        schedule=rng.choice([Schedule.SERIAL, Schedule.SCHEDULED, Schedule.SCHEDULED]), kv_slots=kv_slots,
        draft_kv_slots=kv_slots, max_forward_tokens=rng.choice([16, 24, 64]), validate=True,
    )  # fmt: skip


SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SEEDS)
@example(0)
def test_any_order_of_events_with_room(seed: int) -> None:
    world = run_randomly(config_of(seed, 1024), seed, 120)
    assert world.scheduler.counters["preempted"] == 0
    world.check_texts()


@settings(max_examples=120, deadline=None, derandomize=True)
@given(SEEDS)
@example(0)
def test_any_order_of_events_in_small_arenas(seed: int) -> None:
    """72 slots hold one or two of the longest requests: branches wait, are preempted and come back."""
    world = run_randomly(config_of(seed, 72), seed, 120)
    world.check_texts()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SEEDS, st.sampled_from([64, 72, 256]))
def test_features_are_there_until_they_were_read(seed: int, kv_slots: int) -> None:
    """Heads read the target's slots, so those must neither be missing nor change under a draft."""
    world = run_randomly(config_of(seed, kv_slots, "eagle"), seed, 120)
    world.check_texts()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(SEEDS, st.sampled_from(["priority", "fair", "tests.helpers.policies:AnyOrder"]), st.sampled_from([72, 256]))
def test_any_order_of_service_gives_the_same_texts(seed: int, policy: str, kv_slots: int) -> None:
    """Invariants are checked after each event; every request finishes, with the text of plain decoding."""
    world = run_randomly(replace(config_of(seed, kv_slots), policy=policy), seed, 120)
    world.check_texts()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(SEEDS, st.sampled_from([72, 256]), st.integers(1, 30), st.booleans())
def test_kv_of_another_rope_is_never_shared(seed: int, kv_slots: int, length: int, recomputes: bool) -> None:
    world = run_randomly(config_of(seed, kv_slots), seed, 120, rope=RopeBorder(length, recomputes))
    world.check_texts()


def test_small_arenas_do_preempt() -> None:
    """The test above would prove little if its arenas were never full."""
    preempted = 0
    for seed in range(20):
        world = World(config_of(seed, 64), random.Random(seed))
        for i in range(4):
            prompt = [(i + j * j) % VOCAB_SIZE for j in range(24)]
            world.submit(prompt, SamplingParams(temperature=0.0, max_tokens=15, seed=1))
        world.drain()
        world.check_texts()
        preempted += world.scheduler.counters["preempted"] + world.scheduler.forwards.slots.num_evicted
    assert preempted > 0


# --- workers that answer wrongly, or never ------------------------------------------------------------


@settings(max_examples=150, deadline=None, derandomize=True)
@given(SEEDS, st.sampled_from([72, 256, 1024]), st.sampled_from([0.1, 0.5, 1.0]))
def test_rogue_drafts_change_no_text_and_keep_no_slots(seed: int, kv_slots: int, rogue: float) -> None:
    world = run_randomly(config_of(seed, kv_slots), seed, 150, rogue)
    world.check_texts()


def one_branch(num_workers: int = 2) -> tuple[World, DraftOrder]:
    """One branch whose task is out."""
    world = World(fcfs_config(), random.Random(0))
    for worker_id in range(num_workers):
        world.join(worker_id)
    world.submit([1, 2], SamplingParams(temperature=0.0, max_tokens=9, seed=1))
    world.decide()
    ((order, _),) = world.tasks
    return world, order


ODD_TREES = {
    "too many nodes": ((1, 1, 1), (NO_PARENT, 0, 0)),
    "too deep": ((1, 1, 1), (NO_PARENT, 0, 1)),
    "larger than the arena": ((1,) * 5000, (NO_PARENT,) * 5000),
}


@pytest.mark.parametrize("name", ODD_TREES)
def test_a_proposal_that_was_not_ordered_is_drafted_elsewhere(name: str) -> None:
    world, order = one_branch()
    world.tell(events.ProposalArrived(order.worker_id, 0, 0, 0, 1, TokenTree(*ODD_TREES[name], order.kind), None))
    world.tasks.clear()
    assert world.scheduler.figures()["draft_slots_leased"] == 0  # it has answered
    world.decide()
    ((again, _),) = world.tasks
    assert again.worker_id != order.worker_id and again.round > order.round
    world.drain()
    world.check_texts()
    assert not any(isinstance(given, actions.ReplaceWorker) for given in world.given)


def test_what_cannot_be_told_keeps_its_slots_until_the_worker_answers() -> None:
    """The worker may be writing still (ADR 1); its late answer changes nothing."""
    world, order = one_branch()
    num_lent = world.scheduler.figures()["draft_slots_leased"]
    world.tell(events.AnswerRefused(order.worker_id, -1, -1, "noise"))
    world.decide()
    assert len(world.tasks) == 2 and world.scheduler.figures()["draft_slots_leased"] >= num_lent + len(order.slots)
    world.propose(0)
    assert world.scheduler.branches[0].state.value == "drafting"
    world.drain()
    world.check_texts()


def test_three_refused_answers_and_the_worker_is_replaced() -> None:
    world, _ = one_branch(1)
    for _ in range(3):
        assert not world.to_reap
        world.tasks.clear()
        world.tell(events.AnswerRefused(0, 0, world.scheduler.branches[0].round, "odd"))
        world.decide()
    (replaced,) = world.to_reap
    assert (replaced.worker_id, replaced.epoch) == (0, 0) and "3 answers were refused" in replaced.reason
    assert world.forward is not None  # the round goes on without a draft: there is none that can be relied on
    world.drain()
    world.check_texts()


def test_a_worker_that_never_answers_is_replaced_in_time() -> None:
    world, order = one_branch()
    world.tasks.clear()
    late_ns = int(2e9 * world.config.stall_timeout_s)
    world.now_ns += late_ns - 10 * MS
    world.decide()
    assert not world.to_reap and not world.tasks
    world.now_ns += 10 * MS
    world.decide()
    assert [replaced.worker_id for replaced in world.to_reap] == [order.worker_id]
    assert [again.worker_id for again, _ in world.tasks] == [1 - order.worker_id]
    assert world.scheduler.figures()["draft_slots_leased"] > len(order.slots)  # it may be writing still
    world.drain()
    world.check_texts()


@pytest.mark.parametrize("ready_ns", [-(2**63), -1, 0, 2**63 - 1])
def test_a_time_that_cannot_be_is_the_time_of_arrival(ready_ns: int) -> None:
    world, order = one_branch()
    world.write_context(order)
    world.tasks.clear()
    before_ns = world.now_ns
    tree = TokenTree((1, 1), (NO_PARENT, 0), order.kind)
    world.tell(events.ProposalArrived(order.worker_id, 0, 0, ready_ns, ready_ns, tree, None))
    assert before_ns < world.scheduler.branches[0].ready_ns <= world.now_ns
    world.drain()
    world.check_texts()


def test_who_left_before_the_end_pins_nothing() -> None:
    """Else its KV would stay for ever: nobody is left to say that it is not needed."""
    world = World(fcfs_config(), random.Random(0))
    world.join(0)
    params = SamplingParams(temperature=0.0, max_tokens=6, seed=1)
    world.expected[0], world.tokens[0] = plain_text(events.BranchSubmitted(0, 0, (1, 2), (), params)), [1, 2]
    world.tell(events.BranchSubmitted(0, 0, (1, 2), (), params, "parent", "child"))
    tree = TokenTree((3, 4), (NO_PARENT, 0), ProposalKind.DETERMINISTIC)
    world.tell(events.ScoreRequested(1, (1, 2, 3), tree, "parent"))
    world.tell(events.OwnersLeft(("parent", "child"), False))
    world.scheduler.handle(events.BranchCancelled(1), world.now_ns)
    world.drain()
    assert world.scheduler.figures()["branches_kept"] == 0


def test_a_score_that_is_cancelled_frees_what_it_took() -> None:
    for num_decisions in range(3):  # waiting, in a forward
        world = World(fcfs_config(), random.Random(0))
        tree = TokenTree((3, 4), (NO_PARENT, 0), ProposalKind.DETERMINISTIC)
        world.tell(events.ScoreRequested(0, (1, 2, 3), tree, "parent"))
        for _ in range(num_decisions):
            world.decide()
        world.cancel(0)
        if world.forward is not None:
            world.tell(events.ForwardFinished(MS, (events.Outcome(0, (), 0),)))
        figures = world.scheduler.figures()
        assert figures["target_slots_leased"] == figures["branches_kept"] == figures["active_branches"] == 0
        assert world.failed == {0: "the request was cancelled"}


@pytest.mark.parametrize("is_score", [False, True])
def test_a_problem_fails_its_own_request_with_its_kind(is_score: bool) -> None:
    world = World(fcfs_config(), random.Random(0))
    tree = TokenTree((3, 4), (NO_PARENT, 0), ProposalKind.DETERMINISTIC)
    if is_score:
        world.tell(events.ScoreRequested(0, (1, 2, 3), tree))
    else:
        world.submit([1, 2], SamplingParams(temperature=0.0, max_tokens=1, seed=1))
    world.decide()
    assert world.forward is not None
    world.tell(events.ForwardFinished(MS, (events.Outcome(0, (), 0, problem="NaN", problem_kind="NumericalError"),)))
    (failed,) = (order for order in world.given if isinstance(order, actions.FailBranch))
    assert (failed.kind, failed.text) == ("NumericalError", "NaN")
    assert world.scheduler.figures()["target_slots_leased"] == 0


# --- stories ------------------------------------------------------------------------------------------


def without_payload(order: actions.Action) -> actions.Action:
    if not isinstance(order, actions.RunForward):
        return order
    return replace(order, segments=tuple(replace(segment, payload=None) for segment in order.segments))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(SEEDS, st.sampled_from(["fcfs-batch", "fair", "tests.helpers.policies:AnyOrder"]))
def test_a_logged_story_played_again_gives_the_same_orders(seed: int, policy: str) -> None:
    world = run_randomly(replace(config_of(seed, 72), policy=policy), seed, 100)
    assert world.scheduler.log.is_whole
    fresh = Scheduler(world.config, world.scheduler.limits)
    again: list[actions.Action] = []
    for entry in world.scheduler.log:
        again += fresh.decide(entry.at_ns) if entry.event is None else fresh.handle(entry.event, entry.at_ns)
    assert same(again, [without_payload(order) for order in world.given])
    causes = {order.cause for order in again}
    assert causes == {entry.entry_id for entry in world.scheduler.log if entry.orders}


# --- first come, first served -----------------------------------------------------------------------


def fcfs_config(policy: str = "fcfs") -> EngineConfig:
    return EngineConfig(
        target="-", draft="-", num_drafts=3, policy=policy, k_config=(1, 1), kv_slots=512, validate=True
    )


@pytest.mark.parametrize("seed", range(5))
def test_rounds_of_equal_branches_never_differ_by_more_than_one(seed: int) -> None:
    """Three equal branches whose proposals arrive in the order in which they were asked for."""
    world = World(fcfs_config(), random.Random(seed))
    for worker_id in range(3):
        world.join(worker_id)
    for _ in range(3):
        world.submit([1, 2, 3], SamplingParams(temperature=0.0, max_tokens=30, seed=1))
    while not world.finished:
        world.decide()
        while world.tasks:
            world.propose(0)
            world.decide()
        if world.forward is not None:
            world.finish_forward()
        counts = [world.verified.count(branch_id) for branch_id in range(3)]
        assert max(counts) - min(counts) <= 1
    world.drain()
    world.check_texts()


def test_the_earliest_ready_is_served_first_whatever_arrived_first() -> None:
    world = World(fcfs_config(), random.Random(0))
    for worker_id in range(3):
        world.join(worker_id)
    for _ in range(3):
        world.submit([4], SamplingParams(temperature=0.0, max_tokens=30, seed=1))
    world.decide()
    orders = {order.branch_id: order for order, _ in world.tasks}
    assert sorted(orders) == [0, 1, 2] and {o.worker_id for o in orders.values()} == {0, 1, 2}
    ready_ns = {0: world.now_ns + 9 * MS, 1: world.now_ns + 5 * MS, 2: world.now_ns + 7 * MS}
    world.now_ns += 10 * MS
    for branch_id in (0, 1, 2):  # as a socket may hand them over
        order = orders[branch_id]
        world.write_context(order)
        tree = TokenTree((1, 1), (NO_PARENT, 0), order.kind)
        world.tell(events.ProposalArrived(order.worker_id, branch_id, 0, 0, ready_ns[branch_id], tree, "rows"))
    world.tasks.clear()
    for branch_id in (1, 2, 0):
        decided = world.scheduler.decide(world.now_ns)
        perform([order for order in decided if not isinstance(order, actions.SendDraftTask)], world)
        assert world.forward is not None
        assert [s.branch_id for s in world.forward.segments] == [branch_id]
        world.finish_forward()


# --- copies, strangers and mistakes -------------------------------------------------------------------


def test_late_and_copied_proposals_are_counted_and_dropped() -> None:
    world = World(fcfs_config(), random.Random(0))
    world.join(0)
    world.submit([1, 2], SamplingParams(temperature=0.0, max_tokens=5, seed=1))
    world.decide()
    ((order, _),) = world.tasks
    tree = TokenTree((1, 1), (NO_PARENT, 0), order.kind)
    strangers = [(1, 0, 0), (0, 0, 1), (0, 7, 0)]  # another worker, round, branch
    for worker_id, branch_id, round_ in strangers:
        world.tell(events.ProposalArrived(worker_id, branch_id, round_, 0, 1, tree, None))
    assert world.scheduler.counters["stale_proposals"] == 3
    world.propose(0)
    world.tell(events.ProposalArrived(0, 0, 0, 0, 1, tree, None))
    assert world.scheduler.counters["stale_proposals"] == 4
    assert [replaced.worker_id for replaced in world.to_reap] == [0]  # three of them were the worker's own
    world.tell(events.ContextComputed(0, 0, 0))
    world.drain()
    world.check_texts()


def test_slots_that_were_not_lent_are_not_kept() -> None:
    """A draft that claims them loses its KV, and nothing else happens."""
    world = World(fcfs_config(), random.Random(0))
    world.join(0)
    world.submit([1, 2], SamplingParams(temperature=0.0, max_tokens=8, seed=1))
    world.decide()
    ((order, _),) = world.tasks
    world.tasks.clear()
    world.write_context(order)
    right = target_token([1, 2])
    tree = TokenTree((right, target_token([1, 2, right])), (NO_PARENT, 0), order.kind)
    world.tell(events.ProposalArrived(0, 0, 0, 0, 1, tree, None, (7, 0)))
    while len(world.tokens[0]) == 2:
        world.decide()
        world.finish_forward()
    assert len(world.tokens[0]) == 5
    assert len(world.scheduler.branches[0].draft_path) == 2
    world.drain()
    world.check_texts()


def test_a_lost_worker_of_an_old_epoch_takes_nothing_from_the_new_one() -> None:
    world = World(fcfs_config(), random.Random(0))
    params = SamplingParams(temperature=0.0, max_tokens=5, seed=1)
    world.join(0)
    world.submit([1, 2], params)
    world.decide()
    world.tasks.clear()  # it dies with its task
    world.join(0)  # the replacement says hello before the death is told
    world.submit([3, 4], params)
    world.decide()
    world.tell(events.WorkerLost(0, 0))
    assert world.scheduler.workers == {0: 1}
    assert [order.branch_id for order, _ in world.tasks] == [1]
    world.propose(0)
    assert world.scheduler.counters["stale_proposals"] == 0
    world.drain()
    world.check_texts()


def test_a_hello_that_comes_after_the_death_is_not_believed() -> None:
    """They come by different ways: the hello from the draft, the death from the supervisor."""
    world = World(fcfs_config(), random.Random(0))
    world.epochs[0] = 0
    world.tell(events.WorkerLost(0, 0))
    world.tell(events.WorkerJoined(0, 0))
    assert not world.scheduler.workers
    world.submit([1, 2], SamplingParams(temperature=0.0, max_tokens=5, seed=1))
    world.decide()
    assert not world.tasks
    world.join(0)
    assert world.scheduler.workers == {0: 1}
    world.drain()
    world.check_texts()


def test_a_forward_that_was_never_ordered_is_a_bug() -> None:
    world = World(fcfs_config(), random.Random(0))
    with pytest.raises(InvalidTransitionError, match="never ordered"):
        world.tell(events.ForwardFinished(1, ()))


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "text"),
    [
        ((), 5, "the prompt is empty"),
        ((1, 5), 5, r"token id 5: must be in \[0, 5\)"),
        ((1,) * 56, 5, "56 tokens: the models allow 56"),
        ((1,) * 50, 20, "need .* KV slots: kv_slots is 64"),
    ],
)
def test_what_can_never_be_served_is_refused(prompt: tuple[int, ...], max_tokens: int, text: str) -> None:
    config = EngineConfig(target="-", draft="-", kv_slots=64, validate=True)
    scheduler = Scheduler(config, Limits(MAX_MODEL_LEN, VOCAB_SIZE, frozenset()))
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=1)
    (order,) = scheduler.handle(events.BranchSubmitted(0, 0, prompt, (), params), 0)
    assert isinstance(order, actions.FailBranch) and order.kind == "RejectedError"
    assert pytest.raises(ValueError, match=text).matches(ValueError(order.text))
    assert not scheduler.branches
