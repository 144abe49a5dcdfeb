"""Linear layers with weights laid out once as oneDNN's kernels read them, and with what follows inside the product.

``torch.nn.Linear`` keeps its weight row by row; the few rows of a decoding step then meet kernels that take two to
three times as long as on weights in blocks. Inductor does the same when it freezes a model; this is without compiling.
"""

from __future__ import annotations

import platform

import torch
from torch.nn.functional import linear, silu

ROWS = 16  # the rows that layouts are chosen for: a draft's tree or a few branches; prompts gain as well
MIN_SIZE = 1 << 17  # weights; below that, the call costs more than the layout saves


class PrepackedLinear(torch.nn.Module):
    """What the linear layer computes; its plain weight is not kept.

    Args:
        weight: [out_features, in_features] on a CPU, float32 or bfloat16.
        bias: [out_features] or None.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # No parameter and no buffer: it cannot be moved, shared or saved, and is inherited through fork.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS)
        self.bias = bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return result

    def silu(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> SiLU of the product."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "swish", [], "")
        return result

    def plus(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product plus ``other``, [..., out_features]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, self.weight, self.bias, "add")
        return result

    def times(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The product times ``other``, [..., out_features]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, self.weight, self.bias, "mul")
        return result


class PlainLinear(torch.nn.Module):
    """The same on any device, with the weight as it is. Args as ``PrepackedLinear``."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """As ``PrepackedLinear``."""
        result: torch.Tensor = linear(rows, self.weight, self.bias)
        return result

    def silu(self, rows: torch.Tensor) -> torch.Tensor:
        """As ``PrepackedLinear``."""
        result: torch.Tensor = silu(self(rows))
        return result

    def plus(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """As ``PrepackedLinear``."""
        result: torch.Tensor = self(rows) + other
        return result

    def times(self, rows: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """As ``PrepackedLinear``."""
        result: torch.Tensor = self(rows) * other
        return result


def join_linears(*linears: torch.nn.Linear) -> PrepackedLinear | PlainLinear:
    """One layer whose result is theirs beside each other.

    Args:
        linears: of the same input; all with a bias or none.
    """
    weights, biases = [m.weight.detach() for m in linears], [m.bias for m in linears]
    weight = weights[0] if len(weights) == 1 else torch.cat(weights)
    bias = None if biases[0] is None else torch.cat([b.detach() for b in biases])
    return PrepackedLinear(weight, bias) if _can_prepack(weight) else PlainLinear(weight, bias)


def prepack_linears(model: torch.nn.Module) -> int:
    """Replace the linear layers that gain by it, one by one; elsewhere than on an x86 CPU there are none.

    Returns:
        How many were replaced.
    """
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear and _can_prepack(child.weight)
    ]
    for parent, name in found:
        child = getattr(parent, name)
        setattr(parent, name, PrepackedLinear(child.weight, child.bias))
    return len(found)


def _can_prepack(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in _dtypes() and weight.numel() >= MIN_SIZE


def _dtypes() -> frozenset[torch.dtype]:
    """Dtypes that this machine's oneDNN lays out."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return frozenset()
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):  # torch's own, and not public
        return frozenset()
    has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return frozenset({torch.float32, torch.bfloat16} if has_bf16 else {torch.float32})
