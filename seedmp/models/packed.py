"""Packed forwards of an unmodified transformers model over a KV arena.

One forward is one row of T tokens that may belong to many branches; what each may attend to is a
boolean matrix over slots. Letters: T rows, S slots of the arena, K key columns of this forward, H KV
heads, D head size, V vocabulary.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from seedmp.models import branch_attention
from seedmp.models.features import FeatureTap

GATHER_SLACK = 64  # columns; below that, masking unused slots is cheaper than gathering the used ones


class ArenaCache(Cache):
    """A transformers cache whose keys and values live in an arena, at slots that the caller chose.

    ``update`` writes K/V of the T rows at ``slots`` and returns the columns that this forward may
    read: a view of the arena up to the last slot needed, or the gathered ``columns``.
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self.arena = arena
        self.layers: list[Any] = []
        self.slots = torch.empty(0, dtype=torch.long)
        self.columns: torch.Tensor | None = None
        self.num_columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions and mask are always given

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [1, H, T, D] keys and values, return [1, H, K, D] views."""
        layer = self.arena[layer_idx]
        layer[0].index_copy_(0, self.slots, key_states[0].transpose(0, 1))
        layer[1].index_copy_(0, self.slots, value_states[0].transpose(0, 1))
        columns = layer[:, : self.num_columns] if self.columns is None else layer.index_select(1, self.columns)
        keys, values = columns.transpose(1, 2).unsqueeze(1).unbind(0)
        return keys, values


class PackedModel:
    """A causal language model and its arena."""

    def __init__(self, model: Any, arena: torch.Tensor, vocab_size: int) -> None:
        self.model = model
        self.cache = ArenaCache(arena)
        self.vocab_size = vocab_size
        self.device = arena.device
        self.dtype = arena.dtype
        self.forward_ns = 0  # spent in the model, for the overhead figure
        self.positions = np.zeros(arena.shape[2], dtype=np.int64)
        config = model.config.get_text_config(decoder=True)
        self.window = getattr(config, "sliding_window", None)
        if getattr(config, "use_sliding_window", True) is False:
            self.window = None
        layer_types = set(getattr(config, "layer_types", None) or ())
        self.has_mask_per_kind = bool(layer_types) and "attention_mask, dict" in inspect.getsource(
            type(_backbone(model)).forward
        )
        self.tap: FeatureTap | None = None  # set where a draft head needs the hidden states
        self.floor = torch.finfo(self.dtype).min
        self.can_split = config._attn_implementation in ("sdpa", branch_attention.NAME)
        if self.can_split:
            config._attn_implementation = branch_attention.NAME

    def note_positions(self, slots: np.ndarray) -> None:
        """Learn that ``slots`` hold positions 0, 1, ...: another process wrote them."""
        self.positions[slots] = np.arange(len(slots))

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[int],
        positions: Sequence[int],
        slots: Sequence[int],
        allowed: np.ndarray,
        wanted_rows: Sequence[int] | None,
        branch_lengths: Sequence[int] = (),
    ) -> torch.Tensor:
        """Run the model once.

        Args:
            token_ids: [T].
            positions: [T] position of each token in its branch.
            slots: [T] where K/V of each row go.
            allowed: [T, S or fewer] bool; row t may attend to slot s. Must include the row's own slot.
            wanted_rows: rows whose logits are needed; None runs for the KV alone.
            branch_lengths: rows of each branch, in order, if they are known: branches that share little are then
                attended for one by one, and the result differs by rounding alone.

        Returns:
            [len(wanted_rows), V] logits on the model's device, float32 or the model's dtype.
        """
        slot_array = np.asarray(slots, dtype=np.int64)
        position_array = np.asarray(positions, dtype=np.int64)
        self.positions[slot_array] = position_array
        split = branch_attention.split_by_branch(allowed, branch_lengths, self.device) if self.can_split else None
        self.cache.columns, self.cache.num_columns = None, self.cache.arena.shape[2]
        if split is not None:
            allowed, column_positions = split.allowed, self.positions[split.columns]
        else:
            allowed, column_positions = self._columns(allowed)
        self.cache.slots = torch.from_numpy(slot_array).to(self.device)
        keep = torch.tensor([0] if wanted_rows is None else list(wanted_rows), device=self.device)
        inputs = {
            "input_ids": torch.tensor([list(token_ids)], device=self.device),
            "position_ids": torch.from_numpy(position_array)[None].to(self.device),
            "attention_mask": self._masks(allowed, position_array, column_positions),
        }
        start_ns = time.monotonic_ns()
        with branch_attention.attending(split):
            logits = self._call(inputs, keep)
        if self.tap is not None:
            self.tap.store(self.cache.slots)
        self.forward_ns += time.monotonic_ns() - start_ns
        return logits[:, : self.vocab_size] if wanted_rows is not None else logits[:0]

    def _columns(self, allowed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What all rows read together: a view of the arena's beginning, or the slots that are used."""
        used = np.flatnonzero(allowed.any(axis=0))
        num_columns = int(used[-1]) + 1
        if num_columns > 1.25 * len(used) + GATHER_SLACK:
            self.cache.columns = torch.from_numpy(used).to(self.device)
            return allowed[:, used], self.positions[used]
        self.cache.num_columns = num_columns
        return allowed[:, :num_columns], self.positions[:num_columns]

    def _call(self, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """[len(keep), V] logits."""
        logits: torch.Tensor = self.model(
            **inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=keep
        ).logits[0]
        return logits

    def _masks(self, allowed: np.ndarray, positions: np.ndarray, column_positions: np.ndarray) -> Any:
        """The additive mask [1, 1, T, K], or one for each kind of attention; columns are [K] or [T, K]."""
        full = self._additive(allowed)
        if self.window is None:
            return {"full_attention": full, "sliding_attention": full} if self.has_mask_per_kind else full
        near = allowed & (positions[:, None] - column_positions < self.window)
        sliding = self._additive(near)
        return {"full_attention": full, "sliding_attention": sliding} if self.has_mask_per_kind else sliding

    def _additive(self, allowed: np.ndarray) -> torch.Tensor:
        mask = torch.zeros(allowed.shape, dtype=self.dtype).masked_fill_(torch.from_numpy(~allowed), self.floor)
        return mask[None, None].to(self.device)


def _backbone(model: Any) -> torch.nn.Module:
    backbone: torch.nn.Module = model.base_model
    return backbone


def max_positions(config: Any) -> int:
    """Positions that a model allows; very many where its configuration names no limit."""
    text_config = config.get_text_config(decoder=True)
    return int(getattr(text_config, "max_position_embeddings", None) or 1 << 20)
