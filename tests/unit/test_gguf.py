"""Models written for llama.cpp: the file holds what the model holds, and llama.cpp makes of it the same tokens."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from seedmp.benchmarks.peers.llama_cpp import LlamaCpp, LlamaCppSubject
from seedmp.benchmarks.peers.to_gguf import check_llama, optional, write_gguf
from seedmp.measuring.engines import NotRunError
from seedmp.models.load import ModelSpec, load_model, load_tokenizer
from seedmp.models.pair import DRAFT, TARGET

QUESTIONS = (
    "Question: Mia has 12 apples and buys 3 bags of 5 apples. How many apples does she have?\nAnswer:",
    "Question: A train goes 60 km an hour for 3 hours. How far does it go?\nAnswer:",
    "Once upon a time",
)
MAX_TOKENS = 32
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
DEFAULT = {"rope_type": "default", "rope_theta": 500.0}
LINEAR = {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}


def small_llama(dtype: torch.dtype = torch.float32, **settings: Any) -> LlamaForCausalLM:
    """Random, with two heads to a KV head, and heads that are not hidden size ÷ heads long."""
    given: dict[str, Any] = {
        "vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "intermediate_size": 80, "max_position_embeddings": 512, "rms_norm_eps": 1e-4,
        "rope_parameters": DEFAULT, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**given, **settings})).eval()
    model.requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            assert "norm" in name
            parameter.uniform_(0.5, 1.5)
        parameter.data = parameter.data.to(dtype)  # model.to(dtype) would round the frequencies, too
    return model


def read_back(model: LlamaForCausalLM, folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Metadata and tensors of the file that a model becomes."""
    gguf = pytest.importorskip("gguf")
    write_gguf(model, folder / "model.gguf")
    reader = gguf.GGUFReader(folder / "model.gguf")
    tensors = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(tensor.data.copy())
        is_bfloat16 = tensor.tensor_type == gguf.GGMLQuantizationType.BF16
        tensors[tensor.name] = values.view(torch.bfloat16) if is_bfloat16 else values
        assert tuple(reversed(tensor.shape.tolist())) == tuple(tensors[tensor.name].shape)
    return {name: field.contents() for name, field in reader.fields.items()}, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_file_holds_the_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    model = small_llama(dtype)
    _, tensors = read_back(model, tmp_path)
    layer, head_dim = model.model.layers[1], model.config.head_dim
    same = {
        "token_embd": model.model.embed_tokens, "output": model.lm_head, "blk.1.attn_v": layer.self_attn.v_proj,
        "blk.1.attn_output": layer.self_attn.o_proj, "blk.1.ffn_gate": layer.mlp.gate_proj,
        "blk.1.ffn_up": layer.mlp.up_proj, "blk.1.ffn_down": layer.mlp.down_proj,
    }  # fmt: skip
    for name, module in same.items():
        assert tensors[f"{name}.weight"].dtype == dtype
        assert torch.equal(tensors[f"{name}.weight"], module.weight), name
    norms = {
        "output_norm": model.model.norm, "blk.1.attn_norm": layer.input_layernorm,
        "blk.1.ffn_norm": layer.post_attention_layernorm,
    }  # fmt: skip
    for name, module in norms.items():
        assert torch.equal(tensors[f"{name}.weight"], module.weight.float()), name
    # The first half of a head's rows are the even ones, the second half the odd ones.
    for name, module, num_heads in (("q", layer.self_attn.q_proj, 4), ("k", layer.self_attn.k_proj, 2)):
        written = tensors[f"blk.1.attn_{name}.weight"].view(num_heads, head_dim, -1)
        weight = module.weight.view(num_heads, head_dim, -1)
        assert torch.equal(written[:, 0::2], weight[:, : head_dim // 2])
        assert torch.equal(written[:, 1::2], weight[:, head_dim // 2 :])
    assert len(tensors) == 3 + 2 * 9


def test_the_file_holds_the_sizes(tmp_path: Path) -> None:
    metadata, _ = read_back(small_llama(torch.bfloat16), tmp_path)
    llama = {name.removeprefix("llama."): value for name, value in metadata.items() if name.startswith("llama.")}
    assert llama.pop("attention.layer_norm_rms_epsilon") == pytest.approx(1e-4)
    assert llama == {
        "vocab_size": 96, "context_length": 512, "embedding_length": 64, "block_count": 2, "feed_forward_length": 80,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 32,
        "attention.value_length": 32, "rope.dimension_count": 32, "rope.freq_base": 500.0,
    }  # fmt: skip
    assert (metadata["general.architecture"], metadata["tokenizer.ggml.model"]) == ("llama", "no_vocab")


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    _, tensors = read_back(small_llama(tie_word_embeddings=True), tmp_path)
    assert "token_embd.weight" in tensors and "output.weight" not in tensors


def test_other_frequencies_are_written_as_ratios(tmp_path: Path) -> None:
    _, tensors = read_back(small_llama(rope_parameters=LINEAR), tmp_path)
    assert torch.allclose(tensors["rope_freqs.weight"], torch.full((16,), 2.0))
    _, tensors = read_back(small_llama(rope_parameters=LLAMA3), tmp_path)
    factors = tensors["rope_freqs.weight"]
    assert factors[0] == pytest.approx(1) and factors[-1] == pytest.approx(8)


@pytest.mark.parametrize(
    "config, why",
    [
        (GPT2Config(), "type 'gpt2'"),
        (LlamaConfig(attention_bias=True), "biases"),
        (LlamaConfig(hidden_act="gelu"), "hidden_act='gelu'"),
        (LlamaConfig(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}), "rope_type='yarn'"),
    ],
    ids=["gpt2", "biases", "gelu", "yarn"],
)
def test_other_models_are_refused(config: Any, why: str) -> None:
    with pytest.raises(NotRunError, match=why):
        check_llama(config)


def test_a_file_that_cannot_be_written_costs_the_row(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    with pytest.raises(NotRunError, match="GGUF: FileNotFoundError"):
        write_gguf(small_llama(), tmp_path / "missing" / "model.gguf")


def test_a_model_that_llama_cpp_does_not_load_costs_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    files = []

    class Llama:
        def __init__(self, path: str, **options: Any) -> None:
            files.append(Path(path))
            assert files[0].stat().st_size > 0 and options["n_threads"] == 3
            raise ValueError("Failed to load model\nfrom file")

    fake = SimpleNamespace(Llama=Llama, llama_supports_gpu_offload=lambda: True)
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    peer = LlamaCppSubject(ModelSpec(str(DRAFT)), None, "bfloat16", threads=3, context_len=64).start()
    with pytest.raises(NotRunError, match=r"^llama.cpp: ValueError: Failed to load model$"):
        peer.one_by_one([(1, 2)], 4)
    peer.close()
    assert not files[0].parent.exists(), "the file is removed"


@pytest.mark.parametrize("module, package", [("llama_cpp", "llama-cpp-python"), ("gguf", "gguf")])
def test_without_the_extra_the_row_says_so(module: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(NotRunError, match=rf"^{package} is not installed \(pip install 'seedmp\[peers\]'\)"):
        optional(module, package)


# --- where llama.cpp is installed ----------------------------------------------------------------


def greedy(model: Any, prompt: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens,
        min_new_tokens=max_tokens, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return tuple(made[0, len(prompt) :].tolist())


def check_same_tokens(
    target: ModelSpec, draft: ModelSpec | None, prompts: list[tuple[int, ...]], max_tokens: int
) -> None:
    model = load_model(target, torch.float32)
    expected = tuple(greedy(model, prompt, max_tokens) for prompt in prompts)
    context_len = max(map(len, prompts)) + max_tokens
    peer = LlamaCpp(LlamaCppSubject(target, draft, "float32", threads=1, context_len=context_len))
    try:
        for _ in range(2):  # nothing is left of the first run
            assert peer.one_by_one(prompts, max_tokens).token_ids == expected
    finally:
        peer.close()


@pytest.mark.parametrize("draft", [None, ModelSpec(str(DRAFT))], ids=["alone", "with draft"])
@pytest.mark.parametrize("shape", [None, "13m"])
def test_llama_cpp_makes_the_same_tokens(shape: str | None, draft: ModelSpec | None) -> None:
    pytest.importorskip("llama_cpp")
    tokenizer: Any = load_tokenizer(str(TARGET))
    prompts = [tuple(tokenizer(question).input_ids) for question in QUESTIONS]
    check_same_tokens(ModelSpec(str(TARGET), shape), draft, prompts, MAX_TOKENS)


@pytest.mark.parametrize("rope", [DEFAULT, LINEAR, LLAMA3], ids=["default", "linear", "llama3"])
def test_llama_cpp_knows_grouped_heads_and_frequencies(rope: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    model = small_llama(rope_parameters=rope)
    model.save_pretrained(tmp_path)
    prompts = [tuple(range(1, 90)), (5, 4, 3)]
    check_same_tokens(ModelSpec(str(tmp_path)), ModelSpec(str(tmp_path)), prompts, 16)
