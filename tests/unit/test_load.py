"""Loading models: what is accepted, and what is said about the rest."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    T5Config,
)

from seedmp.errors import ConfigError
from seedmp.models.load import (
    ModelSpec,
    check_vocabularies,
    eos_token_ids,
    load_config,
    load_model,
    load_tokenizer,
    warn_of_ignored_settings,
)
from seedmp.models.pair import DRAFT, TARGET

TARGET_SPEC, DRAFT_SPEC = ModelSpec(str(TARGET)), ModelSpec(str(DRAFT))


def folder_with(config: Any, path: Path) -> ModelSpec:
    config.save_pretrained(path)
    return ModelSpec(str(path))


def llama(path: Path, **options: Any) -> ModelSpec:
    return folder_with(LlamaConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1, **options), path)


def draft_with_vocab_size(path: Path, vocab_size: int) -> ModelSpec:
    """The draft's folder without its weights, with another vocab_size."""
    shutil.copytree(DRAFT, path, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"vocab_size": vocab_size}))
    return ModelSpec(str(path))


def test_bundled_pair() -> None:
    model = load_model(DRAFT_SPEC, torch.float32)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "sdpa"
    assert load_model(DRAFT_SPEC, torch.bfloat16).dtype == torch.bfloat16
    assert eos_token_ids(TARGET_SPEC) == (2,)
    assert check_vocabularies(TARGET_SPEC, DRAFT_SPEC) == 4096
    for path in (TARGET, DRAFT):
        tokenizer = load_tokenizer(str(path))
        assert tokenizer is not None
        assert tokenizer("Question: 12\n")["input_ids"][0] == 1


def test_shape_gives_an_inflated_model() -> None:
    spec = ModelSpec(str(TARGET), shape="13m")
    config = load_config(spec)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (320, 7, 8192)
    model = load_model(spec, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.config.hidden_size == 320
    assert eos_token_ids(spec) == (2,)
    assert check_vocabularies(spec, DRAFT_SPEC) == 4096


def test_model_without_sdpa_or_tokenizer(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40)).save_pretrained(tmp_path)
    spec = ModelSpec(str(tmp_path))
    assert load_tokenizer(spec.path) is None
    assert load_model(spec, torch.float32).config.vocab_size == 40
    assert check_vocabularies(spec, spec) == 40


@pytest.mark.parametrize("path", ["", "/no/such/folder", "./none", "~/none", "a/b/c", "no model", "../x"])
def test_path_that_cannot_be(path: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.json, or a hub id") as caught:
        load_config(ModelSpec(path))
    assert repr(path) in str(caught.value)
    with pytest.raises(ConfigError):
        load_tokenizer(path)


def test_file_and_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        load_config(ModelSpec(str(DRAFT / "config.json")))
    with pytest.raises(ConfigError, match=r"no config\.json"):
        load_config(ModelSpec(str(tmp_path)))


def test_hub_id_without_a_hub_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load_config(ModelSpec("no-such-org/no-such-model"))
    message = str(caught.value)
    assert "no-such-org/no-such-model" in message
    assert "the hub cannot be reached (no route)" in message
    assert "\n" not in message
    assert time.monotonic() - began < 10
    assert caught.value.__suppress_context__


def test_hub_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="switched off"):
        load_config(ModelSpec("no-such-model"))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (T5Config(), "'t5' has an encoder"),
        (BertConfig(), "'bert' is an encoder"),
        (MambaConfig(), "'mamba' has no attention"),
    ],
)
def test_only_decoders(config: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(folder_with(config, tmp_path))


def test_unknown_type_broken_json_and_missing_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}')
    with pytest.raises(ConfigError, match="no configuration can be loaded"):
        load_config(ModelSpec(str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="no configuration can be loaded"):
        load_config(ModelSpec(str(tmp_path)))
    with pytest.raises(ConfigError, match="no model can be loaded"):
        load_model(llama(tmp_path, vocab_size=32), torch.float32)
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ConfigError, match="no model can be loaded"):
        load_model(ModelSpec(str(tmp_path)), torch.float32)


def test_unknown_shape_and_shape_of_another_type(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="shape='huge': must be one of"):
        load_config(ModelSpec(str(TARGET), shape="huge"))
    spec = folder_with(GPT2Config(n_embd=16, n_layer=1, n_head=2), tmp_path)
    with pytest.raises(ConfigError, match="type llama"):
        load_model(ModelSpec(spec.path, shape="13m"), torch.float32)


def test_eos_from_config_list_and_none(tmp_path: Path) -> None:
    assert eos_token_ids(llama(tmp_path / "one", eos_token_id=7)) == (7,)
    assert eos_token_ids(llama(tmp_path / "many", eos_token_id=[7, 9])) == (7, 9)
    assert eos_token_ids(llama(tmp_path / "none", eos_token_id=None)) == ()
    (tmp_path / "one" / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert eos_token_ids(ModelSpec(str(tmp_path / "one"))) == (3, 4)


def test_padded_vocabulary_is_fine_and_a_short_one_is_not(tmp_path: Path) -> None:
    assert check_vocabularies(TARGET_SPEC, draft_with_vocab_size(tmp_path / "padded", 4224)) == 4096
    with pytest.raises(ConfigError, match=r"draft .* has vocab_size 4000, less than the 4096"):
        check_vocabularies(TARGET_SPEC, draft_with_vocab_size(tmp_path / "short", 4000))


def test_tokenizers_that_differ_in_one_token(tmp_path: Path) -> None:
    spec = draft_with_vocab_size(tmp_path / "other", 4096)
    file = Path(spec.path) / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    vocab = tokenizer["model"]["vocab"]
    # Two tokens that no merge makes swap their ids.
    names = [name for name, token_id in vocab.items() if token_id in (10, 11)]
    vocab[names[0]], vocab[names[1]] = vocab[names[1]], vocab[names[0]]
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError) as caught:
        check_vocabularies(TARGET_SPEC, spec)
    message = str(caught.value)
    assert "4096 tokens" in message
    assert "2 of them differ" in message
    assert "has id 10 in the target and 11 in the draft" in message


def test_sizes_must_be_equal_without_tokenizers(tmp_path: Path) -> None:
    small, large = llama(tmp_path / "a", vocab_size=32), llama(tmp_path / "b", vocab_size=40)
    with pytest.raises(ConfigError, match=r"vocab_size 32 and draft .* 40"):
        check_vocabularies(small, large)
    assert check_vocabularies(small, small) == 32
    same_size = llama(tmp_path / "c", vocab_size=4096)
    assert check_vocabularies(TARGET_SPEC, same_size) == 4096


def test_importing_is_cheap() -> None:
    code = "import sys, seedmp.models.load; print({'torch', 'transformers'} & set(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


def tiny(path: Path, **options: Any) -> ModelSpec:
    """A Llama of two layers, with its weights."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, **options
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return ModelSpec(str(path))


def rewrite(spec: ModelSpec, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = Path(spec.path) / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(part: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {name: weight for name, weight in weights.items() if part not in name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layers.1.self_attn.q_proj"), r"missing: model\.layers\.1\.self_attn\.q_proj\.weight$"),
        (without("lm_head"), r"missing: lm_head\.weight$"),
        (without("embed_tokens"), r"missing: model\.embed_tokens\.weight$"),
        (without("layers.1."), r"missing: .* and 5 more$"),
        (
            lambda weights: {f"student.{name}": weight for name, weight in weights.items()},
            "missing: .*unknown: student",
        ),
        (lambda weights: {"x": torch.zeros(1)}, r"missing: .* and 17 more; unknown: x$"),
        (
            lambda weights: weights | {"lm_head.weight": torch.zeros(30, 16)},
            r"of another shape: lm_head\.weight \(30, 16\) instead of \(32, 16\)$",
        ),
        (
            lambda weights: weights | {"model.norm.weight": torch.zeros(8)},
            r"of another shape: model\.norm\.weight \(8,\)",
        ),
    ],
)
def test_weights_that_are_not_there_are_named(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], message: str, tmp_path: Path
) -> None:
    spec = tiny(tmp_path, tie_word_embeddings=False)
    load_model(spec, torch.float32)
    rewrite(spec, change)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(spec, torch.bfloat16)
    assert repr(spec.path) in str(caught.value)


def test_tied_weights_and_buffers_may_be_missing(tmp_path: Path) -> None:
    spec = tiny(tmp_path / "tied", tie_word_embeddings=True)
    names = load_file(tmp_path / "tied" / "model.safetensors").keys()
    assert "lm_head.weight" not in names
    load_model(spec, torch.float32)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=40)).save_pretrained(tmp_path / "gpt2")
    load_model(ModelSpec(str(tmp_path / "gpt2")), torch.float32)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_not_numbers_are_named(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    spec = tiny(tmp_path)

    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
        return weights

    rewrite(spec, spoil)
    with pytest.raises(ConfigError, match=r"NaN or Inf in model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(spec, dtype)


def test_a_weight_that_overflows_its_dtype_is_named(tmp_path: Path) -> None:
    spec = tiny(tmp_path)
    rewrite(spec, lambda weights: weights | {"model.norm.weight": torch.full((16,), 1e6)})
    load_model(spec, torch.float32)
    with pytest.raises(ConfigError, match=r"NaN or Inf in model\.norm\.weight"):
        load_model(spec, torch.float16)


def test_code_of_a_model_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}')
    (tmp_path / "own.py").write_text("raise SystemExit('this code must not run')")
    with pytest.raises(ConfigError, match="no configuration can be loaded"):
        load_config(ModelSpec(str(tmp_path)))


def test_settings_of_generate_that_are_ignored_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def ours() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("seedmp")]

    spec = llama(tmp_path)
    warn_of_ignored_settings(spec)
    warn_of_ignored_settings(TARGET_SPEC)
    file = tmp_path / "generation_config.json"
    file.write_text('{"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "do_sample": true, "temperature": 0.6}')
    warn_of_ignored_settings(spec)
    assert not ours()
    file.write_text('{"repetition_penalty": 1.3, "forced_bos_token_id": 0, "bad_words_ids": [[5, 6]], "top_p": 0.9}')
    warn_of_ignored_settings(spec)
    (message,) = ours()
    assert "repetition_penalty=1.3, bad_words_ids=[[5, 6]], forced_bos_token_id=0" in message
    assert "top_p" not in message
