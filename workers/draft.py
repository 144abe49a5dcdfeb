"""The draft worker: grows token trees for whatever branches it is sent, several in one forward."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq

from seedmp.decoding.propose import Children, DraftLaw, noise_size, propose_children
from seedmp.errors import ProtocolError
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
from seedmp.models.packed import PackedModel
from seedmp.sampling import Noise, Purpose
from seedmp.token_tree.tree import NO_PARENT, ProposalKind

POLL_MS = 500


class _Growing:
    """One task while its tree grows: nodes in level order, what each may attend to, its laws."""

    def __init__(self, task: DraftTask, num_columns: int) -> None:
        self.task = task
        self.noise = Noise(task.seed, task.stream)
        self.num_pending = len(task.pending_ids)
        self.root_position = len(task.context_slots) + self.num_pending - 1
        visible = np.zeros(num_columns, dtype=bool)
        visible[task.context_slots] = True
        self.allowed = np.broadcast_to(visible, (self.num_pending, num_columns)).copy()
        pending_slots = task.slots[: self.num_pending]
        self.allowed[:, pending_slots] = np.tri(self.num_pending, dtype=bool)
        self.root_visible = self.allowed[-1]
        self.visible: list[np.ndarray] = []  # per node that has a slot
        self.token_ids: list[int] = []
        self.parents: list[int] = []
        self.frontier = [NO_PARENT]
        self.row_ids: list[np.ndarray] = []
        self.row_probs: list[np.ndarray] = []

    def gumbel(self, level: int, num: int) -> list[np.ndarray]:
        """Noise for the children of each frontier node; addressed, so that no timing matters."""
        position = self.root_position + 1 + level
        return [self.noise.gumbel(position, Purpose.DRAFT_TOKEN, num, parent + 1) for parent in self.frontier]

    def add_level(self, children: Children, first: int, is_last: bool) -> None:
        """Append the children of the frontier, rows ``first`` and on of ``children``."""
        frontier = []
        for row, parent in enumerate(self.frontier, first):
            for token_id in children.token_ids[row].tolist():
                node_idx = len(self.token_ids)
                self.token_ids.append(token_id)
                self.parents.append(parent)
                frontier.append(node_idx)
                if not is_last:
                    seen = (self.root_visible if parent == NO_PARENT else self.visible[parent]).copy()
                    seen[self.slot_of(node_idx)] = True
                    self.visible.append(seen)
        rows = slice(first, first + len(self.frontier))
        self.row_ids.append(children.row_ids[rows])
        self.row_probs.append(children.row_probs[rows])
        self.frontier = frontier

    def slot_of(self, node_idx: int) -> int:
        return int(self.task.slots[self.num_pending + node_idx])


class TreeDrafter:
    """Grows the trees of several tasks level by level, all of a level in one forward."""

    def __init__(self, packed: PackedModel, top_m: int, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.packed = packed
        self.top_m = top_m
        self.clock_ns = clock_ns
        self.forward_before_ns = 0

    def draft(self, tasks: list[DraftTask], on_context: Callable[[DraftTask], None]) -> list[Proposal]:
        """One proposal for each task, in order.

        ``on_context`` is called for tasks with ``announce`` once their pending tokens are in the arena.
        """
        started_ns, self.forward_before_ns = self.clock_ns(), self.packed.forward_ns
        num_columns = 1 + max(int(array.max(initial=0)) for task in tasks for array in (task.context_slots, task.slots))
        growing = [_Growing(task, num_columns) for task in tasks]
        proposals: dict[int, Proposal] = {}
        num_levels = max(len(task.k_config) for task in tasks)
        for level in range(num_levels):
            active = [g for g in growing if level < len(g.task.k_config)]
            logits = self._forward_context(active) if level == 0 else self._forward_frontier(active)
            if level == 0 and any(g.task.announce for g in active):
                publish_barrier(self.packed.cache.arena)
                for g in active:
                    if g.task.announce:
                        on_context(g.task)
            self._add_level(active, level, logits)
            done = [g for g in active if level == len(g.task.k_config) - 1]
            if done:
                publish_barrier(self.packed.cache.arena)
            for g in done:
                proposals[id(g)] = self._proposal(g, started_ns)
        return [proposals[id(g)] for g in growing]

    def _forward_context(self, growing: list[_Growing]) -> torch.Tensor:
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
        return self.packed.forward(token_ids, positions, slots, allowed, wanted)

    def _forward_frontier(self, growing: list[_Growing]) -> torch.Tensor:
        token_ids, positions, slots, allowed = [], [], [], []
        for g in growing:
            depth = len(g.row_ids)
            for node_idx in g.frontier:
                token_ids.append(g.token_ids[node_idx])
                positions.append(g.root_position + depth)
                slots.append(g.slot_of(node_idx))
                allowed.append(g.visible[node_idx])
        return self.packed.forward(token_ids, positions, slots, np.stack(allowed), range(len(token_ids)))

    def _add_level(self, growing: list[_Growing], level: int, logits: torch.Tensor) -> None:
        """Draw children; tasks that share law and width are drawn together."""
        alike: dict[tuple[int, ProposalKind, float], list[tuple[_Growing, int]]] = {}
        first = 0
        for g in growing:
            key = (g.task.k_config[level], g.task.kind, g.task.draft_temperature)
            alike.setdefault(key, []).append((g, first))
            first += len(g.frontier)
        num_pairs = min(self.top_m, self.packed.vocab_size)
        for (num_children, kind, temperature), members in alike.items():
            rows = [row for g, start in members for row in range(start, start + len(g.frontier))]
            chosen = logits if len(rows) == logits.shape[0] else logits[rows]
            size = noise_size(kind, num_children, num_pairs)
            noise = [row for g, _ in members for row in g.gumbel(level, size)] if size else []
            law = DraftLaw(temperature, self.top_m, self.packed.vocab_size)
            children = propose_children(chosen, num_children, kind, law, noise)
            at = 0
            for g, _ in members:
                width = len(g.frontier)
                g.add_level(children, at, level == len(g.task.k_config) - 1)
                at += width

    def _proposal(self, g: _Growing, started_ns: int) -> Proposal:
        task = g.task
        return Proposal(
            task.branch_id, task.round, task.epoch, started_ns, self.clock_ns(),
            self.packed.forward_ns - self.forward_before_ns,
            tuple(g.token_ids), tuple(g.parents), task.kind,
            np.concatenate(g.row_ids).astype("<i4"), np.concatenate(g.row_probs).astype("<f4"),
        )  # fmt: skip


class DraftServer:
    """Serves tasks from a socket until it is told to stop.

    Runs in: draft process, main thread.
    """

    def __init__(self, folder: Path, group: int, verifier_epoch: int, worker_id: int, epoch: int, layout: str) -> None:
        self.context = zmq.Context()
        self.channel = DealerChannel(
            self.context, draft_endpoint(folder, group, verifier_epoch), f"draft-{worker_id}-{epoch}".encode()
        )
        self.worker_id = worker_id
        self.epoch = epoch
        self.early: list[Any] = []  # what came with the welcome
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

    def serve(self, drafter: TreeDrafter, beat: Callable[[], None]) -> None:
        """Draft until Shutdown comes."""
        while True:
            beat()
            if not self.early and not self.channel.poll(POLL_MS):
                continue
            received, self.early = self.early or self.channel.receive_all(), []
            tasks = []
            for msg in received:
                if isinstance(msg, Shutdown):
                    self.close()
                    return
                if isinstance(msg, DraftTask):
                    tasks.append(msg)
            if not tasks:
                continue
            for proposal in drafter.draft(tasks, self._announce):
                self.channel.send(proposal)

    def _announce(self, task: DraftTask) -> None:
        self.channel.send(ContextReady(task.branch_id, task.round, task.epoch))

    def close(self) -> None:
        self.channel.close()
        self.context.term()
