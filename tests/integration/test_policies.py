"""Policies from outside the package, in a real engine."""

from __future__ import annotations

import pytest

from seedmp import Engine, SamplingParams
from seedmp.errors import EngineDeadError

PROMPTS = [(1, 398, 28 + i) for i in range(4)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, seed=0, ignore_eos=True)
TIMEOUT_S = 60.0


def texts(policy: str) -> list[tuple[int, ...]]:
    with Engine(num_drafts=2, target_threads=1, kv_slots=512, policy=policy, validate=True) as engine:
        return [output.token_ids for output in engine.generate(PROMPTS, GREEDY, timeout=TIMEOUT_S)]


def test_a_policy_of_ones_own_changes_no_text() -> None:
    assert texts("tests.helpers.policies:AnyOrder") == texts("fcfs")


def test_a_broken_policy_ends_the_engine_and_is_named() -> None:
    engine = Engine(
        num_drafts=1, target_threads=1, kv_slots=512, max_restarts=0, policy="tests.helpers.policies:Broken"
    )
    with engine, pytest.raises(EngineDeadError, match=r"policy tests.helpers.policies:Broken: select chose"):
        engine.generate(PROMPTS, GREEDY, timeout=TIMEOUT_S)
