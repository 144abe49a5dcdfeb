"""The fused runner computes what the eager one does, with its C part and without."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seedmp.errors import ConfigError
from seedmp.ipc.arena import layout_for
from seedmp.models.eager import EagerRunner
from seedmp.models.features import FeatureTap
from seedmp.models.fused_runner import FUSED_OR_EAGER, FusedRunner
from seedmp.models.native import library
from seedmp.models.native.attention import NativeAttention, groups_of
from seedmp.models.proof import prove
from seedmp.models.rows import BranchRows, Rows, pack_rows
from seedmp.models.runner import make_runner, pack_model

VOCAB_SIZE, NUM_SLOTS, SIZE = 96, 900, 64
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"num_key_value_heads": 4, "head_dim": 32}),
    "llama-groups": ("llama", {"num_key_value_heads": 2, "head_dim": 48}),
    "llama-biases": ("llama", {"num_key_value_heads": 1, "head_dim": 16, "attention_bias": True}),
    "llama-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, "head_dim": 64},
    ),
    "mistral-window": ("mistral", {"num_key_value_heads": 2, "sliding_window": 40, "head_dim": 32}),
    "qwen2": ("qwen2", {"num_key_value_heads": 2}),
    "qwen3": ("qwen3", {"num_key_value_heads": 2, "head_dim": 128}),
}


def make_model(name: str) -> Any:
    torch.manual_seed(3)
    kind, settings = MODELS[name]
    config = AutoConfig.for_model(
        kind, vocab_size=VOCAB_SIZE, hidden_size=SIZE, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=80, max_position_embeddings=1024, initializer_range=0.2, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().requires_grad_(False)
    for name_, parameter in model.named_parameters():  # ones and zeros would hide a weight that is not used
        if "norm" in name_ or "bias" in name_:
            parameter += 0.3 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    torch.set_num_threads(2)
    if request.param == "torch":
        monkeypatch.setattr(NativeAttention, "serves", staticmethod(lambda *_: False))
    elif library.native_library() is None:
        pytest.skip("no C compiler")
    yield str(request.param)
    torch.set_num_threads(1)


def make_runners(name: str) -> tuple[EagerRunner, FusedRunner]:
    shape = layout_for(make_model(name).config, NUM_SLOTS, torch.float32).shape
    eager, fused = (kind(make_model(name), torch.zeros(shape), VOCAB_SIZE) for kind in (EagerRunner, FusedRunner))
    assert isinstance(fused, FusedRunner)
    return eager, fused


def some_branches(seed: int) -> list[list[BranchRows]]:
    """Two forwards: prompts with long common beginnings, then chains and trees after them, at scattered slots."""
    rng = np.random.default_rng(seed)
    free = rng.permutation(NUM_SLOTS).tolist()

    def take(num: int) -> list[int]:
        return [free.pop() for _ in range(num)]

    def tokens(num: int) -> list[int]:
        return [int(token_id) for token_id in rng.integers(VOCAB_SIZE, size=num)]

    stem = take(100)
    contexts = [[*stem, *take(30)], [*stem[:70], *take(5)], take(3), [], [*stem, *take(1)], stem[:80]]
    prompts = [BranchRows((), tokens(len(stem)), stem)]
    last: list[BranchRows] = []
    for context in contexts:
        num_shared = next((i for i, slot in enumerate(context) if slot not in stem), len(context))
        if len(context) > num_shared:
            prompts.append(BranchRows(context[:num_shared], tokens(len(context) - num_shared), context[num_shared:]))
        num_chain, num_nodes = int(rng.integers(1, 4)), int(rng.integers(0, 7))
        parents = [int(rng.integers(-1, node)) if node else -1 for node in range(num_nodes)]
        first = int(rng.integers(0, num_nodes)) if num_nodes and rng.random() < 0.3 else 0
        chain, nodes, ids = take(num_chain), take(num_nodes), tokens(num_nodes)
        if first:  # its earlier nodes were run before
            prompts.append(BranchRows(context, tokens(num_chain), chain, ids[:first], parents[:first], nodes[:first]))
            last.append(BranchRows([*context, *chain], (), (), ids, parents, nodes, first, num_nodes - first))
        else:
            wanted = num_nodes + 1
            last.append(BranchRows(context, tokens(num_chain), chain, ids, parents, nodes, num_wanted=wanted))
    return [[prompt] for prompt in prompts] + [last]


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_eager_runner(name: str, way: str) -> None:
    eager, fused = make_runners(name)
    assert (fused._fused.native is not None) == (way == "native")
    for seed in range(3):
        for forward in some_branches(seed):
            rows = pack_rows(forward)
            expected, logits = eager.run(rows), fused.run(rows)
        assert float(expected.std()) > 0.1
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
        arenas = [runner._cache.arena[:, :, :NUM_SLOTS] for runner in (eager, fused)]
        torch.testing.assert_close(arenas[1], arenas[0], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen2"])
def test_bfloat16_is_as_near_to_float32_as_the_eager_runner(name: str, way: str) -> None:
    exact, _ = make_runners(name)
    shape = layout_for(exact.model.config, NUM_SLOTS, torch.bfloat16).shape
    rounded = [
        kind(make_model(name).bfloat16(), torch.zeros(shape, dtype=torch.bfloat16), VOCAB_SIZE)
        for kind in (EagerRunner, FusedRunner)
    ]
    for forward in some_branches(5):
        rows = pack_rows(forward)
        expected = exact.run(rows)
        errors = [float((runner.run(rows).float() - expected).square().mean().sqrt()) for runner in rounded]
    assert 0 < errors[1] < 1.3 * errors[0] < 0.3 * float(expected.std())


def test_slots_that_nobody_sees_may_hold_anything() -> None:
    if library.native_library() is None:
        pytest.skip("no C compiler")
    _, clean = make_runners("llama")
    _, dirty = make_runners("llama")
    dirty._cache.arena.fill_(torch.nan)
    for forward in some_branches(1):
        if max(len(b.chain_ids) for b in forward) > 40:  # a prompt: matrix products read more slots
            dirty._cache.arena.nan_to_num_(0.0)
            logits = [runner.run(pack_rows(forward)) for runner in (clean, dirty)]
            continue
        written = pack_rows(forward)
        untouched = np.setdiff1d(np.arange(NUM_SLOTS), np.flatnonzero(written.allowed.any(0)))
        dirty._cache.arena[:, :, untouched] = torch.nan
        logits = [runner.run(written) for runner in (clean, dirty)]
        dirty._cache.arena[:, :, untouched] = clean._cache.arena[:, :, untouched]
        assert torch.equal(logits[0], logits[1]) and bool(logits[0].isfinite().all())


def test_common_beginnings_are_read_once() -> None:
    stem = list(range(100))
    branches = [
        BranchRows([*stem, 200], [1], [300], num_wanted=1),
        BranchRows([*stem[:30], 201], [1], [301], num_wanted=1),  # too little in common
        BranchRows(stem[:90], [1], [302], num_wanted=1),
        BranchRows([], [1], [303], num_wanted=1),
        BranchRows([*stem, 200], list(range(32)), range(310, 342), num_wanted=1),  # too many rows
    ]
    assert groups_of(branches) == [[0, 2], [1], [3], [4]]


@pytest.mark.parametrize("layers", [(), (0, 1, 3)])
def test_heads_get_the_same_hidden_states(layers: tuple[int, ...], way: str) -> None:
    features = []
    for kind in (EagerRunner, FusedRunner):
        model = make_model("llama")
        arena = torch.zeros(layout_for(model.config, NUM_SLOTS, torch.float32).shape)
        kept = torch.zeros(NUM_SLOTS, SIZE * max(1, len(layers)))
        runner = kind(model, arena, VOCAB_SIZE, FeatureTap(model, layers, kept))
        for forward in some_branches(2):
            runner.run(pack_rows(forward))
        features.append(kept)
    assert float(features[0].std()) > 0.1
    torch.testing.assert_close(features[1], features[0], atol=1e-4, rtol=1e-5)


def change(model: Any, how: str) -> Any:
    if how == "activation":
        model.config.hidden_act = "gelu"
    elif how == "rope":
        model.config.rope_parameters["rope_type"] = "dynamic"
    elif how == "layer":
        model.model.layers[1].mlp.up_proj = torch.nn.Bilinear(1, 1, 1)
        model.model.layers[1].mlp.up_proj.in_features = 1
    return model


@pytest.mark.parametrize(
    ("how", "reason"),
    [("activation", "hidden_act='gelu'"), ("rope", "rope_type='dynamic'"), ("layer", "layers of type Bilinear")],
)
def test_what_it_does_not_compute_is_refused_by_name_and_run_eagerly_by_auto(how: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"runner='fused' cannot run this model: .*{reason}"):
        pack_model("fused", change(make_model("llama"), how))
    assert FUSED_OR_EAGER.pack(model := change(make_model("llama"), how)) is model


def test_other_models_are_run_eagerly_by_auto(tiny_pair: Callable[[str], tuple[Path, Path]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_pair("gemma2")[0]).eval()
    with pytest.raises(ConfigError, match="Gemma2ForCausalLM is not one of LlamaForCausalLM"):
        pack_model("fused", model)
    arena = torch.zeros(layout_for(model.config, 8, torch.float32).shape)
    assert type(make_runner("auto", pack_model("auto", model), arena, VOCAB_SIZE)) is EagerRunner
    llama = make_model("llama")
    arena = torch.zeros(layout_for(llama.config, 8, torch.float32).shape)
    assert type(make_runner("auto", pack_model("auto", llama), arena, VOCAB_SIZE)) is FusedRunner


@pytest.mark.parametrize(
    ("compiler", "note"),
    [
        ("no-such-compiler", "no C compiler 'no-such-compiler'"),
        ("false", "cannot be compiled"),
        ("cc '", "cannot be compiled"),
    ],
)
def test_without_a_compiler_it_says_so_and_torch_computes(
    compiler: str, note: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.native_library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            eager, fused = make_runners("llama")
            assert fused._fused.native is None and note in caplog.text
        rows: list[Rows] = [pack_rows(forward) for forward in some_branches(0)]
        expected, logits = [[runner.run(r) for r in rows][-1] for runner in (eager, fused)]
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
    finally:
        library.native_library.cache_clear()


def test_a_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if library.native_library() is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.native_library.cache_clear()
    try:
        assert library.native_library() is not None
        (file,) = (tmp_path / "seedmp").iterdir()
        made = file.stat().st_mtime_ns
        library.native_library.cache_clear()
        assert library.native_library() is not None and file.stat().st_mtime_ns == made
    finally:
        library.native_library.cache_clear()


def test_it_can_be_switched_off_and_a_proof_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if library.native_library() is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = make_model("llama")
    prove("a-model", model, "fused")
    (proven,) = (tmp_path / "seedmp" / "proven").iterdir()
    prove("a-model", model, "fused")
    assert list((tmp_path / "seedmp" / "proven").iterdir()) == [proven]
    monkeypatch.setenv("SEEDMP_NATIVE", "0")
    library.native_library.cache_clear()
    try:
        assert library.native_library() is None
        prove("a-model", model, "fused")
        assert len(list((tmp_path / "seedmp" / "proven").iterdir())) == 2
    finally:
        library.native_library.cache_clear()


def test_without_a_home_folder_it_is_compiled_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    library.native_library.cache_clear()
    try:
        assert library.native_library() is None
        prove("a-model", make_model("llama"), "fused")  # and nothing is remembered
    finally:
        library.native_library.cache_clear()
