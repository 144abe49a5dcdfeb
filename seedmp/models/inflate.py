"""Shape inflation: a small Llama embedded exactly in a larger Llama shape.

The result computes the small model's logits at the big shape's price, so speed and acceptance
of a benchmark are both real where no big model can be had. Why it is exact:

* The residual stream keeps the small model's values in its first dimensions and zeros in the
  others: nothing writes to them. A zero input makes the extra *input* columns of a matrix free,
  so they are random.
* The RMS norm of d values and D - d zeros is sqrt(D / d) times too big. Its weight is scaled by
  sqrt(d / D) and its eps by d / D, which cancels.
* Extra heads, MLP columns and layers compute on random weights, but the columns of ``o_proj``
  and ``down_proj`` that would add their results are zero.
* A head may grow by a whole factor f: the small head's rotary pair i goes to pair f * i of the big
  head, whose frequency theta ** (-2 f i / (f h)) is the same. The softmax scale shrinks by
  sqrt(f), which the query rows make up for.
* Extra tokens have random embeddings and a zero ``lm_head`` row: their logit is 0. They are no
  tokens: whoever samples must ignore columns beyond the small vocabulary.

"Exact" is up to rounding: about 1e-5 in the logits in float32. In bfloat16 the big model differs
from the small one about as much as two kernels do, because scaled weights round differently.

Dimension letters: V vocabulary, d hidden size of the small model, D of the big one.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seedmp.checks import shown
from seedmp.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import LlamaConfig, LlamaForCausalLM

RANDOM_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama with as many KV heads as heads and untied embeddings."""

    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int

    @property
    def num_parameters(self) -> int:
        """Weights of the model, embeddings included."""
        attention = 4 * self.hidden_size * self.num_heads * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        return self.num_layers * layer + (2 * self.vocab_size + 1) * self.hidden_size


SHAPES: dict[str, Shape] = {
    "13m": Shape(320, 7, 5, 64, 768, 8192),  # tests
    "68m": Shape(768, 2, 12, 64, 3072, 32000),  # LLaMA-68M, a usual draft of LLaMA2-7B
    "134m": Shape(768, 12, 12, 64, 2048, 32000),  # a target that a CPU can serve
    "7b": Shape(4096, 32, 32, 128, 11008, 32000),  # LLaMA2-7B
}


def get_shape(name: str) -> Shape:
    """The shape of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in SHAPES:
        raise ConfigError(f"shape={shown(name)}: must be one of {', '.join(SHAPES)}")
    return SHAPES[name]


def inflated_config(config: LlamaConfig, shape: Shape) -> LlamaConfig:
    """The configuration of the big model; positions and token ids stay those of the small one.

    Raises:
        ConfigError: the model is no plain Llama, or does not fit in the shape.
    """
    _check(config, shape)
    big = copy.deepcopy(config)
    big.hidden_size = shape.hidden_size
    big.num_hidden_layers = shape.num_layers
    big.num_attention_heads = shape.num_heads
    big.num_key_value_heads = shape.num_heads
    big.head_dim = shape.head_dim
    big.intermediate_size = shape.intermediate_size
    big.vocab_size = shape.vocab_size
    big.rms_norm_eps = config.rms_norm_eps * config.hidden_size / shape.hidden_size
    big.tie_word_embeddings = False
    return big


def inflate(
    model: LlamaForCausalLM,
    shape: Shape,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> LlamaForCausalLM:
    """Embed a small Llama in a larger shape; its logits stay the same.

    The big model is built where it will live, at its final precision: no second copy of it exists
    at any time. The random parts depend on ``seed`` and on the device type.

    Args:
        model: the small model, any float dtype, any device. Not changed.
        shape: at least as large as the model in every size; ``head_dim`` a multiple of its.
        seed: of the random weights.
        dtype: of the result; None keeps the small model's.
        device: of the result.

    Returns:
        A model in eval mode whose weights need no gradient. Its logits [..., V of the shape] hold the
        small model's in the first columns and 0 in the others.

    Raises:
        ConfigError: the model is no plain Llama, or does not fit in the shape.
    """
    import torch
    from transformers import LlamaForCausalLM
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = inflated_config(model.config, shape)
    dtype = model.dtype if dtype is None else dtype
    with torch.device("meta"):
        big = LlamaForCausalLM._from_config(config, dtype=dtype, attn_implementation=model.config._attn_implementation)
    big.requires_grad_(False)
    big.to_empty(device=device)
    # to_empty leaves the frequencies, which are no weights, undefined.
    big.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    with torch.no_grad():
        generator = torch.Generator(device).manual_seed(seed)
        for parameter in big.parameters():
            parameter.normal_(0, RANDOM_STD, generator=generator)
        _fill(big, model)
    big.generation_config = copy.deepcopy(model.generation_config)
    result: LlamaForCausalLM = big.eval()
    return result


def _fill(big: LlamaForCausalLM, small: LlamaForCausalLM) -> None:
    """Put the small model's weights, and the zeros that shield them, into random ones."""
    config, hidden = small.config, small.config.hidden_size
    norm_scale = math.sqrt(hidden / big.config.hidden_size)
    growth = big.config.head_dim // config.head_dim

    embedding = big.model.embed_tokens.weight
    embedding[: config.vocab_size] = 0
    embedding[: config.vocab_size, :hidden] = small.model.embed_tokens.weight.to(embedding)
    lm_head = big.lm_head.weight
    lm_head[config.vocab_size :] = 0
    lm_head[: config.vocab_size, :hidden] = small.lm_head.weight.to(lm_head)
    _fill_norm(big.model.norm.weight, small.model.norm.weight, norm_scale)

    for layer in big.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        layer.input_layernorm.weight.fill_(1)
        layer.post_attention_layernorm.weight.fill_(1)
    for layer, source in zip(big.model.layers, small.model.layers, strict=False):
        _fill_norm(layer.input_layernorm.weight, source.input_layernorm.weight, norm_scale)
        _fill_norm(layer.post_attention_layernorm.weight, source.post_attention_layernorm.weight, norm_scale)
        _fill_attention(layer.self_attn, source.self_attn, config, growth)
        for name in ("gate_proj", "up_proj", "down_proj"):
            into = getattr(layer.mlp, name).weight
            values = getattr(source.mlp, name).weight
            into[: values.shape[0], : values.shape[1]] = values.to(into)


def _fill_norm(into: Tensor, values: Tensor, scale: float) -> None:
    """[D] weight: the small one's [d], scaled in float32; 1 where only zeros pass."""
    into.fill_(1)
    into[: len(values)] = (values.float() * scale).to(into)


def _fill_attention(into: Any, source: Any, config: LlamaConfig, growth: int) -> None:
    """Fill the first heads of one layer; ``growth`` is how many times longer a big head is.

    Unused dimensions of a head in use get zero queries and keys, which count in the scores; its unused
    values may be anything, since ``o_proj`` is zero there.
    """
    import torch

    num_heads, head_dim, hidden = config.num_attention_heads, config.head_dim, config.hidden_size
    groups = num_heads // config.num_key_value_heads
    # A dimension of the first half of a head turns together with its fellow of the second half.
    pairs = torch.arange(head_dim // 2) * growth
    rotary_dims = torch.cat([pairs, pairs + head_dim * growth // 2])
    plain_dims = torch.arange(head_dim)

    def heads_of(name: str) -> Tensor:
        """[heads, head_dim, d]; a KV head serves its whole group."""
        weight: Tensor = getattr(source, name).weight
        by_head = weight.view(-1, head_dim, hidden)
        return by_head if name == "q_proj" else by_head.repeat_interleave(groups, dim=0)

    for name, dims, scale in (
        ("q_proj", rotary_dims, math.sqrt(growth)),
        ("k_proj", rotary_dims, 1.0),
        ("v_proj", plain_dims, 1.0),
    ):
        weight: Tensor = getattr(into, name).weight
        used = weight.view(-1, head_dim * growth, weight.shape[1])[:num_heads]
        if name != "v_proj":
            used.zero_()
        used[:, dims.to(weight.device), :hidden] = (heads_of(name).float() * scale).to(weight)
    output: Tensor = into.o_proj.weight
    used = output.view(output.shape[0], -1, head_dim * growth)[:hidden, :num_heads, :head_dim]
    used.copy_(source.o_proj.weight.view(hidden, num_heads, head_dim))


def _check(config: LlamaConfig, shape: Shape) -> None:
    if config.model_type != "llama":
        raise ConfigError(f"shape: only models of type llama can be inflated, not {config.model_type!r}")
    if config.attention_bias or config.mlp_bias:
        raise ConfigError("shape: a llama with biases cannot be inflated")
    for name, small, big in (
        ("hidden_size", config.hidden_size, shape.hidden_size),
        ("num_hidden_layers", config.num_hidden_layers, shape.num_layers),
        ("num_attention_heads", config.num_attention_heads, shape.num_heads),
        ("head_dim", config.head_dim, shape.head_dim),
        ("intermediate_size", config.intermediate_size, shape.intermediate_size),
        ("vocab_size", config.vocab_size, shape.vocab_size),
    ):
        if small > big:
            raise ConfigError(f"shape: the model's {name}={small} does not fit in the shape's {big}")
    if shape.head_dim % config.head_dim:
        raise ConfigError(f"shape: head_dim={shape.head_dim} must be a multiple of the model's {config.head_dim}")
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type not in ("default", "linear") and shape.head_dim != config.head_dim:
        raise ConfigError(f"shape: head_dim cannot grow with rope_type={rope_type!r}")
