"""The joint law of the first three tokens through scheduler, drafts and target, several rounds long.

2,000 continuations of one prompt on a tiny random pair (8 tokens); exact law by enumeration with plain
forwards of the target. False-alarm rate 1e-4 a case; seeds are fixed. Broken twins of each sampled
rule must fail; greedy and target-sample rules are lossless whatever was drafted, so they have none.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from seedmp.decoding.propose import Children, DraftLaw, propose_children
from seedmp.draft_order import DraftOrder
from seedmp.drafts.tree_drafter import TreeDrafter
from seedmp.ipc.messages import Proposal
from seedmp.sampling import SamplingParams
from seedmp.token_tree.sequoia import parse_acceptance, search_trees
from seedmp.token_tree.tree import ProposalKind
from tests.helpers.chi_square import pooled_p_value
from tests.helpers.local_loop import LocalLoop, Models

NUM_TEXTS = 2000
FALSE_ALARM = 1e-4
BROKEN = 1e-6
PROMPT = (1, 5, 2)
# Its last token was followed by every token before: prompt lookup has much to find.
REPEATING = (2, 0, 2, 1, 2, 3, 2, 4, 2, 5, 2, 6, 2, 7, 2)
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
            weight.add_(0.07 * torch.randn_like(weight))  # at PROMPT neither alike nor strangers
    return Models(target, draft, VOCAB)


def exact_law(models: Models, temperature: float, prompt: tuple[int, ...]) -> dict[tuple[int, ...], float]:
    """Probability of every text of three tokens."""
    texts = list(itertools.product(range(VOCAB), repeat=3))
    with torch.inference_mode():
        ids = torch.tensor([prompt + text for text in texts])
        logs = (models.target(ids).logits[:, len(prompt) - 1 : -1].double() / temperature).log_softmax(-1)
    chosen = logs.gather(2, torch.tensor(texts)[:, :, None]).sum((1, 2)).exp()
    return dict(zip(texts, chosen.tolist(), strict=True))


def p_value(
    models: Models,
    settings: dict[str, Any],
    draft_temperature: float | None,
    temperature: float,
    prompt: tuple[int, ...] = PROMPT,
) -> float:
    """Chi-square of what the loop generates against the exact law, rare texts pooled."""
    loop = LocalLoop(models, **{"kv_slots": 1 << 15, "draft_top_m": 6, "max_forward_tokens": 2048} | settings)
    object.__setattr__(loop.config, "validate", False)
    params = SamplingParams(
        temperature=temperature, draft_temperature=draft_temperature, max_tokens=3, ignore_eos=True, seed=11
    )
    outcomes = loop.run([prompt] * NUM_TEXTS, params)
    assert loop.scheduler.counters["rounds"] > NUM_TEXTS
    assert 0 < loop.scheduler.counters["accepted"] < loop.scheduler.counters["drafted"]
    seen = Counter(tuple(outcome.token_ids) for outcome in outcomes)
    law = exact_law(models, temperature, prompt)
    return pooled_p_value(seen, law)


# (temperature, draft temperature): each temperature, and drafts that are colder, equal and without chance.
TEMPERATURES = [(0.2, 1.0), (0.6, 0.5), (0.6, 0.0), (1.0, 1.0), (1.0, 0.5)]
TREES = [("sd", (1, 1)), ("sd", (2, 2)), ("mcsd", (2, 1)), ("mcsd", (3, 2))]


@pytest.mark.parametrize(("temperature", "draft_temperature"), TEMPERATURES)
@pytest.mark.parametrize(("method", "k_config"), TREES)
def test_joint_law_of_three_tokens(
    models: Models, method: str, k_config: tuple[int, ...], draft_temperature: float, temperature: float
) -> None:
    settings = {"method": method, "k_config": k_config}
    assert p_value(models, settings, draft_temperature, temperature) > FALSE_ALARM


# A tree of the dynamic programme for the published acceptance vector of a 68M draft: 16 nodes with the root.
SEQUOIA_TREE = search_trees(parse_acceptance([0.0, 0.634, 0.108, 0.057, 0.022]), 16, 4).growmap(16, 4)
METHODS: dict[str, dict[str, Any]] = {
    "specinfer-chains": {"method": "specinfer", "growmap": "4x2"},
    "sequoia": {"method": "sequoia", "growmap": SEQUOIA_TREE},
    "opt-tree": {"method": "opt-tree", "nodes": 5, "max_depth": 3, "threshold": 0.0, "kv_slots": 1 << 16},
    "ngram": {"method": "ngram", "nodes": 10, "max_depth": 3},
    "coupled": {"method": "coupled", "growmap": (2, 2, 1, 0, 0, 0)},
}


@pytest.mark.parametrize("temperature", [0.2, 0.6, 1.0])
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_joint_law_of_every_method(models: Models, settings: dict[str, Any], temperature: float) -> None:
    draft_temperature = 0.8 if settings["method"] in ("specinfer", "sequoia") else None
    prompt = REPEATING if settings["method"] == "ngram" else PROMPT
    assert p_value(models, settings, draft_temperature, temperature, prompt) > FALSE_ALARM


# --- broken twins -----------------------------------------------------------------------------------


def twin_of(change: Callable[[Proposal], Proposal], monkeypatch: pytest.MonkeyPatch) -> None:
    """Proposals are changed on their way."""
    honest = TreeDrafter.draft

    def draft(self: TreeDrafter, tasks: list[DraftOrder], on_context: Callable[[DraftOrder], None]) -> list[Proposal]:
        return [change(proposal) for proposal in honest(self, tasks, on_context)]

    monkeypatch.setattr(TreeDrafter, "draft", draft)


def test_drafts_that_claim_a_wrong_law_are_found(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    twin_of(lambda p: replace(p, row_probs=np.full_like(p.row_probs, 1 / p.row_probs.shape[1])), monkeypatch)
    assert p_value(models, {"method": "mcsd", "k_config": (2, 2)}, 0.5, 1.0) < BROKEN


@pytest.mark.parametrize("method", ["specinfer", "sequoia"])
def test_a_deterministic_tree_that_claims_to_be_drawn_is_found(
    method: str, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mistake of the SEED reference code: the draft's top tokens with the rules of sampled ones."""

    def likeliest(logits: Any, num_children: int, kind: ProposalKind, law: DraftLaw, gumbel: Any) -> Children:
        drawn = propose_children(logits, num_children, kind, law, gumbel)
        return replace(drawn, token_ids=drawn.row_ids[:, :num_children])

    monkeypatch.setattr("seedmp.drafts.tree_drafter.propose_children", likeliest)
    assert p_value(models, {"method": method, "growmap": SEQUOIA_TREE}, 1.0, 1.0) < BROKEN


def test_children_in_another_order_are_found(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule D is exact in the order of sampling alone."""

    def reversed_children(logits: Any, num_children: int, kind: ProposalKind, law: DraftLaw, gumbel: Any) -> Children:
        drawn = propose_children(logits, num_children, kind, law, gumbel)
        return replace(drawn, token_ids=drawn.token_ids[:, ::-1])

    monkeypatch.setattr("seedmp.drafts.tree_drafter.propose_children", reversed_children)
    assert p_value(models, {"method": "mcsd", "k_config": (4, 4)}, 1.0, 1.0) < BROKEN


def test_merged_siblings_without_their_repeats_are_found(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draw that repeats a rejected token is a trial too."""
    twin_of(lambda p: replace(p, draws=()), monkeypatch)
    assert p_value(models, {"method": "specinfer", "growmap": "6x2"}, 2.0, 1.0) < BROKEN
