"""The joint law of the first three tokens through scheduler, drafts and target, several rounds long.

2,000 continuations of one prompt on a tiny random pair (8 tokens); exact law by enumeration with plain
forwards of the target. False-alarm rate 1e-4 a case; seeds are fixed. The twin, whose drafts claim
another temperature than they used, must fail.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from seedmp.ipc.messages import DraftTask
from seedmp.sampling import SamplingParams
from seedmp.workers.draft import TreeDrafter
from tests.helpers.local_loop import LocalLoop, Models

NUM_TEXTS = 2000
FALSE_ALARM = 1e-4
PROMPT = (1, 5, 2)
VOCAB = 8


def tiny_model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.6, tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def models() -> Models:
    torch.set_num_threads(1)
    target, draft = tiny_model(1), tiny_model(1)
    torch.manual_seed(2)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return Models(target, draft, VOCAB)


def exact_law(models: Models, temperature: float) -> dict[tuple[int, ...], float]:
    """Probability of every text of three tokens."""
    texts = list(itertools.product(range(VOCAB), repeat=3))
    with torch.inference_mode():
        ids = torch.tensor([PROMPT + text for text in texts])
        logs = (models.target(ids).logits[:, len(PROMPT) - 1 : -1].double() / temperature).log_softmax(-1)
    chosen = logs.gather(2, torch.tensor(texts)[:, :, None]).sum((1, 2)).exp()
    return dict(zip(texts, chosen.tolist(), strict=True))


def p_value(
    models: Models, method: str, k_config: tuple[int, ...], draft_temperature: float, temperature: float
) -> float:
    """Chi-square of what the loop generates against the exact law, rare texts pooled."""
    loop = LocalLoop(models, method=method, k_config=k_config, kv_slots=1 << 15, draft_top_m=6, max_forward_tokens=2048)
    object.__setattr__(loop.config, "validate", False)
    params = SamplingParams(
        temperature=temperature, draft_temperature=draft_temperature, max_tokens=3, ignore_eos=True, seed=11
    )
    outcomes = loop.run([PROMPT] * NUM_TEXTS, params)
    assert loop.scheduler.counters["rounds"] > NUM_TEXTS
    assert 0 < loop.scheduler.counters["accepted"] < loop.scheduler.counters["drafted"]
    seen = Counter(tuple(outcome.token_ids) for outcome in outcomes)
    law = exact_law(models, temperature)
    common = [text for text, p in law.items() if p * NUM_TEXTS >= 5]
    observed = [seen[text] for text in common]
    expected = [law[text] * NUM_TEXTS for text in common]
    rest = NUM_TEXTS - sum(expected)
    if rest >= 1:
        observed.append(NUM_TEXTS - sum(observed))
        expected.append(rest)
    else:
        expected = list(np.asarray(expected) * sum(observed) / sum(expected))
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
@pytest.mark.parametrize("draft_temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("method", "k_config"), [("sd", (1, 1)), ("sd", (2, 2)), ("mcsd", (2, 1)), ("mcsd", (3, 2))])
def test_joint_law_of_three_tokens(
    models: Models, method: str, k_config: tuple[int, ...], draft_temperature: float, temperature: float
) -> None:
    assert p_value(models, method, k_config, draft_temperature, temperature) > FALSE_ALARM


def test_drafts_that_claim_a_wrong_law_are_found(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = TreeDrafter.draft

    def dishonest(self: TreeDrafter, tasks: list[DraftTask], on_context: object) -> object:
        proposals = honest(self, tasks, on_context)  # type: ignore[arg-type]
        flat = [np.full_like(p.row_probs, 1 / p.row_probs.shape[1]) for p in proposals]
        return [replace(p, row_probs=probs) for p, probs in zip(proposals, flat, strict=True)]

    monkeypatch.setattr(TreeDrafter, "draft", dishonest)
    assert p_value(models, "mcsd", (2, 2), 0.5, 1.0) < 1e-6
