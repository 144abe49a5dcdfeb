"""A model is served when packed trees give what it gives by itself; what was proven once is not proven again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, JambaConfig, LlamaConfig

from seedmp.errors import ConfigError
from seedmp.models.eager import EagerRunner
from seedmp.models.load import ModelSpec, load_config, load_model
from seedmp.models.proof import Part, difference, prove
from seedmp.models.rope import route_ropes
from seedmp.models.rows import Rows
from tests.helpers.models import ARCHITECTURES

Pair = Callable[[str], tuple[Path, Path]]
HERE = "tests.unit.test_proof"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "seedmp" / "proven"


def load(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(ModelSpec(str(path)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_served_is_proven_once(
    architecture: str, dtype: torch.dtype, tiny_pair: Pair, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_pair(architecture)[0]
    model = load(path, dtype)
    before = model.config.to_json_string()
    prove(str(path), model, "eager")
    assert len(list(cache.iterdir())) == 1
    assert model.config.to_json_string() == before
    again = load(path, dtype)
    monkeypatch.setattr(type(model), "forward", None)
    prove(str(path), again, "eager")


class SeesAll(EagerRunner):
    """Rows see each other's branches."""

    def run(self, rows: Rows) -> torch.Tensor:
        return super().run(replace(rows, matrix=np.broadcast_to(rows.allowed.any(0), rows.allowed.shape).copy()))


class SeesSiblings(EagerRunner):
    """The second child of a tree sees the first."""

    def run(self, rows: Rows) -> torch.Tensor:
        allowed = rows.allowed.copy()
        if len(rows.branches[0].tree_ids):
            allowed[2] |= allowed[1]
        return super().run(replace(rows, matrix=allowed))


class StandsLater(EagerRunner):
    """Rows of a second branch stand one position too far."""

    def run(self, rows: Rows) -> torch.Tensor:
        positions = rows.positions.copy()
        positions[rows.lengths[0] :] += np.arange(rows.lengths[1])
        return super().run(replace(rows, positions=positions))


class ForgetsWindow(EagerRunner):
    """All layers see everything."""

    def prepare(self, rows: Rows) -> Any:
        inputs = super().prepare(rows)
        masks = inputs.attention.masks
        widest = max(masks.values(), key=lambda mask: int((mask == 0).sum()))
        return replace(inputs, attention=replace(inputs.attention, masks=dict.fromkeys(masks, widest)))


@pytest.mark.parametrize(
    ("runner", "architecture", "what"),
    [
        ("SeesAll", "llama", "the beginning of a text"),
        ("SeesSiblings", "gpt2", "a tree's second child"),
        ("StandsLater", "opt", "a second branch"),
        ("ForgetsWindow", "gemma2", "the beginning of a text"),
    ],
)
def test_a_difference_is_named_and_not_remembered(
    runner: str, architecture: str, what: str, tiny_pair: Pair, cache: Path
) -> None:
    path = tiny_pair(architecture)[0]
    with pytest.raises(ConfigError, match=f"of type '{architecture}' cannot be served: {what} differs .* first at pos"):
        prove(str(path), load(path), f"{HERE}:{runner}")
    assert not cache.exists()


def test_a_window_that_is_longer_than_the_proof_is_shortened(tiny_pair: Pair, tmp_path: Path) -> None:
    model = load(tiny_pair("gemma2")[0])
    model.config.sliding_window = 4096
    for module in model.modules():
        if getattr(module, "sliding_window", None):
            module.sliding_window = 4096
    with pytest.raises(ConfigError, match=r"the beginning of a text differs .* first at position 8,"):
        prove("-", model, f"{HERE}:ForgetsWindow")
    assert model.config.sliding_window == 4096


def test_other_weights_are_proven_anew_and_a_cache_is_not_needed(
    tiny_pair: Pair, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny_pair("llama")[0]
    prove(str(path), load(path), "eager")
    os.utime(path / "model.safetensors", ns=(1, 1))
    prove(str(path), load(path), "eager")
    assert len(list(cache.iterdir())) == 2
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    prove(str(path), load(path), "eager")


def test_rounding_is_allowed_for_and_overflow_must_agree() -> None:
    expected = torch.randn(6, 50)
    part = Part("it", 3, expected + 1e-5, expected)
    assert difference(part) == ""
    wrong = expected.clone()
    wrong[2] += torch.randn(50)
    assert difference(replace(part, logits=wrong)).startswith("it differs from what the model itself gives, first at ")
    half = replace(part, expected=expected.bfloat16(), logits=wrong.bfloat16())
    assert difference(half) == ""  # one row: an expert that was chosen by a hair's breadth
    wrong[2] = expected[2] = torch.nan
    assert difference(Part("it", 3, wrong, expected)) == ""
    assert "first at position 5," in difference(Part("it", 3, expected.nan_to_num(5.0), expected))


def scaled(kind: str, **settings: Any) -> Any:
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3,
        rope_parameters={"rope_type": kind, "rope_theta": 1e4, **settings},
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config).eval()


LONGROPE = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 64}


class OneRopeForAll(EagerRunner):
    """Every row has the angles of the forward's longest text."""

    def prepare(self, rows: Rows) -> Any:
        inputs = super().prepare(rows)
        return replace(inputs, attention=replace(inputs.attention, rope_lens=None))


@pytest.mark.parametrize(("kind", "rope"), [("longrope", LONGROPE), ("dynamic", {"factor": 4.0})])
def test_ropes_are_proven_at_a_short_border_and_put_back(kind: str, rope: dict[str, Any]) -> None:
    model = scaled(kind, **rope)
    before, border = model.config.to_json_string(), route_ropes(model)
    assert border is not None and border.length == (64 if kind == "longrope" else 256)
    prove("-", model, "eager")
    assert model.config.to_json_string() == before and route_ropes(model) == border
    with pytest.raises(ConfigError, match="differs from what the model itself gives"):
        prove("-", model, f"{HERE}:OneRopeForAll")


@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn"])
def test_other_ropes_have_no_border(kind: str) -> None:
    settings: dict[str, Any] = {} if kind == "default" else {"factor": 4.0, "original_max_position_embeddings": 64}
    if kind == "llama3":
        settings |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    assert route_ropes(scaled(kind, **settings)) is None


def test_a_state_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    JambaConfig(num_hidden_layers=8).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="of type 'jamba' is not served: it has layers of type 'mamba'"):
        load_config(ModelSpec(str(tmp_path)))
