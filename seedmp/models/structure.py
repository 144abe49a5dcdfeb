"""Can a kind of model be served at all? Said by its configuration and its class, before anything is loaded.

What a token leaves in a layer must be keys and values that others may attend to: only those can be shared, rolled
back and arranged as trees.
"""

from __future__ import annotations

import inspect
from typing import Any

ATTENDING = {"full_attention", "sliding_attention", "chunked_attention", "attention", "global", "local"}

BY_BIAS = {"bloom", "mpt"}  # model types that see positions by a bias of the columns (``adapters``)

NEEDED = {  # arguments of a model's forward, and what it means if it does not take one
    "past_key_values": "keeps no keys and values",
    "position_ids": "cannot be told at which position a token stands (its forward takes no position_ids)",
    "logits_to_keep": "cannot be told which logits are wanted (its forward takes no logits_to_keep)",
}


def why_not_served(config: Any, model_class: Any) -> str:
    """What keeps a model from being served, or ''.

    Args:
        config: of a decoder-only transformers model.
        model_class: the class that it is loaded as.
    """
    odd = sorted(set(_layer_kinds(config)) - ATTENDING)
    if odd:
        return f"has layers of type {', '.join(map(repr, odd))} (served are {', '.join(sorted(ATTENDING))})"
    if getattr(model_class, "_is_stateful", False):
        return "has layers that keep a state instead of keys and values: it can be neither shared nor rolled back"
    taken = inspect.signature(model_class.forward).parameters
    is_by_bias = config.get_text_config(decoder=True).model_type in BY_BIAS
    missing = [name for name in NEEDED if name not in taken and not (name == "position_ids" and is_by_bias)]
    return NEEDED[missing[0]] if missing else ""


def _layer_kinds(config: Any) -> list[str]:
    """What the configuration calls its layers, whatever the name of that list; feed-forward parts aside."""
    text_config = config.get_text_config(decoder=True)
    lists = {**text_config.to_dict(), "layers_block_type": getattr(text_config, "layers_block_type", None)}
    return [
        kind
        for name, kinds in lists.items()
        if isinstance(kinds, list | tuple) and len(kinds) == text_config.num_hidden_layers
        if any(word in name for word in ("layer", "block", "attention", "attn")) and "mlp" not in name
        for kind in kinds
        if isinstance(kind, str)
    ]
