"""``draft_noise``: a worse draft for benchmarks, whose proposals are drawn from the law that is shipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seedmp.config import EngineConfig
from seedmp.decoding.propose import DraftLaw, propose_children
from seedmp.errors import ConfigError
from seedmp.token_tree.tree import ProposalKind

LOGITS = torch.tensor([[3.0, 1.0, 0.0, -1.0, -20.0, 2.0]])


def rows_of(noise: float, kind: ProposalKind = ProposalKind.IID) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    gumbel = np.random.default_rng(0).gumbel(size=2 * 4)
    noise_row = gumbel if kind is ProposalKind.IID else gumbel[:4]
    children = propose_children(LOGITS, 2, kind, DraftLaw(1.0, 4, noise=noise), [noise_row])
    return children.token_ids, children.row_ids, children.row_probs


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_the_shipped_law_is_the_mixture(noise: float) -> None:
    _, ids, probs = rows_of(noise)
    plain = LOGITS[0, ids[0]].softmax(-1).numpy()
    assert ids[0].tolist() == [0, 5, 1, 2]
    np.testing.assert_allclose(probs[0], (1 - noise) * plain + noise / 4, rtol=1e-5)
    assert probs.dtype == np.float32 and probs.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("kind", [ProposalKind.IID, ProposalKind.WITHOUT_REPLACEMENT])
def test_children_are_drawn_from_the_shipped_law(kind: ProposalKind) -> None:
    token_ids, ids, probs = rows_of(0.6, kind)
    gumbel = np.random.default_rng(0).gumbel(size=8)
    keys = np.log(probs[0].astype(np.float64))
    if kind is ProposalKind.IID:
        expected = ids[0, (keys + gumbel.reshape(2, 4)).argmax(-1)]
    else:
        expected = ids[0, (-(keys + gumbel[:4])).argsort()[:2]]
    assert token_ids[0].tolist() == expected.tolist()


@pytest.mark.parametrize("noise", [-0.1, 1.5, "a", True, float("nan")])
def test_values_out_of_range_are_refused(noise: object) -> None:
    with pytest.raises(ConfigError, match="draft_noise"):
        EngineConfig(target="t", draft="d", draft_noise=noise)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["ar", "opt-tree", "ngram", "coupled"])
def test_methods_that_do_not_sample_have_no_noise(method: str) -> None:
    with pytest.raises(ConfigError, match="only by sd, mcsd, specinfer, sequoia"):
        EngineConfig(target="t", draft="d", method=method, draft_noise=0.5)  # type: ignore[arg-type]


def test_the_law_checks_its_noise() -> None:
    with pytest.raises(ConfigError, match="noise"):
        DraftLaw(1.0, 4, noise=2.0)
