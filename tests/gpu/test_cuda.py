"""The CUDA path: one context per process, arena and draft weights by IPC handle. Run by ``make gpu-check``."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from seedmp import Engine, SamplingParams
from seedmp.models import pair
from seedmp.models.load import ModelSpec, load_config, load_model
from tests.helpers.heads import head_tensors, write_head

pytestmark = pytest.mark.gpu

PROMPTS = [
    "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:",
    "Question: A pen costs 2 dollars. How much do 5 pens cost?\nAnswer:",
]
PARAMS = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True, seed=1)


def reference(engine: Engine) -> list[tuple[int, ...]]:
    """Greedy continuations by transformers on the same device."""
    model = load_model(ModelSpec(str(pair.TARGET)), torch.float32, "cuda:0")
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([engine.encode(prompt, special=True)], device="cuda:0")
        out = model.generate(
            ids, do_sample=False, max_new_tokens=PARAMS.max_tokens, min_new_tokens=PARAMS.max_tokens, eos_token_id=None
        )
        texts.append(tuple(out[0, ids.shape[1] :].tolist()))
    return texts


@pytest.mark.parametrize("settings", [{"method": "ar"}, {"policy": "fcfs"}, {"k_config": (2, 2, 1)}], ids=str)
def test_greedy_text_equals_generate(settings: dict[str, Any]) -> None:
    with Engine(dtype="float32", **settings) as engine:
        outputs = engine.generate(PROMPTS, PARAMS)
        assert [out.token_ids for out in outputs] == reference(engine)


@pytest.mark.parametrize("kind", ["eagle", "eagle3"])
def test_heads_read_features_by_handle(kind: str, tmp_path: Path) -> None:
    sizes = load_config(ModelSpec(str(pair.TARGET))).get_text_config(decoder=True)
    tensors = head_tensors(kind, sizes.vocab_size, sizes.vocab_size, hidden=sizes.hidden_size)
    for name in ("embed_tokens.weight", "lm_head.weight", "d2t", "t2d"):
        tensors.pop(name, None)
    head = write_head(tmp_path, tensors, hidden_size=sizes.hidden_size)
    settings: dict[str, Any] = {"method": "eagle", "nodes": 60, "top_k": 30, "max_depth": 3}
    with Engine(pair.TARGET, head, dtype="float32", validate=True, **settings) as engine:
        assert [out.token_ids for out in engine.generate(PROMPTS, PARAMS)] == reference(engine)
        assert engine.stats()["drafted"] > 0 == engine.stats()["workers_lost"]


def test_prompt_is_prefilled_once_and_shared_by_handle() -> None:
    with Engine(dtype="float32", validate=True) as engine:
        outputs = engine.generate(PROMPTS[0], SamplingParams(temperature=0.8, n=3, seed=3, max_tokens=16))
        prompt_len = len(outputs[0].prompt_token_ids)
        assert sum(out.metrics.target_prefill_tokens for out in outputs) == prompt_len - 1
        assert sum(out.metrics.draft_prefill_tokens for out in outputs) == prompt_len - 1


@pytest.mark.parametrize("victim", ["draft-0.0", "verifier-0"])
def test_killed_worker_is_replaced_and_text_is_unchanged(victim: str) -> None:
    with Engine(dtype="float32") as engine:
        expected = [out.token_ids for out in engine.generate(PROMPTS, PARAMS)]
        handles = [engine.submit(prompt, PARAMS) for prompt in PROMPTS]
        os.kill(engine.worker_pids()[victim], signal.SIGKILL)
        assert [handle.result(60).token_ids for handle in handles] == expected
        deadline = time.monotonic() + 60
        while victim not in engine.worker_pids():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [out.token_ids for out in engine.generate(PROMPTS, PARAMS, timeout=60)] == expected
