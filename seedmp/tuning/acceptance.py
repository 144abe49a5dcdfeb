"""How often a drafted child is accepted: from runs (dynamic), or from both models' laws along texts (teacher-forced).

A run counts what happened in its rounds, by depth. The laws along a text give the rates for every way of drafting, from
one forward of each model. But they weigh all positions alike and know no depth. Rates that a run saw too seldom are
taken from the laws.
Dimension letters: P positions, V vocabulary, B children of a node, K depths.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seedmp import metrics
from seedmp.decoding.accept import sample_token
from seedmp.decoding.propose import DraftLaw, noise_size, propose_children, propose_coupled
from seedmp.decoding.sequoia import SequoiaTrial
from seedmp.decoding.specinfer import SpecInferTrial
from seedmp.errors import ConfigError
from seedmp.models.rows import BranchRows, pack_rows
from seedmp.models.runner import Runner
from seedmp.sampling import Noise, Purpose, TargetLaw
from seedmp.token_tree.sequoia import MAX_LEVELS, parse_acceptance
from seedmp.token_tree.tree import ProposalKind

MIN_TURNS = 30  # with fewer turns a run's rate is mostly chance
_SURELY = 1 - 1e-12  # a child of this probability ends the turns: no residual is left for the next


@dataclass(frozen=True)
class Acceptance:
    """How often a child is accepted when its turn comes.

    Args:
        rates: [K][B] probability that the b-th child of a node is accepted, given that its parent was and its
            earlier siblings were not; row k is for children at depth k + 1, the last row for those below too.
        turns: [K][B] how often its turn came. From laws these are expected numbers.

    Raises:
        ConfigError: no rates, or the shapes differ.
    """

    rates: tuple[tuple[float, ...], ...]
    turns: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        if not self.rates or not all(self.rates) or list(map(len, self.rates)) != list(map(len, self.turns)):
            raise ConfigError(
                f"acceptance: rates={self.rates!r}, turns={self.turns!r}: must be 1 row or more each, of equal lengths"
            )

    def vector(self) -> np.ndarray:
        """[K, B + 1] as ``sequoia.search_trees`` takes it: P(the b-th child is the accepted one), a 0 before the first.

        Rows may be of different lengths: children without a rate are never accepted.
        """
        width = max(map(len, self.rates))
        table = np.zeros((len(self.rates), width + 1))
        for row, rates in zip(table, self.rates, strict=True):
            left = 1.0  # probability that no earlier child was accepted
            for rank, rate in enumerate(rates, start=1):
                row[rank] = left * rate
                left *= 1 - rate
        return parse_acceptance(table, ends_with_none=False)

    def filled(self, other: Acceptance, min_turns: float = MIN_TURNS) -> Acceptance:
        """With the other's rates where a child's turn came too seldom, or never.

        The last depth of the result is the deepest at which the first child's turn came often enough.
        """
        depths = [k for k, turns in enumerate(self.turns) if turns[0] >= min_turns]
        if not depths:
            return other
        rates: list[tuple[float, ...]] = []
        turns: list[tuple[float, ...]] = []
        for depth in range(depths[-1] + 1):
            row = min(depth, len(other.rates) - 1)
            seen = dict(enumerate(zip(self.rates[depth], self.turns[depth], strict=True)))
            known = dict(enumerate(zip(other.rates[row], other.turns[row], strict=True)))
            chosen = [
                seen[rank] if rank in seen and (seen[rank][1] >= min_turns or rank not in known) else known[rank]
                for rank in range(max(len(seen), len(known)))
            ]
            rates.append(tuple(rate for rate, _ in chosen))
            turns.append(tuple(num for _, num in chosen))
        return Acceptance(tuple(rates), tuple(turns))

    def to_plain(self) -> dict[str, list[list[float]]]:
        """A JSON-able dictionary, rounded."""
        return {
            "rates": [[round(rate, 4) for rate in row] for row in self.rates],
            "turns": [[round(num, 1) for num in row] for row in self.turns],
        }


# --- dynamic -------------------------------------------------------------------------------------


def from_stats(*runs: Mapping[str, float]) -> Acceptance | None:
    """The sum of what engines counted in their rounds (growth of ``Engine.stats``). None if no child's turn came."""

    def total(name: str, depth: int, rank: int) -> float:
        return sum(run.get(name.format(depth, rank), 0.0) for run in runs)

    rates: list[tuple[float, ...]] = []
    turns: list[tuple[float, ...]] = []
    for depth in range(1, MAX_LEVELS):
        tried: list[float] = []
        while num := total(metrics.TRIED_CHILD, depth, len(tried)):
            tried.append(num)
        if not tried:
            break
        rates.append(tuple(total(metrics.ACCEPTED_CHILD, depth, rank) / num for rank, num in enumerate(tried)))
        turns.append(tuple(tried))
    return Acceptance(tuple(rates), tuple(turns)) if rates else None


# --- teacher-forced ------------------------------------------------------------------------------


class Drawing(enum.Enum):
    """How the children of a node come about; each has its accept rule."""

    WITHOUT_REPLACEMENT = "without-replacement"
    IID = "iid"
    DETERMINISTIC = "deterministic"
    COUPLED = "coupled"


@dataclass(frozen=True)
class Law:
    """One way of drafting and accepting.

    Args:
        drawing: with ``temperature`` 0 always DETERMINISTIC against the target's likeliest token.
        temperature: of target and draft.
        draft_top_p: the draft's law is cut to its nucleus of this mass. Engines do not do that: they propose from
            the ``draft_top_m`` likeliest tokens.
        draft_top_m: tokens kept of the draft's law.
    """

    drawing: Drawing = Drawing.WITHOUT_REPLACEMENT
    temperature: float = 1.0
    draft_top_p: float = 1.0
    draft_top_m: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.draft_top_p <= 1:
            raise ConfigError(f"draft top-p {self.draft_top_p!r}: must be in (0, 1]")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


_KINDS = {
    Drawing.WITHOUT_REPLACEMENT: ProposalKind.WITHOUT_REPLACEMENT,
    Drawing.IID: ProposalKind.IID,
    Drawing.DETERMINISTIC: ProposalKind.DETERMINISTIC,
}
_TRIALS = {ProposalKind.WITHOUT_REPLACEMENT: SequoiaTrial, ProposalKind.IID: SpecInferTrial}


def accept_probs(trial: SpecInferTrial, token_ids: Sequence[int]) -> list[float]:
    """[B] probability that each child is the accepted one, by the rule's own trial, which changes its residual."""
    probs, left = [0.0] * len(token_ids), 1.0
    for rank, token_id in enumerate(token_ids):
        prob = trial.accept_prob(token_id)
        probs[rank] = left * prob
        left *= 1 - prob
        if prob >= _SURELY:
            break
        trial.reject(token_id)
    return probs


def teacher_forced(
    target_logits: torch.Tensor, draft_logits: torch.Tensor, law: Law, num_children: int, seed: int = 0
) -> Acceptance:
    """Draw children at every position with the draft's code; the accept rule gives the probability that it takes each.

    The sum over the target's chance is exact. The draft's chance is drawn once at each position.

    Args:
        target_logits, draft_logits: [P, V] of the same positions, padding left out.
        num_children: B, or less if there are fewer tokens.

    Returns:
        rates of one depth.
    """
    num_positions, vocab_size = target_logits.shape
    assert draft_logits.shape == target_logits.shape, f"{draft_logits.shape} draft, {target_logits.shape} target logits"
    noise = Noise(seed)
    target_probs = TargetLaw(law.temperature).probs(target_logits).cpu().numpy()
    draft_law = DraftLaw(law.temperature, law.draft_top_m)
    if law.draft_top_p < 1 and not law.is_greedy:
        draft_logits = TargetLaw(law.temperature, law.draft_top_p).probs(draft_logits).log()
        draft_law = DraftLaw(1.0, law.draft_top_m)
    accepted = np.zeros((num_positions, min(num_children, vocab_size, law.draft_top_m)))
    num_children = accepted.shape[1]
    if law.drawing is Drawing.COUPLED and not law.is_greedy:
        gumbel = np.stack([noise.gumbel(i, Purpose.TARGET_TOKEN, vocab_size) for i in range(num_positions)])
        token_ids = propose_coupled(draft_logits, num_children, draft_law, gumbel, range(num_positions))
        own = [sample_token(probs, row) for probs, row in zip(target_probs, gumbel, strict=True)]
        accepted[:] = token_ids == np.array(own)[:, None]
        return _of_first(accepted)
    kind = ProposalKind.DETERMINISTIC if law.is_greedy else _KINDS[law.drawing]
    size = noise_size(kind, num_children, draft_law.row_len(vocab_size))
    drawn = [noise.gumbel(i, Purpose.DRAFT_TOKEN, size) for i in range(num_positions)]
    children = propose_children(draft_logits, num_children, kind, draft_law, drawn)
    if kind is ProposalKind.DETERMINISTIC:
        accepted[:] = np.take_along_axis(target_probs, children.token_ids.astype(np.int64), -1)
        return _of_first(accepted)
    for i in range(num_positions):
        trial = _TRIALS[kind](target_probs[i], children.row_ids[i], children.row_probs[i])
        accepted[i] = accept_probs(trial, children.token_ids[i].tolist())
    return _of_first(accepted)


def _of_first(accepted: np.ndarray) -> Acceptance:
    """Rates from [P, B] probabilities that each child is the accepted one."""
    before = np.cumsum(accepted, axis=-1) - accepted
    turns = np.maximum(1 - before, 0).sum(0)
    rates = np.divide(accepted.sum(0), turns, out=np.zeros_like(turns), where=turns > 1e-9)
    return Acceptance((tuple(np.clip(rates, 0, 1).tolist()),), (tuple(turns.tolist()),))


def logits_along(runner: Runner, token_ids: Sequence[int], first: int) -> torch.Tensor:
    """[P, V] float32 logits that decide the tokens from position ``first`` on; one forward over the text."""
    num = len(token_ids) - 1
    assert 1 <= first <= num, f"no token to decide from position {first} in a text of {len(token_ids)}"
    text = BranchRows((), token_ids[:num], range(num), num_wanted=num + 1 - first)
    return runner.run(pack_rows([text])).float().cpu()


def along_texts(
    target: Runner,
    draft: Runner,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    laws: Mapping[str, Law],
    num_children: int,
    seed: int = 0,
) -> dict[str, Acceptance]:
    """Teacher-forced rates of several laws, from one forward of each model over each text.

    Args:
        texts: prompt and what the target itself continued it with.

    Raises:
        ConfigError: no text has a continuation.
    """
    pairs = [
        tuple(logits_along(runner, (*prompt, *continuation), len(prompt)) for runner in (target, draft))
        for prompt, continuation in texts
        if prompt and continuation
    ]
    if not pairs:
        raise ConfigError("no text with a continuation to measure acceptance along")
    target_logits, draft_logits = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    return {name: teacher_forced(target_logits, draft_logits, law, num_children, seed) for name, law in laws.items()}
