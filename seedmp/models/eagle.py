"""EAGLE draft heads: one decoder layer that continues the target's own hidden states.

A head has a row for every token but the first: the row of token i + 1 takes that token's embedding and the feature of
token i (the target's hidden states there), and gives its own guess of the feature of token i + 1, from which the
law of token i + 2 follows. It stands at position i. Rows of drafted tokens take the guess of their parent's row in
the place of a feature. The first token of a text has no predecessor, so it has no row and nobody attends to it.

Two kinds (research: Li et al. 2024 and 2025, and their published code):

* EAGLE-1 and EAGLE-2 (one layout): fc(embedding, feature) goes into a Llama layer without input norm; features are
  the target's last hidden states after its final norm; embeddings and output matrix are the target's.
* EAGLE-3: fc fuses the inputs of three of the target's layers; attention gets the normed embedding and the normed
  feature side by side; an output norm and matrix of its own, over a part of the vocabulary (``d2t``).

Files: ``config.json`` with ``model.safetensors`` or ``pytorch_model.bin``, with the names of the original repositories
or those that vLLM and SGLang read. Letters: B windows, T rows, H hidden size of the head, F feature size, V vocabulary
of the target, D of the head.
"""

from __future__ import annotations

import enum
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding

from seedmp.errors import ConfigError
from seedmp.models.features import published_layers
from seedmp.models.load import ModelSpec, fetch_folder, load_config, load_model
from seedmp.models.weights import check_finite
from seedmp.plain_json import parse_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# What other layouts call a tensor -> what the original EAGLE-1 layout calls it.
_PREFIXES = {"model.": "", "midlayer.": "layers.0.", "fusion_fc.": "fc."}
_NAMES = {"draft_id_to_target_id": "d2t", "target_id_to_draft_id": "t2d"}
_IGNORED = "rotary_emb.inv_freq"
_FROM_TARGET = ("embed_tokens.weight", "lm_head.weight")
_SHOWN = 8  # names in an error


class HeadKind(enum.Enum):
    """What a head takes from its target."""

    EAGLE = "eagle"  # 1 and 2: the last hidden state
    EAGLE3 = "eagle3"  # inputs of several layers


@dataclass(frozen=True)
class HeadSpec:
    """A head's shape, as its folder and its target have it.

    Args:
        path: its folder or hub id; empty for one that is just being made.
        kind: which.
        config: the one layer's sizes.
        target_hidden: H of the target.
        target_layers: how many it has.
        vocab_size: V, rows of the embeddings.
        draft_vocab_size: D, rows of the output matrix.
        feature_layers: whose inputs make up a feature; none: the last hidden state.
        biases: optional ``.bias`` tensors that it has.
        from_target: embeddings and output matrix, as far as they are the target's.
        norm_before_residual: EAGLE-3: the residual is the normed feature.
    """

    path: str
    kind: HeadKind
    config: LlamaConfig
    target_hidden: int
    target_layers: int
    vocab_size: int
    draft_vocab_size: int
    feature_layers: tuple[int, ...]
    biases: frozenset[str] = frozenset()
    from_target: frozenset[str] = frozenset()
    norm_before_residual: bool = False

    @property
    def feature_size(self) -> int:
        """F."""
        return self.target_hidden * max(1, len(self.feature_layers))


class EagleHead(nn.Module):
    """The head as a module; its tensors have the names of the original EAGLE-1 layout."""

    def __init__(self, spec: HeadSpec) -> None:
        super().__init__()
        self.spec, self.config = spec, spec.config
        hidden, is_third = spec.config.hidden_size, spec.kind is HeadKind.EAGLE3
        eps = spec.config.rms_norm_eps
        self.embed_tokens = nn.Embedding(spec.vocab_size, hidden)
        fc_in = spec.feature_size if is_third else hidden + spec.feature_size
        self.fc = nn.Linear(fc_in, hidden, bias="fc.bias" in spec.biases)
        layer = nn.Module()
        layer.self_attn = LlamaAttention(spec.config, layer_idx=0)
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            linear = getattr(layer.self_attn, name)
            rows_in = 2 * hidden if is_third and name != "o_proj" else linear.in_features
            has_bias = f"layers.0.self_attn.{name}.bias" in spec.biases
            setattr(layer.self_attn, name, nn.Linear(rows_in, linear.out_features, bias=has_bias))
        layer.mlp = LlamaMLP(spec.config)
        layer.post_attention_layernorm = LlamaRMSNorm(hidden, eps)
        if is_third:
            layer.input_layernorm, layer.hidden_norm = LlamaRMSNorm(hidden, eps), LlamaRMSNorm(hidden, eps)
            self.norm = LlamaRMSNorm(hidden, eps)
            self.d2t = nn.Buffer(torch.zeros(spec.draft_vocab_size, dtype=torch.long))  # target id - draft id
        self.layers = nn.ModuleList([layer])
        self.lm_head = nn.Linear(hidden, spec.draft_vocab_size, bias=False)
        self.rotary = LlamaRotaryEmbedding(spec.config)

    @property
    def base_model(self) -> nn.Module:
        """As transformers models have it."""
        return self

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """EAGLE-3: [..., F] of the target to [..., H]; what the head made itself has that size already."""
        fused: torch.Tensor = self.fc(features) if self.spec.kind is HeadKind.EAGLE3 else features
        return fused

    def forward(
        self,
        input_ids: torch.Tensor,
        features: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        past_key_values: Any,
    ) -> torch.Tensor:
        """The head's own features [B, T, H] of tokens [B, T], given those of their predecessors, fused.

        Positions are those of the predecessors; the mask is additive [B, 1, T, K].
        """
        layer: Any = self.layers[0]
        embedded = self.embed_tokens(input_ids)
        if self.spec.kind is HeadKind.EAGLE3:
            normed = layer.hidden_norm(features)
            residual = normed if self.spec.norm_before_residual else features
            states = torch.cat([layer.input_layernorm(embedded), normed], -1)
        else:
            states = residual = self.fc(torch.cat([embedded, features], -1))
        attended, _ = layer.self_attn(
            states, self.rotary(residual, position_ids), attention_mask, past_key_values=past_key_values
        )
        states = residual + attended
        result: torch.Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
        return result

    def logits(self, own_features: torch.Tensor) -> torch.Tensor:
        """[..., D] logits of the token after each row."""
        if self.spec.kind is HeadKind.EAGLE3:
            own_features = self.norm(own_features)
        result: torch.Tensor = self.lm_head(own_features)
        return result

    def target_ids(self) -> torch.Tensor:
        """[D] the target's id of each of the head's own."""
        ids = torch.arange(self.spec.draft_vocab_size, device=self.lm_head.weight.device)
        return ids + self.d2t if self.spec.kind is HeadKind.EAGLE3 else ids


# --- folders ---------------------------------------------------------------------------------------


def is_head(path: str | os.PathLike[str]) -> bool:
    """Whether a folder has a draft head: its weights have an ``fc`` that no whole model has."""
    folder = Path(path)
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in WEIGHT_FILES):
        return False
    try:
        return "fc.weight" in _read_shapes(folder)
    except ConfigError:
        return False


def read_head(path: str, target: ModelSpec) -> HeadSpec:
    """The head in a folder, held to its target; reads no weights.

    Raises:
        ConfigError: it is no head, its tensors are not those of one, or they do not fit the target.
    """
    folder = _folder_of(path)
    plain = _read_config(folder)
    shapes = _read_shapes(folder)
    if "fc.weight" not in shapes:
        raise ConfigError(
            f"draft {path!r} is no EAGLE head: method='eagle' needs a folder whose weights have an fc.weight "
            "(a whole model drafts with 'mcsd', 'opt-tree', ...)"
        )
    target_config = load_config(target).get_text_config(decoder=True)
    spec = _spec_of(path, plain, shapes, target_config)
    _check_tensors(spec, shapes, target.path)
    return spec


def load_head(
    spec: HeadSpec, dtype: torch.dtype, device: str, target: ModelSpec, target_model: Any = None
) -> EagleHead:
    """The head in ``spec.path``, ready to run: eval mode, no gradients.

    Args:
        spec: as ``read_head`` gives it.
        dtype: of the weights.
        device: such as ``cpu`` or ``cuda:0``.
        target: what lends the embeddings and the output matrix that the head does not have.
        target_model: the same, if it is loaded already.

    Raises:
        ConfigError: the weights are broken, NaN or Inf, or ``d2t`` and ``t2d`` are not what they should be.
    """
    tensors = _read_tensors(_folder_of(spec.path))
    check_finite(f"draft {spec.path!r}", tensors.items())
    mapped = tensors.pop("t2d", None)
    if spec.from_target:
        model = load_model(target, dtype) if target_model is None else target_model
        tensors |= lent_by(model, spec.from_target)
    if spec.kind is HeadKind.EAGLE3:
        tensors["d2t"] = _check_d2t(spec, tensors.get("d2t"), mapped)
    elif "d2t" in tensors:
        del tensors["d2t"]
    head = make_head(spec)
    ready = {
        name: tensor.to(device, dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in tensors.items()
    }
    head.load_state_dict(ready, assign=True)
    return head.to(device).eval().requires_grad_(False)


def new_head(target_model: Any, draft_ids: Sequence[int] | None = None) -> EagleHead:
    """An EAGLE-3 head of random weights for a target, to be trained.

    Args:
        target_model: lends its sizes, embeddings and output matrix.
        draft_ids: the target's ids that can be drafted, ascending; None is all of them, and then the output matrix
            stays the target's.
    """
    sizes = target_model.config.get_text_config(decoder=True)
    ids = torch.arange(sizes.vocab_size) if draft_ids is None else torch.tensor(list(draft_ids))
    config = LlamaConfig(
        num_hidden_layers=1, vocab_size=sizes.vocab_size, hidden_size=sizes.hidden_size,
        intermediate_size=getattr(sizes, "intermediate_size", None) or 4 * sizes.hidden_size,
        num_attention_heads=sizes.num_attention_heads, num_key_value_heads=sizes.num_attention_heads,
        head_dim=getattr(sizes, "head_dim", None), rms_norm_eps=1e-5,
        max_position_embeddings=getattr(sizes, "max_position_embeddings", None) or 2048, **_rope({}, sizes),
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    spec = HeadSpec(
        "", HeadKind.EAGLE3, config, sizes.hidden_size, sizes.num_hidden_layers, sizes.vocab_size, len(ids),
        published_layers(sizes.num_hidden_layers),
        from_target=frozenset(_FROM_TARGET if draft_ids is None else _FROM_TARGET[:1]),
    )  # fmt: skip
    head = EagleHead(spec)
    lent = lent_by(target_model, frozenset(_FROM_TARGET))
    head.embed_tokens.weight = nn.Parameter(lent["embed_tokens.weight"].float(), requires_grad=False)
    head.lm_head.weight = nn.Parameter(lent["lm_head.weight"][ids].float(), requires_grad=False)
    head.d2t.copy_(ids - torch.arange(len(ids)))
    return head


def make_head(spec: HeadSpec) -> EagleHead:
    """A head without weights, but with what is computed from its configuration."""
    with torch.device("meta"):
        head = EagleHead(spec)
    head.rotary = LlamaRotaryEmbedding(spec.config)
    return head


def lent_by(target_model: Any, names: frozenset[str]) -> dict[str, torch.Tensor]:
    """The target's embeddings and output matrix, under the head's names."""
    lent = {
        "embed_tokens.weight": target_model.get_input_embeddings().weight,
        "lm_head.weight": target_model.get_output_embeddings().weight,
    }
    return {name: lent[name].detach().clone() for name in names}


def save_head(head: EagleHead, folder: str | os.PathLike[str]) -> None:
    """Write a head in the layout that vLLM and SGLang read, and ``read_head``; without what is its target's."""
    spec, folder = head.spec, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_third = spec.kind is HeadKind.EAGLE3
    plain = spec.config.to_diff_dict() | {
        "architectures": ["Eagle3LlamaForCausalLM" if is_third else "EagleLlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": spec.config.hidden_size,
        "num_hidden_layers": 1,
        "num_attention_heads": spec.config.num_attention_heads,
        "vocab_size": spec.vocab_size,
        "rope_parameters": spec.config.rope_parameters,
        "rope_theta": spec.config.rope_parameters["rope_theta"],
        "bias": "fc.bias" in spec.biases,
    }
    tensors = {name: tensor for name, tensor in head.state_dict().items() if name not in spec.from_target}
    if is_third:
        plain |= {
            "draft_vocab_size": spec.draft_vocab_size,
            "target_hidden_size": spec.target_hidden,
            "norm_before_residual": spec.norm_before_residual,
        }
        if spec.feature_layers != (2, spec.target_layers // 2, spec.target_layers - 3):  # what all readers assume
            plain["eagle_aux_hidden_state_layer_ids"] = list(spec.feature_layers)
        ids = head.target_ids()
        tensors["t2d"] = torch.zeros(spec.vocab_size, dtype=torch.bool).index_fill_(0, ids.cpu(), True)
        tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / WEIGHT_FILES[0])
    (folder / "config.json").write_text(json.dumps(plain, indent=2) + "\n")


def _folder_of(path: str) -> Path:
    folder = fetch_folder(path, ("config.json", *WEIGHT_FILES))
    if not (folder / "config.json").is_file():
        raise ConfigError(f"draft {path!r}: the folder has no config.json")
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        raise ConfigError(f"draft {path!r}: the folder has no {' or '.join(WEIGHT_FILES)}")
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        plain = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"draft {str(folder)!r}: config.json cannot be read ({error})") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"draft {str(folder)!r}: config.json is no object")
    nested = plain.get("transformer_layer_config")  # "speculators" nest the layer's sizes
    if isinstance(nested, dict):
        plain = nested | {key: value for key, value in plain.items() if key != "transformer_layer_config"}
    eagle = plain.get("eagle_config")
    return {**plain, **eagle} if isinstance(eagle, dict) else plain


def _plain_name(name: str) -> str:
    """A tensor's name in the original EAGLE-1 layout."""
    for prefix, plain in _PREFIXES.items():
        if name.startswith(prefix):
            name = plain + name[len(prefix) :]
    return _NAMES.get(name, name)


def _read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    file = folder / WEIGHT_FILES[0]
    if not file.is_file():
        return {name: tuple(tensor.shape) for name, tensor in _read_tensors(folder).items()}
    try:
        with safe_open(file, framework="pt") as opened:
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"draft {str(folder)!r}: {file.name} cannot be read ({error})") from error
    return {_plain_name(name): shape for name, shape in shapes.items() if not name.endswith(_IGNORED)}


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    file = next(folder / name for name in WEIGHT_FILES if (folder / name).is_file())
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        else:  # weights_only: a pickle that is anything but tensors is refused, no code runs
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:
        # No error type of their own: a bad file shows as OSError, RuntimeError, UnpicklingError, SafetensorError, ...
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"draft {str(folder)!r}: {file.name} cannot be read ({why})") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ConfigError(f"draft {str(folder)!r}: {file.name} is no dictionary of tensors")
    return {_plain_name(name): tensor for name, tensor in tensors.items() if not name.endswith(_IGNORED)}


def _spec_of(path: str, plain: dict[str, Any], shapes: dict[str, tuple[int, ...]], target: Any) -> HeadSpec:
    for name in ("norm_output", "fc_norm"):
        if plain.get(name):
            raise ConfigError(f"draft {path!r}: {name} is not supported")
    if plain.get("use_aux_hidden_state") is False:
        raise ConfigError(f"draft {path!r}: use_aux_hidden_state=false is not supported")
    is_third = "layers.0.hidden_norm.weight" in shapes
    vocab_size, target_hidden = int(target.vocab_size), int(target.hidden_size)
    known = {
        name: plain[name]
        for name in (
            "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act",
            "rms_norm_eps", "max_position_embeddings", "mlp_bias",
        )
        if plain.get(name) is not None
    }  # fmt: skip
    lacking = [name for name in ("hidden_size", "intermediate_size", "num_attention_heads") if name not in known]
    if lacking:
        raise ConfigError(f"draft {path!r}: config.json lacks {', '.join(lacking)}")
    if plain.get("num_hidden_layers", 1) != 1:
        raise ConfigError(f"draft {path!r} has {plain['num_hidden_layers']} layers: heads of one layer are served")
    try:
        config = LlamaConfig(num_hidden_layers=1, vocab_size=vocab_size, **known, **_rope(plain, target))
        config._attn_implementation = "sdpa"
    except Exception as error:  # transformers checks types and sizes with errors of its own
        raise ConfigError(f"draft {path!r}: config.json describes no Llama layer ({error})") from error
    layers: tuple[int, ...] = ()
    if is_third:
        layers = tuple(plain.get("eagle_aux_hidden_state_layer_ids") or published_layers(target.num_hidden_layers))
        if not all(type(layer) is int and 0 <= layer <= target.num_hidden_layers for layer in layers):
            raise ConfigError(
                f"draft {path!r}: eagle_aux_hidden_state_layer_ids={list(layers)}: the target has layers 0 to "
                f"{target.num_hidden_layers - 1}"
            )
    biases = {name for name in shapes if name == "fc.bias" or name.startswith("layers.0.self_attn.")}
    biases = {name for name in biases if name.endswith(".bias")}
    if plain.get("bias") is True and not is_third:
        biases.add("fc.bias")
    lm_head = shapes.get("lm_head.weight")
    own_rows = lm_head[0] if lm_head and is_third else vocab_size
    return HeadSpec(
        path, HeadKind.EAGLE3 if is_third else HeadKind.EAGLE, config, target_hidden, int(target.num_hidden_layers),
        vocab_size, int(plain.get("draft_vocab_size") or own_rows), layers, frozenset(biases),
        frozenset(name for name in _FROM_TARGET if name not in shapes), bool(plain.get("norm_before_residual", False)),
    )  # fmt: skip


def _rope(plain: dict[str, Any], target: Any) -> dict[str, Any]:
    """The head's rotary settings; those of the target where the head names none: it was trained on its positions."""
    own = {name: plain[name] for name in ("rope_parameters", "rope_theta", "rope_scaling") if plain.get(name)}
    if own:
        return own
    given = getattr(target, "rope_parameters", None)
    return {"rope_parameters": dict(given)} if isinstance(given, dict) and "rope_theta" in given else {}


def _check_tensors(spec: HeadSpec, shapes: dict[str, tuple[int, ...]], target_path: str) -> None:
    """Compare names and shapes with those that a head of this kind has."""
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in EagleHead(spec).state_dict().items()}
    reduced = spec.draft_vocab_size != spec.vocab_size
    for name, shape in (("d2t", (spec.draft_vocab_size,)), ("t2d", (spec.vocab_size,))):
        if name in shapes or (name == "d2t" and reduced):
            wanted[name] = shape
        else:
            wanted.pop(name, None)
    lent = {"embed_tokens.weight": spec.vocab_size, "lm_head.weight": spec.vocab_size}
    problems = []
    for name in spec.from_target:
        theirs = lent[name], spec.target_hidden
        if wanted[name] != theirs:
            problems.append(f"{name} is missing, and the target's {theirs} does not fit {wanted[name]}")
    missing = [name for name in wanted if name not in shapes and name not in spec.from_target]
    unexpected = [name for name in shapes if name not in wanted]
    wrong = [f"{n} {shapes[n]} instead of {wanted[n]}" for n in wanted if n in shapes and shapes[n] != wanted[n]]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of a wrong shape", wrong)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            problems.append(f"{what}: {', '.join(sorted(names)[:_SHOWN])}{more}")
    if problems:
        raise ConfigError(
            f"draft {spec.path!r} does not fit as {spec.kind.value} head of target {target_path!r} (hidden size "
            f"{spec.target_hidden}, vocabulary {spec.vocab_size}): {'; '.join(problems)}"
        )


def _check_d2t(spec: HeadSpec, d2t: torch.Tensor | None, mapped: torch.Tensor | None) -> torch.Tensor:
    """Offsets from the head's ids to the target's."""
    if d2t is None:
        return torch.zeros(spec.draft_vocab_size, dtype=torch.long)
    if d2t.is_floating_point():
        raise ConfigError(f"draft {spec.path!r}: d2t must hold whole numbers")
    ids = d2t.long() + torch.arange(spec.draft_vocab_size)
    if not bool(((ids >= 0) & (ids < spec.vocab_size)).all()) or len(ids.unique()) < len(ids):
        raise ConfigError(f"draft {spec.path!r}: d2t maps to ids twice, or outside of 0 to {spec.vocab_size - 1}")
    if mapped is not None and not torch.equal(mapped.bool().nonzero()[:, 0], ids.sort().values):
        raise ConfigError(f"draft {spec.path!r}: d2t and t2d name different tokens")
    return d2t.long()
