"""Grows the token trees of several tasks at once, layer by layer, with whatever model drafts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch

from seedmp.decoding.propose import (
    Children,
    DraftLaw,
    confidence_temperature,
    likeliest,
    noise_size,
    propose_children,
    propose_coupled,
)
from seedmp.draft_order import DraftOrder
from seedmp.drafts.base import make_proposal
from seedmp.ipc.messages import Proposal
from seedmp.models.overflow import have_overflowed, may_have_overflowed
from seedmp.models.rows import BranchRows, pack_rows
from seedmp.models.runner import Runner
from seedmp.sampling import Noise, Purpose
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.opt_tree import AdaptiveTreeBuilder, Layer
from seedmp.token_tree.static_tree import GrownStaticTree, StaticTreeBuilder
from seedmp.token_tree.tree import ProposalKind


@dataclass(frozen=True)
class Choice:
    """How children are chosen; tasks with equal choices are served together."""

    kind: ProposalKind
    temperature: float
    shared_noise: bool
    layer_width: int  # of an adaptive tree, else 0

    @classmethod
    def of(cls, task: DraftOrder) -> Choice:
        """The choice that a task asks for."""
        if task.adaptive is not None:
            confidence = confidence_temperature(task.draft_temperature)
            return cls(ProposalKind.DETERMINISTIC, confidence, False, task.adaptive.layer_width)
        return cls(task.kind, task.draft_temperature, task.shared_noise, 0)


class TreeInProgress:
    """One task while its tree grows: the builder decides about nodes, this knows slots, noise and laws."""

    def __init__(self, task: DraftOrder) -> None:
        self.task = task
        self.choice = Choice.of(task)
        self.noise = Noise(task.seed, task.stream)
        num_pending = len(task.pending_ids)
        self.pending_ids = task.pending_ids
        self.context_slots = task.context_slots
        self.pending_slots: list[int] = task.slots[:num_pending].tolist()
        self.node_slots: list[int] = task.slots[num_pending:].tolist()
        self.feature_slots = task.feature_slots
        self.text_slots = np.concatenate([task.context_slots, task.slots[:num_pending]])
        self.builder: StaticTreeBuilder | AdaptiveTreeBuilder
        if task.adaptive is not None:
            self.builder = AdaptiveTreeBuilder(task.adaptive)
        else:
            self.builder = StaticTreeBuilder(_growmap(task.children), task.kind)
        self.depth = 0
        self.num_rows = 1  # of the next logits; the first is the root's
        self.drafted_ids: list[int] = []  # [drafted nodes]
        self.drafted_parents: list[int] = []
        self.row_ids: list[np.ndarray] = []
        self.row_probs: list[np.ndarray] = []

    @property
    def is_done(self) -> bool:
        return self.builder.layer is None

    @property
    def position(self) -> int:
        """Of the tokens that the next rows decide."""
        return len(self.text_slots) + self.depth

    def context_rows(self) -> BranchRows:
        """The pending tokens; the last one's logits are wanted."""
        return BranchRows(self.context_slots, self.pending_ids, self.pending_slots, num_wanted=1)

    def layer_rows(self) -> BranchRows:
        """The nodes of the newest layer; all logits are wanted."""
        num_drafted = len(self.drafted_ids)
        return BranchRows(
            self.text_slots, tree_ids=self.drafted_ids, tree_parents=self.drafted_parents,
            tree_slots=self.node_slots[:num_drafted], first_node=num_drafted - self.num_rows, num_wanted=self.num_rows,
        )  # fmt: skip

    def add_children(self, token_ids: list[list[int]], row_ids: np.ndarray, row_probs: np.ndarray) -> None:
        """Children of each row of a static tree, and the laws that they were drawn from."""
        assert isinstance(self.builder, StaticTreeBuilder)
        self.row_ids.append(row_ids)
        self.row_probs.append(row_probs)
        self._enter(self.builder.add_layer(token_ids))

    def add_candidates(self, log_probs: np.ndarray, token_ids: np.ndarray) -> None:
        """The likeliest tokens after each row of an adaptive tree."""
        assert isinstance(self.builder, AdaptiveTreeBuilder)
        self._enter(self.builder.add_layer(log_probs, token_ids))

    def _enter(self, layer: Layer | None) -> None:
        if layer is not None:
            self.depth, self.num_rows = layer.depth, len(layer.token_ids)
            self.drafted_ids += layer.token_ids
            self.drafted_parents += layer.parents


@lru_cache(maxsize=64)
def _growmap(children: tuple[int, ...]) -> Growmap:
    return Growmap(children)


class DraftModel(Protocol):
    """What runs the layers of growing trees. Serves one ``TreeDrafter``, which begins with ``run_context``."""

    num_tokens: int
    """Columns of its logits that are real tokens."""
    keeps_nodes: bool
    """Whether K and V of a drafted node that is accepted are those of a token of the text."""

    @property
    def busy_ns(self) -> int:
        """Time spent in forwards so far."""

    def run_context(self, trees: Sequence[TreeInProgress]) -> torch.Tensor:
        """[len(trees), columns] logits of the last pending token of each."""

    def run_layer(self, trees: Sequence[TreeInProgress]) -> torch.Tensor:
        """[rows, columns] logits of the newest layer of each."""

    def token_ids(self, columns: np.ndarray) -> np.ndarray:
        """The tokens that columns of the logits stand for."""

    def publish(self) -> None:
        """Return when other processes can read what was run."""


class WholeModel:
    """A ``DraftModel`` that is a language model of its own."""

    keeps_nodes = True

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.num_tokens = runner.vocab_size
        self.publish = runner.publish

    @property
    def busy_ns(self) -> int:
        """As ``DraftModel``."""
        return self.runner.busy_ns

    def run_context(self, trees: Sequence[TreeInProgress]) -> torch.Tensor:
        """As ``DraftModel``."""
        return self.runner.run(pack_rows([tree.context_rows() for tree in trees]))

    def run_layer(self, trees: Sequence[TreeInProgress]) -> torch.Tensor:
        """As ``DraftModel``."""
        return self.runner.run(pack_rows([tree.layer_rows() for tree in trees]))

    def token_ids(self, columns: np.ndarray) -> np.ndarray:
        """As ``DraftModel``: a column is a token."""
        return columns


class TreeDrafter:
    """Grows the trees of several tasks layer by layer, all of a layer in one forward; leaves are never run.

    Args:
        model: what is run.
        top_m: children are drawn from so many likeliest tokens.
        clock_ns: of the times in proposals.
        noise: share of the law that is uniform, as ``EngineConfig.draft_noise``.
    """

    def __init__(
        self,
        model: DraftModel,
        top_m: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        *,
        noise: float = 0.0,
    ) -> None:
        self.model = model
        self.top_m = top_m
        self.law_noise = noise
        self.clock_ns = clock_ns

    def draft(self, tasks: list[DraftOrder], on_context: Callable[[DraftOrder], None]) -> list[Proposal]:
        """As ``Drafter.draft``."""
        started_ns, busy_before_ns = self.clock_ns(), self.model.busy_ns
        trees = [TreeInProgress(task) for task in tasks]
        proposals: dict[int, Proposal] = {}
        logits = self.model.run_context(trees)
        if any(task.announce for task in tasks):
            self.model.publish()
            for task in tasks:
                if task.announce:
                    on_context(task)
        active = trees
        while True:
            self._add_layer(active, logits)
            done = [tree for tree in active if tree.is_done]
            if done:
                self.model.publish()
            for tree in done:
                proposals[id(tree)] = self._proposal(tree, started_ns, busy_before_ns)
            active = [tree for tree in active if not tree.is_done]
            if not active:
                return [proposals[id(tree)] for tree in trees]
            logits = self.model.run_layer(active)

    def _add_layer(self, trees: list[TreeInProgress], logits: torch.Tensor) -> None:
        """Choose children; tasks that choose alike are served together.

        A row that overflowed proposes anything: the target will say what it holds of it.
        """
        if may_have_overflowed(logits):
            logits = logits.where(~have_overflowed(logits)[:, None] | (logits == -torch.inf), 0.0)
        alike: dict[Choice, list[tuple[TreeInProgress, int]]] = {}
        first = 0
        for tree in trees:
            alike.setdefault(tree.choice, []).append((tree, first))
            first += tree.num_rows
        for choice, members in alike.items():
            rows = [row for tree, start in members for row in range(start, start + tree.num_rows)]
            chosen = logits if len(rows) == logits.shape[0] else logits[rows]
            alone = [tree for tree, _ in members]
            if choice.layer_width:
                self._add_candidates(alone, choice, chosen)
            else:
                self._add_children(alone, choice, chosen)

    def _add_candidates(self, trees: list[TreeInProgress], choice: Choice, logits: torch.Tensor) -> None:
        columns, log_probs = likeliest(logits, choice.layer_width, self.model.num_tokens, choice.temperature)
        token_ids = self.model.token_ids(columns)
        at = 0
        for tree in trees:
            rows = slice(at, at + tree.num_rows)
            at = rows.stop
            tree.add_candidates(log_probs[rows], token_ids[rows])

    def _add_children(self, trees: list[TreeInProgress], choice: Choice, logits: torch.Tensor) -> None:
        """All rows get as many children as the one with most, and keep the first ones that they are to have.

        Neither the law nor the noise of those depends on how many follow.
        """
        builders = [tree.builder for tree in trees if isinstance(tree.builder, StaticTreeBuilder)]
        vocab_size = self.model.num_tokens
        law = DraftLaw(choice.temperature, self.top_m, vocab_size, self.law_noise)
        num_children = max(max(builder.num_children) for builder in builders)
        if choice.kind is not ProposalKind.IID:  # distinct: a small vocabulary may not have so many
            exact = choice.kind is ProposalKind.DETERMINISTIC or choice.temperature == 0
            num_children = min(num_children, vocab_size if exact else law.row_len(vocab_size))
        if choice.shared_noise:
            gumbel = np.stack([tree.noise.gumbel(tree.position, Purpose.TARGET_TOKEN, vocab_size) for tree in trees])
            noise_rows = [i for i, tree in enumerate(trees) for _ in range(tree.num_rows)]
            token_ids = propose_coupled(logits, num_children, law, gumbel, noise_rows)
            no_law = np.empty((len(token_ids), 0))
            children = Children(token_ids, no_law, no_law)
        else:
            size = noise_size(choice.kind, num_children, law.row_len(vocab_size))
            noise = [
                tree.noise.gumbel(tree.position, Purpose.DRAFT_TOKEN, size, node_idx + 1)
                for tree, builder in zip(trees, builders, strict=True)
                for node_idx in builder.node_idxs
                if size
            ]
            children = propose_children(logits, num_children, choice.kind, law, noise)
        at = 0
        for tree, builder in zip(trees, builders, strict=True):
            rows = slice(at, at + tree.num_rows)
            at = rows.stop
            counts = builder.num_children
            kept = [ids[:num].tolist() for ids, num in zip(children.token_ids[rows], counts, strict=True)]
            tree.add_children(kept, children.row_ids[rows], children.row_probs[rows])

    def _proposal(self, tree: TreeInProgress, started_ns: int, busy_before_ns: int) -> Proposal:
        grown = tree.builder.grown()
        return make_proposal(
            tree.task,
            grown.tree,
            started_ns,
            forward_ns=self.model.busy_ns - busy_before_ns,
            drafted_idx=grown.drafted_idx if self.model.keeps_nodes else None,
            row_ids=np.concatenate(tree.row_ids) if tree.row_ids else None,
            row_probs=np.concatenate(tree.row_probs) if tree.row_probs else None,
            draws=grown.draws if isinstance(grown, GrownStaticTree) else (),
            clock_ns=self.clock_ns,
        )
