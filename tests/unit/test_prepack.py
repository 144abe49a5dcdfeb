"""Prepacked linear layers compute what plain ones do, keep no plain weight, and are used where they pay."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from seedmp.models import prepack
from seedmp.models.load import ModelSpec, load_model
from seedmp.models.prepack import PrepackedLinear, prepack_linears

needs_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="weights are prepacked on x86 CPUs only",
)


def linear(rows: int, columns: int, dtype: torch.dtype, bias: bool) -> torch.nn.Linear:
    return torch.nn.Linear(columns, rows, bias=bias).to(dtype).requires_grad_(False)


@needs_x86
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_plain_layer(dtype: torch.dtype, bias: bool) -> None:
    plain = linear(512, 384, dtype, bias)
    packed = PrepackedLinear(plain.weight, plain.bias)
    for shape in ((1, 1, 384), (1, 3, 384), (2, 11, 384), (40, 384)):
        rows = torch.randn(shape).to(dtype)
        result = packed(rows)
        exact = torch.nn.functional.linear(rows.double(), plain.weight.double(), plain.bias.double() if bias else None)
        assert result.shape == exact.shape and result.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(result.double(), exact, atol=tolerance, rtol=tolerance)
        assert not torch.allclose(result.double(), exact.roll(1, -1), atol=tolerance, rtol=tolerance)


@needs_x86
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma3"])
def test_a_model_keeps_its_logits(
    architecture: str, tiny_pair: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepack, "MIN_SIZE", 0)
    model = load_model(ModelSpec(str(tiny_pair(architecture)[0])), torch.float32)
    ids = torch.arange(5, 17)[None]
    with torch.inference_mode():
        before = model(ids).logits
        assert prepack_linears(model) >= 1  # the head at least: GPT-2's others are no linear layers
        torch.testing.assert_close(model(ids).logits, before, atol=2e-5, rtol=1e-5)
    assert prepack_linears(model) == 0


@needs_x86
def test_only_what_gains_is_replaced() -> None:
    model = torch.nn.ModuleDict(
        {
            "large": linear(512, 512, torch.float32, False),
            "small": linear(64, 64, torch.float32, False),
            "float16": linear(512, 512, torch.float16, False),
            "own": type("Own", (torch.nn.Linear,), {})(512, 512),
        }
    )
    large = model["large"].weight
    assert prepack_linears(model) == 1
    assert isinstance(model["large"], PrepackedLinear) and isinstance(model["small"], torch.nn.Linear)
    assert (model["large"].weight.shape, model["large"].weight.dtype) == (large.shape, large.dtype)
    assert all(weight is not large for weight in model.parameters())


def test_elsewhere_nothing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(linear(512, 512, torch.float32, False))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert prepack_linears(model) == 0 and isinstance(model[0], torch.nn.Linear)
