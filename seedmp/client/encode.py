"""Tokens of prompts and of texts that continue them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from seedmp.checks import check_flag, check_ids, check_text, plain, shown
from seedmp.errors import RejectedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Prompt = str | Sequence[int]
PROMPT = "a prompt: text, or a list of token ids"


def as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt, or several, as a list.

    Raises:
        RejectedError: it is neither text, nor token ids, nor a list of these.
    """
    given = plain(prompts)
    if isinstance(given, str):
        return [given]
    if isinstance(given, bytes | bytearray | memoryview) or not (isinstance(given, Sequence) or _num_dims(given)):
        raise RejectedError(f"prompts={shown(given)}: must be {PROMPT}, or a list of these")
    if len(given) > 0 and isinstance(plain(given[0]), int | float) and _num_dims(given) in (None, 1):
        return [given]
    return list(given)


def _num_dims(value: object) -> int | None:
    """Of an array or a tensor; None for anything else."""
    num_dims = getattr(value, "ndim", None)
    return num_dims if isinstance(num_dims, int) else None


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
            RejectedError: there is no tokenizer, or this is no text.
        """
        text = check_text("text", text, error=RejectedError)
        special = check_flag("special", special, error=RejectedError)
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
        given = plain(prompt)
        text: str | None = None
        if isinstance(given, str):
            text = check_text("prompt", given, error=RejectedError)
            ids = self.encode(text, special=True) if text else ()
        elif isinstance(given, Sequence) or _num_dims(given):
            ids = check_ids("prompt", given, error=RejectedError)
        else:
            raise RejectedError(f"prompt={shown(given)}: must be {PROMPT}")
        if not ids:
            raise RejectedError("the prompt is empty: at least one token is needed")
        return text, ids

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids of a conversation, formatted by the model's own chat template.

        Args:
            messages: ``{"role": ..., "content": ...}`` dictionaries.

        Raises:
            RejectedError: the model has no chat template, or it refuses the messages.
        """
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise RejectedError(f"the target {self.target!r} has no chat template: use generate() with a prompt")
        is_list = isinstance(messages, Sequence) and not isinstance(messages, str | bytes)
        if not is_list or not all(isinstance(message, Mapping) for message in messages):
            raise RejectedError(f'messages={shown(messages)}: must be a list of {{"role": ..., "content": ...}}')
        try:
            ids = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        except Exception as error:  # a template is a program of the model's, and raises anything
            raise RejectedError(f"messages={shown(messages)}: the chat template refuses them: {error}") from error
        return check_ids("chat", ids, error=RejectedError)

    @cached_property
    def _starts_words_with_blank(self) -> bool:
        """Whether the tokenizer puts a blank before a text's first word (SentencePiece); wrong in a continuation."""
        assert self.tokenizer is not None
        first = self.tokenizer("x", add_special_tokens=False).input_ids[:1]
        return bool(first) and str(self.tokenizer.convert_ids_to_tokens(first)[0]).startswith("\u2581")
