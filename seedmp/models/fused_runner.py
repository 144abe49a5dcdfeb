"""The fused runner: the eager runner's preparation, and a forward of few operations for Llama-like models."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from seedmp.models.branch_attention import Attention
from seedmp.models.eager import EagerRunner, Inputs
from seedmp.models.features import FeatureTap
from seedmp.models.fused import FusedModel, why_not_fused
from seedmp.models.native.attention import MAX_CHAIN, NativePlan
from seedmp.models.rows import Rows
from seedmp.models.runner import Runner


class FusedRunner(EagerRunner):
    """A ``Runner`` of a ``FusedModel``.

    Args:
        model: what ``pack`` gave, or a transformers model that it takes.
        arena: as ``EagerRunner``.
        vocab_size: as ``EagerRunner``.
        tap: as ``EagerRunner``.

    Raises:
        ConfigError: the model is not Llama-like.
    """

    def __init__(self, model: Any, arena: torch.Tensor, vocab_size: int, tap: FeatureTap | None = None) -> None:
        self._fused = model if isinstance(model, FusedModel) else FusedModel(model)
        super().__init__(self._fused, arena, vocab_size, tap)
        self._frequencies: np.ndarray = self._fused.frequencies.cpu().numpy()

    @staticmethod
    def pack(model: Any) -> FusedModel:
        """As ``seedmp.models.runner.pack_model``."""
        return FusedModel(model, used_up=True)

    def prepare(self, rows: Rows) -> Inputs:
        """As ``EagerRunner``; without masks where the C part attends."""
        plan = self._plan(rows)
        if plan is None:
            return super().prepare(rows)
        num_wanted = len(rows.wanted)
        keep = rows.wanted if num_wanted else np.zeros(1, dtype=np.int64)
        ids, positions, slots, kept = map(torch.from_numpy, (rows.token_ids, rows.positions, rows.slots, keep))
        attention = Attention({}, self._reaches)
        return Inputs(ids[None], positions[None], slots, kept, attention, None, 0, len(ids), num_wanted, plan)

    def _plan(self, rows: Rows) -> NativePlan | None:
        """Lists for the C part, or None where a matrix and torch's kernels serve better."""
        if self._fused.native is None:
            return None
        if max(len(b.chain_ids) for b in rows.branches) > MAX_CHAIN:
            return None
        last_position = int(rows.positions.max())
        if any(reach is not None and last_position >= reach.size for reach in self._reaches):
            return None
        return NativePlan(rows, self._frequencies, self._fused.scaling)

    def _launch_guarded(self, rows: Rows, inputs: Inputs) -> tuple[torch.Tensor, np.ndarray]:
        return super()._launch_guarded(rows, super().prepare(rows))

    def _call(self, inputs: Inputs) -> torch.Tensor:
        return self._fused.logits(
            inputs.token_ids[0], inputs.positions[0], inputs.keep, self._cache, self._tap, inputs.plan
        )


class FusedOrEager:
    """Makes the fused runner of a Llama-like model on a CPU, else the eager one."""

    def pack(self, model: Any) -> Any:
        """As ``seedmp.models.runner.pack_model``."""
        return self._kind_for(model).pack(model)

    def __call__(self, model: Any, arena: torch.Tensor, vocab_size: int, tap: FeatureTap | None = None) -> Runner:
        """Args as ``EagerRunner``."""
        return self._kind_for(model)(model, arena, vocab_size, tap)

    def _kind_for(self, model: Any) -> type[EagerRunner]:
        if isinstance(model, FusedModel):
            return FusedRunner
        return FusedRunner if model.device.type == "cpu" and not why_not_fused(model) else EagerRunner


FUSED_OR_EAGER = FusedOrEager()
