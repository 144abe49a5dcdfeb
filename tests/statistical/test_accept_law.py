"""Losslessness by sampling: the committed text has the target's law, through the real draft and accept code.

A Markov target and a Markov draft over a vocabulary of 6 run whole rounds: ``propose_children`` grows
the tree level by level, ``accept`` judges it, and a second round follows when the first commits one token
only. The first two committed tokens are compared with the target's law of pairs by a chi-square test.

Sample size: NUM_TEXTS texts per case. False-alarm rate: FALSE_ALARM per case; seeds are fixed, so a case
either always passes or always fails. Power: each broken twin of a rule must fail with p < BROKEN at the
same size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.stats
import torch

from seedmp.decoding.accept import DraftRows, accept, choose_rule
from seedmp.decoding.propose import Children, DraftLaw, noise_size, propose_children
from seedmp.decoding.sequoia import SequoiaTrial
from seedmp.decoding.specinfer import SpecInferTrial
from seedmp.sampling import Noise, Purpose, TargetLaw
from seedmp.token_tree.k_config import num_nodes
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree

torch.set_num_threads(1)

NUM_TEXTS = 2000
FALSE_ALARM = 1e-4
BROKEN = 1e-6
VOCAB = 6
START = VOCAB  # row of the tables that holds after the prompt

IID = ProposalKind.IID
SWOR = ProposalKind.WITHOUT_REPLACEMENT
DETERMINISTIC = ProposalKind.DETERMINISTIC

_rng = np.random.default_rng(2024)
_target = _rng.normal(size=(VOCAB + 1, VOCAB))
# [VOCAB + 1, VOCAB] logits of the next token by last token. The target's are narrow, so that it still has
# something to choose at temperature 0.2; the draft resembles it as a small model does.
TARGET_LOGITS = torch.from_numpy(0.4 * _target)
DRAFT_LOGITS = torch.from_numpy(0.7 * _target + 0.6 * _rng.normal(size=_target.shape))

TamperChildren = Callable[[Children], Children]


@dataclass(frozen=True)
class Case:
    """One set-up of draft, tree and target; ``kind`` is what the tree claims to be."""

    k_config: tuple[int, ...]
    kind: ProposalKind
    draft_temperature: float
    target_temperature: float
    top_m: int = VOCAB
    seed: int = 0

    def __str__(self) -> str:
        shape = "x".join(map(str, self.k_config))
        temperatures = f"draft{self.draft_temperature}-target{self.target_temperature}"
        return f"{self.kind.value}-{shape}-{temperatures}-m{self.top_m}"


def grow_trees(
    case: Case, last_tokens: list[int], streams: list[int], position: int, tamper: TamperChildren
) -> Iterator[tuple[TokenTree, DraftRows]]:
    """One tree per text, all texts level by level; texts differ in the stream of their noise."""
    law = DraftLaw(case.draft_temperature, case.top_m)
    num_texts = len(last_tokens)
    tokens = np.array(last_tokens)[:, None]  # [texts, nodes of the level above]
    parents_above = [NO_PARENT]
    token_ids, ids, probs = [], [], []
    parents: list[int] = []
    for depth, num_children in enumerate(case.k_config):
        size = noise_size(case.kind, num_children, law.row_len(VOCAB))
        gumbel = [
            Noise(case.seed, stream).gumbel(position + depth, Purpose.DRAFT_TOKEN, size, index=1 + parent)
            for stream in streams
            for parent in parents_above
        ]
        logits = DRAFT_LOGITS[tokens.reshape(-1)]
        drawn = tamper(propose_children(logits, num_children, case.kind, law, gumbel))
        tokens = drawn.token_ids.reshape(num_texts, -1)
        token_ids.append(tokens)
        ids.append(drawn.row_ids.reshape(num_texts, len(parents_above), -1))
        probs.append(drawn.row_probs.reshape(num_texts, len(parents_above), -1))
        parents += [parent for parent in parents_above for _ in range(num_children)]
        parents_above = list(range(len(parents) - tokens.shape[1], len(parents)))
    all_tokens, all_ids, all_probs = (np.concatenate(parts, axis=1) for parts in (token_ids, ids, probs))
    assert len(parents) == num_nodes(case.k_config)
    for text in range(num_texts):
        tree = TokenTree(tuple(all_tokens[text].tolist()), tuple(parents), case.kind)
        yield tree, DraftRows(all_ids[text], all_probs[text])


def committed_pairs(case: Case, tamper: TamperChildren) -> np.ndarray:
    """[VOCAB, VOCAB] counts of the first two committed tokens."""
    rule = choose_rule(None, case.kind, case.target_temperature)
    law = TargetLaw(case.target_temperature)

    def play_round(last_tokens: list[int], streams: list[int], position: int) -> list[list[int]]:
        texts = []
        trees = grow_trees(case, last_tokens, streams, position, tamper)
        for (tree, rows), last, stream in zip(trees, last_tokens, streams, strict=True):
            logits = TARGET_LOGITS[[last, *tree.token_ids]]
            verdict = accept(rule, tree, rows, logits, law, Noise(case.seed, stream), position)
            texts.append([*(tree.token_ids[i] for i in verdict.accepted), verdict.next_token])
        return texts

    texts = play_round([START] * NUM_TEXTS, list(range(NUM_TEXTS)), 0)
    short = [stream for stream, text in enumerate(texts) if len(text) == 1]
    second_round = play_round([texts[stream][0] for stream in short], short, 1) if short else []
    for stream, more in zip(short, second_round, strict=True):
        texts[stream] += more
    counts = np.zeros((VOCAB, VOCAB))
    for text in texts:
        counts[text[0], text[1]] += 1
    return counts


def no_tampering(drawn: Children) -> Children:
    return drawn


def p_value(case: Case, tamper: TamperChildren = no_tampering) -> float:
    """Chi-square p of the committed pairs against the target's law; cells that expect < 5 are pooled."""
    counts = committed_pairs(case, tamper)
    laws = TargetLaw(case.target_temperature).probs(TARGET_LOGITS).double().numpy()
    expected = (laws[START][:, None] * laws[:VOCAB] * NUM_TEXTS).ravel()
    order = expected.argsort()
    ascending = expected[order]
    pooled = max(int(np.searchsorted(ascending, 5)), int(np.searchsorted(ascending.cumsum(), 5)) + 1)
    small, large = order[:pooled], order[pooled:]
    observed = np.append(counts.ravel()[large], counts.ravel()[small].sum())
    wanted = np.append(expected[large], expected[small].sum())
    wanted *= observed.sum() / wanted.sum()  # float32 laws sum to 1 only nearly
    return float(scipy.stats.chisquare(observed, wanted).pvalue)


K_CONFIGS = ((1, 1), (2, 1), (2, 2))
CASES = [
    Case(k_config, kind, draft_temperature, target_temperature, top_m)
    for k_config in K_CONFIGS
    for target_temperature in (0.2, 1.0)
    for kind, draft_temperature, top_m in (
        (DETERMINISTIC, 0.0, VOCAB),
        (IID, 0.5, VOCAB),
        (IID, 1.0, 3),
        (SWOR, 0.5, 4),
        (SWOR, 1.0, VOCAB),
    )
]
CASES += [
    Case((2, 2), SWOR, 0.02, 1.0, 3),  # most of the draft's tokens have next to no mass
    Case((3, 1), SWOR, 1.0, 1.0, 3),  # every token of the draft's law is tried
    Case((3, 1), IID, 0.5, 1.0, 2),  # equal siblings are the rule
]
CASES = [replace(case, seed=seed) for seed, case in enumerate(CASES)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_committed_text_has_the_targets_law(case: Case) -> None:
    assert p_value(case) > FALSE_ALARM


def by_probability(drawn: Children) -> Children:
    """Children likeliest first, not in the order of sampling."""
    # Rows stand likeliest first, so a smaller entry is a likelier token.
    entries = (drawn.row_ids[:, None, :] == drawn.token_ids[:, :, None]).argmax(-1)
    return replace(drawn, token_ids=np.take_along_axis(drawn.row_ids, np.sort(entries, axis=-1), -1))


def deterministic_claimed_as_sampled(drawn: Children) -> Children:
    """The likeliest tokens, with the law that they were not drawn from."""
    return replace(drawn, token_ids=drawn.row_ids[:, : drawn.token_ids.shape[1]])


def other_temperature_claimed(drawn: Children) -> Children:
    """A law flatter than the one that was drawn from."""
    flat = np.sqrt(drawn.row_probs)
    return replace(drawn, row_probs=flat / flat.sum(-1, keepdims=True))


def keep_residual(trial: SpecInferTrial, token: int) -> None:
    """A rejection that takes nothing out of the residual: recovered tokens come from the target's law."""


CASE_OF_TRIAL = {
    SpecInferTrial: Case((2, 2), IID, draft_temperature=0.5, target_temperature=1.0),
    SequoiaTrial: Case((2, 2), SWOR, draft_temperature=0.5, target_temperature=1.0),
}


@pytest.mark.parametrize("trial_type", list(CASE_OF_TRIAL))
@pytest.mark.parametrize("tamper", [by_probability, deterministic_claimed_as_sampled, other_temperature_claimed])
def test_children_not_drawn_as_claimed_are_caught(trial_type: type[SpecInferTrial], tamper: TamperChildren) -> None:
    assert p_value(CASE_OF_TRIAL[trial_type], tamper) < BROKEN


@pytest.mark.parametrize(
    ("trial_type", "reject"),
    [
        (SpecInferTrial, keep_residual),
        (SequoiaTrial, keep_residual),
        (SequoiaTrial, SpecInferTrial.reject),  # forgets that children were drawn without replacement
    ],
)
def test_broken_rejection_is_caught(
    trial_type: type[SpecInferTrial], reject: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial_type, "reject", reject)
    assert p_value(CASE_OF_TRIAL[trial_type]) < BROKEN
