"""Load decoder-only models, their tokenizers and what generation must know of them.

A model is named by a folder or by a hub id. A hub id is looked up in the local cache first, and on
the network only for what is missing there. torch and transformers are imported on first use.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from seedmp.errors import ConfigError
from seedmp.models import structure
from seedmp.models.inflate import get_shape, inflate, inflated_config
from seedmp.models.weights import check_all_loaded, check_finite

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

T = TypeVar("T")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_ALLOWED = "a folder with a config.json, or a hub id such as org/name"
_CONNECT_TIMEOUT_S = 3.0
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
# Settings that ``generate`` of transformers applies to greedy text, and the values that change nothing besides None.
_CHANGES_GREEDY: dict[str, Any] = {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None, "sequence_bias": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "forced_bos_token_id": None, "forced_eos_token_id": None, "min_length": 0,
    "min_new_tokens": 0, "exponential_decay_length_penalty": None, "guidance_scale": 1, "watermarking_config": None,
    "num_beams": 1, "num_beam_groups": 1, "penalty_alpha": 0, "dola_layers": None, "constraints": None,
    "force_words_ids": None, "stop_strings": None, "token_healing": False, "max_time": None,
}  # fmt: skip


@dataclass(frozen=True)
class ModelSpec:
    """Which model to load.

    Args:
        path: a folder with config.json, or a hub id.
        shape: name of a shape (``seedmp.models.inflate.SHAPES``) to inflate it to, or None.
    """

    path: str
    shape: str | None = None


def load_config(spec: ModelSpec) -> PretrainedConfig:
    """The configuration of the model that ``load_model`` gives, with its inflated sizes if any.

    Raises:
        ConfigError: nothing can be loaded from the path, it is no decoder-only causal language
            model, or the shape is unknown or too small for it.
    """
    config = _load_own_config(spec.path)
    return config if spec.shape is None else inflated_config(config, get_shape(spec.shape))


def load_tokenizer(path: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that lies beside a model; None when there is none.

    Raises:
        ConfigError: the path does not exist, or its tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    if _is_folder(path):
        if not any((Path(path) / name).is_file() for name in _TOKENIZER_FILES):
            return None
    elif not _hub_has_tokenizer(path):
        return None
    return _load(path, "tokenizer", partial(AutoTokenizer.from_pretrained, trust_remote_code=False))


def load_model(spec: ModelSpec, dtype: torch.dtype, device: str = "cpu") -> PreTrainedModel:
    """The model, ready to run: eval mode, no gradients, SDPA attention where the model has it.

    Args:
        spec: what to load.
        dtype: of the weights.
        device: such as ``cpu`` or ``cuda:0``. An inflated model is built there directly.

    Raises:
        ConfigError: as ``load_config``; or a weight is missing, of another shape, or NaN or Inf.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = _load_own_config(spec.path)
    if spec.shape is not None:
        inflated_config(config, get_shape(spec.shape))  # complains before the weights are read
    attention = "sdpa" if _model_class(config)._supports_sdpa else "eager"

    def load(path: str, **options: Any) -> PreTrainedModel:
        loaded: PreTrainedModel
        loaded, info = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=load_dtype, attn_implementation=attention, trust_remote_code=False,
            output_loading_info=True, ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
        check_all_loaded(path, loaded, info)
        check_finite(f"model {path!r}", loaded.named_parameters())
        return loaded

    # Scaled weights are rounded once, from float32.
    load_dtype = dtype if spec.shape is None else torch.float32
    with _no_progress_bar():
        model = _load(spec.path, "model", load)
    if spec.shape is not None:
        return inflate(model.eval(), get_shape(spec.shape), dtype=dtype, device=device)
    model = model.to(device).eval()
    model.requires_grad_(False)
    return model


def eos_token_ids(spec: ModelSpec) -> tuple[int, ...]:
    """The token ids that end a text: of generation_config.json, else of config.json; possibly none.

    Raises:
        ConfigError: as ``load_config``.
    """
    eos = _load_own_config(spec.path).get_text_config(decoder=True).eos_token_id
    generation = _generation_config(spec.path)
    if generation is not None and generation.eos_token_id is not None:
        eos = generation.eos_token_id
    if eos is None:
        return ()
    return (int(eos),) if isinstance(eos, int) else tuple(int(token_id) for token_id in eos)


def max_positions(config: Any) -> int:
    """Positions that a model allows; very many where its configuration names no limit.

    A dynamic rope goes beyond the positions that it was trained for, by its factor.
    """
    text_config = config.get_text_config(decoder=True)
    rope = getattr(text_config, "rope_parameters", None) or {}
    factor = float(rope.get("factor") or 1) if rope.get("rope_type") == "dynamic" else 1.0
    return int(factor * (getattr(text_config, "max_position_embeddings", None) or 1 << 20))


def warn_of_ignored_settings(spec: ModelSpec) -> None:
    """Say which settings of generation_config.json change the greedy text of ``generate``, but not of this library."""
    generation = _generation_config(spec.path)
    if generation is None:
        return
    found = {name: getattr(generation, name, None) for name in _CHANGES_GREEDY}
    ignored = [
        f"{name}={value!r}"[:80] for name, value in found.items() if value not in (None, [], _CHANGES_GREEDY[name])
    ]
    if ignored:
        log.warning("model %r: ignored of its generation_config.json: %s", spec.path, ", ".join(ignored))


def _generation_config(path: str) -> GenerationConfig | None:
    from transformers import GenerationConfig

    try:
        return _from_hub(path, GenerationConfig.from_pretrained, must_exist=False)
    except (OSError, ValueError):
        return None


def fetch_folder(path: str, names: Sequence[str]) -> Path:
    """The folder itself, or one with a hub id's files of these names.

    Raises:
        ConfigError: it is neither, or the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    def fetch(path: str, **options: Any) -> Path:
        return Path(path if _is_folder(path) else snapshot_download(path, allow_patterns=list(names), **options))

    return _load(path, "files", fetch)


def check_vocabularies(target_spec: ModelSpec, draft_spec: ModelSpec) -> int:
    """Check that target and draft mean the same by each token id.

    With a tokenizer on both sides the two must map the same strings to the same ids; each model may
    pad its vocabulary beyond that, but not fall short of it. With a tokenizer on at most one side the
    models' ``vocab_size`` must be equal.

    Returns:
        The number of real token ids: columns of the logits from there on are padding.

    Raises:
        ConfigError: the vocabularies differ; or as ``load_config``.
    """
    specs = {"target": target_spec, "draft": draft_spec}
    sizes = {role: int(load_config(spec).get_text_config(decoder=True).vocab_size) for role, spec in specs.items()}
    vocabularies: dict[str, dict[str, int]] = {}
    for role, spec in specs.items():
        tokenizer = load_tokenizer(spec.path)
        if tokenizer is not None:
            vocabularies[role] = tokenizer.get_vocab()
    if len(vocabularies) == 2:
        _check_same_tokens(vocabularies["target"], vocabularies["draft"], target_spec.path, draft_spec.path)
    elif sizes["target"] != sizes["draft"]:
        raise ConfigError(
            f"target {target_spec.path!r} has vocab_size {sizes['target']} and draft {draft_spec.path!r} "
            f"{sizes['draft']}: without a tokenizer in both folders the sizes must be equal"
        )
    if not vocabularies:
        return sizes["target"]
    vocab_size = max(max(vocabulary.values()) for vocabulary in vocabularies.values()) + 1
    for role, size in sizes.items():
        if size < vocab_size:
            raise ConfigError(
                f"{role} {specs[role].path!r} has vocab_size {size}, less than the {vocab_size} ids of the tokenizer"
            )
    return vocab_size


def _check_same_tokens(target: dict[str, int], draft: dict[str, int], target_path: str, draft_path: str) -> None:
    if target == draft:
        return
    differing = [token for token in {**target, **draft} if target.get(token) != draft.get(token)]
    first = min(differing, key=lambda token: (min(target.get(token, 2**62), draft.get(token, 2**62)), token))
    raise ConfigError(
        f"target {target_path!r} has {len(target)} tokens and draft {draft_path!r} {len(draft)}, and "
        f"{len(differing)} of them differ: {first!r} has id {target.get(first)} in the target and "
        f"{draft.get(first)} in the draft; they must have one vocabulary"
    )


def _load_own_config(path: str) -> PretrainedConfig:
    """The configuration in the folder, before inflation."""
    from transformers import AutoConfig

    if _is_folder(path) and not (Path(path) / "config.json").is_file():
        raise ConfigError(f"model {path!r}: the folder has no config.json; allowed is {_ALLOWED}")
    config = _load(path, "configuration", partial(AutoConfig.from_pretrained, trust_remote_code=False))
    kind = _why_no_decoder(config)
    if kind:
        raise ConfigError(
            f"model {path!r} of type {config.model_type!r} {kind}: only decoder-only causal language models are served"
        )
    reason = structure.why_not_served(config, _model_class(config))
    if reason:
        raise ConfigError(f"model {path!r} of type {config.model_type!r} is not served: it {reason}")
    return config


def _why_no_decoder(config: PretrainedConfig) -> str:
    """What keeps a model from being served, or ''."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if config.is_encoder_decoder:
        return "has an encoder"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "is no causal language model"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return "is an encoder"
    if not getattr(config.get_text_config(decoder=True), "num_attention_heads", None):
        return "has no attention"
    return ""


def _model_class(config: PretrainedConfig) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _is_folder(path: str) -> bool:
    """True for a folder, False for what may be a hub id.

    Raises:
        ConfigError: it is neither.
    """
    if path and Path(path).is_dir():
        return True
    is_file = bool(path) and Path(path).exists()
    if is_file or not _HUB_ID.fullmatch(path):
        problem = "is not a folder" if is_file else "does not exist"
        raise ConfigError(f"model {path!r} {problem}; allowed is {_ALLOWED}")
    return False


def _load(path: str, what: str, load: Callable[..., T]) -> T:
    """Call a ``from_pretrained``, turning whatever it says about a bad path into one line."""
    try:
        return _from_hub(path, load)
    except ConfigError:
        raise
    except Exception as error:
        # transformers has no error type of its own: a bad file shows as OSError, ValueError, KeyError,
        # SafetensorError, ImportError, ...
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(f"model {path!r}: no {what} can be loaded ({lines[0]}); allowed is {_ALLOWED}") from error


def _from_hub(path: str, load: Callable[..., T], *, must_exist: bool = True) -> T:
    """Load from the folder or the local cache; else, for a hub id, from the network.

    Raises:
        ConfigError: the hub cannot be reached and ``must_exist``.
        Exception: what ``load`` raises.
    """
    if _is_folder(path):
        return load(path)
    try:
        return load(path, local_files_only=True)
    except (OSError, ValueError):
        problem = _hub_problem()
        if not problem:
            return load(path)
        if must_exist:
            raise ConfigError(
                f"model {path!r} is neither a folder nor in the local cache, and {problem}; allowed is {_ALLOWED}"
            ) from None
        raise


def _hub_problem() -> str:
    """Why the hub cannot be asked, or ''.

    Found out within seconds: the hub's client would retry for half a minute.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the hub is switched off (HF_HUB_OFFLINE)"
    url = urllib.parse.urlsplit(constants.ENDPOINT)
    host = url.hostname or ""
    if url.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return ""  # the proxy resolves the name
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        return f"the hub cannot be reached ({error})"
    return ""


def _hub_has_tokenizer(path: str) -> bool:
    """Whether a hub id comes with a tokenizer, by the cache or else by the network."""
    from huggingface_hub import file_exists, try_to_load_from_cache

    for name in _TOKENIZER_FILES:
        if isinstance(try_to_load_from_cache(path, name), str):
            return True
    if _hub_problem():
        return False
    return any(file_exists(path, name) for name in _TOKENIZER_FILES)


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """No progress bar of transformers while weights are read: workers share the user's terminal."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()
