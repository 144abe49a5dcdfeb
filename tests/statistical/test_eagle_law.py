"""The joint law of the first three tokens with EAGLE heads of random weights; the setting of ``test_loop_law``.

2,000 continuations of one prompt, exact law by enumeration, false-alarm rate 1e-4 a case, fixed seeds. The
rule is B, which is lossless whatever was drafted; the broken twins apply rules that are not, and must fail.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seedmp.decoding.accept import Verdict, sample_token
from seedmp.sampling import Noise, Purpose, TargetLaw
from seedmp.token_tree.tree import TokenTree
from tests.helpers.heads import head_tensors, write_head
from tests.helpers.local_loop import Models
from tests.statistical.test_loop_law import BROKEN, FALSE_ALARM, VOCAB, p_value, tiny_model

TREES: dict[str, dict[str, Any]] = {
    "eagle-2": {"nodes": 6, "top_k": 2, "max_depth": 3},
    "opt-tree": {"nodes": 5, "max_depth": 3, "threshold": 0.0},
}


@pytest.fixture(scope="module", params=["eagle", "eagle3"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(1).save_pretrained(folder / "target")
    tensors = head_tensors(request.param, VOCAB, 6, hidden=16)
    del tensors["embed_tokens.weight"]
    write_head(folder / "head", tensors, hidden_size=16)
    return Models.with_head(folder / "target", folder / "head")


def settings_of(tree: str) -> dict[str, Any]:
    return {"method": "eagle", "kv_slots": 1 << 16, **TREES[tree]}


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("tree", TREES)
def test_joint_law_of_three_tokens(models: Models, tree: str, temperature: float) -> None:
    assert p_value(models, settings_of(tree), None, temperature) > FALSE_ALARM


def wrong_accept(
    rule: Any, tree: TokenTree, rows: Any, logits: torch.Tensor, law: TargetLaw, noise: Noise, position: int
) -> Verdict:
    """Accept a child x with the target's P[x], but forget to take a rejected one out of P."""
    probs = law.probs(logits).double().numpy()
    accepted: list[int] = []
    while True:
        at = accepted[-1] + 1 if accepted else 0
        depth = position + len(accepted)
        uniforms = noise.uniform(depth, Purpose.ACCEPT, max(1, len(tree.children[at])), at)
        hits = [i for i, u in zip(tree.children[at], uniforms, strict=False) if u < probs[at][tree.token_ids[i]]]
        if not hits:
            gumbel: np.ndarray = noise.gumbel(depth, Purpose.TARGET_TOKEN, probs.shape[1])
            return Verdict(tuple(accepted), sample_token(probs[at], gumbel))
        accepted.append(hits[0])


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_a_rule_that_keeps_rejected_tokens_is_found(
    models: Models, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("seedmp.workers.target.accept", wrong_accept)
    assert p_value(models, settings_of("eagle-2"), None, temperature) < BROKEN
