"""Angles of positions that depend on the longest text of a forward: here, on each row's own text.

A model with longrope or dynamic NTK scales all rows of a forward by its largest position. Its rope is asked once for
each length that occurs, with the rows of that length alone. The rope itself says from which length on it matters.
Letters: T rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from transformers import GenerationMixin

from seedmp.kv.rope_border import RopeBorder
from seedmp.models.branch_attention import current_attention

FEW = 8  # positions whose angles are compared
_NAME = "seedmp_rope_border"  # of the model's attribute, once it is routed


def route_ropes(model: Any) -> RopeBorder | None:
    """Make a model's ropes ask for the rows' own lengths while packed rows run.

    Args:
        model: a loaded transformers causal language model. It may be routed already.

    Returns:
        where the angles change, or None if they never do.
    """
    if not hasattr(model, _NAME):
        setattr(model, _NAME, _route(model))
    border: RopeBorder | None = getattr(model, _NAME)
    return border


def forget_borders(model: Any) -> None:
    """To be called when the configuration was changed: the next ``route_ropes`` looks again."""
    for module in (model, *_ropes(model)):
        module.__dict__.pop(_NAME, None)
        forward = module.__dict__.get("forward")
        if isinstance(forward, functools.partial) and forward.func is _by_length:
            del module.__dict__["forward"]


def _route(model: Any) -> RopeBorder | None:
    lengths = []
    for rope in _ropes(model):
        length = _find_border(rope, model)
        if length is not None:
            lengths.append(length)
            rope.forward = functools.partial(_by_length, rope.forward)
    if not lengths:
        return None
    prepare = getattr(type(model), "prepare_inputs_for_generation", GenerationMixin.prepare_inputs_for_generation)
    overrides = prepare is not GenerationMixin.prepare_inputs_for_generation
    return RopeBorder(min(lengths), overrides and any("longrope" in _kinds(rope).values() for rope in _ropes(model)))


def _ropes(model: Any) -> Iterator[Any]:
    """The modules that make angles of the text's positions."""
    text_config = model.config.get_text_config(decoder=True)
    for module in model.modules():
        if hasattr(module, "rope_type") and type(getattr(module, "config", None)) is type(text_config):
            yield module


def _kinds(rope: Any) -> dict[str | None, str]:
    """The scaling by type of layer; None is all layers."""
    return rope.rope_type if isinstance(rope.rope_type, dict) else {None: rope.rope_type}


def _find_border(rope: Any, model: Any) -> int | None:
    """The longest text whose first angles are those of a short one; None if all are."""
    text_config = model.config.get_text_config(decoder=True)
    longest = 2 * int(getattr(text_config, "max_position_embeddings", None) or 0)
    found = []
    for layer_type in _kinds(rope):
        changed = functools.partial(_changes, rope, model, layer_type)
        if longest <= FEW or not changed(longest):
            continue
        low, high = FEW, longest  # the border is in [low, high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if changed(middle) else (middle, high)
        found.append(low)
    return min(found, default=None)


def _changes(rope: Any, model: Any, layer_type: str | None, length: int) -> bool:
    """Whether the first positions of a text of this length have other angles than those of a short one."""
    weight = next(model.parameters())  # a draft head names no device
    few = torch.arange(FEW, device=weight.device)[None]
    names = {} if layer_type is None else {"layer_type": layer_type}
    x = torch.zeros(1, device=weight.device, dtype=weight.dtype)
    try:
        alone = [part.clone() for part in _parts(rope(x, few, **names))]
        beside = [
            part.clone() for part in _parts(rope(x, torch.cat([few, few.new_tensor([[length - 1]])], 1), **names))
        ]
        rope(x, few, **names)  # as it was
    except TypeError:
        return False  # it is called otherwise: the proof decides
    return any(not torch.equal(one, other[:, :FEW]) for one, other in zip(alone, beside, strict=True))


def _parts(made: Any) -> tuple[torch.Tensor, ...]:
    return made if isinstance(made, tuple) else (made,)


def _by_length(
    forward: Callable[..., Any], x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any
) -> Any:
    """[1, T, D] angles: each row's as in a text of its own length."""
    attention = current_attention()
    lens = None if attention is None else attention.rope_lens
    if lens is None:
        return forward(x, position_ids, *args, **kwargs)
    results: list[torch.Tensor] = []
    made: Any = None
    for length in np.unique(lens).tolist():
        rows = torch.from_numpy(np.flatnonzero(lens == length)).to(position_ids.device)
        own = position_ids[:, rows]
        forward(x, own.new_zeros(1, 1), *args, **kwargs)  # it may remember a longer text
        if length:
            own = torch.cat([own, own.new_tensor([[length - 1]])], 1)
        made = forward(x, own, *args, **kwargs)
        for index, part in enumerate(_parts(made)):
            if len(results) <= index:
                results.append(part.new_empty(part.shape[0], len(lens), *part.shape[2:]))
            results[index][:, rows] = part[:, : len(rows)]
    return tuple(results) if isinstance(made, tuple) else results[0]
