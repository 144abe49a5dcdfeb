"""Drafts on a GPU build their module around tensors of another process; the same logic, on CPU tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seedmp.ipc.arena import layout_for
from seedmp.ipc.messages import CudaTensor
from seedmp.models import pair
from seedmp.models.eagle import load_head, read_head
from seedmp.models.load import ModelSpec, load_config, load_model
from seedmp.workers import supervisor
from tests.helpers.heads import head_tensors, write_head


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


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_head_around_foreign_tensors_is_the_same_head(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    target = ModelSpec(str(pair.DRAFT))
    sizes = load_config(target).get_text_config(decoder=True)
    tensors = head_tensors(kind, sizes.vocab_size, 64, hidden=sizes.hidden_size)
    del tensors["embed_tokens.weight"]
    spec = read_head(str(write_head(tmp_path, tensors, hidden_size=sizes.hidden_size)), target)
    head = load_head(spec, torch.float32, "cpu", target)
    arenas = {supervisor.ARENA: torch.zeros(1), supervisor.FEATURES: torch.zeros(2)}
    shared = {**dict(head.named_parameters()), **dict(head.named_buffers()), **arenas}
    monkeypatch.setattr(supervisor, "attach_cuda", lambda handle: shared[handle.name])

    attached, arena, features = supervisor._attach_model(
        supervisor.SharedModel(spec.config, layout_for(spec.config, 1, torch.float32), head=spec),
        tuple(fake_handle(name) for name in shared),
        torch.float32,
    )

    assert arena is arenas[supervisor.ARENA] and features is arenas[supervisor.FEATURES]
    ids, positions, mask = torch.tensor([[1, 398, 28]]), torch.arange(3)[None], torch.zeros(1, 1, 3, 3)
    given = torch.randn(1, 3, spec.feature_size)
    with torch.inference_mode():
        made = [some.logits(some(ids, some.fuse(given), positions, mask, None)) for some in (head, attached)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(head.target_ids(), attached.target_ids())
