"""Children of tree nodes: drawn from the law that is shipped, in the order of sampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from seedmp.decoding.accept import sample_token
from seedmp.decoding.propose import (
    MIN_DRAFT_PROB,
    Children,
    DraftLaw,
    confidence_temperature,
    likeliest,
    noise_size,
    propose_children,
    propose_coupled,
)
from seedmp.errors import ConfigError
from seedmp.token_tree.tree import ProposalKind

IID = ProposalKind.IID
SWOR = ProposalKind.WITHOUT_REPLACEMENT
DETERMINISTIC = ProposalKind.DETERMINISTIC


def propose(logits: torch.Tensor, num_children: int, kind: ProposalKind, law: DraftLaw, seed: int = 0) -> Children:
    rng = np.random.default_rng(seed)
    size = noise_size(kind, num_children, law.row_len(logits.shape[1]))
    return propose_children(logits, num_children, kind, law, [rng.gumbel(size=size) for _ in range(len(logits))])


def random_logits(rows: int, vocab: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, vocab)) * 3).float()


@pytest.mark.parametrize("kind", [IID, SWOR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_the_truncated_softmax(kind: ProposalKind, dtype: torch.dtype) -> None:
    logits = random_logits(3, 20).to(dtype)
    law = DraftLaw(temperature=0.7, top_m=5, vocab_size=18)
    children = propose(logits, 2, kind, law)
    assert children.token_ids.shape == (3, 2)
    assert children.row_ids.shape == children.row_probs.shape == (3, 5)
    assert children.token_ids.dtype == children.row_ids.dtype == np.int32
    assert children.row_probs.dtype == np.float32
    for row in range(3):
        full = (logits[row, :18].double() / 0.7).softmax(-1).numpy()
        ids = children.row_ids[row]
        assert full[ids].min() >= np.delete(full, ids).max()
        np.testing.assert_allclose(children.row_probs[row], full[ids] / full[ids].sum(), rtol=1e-5)
        assert set(children.token_ids[row].tolist()) <= set(ids.tolist())


def test_without_replacement_children_stand_in_order_of_decreasing_key() -> None:
    logits = random_logits(4, 10)
    law = DraftLaw(temperature=1.0, top_m=6)
    gumbel = [np.random.default_rng(r).gumbel(size=6) for r in range(4)]
    children = propose_children(logits, 6, SWOR, law, gumbel)
    for row in range(4):
        keys = np.log(children.row_probs[row].astype(np.float64)) + gumbel[row]
        assert children.token_ids[row].tolist() == children.row_ids[row][np.argsort(-keys)].tolist()


def test_iid_children_are_one_draw_per_row_of_noise() -> None:
    logits = random_logits(2, 10)
    gumbel = [np.random.default_rng(r).gumbel(size=3 * 6) for r in range(2)]
    children = propose_children(logits, 3, IID, DraftLaw(1.0, 6), gumbel)
    for row in range(2):
        keys = np.log(children.row_probs[row].astype(np.float64)) + gumbel[row].reshape(3, 6)
        assert children.token_ids[row].tolist() == children.row_ids[row][keys.argmax(-1)].tolist()


@pytest.mark.parametrize("kind", [IID, SWOR])
def test_a_row_does_not_depend_on_its_batch_mates(kind: ProposalKind) -> None:
    logits, law = random_logits(4, 12), DraftLaw(0.9, 8)
    gumbel = [np.random.default_rng(r).gumbel(size=noise_size(kind, 3, 8)) for r in range(4)]
    together = propose_children(logits, 3, kind, law, gumbel)
    for row in range(4):
        alone = propose_children(logits[row : row + 1], 3, kind, law, gumbel[row : row + 1])
        assert (alone.token_ids[0] == together.token_ids[row]).all()
        np.testing.assert_array_equal(alone.row_probs[0], together.row_probs[row])


@pytest.mark.parametrize(("kind", "temperature"), [(DETERMINISTIC, 1.0), (SWOR, 0.0), (IID, 0.0)])
def test_deterministic_children_are_the_likeliest_real_tokens(kind: ProposalKind, temperature: float) -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0, 9.0], [5.0, 1.0, 2.0, 0.0, 9.0]])
    children = propose_children(logits, 3, kind, DraftLaw(temperature, top_m=2, vocab_size=4), [])
    assert children.token_ids.tolist() == [[1, 3, 2], [0, 2, 1]]
    assert children.token_ids.dtype == np.int32
    assert children.row_ids.shape == children.row_probs.shape == (2, 0)


@pytest.mark.parametrize("num_children", [1, 2, 4])
def test_noise_size(num_children: int) -> None:
    assert noise_size(IID, num_children, 8) == num_children * 8
    assert noise_size(SWOR, num_children, 8) == 8
    assert noise_size(DETERMINISTIC, num_children, 8) == 0


def test_tokens_without_mass_are_drawn_only_when_nothing_else_is_left() -> None:
    logits = torch.tensor([[0.0, -1e4, 0.5, -1e4, -math.inf, -1e4]])
    thirds = []
    for seed in range(200):
        children = propose(logits, 3, SWOR, DraftLaw(1.0, 6), seed)
        assert set(children.token_ids[0, :2].tolist()) == {0, 2}
        thirds.append(int(children.token_ids[0, 2]))
        assert set(propose(logits, 3, IID, DraftLaw(1.0, 6), seed).token_ids[0].tolist()) <= {0, 2}
    assert set(thirds) == {1, 3, 4, 5}  # in any order, not by id


@pytest.mark.parametrize("kind", [IID, SWOR])
@pytest.mark.parametrize("temperature", [1e-40, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("logits", [[math.nan, 0.0, 1.0], [math.inf, 0.0, 1.0], [-math.inf] * 3, [3e38, 0.0, -3e38]])
def test_a_row_is_a_law_whatever_the_logits(kind: ProposalKind, temperature: float, logits: list[float]) -> None:
    children = propose(torch.tensor([logits]), 3, kind, DraftLaw(temperature, 3))
    assert sorted(children.row_ids[0].tolist()) == [0, 1, 2]
    assert children.row_probs.min() >= np.float32(MIN_DRAFT_PROB) / 2
    assert children.row_probs.sum() == pytest.approx(1)
    assert len(set(children.token_ids[0].tolist())) == 3 or kind is IID


@pytest.mark.parametrize(("kind", "num_children"), [(SWOR, 4), (IID, 0), (SWOR, 0), (DETERMINISTIC, 6)])
def test_refuses_more_distinct_children_than_tokens(kind: ProposalKind, num_children: int) -> None:
    with pytest.raises(ConfigError, match=f"{num_children} children"):
        propose(torch.zeros(1, 7), num_children, kind, DraftLaw(1.0, top_m=3, vocab_size=5))


def test_draws_with_replacement_may_outnumber_the_tokens() -> None:
    children = propose(torch.zeros(2, 7), 5, IID, DraftLaw(1.0, top_m=3))
    assert children.token_ids.shape == (2, 5)
    assert children.row_ids.shape == (2, 3)


@pytest.mark.parametrize(
    ("temperature", "top_m", "vocab_size"),
    [(-1.0, 4, None), (math.nan, 4, None), (1.0, 0, None), (1.0, 4, 0)],
)
def test_draft_law_refuses_values_out_of_range(temperature: float, top_m: int, vocab_size: int | None) -> None:
    with pytest.raises(ConfigError, match="must be"):
        DraftLaw(temperature, top_m, vocab_size)


@pytest.mark.parametrize("kind", list(ProposalKind))
def test_no_rows_give_no_children(kind: ProposalKind) -> None:
    children = propose(torch.zeros(0, 7), 2, kind, DraftLaw(1.0, top_m=3))
    assert children.token_ids.shape == (0, 2)


def test_coupled_children_are_what_a_target_of_the_same_law_would_draw() -> None:
    logits = random_logits(4, 20)
    gumbel = np.random.default_rng(3).gumbel(size=(2, 18))
    noise_rows = [0, 0, 1, 1]
    children = propose_coupled(logits, 3, DraftLaw(0.7, 5, 18), gumbel, noise_rows)
    assert children.shape == (4, 3) and children.dtype == np.int32
    for row, noise_row in enumerate(noise_rows):
        probs = (logits[row, :18].double() / 0.7).softmax(-1).numpy()
        drawn = []
        for _ in range(3):  # the second child is what would be drawn if the first were not there
            drawn.append(sample_token(probs, gumbel[noise_row]))
            probs[drawn[-1]] = 0
        assert children[row].tolist() == drawn


def test_coupled_children_are_no_more_than_there_are_tokens() -> None:
    assert propose_coupled(random_logits(1, 20), 9, DraftLaw(1.0, 5, 4), np.zeros((1, 4)), [0]).shape == (1, 4)


def test_the_likeliest_tokens_are_those_of_temperature_1_without_padding() -> None:
    logits = random_logits(3, 20)
    logits[:, 18:] = 100
    token_ids, log_probs = likeliest(logits, 4, 18)
    expected = logits[:, :18].log_softmax(-1)
    np.testing.assert_allclose(log_probs, np.take_along_axis(expected.numpy(), token_ids, 1), rtol=1e-6)
    assert token_ids[:, 0].tolist() == expected.argmax(-1).tolist()
    assert (np.diff(log_probs) <= 0).all()
    assert likeliest(logits, 99, 18)[0].shape == (3, 18)


def test_confidence_sharpens_where_the_target_is_greedy() -> None:
    assert [confidence_temperature(t) for t in (0.0, 1.0)] == pytest.approx([0.7, 1.0])
    logits = torch.randn(3, 20)
    ids, plain = likeliest(logits, 20, None)
    sharp_ids, sharp = likeliest(logits, 20, None, 0.7)
    assert (ids == sharp_ids).all()
    np.testing.assert_allclose(np.exp(sharp).sum(1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(np.diff(sharp), np.diff(plain) / 0.7, rtol=1e-3, atol=1e-5)
