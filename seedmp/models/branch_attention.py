"""Attention of packed rows, each branch over its own columns: what the others hold is never read.

Layers of a transformers model call ``branch_attention`` once the model is routed here. It takes the mask of the
layer's own window, and divides the rows by branches where that saves enough.

One masked attention over the union of all contexts costs rows x columns of every branch with every other. Here the
rows of a branch meet only the slots that one of them may see; branches of similar size are computed in one call.
Letters: T rows, G branches of a bucket, R rows and C columns of the largest of them, H heads, D head size.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from seedmp.errors import ConfigError, InternalError

MIN_SAVED = 1 << 14  # row-column pairs, the unit of cost here
COLUMN_COST = 64  # pairs that gathering a column for one branch costs; measured on CPUs: 71 at 5.8M parameters
MAX_PADDING = 1.5  # computed pairs of a bucket ÷ wanted ones


@dataclass(frozen=True)
class Bucket:
    """Branches that one call attends for.

    Args:
        rows: [G, R] rows of this forward; a shorter branch repeats its last.
        columns: [G, C] slots; a shorter branch repeats slot 0, masked.
        places: entries of the flattened ``rows`` that are no repetition.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    places: torch.Tensor


@dataclass(frozen=True)
class Split:
    """A forward by branches.

    Args:
        buckets: which together have every row once.
        columns: [T, largest C] slots that each row's columns are.
        allowed: [T, largest C] bool, which of them the row sees.
    """

    buckets: tuple[Bucket, ...]
    columns: np.ndarray
    allowed: np.ndarray


def split_by_branch(allowed: np.ndarray, lengths: Sequence[int], device: torch.device) -> Split | None:
    """Divide a forward by branches, or None where that would not save enough.

    Args:
        allowed: [T, S] bool, row t may attend to slot s.
        lengths: rows of each branch, in order; their sum is T.
        device: of the index tensors.
    """
    lengths = [length for length in lengths if length]
    if len(lengths) < 2 or allowed.size < MIN_SAVED:
        return None
    ends = np.cumsum(lengths)
    # One by one: a reduceat of all branches takes 50 times as long.
    seen_by = np.stack([allowed[end - length : end].any(axis=0) for end, length in zip(ends, lengths, strict=True)])
    seen = [np.flatnonzero(own) for own in seen_by]
    wanted = sum(length * len(slots) for length, slots in zip(lengths, seen, strict=True))
    together = len(allowed) * int(seen_by.any(axis=0).sum())
    if together < wanted + COLUMN_COST * sum(map(len, seen)) + MIN_SAVED:
        return None
    groups = [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    width = max(map(len, seen))
    columns = np.zeros((len(allowed), width), dtype=np.int64)
    own = np.zeros((len(allowed), width), dtype=bool)
    for rows, slots in zip(groups, seen, strict=True):
        columns[rows, : len(slots)] = slots
        own[rows, : len(slots)] = allowed[rows][:, slots]
    buckets = tuple(
        _bucket([groups[i] for i in members], [seen[i] for i in members], device)
        for members in _alike([(len(rows), len(slots)) for rows, slots in zip(groups, seen, strict=True)])
    )
    return Split(buckets, columns, own)


def _alike(sizes: Sequence[tuple[int, int]]) -> Iterator[list[int]]:
    """Indices of (rows, columns) that fit together without much padding, largest first."""
    members: list[int] = []
    wanted = 0
    largest = 0, 0
    for idx in sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True):
        num_rows, num_columns = sizes[idx]
        joined = max(largest[0], num_rows), max(largest[1], num_columns)
        pairs = wanted + num_rows * num_columns
        if members and (len(members) + 1) * joined[0] * joined[1] > MAX_PADDING * pairs:
            yield members
            members, pairs, joined = [], num_rows * num_columns, (num_rows, num_columns)
        members.append(idx)
        wanted, largest = pairs, joined
    yield members


def _bucket(rows: Sequence[np.ndarray], slots: Sequence[np.ndarray], device: torch.device) -> Bucket:
    shape = len(rows), max(map(len, rows)), max(map(len, slots))
    row_idx = np.zeros(shape[:2], dtype=np.int64)
    columns = np.zeros((shape[0], shape[2]), dtype=np.int64)
    real = np.zeros(shape[:2], dtype=bool)
    for i, (own_rows, own_slots) in enumerate(zip(rows, slots, strict=True)):
        row_idx[i] = own_rows[-1]
        row_idx[i, : len(own_rows)] = own_rows
        real[i, : len(own_rows)] = True
        columns[i, : len(own_slots)] = own_slots
    index = [torch.from_numpy(array).to(device) for array in (row_idx, columns, np.flatnonzero(real))]
    return Bucket(*index)


# --- what a layer sees ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reach:
    """How far back a layer sees.

    Args:
        size: a row sees the last so many positions, its own included.
        in_chunks: it sees positions of its own chunk of this size instead.
    """

    size: int
    in_chunks: bool = False

    def covers(self, positions: np.ndarray, column_positions: np.ndarray) -> np.ndarray:
        """[T, K] bool for rows [T] and columns [K] or [T, K]."""
        rows = positions[:, None]
        if self.in_chunks:
            return np.asarray(rows // self.size == column_positions // self.size)
        return np.asarray(rows - column_positions < self.size)


@dataclass(frozen=True)
class Attention:
    """What the layers of one forward attend to.

    Args:
        masks: additive [1, 1, T, columns] for each reach that a layer has; None reaches everything. With a division,
            columns are those of ``Split.columns``.
        reaches: of each layer.
        split: a division by branches; None attends for all rows together.
        column_positions: [columns] position of the token in each column, for models that need it.
        rope_lens: [T] length of the text whose angles each row has, 0: the ordinary ones; None: all have those.
    """

    masks: dict[Reach | None, torch.Tensor]
    reaches: tuple[Reach | None, ...]
    split: Split | None = None
    column_positions: torch.Tensor | None = None
    rope_lens: np.ndarray | None = None

    @property
    def any_mask(self) -> torch.Tensor:
        """To be given to the model: its layers take their own from ``masks`` if they are routed here."""
        return next(iter(self.masks.values()))

    def mask_of(self, module: Any, asked_window: int | None) -> torch.Tensor:
        """The mask of an attention layer.

        Args:
            module: the layer; ``layer_idx`` says which.
            asked_window: the window that its model names in the call; many name none.

        Raises:
            InternalError: the model names another window than its configuration.
        """
        reach = self.reaches[0] if len(self.masks) == 1 else self.reaches[module.layer_idx]
        if asked_window is not None and (reach is None or asked_window != reach.size):
            raise InternalError(
                f"{type(module).__name__} asks for a window of {asked_window} positions, but its model's configuration "
                f"says {reach}: this model is not served"
            )
        return self.masks[reach]


def layer_reaches(config: Any) -> tuple[Reach | None, ...]:
    """How far back each layer sees; None is everything.

    Raises:
        ConfigError: a layer attends otherwise.
    """
    text_config = config.get_text_config(decoder=True)
    window = getattr(text_config, "sliding_window", None)
    if getattr(text_config, "use_sliding_window", True) is False:
        window = None
    chunk = getattr(text_config, "attention_chunk_size", None)
    local = getattr(text_config, "window_size", None)
    reach_of = {
        "full_attention": None,
        "sliding_attention": Reach(window) if window else None,
        "chunked_attention": Reach(chunk, in_chunks=True) if chunk else None,
        "global": None,
        "local": Reach(local) if isinstance(local, int) else None,
    }
    kinds = getattr(text_config, "layer_types", None) or getattr(text_config, "attention_layers", None)
    kinds = kinds or ["sliding_attention"] * text_config.num_hidden_layers
    for kind in kinds:
        if kind not in reach_of:
            raise ConfigError(
                f"model type {text_config.model_type!r} has a layer of type {kind!r}: must be one of "
                f"{', '.join(reach_of)}"
            )
    return tuple(reach_of[kind] for kind in kinds)


_ATTENTION: ContextVar[Attention | None] = ContextVar("attention", default=None)


@contextmanager
def attending(attention: Attention) -> Iterator[None]:
    """Layers that are routed here attend so in forwards inside."""
    token = _ATTENTION.set(attention)
    try:
        yield
    finally:
        _ATTENTION.reset(token)


def current_attention() -> Attention | None:
    """How the layers of the forward that runs now attend; None outside of ``attending``."""
    return _ATTENTION.get()


# --- the layers' call -------------------------------------------------------------------------------


def route_attention(model: Any) -> bool:
    """Make a model's layers call ``branch_attention``; changes the implementation that its configuration names.

    Returns:
        False for a model whose layers call no attention function that could be exchanged; it stays as it is.
    """
    if not getattr(model, "_supports_attention_backend", True):  # an attribute of transformers' models alone
        return False
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation in _ROUTES:
        config._attn_implementation = _ROUTES[config._attn_implementation]
    return config._attn_implementation in _ROUTES.values()


def branch_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    attend: Callable[..., tuple[torch.Tensor, Any]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it; inside ``attending`` by its masks and by branches.

    Args:
        module: the attention layer.
        query: [1, H, T, D].
        key: [1, H or fewer, S, D], all slots of the arena where there is a division.
        value: as key.
        attention_mask: additive, [1, 1 or H, T, columns]. Inside ``attending`` it is what the model was given, or
            what the layer made of it; in the first case the layer's own is taken instead.
        attend: computes it; None is scaled dot-product attention.
        kwargs: scaling and what else a model gives.

    Returns:
        [1, T, H, D] and no weights.
    """
    attend = attend or _attend_sdpa
    attention = _ATTENTION.get()
    if attention is None:
        return attend(module, query, key, value, attention_mask, **kwargs)[0], None
    mask = attention_mask
    if mask is None or mask.data_ptr() == attention.any_mask.data_ptr():
        mask = attention.mask_of(module, kwargs.get("sliding_window"))
    if attention.split is None:
        return attend(module, query, key, value, mask, **kwargs)[0], None
    by_slot = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [S, H, D], as they lie in the arena
    by_row = query[0].transpose(0, 1)
    result = torch.empty_like(by_row, memory_format=torch.contiguous_format)
    for bucket in attention.split.buckets:
        keys, values = (_gather(slots, bucket.columns) for slots in by_slot)
        own_mask = mask[0, :, :, : bucket.columns.shape[1]][:, bucket.rows].transpose(0, 1)
        attended = attend(module, _gather(by_row, bucket.rows), keys, values, own_mask, **kwargs)[0]
        rows = bucket.rows.flatten()[bucket.places]
        result.index_copy_(0, rows, attended.flatten(0, 1)[bucket.places].to(result.dtype))
    return result[None], None


def _attend_sdpa(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention; a single bfloat16 query row on a CPU is duplicated.

    Torch 2.13's kernel for two rows is more than twice as fast as the one for a single row, with equal results: 57
    against 147 us for 200 columns, 12 heads of 64.
    """
    is_slow = query.dtype == torch.bfloat16 and query.device.type == "cpu"
    is_single = is_slow and query.shape[2] == 1 and mask is not None
    if is_single:
        query = torch.cat([query, query], dim=2)
    attended, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    return attended[:, :1] if is_single else attended, None


def _attend_eager(module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
    """What a model without scaled dot-product attention computes: the function that stands beside its layers."""
    result: tuple[torch.Tensor, Any] = sys.modules[type(module).__module__].eager_attention_forward(
        module, *args, **kwargs
    )
    return result


def _gather(by_row: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[rows, H, D] at [G, N] -> [G, H, N, D]."""
    return by_row.index_select(0, index.flatten()).view(*index.shape, *by_row.shape[1:]).transpose(1, 2)


# A model's own implementation -> what it calls once it is routed here.
_ROUTES = {"sdpa": "seedmp_branches", "eager": "seedmp_branches_eager"}
AttentionInterface.register(_ROUTES["sdpa"], branch_attention)
AttentionInterface.register(_ROUTES["eager"], partial(branch_attention, attend=_attend_eager))
AttentionMaskInterface.register(_ROUTES["sdpa"], sdpa_mask)  # for who calls the model without a mask of ours
AttentionMaskInterface.register(_ROUTES["eager"], eager_mask)
