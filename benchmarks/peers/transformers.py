"""transformers' own ways to generate, on the same weights, dtype, device and threads as our target."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import logging

from seedmp import metrics
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.summary import Result
from seedmp.measuring.engines import NotRunError, weights_gib
from seedmp.models.load import ModelSpec, load_model

PROMPT_LOOKUP_TOKENS = 3
ASSISTANT_TOKENS = 3
CB_BLOCK, CB_SPARE_BLOCKS, CB_BATCH_TOKENS = 256, 8, 512
Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class PeerSubject:
    """The target, and the draft as its assistant, in this process."""

    target: ModelSpec
    draft: ModelSpec
    dtype: str
    threads: int

    def start(self) -> Peer:
        """Load both."""
        return Peer(self)

    def need_gib(self) -> float:
        """Both models' weights."""
        size_bytes = 4 if self.dtype == "float32" else 2
        return sum(weights_gib(spec.shape, size_bytes) for spec in (self.target, self.draft))


def peer_subject(options: Options, threads: int) -> PeerSubject:
    """The peer of our engines."""
    assert options.dtype is not None
    return PeerSubject(options.target_spec, options.draft_spec, options.dtype, threads)


class Peer:
    """Greedy decoding by ``transformers``; each method continues all prompts and counts what it made."""

    def __init__(self, subject: PeerSubject) -> None:
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        dtype = torch.float32 if subject.dtype == "auto" else getattr(torch, subject.dtype)
        torch.set_num_threads(subject.threads)
        logging.set_verbosity_error()  # assisted generation warns of what it does itself
        self.device = device
        self.model: Any = load_model(subject.target, dtype, device)
        self.draft: Any = load_model(subject.draft, dtype, device)
        # The check of vocabularies compares sizes; an inflated target has padding that no text contains.
        self.draft.config.vocab_size = self.model.config.vocab_size

    def close(self) -> None:
        """Give the memory back."""
        self.model = self.draft = None

    def one_by_one(self, prompts: Prompts, max_tokens: int, **options: Any) -> Result:
        """``generate``, a prompt at a time."""
        return self._timed([[prompt] for prompt in prompts], max_tokens, options)

    def batched(self, prompts: Prompts, max_tokens: int) -> Result:
        """``generate`` of all prompts in one left-padded batch."""
        return self._timed([prompts], max_tokens, {})

    def assisted(self, prompts: Prompts, max_tokens: int) -> Result:
        """Assisted generation with our draft, as many tokens a round as ours, a prompt at a time."""
        config = self.draft.generation_config
        config.num_assistant_tokens, config.num_assistant_tokens_schedule = ASSISTANT_TOKENS, "constant"
        config.assistant_confidence_threshold = 0.0
        return self.one_by_one(prompts, max_tokens, assistant_model=self.draft)

    def prompt_lookup(self, prompts: Prompts, max_tokens: int) -> Result:
        """Prompt lookup decoding, a prompt at a time."""
        return self.one_by_one(prompts, max_tokens, prompt_lookup_num_tokens=PROMPT_LOOKUP_TOKENS)

    def continuous(self, prompts: Prompts, max_tokens: int) -> Result:
        """``generate_batch``: continuous batching over a paged cache.

        Raises:
            NotRunError: it does not run on this device.
        """
        from transformers import ContinuousBatchingConfig

        config = copy.deepcopy(self.model.generation_config)
        config.max_new_tokens, config.do_sample, config.eos_token_id, config.pad_token_id = max_tokens, False, -1, 0
        # Its own choice of cache size takes half of the memory, and minutes, on a CPU.
        blocks = sum((len(prompt) + max_tokens) // CB_BLOCK + 1 for prompt in prompts) + CB_SPARE_BLOCKS
        cache = ContinuousBatchingConfig(block_size=CB_BLOCK, num_blocks=blocks, max_batch_tokens=CB_BATCH_TOKENS)
        try:
            start_s = time.perf_counter()
            outputs = self.model.generate_batch(
                [list(prompt) for prompt in prompts], generation_config=config,
                continuous_batching_config=cache, warmup=False,
            )  # fmt: skip
            wall_s = time.perf_counter() - start_s
        except Exception as error:  # whatever it says, the other rows go on
            raise NotRunError(f"generate_batch: {type(error).__name__}: {str(error).splitlines()[0]}") from error
        made = [outputs[key] for key in sorted(outputs, key=lambda key: int(key.rpartition("_")[2]))]
        texts = tuple(tuple(output.generated_tokens) for output in made)
        if any(len(text) != max_tokens for text in texts):
            failed = next((output.error for output in made if output.error), "it stopped early")
            raise NotRunError(f"generate_batch: {failed}")
        return _result(texts, wall_s)

    def _timed(self, batches: Sequence[Prompts], max_tokens: int, options: dict[str, Any]) -> Result:
        texts: list[tuple[int, ...]] = []
        start_s = time.perf_counter()
        for batch in batches:
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in batch], device=self.device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch], device=self.device)
            with torch.inference_mode():
                result = self.model.generate(
                    input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=max_tokens,
                    min_new_tokens=max_tokens, eos_token_id=None, pad_token_id=0, **options,
                )  # fmt: skip
            texts += [tuple(row) for row in result[:, width:].tolist()]
        return _result(tuple(texts), time.perf_counter() - start_s)


def _result(texts: tuple[tuple[int, ...], ...], wall_s: float) -> Result:
    return Result(wall_s, metrics.tokens_per_s(sum(map(len, texts)), wall_s), texts)
