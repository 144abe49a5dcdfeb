"""Which static trees fit a pair of models on a kind of text. Calibration texts are never the ones that are timed later.

The target continues the calibration prompts by itself. Along these texts the accept rule says with what probability
it takes the b-th child of a node (``seedmp.tuning.acceptance``, teacher-forced). One vector serves for all depths, as
in Sequoia.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seedmp.benchmarks.options import Options
from seedmp.engine import Engine
from seedmp.measuring.engines import EngineSubject
from seedmp.token_tree.sequoia import MAX_LEVELS, search_trees

if TYPE_CHECKING:
    import torch


class Calibration:
    """Acceptance of a pair's children on some prompts at a temperature; measured once, when it is first asked for.

    Args:
        options: resolved; they name the pair.
        prompts: token ids, not those that are measured later.
        max_tokens: the target's continuation of each.
        num_children: ranks of a child that are told apart.
    """

    def __init__(
        self,
        options: Options,
        prompts: Sequence[Sequence[int]],
        temperature: float,
        max_tokens: int,
        num_children: int,
    ) -> None:
        self.options, self.prompts, self.temperature = options, prompts, temperature
        self.max_tokens, self.num_children = max_tokens, num_children
        self.measured: np.ndarray | None = None
        self._lock = threading.Lock()  # subjects of a group start in several threads

    def acceptance(self) -> np.ndarray:
        """[1, B + 1] as ``search_trees`` takes it."""
        with self._lock:
            if self.measured is None:
                self.measured = self._measure()
            return self.measured

    def _measure(self) -> np.ndarray:
        import torch

        from seedmp.models.load import check_vocabularies, eos_token_ids, load_model
        from seedmp.tuning.acceptance import Law, teacher_forced

        specs = self.options.target_spec, self.options.draft_spec
        dtype = getattr(torch, str(self.options.dtype))
        device = "cuda:0" if torch.cuda.is_available() else "cpu"
        target, draft = (load_model(spec, dtype, device) for spec in specs)
        vocab_size, eos = check_vocabularies(*specs), eos_token_ids(specs[0])
        pairs = []
        with torch.inference_mode():
            for number, prompt in enumerate(self.prompts):
                written, target_logits = self._write(target, prompt, number, vocab_size, eos)
                ids = torch.tensor([[*prompt, *written[:-1]]], device=device)
                draft_logits = draft(ids).logits[0, len(prompt) - 1 :, :vocab_size]
                pairs.append((target_logits, draft_logits.float().cpu()))
        target_logits, draft_logits = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        law = Law(temperature=self.temperature)
        return teacher_forced(target_logits, draft_logits, law, self.num_children, self.options.seed).vector()

    def _write(
        self, target: Any, prompt: Sequence[int], stream: int, vocab_size: int, eos: Sequence[int]
    ) -> tuple[list[int], torch.Tensor]:
        """A continuation [P] by the target alone, and the logits [P, V] that its tokens were drawn from."""
        import torch

        from seedmp.decoding.accept import sample_token
        from seedmp.sampling import Noise, Purpose, TargetLaw

        law, noise = TargetLaw(self.temperature), Noise(self.options.seed, stream)
        written: list[int] = []
        rows: list[torch.Tensor] = []
        fed, cache = list(prompt), None
        while len(written) < self.max_tokens and not set(written[-1:]) & set(eos):
            made = target(torch.tensor([fed], device=target.device), past_key_values=cache, use_cache=True)
            cache = made.past_key_values
            rows.append(made.logits[0, -1:, :vocab_size].float().cpu())
            gumbel = noise.gumbel(len(prompt) + len(written), Purpose.TARGET_TOKEN, vocab_size)
            probs = law.probs(rows[-1])[0].numpy()
            fed = [int(probs.argmax()) if law.greedy else sample_token(probs, gumbel)]
            written += fed
        return written, torch.cat(rows)


Choose = Callable[[np.ndarray, int], Mapping[str, Any]]


@dataclass(frozen=True)
class FittedSubject:
    """An engine whose static tree is chosen when it starts, for what was measured.

    Args:
        engine: without the tree.
        calibration: gives the acceptance vector.
        choose: gets it and the number of draft tokens; gives the tree's settings.
    """

    engine: EngineSubject
    calibration: Calibration
    num_nodes: int
    choose: Choose

    def start(self) -> Engine:
        """Measure, unless that was done already; then start its processes."""
        chosen = self.choose(self.calibration.acceptance(), self.num_nodes)
        return EngineSubject(tuple(sorted({**dict(self.engine.settings), **chosen}.items()))).start()

    def need_gib(self) -> float:
        """As for the engine without a tree."""
        return self.engine.need_gib()


def best_growmap(acceptance: np.ndarray, num_nodes: int) -> dict[str, Any]:
    """Sequoia's best tree with exactly this number of draft tokens, of any depth."""
    size, levels = num_nodes + 1, min(num_nodes + 1, MAX_LEVELS)
    return {"growmap": search_trees(acceptance, size, levels).growmap(size, levels).num_children}


def best_k_config(acceptance: np.ndarray, num_nodes: int) -> dict[str, Any]:
    """The k_config with the most expected tokens, of all that have exactly this number of draft tokens.

    A first level of k children leaves each a tree of num_nodes / k - 1 nodes: best(n) = max over k that divide n
    of P(one of k children is accepted) (1 + best(n / k - 1)).
    """
    any_of = np.cumsum(acceptance[0])  # [B + 1]; children beyond B are never accepted

    @functools.cache
    def best(num: int) -> tuple[float, tuple[int, ...]]:
        found: tuple[float, tuple[int, ...]] = (0.0, ())
        for first in range(1, num + 1):
            if num % first == 0:
                expected, below = best(num // first - 1)
                expected = float(any_of[min(first, len(any_of) - 1)]) * (1 + expected)
                if expected > found[0] or not found[1]:
                    found = expected, (first, *below)
        return found

    return {"k_config": best(num_nodes)[1]}
