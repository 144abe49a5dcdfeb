"""The prompts that settings are measured with: some to calibrate, some that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedmp.config import EngineConfig, resolve_placement
from seedmp.errors import ConfigError
from seedmp.models.load import ModelSpec, load_config, load_tokenizer, max_positions
from seedmp.tasks.gsm8k import load_gsm8k
from seedmp.tasks.jsonl import FieldError, read_lines, read_problems, text_field
from seedmp.tuning.options import TuneOptions


@dataclass(frozen=True)
class Prompts:
    """Token ids of the prompts that count, and of those that everything before is measured with."""

    measured: tuple[tuple[int, ...], ...]
    calibration: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        return max(map(len, (*self.measured, *self.calibration)))


def read_texts(data: Path | None) -> list[tuple[str, str]]:
    """(before, after) halves of prompts: a number may come between them when one is used again.

    Raises:
        ConfigError: the file cannot be read, has another format or no prompts.
    """
    if data is None:
        return [("Question: ", f"{problem.question}\nAnswer:") for problem in load_gsm8k(None)]
    if data.suffix == ".jsonl":
        return read_problems(data, "prompt", None, _read_record)
    return read_lines(data, "prompt", None, lambda line: ("", line))


def _read_record(record: dict[str, Any]) -> tuple[str, str]:
    if "prompt" in record:
        return "", text_field(record, "prompt")
    if "question" not in record:
        raise FieldError(f"neither 'prompt' nor 'question'; there are {', '.join(map(repr, record)) or 'none'}")
    return "Question: ", f"{text_field(record, 'question')}\nAnswer:"


def divide(texts: Sequence[tuple[str, str]], num: int) -> tuple[list[str], list[str]]:
    """``num`` prompts that count and ``num`` to calibrate with: every other text each, from the first on again.

    One that comes again gets a number, so that it does not find its own KV. A single text serves for both.
    """

    def take(chosen: Sequence[tuple[str, str]]) -> list[str]:
        rounds = [(*chosen[i % len(chosen)], i // len(chosen) + 1) for i in range(num)]
        return [f"{before}{f'{again}. ' if again > 1 else ''}{after}" for before, after, again in rounds]

    return take(texts[0::2]), take(texts[1::2] or texts)


def read_prompts(options: TuneOptions) -> Prompts:
    """Everything that can be refused before a model is loaded.

    Raises:
        ConfigError: a model, its tokenizer or the prompts are not there, or do not fit.
    """
    texts = read_texts(options.data)
    config = EngineConfig(**options.models)
    specs = ModelSpec(config.target, config.target_shape), ModelSpec(config.draft, config.draft_shape)
    room = min(max_positions(load_config(spec)) for spec in specs)
    tokenizer = load_tokenizer(config.target)
    if tokenizer is None:
        raise ConfigError(f"target {config.target!r} has no tokenizer: its prompts cannot be read")
    resolve_placement(config)
    measured, calibration = (
        tuple(tuple(tokenizer(text).input_ids) for text in part) for part in divide(texts, options.branches)
    )
    prompts = Prompts(measured, calibration)
    if prompts.longest + options.max_tokens > room:
        raise ConfigError(
            f"a prompt of {prompts.longest} tokens and {options.max_tokens} more: the models have {room} positions"
        )
    return prompts
