"""Tiny random checkpoints of ten architectures: a target, and a draft that agrees with it now and then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

VOCAB_SIZE = 96
WINDOW = 8  # shorter than the prompts, so that it matters
MAX_POSITIONS = 160
DRAFT_NOISE = 0.12  # of each tensor's own spread

_TOKENS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
    **_TOKENS,
}
_GROUPED: dict[str, Any] = {**_SIZES, "intermediate_size": 64, "num_key_value_heads": 2}
_LAYER_TYPES = ["sliding_attention", "full_attention"]

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(**_GROUPED),
    "mistral": lambda: MistralConfig(**_GROUPED, sliding_window=WINDOW),
    "qwen2": lambda: Qwen2Config(
        **_GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**_GROUPED, head_dim=16),
    "gemma2": lambda: Gemma2Config(
        **_GROUPED, head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW, layer_types=_LAYER_TYPES
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_GROUPED, head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW, layer_types=_LAYER_TYPES
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, n_positions=MAX_POSITIONS,
        initializer_range=0.3, tie_word_embeddings=False, **_TOKENS,
    ),
    "opt": lambda: OPTConfig(
        **(_SIZES | {"pad_token_id": 1, "init_std": 0.3}), ffn_dim=64, word_embed_proj_dim=32
    ),
    "gpt-neox": lambda: GPTNeoXConfig(**_SIZES, intermediate_size=64, rotary_pct=0.5),
    "phi3": lambda: Phi3Config(**_GROUPED),
}  # fmt: skip
ARCHITECTURES = tuple(CONFIGS)


def make_pair(architecture: str, folder: Path) -> tuple[Path, Path]:
    """Save a target and a draft, float32, without tokenizer.

    The draft is the target with noise on every weight: some of its tokens are accepted, not all.

    Returns:
        The folders of target and draft.
    """
    torch.manual_seed(20 + ARCHITECTURES.index(architecture))
    model = AutoModelForCausalLM.from_config(CONFIGS[architecture]()).float().eval()
    paths = folder / "target", folder / "draft"
    model.save_pretrained(paths[0])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += DRAFT_NOISE * float(parameter.std()) * torch.randn_like(parameter)
    model.save_pretrained(paths[1])
    return paths
