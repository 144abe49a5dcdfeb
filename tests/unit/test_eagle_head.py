"""EAGLE heads: what their folders may look like, what is refused, and that the module computes what it should.

The reference below is written from the papers' formulas with plain matrix products: full causal attention, no arena.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from seedmp import Engine
from seedmp.errors import ConfigError
from seedmp.ipc.arena import layout_for
from seedmp.models.eagle import EagleHead, HeadKind, is_head, load_head, read_head, save_head
from seedmp.models.eagle_runner import HeadRunner, head_rows
from seedmp.models.features import FeatureTap, published_layers
from seedmp.models.inflate import Shape, inflate
from seedmp.models.load import ModelSpec, load_model
from seedmp.models.rows import BranchRows, pack_rows
from tests.helpers.heads import HEAD_CONFIG, HEADS, HIDDEN, KV_HEADS, head_tensors, make_head, write_head

VOCAB, DRAFT_VOCAB = 50, 20
KINDS = ("eagle", "eagle3")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    torch.manual_seed(3)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=40, num_hidden_layers=7, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("target")
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return ModelSpec(str(folder))


def load(path: Path, target: ModelSpec) -> EagleHead:
    return load_head(read_head(str(path), target), torch.float32, "cpu", target)


# --- a reference -----------------------------------------------------------------------------------


def rms(x: Tensor, gain: Tensor) -> Tensor:
    root: Tensor = (x.pow(2).mean(-1, keepdim=True) + HEAD_CONFIG["rms_norm_eps"]).sqrt()
    return x / root * gain


def rotate(x: Tensor, theta: float) -> Tensor:
    """[n, T, d]: pair (i, i + d/2) of row t is turned by t * theta ** (-2 i / d)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * torch.pow(theta, -torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def attention(x: Tensor, t: dict[str, Tensor], layer: str, theta: float) -> Tensor:
    size = HIDDEN // HEADS
    q, k, v = (
        (x @ t[f"{layer}self_attn.{name}_proj.weight"].T).view(len(x), -1, size).transpose(0, 1) for name in "qkv"
    )
    q, k = rotate(q, theta), rotate(k, theta)
    k, v = (y.repeat_interleave(HEADS // KV_HEADS, 0) for y in (k, v))
    scores = q @ k.transpose(1, 2) / math.sqrt(size)
    scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), -1) @ t[f"{layer}self_attn.o_proj.weight"].T


def mlp(x: Tensor, t: dict[str, Tensor], layer: str) -> Tensor:
    gate, up = x @ t[layer + "mlp.gate_proj.weight"].T, x @ t[layer + "mlp.up_proj.weight"].T
    return (gate * gate.sigmoid() * up) @ t[layer + "mlp.down_proj.weight"].T


def reference(
    kind: str, t: dict[str, Tensor], embedding: Tensor, output: Tensor, ids: Tensor, features: Tensor, num_true: int
) -> Tensor:
    """[T, D] logits after each of ``ids``; the first ``num_true`` rows have features, the others the head's own."""
    theta, layer = HEAD_CONFIG["rope_theta"], "midlayer." if kind == "eagle3" else "layers.0."
    states = features @ t["fc.weight"].T if kind == "eagle3" else features
    for _ in range(len(ids) - num_true + 1):
        e = embedding[ids]
        if kind == "eagle3":
            normed = rms(states, t[layer + "hidden_norm.weight"])
            x = torch.cat([rms(e, t[layer + "input_layernorm.weight"]), normed], -1)
            residual = states
        else:
            x = residual = torch.cat([e, states], -1) @ t["fc.weight"].T + t["fc.bias"]
        y = residual + attention(x, t, layer, theta)
        made = y + mlp(rms(y, t[layer + "post_attention_layernorm.weight"]), t, layer)
        rest = made[num_true - 1 : -1] if len(ids) > num_true else made[:0]
        states = torch.cat([states[:num_true], rest])
    return (rms(made, t["norm.weight"]) if kind == "eagle3" else made) @ output.T


@pytest.mark.parametrize("num_true", [9, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_the_module_over_an_arena_is_the_reference(kind: str, num_true: int, target: ModelSpec, tmp_path: Path) -> None:
    """Context in two forwards, then own features token by token, at scattered slots among strangers."""
    tensors = head_tensors(kind, VOCAB, DRAFT_VOCAB)
    head = load(make_head(kind, tmp_path, VOCAB, DRAFT_VOCAB), target)
    model = load_model(target, torch.float32)
    ids = torch.tensor([3, 17, 4, 44, 30, 8, 8, 21, 2, 11])
    layers = [] if kind == "eagle" else [2, 3, 4]  # L = 7
    assert list(head.spec.feature_layers) == layers
    with torch.inference_mode():
        out = model.model(ids[None], output_hidden_states=True)
        features = torch.cat([out.hidden_states[i][0] for i in layers], -1) if layers else out.last_hidden_state[0]
        lm_head = tensors["lm_head.weight"] if kind == "eagle3" else model.lm_head.weight
        expected = reference(kind, tensors, model.model.embed_tokens.weight, lm_head, ids[1:], features[:-1], num_true)

    arena = torch.randn(layout_for(head.config, 40, torch.float32).shape)
    runner = HeadRunner(head, arena, VOCAB)
    slots = [1, 31, 7, 0, 22, 5, 39, 12, 3, 18]  # the first token's is never written
    got = []
    for start, end in [(0, 3), (3, num_true + 1), *((i, i + 1) for i in range(num_true + 1, 10))]:
        own = start > num_true
        chain = BranchRows(slots[:start], ids[start:end].tolist(), slots[start:end], num_wanted=end - max(start, 1))
        rows, kept = head_rows(pack_rows([chain]))
        assert kept.tolist() == list(range(start == 0, end - start)) and not rows.allowed[:, slots[0]].any()
        given = runner.own_features[-1:] if own else features[max(start, 1) - 1 : end - 1]
        got.append(runner.run_with(rows, given, own=own))
    assert torch.cat(got).shape == expected.shape == (9, DRAFT_VOCAB if kind == "eagle3" else VOCAB)
    torch.testing.assert_close(torch.cat(got), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.cat(got).argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("layers", [(), (2, 3, 4), (0, 3, 7)])
def test_features_are_the_hidden_states(layers: tuple[int, ...], target: ModelSpec) -> None:
    model = load_model(target, torch.float32)
    ids = torch.tensor([[3, 17, 4, 44]])
    before_norm: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _module, args: before_norm.append(args[0]))
    arena = torch.zeros(8, HIDDEN * max(1, len(layers)))
    tap = FeatureTap(model, layers, arena)
    with torch.inference_mode():
        out = model(ids, output_hidden_states=True, logits_to_keep=1)
        tap.store(torch.tensor([6, 0, 1, 5]))
        states = {**dict(enumerate(out.hidden_states)), 7: before_norm[0]}
        wanted = torch.cat([states[layer] for layer in layers], -1) if layers else out.hidden_states[-1]
    assert torch.equal(arena[[6, 0, 1, 5]], wanted[0])
    assert not arena[[2, 3, 4, 7]].any()


@pytest.mark.parametrize("layers", [(), (2, 3, 4), (0, 3, 7)])
def test_an_inflated_target_has_the_features_of_the_small_one(layers: tuple[int, ...], target: ModelSpec) -> None:
    small = load_model(target, torch.float32)
    big = inflate(load_model(target, torch.float32), Shape(48, 9, 8, 8, 64, 60), dtype=torch.float32, device="cpu")
    ids = torch.tensor([[3, 17, 4, 44]])
    taken = []
    for model in (small, big):
        tap = FeatureTap(model, layers, hidden_size=HIDDEN)
        with torch.inference_mode():
            model(ids)
        taken.append(tap.take())
    torch.testing.assert_close(taken[0], taken[1], atol=1e-4, rtol=1e-4)


def test_which_layers_are_taken() -> None:
    assert published_layers(32) == (2, 16, 29) and published_layers(80) == (2, 40, 77)
    assert published_layers(7) == (2, 3, 4) and published_layers(6) == (1, 3, 5)
    assert published_layers(2) == (0, 1, 2) and published_layers(1) == (0, 0, 1)


# --- layouts ---------------------------------------------------------------------------------------


def logits_of(head: EagleHead) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, head.spec.feature_size, generator=generator)
    mask = torch.full((3, 3), -1e9).triu(1)[None, None]
    with torch.inference_mode():
        ids, positions = torch.tensor([[1, 2, 3]]), torch.arange(3)[None]
        return head.logits(head(ids, head.fuse(features), positions, mask, None))


def as_vllm(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """vLLM's own names: a prefix, and one layer list."""
    renamed = {}
    for name, tensor in tensors.items():
        name = name.replace("midlayer.", "layers.0.")
        renamed[name if name.startswith(("lm_head", "d2t", "t2d")) else f"model.{name}"] = tensor
    return renamed


@pytest.mark.parametrize("pickled", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_same_head(kind: str, pickled: bool, target: ModelSpec, tmp_path: Path) -> None:
    tensors = head_tensors(kind, VOCAB, DRAFT_VOCAB)
    first = load(write_head(tmp_path / "a", tensors, pickled=pickled), target)
    wanted = logits_of(first)
    folders = [write_head(tmp_path / "b", as_vllm(tensors), pickled=pickled)]
    if kind == "eagle3":
        renamed = {
            "draft_id_to_target_id" if name == "d2t" else name: t for name, t in tensors.items() if name != "t2d"
        }
        folders.append(write_head(tmp_path / "c", renamed, pickled=pickled, draft_vocab_size=DRAFT_VOCAB))
    save_head(first, tmp_path / "d")
    for folder in [*folders, tmp_path / "d"]:
        again = load(folder, target)
        assert torch.equal(logits_of(again), wanted)
        assert torch.equal(again.target_ids(), first.target_ids())
        assert again.spec.config.rope_parameters["rope_theta"] == 5000.0
    saved = json.loads((tmp_path / "d" / "config.json").read_text())
    assert "eagle_aux_hidden_state_layer_ids" not in saved  # the usual ones, which readers count differently
    assert saved["architectures"] == [{"eagle": "EagleLlamaForCausalLM", "eagle3": "Eagle3LlamaForCausalLM"}[kind]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_head_lacks_is_its_targets(kind: str, target: ModelSpec, tmp_path: Path) -> None:
    tensors = head_tensors(kind, VOCAB, VOCAB)
    for name in ("embed_tokens.weight", "lm_head.weight", "d2t", "t2d"):
        tensors.pop(name, None)
    head = load(write_head(tmp_path, tensors), target)
    model = load_model(target, torch.float32)
    assert torch.equal(head.embed_tokens.weight, model.model.embed_tokens.weight)
    assert torch.equal(head.lm_head.weight, model.lm_head.weight)
    assert torch.equal(head.target_ids(), torch.arange(VOCAB))
    save_head(head, tmp_path / "saved")
    again = load(tmp_path / "saved", target)
    assert again.spec.from_target == {"embed_tokens.weight", "lm_head.weight"}
    assert torch.equal(logits_of(again), logits_of(head))


def test_layers_that_are_not_the_usual_ones_are_written(target: ModelSpec, tmp_path: Path) -> None:
    tensors = head_tensors("eagle3", VOCAB, DRAFT_VOCAB)
    head = load(write_head(tmp_path / "a", tensors, eagle_aux_hidden_state_layer_ids=[0, 3, 7]), target)
    save_head(head, tmp_path / "b")
    assert read_head(str(tmp_path / "b"), target).feature_layers == (0, 3, 7)


def test_a_hub_id_is_fetched(target: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = make_head("eagle", tmp_path, VOCAB)
    asked = []

    def download(repo: str, **options: Any) -> str:
        asked.append((repo, options))
        return str(head)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert read_head("org/head", target).kind is HeadKind.EAGLE
    names = ["config.json", "model.safetensors", "pytorch_model.bin"]
    assert asked == [("org/head", {"allow_patterns": names, "local_files_only": True})]


def test_rotary_settings_are_the_targets_where_the_head_names_none(target: ModelSpec, tmp_path: Path) -> None:
    folder = make_head("eagle", tmp_path, VOCAB)
    plain = json.loads((folder / "config.json").read_text())
    del plain["rope_theta"]
    (folder / "config.json").write_text(json.dumps(plain))
    assert read_head(str(folder), target).config.rope_parameters["rope_theta"] == 10000.0


def test_attention_biases_are_taken_as_they_come(target: ModelSpec, tmp_path: Path) -> None:
    tensors = head_tensors("eagle", VOCAB, VOCAB)
    for name, rows in (("q", HIDDEN), ("k", HIDDEN // 2), ("v", HIDDEN // 2)):
        tensors[f"layers.0.self_attn.{name}_proj.bias"] = torch.ones(rows)
    head = load(write_head(tmp_path, tensors), target)
    assert torch.equal(head.layers[0].self_attn.q_proj.bias, torch.ones(HIDDEN))  # type: ignore[union-attr, arg-type]
    assert head.layers[0].self_attn.o_proj.bias is None  # type: ignore[union-attr]


# --- what is refused -------------------------------------------------------------------------------


def broken(kind: str, change: Any, folder: Path, **config: Any) -> str:
    tensors = head_tensors(kind, VOCAB, DRAFT_VOCAB)
    change(tensors)
    return str(write_head(folder, tensors, **config))


@pytest.mark.parametrize(
    ("kind", "change", "config", "text"),
    [
        ("eagle", lambda t: t.pop("layers.0.mlp.up_proj.weight"), {}, "missing: layers.0.mlp.up_proj.weight"),
        ("eagle", lambda t: t.pop("fc.bias"), {"bias": True}, "missing: fc.bias"),
        ("eagle", lambda t: t.update({"layers.1.x": torch.ones(1)}), {}, "unexpected: layers.1.x"),
        ("eagle3", lambda t: t.pop("d2t"), {}, "missing: d2t"),
        ("eagle3", lambda t: t.pop("norm.weight"), {}, "missing: norm.weight"),
        ("eagle3", lambda t: t.pop("lm_head.weight"), {"draft_vocab_size": 20},
         r"lm_head.weight is missing, and the target's \(50, 32\) does not fit \(20, 32\)"),
        ("eagle3", lambda t: t.update({"fc.weight": torch.ones(32, 64)}), {},
         r"wrong shape: fc.weight \(32, 64\) instead of \(32, 96\)"),
        ("eagle", lambda t: t.update({"embed_tokens.weight": torch.ones(51, 32)}), {}, r"\(51, 32\) instead of \(50"),
        ("eagle", lambda t: t.pop("fc.weight"), {}, "is no EAGLE head: method='eagle' needs"),
        ("eagle", lambda t: None, {"num_hidden_layers": 2}, "has 2 layers: heads of one layer are served"),
        ("eagle", lambda t: None, {"hidden_size": None}, "config.json lacks hidden_size"),
        ("eagle3", lambda t: None, {"fc_norm": True}, "fc_norm is not supported"),
        ("eagle3", lambda t: None, {"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state=false"),
        ("eagle3", lambda t: None, {"eagle_aux_hidden_state_layer_ids": [1, 3, 9]}, "the target has layers 0 to 6"),
        ("eagle3", lambda t: None, {"eagle_aux_hidden_state_layer_ids": [1, 3]}, "wrong shape: fc.weight"),
    ],
)  # fmt: skip
def test_heads_that_do_not_fit(
    kind: str, change: Any, config: dict[str, Any], text: str, target: ModelSpec, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        read_head(broken(kind, change, tmp_path, **config), target)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t["d2t"].fill_(60), "maps to ids twice, or outside of 0 to 49"),
        (lambda t: t["d2t"].copy_(-torch.arange(20)), "maps to ids twice"),
        (lambda t: t["t2d"].fill_(True), "d2t and t2d name different tokens"),
        (lambda t: t.update(d2t=t["d2t"].float()), "must hold whole numbers"),
    ],
)
def test_maps_of_the_vocabulary_that_are_wrong(change: Any, text: str, target: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        load(Path(broken("eagle3", change, tmp_path)), target)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of a pickle ran')",))


def test_files_that_are_broken(target: ModelSpec, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_head(str(tmp_path / "none"), target)
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        read_head(str(tmp_path), target)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"has no model\.safetensors or pytorch_model\.bin"):
        read_head(str(tmp_path), target)
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        read_head(str(tmp_path), target)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        read_head(str(tmp_path), target)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"fc.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"pytorch_model\.bin cannot be read"):
        read_head(str(tmp_path), target)
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="is no dictionary of tensors"):
        read_head(str(tmp_path), target)


def test_a_head_and_a_model_are_told_apart_before_any_process_starts(target: ModelSpec, tmp_path: Path) -> None:
    head = make_head("eagle3", tmp_path, VOCAB, DRAFT_VOCAB)
    assert is_head(head) and not is_head(target.path) and not is_head(tmp_path / "none")
    assert read_head(str(head), target).kind is HeadKind.EAGLE3
    with pytest.raises(ConfigError, match="is an EAGLE head: only method='eagle' can draft with it"):
        Engine(target.path, head, method="mcsd")
    with pytest.raises(ConfigError, match="is no EAGLE head: method='eagle' needs a folder"):
        Engine(target.path, target.path, method="eagle")
