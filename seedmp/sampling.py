"""Sampling parameters, the law that they make of logits, and counter-based noise.

Dimension letters: R rows, V vocabulary.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from seedmp.checks import (
    MAX_WHOLE,
    check_flag,
    check_ids,
    check_number,
    check_text,
    check_texts,
    check_whole,
    plain,
    shown,
)
from seedmp.errors import RejectedError

if TYPE_CHECKING:
    import torch

MAX_SEED = MAX_WHOLE
MAX_CONTINUATIONS = 4096  # of one prompt
GREEDY_BELOW = 1e-5  # temperatures below are 0: float32 cannot divide logits by them
MAX_TEMPERATURE = 1e30  # temperatures above are this: every token is equally likely long before


def usable_temperature(temperature: float) -> float:
    """The temperature that float32 can compute with: 0 for what is below 1e-5, at most 1e30."""
    return 0.0 if temperature < GREEDY_BELOW else min(float(temperature), MAX_TEMPERATURE)


@dataclass(frozen=True)
class SamplingParams:
    """How one request samples.

    Numbers, flags, texts and lists may be numpy's or torch's; they become Python's. A bool is no number, and a number
    is no flag.

    Args:
        temperature: of the target. 0 is greedy decoding, and so is everything below 1e-5, which becomes 0.
            What is above 1e30 becomes 1e30.
        draft_temperature: of the draft, with the same limits. None means the target's. 0 proposes the draft's
            likeliest tokens, without chance.
        top_p: probability that is kept of the target's law, in (0, 1]. The likeliest token is always kept.
        top_k: number of tokens that are kept of the target's law; those that are as likely as the last one are kept,
            too. 0 keeps all, 1 is greedy.
        max_tokens: the most new tokens. A text never has more, although several are verified at once.
        stop: strings that end the text. They are not part of it. One string is a list of one; None is none.
        stop_token_ids: token ids that end the text, besides the model's EOS ids. None is none.
        ignore_eos: whether the text goes on after EOS (for benchmarks).
        seed: the text is a function of models, prompt, parameters and seed. None draws a fresh seed, which the
            output names.
        n: number of continuations of the prompt, at most 4096.
        best_of: number of continuations that are drawn. Returned are the ``n`` with the highest mean log-probability
            per token. None draws ``n``.
        regex: regular expression that the whole text must match. None leaves the text free.
        choices: the text must be one of these. Empty or None leaves the text free. Give at most one of ``regex`` and
            ``choices``.

    Raises:
        RejectedError: a value is of another type or out of range; the message names it and what is allowed.
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
        for name, value in self._checked().items():
            object.__setattr__(self, name, value)
        if self.regex is not None and self.choices:
            raise RejectedError(
                f"regex={shown(self.regex)} and choices={shown(self.choices)}: give at most one of the two"
            )
        if self.is_constrained and self.ignore_eos:
            raise RejectedError("ignore_eos=True: a text with a regex or choices ends when it is complete")

    def _checked(self) -> dict[str, Any]:
        """Every field as Python and the wire know it; a field that is not here reaches no other process."""
        number = partial(check_number, error=RejectedError)
        whole = partial(check_whole, error=RejectedError)
        n = whole("n", self.n, 1, MAX_CONTINUATIONS)
        if (draft_temperature := self.draft_temperature) is not None:
            draft_temperature = usable_temperature(number("draft_temperature", draft_temperature, 0))
        if (best_of := self.best_of) is not None:
            best_of = whole("best_of", best_of, 1, MAX_CONTINUATIONS)
            if best_of < n:
                raise RejectedError(f"best_of={best_of}: must be a whole number >= n={n}, or None")
        return {
            "temperature": usable_temperature(number("temperature", self.temperature, 0)),
            "draft_temperature": draft_temperature,
            "top_p": float(number("top_p", self.top_p, 0, 1, above=True)),
            "top_k": whole("top_k", self.top_k, 0),
            "max_tokens": whole("max_tokens", self.max_tokens, 1),
            "stop": _texts("stop", self.stop, "stop string"),
            "stop_token_ids": check_ids("stop_token_ids", _none_is_empty(self.stop_token_ids), error=RejectedError),
            "ignore_eos": check_flag("ignore_eos", self.ignore_eos, error=RejectedError),
            "seed": None if self.seed is None else whole("seed", self.seed, 0, MAX_SEED),
            "n": n,
            "regex": None if self.regex is None else check_text("regex", self.regex, empty=False, error=RejectedError),
            "choices": _texts("choices", self.choices, "choice"),
            "best_of": best_of,
        }

    @classmethod
    def of(cls, params: object) -> SamplingParams:
        """``params``, or the defaults for None.

        Raises:
            RejectedError: it is something else.
        """
        if params is None:
            return cls()
        if not isinstance(params, SamplingParams):
            raise RejectedError(f"params={shown(params)}: must be SamplingParams, or None for the defaults")
        return params

    @property
    def is_constrained(self) -> bool:
        """Whether the text is held to a regex or to choices."""
        return self.regex is not None or bool(self.choices)

    @property
    def effective_draft_temperature(self) -> float:
        """The temperature that drafts use."""
        return self.temperature if self.draft_temperature is None else self.draft_temperature


def _none_is_empty(value: Any) -> Any:
    return () if value is None else value


def _texts(name: str, value: Any, what: str) -> tuple[str, ...]:
    """One text or several."""
    one = plain(value)
    texts = (one,) if isinstance(one, str) else _none_is_empty(value)
    return check_texts(name, texts, empty=False, what=what, error=RejectedError)


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
    never get any probability. The temperature has the limits of ``SamplingParams``.

    Attributes:
        greedy: the likeliest token has all the probability; of equals the first.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    vocab_size: int | None = None
    greedy: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", usable_temperature(self.temperature))
        object.__setattr__(self, "greedy", self.temperature == 0 or self.top_k == 1)

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
            # By logits: they may differ where probabilities are equal.
            order = logits.sort(dim=-1, descending=True, stable=True).indices
            sorted_probs = probs.gather(-1, order)
            keep = sorted_probs.cumsum(-1) - sorted_probs < self.top_p
            keep[:, 0] = True  # a top_p below what float32 can hold is 0
            probs = torch.zeros_like(probs).scatter_(-1, order, sorted_probs * keep)
            probs = probs / probs.sum(-1, keepdim=True)
        return probs
