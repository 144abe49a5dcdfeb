"""What rows of benchmarks run: engines with the common models, prompts as token ids, and the usual jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seedmp.benchmarks.options import Options
from seedmp.benchmarks.summary import Result, Texts
from seedmp.config import Schedule
from seedmp.engine import Engine
from seedmp.errors import ConfigError
from seedmp.measuring.account import account
from seedmp.measuring.engines import EngineSubject, forget_texts, submit_fresh
from seedmp.models.load import load_tokenizer
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams


def engine_subject(options: Options, **settings: Any) -> EngineSubject:
    """An engine with the common models.

    ``serial`` always has one draft, because it serves one request at a time. Names of methods and the like are
    strings. ``eagle`` drafts with the bundled or the given head. The head is never inflated: it continues the small
    target's hidden states, and an inflated target has the same ones.
    """
    if settings.get("schedule") == Schedule.SERIAL.value:
        settings["num_drafts"] = 1
    if settings.get("method") in ("ar", "ngram"):
        settings.pop("k_config", None)
    if settings.get("method") == "eagle":
        settings |= {"draft": options.eagle_head, "draft_shape": None}
    return EngineSubject(tuple(sorted({**options.engine_settings(), **settings}.items())))


# --- jobs ----------------------------------------------------------------------------------------


def continue_all(engine: Engine, prompts: Sequence[Sequence[int]], params: SamplingParams) -> Result:
    """Continue prompts at once and forget them: no repeat finds the KV or the texts of an earlier one.

    transformers computes each prompt anew, so we do too.
    """
    forget_texts(engine)
    outputs: list[RequestOutput] = []

    def job() -> list[RequestOutput]:
        outputs[:] = submit_fresh(engine, prompts, params)
        return outputs

    measured = account(engine, job)
    return Result.of(measured, **latencies(outputs))


def latencies(outputs: Sequence[RequestOutput]) -> dict[str, float]:
    """Mean time to the first token, and median and longest time of a request."""
    elapsed = sorted(output.metrics.elapsed_s for output in outputs)
    first = [output.metrics.first_token_s for output in outputs]
    return {
        "first_token_s": sum(first) / len(first), "latency_s": elapsed[len(elapsed) // 2], "latency_max_s": elapsed[-1],
    }  # fmt: skip


def greedy_texts(engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int) -> Texts:
    """What the engine makes of prompts without chance."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=0)
    return tuple(output.token_ids for output in submit_fresh(engine, prompts, params))


class Encoder:
    """Prompts as token ids: by the chat template where the target has one, else as they are."""

    def __init__(self, options: Options) -> None:
        tokenizer = load_tokenizer(options.target_spec.path)
        if tokenizer is None:
            raise ConfigError(f"{options.target_spec.path}: has no tokenizer, which the prompts need")
        self.tokenizer: Any = tokenizer

    @property
    def has_chat(self) -> bool:
        """Whether prompts are conversations."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def prompt(self, text: str, question: str | None = None) -> tuple[int, ...]:
        """Text to continue; for a chat model ``question`` instead, as what the user says."""
        if self.has_chat:
            return self.conversation([question or text])
        return tuple(self.tokenizer(text, add_special_tokens=True, verbose=False).input_ids)

    def conversation(self, turns: Sequence[str]) -> tuple[int, ...]:
        """User and assistant in turn, by the chat template."""
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(turns)
        ]
        return tuple(self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))

    def plain(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, its first special token included."""
        return tuple(self.tokenizer(text, add_special_tokens=True, verbose=False).input_ids)
