"""The eager runner: an unmodified transformers model over a KV arena, its operations called one by one.

One forward is one row of T tokens that may belong to many branches; what each may attend to is a boolean matrix over
slots. Letters: T rows, S slots of the arena, K key columns of this forward, W wanted rows, H KV heads, D head size,
V vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache

from seedmp.ipc.arena import NUM_GHOSTS, publish_barrier
from seedmp.models.adapters import adapt
from seedmp.models.branch_attention import Attention, Reach, attending, layer_reaches, route_attention, split_by_branch
from seedmp.models.buckets import Buckets
from seedmp.models.features import FeatureTap
from seedmp.models.overflow import Spoilt, are_sound, have_overflowed, may_have_overflowed
from seedmp.models.prepack import prepack_linears
from seedmp.models.rope import route_ropes
from seedmp.models.rows import Rows

GATHER_SLACK = 64  # columns; below that, masking unused slots is cheaper than gathering the used ones


@dataclass(frozen=True)
class Inputs:
    """What a forward gets, on the model's device.

    Args:
        token_ids: [1, T].
        positions: [1, T].
        slots: [T] where K and V of each row go.
        keep: [W] rows whose logits are computed; row 0 where none is wanted.
        attention: masks, and the division by branches.
        columns: [K] slots that are gathered, or None for a view of the arena's beginning.
        num_columns: K of the view.
        num_rows: T without ghosts.
        num_wanted: W without repetitions.
        plan: what a runner of another kind attends by, instead of masks.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    keep: torch.Tensor
    attention: Attention
    columns: torch.Tensor | None
    num_columns: int
    num_rows: int
    num_wanted: int
    plan: Any = None


class ArenaCache(Cache):
    """A transformers cache whose keys and values live in an arena, at slots that the caller chose.

    ``update`` writes K and V of the T rows at ``slots`` and returns the columns that this forward may
    read: a view of the arena up to the last slot needed, or the gathered ``columns``. With ``overflowed``, rows that
    are not sound are noted there and written as 0.
    """

    def __init__(self, arena: torch.Tensor) -> None:
        self.arena = arena
        self.layers: list[Any] = []
        self.slots = torch.empty(0, dtype=torch.long)
        self.columns: torch.Tensor | None = None
        self.num_columns = 0
        self.overflowed: torch.Tensor | None = None  # [T] bool

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions and mask are always given

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [1, H, T, D] keys and values, return [1, H, K, D] views."""
        layer = self.arena[layer_idx]
        if self.overflowed is not None:
            is_sound = are_sound(key_states[0], (0, 2)) & are_sound(value_states[0], (0, 2))
            self.overflowed |= ~is_sound
            key_states, value_states = (x.where(is_sound[:, None], 0.0) for x in (key_states, value_states))
        _fitting(layer[0], key_states).index_copy_(0, self.slots, key_states[0].transpose(0, 1))
        _fitting(layer[1], value_states).index_copy_(0, self.slots, value_states[0].transpose(0, 1))
        columns = layer[:, : self.num_columns] if self.columns is None else layer.index_select(1, self.columns)
        keys, values = columns.transpose(1, 2).unsqueeze(1).unbind(0)
        if keys.shape[1::2] != key_states.shape[1::2] or values.shape[1::2] != value_states.shape[1::2]:
            keys = keys[:, : key_states.shape[1], :, : key_states.shape[3]]
            values = values[:, : value_states.shape[1], :, : value_states.shape[3]]
        return keys, values


def _fitting(slots: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """The part of [S, H, D] that [1, heads, T, size] states of a layer fill: some layers, or values, are smaller."""
    _, heads, _, size = states.shape
    return slots if slots.shape[1:] == (heads, size) else slots[:, :heads, :size]


class EagerRunner:
    """A ``Runner`` that calls the model as it is.

    Args:
        model: a transformers causal language model in eval mode; its attention is routed through
            ``seedmp.models.branch_attention``.
        arena: [L, 2, S + ghosts, H, D], as ``seedmp.ipc.arena.ArenaLayout`` has it.
        vocab_size: V.
        tap: stores hidden states of the rows; None where no draft head needs them.
        buckets: sizes to fill up to; None runs each forward in its own size.

    Raises:
        ConfigError: a layer attends in a way that is not served.
    """

    def __init__(
        self,
        model: Any,
        arena: torch.Tensor,
        vocab_size: int,
        tap: FeatureTap | None = None,
        buckets: Buckets | None = None,
    ) -> None:
        self.model = model
        self.vocab_size = vocab_size
        self.device = arena.device
        self.dtype = arena.dtype
        self.num_slots = arena.shape[2] - NUM_GHOSTS
        self.busy_ns = 0
        self._cache = ArenaCache(arena)
        self._tap = tap
        self._buckets = buckets
        self._spoilt = Spoilt(arena.shape[2])
        # Compressed keys are expanded for all columns that a layer gets: these should be few.
        self._is_compressed = getattr(model.config.get_text_config(decoder=True), "kv_lora_rank", None) is not None
        self._floor = torch.finfo(self.dtype).min
        self._is_routed = route_attention(model)
        self._needs_positions = adapt(model)
        self._rope = route_ropes(model)
        self._reaches = layer_reaches(model.config)

    @staticmethod
    def pack(model: Any) -> Any:
        """As ``seedmp.models.runner.pack_model``: linear layers as this CPU reads them best."""
        prepack_linears(model)
        return model

    @torch.inference_mode()
    def run(self, rows: Rows) -> torch.Tensor:
        """As ``Runner.run``."""
        inputs = self.prepare(rows)
        start_ns = time.monotonic_ns()
        logits, overflowed = self._launch(inputs), None
        if may_have_overflowed(logits) or not (shows_all(rows) or self._wrote_soundly(inputs)):
            logits, overflowed = self._launch_guarded(rows, inputs)
            logits = logits.masked_fill(have_overflowed(logits)[:, None], torch.nan)
        spoilt = self._spoilt.note(rows, overflowed)
        if spoilt is not None and len(rows.wanted):
            logits = logits.masked_fill(self._on_device(spoilt[rows.wanted])[:, None], torch.nan)
        self.busy_ns += time.monotonic_ns() - start_ns
        if self._tap is not None and self._tap.arena is not None:
            publish_barrier(self._tap.arena)  # drafts are told of the slots next
        return logits

    def publish(self) -> None:
        """As ``Runner.publish``."""
        publish_barrier(self._cache.arena)

    def prepare(self, rows: Rows) -> Inputs:
        """The host's part of a forward: what the device needs, in shapes of ``buckets``."""
        num_rows, num_wanted = len(rows.token_ids), len(rows.wanted)
        if self._buckets is not None:
            rows = self._buckets.fill(rows, ghost_slot=self.num_slots)
        split = None
        if self._is_routed and not self._is_compressed:
            split = split_by_branch(rows.allowed, rows.lengths, self.device)
        columns, num_columns = None, self._cache.arena.shape[2]
        column_slots: np.ndarray | slice
        if split is not None:
            column_slots, allowed = split.columns, split.allowed
        else:
            column_slots, allowed = self._columns(rows.allowed)
            if isinstance(column_slots, slice):
                num_columns = column_slots.stop
            else:
                columns = self._on_device(column_slots)
        return Inputs(
            self._on_device(rows.token_ids)[None],
            self._on_device(rows.positions)[None],
            self._on_device(rows.slots),
            self._on_device(rows.wanted if num_wanted else np.zeros(1, dtype=np.int64)),
            Attention(
                self._masks(rows, allowed, column_slots), self._reaches, split,
                self._on_device(self._positions_of(rows, column_slots)) if self._needs_positions else None,
                None if self._rope is None else rows.rope_lens(self._rope.length),
            ),
            columns, num_columns, num_rows, num_wanted,
        )  # fmt: skip

    def _launch(self, inputs: Inputs) -> torch.Tensor:
        """The device's part: [wanted rows, V] logits."""
        cache = self._cache
        cache.slots, cache.columns, cache.num_columns = inputs.slots, inputs.columns, inputs.num_columns
        with attending(inputs.attention):
            logits = self._call(inputs)
        if self._tap is not None:
            self._tap.store(inputs.slots[: inputs.num_rows])
        return logits[: inputs.num_wanted, : self.vocab_size]

    def _wrote_soundly(self, inputs: Inputs) -> bool:
        return bool(are_sound(self._cache.arena.index_select(2, inputs.slots)))

    def _launch_guarded(self, rows: Rows, inputs: Inputs) -> tuple[torch.Tensor, np.ndarray]:
        """The same again, after some row overflowed: it may have spoilt the rows beside it, or been spoilt itself.

        Returns:
            the logits, and [T] bool rows whose K or V overflowed; the arena has 0 instead.
        """
        arena = self._cache.arena
        num_read = arena.shape[2] if inputs.columns is None and inputs.attention.split is None else 0
        num_read = max(min(num_read, inputs.num_columns), rows.allowed.shape[1])
        is_stale = ~are_sound(arena[:, :, :num_read], (0, 1, 3, 4))
        is_stale[inputs.slots[inputs.slots < num_read]] = False  # written again
        stale = is_stale.nonzero()[:, 0]
        arena.index_fill_(2, stale, 0)
        self._spoilt.add(stale.cpu().numpy())
        self._cache.overflowed = torch.zeros(len(inputs.slots), dtype=torch.bool, device=self.device)
        try:
            logits = self._launch(inputs)
            return logits, self._cache.overflowed[: inputs.num_rows].cpu().numpy()
        finally:
            self._cache.overflowed = None

    def _call(self, inputs: Inputs) -> torch.Tensor:
        """[W, V or more] logits."""
        logits: torch.Tensor = self.model(
            input_ids=inputs.token_ids,
            position_ids=inputs.positions,
            attention_mask=inputs.attention.any_mask,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=inputs.keep,
        ).logits[0]
        return logits

    def _columns(self, allowed: np.ndarray) -> tuple[np.ndarray | slice, np.ndarray]:
        """What all rows read together: a view of the arena's beginning, or the slots that are used.

        Returns:
            [K] slots, and [T, K] bool which of them each row sees.
        """
        used = np.flatnonzero(allowed.any(axis=0))
        num_columns = int(used[-1]) + 1
        if num_columns > 1.25 * len(used) + GATHER_SLACK:
            num_fill = self._num_columns(len(used)) - len(used)
            return (np.pad(used, (0, num_fill)) if num_fill else used), _fill_columns(allowed[:, used], num_fill)
        filled = min(self._num_columns(num_columns), self._cache.arena.shape[2])
        return slice(filled), _fill_columns(allowed[:, :num_columns], filled - num_columns)

    def _num_columns(self, num: int) -> int:
        return num if self._buckets is None else self._buckets.num_columns(num)

    def _masks(
        self, rows: Rows, allowed: np.ndarray, column_slots: np.ndarray | slice
    ) -> dict[Reach | None, torch.Tensor]:
        """The additive mask [1, 1, T, K] of each reach that a layer has; columns are [K] or [T, K]."""
        last_position = int(rows.positions.max())
        masks: dict[Reach | None, torch.Tensor] = {}
        everything = column_positions = None
        for reach in dict.fromkeys(self._reaches):
            if reach is None or last_position < reach.size:
                everything = self._additive(allowed) if everything is None else everything
                masks[reach] = everything
                continue
            if column_positions is None:
                column_positions = self._positions_of(rows, column_slots)
            masks[reach] = self._additive(allowed & reach.covers(rows.positions, column_positions))
        return masks

    def _positions_of(self, rows: Rows, column_slots: np.ndarray | slice) -> np.ndarray:
        return rows.slot_positions(self._cache.arena.shape[2])[column_slots]

    def _additive(self, allowed: np.ndarray) -> torch.Tensor:
        mask = torch.zeros(allowed.shape, dtype=self.dtype).masked_fill_(torch.from_numpy(~allowed), self._floor)
        return mask[None, None].to(self.device)

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.device)


def shows_all(rows: Rows) -> bool:
    """Whether an overflow of any row shows in the wanted logits: all others are followed by a wanted row."""
    return all(len(b) - b.num_wanted < max(1, len(b.chain_ids)) for b in rows.branches)


def _fill_columns(allowed: np.ndarray, num: int) -> np.ndarray:
    """With so many columns more, that nobody sees."""
    return np.pad(allowed, ((0, 0), (0, num))) if num else allowed
