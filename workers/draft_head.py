"""Drafting with an EAGLE head: trees that grow from the target's hidden states."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from seedmp.decoding.propose import likeliest
from seedmp.draft_order import DraftOrder
from seedmp.ipc.messages import Proposal
from seedmp.models.eagle import PackedHead
from seedmp.token_tree.opt_tree import NOT_DRAFTED
from seedmp.workers.draft import TreeDrafter, _Growing, _Way


class HeadDrafter(TreeDrafter):
    """Grows adaptive trees of several tasks at once, as ``TreeDrafter`` does, with a head instead of a model.

    Pending tokens run with the target's features, read from its feature arena at the slots that the task names.
    Drafted tokens run with what the head itself made of their parents. Their KV is not kept when they are
    accepted: they come back as pending tokens, with true features, so all KV that stays is of true features.

    Args:
        packed: the head.
        features: [S, F] the target's feature arena; read, never written.

    Runs in: draft process, main thread.
    """

    def __init__(
        self, packed: PackedHead, features: torch.Tensor, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        super().__init__(packed, top_m=1, clock_ns=clock_ns)
        self.head = packed
        self.features = features
        self.own: dict[int, torch.Tensor] = {}  # by task: the head's features of its root and drafted nodes

    def draft(self, tasks: list[DraftOrder], on_context: Callable[[DraftOrder], None]) -> list[Proposal]:
        """As ``TreeDrafter.draft``."""
        self.own = {}
        return super().draft(tasks, on_context)

    def _forward_context(self, growing: list[_Growing]) -> torch.Tensor:
        for g in growing:  # the first token has a slot, but no row: nobody sees it
            first = g.task.context_slots if len(g.task.context_slots) else g.task.slots
            g.allowed[:, first[0]] = False
        token_ids, positions, slots, allowed, wanted = self._context_rows(growing)
        rows = [row for row, position in enumerate(positions) if position > 0]
        feature_slots = np.concatenate([g.task.feature_slots for g in growing])[rows]
        logits = self.head.forward_features(
            [token_ids[row] for row in rows],
            [positions[row] - 1 for row in rows],
            [slots[row] for row in rows],
            allowed[rows],
            [rows.index(row) for row in wanted],
            self.features[torch.from_numpy(feature_slots.astype(np.int64)).to(self.features.device)],
            own=False,
        )
        for g, made in zip(growing, self.head.own_features, strict=True):
            self.own[id(g)] = made[None]
        return logits

    def _forward_layer(self, growing: list[_Growing]) -> torch.Tensor:
        token_ids, positions, slots, allowed, wanted = self._layer_rows(growing)
        parents = []
        for g in growing:
            assert g.builder.layer is not None
            parents.append(self.own[id(g)][[parent + 1 for parent in g.builder.layer.parents]])  # NO_PARENT: the root
        before = [position - 1 for position in positions]
        logits = self.head.forward_features(token_ids, before, slots, allowed, wanted, torch.cat(parents), own=True)
        at = 0
        for g in growing:
            self.own[id(g)] = torch.cat([self.own[id(g)], self.head.own_features[at : at + g.num_rows]])
            at += g.num_rows
        return logits

    def _add_candidates(self, growing: list[_Growing], way: _Way, logits: torch.Tensor) -> None:
        token_ids, log_probs = likeliest(logits, way.layer_width, None, way.temperature)
        at = 0
        for g in growing:
            rows = slice(at, at + g.num_rows)
            at = rows.stop
            g.add_candidates(log_probs[rows], self.head.target_ids[token_ids[rows]])

    def _proposal(self, g: _Growing, started_ns: int) -> Proposal:
        proposal = super()._proposal(g, started_ns)
        return replace(proposal, drafted_idx=(NOT_DRAFTED,) * len(proposal.token_ids))
