"""Linear layers of a CPU model with weights laid out once as oneDNN's kernels read them.

``torch.nn.Linear`` keeps its weight row by row; the few rows of a decoding step then meet kernels that take two to
three times as long as on weights in blocks. Inductor does the same when it freezes a model; this is without compiling.
"""

from __future__ import annotations

import platform

import torch

ROWS = 16  # the rows that layouts are chosen for: a draft's tree or a few branches; prompts gain as well
MIN_SIZE = 1 << 17  # weights; below that, the call costs more than the layout saves


class PrepackedLinear(torch.nn.Module):
    """What the linear layer computes; its plain weight is not kept.

    Args:
        linear: on a CPU, float32 or bfloat16.
    """

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        # No parameter and no buffer: it cannot be moved, shared or saved, and is inherited through fork.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        self.bias = linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., in_features] -> [..., out_features]."""
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
        return result


def prepack_linears(model: torch.nn.Module) -> int:
    """Replace the linear layers that gain by it, one by one; elsewhere than on an x86 CPU there are none.

    Returns:
        How many were replaced.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return 0
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):  # torch's own, and not public
        return 0
    dtypes = {torch.float32}
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        dtypes.add(torch.bfloat16)
    found = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is torch.nn.Linear
        and child.weight.device.type == "cpu"
        and child.weight.dtype in dtypes
        and child.weight.numel() >= MIN_SIZE
    ]
    for parent, name in found:
        setattr(parent, name, PrepackedLinear(getattr(parent, name)))
    return len(found)
