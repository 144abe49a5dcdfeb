"""Generators and evaluators of a user's own: a search knows them by their methods alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import pytest

from seedmp import Engine
from seedmp.errors import ConfigError
from seedmp.search import BFS, Ask, Evaluator, Generator, Parsed, SearchResult, Task, Thought, TreeOfThoughts
from seedmp.search.evaluators import Path, Question, Valued
from seedmp.search.generators import Growing


class Digits(Task[int]):
    """Write digits whose sum is the problem."""

    name = "digits"
    depth = 2

    def describe(self, problem: int) -> str:
        return f"sum {problem}"

    def thought_ask(self, problem: int, path: Sequence[Thought]) -> Ask:
        raise AssertionError("nobody asks a model")

    def read_thought(self, problem: int, path: Sequence[Thought], text: str) -> Parsed | None:
        total = sum(int(thought.text) for thought in path) + int(text)
        return Parsed(text, str(total), total == problem) if text != "0" else None


@dataclass(frozen=True)
class Count(Generator):
    """Children are 0, 1, 2, ... and no model writes them."""

    temperature: float = 0.0

    async def grow(self, run: Growing, parent: Thought, num: int) -> list[Thought]:
        path = run.tree.path(parent)
        children = [run.add_child(parent, index) for index in range(num)]
        for index, child in enumerate(children):
            run.read(child, path, str(index), 1)
        await run.value_early(children)
        return children


@dataclass
class Largest(Evaluator):
    """A thought is worth its number; notes which were asked about."""

    asked: list[str]

    async def value(self, question: Question, path: Path) -> Valued:
        self.asked.append(path[-1].text)
        return Valued(float(path[-1].text), 1)


@dataclass
class Place(Evaluator):
    """A thought is worth its place in the level; notes how many were compared."""

    levels: list[int]
    compares = True

    async def values(self, question: Question, paths: Sequence[Path]) -> list[Valued]:
        self.levels.append(len(paths))
        return [Valued(float(place)) for place in range(len(paths))]


class NeedsVotes(Evaluator):
    needs = ("vote_ask",)


class NeedsLabels(Evaluator):
    needs = ("value_labels",)


def solve(problem: int, evaluator: Evaluator, **settings: Any) -> SearchResult:
    nobody = cast(Engine, None)
    return TreeOfThoughts(nobody, Digits(), search=BFS(1), generate=Count(4), evaluate=evaluator, **settings).solve(
        problem
    )


@pytest.mark.parametrize("barrier", [False, True])
def test_each_thought_is_valued_once(barrier: bool) -> None:
    asked: list[str] = []
    result = solve(6, Largest(asked), barrier=barrier)
    assert [thought.text for thought in result.path] == ["3", "3"] and result.ended == "solution"
    assert asked == ["1", "2", "3", "1", "2", "3"], "0 is not in the format, and nothing is asked about it"
    assert result.counts()["failed"] == 2


def test_a_level_is_compared_at_once() -> None:
    levels: list[int] = []
    result = solve(9, Place(levels))
    assert levels == [3, 3]
    assert [thought.text for thought in result.path] == ["3", "3"] and result.ended == "complete"


@pytest.mark.parametrize(
    ("evaluator", "told"), [(NeedsVotes(), "no vote_ask, which"), (NeedsLabels(), "no value_labels, which")]
)
def test_what_it_needs_is_looked_for_first(evaluator: Evaluator, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        solve(1, evaluator)


def test_a_generator_checks_its_numbers() -> None:
    with pytest.raises(ConfigError, match=r"n=0: must be a whole number >= 1"):
        Count(0)
    with pytest.raises(ConfigError, match=r"temperature=-1: must be a finite number >= 0"):
        Count(1, -1)
