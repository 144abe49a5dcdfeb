"""The accept rules: exact output laws by enumeration, and what the walk does with trees and noise.

The vectors are exact: target (.6, .3, .1), every order of children weighted with its probability.
"""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch

from seedmp.decoding.accept import (
    RULES,
    AcceptRule,
    DraftRows,
    Verdict,
    accept,
    check_rule,
    choose_rule,
    load_rule,
    sample_token,
)
from seedmp.decoding.greedy import follow_target
from seedmp.decoding.propose import DraftLaw, noise_size, propose_children
from seedmp.decoding.sequoia import SequoiaTrial
from seedmp.decoding.specinfer import SpecInferTrial
from seedmp.errors import ConfigError, ProtocolError
from seedmp.sampling import Noise, Purpose, TargetLaw
from seedmp.token_tree.tree import EMPTY_TREE, NO_PARENT, ProposalKind, TokenTree

torch.set_num_threads(1)

IID = ProposalKind.IID
SWOR = ProposalKind.WITHOUT_REPLACEMENT
DETERMINISTIC = ProposalKind.DETERMINISTIC
ALL_RULES = [load_rule(name) for name in RULES.names()]
GREEDY, TARGET_SAMPLE, SPECINFER, SEQUOIA = ALL_RULES
KIND_OF_RULE = {
    GREEDY: DETERMINISTIC,
    TARGET_SAMPLE: DETERMINISTIC,
    SPECINFER: IID,
    SEQUOIA: SWOR,
}

TARGET = np.array([0.6, 0.3, 0.1])
SPECINFER_VECTORS = {
    (0.2, 0.5, 0.3): ("3/5", "17/25", "93/125"),
    (0.5, 0.5, 0.0): ("4/5", "9/10", "9/10"),
    (1.0, 0.0, 0.0): ("3/5", "3/5", "3/5"),
}
SEQUOIA_VECTORS = {
    (0.2, 0.5, 0.3): ("3/5", "129/175", "1"),
    (0.5, 0.5, 0.0): ("4/5", "9/10", "1"),
    (1.0, 0.0, 0.0): ("3/5", "9/10", "1"),
}


def iid_orders(draft: np.ndarray, k: int) -> list[tuple[float, tuple[int, ...]]]:
    """Every sequence of k independent draws with its probability."""
    sequences = itertools.product(range(len(draft)), repeat=k)
    return [(float(np.prod(draft[list(tokens)])), tokens) for tokens in sequences]


def swor_orders(draft: np.ndarray, k: int) -> list[tuple[float, tuple[int, ...]]]:
    """Every sequence of k draws without replacement; uniform over the rest when mass has run out."""
    orders = []
    for tokens in itertools.permutations(range(len(draft)), k):
        weight, left = 1.0, draft.copy()
        for i, token in enumerate(tokens):
            if left.sum() == 0:
                left[[t for t in range(len(left)) if t not in tokens[:i]]] = 1
            weight *= left[token] / left.sum()
            left[token] = 0
        orders.append((weight, tokens))
    return orders


def enumerate_trial(
    trial_type: type[SpecInferTrial], target: np.ndarray, draft: np.ndarray, k: int
) -> tuple[float, np.ndarray]:
    """(accept probability, [V] law of the output) with the uniforms and the orders integrated exactly."""
    orders = swor_orders(draft, k) if trial_type is SequoiaTrial else iid_orders(draft, k)
    accepted, output = 0.0, np.zeros(len(target))
    for weight, tokens in orders:
        if weight == 0:
            continue
        trial = trial_type(target, np.arange(len(draft)), draft)
        for token in tokens:
            prob = trial.accept_prob(token)
            accepted += weight * prob
            output[token] += weight * prob
            weight *= 1 - prob
            if weight == 0:
                break
            trial.reject(token)
        else:
            output += weight * trial.residual
    return accepted, output


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("draft", list(SPECINFER_VECTORS))
def test_specinfer_vectors(draft: tuple[float, float, float], k: int) -> None:
    accepted, output = enumerate_trial(SpecInferTrial, TARGET, np.array(draft), k)
    assert accepted == pytest.approx(float(Fraction(SPECINFER_VECTORS[draft][k - 1])), abs=1e-12)
    np.testing.assert_allclose(output, TARGET, rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("draft", list(SEQUOIA_VECTORS))
def test_sequoia_vectors(draft: tuple[float, float, float], k: int) -> None:
    accepted, output = enumerate_trial(SequoiaTrial, TARGET, np.array(draft), k)
    assert accepted == pytest.approx(float(Fraction(SEQUOIA_VECTORS[draft][k - 1])), abs=1e-12)
    np.testing.assert_allclose(output, TARGET, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("k", "expected"), [(1, "3/10"), (2, "2/5"), (3, "1")])
def test_target_sample_vectors(k: int, expected: str) -> None:
    likeliest_drafts = (1, 2, 0)  # of (.2, .5, .3)
    tree = TokenTree(likeliest_drafts[:k], (NO_PARENT,) * k, DETERMINISTIC)
    accepted, output = 0.0, np.zeros(3)
    for token, prob in enumerate(TARGET):
        path, next_token = follow_target(tree, {NO_PARENT: token, 0: 0, 1: 0, 2: 0}.__getitem__)
        accepted += prob * bool(path)
        output[tree.token_ids[path[0]] if path else next_token] += prob
    assert accepted == pytest.approx(float(Fraction(expected)), abs=1e-12)
    np.testing.assert_allclose(output, TARGET, rtol=0, atol=1e-12)


@pytest.mark.parametrize("trial_type", [SpecInferTrial, SequoiaTrial])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_output_law_is_the_targets_for_random_laws(trial_type: type[SpecInferTrial], k: int) -> None:
    rng = np.random.default_rng(k)
    for _ in range(20):
        target, draft = rng.dirichlet([0.4] * 4), rng.dirichlet([0.4] * 4)
        target[rng.integers(4)] *= rng.integers(2)  # some laws have zeros, as top-k and top-p make them
        draft[rng.integers(4)] *= rng.integers(2)
        target, draft = target / target.sum(), draft / draft.sum()
        accepted, output = enumerate_trial(trial_type, target, draft, k)
        np.testing.assert_allclose(output, target, rtol=0, atol=1e-12)
        if k == 1:  # optimal transport
            assert accepted == pytest.approx(np.minimum(target, draft).sum(), abs=1e-12)
        if k == 4 and trial_type is SequoiaTrial:  # cover
            assert accepted == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("trial_type", [SpecInferTrial, SequoiaTrial])
def test_sparse_row_is_the_dense_row(trial_type: type[SpecInferTrial]) -> None:
    target = np.array([0.1, 0.4, 0.2, 0.3])
    sparse = trial_type(target, np.array([3, 0]), np.array([0.25, 0.75]))
    dense = trial_type(target, np.arange(4), np.array([0.75, 0, 0, 0.25]))
    assert sparse.accept_prob(0) == dense.accept_prob(0)
    sparse.reject(0)
    dense.reject(0)
    np.testing.assert_allclose(sparse.residual, dense.residual, atol=1e-15)
    assert sparse.accept_prob(3) == pytest.approx(dense.accept_prob(3), abs=1e-15)


def test_residual_without_mass_falls_back_to_the_untried_target_then_to_its_argmax() -> None:
    same = np.array([0.5, 0.5, 0.0])
    trial = SpecInferTrial(same, np.arange(3), same)
    trial.reject(0)  # never happens in exact arithmetic: it is accepted with probability 1
    assert trial.residual.tolist() == [0, 1, 0]
    one_hot = np.array([0.0, 1.0, 0.0])
    trial = SpecInferTrial(one_hot, np.arange(3), one_hot)
    trial.reject(1)
    assert trial.residual.tolist() == [0, 1, 0]


@pytest.mark.parametrize("kind", [IID, SWOR])
def test_nan_logits_of_the_target_still_give_a_token(kind: ProposalKind) -> None:
    tree = TokenTree((1, 2), (NO_PARENT, NO_PARENT), kind)
    rows = DraftRows(np.array([[1, 2, 3]], np.int32), np.array([[0.5, 0.25, 0.25]], np.float32))
    logits = torch.full((3, 5), torch.nan)
    for seed in range(5):
        verdict = accept(choose_rule(None, kind, 1.0), tree, rows, logits, TargetLaw(), Noise(seed), 0)
        assert 0 <= verdict.next_token < 5
        assert verdict.accepted == ()


@pytest.mark.parametrize(
    ("ids", "probs", "what"),
    [
        ([[0, 9]], [[0.5, 0.5]], "no law"),
        ([[0, -1]], [[0.5, 0.5]], "no law"),
        ([[0, 1]], [[0.5, np.nan]], "no law"),
        ([[0, 1]], [[1.5, -0.5]], "no law"),
        ([[0, 1]], [[0.0, 0.0]], "no law"),
        ([[0, 2]], [[0.5, 0.5]], "token 1"),
        ([[0, 1]], [[1.0, 0.0]], "token 1"),
        ([[0, 1], [0, 1]], [[0.5, 0.5]] * 2, "2 draft rows for 1 nodes"),
    ],
)
def test_refuses_draft_rows_that_cannot_be(ids: list[list[int]], probs: list[list[float]], what: str) -> None:
    rows = DraftRows(np.array(ids, np.int32), np.array(probs, np.float32))
    tree = TokenTree((1,), (NO_PARENT,), IID)
    with pytest.raises(ProtocolError, match=what):
        accept(SPECINFER, tree, rows, torch.zeros(2, 3), TargetLaw(), Noise(0), 0)
    with pytest.raises(ProtocolError, match=what.replace("token 1", "a draft token")):
        rows.validate(tree, 3)


def test_valid_rows_pass_and_equal_siblings_only_with_replacement() -> None:
    rows = DraftRows(np.array([[0, 1], [1, 2]], np.int32), np.full((2, 2), 0.5, np.float32))
    parents = (NO_PARENT, NO_PARENT, 0, 0)
    for kind in (IID, SWOR):
        rows.validate(TokenTree((1, 0, 1, 2), parents, kind), 3)
    rows.validate(TokenTree((1, 1, 2, 2), parents, IID), 3)
    with pytest.raises(ProtocolError, match="equal siblings"):
        rows.validate(TokenTree((1, 0, 2, 2), parents, SWOR), 3)
    with pytest.raises(ProtocolError, match="no probability"):  # 2 is in the other node's row
        rows.validate(TokenTree((1, 2, 1, 2), parents, IID), 3)
    DraftRows(np.empty((0, 2), np.int32), np.empty((0, 2), np.float32)).validate(EMPTY_TREE, 3)
    with pytest.raises(ProtocolError, match="no law"):
        DraftRows(np.empty((1, 0), np.int32), np.empty((1, 0), np.float32)).validate(
            TokenTree((1,), (NO_PARENT,), SWOR), 3
        )


def test_refuses_missing_or_misshapen_draft_rows() -> None:
    tree = TokenTree((1,), (NO_PARENT,), IID)
    with pytest.raises(ProtocolError, match="0 draft rows for 1"):
        accept(SPECINFER, tree, None, torch.zeros(2, 3), TargetLaw(), Noise(0), 0)
    with pytest.raises(ProtocolError, match="ids are"):
        DraftRows(np.zeros((1, 2), np.int32), np.zeros((1, 3), np.float32))


@pytest.mark.parametrize("kind", list(ProposalKind))
def test_rule_for_fits(kind: ProposalKind) -> None:
    assert choose_rule(None, kind, 0) is GREEDY
    assert KIND_OF_RULE[choose_rule(None, kind, 0.7)] is kind
    for temperature in (0, 0.7):
        check_rule(choose_rule(None, kind, temperature), kind, temperature)
        check_rule(TARGET_SAMPLE, kind, temperature)


@pytest.mark.parametrize(
    ("rule", "kind", "temperature", "why"),
    [
        (GREEDY, DETERMINISTIC, 0.2, "temperature 0, not 0.2: use target-sample"),
        (SPECINFER, DETERMINISTIC, 1.0, "biased .*0.15.* use target-sample"),
        (SEQUOIA, DETERMINISTIC, 1.0, "biased .*0.15.* use target-sample"),
        (SPECINFER, SWOR, 1.0, "use sequoia"),
        (SEQUOIA, IID, 1.0, "use specinfer"),
    ],
)
def test_biased_rules_are_refused(rule: AcceptRule, kind: ProposalKind, temperature: float, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_rule(rule, kind, temperature)
    tree = TokenTree((0,), (NO_PARENT,), kind)
    with pytest.raises(ConfigError, match=why):
        accept(rule, tree, None, torch.zeros(2, 3), TargetLaw(temperature), Noise(0), 0)


def one_hot_logits(tokens: list[int], vocab: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(tokens), vocab).float()


def test_greedy_walk() -> None:
    #   root ─ 0:5 ─ 2:1
    #        └ 1:3 ─ 3:4 ─ 4:2
    tree = TokenTree((5, 3, 1, 4, 2), (NO_PARENT, NO_PARENT, 0, 1, 3), SWOR)
    cases = {
        (3, 0, 4, 0, 2, 6): Verdict((1, 3, 4), 6),  # all accepted, bonus token
        (3, 0, 4, 0, 7, 6): Verdict((1, 3), 7),
        (5, 2, 0, 0, 0, 0): Verdict((0,), 2),
        (7, 0, 0, 0, 0, 0): Verdict((), 7),
    }
    for target_tokens, verdict in cases.items():
        logits = one_hot_logits(list(target_tokens), 8)
        assert accept(GREEDY, tree, None, logits, TargetLaw(0), Noise(0), 0) == verdict


@pytest.mark.parametrize("rule", ALL_RULES)
def test_padding_of_the_vocabulary_is_never_chosen(rule: AcceptRule) -> None:
    law = TargetLaw(0 if rule is GREEDY else 1.0, vocab_size=3)
    tree = TokenTree((1,), (NO_PARENT,), KIND_OF_RULE[rule])
    rows = DraftRows(np.array([[0, 1]], np.int32), np.array([[0.5, 0.5]], np.float32))
    logits = torch.zeros(2, 8)
    logits[:, 3:] = 50
    for seed in range(20):
        assert accept(rule, tree, rows, logits, law, Noise(seed), 0).next_token < 3


@pytest.mark.parametrize("rule", [rule for rule in ALL_RULES if rule is not GREEDY])
def test_an_empty_tree_is_plain_seeded_sampling(rule: AcceptRule) -> None:
    law, noise = TargetLaw(0.8), Noise(11, 3)
    logits = torch.randn(1, 50, generator=torch.Generator().manual_seed(0))
    for position in range(20):
        gumbel = noise.gumbel(position, Purpose.TARGET_TOKEN, 50)
        plain = int((np.log(law.probs(logits)[0].numpy().astype(np.float64)) + gumbel).argmax())
        assert accept(rule, EMPTY_TREE, None, logits, law, noise, position) == Verdict((), plain)


def random_tree(rng: np.random.Generator, vocab: int, kind: ProposalKind) -> TokenTree:
    num = int(rng.integers(0, 12))
    parents = tuple(int(rng.integers(NO_PARENT, i)) for i in range(num))
    return TokenTree(tuple(rng.integers(vocab, size=num).tolist()), parents, kind)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("kind", list(ProposalKind))
def test_rules_a_and_b_give_the_text_of_plain_sampling(temperature: float, kind: ProposalKind) -> None:
    vocab, rng = 4, np.random.default_rng(5)
    table = torch.from_numpy(rng.normal(size=(vocab, vocab)))  # the next token's logits depend on the last token
    law, noise = TargetLaw(temperature), Noise(9)
    rule = GREEDY if temperature == 0 else TARGET_SAMPLE
    plain = [0]
    while len(plain) < 60:
        plain.append(accept(rule, EMPTY_TREE, None, table[plain[-1:]], law, noise, len(plain)).next_token)
    text, num_accepted = [0], 0
    while len(text) < 60:
        tree = random_tree(rng, vocab, kind)
        verdict = accept(rule, tree, None, table[[text[-1], *tree.token_ids]], law, noise, len(text))
        text += [*(tree.token_ids[i] for i in verdict.accepted), verdict.next_token]
        num_accepted += len(verdict.accepted)
    assert text[:60] == plain
    assert num_accepted > 5


class FixedNoise(Noise):
    """Noise with given accept uniforms that remembers what it was asked for."""

    uniforms: tuple[float, ...]
    asked: list[tuple[int, Purpose, int]]

    def __init__(self, *uniforms: float) -> None:
        super().__init__(0)
        object.__setattr__(self, "uniforms", uniforms)
        object.__setattr__(self, "asked", [])

    def uniform(self, position: int, purpose: Purpose, num: int, index: int = 0) -> np.ndarray:
        self.asked.append((position, purpose, num))
        return np.array(self.uniforms[:num]) if purpose is Purpose.ACCEPT else np.full(num, 0.5)


@pytest.mark.parametrize("rule", [SPECINFER, SEQUOIA])
def test_children_are_tried_in_draft_order_with_the_noise_of_their_position(rule: AcceptRule) -> None:
    # Target uniform over 4 everywhere; draft row (1/2, 1/4, 1/4) over tokens 0, 1, 2.
    tree = TokenTree((0, 1, 2, 1), (NO_PARENT, NO_PARENT, 1, 1), KIND_OF_RULE[rule])
    rows = DraftRows(np.array([[0, 1, 2]] * 2, np.int32), np.array([[0.5, 0.25, 0.25]] * 2, np.float32))
    logits = torch.zeros(5, 4)

    def verdict(noise: FixedNoise) -> Verdict:
        return accept(rule, tree, rows, logits, TargetLaw(), noise, 10)

    # Token 0 is accepted below 1/2, and then the bonus token follows.
    noise = FixedNoise(0.49, 0.99)
    assert verdict(noise).accepted == (0,)
    assert noise.asked == [(10, Purpose.ACCEPT, 2), (11, Purpose.TARGET_TOKEN, 4)]
    # Rejecting it leaves all mass on token 3, so nothing else is accepted, and 3 is recovered.
    noise = FixedNoise(0.51, 0.0)
    assert verdict(noise) == Verdict((), 3)
    assert noise.asked == [(10, Purpose.ACCEPT, 2), (10, Purpose.RECOVERED_TOKEN, 4)]


@pytest.mark.parametrize("kind", [IID, SWOR])
def test_row_r_belongs_to_internal_node_r(kind: ProposalKind) -> None:
    # With a draft that equals the target every first child is accepted, if the right row is used.
    rng = np.random.default_rng(2)
    logits = torch.from_numpy(rng.normal(size=(6, 5))).float()
    tree_parents = (NO_PARENT, NO_PARENT, 0, 2, 3)
    order = [0, 1, 3, 4]  # rows of logits after the internal nodes: root, 0, 2, 3
    drawn = propose_children(
        logits[order], 1, kind, DraftLaw(1.0, 5), [rng.gumbel(size=noise_size(kind, 1, 5)) for _ in order]
    )
    first = drawn.token_ids[:, 0].tolist()
    tree = TokenTree((first[0], (first[0] + 1) % 5, *first[1:]), tree_parents, kind)
    rows = DraftRows(drawn.row_ids, drawn.row_probs)
    for seed in range(30):
        verdict = accept(choose_rule(None, kind, 1.0), tree, rows, logits, TargetLaw(), Noise(seed), 0)
        assert verdict.accepted == (0, 2, 3, 4)


@pytest.mark.parametrize("kind", [IID, SWOR])
def test_sampled_rules_are_greedy_for_a_greedy_law(kind: ProposalKind) -> None:
    rng = np.random.default_rng(3)
    rule = SPECINFER if kind is IID else SEQUOIA
    for seed in range(30):
        logits = torch.from_numpy(rng.normal(size=(3, 5))).float()
        noise = [rng.gumbel(size=noise_size(kind, 2, 4))]
        drawn = propose_children(torch.zeros(1, 5), 2, kind, DraftLaw(1.0, 4), noise)
        tree = TokenTree(tuple(drawn.token_ids[0].tolist()), (NO_PARENT, NO_PARENT), kind)
        rows = DraftRows(drawn.row_ids, drawn.row_probs)
        sampled, greedy = (accept(r, tree, rows, logits, TargetLaw(0), Noise(seed), 0) for r in (rule, GREEDY))
        assert sampled == greedy


def test_sample_token_takes_arrays_and_tensors_and_skips_tokens_without_mass() -> None:
    probs = np.array([0.0, 0.25, 0.75, 0.0], np.float32)
    counts = np.zeros(4)
    for seed in range(400):
        gumbel = Noise(seed).gumbel(0, Purpose.TARGET_TOKEN, 4)
        token = sample_token(probs, gumbel)
        assert token == sample_token(torch.from_numpy(probs), gumbel)
        counts[token] += 1
    assert counts[0] == counts[3] == 0
    assert abs(counts[1] - 100) < 5 * np.sqrt(400 * 0.25 * 0.75)
    assert sample_token(np.zeros(3), np.zeros(3)) == 0
