"""Drafts on a GPU build their module around tensors of another process; the same logic, on CPU tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seedmp.config import EngineConfig
from seedmp.drafts.base import FEATURES, KV
from seedmp.drafts.registry import make_draft_kind
from seedmp.ipc.messages import CudaTensor
from seedmp.models import pair
from seedmp.models.eagle import load_head, read_head
from seedmp.models.load import ModelSpec, load_config, load_model
from seedmp.workers import build
from tests.helpers.heads import head_tensors, write_head


def fake_handle(name: str) -> CudaTensor:
    return CudaTensor(name, "float32", (1,), (1,), 0, 0, b"", 0, 0, b"", 0, b"", False)


def test_module_around_foreign_tensors_gives_the_same_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    spec = ModelSpec(str(pair.DRAFT))
    model = load_model(spec, torch.float32)
    arena = torch.zeros(1)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers()), build.ARENA_PREFIX + KV: arena}
    monkeypatch.setattr(build, "attach_cuda", lambda handle: tensors[handle.name])

    draft = make_draft_kind(EngineConfig(target=str(pair.TARGET), draft=str(pair.DRAFT)))
    attached, arenas = build.attach(draft, torch.float32, tuple(fake_handle(name) for name in tensors))

    ids = torch.tensor([[1, 398, 28, 1297]])
    with torch.inference_mode():
        assert torch.equal(attached(ids).logits, model(ids).logits)
    assert arenas == {KV: arena}
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
    path = str(write_head(tmp_path, tensors, hidden_size=sizes.hidden_size))
    spec = read_head(path, target)
    head = load_head(spec, torch.float32, "cpu", target)
    arenas = {KV: torch.zeros(1), FEATURES: torch.zeros(2)}
    shared = {**dict(head.named_parameters()), **dict(head.named_buffers())}
    shared |= {build.ARENA_PREFIX + name: arena for name, arena in arenas.items()}
    monkeypatch.setattr(build, "attach_cuda", lambda handle: shared[handle.name])

    draft = make_draft_kind(EngineConfig(target=target.path, draft=path, method="eagle"))  # type: ignore[arg-type]
    attached, attached_arenas = build.attach(draft, torch.float32, tuple(fake_handle(name) for name in shared))

    assert attached_arenas[KV] is arenas[KV] and attached_arenas[FEATURES] is arenas[FEATURES]
    ids, positions, mask = torch.tensor([[1, 398, 28]]), torch.arange(3)[None], torch.zeros(1, 1, 3, 3)
    given = torch.randn(1, 3, spec.feature_size)
    with torch.inference_mode():
        made = [some.logits(some(ids, some.fuse(given), positions, mask, None)) for some in (head, attached)]
    assert torch.equal(made[0], made[1])
    assert torch.equal(head.target_ids(), attached.target_ids())
