"""From a task's question to the engine: prompts become token ids that share their parents' KV."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import numpy as np

from seedmp.engine import Engine
from seedmp.request import RequestHandle, RequestOutput
from seedmp.sampling import MAX_SEED, SamplingParams
from seedmp.search.task import Ask, Chat, Prompt
from seedmp.search.waiting import finished


def derive_seed(*parts: object) -> int:
    """A seed that is a function of its parts alone."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & MAX_SEED


class Asker:
    """Asks an engine on behalf of one search, and remembers the tokens of generated texts.

    A prompt that continues a generated text uses that text's own tokens. A fresh encoding might give others, whose KV
    is not in the arenas.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._known: dict[str, tuple[str, tuple[int, ...]]] = {}  # thought_id -> text so far, its ids

    def encode(self, prompt: Prompt, path_ids: Sequence[str] = ()) -> tuple[int, ...]:
        """Token ids of a prompt; ``path_ids`` are the thoughts that it may continue.

        Raises:
            RejectedError: a conversation for a model without a chat template.
        """
        if isinstance(prompt, Chat):
            return self._encode_chat(prompt)
        for thought_id in reversed(path_ids):
            text, ids = self._known.get(thought_id, ("", ()))
            if text and prompt.startswith(text):
                rest = prompt[len(text) :]
                return ids + self.engine.encode(rest) if rest else ids
        return self.engine.encode(prompt, special=True)

    def _encode_chat(self, prompt: Chat) -> tuple[int, ...]:
        ids = self.engine.encode_chat([{"role": role, "content": content} for role, content in prompt.messages])
        return ids + (self.engine.encode(prompt.answer_prefix) if prompt.answer_prefix else ())

    def remember(self, thought_id: str, prompt: Prompt, output: RequestOutput) -> None:
        """Keep the tokens of a thought, because prompts of its descendants may continue its text."""
        if isinstance(prompt, str):
            ids = output.prompt_token_ids + self.engine.tokens_of_text(output)
            self._known[thought_id] = prompt + output.text, ids

    def start(
        self, ask: Ask, n: int, temperature: float, seed: int, path_ids: Sequence[str] = ()
    ) -> list[RequestHandle]:
        """Start ``n`` answers to one question, which share its KV."""
        params = SamplingParams(
            temperature=temperature, max_tokens=ask.max_tokens, stop=ask.stop, seed=seed, n=n,
            regex=ask.regex, choices=ask.choices,
        )  # fmt: skip
        return self.engine.submit_all(self.encode(ask.prompt, path_ids), params)

    async def answers(
        self, ask: Ask, n: int, temperature: float, seed: int, path_ids: Sequence[str] = ()
    ) -> list[RequestOutput]:
        """``n`` answers; cancelling the coroutine cancels them."""
        handles = self.start(ask, n, temperature, seed, path_ids)
        try:
            return list(await asyncio.gather(*(finished(handle) for handle in handles)))
        except BaseException:
            for handle in handles:  # when one fails, nobody wants the others
                handle.cancel()
            raise

    async def log_probs(self, ask: Ask, texts: Sequence[str], path_ids: Sequence[str] = ()) -> tuple[np.ndarray, int]:
        """[texts] summed log-probabilities (nats) of answers to a question, and how many tokens they have."""
        ids = [self.engine.encode(text) for text in texts]
        rows = await asyncio.wrap_future(self.engine.submit_score(self.encode(ask.prompt, path_ids), ids))
        return np.array([row.sum() for row in rows]), sum(map(len, ids))
