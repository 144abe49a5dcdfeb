"""From documents to windows of tokens: the tokenizer, the mixture of domains, packing, the files.

Letters: W windows, T = ``WINDOW`` tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from recipes.pair import blocksworld, game24, prose
from recipes.pair.documents import Document

WINDOW = 512
VOCAB_SIZE = 4096
PAD, BOS, EOS = 0, 1, 2
SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>"]
WEIGHT_UNIT = 20  # weights are kept as whole numbers of 1/20

# A number is single digits, the first with its blank; a newline is a token of its own.
SPLIT = r"'(?:[sdmt]|ll|ve|re)\b| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Share of each kind of document in the tokens; prose also fills what the others leave of a window.
MIXTURE = {
    "plans": 0.37,
    "values": 0.16,
    "games": 0.145,
    "judgements": 0.055,
    "gsm8k": 0.11,
    "stories": 0.09,
    "votes": 0.025,
    "prose": 0.045,
}
# What a search decides by: a quarter of the batches on top, as the mixture has few such tokens.
DECISIONS = {"values": 0.45, "judgements": 0.25, "plans": 0.2, "games": 0.1}
# Where a small draft differs most from the target; for distillation.
TEXTS = {"gsm8k": 0.45, "stories": 0.25, "games": 0.1, "prose": 0.2}
MIN_PROSE = 24  # tokens; a smaller rest of a window is padding
WAITING = 24  # documents of each kind to choose from


@dataclass(frozen=True)
class Windows:
    """Packed tokens.

    Attributes:
        tokens: [W, T] int16.
        weights: [W, T] uint8, in units of 1/``WEIGHT_UNIT``; the weight of each token as one to predict.
    """

    tokens: NDArray[np.int16]
    weights: NDArray[np.uint8]

    def save(self, stem: Path) -> None:
        """Write ``<stem>-tokens.npy`` and ``<stem>-weights.npy``."""
        np.save(f"{stem}-tokens.npy", self.tokens)
        np.save(f"{stem}-weights.npy", self.weights)

    @classmethod
    def load(cls, stem: Path) -> Windows:
        """Map the two files into memory."""
        return cls(np.load(f"{stem}-tokens.npy", mmap_mode="r"), np.load(f"{stem}-weights.npy", mmap_mode="r"))


def sources(data: Path, seed: int, held_out: bool = False) -> dict[str, Iterator[Document]]:
    """Endless documents of each kind in ``MIXTURE``.

    Args:
        data: folder with gsm8k/, corpus/, blocksworld/ and game24/.
        seed: of all choices.
        held_out: take GSM8K's test questions and the books kept for evaluation.
    """
    chance = {name: random.Random(f"{seed} {held_out} {name}") for name in MIXTURE}
    files = prose.book_files(data, held_out)
    worlds, puzzles = blocksworld.load_excluded(data), game24.load_excluded(data)
    return {
        "plans": blocksworld.BlocksworldSource(chance["plans"], worlds).plans(),
        "values": blocksworld.BlocksworldSource(chance["values"], worlds).values(),
        "games": game24.Game24Source(chance["games"], puzzles).games(),
        "judgements": game24.Game24Source(chance["judgements"], puzzles).judgements(),
        "gsm8k": prose.gsm8k_documents(data / "gsm8k" / f"{'test' if held_out else 'train'}.jsonl", chance["gsm8k"]),
        "stories": prose.Library(files, chance["stories"]).stories(),
        "votes": prose.Library(files, chance["votes"]).votes(),
        "prose": prose.Library(files, chance["prose"]).passages(),
    }


def train_tokenizer(data: Path, seed: int) -> Tokenizer:
    """Byte-level BPE on half of the books, GSM8K twice, and some of the documents we make."""
    documents = sources(data, seed)
    text = [file.read_text(encoding="utf-8") for file in prose.book_files(data, held_out=False)[::2]]
    text += [document.text for document in islice(documents["gsm8k"], 2 * 7473)]
    for name in ("plans", "games"):
        text += [document.text for document in islice(documents[name], 1500)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", BOS)]
    )
    return tokenizer


class Encoder:
    """Documents to tokens; pieces that come back are encoded once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        def encode(text: str) -> NDArray[np.int16]:
            return np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int16)

        self._encode = lru_cache(maxsize=100_000)(encode)

    def __call__(self, document: Document) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
        """(tokens, weights) of a document; ``<bos>`` has weight 0."""
        tokens, weights = [np.array([BOS], dtype=np.int16)], [np.zeros(1, dtype=np.uint8)]
        for text, weight in [*document.pieces, ("", document.end_weight)]:
            piece = self._encode(text) if text else np.array([EOS], dtype=np.int16)
            tokens.append(piece)
            weights.append(np.full(len(piece), round(weight * WEIGHT_UNIT), dtype=np.uint8))
        return np.concatenate(tokens), np.concatenate(weights)


def pack(
    documents: dict[str, Iterator[Document]], encode: Encoder, mixture: dict[str, float], num_windows: int
) -> Windows:
    """Fill windows with whole documents; only plain prose is cut.

    The kind that lacks most of its share comes next; of its waiting documents, the first that fits.
    """
    tokens = np.full((num_windows, WINDOW), PAD, dtype=np.int16)
    weights = np.zeros((num_windows, WINDOW), dtype=np.uint8)
    placed = dict.fromkeys(mixture, 0)
    waiting: dict[str, list[tuple[NDArray[np.int16], NDArray[np.uint8]]]] = {
        name: [] for name in mixture if name != "prose"
    }

    def next_fitting(room: int) -> tuple[str, NDArray[np.int16], NDArray[np.uint8]] | None:
        for name in sorted(mixture, key=lambda kind: placed[kind] / mixture[kind]):
            if name == "prose" and room >= MIN_PROSE:
                some_tokens, some_weights = encode(next(documents["prose"]))
                return name, some_tokens[:room], some_weights[:room]
            for idx, pair in enumerate(waiting.get(name, ())):
                if len(pair[0]) <= room:
                    del waiting[name][idx]
                    return name, *pair
        return None

    for window in range(num_windows):
        for name, pairs in waiting.items():
            while len(pairs) < WAITING:
                pair = encode(next(documents[name]))
                if len(pair[0]) <= WINDOW:
                    pairs.append(pair)
        start = 0
        while found := next_fitting(WINDOW - start):
            name, some_tokens, some_weights = found
            end = start + len(some_tokens)
            tokens[window, start:end], weights[window, start:end] = some_tokens, some_weights
            placed[name] += len(some_tokens)
            start = end
    return Windows(tokens, weights)


def held_out_windows(data: Path, encode: Encoder, num_windows: int) -> dict[str, Windows]:
    """A few windows of each kind alone."""
    documents = sources(data, seed=0, held_out=True)
    return {name: pack(documents, encode, {name: 1.0}, num_windows) for name in MIXTURE}
