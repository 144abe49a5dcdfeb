"""Drafting with an EAGLE head: trees that grow from the target's hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from seedmp.models.eagle_runner import HeadRunner, head_rows
from seedmp.models.rows import pack_rows
from seedmp.workers.draft import TreeInProgress


class HeadModel:
    """A ``DraftModel`` that is a head; it grows adaptive trees.

    Pending tokens run with the target's features, read from its feature arena at the slots that the task names.
    Drafted tokens run with what the head itself made of their parents. Their KV is not kept when they are
    accepted: they come back as pending tokens, with true features, so all KV that stays is of true features.

    Args:
        runner: of the head.
        features: [S, F] the target's feature arena; read, never written.

    Runs in: draft process, main thread.
    """

    keeps_nodes = False

    def __init__(self, runner: HeadRunner, features: torch.Tensor) -> None:
        self.runner = runner
        self.features = features
        self.num_tokens = runner.vocab_size
        self.publish = runner.publish
        self._made: dict[int, torch.Tensor] = {}  # by tree: the head's features of its root and drafted nodes

    @property
    def busy_ns(self) -> int:
        """As ``DraftModel``."""
        return self.runner.busy_ns

    def run_context(self, trees: Sequence[TreeInProgress]) -> torch.Tensor:
        """As ``DraftModel``."""
        rows, kept = head_rows(pack_rows([tree.context_rows() for tree in trees]))
        slots = np.concatenate([tree.feature_slots for tree in trees])[kept].astype(np.int64)
        features = self.features[torch.from_numpy(slots).to(self.features.device)]
        logits = self.runner.run_with(rows, features, own=False)
        self._made = {id(tree): made[None] for tree, made in zip(trees, self.runner.own_features, strict=True)}
        return logits

    def run_layer(self, trees: Sequence[TreeInProgress]) -> torch.Tensor:
        """As ``DraftModel``."""
        rows, _ = head_rows(pack_rows([tree.layer_rows() for tree in trees]))
        parents = [
            self._made[id(tree)][[parent + 1 for parent in tree.drafted_parents[-tree.num_rows :]]]  # 0: the root
            for tree in trees
        ]
        logits = self.runner.run_with(rows, torch.cat(parents), own=True)
        at = 0
        for tree in trees:
            self._made[id(tree)] = torch.cat([self._made[id(tree)], self.runner.own_features[at : at + tree.num_rows]])
            at += tree.num_rows
        return logits

    def token_ids(self, columns: np.ndarray) -> np.ndarray:
        """As ``DraftModel``: the head may know fewer tokens than its target."""
        token_ids: np.ndarray = self.runner.target_ids[columns]
        return token_ids
