"""How much a thought is worth: asked of the model, voted, read off its probabilities, or agreed upon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from seedmp.errors import ConfigError
from seedmp.sampling import MAX_SEED
from seedmp.search.asking import Asker
from seedmp.search.task import Task
from seedmp.search.thought_tree import Thought

Path = Sequence[Thought]


@dataclass(frozen=True)
class Valued:
    """Outcome of an evaluation.

    Args:
        value: higher is better; None when no answer could be read.
        num_tokens: generated or scored for it.
        num_failed: answers that could not be read.
    """

    value: float | None
    num_tokens: int = 0
    num_failed: int = 0


@dataclass(frozen=True)
class Question:
    """What an evaluator is given: the task, its problem, who answers, and the seed of the answers."""

    asker: Asker
    task: Task[Any]
    problem: Any
    seed: int


class Evaluator(Protocol):
    """Values thoughts as soon as they exist, each by itself."""

    async def value(self, question: Question, path: Path) -> Valued:
        """Of the last thought of ``path``; a function of the thought's state and the seed."""
        ...


class GroupEvaluator(Protocol):
    """Compares thoughts, so it waits until all of a level are there."""

    async def values(self, question: Question, paths: Sequence[Path]) -> list[Valued]:
        """Of the last thought of each path."""
        ...


@dataclass(frozen=True)
class Value:
    """The model answers with a label or a number; several answers are averaged (ToT's "value").

    Args:
        n: answers asked for.
        temperature: of the answers; 0 asks once.
    """

    n: int = 1
    temperature: float = 0.7

    def __post_init__(self) -> None:
        _check_number(self.n)

    async def value(self, question: Question, path: Path) -> Valued:
        """The mean of what the answers stand for."""
        ask = question.task.value_ask(question.problem, path)
        n = self.n if self.temperature > 0 else 1
        outputs = await question.asker.answers(ask, n, self.temperature, question.seed, ids_of(path))
        numbers = [question.task.read_value(output.text) for output in outputs]
        read = [number for number in numbers if number is not None]
        num_tokens = sum(len(output.token_ids) for output in outputs)
        return Valued(sum(read) / len(read) if read else None, num_tokens, len(numbers) - len(read))


@dataclass(frozen=True)
class Score:
    """The labels' own probabilities, in one forward and without sampling; the value is their expectation."""

    async def value(self, question: Question, path: Path) -> Valued:
        """Sum of label value times label probability, over the labels alone."""
        labels = question.task.value_labels
        ask = question.task.value_ask(question.problem, path)
        log_probs, num_tokens = await question.asker.log_probs(ask, list(labels), ids_of(path))
        weights = [math.exp(log_prob - log_probs.max()) for log_prob in log_probs.tolist()]
        total = sum(weight * number for weight, number in zip(weights, labels.values(), strict=True))
        return Valued(total / sum(weights), num_tokens)


@dataclass(frozen=True)
class Vote:
    """The model names the best of all candidates; the value is the number of votes (ToT's "vote").

    Args:
        n: votes asked for.
        temperature: of the votes.
    """

    n: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_number(self.n)

    async def values(self, question: Question, paths: Sequence[Path]) -> list[Valued]:
        """Votes for each path; a single candidate needs none."""
        if len(paths) == 1:
            return [Valued(float(self.n))]
        ask = question.task.vote_ask(question.problem, paths)
        outputs = await question.asker.answers(ask, self.n, self.temperature, question.seed)
        votes = [question.task.read_vote(output.text, len(paths)) for output in outputs]
        counts = Counter(vote for vote in votes if vote is not None and 0 <= vote < len(paths))
        cost = Valued(None, sum(len(output.token_ids) for output in outputs), len(votes) - counts.total())
        return [
            Valued(float(counts[i]), cost.num_tokens if i == 0 else 0, cost.num_failed if i == 0 else 0)
            for i in range(len(paths))
        ]


@dataclass(frozen=True)
class SelfConsistency:
    """A finished path is worth the share of finished paths that give the same answer; others are worth 0.

    All finished paths of the tree so far are compared, so use it with ``stop_at_solution=False``.
    """

    async def values(self, question: Question, paths: Sequence[Path]) -> list[Valued]:
        """Needs no model."""
        answers = [question.task.answer(question.problem, path) if path[-1].is_final else None for path in paths]
        counts = Counter(answer for answer in answers if answer is not None)
        return [Valued(0.0 if a is None else counts[a] / counts.total()) for a in answers]


@dataclass(frozen=True)
class RandomValue:
    """Noise instead of a value: what is a search worth without its evaluator?"""

    async def value(self, question: Question, path: Path) -> Valued:
        """Uniform in [0, 1), by the seed and the thought's state."""
        return Valued(question.seed / (MAX_SEED + 1))


@dataclass(frozen=True)
class NoValue:
    """Every thought is worth the same; the order asked for decides."""

    async def value(self, question: Question, path: Path) -> Valued:
        """0."""
        return Valued(0.0)


AnyEvaluator = Value | Score | Vote | SelfConsistency | RandomValue | NoValue


def ids_of(path: Path) -> list[str]:
    """Ids along a path."""
    return [thought.thought_id for thought in path]


def _check_number(n: int) -> None:
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"n={n!r}: at least one answer is needed")
