"""Attention of packed rows, each branch over its own columns: what the others hold is never read.

One masked attention over the union of all contexts costs rows x columns of every branch with every other. Here the
rows of a branch meet only the slots that one of them may see; branches of similar size are computed in one call.
Letters: T rows, G branches of a bucket, R rows and C columns of the largest of them, H heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "seedmp_branches"
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


_SPLIT: ContextVar[Split | None] = ContextVar("split", default=None)


@contextmanager
def attending(split: Split | None) -> Iterator[None]:
    """Forwards inside attend by this division; None is one masked attention."""
    token = _SPLIT.set(split)
    try:
        yield
    finally:
        _SPLIT.reset(token)


def branch_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention as transformers calls it, by branches inside ``attending``.

    Args:
        module: the attention layer.
        query: [1, H, T, D].
        key: [1, H or fewer, S, D], all slots of the arena where there is a division.
        value: as key.
        attention_mask: additive, [1, 1, T, columns]: with a division those of ``Split.columns``.
        kwargs: scaling and what else a model gives.

    Returns:
        [1, T, H, D] and no weights.
    """
    split = _SPLIT.get()
    if split is None or attention_mask is None:
        return _attend(module, query, key, value, attention_mask, **kwargs)
    by_slot = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [S, H, D], as they lie in the arena
    by_row = query[0].transpose(0, 1)
    result = torch.empty_like(by_row, memory_format=torch.contiguous_format)
    for bucket in split.buckets:
        keys, values = (_gather(slots, bucket.columns) for slots in by_slot)
        mask = attention_mask[0, 0, :, : bucket.columns.shape[1]][bucket.rows][:, None]
        attended, _ = _attend(module, _gather(by_row, bucket.rows), keys, values, mask, **kwargs)
        rows = bucket.rows.flatten()[bucket.places]
        result.index_copy_(0, rows, attended.flatten(0, 1)[bucket.places].to(result.dtype))
    return result[None], None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention; one bfloat16 row on a CPU is asked twice, which takes torch 2.13 half the time or less.

    Its products with one row go through a slower kernel than with two: 147 against 57 us for 200 columns, 12 heads
    of 64, with equal results.
    """
    lonely = query.shape[2] == 1 and mask is not None and query.dtype == torch.bfloat16 and query.device.type == "cpu"
    if lonely:
        query = torch.cat([query, query], dim=2)
    attended, _ = sdpa_attention_forward(module, query, key, value, mask, **kwargs)
    return attended[:, :1] if lonely else attended, None


def _gather(by_row: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """[rows, H, D] at [G, N] -> [G, H, N, D]."""
    return by_row.index_select(0, index.flatten()).view(*index.shape, *by_row.shape[1:]).transpose(1, 2)


AttentionInterface.register(NAME, branch_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # for who calls the model without a mask of ours
