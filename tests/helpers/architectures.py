"""A tiny random model of every causal architecture that transformers knows, and what becomes of it here."""

from __future__ import annotations

import inspect
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from seedmp.errors import ConfigError
from seedmp.models.load import ModelSpec, load_config
from seedmp.models.proof import prove
from seedmp.sampling import SamplingParams
from tests.helpers.local_loop import LocalLoop, Models

VOCAB_SIZE, HEADS, LAYERS, WINDOW, POSITIONS = 96, 4, 2, 8, 160
NUM_NEW = 12
EQUAL, REFUSED, WRONG, DEAD, UNBUILT = "equal", "refused", "WRONG", "DEAD", "not built"

# By attribute, for all configurations that have it. Experts, ranks and states are as small as their models allow.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "emb_dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_hidden_layers", "num_layers", "n_layer"), LAYERS),
    **dict.fromkeys(("n_layers", "num_decoder_layers", "num_encoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), HEADS),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "ffn_hidden_size", "intermediate_size_mlp"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim", "dim_ff", "block_ff_dim", "shared_intermediate_size"), 64),
    **dict.fromkeys(("moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), POSITIONS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "moe_num_shared_experts"), 1),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "head_dim", "d_head"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "window_size", "local_attention"), WINDOW),
    **dict.fromkeys(("initializer_range", "init_std", "initializer_factor"), 0.3),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), None),
    "vocab_size": VOCAB_SIZE, "num_key_value_heads": 2, "num_kv_heads": 2, "first_k_dense_replace": 1,
    "rotary_dim": 4, "state_size": 4, "is_decoder": True, "tie_word_embeddings": False, "query_pre_attn_scalar": 8,
    "use_sliding_window": True, "max_window_layers": 1, "pad_token_id": 0, "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0, "use_mamba_kernels": False, "index_n_heads": 2,
    "index_head_dim": 8, "index_topk": 4,
}  # fmt: skip
# What their sizes must be besides, or they cannot be made so small.
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4}, "ffn_config": {"ffn_hidden_size": 64}},
    "gpt_neo": {"attention_types": [[["global"], LAYERS]]},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention"], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1,
        "num_local_experts": 0,
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"head_dim": 8, "qk_rope_head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_shape": [8, 20], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "local"]},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "n_mamba_heads": 2},
    "zamba2": {"n_mamba_heads": 8, "layers_block_type": ["mamba", "hybrid"]},
}  # fmt: skip
MODEL_TYPES = tuple(sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING))

# Settings of an architecture whose masks, heads or positions are of another kind: name -> model type and settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "falcon, alibi": ("falcon", {"alibi": True}),
    "falcon, one key head": ("falcon", {"alibi": False, "multi_query": True, "new_decoder_architecture": False}),
    "falcon, grouped": ("falcon", {"alibi": False, "new_decoder_architecture": True}),
    "gpt_neo, local": ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    "gpt_neo, global": ("gpt_neo", {"attention_types": [[["global"], 2]]}),
    "llama, dynamic rope": (
        "llama",
        {"max_position_embeddings": 32, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}},
    ),
    "llama, yarn": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64,
            }
        },
    ),
    "phimoe, longrope": (
        "phimoe",
        {
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
                "short_mscale": 1.0, "long_mscale": 1.2, "original_max_position_embeddings": 32,
            },
        },
    ),
    "llama, longrope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
            },
        },
    ),
}  # fmt: skip
NAMES = (*MODEL_TYPES, *VARIANTS)
# ``generate`` means to compute a text anew that grows over its border, but of transformers 5.17 it then runs the last
# token alone, without what is before it. Their reference runs the whole text for each token.
WITHOUT_CACHE = ("phi3, longrope", "phimoe, longrope")


def tiny_config(name: str) -> Any:
    """The configuration; raises whatever the architecture raises if its sizes do not fit these."""
    model_type, settings = VARIANTS.get(name, (name, {}))
    settings = OWN.get(model_type, {}) | settings
    try:
        return _config(CONFIG_MAPPING[model_type], settings)
    except Exception:  # some insist on tokens that begin and end a text
        return _config(CONFIG_MAPPING[model_type], settings | {"bos_token_id": 1, "eos_token_id": 2})


def _config(cls: Any, settings: dict[str, Any]) -> Any:
    sizes = _sizes(cls)
    for part, sub in cls.sub_configs.items():
        if sub is not AutoConfig:
            sizes[part] = {name: size for name, size in _sizes(sub).items() if name in settings or size is not None}
    return cls(**{**sizes, **settings})


def _sizes(cls: Any) -> dict[str, Any]:
    known = {*inspect.signature(cls.__init__).parameters, *getattr(cls, "__dataclass_fields__", {})}
    known |= set(cls().to_dict()) | set(getattr(cls, "attribute_map", {}).values())
    mapped = set(getattr(cls, "attribute_map", {}))
    sizes = {name: value for name, value in SIZES.items() if name in known and name not in mapped}
    if "kv_lora_rank" in sizes:  # keys of all heads are one
        sizes.pop("head_dim", None)
        sizes["num_key_value_heads"] = HEADS
    return sizes


def build(name: str, folder: Path) -> None:
    """Save a random model, float32."""
    torch.manual_seed(7)
    config = tiny_config(name)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
    if size > 20_000_000:
        raise ValueError(f"{size} parameters: some size has another name")
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some classes have ranges of their own, or leave memory as it is
            if not parameter.isfinite().all() or (parameter.dim() > 1 and float(parameter.std()) < 0.1):
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)


def prompts() -> list[list[int]]:
    """Within the window; one that grows over the 32 tokens at which scaled ropes change; one that is longer."""
    rng = random.Random(11)
    return [[rng.randrange(5, VOCAB_SIZE) for _ in range(length)] for length in (5, 28, 37)]


def try_one(name: str, folder: Path) -> tuple[str, str]:
    """What becomes of an architecture: a verdict, and why."""
    with _quiet():
        try:
            tiny_config(name).save_pretrained(folder)
        except Exception as error:
            return UNBUILT, _line(error)
        spec = ModelSpec(str(folder))
        try:
            load_config(spec)
        except ConfigError as error:
            return REFUSED, _line(error).replace(str(folder), "…")
        try:
            build(name, folder)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            expected = _run_whole_texts(model) if name in WITHOUT_CACHE else _generate(model, "dynamic" in name)
        except Exception as error:
            return UNBUILT, _line(error)
        try:
            models = Models.load(folder, folder)
            prove(spec.path, models.target, "eager")
            got = _serve(models)
        except ConfigError as error:
            return REFUSED, _line(error).replace(str(folder), "…")
        except Exception as error:
            return DEAD, _line(error)
    return (EQUAL, "") if got == expected else (WRONG, f"{got} instead of {expected}")


def _serve(models: Models) -> list[list[int]]:
    loop = LocalLoop(models, method="mcsd", k_config=(2, 1), num_drafts=1, kv_slots=512, max_forward_tokens=16)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_NEW, seed=3, ignore_eos=True, draft_temperature=1.0)
    return [outcome.token_ids for outcome in loop.run(prompts(), params)]


def _generate(model: Any, has_memory: bool) -> list[list[int]]:
    texts = []
    for prompt in prompts():
        ids = torch.tensor([prompt])
        if has_memory:  # a dynamic rope remembers a longer text, until it sees a short one
            model(ids[:, :1])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_NEW, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
        texts.append(out[0, len(prompt) :].tolist())
    return texts


@torch.inference_mode()
def _run_whole_texts(model: Any) -> list[list[int]]:
    texts = prompts()
    for _ in range(NUM_NEW):
        texts = [[*text, int(model(torch.tensor([text])).logits[0, -1].argmax())] for text in texts]
    return [text[len(prompt) :] for text, prompt in zip(texts, prompts(), strict=True)]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def write_page(page: Path) -> None:
    """Try all architectures, and write the table."""
    import tempfile

    rows = []
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            verdict, why = try_one(name, Path(folder))
        print(f"{name}: {verdict} {why}", flush=True)
        rows.append(f"| {name} | {verdict} | {why.replace('|', '/')[:160]} |")
    page.write_text("\n".join([HEAD.strip(), "", "| architecture | is | why |", "|---|---|---|", *rows, ""]))


HEAD = """
# Which models are served

Any causal language model of transformers whose layers leave keys and values. No list of names decides: when a model
is loaded, one short packed token tree is run and compared with what the model itself gives (`seedmp/models/proof.py`);
a model that differs, or that keeps a state instead of keys and values, is refused with a `ConfigError` before anything
is served. This table is what became of a tiny random model of each architecture, greedy text against `generate`:
`python -m tests.helpers.architectures` writes it, `tests/architectures` holds it to the code. *equal*: the same
tokens. *refused*: by the message beside it. *not built*: no tiny model of text alone could be made.
"""

if __name__ == "__main__":
    write_page(Path("docs/models.md"))
