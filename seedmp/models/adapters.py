"""Families of models that make masks or biases of their own: what they are given instead while packed rows run.

Such a model counts its keys from left to right, or knows no positions at all. Here it is told the position of the
token in each column. Outside of our forwards it does what it always did. Letters: K key columns, H heads.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

from seedmp.models.branch_attention import current_attention


def adapt(model: Any) -> bool:
    """Make a model of such a family serve packed rows; others stay as they are.

    Args:
        model: a loaded transformers causal language model. It may be adapted already.

    Returns:
        whether it needs the positions of the columns.
    """
    adapter = ADAPTERS.get(model.config.get_text_config(decoder=True).model_type)
    return False if adapter is None else adapter(model)


def _bloom(model: Any) -> bool:
    _wrap(model.transformer, "build_alibi_tensor", _alibi_by_position)
    _wrap(model, "forward", _without_positions)
    return True


def _falcon(model: Any) -> bool:
    if not model.config.alibi:
        return False
    _wrap(sys.modules[type(model).__module__], "build_alibi_tensor", _alibi_by_position)
    return True


def _mpt(model: Any) -> bool:
    _wrap(model.transformer, "build_mpt_alibi_tensor", _mpt_alibi)
    _wrap(model, "forward", _without_positions)
    return True


def _gpt_neo(model: Any) -> bool:
    for layer_idx, block in enumerate(model.transformer.h):
        block.attn.attention.layer_idx = layer_idx
        _wrap(block.attn.attention, "_attn", functools.partial(_unscaled_attention, block.attn.attention))
    return False


ADAPTERS: dict[str, Callable[[Any], bool]] = {"bloom": _bloom, "falcon": _falcon, "mpt": _mpt, "gpt_neo": _gpt_neo}


def _wrap(owner: Any, name: str, replacement: Callable[..., Any]) -> None:
    """Put ``replacement``, which gets the original first, in its place; once."""
    original = getattr(owner, name)
    if not hasattr(original, "seedmp_original"):
        wrapped: Any = functools.update_wrapper(functools.partial(replacement, original), original)
        wrapped.seedmp_original = original
        setattr(owner, name, wrapped)


def _without_positions(forward: Callable[..., Any], *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
    """These models see positions by their biases alone."""
    return forward(*args, **kwargs)


def _alibi_by_position(
    build: Callable[..., torch.Tensor], attention_mask: torch.Tensor, num_heads: int, dtype: torch.dtype
) -> torch.Tensor:
    """[H, 1, K]: the model's own bias of a text, at the position of each column."""
    attention = current_attention()
    if attention is None:
        return build(attention_mask, num_heads, dtype)
    positions = attention.column_positions
    assert positions is not None
    text = torch.ones(1, int(positions.max()) + 1, device=positions.device, dtype=torch.long)
    return build(text, num_heads, dtype)[:, :, positions]


def _mpt_alibi(build: Callable[..., torch.Tensor], num_heads: int, length: int, *args: Any, **kwargs: Any) -> Any:
    """[H, 1, K]: the same, where the bias of the last token is 0."""
    alibi = build(num_heads, length, *args, **kwargs)
    attention = current_attention()
    if attention is None:
        return alibi
    positions = attention.column_positions
    assert positions is not None
    return alibi[:, :, positions + (length - 1 - int(positions.max()))]


def _unscaled_attention(
    layer: Any,
    attend: Callable[..., Any],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any = None,
) -> Any:
    """Attention in float32 without a scale, under the mask of the layer's own reach."""
    attention = current_attention()
    if attention is None:
        return attend(query, key, value, mask)
    scores = query.float() @ key.float().transpose(-1, -2) + attention.mask_of(layer, None)
    weights = scores.softmax(-1).to(value.dtype)
    return weights @ value, weights
