"""Llama-like models as few, large operations: the same numbers as the transformers model gives, with less between them.

A decoder layer of transformers calls some forty small operations, each through several Python modules; at the few rows
of a decoding step they take as long as the weights do. Here Q, K and V are one product, and residuals and the gate
are added and multiplied inside products. Between products stands the C part of ``seedmp.models.native`` for few rows,
and torch for many, or where that part cannot be compiled. Letters: T rows, D head size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from seedmp.errors import ConfigError
from seedmp.models.branch_attention import branch_attention
from seedmp.models.native.attention import NativeAttention, NativePlan
from seedmp.models.prepack import join_linears

if TYPE_CHECKING:
    from seedmp.models.eager import ArenaCache
    from seedmp.models.features import FeatureTap

# Classes whose layers compute what ``FusedLayer`` does, biases and norms of heads included.
LLAMA_LIKE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
FIXED_ROPES = ("default", "linear", "llama3", "yarn")  # frequencies that no position changes


def why_not_fused(model: Any) -> str:
    """What keeps a model from being fused, or ''."""
    name = type(model).__name__
    if name not in LLAMA_LIKE or not type(model).__module__.startswith("transformers."):
        return f"{name} is not one of {', '.join(LLAMA_LIKE)}"
    config = model.config
    if config.hidden_act != "silu":
        return f"hidden_act={config.hidden_act!r} is not 'silu'"
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope_type not in FIXED_ROPES:
        return f"rope_type={rope_type!r} is not one of {', '.join(FIXED_ROPES)}"
    others = {type(m).__name__ for m in model.modules() if hasattr(m, "in_features") and type(m) is not torch.nn.Linear}
    return f"it has layers of type {', '.join(sorted(others))}" if others else ""


class FusedModel(torch.nn.Module):
    """The weights of a Llama-like model, laid out for few operations. Its forward runs over a KV arena.

    Args:
        model: a transformers causal language model in eval mode.
        used_up: it loses its linear layers one by one, so that not all weights exist twice at any time.

    Raises:
        ConfigError: it is not Llama-like.
    """

    def __init__(self, model: Any, *, used_up: bool = False) -> None:
        why_not = why_not_fused(model)
        if why_not:
            raise ConfigError(f"runner='fused' cannot run this model: {why_not}; 'auto' and 'eager' can")
        super().__init__()
        self.config = model.config
        self.layers: list[FusedLayer] = []
        for layer in model.model.layers:
            self.layers.append(FusedLayer(layer, self.config))
            if used_up:
                _drop_linears(layer)
        self._embedding = model.model.embed_tokens.weight
        self._norm = model.model.norm.weight
        self._epsilon: float = model.model.norm.variance_epsilon
        self._norm_32 = self._norm.float()
        self._head = join_linears(model.lm_head)
        rotary = model.model.rotary_emb
        self.frequencies: torch.Tensor = rotary.inv_freq.float()  # [D / 2]
        self.scaling: float = rotary.attention_scaling
        self.native = self._make_native()

    def _make_native(self) -> NativeAttention | None:
        layer, weight = self.layers[0], self._embedding
        if not NativeAttention.serves(layer.head_dim, weight.dtype, weight.device):
            return None
        return NativeAttention(
            layer.num_heads, layer.num_kv_heads, layer.head_dim, weight.dtype, layer.scale, self._epsilon
        )

    def logits(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        keep: torch.Tensor,
        cache: ArenaCache,
        tap: FeatureTap | None = None,
        plan: NativePlan | None = None,
    ) -> torch.Tensor:
        """Run the rows, and write their K and V through the cache.

        Args:
            token_ids: [T].
            positions: [T].
            keep: [W] rows whose logits are wanted.
            cache: where K and V go.
            tap: is shown the hidden states before each layer, after the last, and after the final norm.
            plan: what the layers see if the C part attends; else they attend as ``attending`` says.

        Returns:
            [W, V] logits.
        """
        hidden = self._embedding.index_select(0, token_ids)
        native = self.native
        if plan is not None and native is not None:
            native.begin(plan.num_rows)
            for idx, layer in enumerate(self.layers):
                if tap is not None:
                    tap.note(idx, hidden[None])
                hidden = layer.run_native(hidden, cache.arena[idx], native, plan)
            normed = native.rms_norm(hidden, self._norm_32, self._epsilon)
            return self._end(hidden, normed, keep, tap)
        cosine, sine = self._rotation(positions, hidden.dtype)
        for idx, layer in enumerate(self.layers):
            if tap is not None:
                tap.note(idx, hidden[None])
            hidden = layer.run(hidden, cosine, sine, cache)
        normed = torch.rms_norm(hidden, hidden.shape[-1:], self._norm, self._epsilon)
        return self._end(hidden, normed, keep, tap)

    def _end(
        self, hidden: torch.Tensor, normed: torch.Tensor, keep: torch.Tensor, tap: FeatureTap | None
    ) -> torch.Tensor:
        if tap is not None:
            tap.note(len(self.layers), hidden[None])
            tap.end(normed[None])
        logits: torch.Tensor = self._head(normed.index_select(0, keep))
        return logits

    def _rotation(self, positions: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """[T, 1, D] cosines, and sines with the first half negative."""
        angles = positions[:, None].float() * self.frequencies
        cosine, sine = angles.cos() * self.scaling, angles.sin() * self.scaling
        return torch.cat([cosine, cosine], -1)[:, None].to(dtype), torch.cat([-sine, sine], -1)[:, None].to(dtype)


class FusedLayer(torch.nn.Module):
    """One decoder layer.

    Args:
        layer: of transformers.
        config: of the model.
    """

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__()
        attn, mlp = layer.self_attn, layer.mlp
        self.layer_idx: int = attn.layer_idx
        self.head_dim: int = attn.head_dim
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = config.num_key_value_heads
        self.num_key_value_groups = self.num_heads // self.num_kv_heads  # the attention function asks for it
        self.scale: float = attn.scaling
        self._qkv = join_linears(attn.q_proj, attn.k_proj, attn.v_proj)
        self._out = join_linears(attn.o_proj)
        self._gate, self._up, self._down = (join_linears(m) for m in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self._norm_1, self._norm_2 = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
        self._norms_32 = self._norm_1.float(), self._norm_2.float()
        self._epsilon: float = layer.input_layernorm.variance_epsilon
        self._head_norms: tuple[torch.Tensor, torch.Tensor] | None = None  # of queries and keys
        self._head_norms_32: tuple[torch.Tensor, torch.Tensor] | None = None
        if hasattr(attn, "q_norm"):
            self._head_norms = attn.q_norm.weight, attn.k_norm.weight
            self._head_norms_32 = attn.q_norm.weight.float(), attn.k_norm.weight.float()

    def run_native(
        self, hidden: torch.Tensor, arena: torch.Tensor, native: NativeAttention, plan: NativePlan
    ) -> torch.Tensor:
        """As ``run``, over [2, S, KV heads, D] of the arena."""
        normed = native.rms_norm(hidden, self._norms_32[0], self._epsilon)
        attended = native.attend(self._qkv(normed), arena, plan, self._head_norms_32)
        hidden = self._out.plus(attended, hidden)
        normed = native.rms_norm(hidden, self._norms_32[1], self._epsilon)
        return self._mlp(hidden, normed)

    def run(self, hidden: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, cache: ArenaCache) -> torch.Tensor:
        """[T, hidden size] -> the same."""
        shape = hidden.shape[-1:]
        num_turned = self.num_heads + self.num_kv_heads
        normed = torch.rms_norm(hidden, shape, self._norm_1, self._epsilon)
        qkv = self._qkv(normed).view(len(hidden), num_turned + self.num_kv_heads, self.head_dim)
        turned = qkv[:, :num_turned]
        if self._head_norms is not None:
            parts = zip(turned.split([self.num_heads, self.num_kv_heads], 1), self._head_norms, strict=True)
            turned = torch.cat([torch.rms_norm(p, (self.head_dim,), w, self._epsilon) for p, w in parts], 1)
        turned = torch.addcmul(turned * cosine, turned.roll(self.head_dim // 2, -1), sine)
        by_head = turned.transpose(0, 1)[None]
        keys, values = cache.update(
            by_head[:, self.num_heads :], qkv[:, num_turned:].transpose(0, 1)[None], self.layer_idx
        )
        attended, _ = branch_attention(self, by_head[:, : self.num_heads], keys, values, None, scaling=self.scale)
        hidden = self._out.plus(attended.reshape(len(hidden), -1), hidden)
        normed = torch.rms_norm(hidden, shape, self._norm_2, self._epsilon)
        return self._mlp(hidden, normed)

    def _mlp(self, hidden: torch.Tensor, normed: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self._down.plus(self._up.times(normed, self._gate.silu(normed)), hidden)
        return result


def _drop_linears(layer: Any) -> None:
    """Let go of the weights that a ``FusedLayer`` has in its own layout."""
    for parent in (layer.self_attn, layer.mlp):
        for name in [name for name, child in parent.named_children() if type(child) is torch.nn.Linear]:
            setattr(parent, name, None)
