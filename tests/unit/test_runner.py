"""Runners: a packed tree forward is the model's own plain forward, for every way of attending that is served."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from seedmp.config import EngineConfig
from seedmp.errors import ConfigError
from seedmp.ipc.arena import layout_for
from seedmp.models.branch_attention import Reach, layer_reaches
from seedmp.models.buckets import Buckets
from seedmp.models.eager import EagerRunner
from seedmp.models.rows import BranchRows, Rows, pack_rows
from seedmp.models.runner import RUNNERS, make_runner
from seedmp.sampling import SamplingParams
from tests.helpers.local_loop import LocalLoop, Models
from tests.helpers.models import CONFIGS, VOCAB_SIZE, WINDOW

NUM_SLOTS = 64
TEXT = [7, 30, 41, 8, 22, 90, 3, 17, 55, 60, 61, 12, 9, 44, 71, 5, 88, 33]
CUT = 11  # the prompt is run in two chunks, and the last token with the tree
TREE, PARENTS = [11, 12, 13, 14, 15], [-1, -1, 0, 1, 2]

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 160, "initializer_range": 0.3,
    "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
SLIDING: dict[str, Any] = {"sliding_window": WINDOW}
MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt-oss": ("gpt_oss", {**SLIDING, **EXPERTS, "head_dim": 16}),  # no SDPA: sinks
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", SLIDING),
    "cohere2": ("cohere2", SLIDING),
    "smollm3": ("smollm3", {}),
    "smollm3-window": ("smollm3", {**SLIDING, "use_sliding_window": True}),
    "starcoder2": ("starcoder2", SLIDING),
    "phi3-window": ("phi3", SLIDING),
    "qwen2-no-window": ("qwen2", {**SLIDING, "use_sliding_window": False}),
    "qwen2-moe": ("qwen2_moe", {**SLIDING, **EXPERTS, "use_sliding_window": True, "max_window_layers": 2}),
    "phimoe": ("phimoe", {**SLIDING, **EXPERTS}),  # its layers name no window in their calls
    "llama4": ("llama4_text", {**EXPERTS, "attention_chunk_size": 8}),
    "doge": ("doge", SLIDING),  # its layers make masks of their own from the given one
    "stablelm": ("stablelm", {}),  # its layers call no attention function that could be exchanged
}


def make_model(name: str) -> Any:
    torch.manual_seed(3)
    config = CONFIGS[name]() if name in CONFIGS else None
    if config is None:
        kind, settings = MORE[name]
        config = AutoConfig.for_model(kind, **{**SIZES, **settings})
    has_sdpa = type(AutoModelForCausalLM.from_config(config))._supports_sdpa
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if has_sdpa else "eager").float()
    model.requires_grad_(False)
    for parameter in model.parameters():  # some are left as they were allocated
        if not torch.isfinite(parameter).all() or float(parameter.std()) == 0:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tree_rows(order: list[int]) -> list[Rows]:
    """The text in two chunks, then its last token with the tree; at mixed slots."""
    end = len(TEXT) - 1
    context, last, nodes = order[:end], order[end : end + 1], order[end + 1 : end + 1 + len(TREE)]
    return [
        pack_rows([BranchRows((), TEXT[:CUT], context[:CUT])]),
        pack_rows([BranchRows(context[:CUT], TEXT[CUT:-1], context[CUT:])]),
        pack_rows([BranchRows(context, TEXT[-1:], last, TREE, PARENTS, nodes, num_wanted=1 + len(TREE))]),
    ]


@torch.inference_mode()
def plain_logits(model: Any) -> torch.Tensor:
    """[1 + N, V] of the model's own forward over each path, before it gets a runner."""
    paths: list[list[int]] = [[]]
    for token_id, parent in zip(TREE, PARENTS, strict=True):
        paths.append([*paths[parent + 1], token_id])
    return torch.stack([model(torch.tensor([TEXT + path])).logits[0, -1] for path in paths])


@pytest.mark.parametrize("name", [*CONFIGS, *MORE])
def test_a_packed_tree_is_the_plain_forward_and_so_it_is_with_ghosts(name: str) -> None:
    torch.set_num_threads(1)
    model = make_model(name)
    expected = plain_logits(model)
    assert float(expected.std()) > 1e-3
    arena = torch.randn(layout_for(model.config, NUM_SLOTS, torch.float32).shape)
    order = torch.randperm(NUM_SLOTS).tolist()
    arenas, logits = [], []
    for buckets in (None, Buckets()):
        runner = EagerRunner(model, arena.clone(), VOCAB_SIZE, buckets=buckets)
        for rows in tree_rows(order):
            last = runner.run(rows)
        arenas.append(runner._cache.arena[:, :, :NUM_SLOTS])
        logits.append(last)
        assert runner.num_slots == NUM_SLOTS and runner.busy_ns > 0
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits[0] / scale, expected / scale, atol=2e-5, rtol=0)
    torch.testing.assert_close(logits[1], logits[0], atol=1e-5 * max(1, scale), rtol=1e-5)
    torch.testing.assert_close(arenas[1], arenas[0], atol=1e-5 * max(1, scale), rtol=1e-5)


def test_inputs_have_the_shapes_of_the_buckets() -> None:
    model = make_model("mistral")
    arena = torch.zeros(layout_for(model.config, NUM_SLOTS, torch.float32).shape)
    runner = EagerRunner(model, arena, VOCAB_SIZE, buckets=Buckets(rows=(8, 16), columns=(48, 256)))
    first, _, tree = map(runner.prepare, tree_rows(list(range(NUM_SLOTS))))
    assert first.token_ids.shape == first.positions.shape == (1, 16) and first.slots.shape == (16,)
    assert tree.token_ids.shape == (1, 8) and tree.keep.shape == (8,) and (tree.num_rows, tree.num_wanted) == (6, 6)
    assert tree.num_columns == 48 and tree.attention.any_mask.shape == (1, 1, 8, 48)
    assert tree.slots[-2:].tolist() == [NUM_SLOTS] * 2  # the ghosts'


@pytest.mark.parametrize(
    ("settings", "reaches"),
    [
        ({}, (None, None)),
        ({"sliding_window": 8}, (Reach(8), Reach(8))),
        ({"sliding_window": 8, "use_sliding_window": False}, (None, None)),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, (None, Reach(8))),
        ({"attention_chunk_size": 4, "layer_types": ["chunked_attention", "full_attention"]}, (Reach(4, True), None)),
    ],
)
def test_how_far_a_layer_sees(settings: dict[str, Any], reaches: tuple[Any, ...]) -> None:
    config = CONFIGS["llama"]()
    for name, value in settings.items():
        setattr(config, name, value)
    assert layer_reaches(config) == reaches


def test_a_layer_that_attends_otherwise_is_refused() -> None:
    config = CONFIGS["llama"]()
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ConfigError, match="a layer of type 'linear_attention': must be one of full_attention, "):
        layer_reaches(config)


TOY = """
from seedmp.models.eager import EagerRunner

class ToyRunner(EagerRunner):
    num_forwards = 0

    def run(self, rows):
        type(self).num_forwards += 1
        return super().run(rows)
"""


def test_a_runner_from_outside(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, tiny_pair: Callable[..., Any]) -> None:

    (tmp_path / "toy_of_a_user.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    models = Models.load(*tiny_pair("llama"))
    params = SamplingParams(temperature=0.0, max_tokens=8, seed=1, ignore_eos=True)
    texts = [
        [outcome.token_ids for outcome in LocalLoop(models, kv_slots=256, runner=name).run([TEXT, TEXT[3:]], params)]
        for name in ("eager", "toy_of_a_user:ToyRunner")
    ]
    assert texts[0] == texts[1]
    assert RUNNERS.load("toy_of_a_user:ToyRunner").num_forwards > 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["graph", "", None, "toy_that_is_not:Anywhere", "seedmp.models.eager:Nothing"])
def test_unknown_runners_are_refused(name: Any) -> None:
    with pytest.raises(ConfigError, match="runner="):
        EngineConfig(target="t", draft="d", runner=name)
    with pytest.raises(ConfigError, match="runner="):
        make_runner(name, None, torch.zeros(1), 1)
