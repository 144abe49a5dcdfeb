"""The draft worker: grows token trees for whatever branches it is sent, several in one forward."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq

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
from seedmp.drafts.base import Drafter
from seedmp.errors import ProtocolError
from seedmp.ids import Incarnation, WorkerName
from seedmp.ipc.arena import publish_barrier
from seedmp.ipc.channel import DealerChannel
from seedmp.ipc.endpoints import draft_endpoint
from seedmp.ipc.messages import (
    PROTOCOL_VERSION,
    ContextReady,
    DraftHello,
    DraftTask,
    DraftWelcome,
    Proposal,
    Shutdown,
)
from seedmp.ipc.span_ring import SpanRing, ring_path
from seedmp.models.packed import PackedModel
from seedmp.sampling import Noise, Purpose
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.opt_tree import AdaptiveTreeBuilder
from seedmp.token_tree.static_tree import GrownStaticTree, StaticTreeBuilder
from seedmp.token_tree.tree import NO_PARENT, ProposalKind
from seedmp.trace import Activity

POLL_MS = 500

# Of a forward: token ids, positions and slots [T], what each row may attend to [T, S], rows whose logits are wanted.
Rows = tuple[list[int], list[int], list[int], np.ndarray, list[int]]


@dataclass(frozen=True)
class _Way:
    """How children are chosen; tasks with equal ways are served together."""

    kind: ProposalKind
    temperature: float
    shared_noise: bool
    layer_width: int  # of an adaptive tree, else 0

    @classmethod
    def of(cls, task: DraftOrder) -> _Way:
        if task.adaptive is not None:
            confidence = confidence_temperature(task.draft_temperature)
            return cls(ProposalKind.DETERMINISTIC, confidence, False, task.adaptive.layer_width)
        return cls(task.kind, task.draft_temperature, task.shared_noise, 0)


class _Growing:
    """One task while its tree grows: the builder decides about nodes, this knows slots, noise and laws."""

    def __init__(self, task: DraftOrder, num_columns: int) -> None:
        self.task = task
        self.way = _Way.of(task)
        self.noise = Noise(task.seed, task.stream)
        self.num_pending = len(task.pending_ids)
        self.root_position = len(task.context_slots) + self.num_pending - 1
        visible = np.zeros(num_columns, dtype=bool)
        visible[task.context_slots] = True
        self.allowed = np.broadcast_to(visible, (self.num_pending, num_columns)).copy()
        pending_slots = task.slots[: self.num_pending]
        self.allowed[:, pending_slots] = np.tri(self.num_pending, dtype=bool)
        self.root_visible = self.allowed[-1]
        self.builder: StaticTreeBuilder | AdaptiveTreeBuilder
        if task.adaptive is not None:
            self.builder = AdaptiveTreeBuilder(task.adaptive)
        else:
            self.builder = StaticTreeBuilder(_growmap(task.children), task.kind)
        self.depth = 0
        self.num_rows = 1  # of the next logits; the first is the root's
        self.visible: list[np.ndarray] = []  # [drafted nodes], what each may attend to
        self.row_ids: list[np.ndarray] = []
        self.row_probs: list[np.ndarray] = []

    @property
    def is_done(self) -> bool:
        return self.builder.layer is None

    @property
    def position(self) -> int:
        """Of the tokens that the next rows decide."""
        return self.root_position + 1 + self.depth

    def add_children(self, token_ids: list[list[int]], row_ids: np.ndarray, row_probs: np.ndarray) -> None:
        """Children of each row of a static tree, and the laws that they were drawn from."""
        assert isinstance(self.builder, StaticTreeBuilder)
        self.builder.add_layer(token_ids)
        self.row_ids.append(row_ids)
        self.row_probs.append(row_probs)
        self._enter_layer()

    def add_candidates(self, log_probs: np.ndarray, token_ids: np.ndarray) -> None:
        """The likeliest tokens after each row of an adaptive tree."""
        assert isinstance(self.builder, AdaptiveTreeBuilder)
        self.builder.add_layer(log_probs, token_ids)
        self._enter_layer()

    def _enter_layer(self) -> None:
        layer = self.builder.layer
        if layer is None:
            return
        self.depth, self.num_rows = layer.depth, len(layer.token_ids)
        for drafted_idx, parent in enumerate(layer.parents, layer.first_drafted_idx):
            seen = (self.root_visible if parent == NO_PARENT else self.visible[parent]).copy()
            seen[self.slot_of(drafted_idx)] = True
            self.visible.append(seen)

    def slot_of(self, drafted_idx: int) -> int:
        return int(self.task.slots[self.num_pending + drafted_idx])


@lru_cache(maxsize=64)
def _growmap(children: tuple[int, ...]) -> Growmap:
    return Growmap(children)


class TreeDrafter:
    """Grows the trees of several tasks layer by layer, all of a layer in one forward; leaves are never run."""

    def __init__(
        self,
        packed: PackedModel,
        top_m: int,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        *,
        noise: float = 0.0,
    ) -> None:
        self.packed = packed
        self.top_m = top_m
        self.law_noise = noise
        self.clock_ns = clock_ns
        self.forward_before_ns = 0

    def draft(self, tasks: list[DraftOrder], on_context: Callable[[DraftOrder], None]) -> list[Proposal]:
        """One proposal for each task, in order.

        ``on_context`` is called for tasks with ``announce`` once their pending tokens are in the arena.
        """
        started_ns, self.forward_before_ns = self.clock_ns(), self.packed.forward_ns
        num_columns = 1 + max(int(array.max(initial=0)) for task in tasks for array in (task.context_slots, task.slots))
        growing = [_Growing(task, num_columns) for task in tasks]
        proposals: dict[int, Proposal] = {}
        logits = self._forward_context(growing)
        if any(task.announce for task in tasks):
            publish_barrier(self.packed.cache.arena)
            for task in tasks:
                if task.announce:
                    on_context(task)
        active = growing
        while True:
            self._add_layer(active, logits)
            done = [g for g in active if g.is_done]
            if done:
                publish_barrier(self.packed.cache.arena)
            for g in done:
                proposals[id(g)] = self._proposal(g, started_ns)
            active = [g for g in active if not g.is_done]
            if not active:
                return [proposals[id(g)] for g in growing]
            logits = self._forward_layer(active)

    def _forward_context(self, growing: list[_Growing]) -> torch.Tensor:
        return self.packed.forward(*self._context_rows(growing), [g.num_pending for g in growing])

    def _forward_layer(self, growing: list[_Growing]) -> torch.Tensor:
        return self.packed.forward(*self._layer_rows(growing), [g.num_rows for g in growing])

    def _context_rows(self, growing: list[_Growing]) -> Rows:
        """The pending tokens; wanted is the last one of each."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        for g in growing:
            self.packed.note_positions(g.task.context_slots)
            first = g.root_position + 1 - g.num_pending
            token_ids += g.task.pending_ids
            positions += range(first, g.root_position + 1)
            slots += g.task.slots[: g.num_pending].tolist()
            wanted.append(len(token_ids) - 1)
        allowed = np.concatenate([g.allowed for g in growing])
        return token_ids, positions, slots, allowed, wanted

    def _layer_rows(self, growing: list[_Growing]) -> Rows:
        """The newest layers; all are wanted."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        allowed: list[np.ndarray] = []
        for g in growing:
            layer = g.builder.layer
            assert layer is not None
            token_ids += layer.token_ids
            positions += [g.root_position + layer.depth] * g.num_rows
            drafted = range(layer.first_drafted_idx, layer.first_drafted_idx + g.num_rows)
            slots += map(g.slot_of, drafted)
            allowed += g.visible[layer.first_drafted_idx :]
        return token_ids, positions, slots, np.stack(allowed), list(range(len(token_ids)))

    def _add_layer(self, growing: list[_Growing], logits: torch.Tensor) -> None:
        """Choose children; tasks that choose alike are served together."""
        alike: dict[_Way, list[tuple[_Growing, int]]] = {}
        first = 0
        for g in growing:
            alike.setdefault(g.way, []).append((g, first))
            first += g.num_rows
        for way, members in alike.items():
            rows = [row for g, start in members for row in range(start, start + g.num_rows)]
            chosen = logits if len(rows) == logits.shape[0] else logits[rows]
            alone = [g for g, _ in members]
            if way.layer_width:
                self._add_candidates(alone, way, chosen)
            else:
                self._add_children(alone, way, chosen)

    def _add_candidates(self, growing: list[_Growing], way: _Way, logits: torch.Tensor) -> None:
        token_ids, log_probs = likeliest(logits, way.layer_width, self.packed.vocab_size, way.temperature)
        at = 0
        for g in growing:
            rows = slice(at, at + g.num_rows)
            at = rows.stop
            g.add_candidates(log_probs[rows], token_ids[rows])

    def _add_children(self, growing: list[_Growing], way: _Way, logits: torch.Tensor) -> None:
        """All rows get as many children as the one with most, and keep the first ones that they are to have.

        Neither the law nor the noise of those depends on how many follow.
        """
        builders = [g.builder for g in growing if isinstance(g.builder, StaticTreeBuilder)]
        law = DraftLaw(way.temperature, self.top_m, self.packed.vocab_size, self.law_noise)
        num_children = max(max(builder.num_children) for builder in builders)
        if way.kind is not ProposalKind.IID:  # distinct: a small vocabulary may not have so many
            exact = way.kind is ProposalKind.DETERMINISTIC or way.temperature == 0
            num_children = min(num_children, self.packed.vocab_size if exact else law.row_len(self.packed.vocab_size))
        if way.shared_noise:
            gumbel = np.stack(
                [g.noise.gumbel(g.position, Purpose.TARGET_TOKEN, self.packed.vocab_size) for g in growing]
            )
            noise_rows = [i for i, g in enumerate(growing) for _ in range(g.num_rows)]
            token_ids = propose_coupled(logits, num_children, law, gumbel, noise_rows)
            no_law = np.empty((len(token_ids), 0))
            children = Children(token_ids, no_law, no_law)
        else:
            size = noise_size(way.kind, num_children, law.row_len(self.packed.vocab_size))
            noise = [
                g.noise.gumbel(g.position, Purpose.DRAFT_TOKEN, size, node_idx + 1)
                for g, builder in zip(growing, builders, strict=True)
                for node_idx in builder.node_idxs
                if size
            ]
            children = propose_children(logits, num_children, way.kind, law, noise)
        at = 0
        for g, builder in zip(growing, builders, strict=True):
            rows = slice(at, at + g.num_rows)
            at = rows.stop
            counts = builder.num_children
            kept = [ids[:num].tolist() for ids, num in zip(children.token_ids[rows], counts, strict=True)]
            g.add_children(kept, children.row_ids[rows], children.row_probs[rows])

    def _proposal(self, g: _Growing, started_ns: int) -> Proposal:
        task, grown = g.task, g.builder.grown()
        no_law = [np.empty((0, 0))]
        return Proposal(
            task.branch_id, task.round, task.epoch, started_ns, self.clock_ns(),
            self.packed.forward_ns - self.forward_before_ns,
            grown.tree.token_ids, grown.tree.parents, grown.tree.kind,
            np.concatenate(g.row_ids or no_law).astype("<i4"), np.concatenate(g.row_probs or no_law).astype("<f4"),
            grown.drafted_idx, grown.draws if isinstance(grown, GrownStaticTree) else (),
        )  # fmt: skip


class DraftServer:
    """Serves tasks from a socket until it is told to stop.

    Runs in: draft process, main thread.
    """

    def __init__(self, folder: Path, name: WorkerName, epoch: int, verifier_epoch: int, layout: str) -> None:
        assert name.draft is not None, f"{name} is no draft"
        worker_id = name.draft
        self.context = zmq.Context()
        process = str(Incarnation(name, epoch))
        self.channel = DealerChannel(self.context, draft_endpoint(folder, name.group, verifier_epoch), process.encode())
        self.worker_id = worker_id
        self.epoch = epoch
        self.early: list[Any] = []  # what came with the welcome
        self.ring = SpanRing(ring_path(folder, process))
        self.channel.send(DraftHello(worker_id, epoch, PROTOCOL_VERSION, layout))

    def welcome(self, timeout_s: float, beat: Callable[[], None]) -> DraftWelcome:
        """Wait for the verifier's answer.

        Raises:
            ProtocolError: none came in time, or something else came.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            beat()
            if self.channel.poll(POLL_MS):
                msg, *self.early = self.channel.receive_all() or [None]
                if isinstance(msg, DraftWelcome):
                    return msg
                if msg is not None:
                    raise ProtocolError(f"expected a welcome, got {type(msg).__name__}")
        raise ProtocolError(f"no welcome from the verifier within {timeout_s:.0f} s")

    def serve(self, drafter: Drafter, beat: Callable[[], None]) -> None:
        """Draft until Shutdown comes."""
        while True:
            beat()
            self.ring.count_bytes(self.channel.bytes_in, self.channel.bytes_out)
            self.ring.enter(Activity.IDLE)
            if not self.early and not self.channel.poll(POLL_MS):
                continue
            self.ring.enter(Activity.IPC)
            received, self.early = self.early or self.channel.receive_all(), []
            tasks = []
            for msg in received:
                if isinstance(msg, Shutdown):
                    self.close()
                    return
                if isinstance(msg, DraftTask):
                    tasks.append(msg.order)
            if not tasks:
                continue
            self.ring.enter(Activity.DRAFT, tasks[0].branch_id if len(tasks) == 1 else -1, len(tasks))
            proposals = drafter.draft(tasks, self._announce)
            self.ring.enter(Activity.IPC)
            for proposal in proposals:
                self.channel.send(proposal)

    def _announce(self, task: DraftOrder) -> None:
        self.channel.send(ContextReady(task.branch_id, task.round, task.epoch))

    def close(self) -> None:
        self.channel.close()
        self.ring.close()
        self.context.term()
