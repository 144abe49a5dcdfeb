"""Vocabularies of a few byte strings, for automata without a tokenizer's files."""

from __future__ import annotations

from collections.abc import Sequence

from llguidance import LLTokenizer

from seedmp.decoding.constraint import Constrainer


class _Vocabulary:
    """What llguidance asks of a tokenizer; the last token is EOS."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = [*tokens, b"<eos>"]
        self.eos_token_id = len(tokens)
        self.special_token_ids = [len(tokens)]

    def __call__(self, text: str) -> list[int]:
        return []


def constrainer_of(tokens: Sequence[bytes]) -> Constrainer:
    """A constrainer over ``tokens`` and EOS, which has the next id."""
    vocabulary = _Vocabulary(tokens)
    return Constrainer(lambda: LLTokenizer(vocabulary), len(tokens) + 1)  # type: ignore[arg-type]
