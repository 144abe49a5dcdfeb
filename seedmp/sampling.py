"""Sampling parameters, the law that they make of logits, and counter-based noise.

Dimension letters: R rows, V vocabulary.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from seedmp.errors import RejectedError

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How one request samples.

    Args:
        temperature: of the target. 0 is greedy decoding.
        draft_temperature: of the draft. None means the target's. 0 proposes the draft's likeliest tokens, without
            chance.
        top_p: probability that is kept of the target's law, in (0, 1].
        top_k: number of tokens that are kept of the target's law. 0 keeps all.
        max_tokens: the most new tokens. A text never has more, although several are verified at once.
        stop: strings that end the text. They are not part of it.
        stop_token_ids: token ids that end the text, besides the model's EOS ids.
        ignore_eos: whether the text goes on after EOS (for benchmarks).
        seed: the text is a function of models, prompt, parameters and seed. None draws a fresh seed, which the
            output names.
        n: number of continuations of the prompt.
        best_of: number of continuations that are drawn. Returned are the ``n`` with the highest mean log-probability
            per token. None draws ``n``.
        regex: regular expression that the whole text must match. None leaves the text free.
        choices: the text must be one of these. Empty leaves the text free. Give at most one of ``regex`` and
            ``choices``.

    Raises:
        RejectedError: a value is out of range; the message names it.
    """

    temperature: float = 1.0
    draft_temperature: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int | None = None
    n: int = 1
    regex: str | None = None
    choices: tuple[str, ...] = ()
    best_of: int | None = None

    def __post_init__(self) -> None:
        stop = self.stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        choices = self.choices
        object.__setattr__(self, "choices", (choices,) if isinstance(choices, str) else tuple(choices))
        temperatures = {"temperature": self.temperature}
        if self.draft_temperature is not None:
            temperatures["draft_temperature"] = self.draft_temperature
        for name, value in temperatures.items():
            if not (isinstance(value, int | float) and math.isfinite(value) and value >= 0):
                raise RejectedError(f"{name}={value!r}: must be a finite number >= 0")
        if not (isinstance(self.top_p, int | float) and 0 < self.top_p <= 1):
            raise RejectedError(f"top_p={self.top_p!r}: must be in (0, 1]")
        for name, low in {"top_k": 0, "max_tokens": 1, "n": 1}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < low:
                raise RejectedError(f"{name}={value!r}: must be a whole number >= {low}")
        if self.best_of is not None and not (isinstance(self.best_of, int) and self.best_of >= self.n):
            raise RejectedError(f"best_of={self.best_of!r}: must be a whole number >= n={self.n}, or None")
        if self.seed is not None and not (isinstance(self.seed, int) and 0 <= self.seed <= MAX_SEED):
            raise RejectedError(f"seed={self.seed!r}: must be a whole number from 0 to {MAX_SEED}")
        if any(not isinstance(text, str) or not text for text in self.stop):
            raise RejectedError(f"stop={self.stop!r}: every stop string must be a non-empty str")
        self._check_constraint()

    def _check_constraint(self) -> None:
        if self.regex is not None and not (isinstance(self.regex, str) and self.regex):
            raise RejectedError(f"regex={self.regex!r}: must be a non-empty str")
        if any(not isinstance(text, str) or not text for text in self.choices):
            raise RejectedError(f"choices={self.choices!r}: every choice must be a non-empty str")
        if self.regex is not None and self.choices:
            raise RejectedError(f"regex={self.regex!r} and choices={self.choices!r}: give at most one of the two")
        if self.is_constrained and self.ignore_eos:
            raise RejectedError("ignore_eos=True: a text with a regex or choices ends when it is complete")

    @property
    def is_constrained(self) -> bool:
        """Whether the text is held to a regex or to choices."""
        return self.regex is not None or bool(self.choices)

    @property
    def effective_draft_temperature(self) -> float:
        """The temperature that drafts use."""
        return self.temperature if self.draft_temperature is None else self.draft_temperature


class Purpose(enum.IntEnum):
    """What a random number is for: part of the counter, so that no two uses share noise."""

    TARGET_TOKEN = 0
    DRAFT_TOKEN = 1
    ACCEPT = 2
    RECOVERED_TOKEN = 3


@dataclass(frozen=True)
class Noise:
    """Random numbers addressed by (seed, stream, position, purpose, index); no state.

    Philox 4x64 (numpy) keyed by seed and stream: results do not depend on timing, batch
    mates or the number of workers. ``stream`` tells apart the continuations of one seed.
    """

    seed: int
    stream: int = 0

    def uniform(self, position: int, purpose: Purpose, num: int, index: int = 0) -> np.ndarray:
        """[num] float64 uniforms in [0, 1) for the token at ``position``; ``index`` tells nodes apart."""
        return self._generator(position, purpose, index).random(num)

    def gumbel(self, position: int, purpose: Purpose, num: int, index: int = 0) -> np.ndarray:
        """[num] float64 standard Gumbel noise, finite."""
        uniforms = self.uniform(position, purpose, num, index)
        result: np.ndarray = -np.log(-np.log(np.maximum(uniforms, 1e-300)))
        return result

    def _generator(self, position: int, purpose: Purpose, index: int) -> np.random.Generator:
        return np.random.Generator(
            np.random.Philox(key=(self.seed, self.stream), counter=(0, position, int(purpose), index))
        )


@dataclass(frozen=True)
class TargetLaw:
    """What temperature, top-k and top-p make of the target's logits; the law that is reproduced.

    ``vocab_size`` is the number of real tokens: columns beyond it (padded vocabularies)
    never get any probability.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    vocab_size: int | None = None
    greedy: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "greedy", self.temperature == 0)

    def probs(self, logits: torch.Tensor) -> torch.Tensor:
        """Probabilities of rows of logits.

        Args:
            logits: [R, V] any float dtype.

        Returns:
            [R, vocab_size] float32, rows sum to 1; one-hot when greedy.
        """
        import torch

        logits = logits[:, : self.vocab_size].float()
        if self.greedy:
            return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        probs = logits.softmax(-1)
        if self.top_p < 1:
            sorted_probs, order = probs.sort(dim=-1, descending=True, stable=True)
            keep = sorted_probs.cumsum(-1) - sorted_probs < self.top_p
            probs = torch.zeros_like(probs).scatter_(-1, order, sorted_probs * keep)
            probs = probs / probs.sum(-1, keepdim=True)
        return probs
