"""Train an EAGLE-3 head: ``python -m seedmp.training.eagle --target MODEL --data FILE|FOLDER --out DIR --minutes M``.

The target is frozen. A head learns the target's law of the next token where it sees the target's features, and, some
steps deep, where it sees its own in their place, as it does when a tree grows ("training-time test"). Embeddings and
output matrix stay the target's. One process on the CPU; the head is written every few minutes, and at the end.

Letters: B windows, T tokens of a window, R = T - 1 rows of the head (row r has token r + 1 and the feature of token r,
and says what token r + 2 is), F feature size, D the head's vocabulary.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seedmp.errors import ConfigError
from seedmp.models.eagle import EagleHead, new_head, save_head
from seedmp.models.features import FeatureTap
from seedmp.models.load import ModelSpec, load_model, load_tokenizer
from seedmp.training.optimiser import WARM_UP_STEPS, Optimiser, rate_share

LESS_WITH_DEPTH = 0.8  # weight of a step on own features over that of the one before (EAGLE-3)
MIN_TOKENS = 8  # of a window
SAVE_SECONDS, LOG_SECONDS = 240.0, 15.0


@dataclass(frozen=True)
class HeadPlan:
    """One training run.

    Attributes:
        target: folder or hub id.
        data: a file or a folder of files, ``.txt``, ``.jsonl`` (its strings, in order) or ``.npy`` (rows of token ids).
        out: folder of the head.
        minutes: wall-clock time; the learning rate follows it.
        depth: forwards a step; all but the first on the head's own features.
        window: tokens of a document that are seen at once.
        num_windows: windows of a step.
        draft_vocab_size: tokens that can be drafted, the most frequent of the data; None is all.
        seed: of weights and order.
    """

    target: str
    data: Path
    out: Path
    minutes: float
    depth: int = 4
    window: int = 256
    num_windows: int = 8
    draft_vocab_size: int | None = None
    seed: int = 0


class _Unrolled:
    """Keys and values of all steps, side by side: what a cache is to the attention."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, keys: Tensor, values: Tensor, _layer_idx: int) -> tuple[Tensor, Tensor]:
        self.keys.append(keys)
        self.values.append(values)
        return torch.cat(self.keys, 2), torch.cat(self.values, 2)


def unroll(head: EagleHead, token_ids: Tensor, features: Tensor, depth: int) -> Iterator[Tensor]:
    """[B, R, D] logits of each step; at step s row r has seen true features up to row r - s, then s of its own.

    Args:
        head: any.
        token_ids: [B, T] int64.
        features: [B, T, F] of the target.
        depth: steps.
    """
    fused, next_ids = head.fuse(features[:, :-1]), token_ids[:, 1:]
    num_rows = next_ids.shape[1]
    row, column = torch.arange(num_rows)[:, None], torch.arange(num_rows)[None]
    cache, states = _Unrolled(), fused
    for at in range(depth):
        # Rows of the first step up to r - s, then one of each later step, the last its own.
        seen = [column <= row - at, *(column == row - at + later for later in range(1, at + 1))]
        mask = torch.where(torch.cat(seen, 1), 0.0, torch.finfo(torch.float32).min)[None, None]
        made = head(next_ids, states, row.T.expand_as(next_ids), mask, cache)
        yield head.logits(made)
        states = torch.cat([fused[:, :1], made[:, :-1]], 1)


class HeadTrainer:
    """A head, its frozen target and its optimiser."""

    def __init__(self, target_model: Any, head: EagleHead, depth: int) -> None:
        self.target_model, self.head, self.depth = target_model, head, depth
        self.tap = FeatureTap(target_model, head.spec.feature_layers)
        learnt = nn.ModuleDict({"fc": head.fc, "layer": head.layers[0], "norm": head.norm})
        self.optimiser = Optimiser(learnt, rank=0, num_ranks=1)
        self.target_ids = head.target_ids()
        self.agreement = [0.0] * depth  # share of rows whose likeliest token is the target's, by step

    def step(self, token_ids: Tensor, lengths: Tensor, rate: float) -> float:
        """One step on windows [B, T] of these lengths [B]; the loss in nats, before it."""
        with torch.no_grad():
            logits = self.target_model(token_ids).logits[:, 1:].float()
            features = self.tap.take().float()
            wanted = logits[..., self.target_ids].softmax(-1)  # the law over what can be drafted at all
            likeliest = logits.argmax(-1)
        rows = torch.arange(token_ids.shape[1] - 1)
        inside = rows[None] < lengths[:, None] - 2
        self.optimiser.clear()
        loss, weight = torch.zeros(()), 1.0
        for at, guessed in enumerate(unroll(self.head, token_ids, features, self.depth)):
            chosen = inside & (rows >= at)[None]
            log_probs = guessed.log_softmax(-1)
            loss = loss - weight * (wanted * log_probs).sum(-1)[chosen].mean()
            weight *= LESS_WITH_DEPTH
            same = self.target_ids[guessed.argmax(-1)] == likeliest
            self.agreement[at] = float(same[chosen].float().mean())
        loss = loss * (1 - LESS_WITH_DEPTH) / (1 - LESS_WITH_DEPTH**self.depth)
        loss.backward()
        value = float(loss.detach())
        self.optimiser.average(0.0, value)
        self.optimiser.step(rate)
        return value


def train_head(plan: HeadPlan) -> EagleHead:
    """Run a plan to its end; the head is then in ``plan.out``.

    Raises:
        ConfigError: nothing can be learnt from the data, or the target cannot be loaded.
    """
    torch.manual_seed(plan.seed)
    model = load_model(ModelSpec(plan.target), torch.float32)
    sizes = model.config.get_text_config(decoder=True)
    windows = [
        document[start : start + plan.window]
        for document in read_documents(plan.data, load_tokenizer(plan.target), sizes)
        for start in range(0, len(document), plan.window)
    ]
    windows = [window for window in windows if len(window) >= MIN_TOKENS]
    if not windows:
        raise ConfigError(f"data {str(plan.data)!r} has no text of {MIN_TOKENS} tokens or more")
    draft_ids = None
    if plan.draft_vocab_size is not None and plan.draft_vocab_size < sizes.vocab_size:
        counts = Counter(token_id for window in windows for token_id in window)
        draft_ids = sorted(token_id for token_id, _ in counts.most_common(plan.draft_vocab_size))
    trainer = HeadTrainer(model, new_head(model, draft_ids), plan.depth)
    order = random.Random(plan.seed)
    began = saved = logged = time.monotonic()
    num_steps, losses = 0, []
    while (progress := (time.monotonic() - began) / (60 * plan.minutes)) < 1:
        ids, lengths = _batch(order.choices(windows, k=plan.num_windows))
        warm = min(1.0, (num_steps + 1) / WARM_UP_STEPS)
        losses.append(trainer.step(ids, lengths, warm * rate_share(progress, 1.0)))
        num_steps += 1
        now = time.monotonic()
        if now - logged > LOG_SECONDS:
            agreement = " ".join(f"{share:.3f}" for share in trainer.agreement)
            mean_loss = sum(losses) / len(losses)
            print(f"{now - began:6.0f} s step {num_steps} loss {mean_loss:.4f} agrees {agreement}", flush=True)
            logged, losses = now, []
        if now - saved > SAVE_SECONDS:
            save_head(trainer.head, plan.out)
            saved = now
    save_head(trainer.head, plan.out)
    return trainer.head


def _batch(windows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """([B, T] tokens, padded on the right; [B] lengths)."""
    lengths = torch.tensor([len(window) for window in windows])
    ids = torch.zeros(len(windows), int(lengths.max()), dtype=torch.long)
    for row, window in zip(ids, windows, strict=True):
        row[: len(window)] = torch.tensor(window)
    return ids, lengths


def read_documents(data: Path, tokenizer: Any, sizes: Any) -> list[list[int]]:
    """Token ids of every document.

    Args:
        data: a file, or a folder whose files are read in order of their names.
        tokenizer: the target's; None if the data are token ids.
        sizes: the target's configuration; its BOS parts documents in rows of token ids.

    Raises:
        ConfigError: nothing there that can be read, or text without a tokenizer.
    """
    files = sorted(file for file in data.rglob("*") if file.is_file()) if data.is_dir() else [data]
    documents: list[list[int]] = []
    for file in files:
        if file.suffix == ".npy":
            rows = np.atleast_2d(np.load(file, mmap_mode="r", allow_pickle=False))
            documents += [part for row in rows for part in _split(row.tolist(), sizes.bos_token_id, sizes.pad_token_id)]
        elif file.suffix in (".txt", ".jsonl"):
            if tokenizer is None:
                raise ConfigError(f"data {str(file)!r}: the target has no tokenizer, so give token ids (.npy)")
            documents += [list(tokenizer(text)["input_ids"]) for text in _texts(file)]
    if not documents:
        raise ConfigError(f"data {str(data)!r}: no .txt, .jsonl or .npy file with anything in it")
    strange = next((t for document in documents for t in document if not 0 <= t < sizes.vocab_size), None)
    if strange is not None:
        raise ConfigError(f"data {str(data)!r}: token id {strange}: must be in [0, {sizes.vocab_size})")
    return documents


def _texts(file: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".txt":
        yield text
        return
    for line in filter(str.strip, text.splitlines()):
        record = json.loads(line)
        values = record.values() if isinstance(record, dict) else [record]
        yield "\n".join(value for value in values if isinstance(value, str))


def _split(row: list[int], bos: int | None, pad: int | None) -> Iterator[list[int]]:
    """The documents of a packed row: each begins with BOS; padding at its end is left out."""
    starts = [0, *(i for i, token_id in enumerate(row) if i and token_id == bos), len(row)]
    for start, end in pairwise(starts):
        while end > start and row[end - 1] == pad:
            end -= 1
        if end > start:
            yield row[start:end]


def main() -> None:
    """Entry point of ``python -m seedmp.training.eagle``."""
    parser = argparse.ArgumentParser(description="Train an EAGLE-3 head for a target.")
    parser.add_argument("--target", required=True, metavar="MODEL", help="folder or hub id")
    parser.add_argument("--data", required=True, type=Path, metavar="FILE|FOLDER", help=".txt, .jsonl or .npy")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the head")
    parser.add_argument("--minutes", required=True, type=float, metavar="M", help="wall-clock time")
    parser.add_argument("--depth", type=int, default=4, help="forwards a step, on own features but for the first")
    parser.add_argument("--window", type=int, default=256, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=8, dest="num_windows", help="windows of a step")
    parser.add_argument("--draft-vocab", type=int, dest="draft_vocab_size", help="tokens that can be drafted (all)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    train_head(HeadPlan(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
