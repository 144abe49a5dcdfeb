"""What a draft head needs of the target's forwards: hidden states, kept in an arena beside the KV.

The feature arena is [S, F], indexed by the target's slots like its KV: a slot has its token's feature exactly as
long as it has its KV, so features are shared by prefix, kept, evicted and overwritten together with it. Letters: S
slots, T rows of a forward, L layers of the target, H its hidden size, F = H or, with k layers captured, k x H.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def published_layers(num_layers: int) -> tuple[int, ...]:
    """The layers whose INPUT an EAGLE-3 head gets when its configuration names none: (2, L // 2, L - 3).

    Where those are not three (L < 7) the first after the embedding, the middle and the last one. Layer L stands
    for the last layer's output before the final norm.
    """
    layers = 2, num_layers // 2, num_layers - 3
    if layers[0] < layers[1] < layers[2]:
        return layers
    return (1, num_layers // 2, num_layers - 1) if num_layers >= 5 else (0, num_layers // 2, num_layers)


class FeatureTap:
    """Keeps the wanted hidden states of each forward of a model, and stores them by slot.

    Hooks of a transformers model show it the states; a runner that calls no such model does it by ``note`` and ``end``.

    Args:
        model: a transformers causal language model.
        layers: whose input to take, in this order (number of layers: the last one's output, without the final
            norm); none for the last hidden state as the output matrix gets it.
        arena: [S, F]; None only captures (training).
        hidden_size: H, if it is not the model's: an inflated target has the small one's numbers in the first of its.
    """

    def __init__(
        self,
        model: Any,
        layers: Sequence[int],
        arena: torch.Tensor | None = None,
        hidden_size: int | None = None,
    ) -> None:
        self.arena = arena
        self._hidden_size = hidden_size
        self._last: torch.Tensor | None = None
        self._layers = tuple(layers)
        self._states: dict[int, torch.Tensor] = {}
        backbone = model.base_model
        backbone.register_forward_hook(lambda _module, _args, output: self.end(output.last_hidden_state))
        if not layers:
            return
        blocks = decoder_layers(model)
        for layer in sorted(set(layers)):
            if layer < len(blocks):
                blocks[layer].register_forward_pre_hook(self._note_input(layer), with_kwargs=True)
            else:
                blocks[-1].register_forward_hook(self._note_output(layer))

    def _note_input(self, layer: int) -> Any:
        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.note(layer, args[0] if args else kwargs["hidden_states"])

        return note

    def _note_output(self, layer: int) -> Any:
        def note(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            self.note(layer, output if isinstance(output, torch.Tensor) else output[0])

        return note

    def note(self, layer: int, hidden: torch.Tensor) -> None:
        """Show the input of a layer, [B, T, H]; of layer L, the output of the last one."""
        if layer in self._layers:
            self._states[layer] = hidden

    def end(self, normed: torch.Tensor) -> None:
        """Show the last hidden state after the final norm, [B, T, H]; a forward ends with it."""
        states = [self._states[layer] for layer in self._layers] or [normed]
        self._last = torch.cat([state[..., : self._hidden_size] for state in states], -1)
        self._states.clear()

    def take(self) -> torch.Tensor:
        """[B, T, F] of the last forward."""
        assert self._last is not None
        features, self._last = self._last, None
        return features

    def store(self, slots: torch.Tensor) -> None:
        """Write the first rows of the last forward, as many as there are slots, at their slots."""
        assert self.arena is not None
        rows = self.take()[0, : len(slots)].to(self.arena.device, self.arena.dtype)
        self.arena.index_copy_(0, slots.to(self.arena.device), rows)


def decoder_layers(model: Any) -> nn.ModuleList:
    """The decoder layers of a transformers model, whatever it calls them."""
    num_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    raise AssertionError(f"{type(model).__name__} has no list of {num_layers} layers")
