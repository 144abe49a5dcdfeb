"""Shared noise: for one seed the text is that of plain sampling, whatever was drafted, scheduled or batched.

The target-sample rule promises it for every tree that is fixed before the target draws; ``coupled`` makes
such trees that are likely to be accepted.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seedmp import SamplingParams
from seedmp.config import Schedule
from tests.helpers.local_loop import LocalLoop, Models, Outcome
from tests.helpers.models import VOCAB_SIZE

MAX_TOKENS = 16


def make_prompts() -> list[list[int]]:
    rng = random.Random(5)
    prompts = [[rng.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in (4, 21, 33)]
    return [*prompts, list(prompts[1])]


PROMPTS = make_prompts()
PARAMS = [
    SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, max_tokens=MAX_TOKENS, seed=7, ignore_eos=True)
    for temperature, top_p, top_k in ((0.3, 1.0, 0), (1.0, 0.9, 0), (0.8, 1.0, 20), (0.0, 1.0, 0))
]


@pytest.fixture(scope="module")
def pairs(tiny_pair: Callable[[str], tuple[Path, Path]]) -> list[Models]:
    """One target with two drafts: a near one, and one that knows nothing of it."""
    models = Models.load(*tiny_pair("llama"))
    torch.manual_seed(99)
    stranger = type(models.draft)(models.draft.config).eval()
    return [models, Models(models.target, stranger, models.vocab_size)]


def texts(outcomes: list[Outcome]) -> list[list[int]]:
    return [outcome.token_ids for outcome in outcomes]


def generate(models: Models, params: SamplingParams, **settings: Any) -> list[Outcome]:
    return LocalLoop(models, kv_slots=1024, **settings).run(PROMPTS, params)


SETTINGS: list[dict[str, Any]] = [
    {"k_config": (1, 1, 1)},
    {"k_config": (2, 2, 1), "num_drafts": 1},
    {"growmap": "4x3", "num_drafts": 2, "policy": "fcfs"},
    {"growmap": (3, 2, 1, 0, 2, 0, 1, 0, 0, 0), "schedule": Schedule.SERIAL},
    {"growmap": (5, 1, 0, 0, 0, 0, 0), "max_forward_tokens": 16, "policy": "fcfs"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_text_is_that_of_plain_sampling(settings: dict[str, Any], pairs: list[Models]) -> None:
    for params in PARAMS:
        expected = texts(generate(pairs[0], params, method="ar"))
        assert expected[1] != expected[3] or params.temperature == 0  # equal prompts, streams of their own
        for models in pairs:
            assert texts(generate(models, params, method="coupled", **settings)) == expected, params


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "opt-tree", "nodes": 9, "max_depth": 4, "threshold": 0.0},
        {"method": "ngram"},
        {"method": "sequoia", "growmap": "3x2", "draft_temperature": 0.0},
        {"method": "specinfer", "growmap": "3x2", "draft_temperature": 0.0},
    ],
    ids=str,
)
def test_so_it_is_with_every_tree_that_is_not_drawn(settings: dict[str, Any], pairs: list[Models]) -> None:
    settings = dict(settings)
    draft_temperature = settings.pop("draft_temperature", None)
    for params in PARAMS[:2]:
        drafted = SamplingParams(**{**vars(params), "draft_temperature": draft_temperature})
        for models in pairs:
            assert texts(generate(models, drafted, **settings)) == texts(generate(models, params, method="ar"))


def test_shared_noise_is_what_makes_drafts_agree(pairs: list[Models]) -> None:
    """The same chain, with noise of its own or without any, is accepted less often."""
    params = SamplingParams(temperature=1.0, max_tokens=40, seed=3, ignore_eos=True)

    def accepted(method: str, draft_temperature: float | None) -> int:
        drafted = SamplingParams(**{**vars(params), "draft_temperature": draft_temperature})
        outcomes = generate(pairs[0], drafted, method=method, k_config=(1, 1, 1))
        return sum(outcome.counters.accepted for outcome in outcomes)

    assert accepted("coupled", None) > accepted("sd", 0.0)


def test_without_noise_at_the_target_there_is_none_at_the_draft(pairs: list[Models]) -> None:
    """Greedy text: the draft's own top tokens, even if a draft temperature was given."""
    outcomes = {}
    for draft_temperature in (None, 1.0):
        params = SamplingParams(
            temperature=0.0, draft_temperature=draft_temperature, max_tokens=MAX_TOKENS, seed=1, ignore_eos=True
        )
        outcomes[draft_temperature] = generate(pairs[0], params, method="coupled")
    assert [o.counters for o in outcomes[None]] == [o.counters for o in outcomes[1.0]]
