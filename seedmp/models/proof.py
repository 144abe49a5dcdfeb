"""Proof before serving: packed token trees through a runner give what the model itself gives when it generates.

Two texts are run as branches that share forwards, in parts, at scattered slots, with trees below their ends. The
model runs each path by itself, with its own cache and masks. Windows and chunks are made so short meanwhile that the
texts cross their borders. What was proven is remembered for this model, device and software, so it costs time once.
Letters: W rows whose logits are compared, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedmp.errors import ConfigError
from seedmp.ipc.arena import layout_for
from seedmp.models.adapters import adapt
from seedmp.models.native.library import SOURCE, cache_folder, native_library
from seedmp.models.rope import forget_borders, route_ropes
from seedmp.models.rows import BranchRows, pack_rows
from seedmp.models.runner import RUNNERS, make_runner
from seedmp.token_tree.tree import NO_PARENT

SHORT_REACH = 8  # windows and chunks are at most so long during a proof
SHORT_TEXT = 16  # so many tokens have the ordinary angles, if a longer text has others: the first text is longer
LENGTHS = (21, 13)  # of the two texts; they cross two borders, and one
CUTS = (11, 4)  # where their first part ends
TREES = ((NO_PARENT, NO_PARENT, 0), (NO_PARENT,))  # parents: two children and a grandchild; a child
NUM_SLOTS = 64
SEEDS = (1, 2)  # a second text, if the first one fails: experts that are chosen by a hair's breadth may differ

# Largest difference of two logits ÷ spread of the row's logits. Sums in another order differ by 1e-6 in float32; a
# wrong mask or position by 0.01 and more. Rounding to 8 or 11 bits makes up to 0.02, and experts change places, so
# there the median row of a part is judged.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 0.05, torch.float16: 0.02}

MAX_REMEMBERED = 1000


@dataclass(frozen=True)
class Part:
    """Rows of a packed forward that are compared.

    Args:
        name: for the message.
        first_position: of the first row's token.
        logits: [W, V] by the runner.
        expected: [W, V] by the model itself.
    """

    name: str
    first_position: int
    logits: torch.Tensor
    expected: torch.Tensor


def prove(path: str, model: Any, runner: str) -> None:
    """Refuse a model that the runner does not serve as it is.

    Args:
        path: of the model, for messages and for what is remembered.
        model: a loaded transformers causal language model, before it gets its runner.
        runner: name of the runner.

    Raises:
        ConfigError: says what differs, or what fails.
    """
    memo = _memo(path, model, runner)
    if memo is not None and memo.exists():
        return
    kind = model.config.get_text_config(decoder=True).model_type
    who = f"model {path!r} of type {kind!r}"
    adapt(model)
    for seed in SEEDS:
        try:
            with torch.inference_mode(), _short_reach(model), _short_texts(model):
                parts = _run_both(model, runner, np.random.default_rng(seed))
        except ConfigError:
            raise
        except Exception as error:  # whatever a model's code raises when it is called as it was not meant to be
            line = (str(error).strip().splitlines() or [""])[0]
            raise ConfigError(
                f"{who} cannot be served: its forward fails over token trees ({type(error).__name__}: {line[:200]})"
            ) from error
        problem = next(filter(None, map(difference, parts)), "")
        if not problem:
            break
    else:
        raise ConfigError(f"{who} cannot be served: {problem}")
    _remember(memo)


def difference(part: Part) -> str:
    """What is wrong with a part, or ''."""
    logits, expected = part.logits.double(), part.expected.double()
    spread = expected.amax(-1) - expected.amin(-1)
    errors = (logits - expected).abs().amax(-1) / (spread + 1e-6 * expected.abs().amax(-1) + 1e-30)
    errors = errors.where(expected.isfinite().all(-1), torch.where(logits.isfinite().all(-1), torch.inf, 0.0))
    dtype = part.expected.dtype
    judged = errors.max() if dtype in (torch.float32, torch.float64) else errors.median()
    if judged <= TOLERANCE[dtype]:
        return ""
    worst = int((errors > TOLERANCE[dtype]).nonzero()[0])
    return (
        f"{part.name} differs from what the model itself gives, first at position {part.first_position + worst}, "
        f"by {float(errors[worst]):.2g} of the logits' spread ({TOLERANCE[dtype]:.0e} is allowed)"
    )


# --- the two sides ------------------------------------------------------------------------------------


def _run_both(model: Any, runner_name: str, rng: np.random.Generator) -> list[Part]:
    device, dtype = model.device, model.dtype
    vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
    ids = _ordinary_ids(model.config, vocab_size, rng)
    texts = [[next(ids) for _ in range(length)] for length in LENGTHS]
    trees = [[next(ids) for _ in parents] for parents in TREES]
    first, second = texts
    by_itself = [
        _generate(model, first, [trees[0][0], trees[0][2]]),
        _generate(model, first, [trees[0][1]]),
        _generate(model, second, [trees[1][0]]),
    ]
    layout = layout_for(model.config, NUM_SLOTS, dtype)
    _check_widths(model, layout.num_kv_heads, layout.head_dim)
    arena = torch.from_numpy(rng.standard_normal(layout.shape)).to(device, dtype)  # what is read by mistake shows
    border = route_ropes(model)
    rope_lens = [0 if border is None else border.rope_len(length, length) for length in LENGTHS]
    packed = _run_packed(make_runner(runner_name, model, arena, vocab_size), texts, trees, rope_lens, rng)
    expected = [rows[:, :vocab_size] for rows in by_itself]
    ends = [length - 1 for length in LENGTHS]
    seconds = [cut + 1 for cut in CUTS]  # the first row of a second part is not wanted
    root, child, other, grandchild = packed[2][:4]
    return [
        Part("the beginning of a text", 0, packed[0][: CUTS[0]], expected[0][: CUTS[0]]),
        Part("a second branch", 0, packed[0][CUTS[0] :], expected[2][: CUTS[1]]),
        Part("a text in two parts", seconds[0], packed[1][: ends[0] - seconds[0]], expected[0][seconds[0] : ends[0]]),
        Part(
            "a second branch in two parts",
            seconds[1],
            packed[1][ends[0] - seconds[0] :],
            expected[2][seconds[1] : ends[1]],
        ),
        Part("a tree's first path", ends[0], torch.stack([root, child, grandchild]), expected[0][ends[0] :]),
        Part("a tree's second child", LENGTHS[0], other[None], expected[1][LENGTHS[0] :]),
        Part("a tree of the second branch", ends[1], packed[2][4:], expected[2][ends[1] :]),
    ]


def _generate(model: Any, prompt: list[int], path: list[int]) -> torch.Tensor:
    """[tokens, V] logits of the model's own forwards: the prompt, then token by token over its own cache.

    They are called as transformers' ``generate`` calls them: with positions, and a mask that hides nothing.
    """

    def call(ids: list[int], num_before: int, cache: Any) -> Any:
        mask = torch.ones(1, num_before + len(ids), dtype=torch.long, device=model.device)
        tokens = torch.tensor([ids], device=model.device)
        positions = torch.arange(num_before, mask.shape[1], device=model.device)[None]
        return model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )

    if route_ropes(model) is not None:
        call(prompt[:1], 0, None)  # a rope may remember a longer text
    out = call(prompt, 0, None)
    logits = [out.logits[0]]
    for depth, token_id in enumerate(path):
        out = call([token_id], len(prompt) + depth, out.past_key_values)
        logits.append(out.logits[0])
    return torch.cat(logits)


def _run_packed(
    runner: Any,
    texts: Sequence[list[int]],
    trees: Sequence[list[int]],
    rope_lens: Sequence[int],
    rng: np.random.Generator,
) -> list[torch.Tensor]:
    """Logits of all rows of three forwards: first parts, second parts, last tokens with trees."""
    free = rng.permutation(NUM_SLOTS).tolist()
    slots = [[free.pop() for _ in text] for text in texts]
    nodes = [[free.pop() for _ in tree] for tree in trees]
    forwards: list[list[BranchRows]] = [[], [], []]
    for text, own, cut, tree, parents, tree_slots, rope_len in zip(
        texts, slots, CUTS, trees, TREES, nodes, rope_lens, strict=True
    ):
        branches = [
            BranchRows((), text[:cut], own[:cut], num_wanted=cut),
            BranchRows(own[:cut], text[cut:-1], own[cut:-1], num_wanted=len(text) - 2 - cut),  # not all
            BranchRows(own[:-1], text[-1:], own[-1:], tree, parents, tree_slots, num_wanted=1 + len(tree)),
        ]
        for rows, branch in zip(forwards, branches, strict=True):
            rows.append(replace(branch, rope_len=rope_len))
    return [runner.run(pack_rows(branches)).clone() for branches in forwards]


def _ordinary_ids(config: Any, vocab_size: int, rng: np.random.Generator) -> Iterator[int]:
    """Random tokens, none of which the configuration names: those may be treated otherwise."""
    named: set[int] = set()
    for part in (config, config.get_text_config(decoder=True)):
        for name, value in part.to_dict().items():
            if name.endswith(("token_id", "token_index")):
                named.update(value if isinstance(value, list) else [value])
    while True:
        token_id = int(rng.integers(vocab_size))
        if token_id not in named:
            yield token_id


# --- what can be said without a tree --------------------------------------------------------------------


def _check_widths(model: Any, num_heads: int, head_dim: int) -> None:
    """
    Raises:
        ConfigError: keys and values are no [heads, head size] of the arena.
    """
    cache = model(input_ids=torch.tensor([[2, 3]], device=model.device), use_cache=True).past_key_values
    for number, layer in enumerate(getattr(cache, "layers", None) or []):
        shapes = [(x.shape[1], x.shape[-1]) for x in (layer.keys, layer.values) if isinstance(x, torch.Tensor)]
        if any(heads > num_heads or size > head_dim for heads, size in shapes):
            kept = " and ".join(f"{heads} x {size}" for heads, size in shapes)
            raise ConfigError(
                f"model type {model.config.model_type!r} cannot be served: layer {number} keeps {kept} numbers a token "
                f"as key and value, the arena has room for {num_heads} x {head_dim}"
            )


@contextmanager
def _short_reach(model: Any) -> Iterator[None]:
    """Windows and chunks of at most SHORT_REACH positions, in the configuration and in the layers."""
    owners = (model.config.get_text_config(decoder=True), *model.modules())
    names = ("sliding_window", "attention_chunk_size", "window_size")
    with _at_most(SHORT_REACH, [(owner, name) for owner in owners for name in names]):
        yield


@contextmanager
def _short_texts(model: Any) -> Iterator[None]:
    """Texts of more than SHORT_TEXT tokens have the angles of long ones, if the model has such angles."""
    if route_ropes(model) is None:
        yield
        return
    config = model.config.get_text_config(decoder=True)
    owners = (config, *model.modules())
    names = ["max_seq_len_cached", "original_max_seq_len", "original_max_position_embeddings"]
    rope = config.rope_parameters
    owner_names = [(owner, name) for owner in owners for name in names]
    owner_names += [(part, names[2]) for part in (rope, *rope.values()) if isinstance(part, dict)]
    if any(hasattr(module, names[0]) and "dynamic" in str(getattr(module, "rope_type", "")) for module in owners[1:]):
        owner_names.append((config, "max_position_embeddings"))
    try:
        with _at_most(SHORT_TEXT, owner_names):
            forget_borders(model)
            yield
    finally:
        forget_borders(model)


@contextmanager
def _at_most(limit: int, owner_names: Sequence[tuple[Any, str]]) -> Iterator[None]:
    """Attributes, or entries of dicts, that are whole numbers are no larger meanwhile."""
    before: list[tuple[Any, str, int]] = []
    for owner, name in owner_names:
        value = owner.get(name) if isinstance(owner, dict) else getattr(owner, name, None)
        if isinstance(value, int | torch.Tensor) and not isinstance(value, bool) and value > limit:
            before.append((owner, name, int(value)))
            _set(owner, name, limit)
    try:
        yield
    finally:
        for owner, name, value in before:
            _set(owner, name, value)


def _set(owner: Any, name: str, value: int) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)


# --- what was proven ---------------------------------------------------------------------------------


def _memo(path: str, model: Any, runner: str) -> Path | None:
    """The file that says that this was proven; None if it cannot be told whether it is the same."""
    if runner not in RUNNERS.table:
        return None  # a user's own: its code may change
    ours = Path(__file__).parent
    sources = [_stat(file) for folder in (ours, SOURCE.parent) for file in sorted(folder.glob("*.*"))]
    weights = [_stat(file) for file in sorted(Path(path).iterdir())] if Path(path).is_dir() else []
    identity = [
        model.config.to_json_string(use_diff=False), getattr(model.config, "_commit_hash", None), os.path.abspath(path),
        type(model).__name__, str(model.dtype), str(model.device), runner, platform.processor(), sources, weights,
        native_library() is not None,
        [version(name) for name in ("torch", "transformers")],
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
    try:
        return cache_folder() / "proven" / digest
    except OSError:
        return None  # there is nowhere to remember it


def _stat(file: Path) -> tuple[str, int, int]:
    stat = file.stat()
    return file.name, stat.st_size, stat.st_mtime_ns


def _remember(memo: Path | None) -> None:
    """Best effort: without it the next start takes longer."""
    if memo is None:
        return
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        memo.touch()
        for old in sorted(memo.parent.iterdir(), key=lambda file: file.stat().st_mtime)[:-MAX_REMEMBERED]:
            old.unlink(missing_ok=True)
    except OSError:
        pass
