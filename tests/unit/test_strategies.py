"""Strategies on trees whose values are known: which thoughts go on, and when a search ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from seedmp.errors import ConfigError
from seedmp.search.strategies import BFS, DFS, MCTS, BestFirst, Strategy, rank
from seedmp.search.thought_tree import Status, Thought, ThoughtTree


class KnownTree:
    """Three children a thought; ``value_of`` knows what each is worth. Stands in for a running search."""

    max_depth = 3

    def __init__(self, value_of: Callable[[str], float | None], goal: str = "", *, max_nodes: int = 10_000) -> None:
        self.tree = ThoughtTree()
        self.value_of = value_of
        self.goal = goal
        self.max_nodes = max_nodes
        self.progress = 0.0
        self.expanded: list[str] = []

    @property
    def root(self) -> Thought:
        return self.tree.root

    @property
    def is_over(self) -> bool:
        return len(self.tree) >= self.max_nodes

    @property
    def solutions(self) -> list[Thought]:
        return [thought for thought in self.tree if thought.is_final]

    async def expand(self, parents: Sequence[Thought]) -> list[Thought]:
        assert all(parent.depth < self.max_depth and not parent.is_final for parent in parents)
        self.expanded += [parent.thought_id for parent in parents]
        children = [self.tree.add(parent, index, 0.0) for parent in parents for index in range(3)]
        for child in children:
            child.value = self.value_of(child.thought_id)
            child.is_final = child.thought_id == self.goal
            child.status = Status.FINAL if child.is_final else Status.OPEN
        return children


def search(strategy: Strategy, tree: KnownTree) -> list[str]:
    asyncio.run(strategy.search(tree))
    return tree.expanded


def last_digit(thought_id: str) -> float:
    """The last child is always the best."""
    return float(thought_id[-1])


def test_breadth_first_keeps_the_beam() -> None:
    tree = KnownTree(last_digit)
    assert search(BFS(beam=2), tree) == ["root", "2", "1", "1.2", "2.2"]
    kept = {t.thought_id for t in tree.tree if t.status is Status.CHOSEN and t.depth}
    assert kept == {"2", "1", "2.2", "1.2", "1.2.2", "2.2.2"}
    assert tree.tree.count(Status.PRUNED) == len(tree.tree) - len(kept)


def test_breadth_first_finishes_the_level_of_a_solution() -> None:
    assert search(BFS(beam=3), KnownTree(last_digit, "2.0")) == ["root", "2", "1", "0"]
    assert len(search(BFS(beam=3, stop_at_solution=False), KnownTree(last_digit, "2.0"))) == 7


def test_depth_first_comes_back_to_the_next_best() -> None:
    tree = KnownTree(last_digit, "1.2.2")
    assert search(DFS(), tree)[:6] == ["root", "2", "2.2", "2.1", "2.0", "1"]
    assert tree.expanded[-1] == "1.2"
    assert search(DFS(max_children=1), KnownTree(last_digit, "0.0.0")) == ["root", "2", "2.2"]


def test_depth_first_prunes_by_value() -> None:
    tree = KnownTree(last_digit)
    search(DFS(threshold=1.5), tree)
    assert tree.expanded == ["root", "2", "2.2"]
    assert {t.thought_id for t in tree.tree if t.status is Status.PRUNED} >= {"0", "1", "2.0", "2.1"}


def test_best_first_jumps() -> None:
    values = {"0": 5.0, "1": 4.0, "2": 1.0, "0.0": 3.0, "0.1": 3.5, "0.2": 2.0, "1.0": 9.0}
    tree = KnownTree(lambda thought_id: values.get(thought_id, 0.0), "1.0.1")
    assert search(BestFirst(width=1), tree) == ["root", "0", "1", "1.0"]
    assert len(search(BestFirst(width=2, max_expansions=5), KnownTree(last_digit))) == 5


def test_monte_carlo_goes_where_values_are_high_and_looks_elsewhere_too() -> None:
    tree = KnownTree(lambda thought_id: 1.0 if thought_id.startswith("1") else 0.2)
    expanded = search(MCTS(iterations=12, exploration=0.5), tree)
    assert len(expanded) == len(set(expanded)) == 12 > sum(name.startswith("1") for name in expanded) > 3
    assert {"0", "2"} & set(expanded), "the others are looked at too"
    assert search(MCTS(iterations=100), KnownTree(last_digit)).count("2.2") == 1, "an exhausted tree ends it"
    assert len(search(MCTS(iterations=100), KnownTree(last_digit))) == 13


def test_monte_carlo_in_parallel_expands_nothing_twice() -> None:
    expanded = search(MCTS(iterations=13, width=4), KnownTree(last_digit))
    assert len(expanded) == len(set(expanded)) <= 13


@pytest.mark.parametrize("strategy", [BFS(3), DFS(), BestFirst(2), MCTS(30, width=2)])
def test_a_budget_ends_every_search(strategy: Strategy) -> None:
    tree = KnownTree(last_digit, max_nodes=7)
    search(strategy, tree)
    assert 7 <= len(tree.tree) <= 7 + 9


def test_thoughts_without_a_value_come_last() -> None:
    tree = KnownTree(lambda thought_id: None if thought_id == "2" else 0.0)
    assert search(BFS(beam=2), tree)[1:3] == ["0", "1"]
    assert [t.thought_id for t in rank(tree.tree.levels()[1])] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BFS(0), "beam=0: must be a whole number >= 1"),
        (lambda: DFS(max_children=0), "max_children=0"),
        (lambda: BestFirst(width=0), "width=0"),
        (lambda: MCTS(iterations=0), "iterations=0"),
        (lambda: MCTS(exploration=-1), "exploration=-1"),
    ],
)
def test_bad_settings(make: Callable[[], Strategy], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
