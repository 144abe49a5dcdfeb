"""Rows of branches attended for one by one give what one masked attention gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from seedmp.ipc.arena import layout_for
from seedmp.models import branch_attention
from seedmp.models.branch_attention import split_by_branch
from seedmp.models.eager import EagerRunner
from seedmp.models.load import ModelSpec, load_model
from seedmp.models.rows import BranchRows, Rows, pack_rows

CPU = torch.device("cpu")
SHARED = 12  # tokens before the fork
BRANCHES = ((30, 3), (7, 1), (25, 4), (0, 2), (31, 3))  # own tokens in the arena, rows of this forward


def packed_rows() -> Rows:
    """Rows of all branches; slots are mixed."""
    num_slots = SHARED + sum(map(sum, BRANCHES))
    free = np.random.default_rng(0).permutation(np.arange(SHARED, num_slots)).tolist()
    branches = []
    for own, rows in BRANCHES:
        taken = [free.pop() for _ in range(own + rows)]
        ids = [5 + slot % 50 for slot in taken[own:]]
        branches.append(BranchRows((*range(SHARED), *taken[:own]), ids, taken[own:], num_wanted=rows))
    return pack_rows(branches)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma3"])
def test_equals_one_masked_attention(
    architecture: str, tiny_pair: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(branch_attention, "COLUMN_COST", 0)
    monkeypatch.setattr(branch_attention, "MIN_SAVED", 0)
    model = load_model(ModelSpec(str(tiny_pair(architecture)[0])), torch.float32)
    rows = packed_rows()
    together = replace(rows, lengths=(len(rows.token_ids),))
    arena = torch.randn(layout_for(model.config, rows.allowed.shape[1], torch.float32).shape)
    logits = []
    for given in (together, rows):
        runner = EagerRunner(model, arena.clone(), model.config.get_text_config().vocab_size)
        assert (runner.prepare(given).attention.split is not None) == (given is rows)
        logits.append(runner.run(given))
    torch.testing.assert_close(logits[0], logits[1], atol=2e-5, rtol=1e-5)
    more = np.roll(rows.allowed, 1, axis=0) | rows.allowed
    wrong = runner.run(replace(rows, matrix=more))
    assert (wrong - logits[0]).abs().max() > 1e-3


def test_every_row_is_in_one_bucket() -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 40, 50).tolist()
    allowed = np.zeros((sum(lengths), 6000), dtype=bool)
    at = 0
    for number, length in enumerate(lengths):
        allowed[at : at + length, 100 * number : 100 * number + rng.integers(1, 100)] = True
        at += length
    split = split_by_branch(allowed, lengths, CPU)
    assert split is not None
    rows = torch.cat([bucket.rows.flatten()[bucket.places] for bucket in split.buckets])
    assert sorted(rows.tolist()) == list(range(sum(lengths)))
    rebuilt = np.zeros_like(allowed)
    for row, (columns, seen) in enumerate(zip(split.columns, split.allowed, strict=True)):
        rebuilt[row, columns[seen]] = True
    assert (rebuilt == allowed).all()
    computed = sum(bucket.rows.numel() * bucket.columns.shape[1] for bucket in split.buckets)
    assert computed < 2 * allowed.sum() + 40 * 100 * len(split.buckets)


@pytest.mark.parametrize("lengths", [[], [8], [4, 4]], ids=str)
def test_not_divided_where_it_saves_little(lengths: list[int]) -> None:
    assert split_by_branch(np.ones((8, 300), dtype=bool), lengths, CPU) is None


class GroupedLayer(torch.nn.Module):
    """What sdpa_attention_forward asks of a layer."""

    num_key_value_groups = 2


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_one_row_asked_twice_is_attended_as_one(batch: int, dtype: torch.dtype) -> None:
    keys, values = torch.randn(2, batch, 2, 40, 8).to(dtype)
    query = torch.randn(batch, 4, 1, 8).to(dtype)
    mask = torch.zeros(batch, 1, 1, 40, dtype=dtype)
    mask[..., 25:] = torch.finfo(dtype).min
    attended, _ = branch_attention.branch_attention(GroupedLayer(), query, keys, values, mask)
    whole = [x[:, :, :25].repeat_interleave(2, dim=1).double() for x in (keys, values)]
    expected = torch.nn.functional.scaled_dot_product_attention(query.double(), *whole).transpose(1, 2)
    assert attended.shape == expected.shape == (batch, 1, 4, 8)
    torch.testing.assert_close(attended.double(), expected, atol=1e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-2)
