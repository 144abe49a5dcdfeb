"""Shared arenas: sizes, and a refusal where the shared-memory disk has no room."""

from __future__ import annotations

import os

import pytest
import torch

from seedmp.errors import ConfigError
from seedmp.ipc import arena
from seedmp.models import pair
from seedmp.models.load import ModelSpec, load_config


def test_layout_has_a_contiguous_row_per_token_and_layer() -> None:
    layout = arena.layout_for(load_config(ModelSpec(str(pair.TARGET))), 128, torch.float32)
    assert layout.shape == (6, 2, 128 + arena.NUM_GHOSTS, 4, 64)
    shared = arena.allocate_shared(layout)
    assert shared.is_shared()
    assert shared[3, 1, 7].is_contiguous()
    assert not shared.any()
    assert layout.size_bytes == shared.nbytes


def test_full_shared_memory_is_refused_with_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(arena.SHARED_MEMORY_FOLDER)
    full = os.statvfs_result((*real[:4], 3, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    layout = arena.ArenaLayout(2, 1 << 20, 4, 64, "float32")
    with pytest.raises(ConfigError, match=r"4096 MiB of shared memory are needed.*0 MiB free.*kv_slots"):
        arena.allocate_shared(layout)
