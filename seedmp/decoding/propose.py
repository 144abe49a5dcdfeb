"""How a draft chooses the children of tree nodes, and the law that it truly drew them from.

Dimension letters: R nodes that get children, V vocabulary, m tokens kept of the draft's law.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seedmp.errors import ConfigError
from seedmp.token_tree.tree import ProposalKind

# Every kept token gets at least this much: so a draw without replacement never runs out of
# mass, and the law that is shipped is the law that was drawn from even where softmax underflows.
MIN_DRAFT_PROB = 1e-30
GREEDY_CONFIDENCE = 0.7  # temperature of a draft's confidence where the target is greedy


@dataclass(frozen=True)
class DraftLaw:
    """What a draft makes of its logits: tempered softmax, cut to its top_m tokens, renormalised.

    Args:
        temperature: 0 proposes the top candidates deterministically.
        top_m: tokens kept; their (id, probability) pairs travel with the proposal.
        vocab_size: real tokens; logits beyond are padding. None means that there is none.
        noise: share of the law that is uniform over the kept tokens, in [0, 1]: a worse draft, for benchmarks.
            Draws come from the mixed law, and the mixed law is shipped.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float
    top_m: int
    vocab_size: int | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise <= 1:
            raise ConfigError(f"draft noise={self.noise!r}: must be in [0, 1]")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"draft temperature={self.temperature!r}: must be a finite number >= 0")
        for name, value in {"top_m": self.top_m, "vocab_size": self.vocab_size}.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value!r}: must be a whole number >= 1")

    def row_len(self, width: int) -> int:
        """m, the length of a row of the law for logits of ``width`` columns."""
        return min(self.top_m, width if self.vocab_size is None else min(width, self.vocab_size))


@dataclass(frozen=True)
class Children:
    """Children of R nodes and the laws that they were drawn from.

    Args:
        token_ids: [R, num_children] int32, in draft order.
        row_ids: [R, m] int32, distinct in a row, likeliest first; [R, 0] if deterministic.
        row_probs: [R, m] float32, > 0, rows sum to 1; [R, 0] if deterministic. The accept
            rules are exact for these very numbers: whoever rounds them biases the output.
    """

    token_ids: np.ndarray
    row_ids: np.ndarray
    row_probs: np.ndarray


def noise_size(kind: ProposalKind, num_children: int, m: int) -> int:
    """Gumbel numbers that the children of one node take."""
    sizes = {
        ProposalKind.IID: num_children * m,
        ProposalKind.WITHOUT_REPLACEMENT: m,
        ProposalKind.DETERMINISTIC: 0,
    }
    return sizes[kind]


def propose_children(
    logits: torch.Tensor,
    num_children: int,
    kind: ProposalKind,
    law: DraftLaw,
    gumbel: Sequence[np.ndarray],
) -> Children:
    """Choose the children of R nodes at once.

    Args:
        logits: [R, V] any float dtype; row r is the draft's output after node r.
        num_children: k, the same for all R nodes.
        kind: IID draws k times with replacement; WITHOUT_REPLACEMENT draws k distinct tokens
            (Gumbel top-k) in the order of sampling; DETERMINISTIC takes the k likeliest.
            A law of temperature 0 is always DETERMINISTIC; its tree must say so.
        law: what is drawn from.
        gumbel: R arrays of ``noise_size`` float64 Gumbel numbers, for IID in [k, m] order;
            not read if deterministic.

    Raises:
        ConfigError: k is below 1, or children must be distinct and there are fewer than k tokens.

    Runs in: draft process.
    """
    num_rows, width = logits.shape
    m = law.row_len(width)
    deterministic = kind is ProposalKind.DETERMINISTIC or law.temperature == 0
    if num_children < 1:
        raise ConfigError(f"{num_children} children per node: must be 1 or more")
    num_choices = min(width, law.vocab_size or width) if deterministic else m
    if num_children > num_choices and (deterministic or kind is ProposalKind.WITHOUT_REPLACEMENT):
        raise ConfigError(f"{num_children} children per node, but only {num_choices} tokens to choose from")
    logits = logits.detach()[:, : law.vocab_size]
    if deterministic:
        top_ids = logits.topk(num_children, dim=-1).indices.cpu().numpy().astype(np.int32)
        return Children(top_ids, np.empty((num_rows, 0), np.int32), np.empty((num_rows, 0), np.float32))

    top_logits, top = logits.float().topk(m, dim=-1)  # both [R, m]; cutting first leaves the same law
    scaled = (top_logits - top_logits[:, :1]) / law.temperature
    row_ids = top.cpu().numpy().astype(np.int32)
    # fmax turns NaN into the minimum. So a broken draft proposes badly, but still draws from the law that it ships.
    probs = np.fmax(scaled.softmax(-1).cpu().numpy(), np.float32(MIN_DRAFT_PROB))
    row_probs = probs / probs.sum(-1, keepdims=True)
    if law.noise:
        row_probs = np.float32(1 - law.noise) * row_probs + np.float32(law.noise / m)
        row_probs /= row_probs.sum(-1, keepdims=True)

    log_probs = np.log(row_probs, dtype=np.float64)  # [R, m]; of the float32 numbers that are shipped
    noise = np.array(gumbel)
    if kind is ProposalKind.IID:
        drawn = (log_probs[:, None, :] + noise.reshape(num_rows, num_children, m)).argmax(-1)
    else:
        drawn = (-(log_probs + noise.reshape(num_rows, m))).argsort(-1)[:, :num_children]
    return Children(np.take_along_axis(row_ids, drawn, -1), row_ids, row_probs)


def propose_coupled(
    logits: torch.Tensor, num_children: int, law: DraftLaw, gumbel: np.ndarray, noise_rows: Sequence[int]
) -> np.ndarray:
    """The k largest of log q + g, with the noise that the target draws its own token with.

    Where draft and target agree the same token is largest in both, so sharing the noise is what makes a
    child likely to be accepted. All tokens take part, not only top_m: no law has to travel.

    Args:
        logits: [R, V] any float dtype.
        num_children: k.
        law: its temperature is above 0.
        gumbel: [G, V] Gumbel noise of the positions that are decided.
        noise_rows: [R] which of them belongs to each row.

    Returns:
        [R, k] int32, or fewer columns if there are fewer tokens.

    Runs in: draft process.
    """
    logits = logits.detach()[:, : law.vocab_size].float() / law.temperature
    noise = torch.from_numpy(gumbel.astype(np.float32)).to(logits.device)
    keys = logits + noise[list(noise_rows)]
    top_ids: np.ndarray = keys.topk(min(num_children, keys.shape[1]), dim=-1).indices.cpu().numpy().astype(np.int32)
    return top_ids


def confidence_temperature(temperature: float) -> float:
    """The temperature at which a draft's probabilities are closest to the probability that the target accepts.

    When texts are sampled at temperature 1, that is 1. A greedy target agrees with the draft's first choice more often
    than those probabilities say. The value for it has the least cross-entropy on the bundled pair (temperature scaling:
    Guo et al. 2017, §4.2).
    """
    return GREEDY_CONFIDENCE + (1 - GREEDY_CONFIDENCE) * temperature


def likeliest(
    logits: torch.Tensor, num_candidates: int, vocab_size: int | None, temperature: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """[R, k] ids and float32 log-probabilities of each row's likeliest tokens.

    Args:
        logits: [R, V] any float dtype.
        num_candidates: k; fewer if there are fewer tokens.
        vocab_size: real tokens, or None.
        temperature: of the probabilities, > 0.

    Runs in: draft process.
    """
    log_probs = (logits.detach()[:, :vocab_size].float() / temperature).log_softmax(-1)
    top = log_probs.topk(min(num_candidates, log_probs.shape[1]), dim=-1)
    return top.indices.cpu().numpy(), top.values.cpu().numpy()
