"""A Llama of transformers as a GGUF file, the format that llama.cpp loads.

The weights are written as they are. Norms are written as float32, which llama.cpp wants. Besides names, three things
differ:

* In the rotary embedding transformers rotates dimensions i and i + D / 2 of a head together, llama.cpp 2 i and 2 i + 1.
  So rows of q and k are interleaved.
* llama.cpp has its own frequencies theta ** (-2 i / D). Where the model has other ones (rope types ``linear`` and
  ``llama3``), the ratio of the two is written, as ``rope_freqs``.
* No vocabulary is written: token ids go in and come out.

Dimension letters: H heads, D head size, d hidden size.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from seedmp.measuring.engines import NotRunError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LlamaConfig, LlamaForCausalLM

FILE_TYPES = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
ROPE_TYPES = ("default", "linear", "llama3")  # whose frequencies do not change with the text
ROPE_RTOL = 1e-5


def optional(module: str, package: str) -> Any:
    """A module that only the extra brings.

    Raises:
        NotRunError: it is not installed, or does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = package if error.name == module else f"{error.name}, which {package} needs,"
        raise NotRunError(f"{missing} is not installed (pip install 'seedmp[peers]')") from None
    except Exception as error:  # a library built for another CPU or another glibc says so in many ways
        raise NotRunError(f"{package}: {in_a_line(error)}") from error


def check_llama(config: Any) -> None:
    """Whether a model can be written.

    Raises:
        NotRunError: it is no Llama, or one with parts that are not converted.
    """
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    for is_wrong, why in (
        (config.model_type != "llama", f"a model of type {config.model_type!r}"),
        (getattr(config, "attention_bias", False) or getattr(config, "mlp_bias", False), "a llama with biases"),
        (getattr(config, "hidden_act", "silu") != "silu", f"hidden_act={getattr(config, 'hidden_act', None)!r}"),
        (rope_type not in ROPE_TYPES, f"rope_type={rope_type!r}"),
    ):
        if is_wrong:
            raise NotRunError(f"GGUF: {why} is not converted")


def in_a_line(error: Exception) -> str:
    """Its type, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@torch.no_grad()
def write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    """Write a model, at the dtype that it has.

    Raises:
        NotRunError: ``gguf`` is not installed, the model is none that can be written, or writing failed.
    """
    check_llama(model.config)
    gguf = optional("gguf", "gguf")
    try:
        _write(gguf, model, path)
    except NotRunError:
        raise
    except Exception as error:  # a full disk, another version of gguf: the other rows go on
        raise NotRunError(f"GGUF: {in_a_line(error)}") from error


def _write(gguf: Any, model: LlamaForCausalLM, path: Path) -> None:
    """Write the sizes of all tensors, then one tensor after the other, so that no second copy of the model is made."""
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    try:
        _add_metadata(gguf, writer, model.config, model.dtype)
        raw_types = {torch.bfloat16: gguf.GGMLQuantizationType.BF16}
        for name, tensor in _tensors(gguf, model):
            data = _numpy(tensor[:0])
            num_bytes = tensor.numel() * tensor.element_size()
            # bfloat16, which numpy does not have, goes as bytes.
            shape = (*tensor.shape[:-1], tensor.shape[-1] * tensor.element_size() // data.itemsize)
            writer.add_tensor_info(name, shape, data.dtype, num_bytes, raw_types.get(tensor.dtype))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in _tensors(gguf, model):
            writer.write_tensor_data(_numpy(tensor))
    finally:
        writer.close()


def _add_metadata(gguf: Any, writer: Any, config: LlamaConfig, dtype: torch.dtype) -> None:
    head_dim = _head_dim(config)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[dtype]])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _tensors(gguf: Any, model: LlamaForCausalLM) -> Iterator[tuple[str, Tensor]]:
    """llama.cpp's name and values of each tensor; tied embeddings come once, as llama.cpp expects."""
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.named_parameters():
        renamed = names.get_name(name, try_suffixes=(".weight",))
        if renamed is None:
            raise NotRunError(f"GGUF: no name for {name}")
        if name.endswith("q_proj.weight"):
            tensor = _interleaved(tensor, config.num_attention_heads)
        elif name.endswith("k_proj.weight"):
            tensor = _interleaved(tensor, config.num_key_value_heads)
        yield renamed, tensor.float() if tensor.dim() == 1 else tensor
    factors = _rope_factors(model)
    if factors is not None:
        yield gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight", factors


def _interleaved(weight: Tensor, num_heads: int) -> Tensor:
    """[H D, d]: rows i and i + D / 2 of each head become rows 2 i and 2 i + 1."""
    halves = weight.view(num_heads, 2, -1, weight.shape[1])
    return halves.transpose(1, 2).reshape(weight.shape)


def _rope_factors(model: LlamaForCausalLM) -> Tensor | None:
    """[D / 2] float32: llama.cpp's frequencies ÷ the model's; None where they are the same."""
    rotary, head_dim = model.model.rotary_emb, _head_dim(model.config)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float) / head_dim
    expected = 1.0 / (model.config.rope_parameters["rope_theta"] ** exponents)
    frequencies = rotary.inv_freq.float().cpu()
    if frequencies.shape != expected.shape or rotary.attention_scaling != 1.0:
        raise NotRunError("GGUF: a llama that turns a part of each head, or scales its attention, is not converted")
    return None if torch.allclose(frequencies, expected, rtol=ROPE_RTOL, atol=0.0) else expected / frequencies


def _head_dim(config: LlamaConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _numpy(tensor: Tensor) -> Any:
    """Values as numpy has them; bfloat16 as bytes, the last dimension twice as long."""
    tensor = tensor.detach().cpu().contiguous()
    return (tensor.view(torch.uint8) if tensor.dtype == torch.bfloat16 else tensor).numpy()
