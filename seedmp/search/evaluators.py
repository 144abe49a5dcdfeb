"""How much a thought is worth: asked of the model, voted, read off its probabilities, or agreed upon."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from seedmp.checks import check_one_of, check_whole
from seedmp.sampling import MAX_SEED
from seedmp.search.asking import Asker
from seedmp.search.task import Task, check_task
from seedmp.search.thought_tree import Thought, ids_of

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


class Evaluator:
    """How much thoughts are worth: the base of all evaluators, also of your own.

    One that values each thought by itself overrides ``value``; it is asked as soon as the thought exists. One that
    compares thoughts sets ``compares`` and overrides ``values``; it waits until all of a level are there.

    Attributes:
        compares: whether ``values`` is asked, not ``value``.
        needs: what the task must have, by name: methods that it overrides, or ``value_labels``.
    """

    compares: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()

    def check(self, task: Task[Any]) -> None:
        """Look at the task before a search begins.

        Raises:
            ConfigError: it lacks what is needed.
        """
        check_task(task, self.needs, self)

    def key(self, task: Task[Any], problem: Any, path: Path) -> str:
        """What is asked about the last thought of ``path``: of equal keys one is asked, the others get its answer."""
        return path[-1].state or path[-1].thought_id

    async def value(self, question: Question, path: Path) -> Valued:
        """Of the last thought of ``path``; a function of the key and the seed."""
        raise NotImplementedError(f"{type(self).__name__} has no value")

    def compared(self, solutions: Sequence[Thought], level: Sequence[Thought]) -> list[Thought]:
        """The thoughts to compare when a level is there; ``solutions`` are earlier claims to solve the problem."""
        return list(level)

    async def values(self, question: Question, paths: Sequence[Path]) -> list[Valued]:
        """Of the last thought of each path."""
        raise NotImplementedError(f"{type(self).__name__} has no values")


class _AsksForLabels(Evaluator):
    """Asks ``value_ask``: equal questions have one answer, whatever the thoughts are."""

    def key(self, task: Task[Any], problem: Any, path: Path) -> str:
        return str(task.value_ask(problem, path))


@dataclass(frozen=True)
class Value(_AsksForLabels):
    """The model answers with a label or a number; several answers are averaged (ToT's "value").

    Args:
        n: answers asked for.
        temperature: of the answers; 0 asks once.
    """

    needs = ("value_ask",)
    n: int = 1
    temperature: float = 0.7

    def __post_init__(self) -> None:
        check_whole("n", self.n, 1)

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
class Score(_AsksForLabels):
    """The labels' own probabilities, in one forward and without sampling; the value is their expectation."""

    needs = ("value_ask", "value_labels")

    async def value(self, question: Question, path: Path) -> Valued:
        """Sum of label value times label probability, over the labels alone."""
        labels = question.task.value_labels
        ask = question.task.value_ask(question.problem, path)
        log_probs, num_tokens = await question.asker.log_probs(ask, list(labels), ids_of(path))
        weights = [math.exp(log_prob - log_probs.max()) for log_prob in log_probs.tolist()]
        total = sum(weight * number for weight, number in zip(weights, labels.values(), strict=True))
        return Valued(total / sum(weights), num_tokens)


@dataclass(frozen=True)
class Vote(Evaluator):
    """The model names the best of all candidates; the value is the number of votes (ToT's "vote").

    Args:
        n: votes asked for.
        temperature: of the votes.
    """

    compares = True
    needs = ("vote_ask",)
    n: int = 5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_whole("n", self.n, 1)

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
class SelfConsistency(Evaluator):
    """A finished path is worth the share of finished paths that give the same answer; others are worth 0.

    All finished paths of the tree so far are compared, so use it with ``stop_at_solution=False``.
    """

    compares = True

    def compared(self, solutions: Sequence[Thought], level: Sequence[Thought]) -> list[Thought]:
        """Earlier solutions and the new level."""
        return [*solutions, *level]

    async def values(self, question: Question, paths: Sequence[Path]) -> list[Valued]:
        """Needs no model."""
        answers = [question.task.answer(question.problem, path) if path[-1].is_final else None for path in paths]
        counts = Counter(answer for answer in answers if answer is not None)
        return [Valued(0.0 if a is None else counts[a] / counts.total()) for a in answers]


@dataclass(frozen=True)
class RandomValue(Evaluator):
    """Noise instead of a value: what is a search worth without its evaluator?"""

    async def value(self, question: Question, path: Path) -> Valued:
        """Uniform in [0, 1), by the seed and the thought's state."""
        return Valued(question.seed / (MAX_SEED + 1))


@dataclass(frozen=True)
class NoValue(Evaluator):
    """Every thought is worth the same; the order asked for decides."""

    async def value(self, question: Question, path: Path) -> Valued:
        """0."""
        return Valued(0.0)


EVALUATORS: dict[str, Callable[[int], Evaluator]] = {  # by name, of the number of answers or votes asked for
    "value": lambda n: Value(n),
    "score": lambda n: Score(),
    "vote": lambda n: Vote(n),
    "self-consistency": lambda n: SelfConsistency(),
    "none": lambda n: NoValue(),
    "random": lambda n: RandomValue(),
}


def make_evaluators(names: str | Sequence[str], n: int) -> list[Evaluator]:
    """Evaluators by their names, one a level; ``n`` answers or votes are asked for.

    Raises:
        ConfigError: there is none of such a name, or ``n`` is below 1.
    """
    names = [names] if isinstance(names, str) else names
    return [EVALUATORS[check_one_of("evaluate", name, EVALUATORS)](n) for name in names]
