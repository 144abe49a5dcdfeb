"""Drafts on a GPU build their module around tensors of another process; the same logic, on CPU tensors."""

from __future__ import annotations

import pytest
import torch

from seedmp.ipc.arena import layout_for
from seedmp.ipc.messages import CudaTensor
from seedmp.models import pair
from seedmp.models.load import ModelSpec, load_config, load_model
from seedmp.workers import supervisor


def fake_handle(name: str) -> CudaTensor:
    return CudaTensor(name, "float32", (1,), (1,), 0, 0, b"", 0, 0, b"", 0, b"", False)


def test_module_around_foreign_tensors_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    spec = ModelSpec(str(pair.DRAFT))
    model = load_model(spec, torch.float32)
    arena = torch.zeros(1)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), supervisor.ARENA: arena}
    monkeypatch.setattr(supervisor, "attach_cuda", lambda handle: tensors[handle.name])

    config = load_config(spec)
    attached, attached_arena, features = supervisor._attach_model(
        supervisor.SharedModel(config, layout_for(config, 1, torch.float32)),
        tuple(fake_handle(name) for name in tensors),
        torch.float32,
    )

    ids = torch.tensor([[1, 398, 28, 1297]])
    with torch.inference_mode():
        assert torch.equal(attached(ids).logits, model(ids).logits)
    assert attached_arena is arena and features is None
    own = dict(attached.named_parameters())
    assert all(own[name].data_ptr() == tensor.data_ptr() for name, tensor in model.named_parameters())
