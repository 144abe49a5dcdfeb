"""Tokens of prompts and of texts that continue them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from seedmp.errors import RejectedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[int]


def as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt, or several, as a list."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int | np.integer)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


class Encoder:
    """Makes tokens with one tokenizer.

    Args:
        tokenizer: None refuses every text.
        target: whose tokenizer it is, for messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None, target: str) -> None:
        self.tokenizer = tokenizer
        self.target = target

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Token ids of text, as a continuation unless ``special`` tokens are asked for.

        Raises:
            RejectedError: there is no tokenizer.
        """
        if self.tokenizer is None:
            raise RejectedError(f"the target {self.target!r} has no tokenizer: give token ids")
        if not special and self._starts_words_with_blank:
            anchor = tuple(self.tokenizer("\n", add_special_tokens=False).input_ids)
            ids = tuple(self.tokenizer("\n" + text, add_special_tokens=False).input_ids)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return tuple(self.tokenizer(text, add_special_tokens=special).input_ids)

    def encode_prompt(self, prompt: Prompt) -> tuple[str | None, tuple[int, ...]]:
        """A prompt's text, None if it was given as token ids, and its tokens, at least one.

        Raises:
            RejectedError: it is no prompt, or has no token.
        """
        if isinstance(prompt, str):
            text, ids = prompt, self.encode(prompt, special=True) if prompt else ()
        elif isinstance(prompt, Sequence) and all(isinstance(i, int | np.integer) for i in prompt):
            text, ids = None, tuple(int(i) for i in prompt)
        else:
            raise RejectedError(f"a prompt of type {type(prompt).__name__}: must be str or a sequence of token ids")
        if not ids:
            raise RejectedError("the prompt is empty: at least one token is needed")
        return text, ids

    @cached_property
    def _starts_words_with_blank(self) -> bool:
        """Whether the tokenizer puts a blank before a text's first word (SentencePiece); wrong in a continuation."""
        assert self.tokenizer is not None
        first = self.tokenizer("x", add_special_tokens=False).input_ids[:1]
        return bool(first) and str(self.tokenizer.convert_ids_to_tokens(first)[0]).startswith("\u2581")
