"""Every method in real processes, with the bundled pair: greedy text is plain decoding's, seeds repeat."""

from __future__ import annotations

from typing import Any

import pytest

from seedmp import Engine, SamplingParams

PROMPTS = [
    "Input: 1 2 3 4\nStep:",
    "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:",
    "Input: 1 2 3 4\nStep: 1 + 2 = 3 (left: 3 3 4)\nStep:",
]
GREEDY = SamplingParams(temperature=0.0, max_tokens=20, seed=1)
SAMPLED = SamplingParams(temperature=0.8, max_tokens=20, seed=5)
METHODS: dict[str, dict[str, Any]] = {
    "specinfer": {"growmap": "3x3"},
    "sequoia": {"growmap": (3, 2, 1, 0, 2, 0, 1, 0, 0, 0)},
    "opt-tree": {"nodes": 12, "max_depth": 5, "threshold": 0.2},
    "ngram": {},
    "coupled": {"growmap": "2x3"},
}
TARGETS_OWN = ("opt-tree", "ngram", "coupled")  # their text is what plain sampling with the seed gives


def texts(engine: Engine, params: SamplingParams) -> list[tuple[int, ...]]:
    return [tuple(output.token_ids) for output in engine.generate(PROMPTS, params, timeout=120)]


@pytest.fixture(scope="module")
def plain() -> dict[SamplingParams, list[tuple[int, ...]]]:
    with Engine(method="ar", kv_slots=1024, target_threads=1) as engine:
        return {params: texts(engine, params) for params in (GREEDY, SAMPLED)}


@pytest.mark.parametrize("method", METHODS)
def test_a_real_engine(method: str, plain: dict[SamplingParams, list[tuple[int, ...]]]) -> None:
    with Engine(
        method=method, num_drafts=2, kv_slots=2048, target_threads=1, validate=True, **METHODS[method]
    ) as engine:
        assert texts(engine, GREEDY) == plain[GREEDY]
        sampled = texts(engine, SAMPLED)
        assert texts(engine, SAMPLED) == sampled
        assert (sampled == plain[SAMPLED]) == (method in TARGETS_OWN)
        stats = engine.stats()
        assert 0 < stats["accepted"] <= stats["drafted"]
        assert stats["drafts_alive"] == (0 if method == "ngram" else 2)
        assert stats["malformed_messages"] == stats["workers_lost"] == 0
        assert stats["target_slots_leased"] == stats["draft_slots_leased"] == 0
