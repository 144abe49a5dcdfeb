"""The two shapes, the forward pass used in training, and the loss.

Letters: B windows, T tokens of a window, N = B x T, V vocabulary, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from recipes.pair.corpus import BOS, EOS, PAD, VOCAB_SIZE

HEAD_DIM = 64
MAX_POSITIONS = 1024
CHUNK = 256  # rows of logits made at a time


@dataclass(frozen=True)
class Shape:
    """Size of a model."""

    hidden: int
    layers: int
    heads: int
    inner: int


TARGET = Shape(hidden=256, layers=6, heads=4, inner=688)
DRAFT = Shape(hidden=192, layers=2, heads=3, inner=512)


def build(shape: Shape) -> Any:
    """A ``LlamaForCausalLM`` with random weights in float32."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        # Compiled, the plain products are twice as fast on a CPU as scaled_dot_product_attention.
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).float()


def hidden_states(model: nn.Module, tokens: Tensor, positions: Tensor) -> Tensor:
    """The last layer's output; a token sees its own document only.

    Args:
        model: a ``LlamaForCausalLM``.
        tokens: [B, T] int64, packed documents that each begin with ``<bos>``.
        positions: [B, T] int64.

    Returns:
        [B, T, H].
    """
    llama: Any = model.model
    hidden = llama.embed_tokens(tokens)
    rotary = llama.rotary_emb(hidden, positions)
    document = (tokens == BOS).cumsum(1)
    length = tokens.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=tokens.device).tril()
    seen = seen & (document[:, None, :, None] == document[:, None, None, :])
    mask = torch.where(seen, 0.0, torch.finfo(torch.bfloat16).min)
    for layer in llama.layers:
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    result: Tensor = llama.norm(hidden)
    return result


def weighted_loss(hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean cross entropy in nats, each row counted by its weight.

    The gradient is made in the same pass, ``CHUNK`` rows at a time: N x V logits are never kept.

    Args:
        hidden: [N, H].
        embedding: [V, H], the tied output matrix.
        targets: [N] int64, or [N, V] teacher logits: then the loss is the cross entropy to the
            teacher's law, which differs from the KL divergence by a constant.
        weights: [N] float32, their sum > 0.
    """
    result: Tensor = _WeightedLoss.apply(hidden, embedding, targets, weights)  # type: ignore[no-untyped-call]
    return result


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        rows, matrix = hidden.bfloat16(), embedding.bfloat16()
        shares = weights / weights.sum()
        hidden_grad = torch.empty_like(rows)
        embedding_grad = torch.zeros(embedding.shape)
        loss = torch.zeros(())
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            chunk_loss, slope = _loss_and_slope(rows[part] @ matrix.T, targets[part], shares[part])
            loss += chunk_loss
            hidden_grad[part] = slope @ matrix
            embedding_grad += slope.T @ rows[part]
        ctx.save_for_backward(hidden_grad.to(hidden.dtype), embedding_grad.to(embedding.dtype))
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, embedding_grad = ctx.saved_tensors
        return hidden_grad * grads[0], embedding_grad * grads[0], None, None


def _loss_and_slope(logits: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, its derivative by the logits) of some rows."""
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    if targets.dim() == 1:
        loss = -(log_probs.gather(1, targets[:, None])[:, 0] * shares).sum()
        slope = log_probs.exp_()
        slope.scatter_add_(1, targets[:, None], torch.full_like(slope[:, :1], -1.0))
    else:
        wanted = torch.softmax(targets.float(), dim=-1)
        loss = -((wanted * log_probs).sum(1) * shares).sum()
        slope = log_probs.exp_().sub_(wanted)
    return loss, slope.mul_(shares[:, None]).bfloat16()
