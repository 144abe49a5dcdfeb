"""Random EAGLE heads for tiny targets, in the layouts that are published."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

HIDDEN, INNER, HEADS, KV_HEADS = 32, 48, 4, 2
HEAD_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "num_hidden_layers": 1, "rms_norm_eps": 1e-5,
    "hidden_act": "silu", "max_position_embeddings": 64, "rope_theta": 5000.0,
}  # fmt: skip


def head_tensors(kind: str, vocab_size: int, draft_vocab_size: int, hidden: int = HIDDEN) -> dict[str, torch.Tensor]:
    """Tensors of a head, named as in the original repositories; embeddings and output matrix among them."""
    generator = torch.Generator().manual_seed(draft_vocab_size)

    def rand(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

    def gain() -> torch.Tensor:
        return 1 + 0.2 * torch.randn(hidden, generator=generator)

    third = kind == "eagle3"
    layer, width = ("midlayer." if third else "layers.0."), (2 if third else 1) * hidden
    kv = hidden // HEADS * KV_HEADS
    tensors = {
        "fc.weight": rand(hidden, (3 if third else 2) * hidden),
        layer + "self_attn.q_proj.weight": 2 * rand(hidden, width),
        layer + "self_attn.k_proj.weight": 2 * rand(kv, width),
        layer + "self_attn.v_proj.weight": rand(kv, width),
        layer + "self_attn.o_proj.weight": rand(hidden, hidden),
        layer + "mlp.gate_proj.weight": rand(INNER, hidden),
        layer + "mlp.up_proj.weight": rand(INNER, hidden),
        layer + "mlp.down_proj.weight": rand(hidden, INNER),
        layer + "post_attention_layernorm.weight": gain(),
        "embed_tokens.weight": rand(vocab_size, hidden),
    }
    if not third:
        return tensors | {"fc.bias": rand(hidden)}
    ids = torch.randperm(vocab_size, generator=generator)[:draft_vocab_size].sort().values
    t2d = torch.zeros(vocab_size, dtype=torch.bool)
    t2d[ids] = True
    return tensors | {
        layer + "hidden_norm.weight": gain(),
        layer + "input_layernorm.weight": gain(),
        "norm.weight": gain(),
        "lm_head.weight": 3 * rand(draft_vocab_size, hidden),
        "d2t": ids - torch.arange(draft_vocab_size),
        "t2d": t2d,
    }


def write_head(folder: Path, tensors: dict[str, torch.Tensor], *, pickled: bool = False, **config: Any) -> Path:
    """Save a head's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HEAD_CONFIG | config))
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")
    return folder


def make_head(kind: str, folder: Path, vocab_size: int, draft_vocab_size: int | None = None) -> Path:
    """A head of random weights: EAGLE-1 without own embeddings, or EAGLE-3 with a part of the vocabulary."""
    tensors = head_tensors(kind, vocab_size, draft_vocab_size or vocab_size)
    del tensors["embed_tokens.weight"]
    if kind == "eagle":
        return write_head(folder, tensors, pickled=True, bias=True)
    return write_head(folder, tensors, draft_vocab_size=draft_vocab_size)
