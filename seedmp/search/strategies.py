"""In which order thoughts are continued: breadth first, depth first, best first, Monte Carlo.

A strategy decides by values and ids alone, never by which thought was ready first. So the same seed gives the same
tree under any schedule. ``SearchRun.expand`` writes thoughts and asks for their values.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from seedmp.checks import check_number, check_whole
from seedmp.search.thought_tree import Status, Thought


class Expandable(Protocol):
    """What a strategy sees of a running search."""

    progress: float

    @property
    def max_depth(self) -> int:
        """Levels of the tree."""
        ...

    @property
    def root(self) -> Thought:
        """Where the search begins."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether a budget is used up."""
        ...

    @property
    def solutions(self) -> Sequence[Thought]:
        """Thoughts that claim to solve the problem, so far."""
        ...

    async def expand(self, parents: Sequence[Thought]) -> list[Thought]:
        """Valued children of several thoughts, in the order asked for. Failed and merged ones are left out.

        Final ones are among them; they must not be expanded.
        """
        ...


class Strategy(Protocol):
    """A search."""

    async def search(self, run: Expandable) -> None:
        """Grow the tree until the strategy or the budget ends it."""
        ...


def rank(thoughts: Sequence[Thought]) -> list[Thought]:
    """Sort by value, the best first.

    Among equal values the first children of all parents come before the second ones. Thoughts without a value come
    last.
    """
    return sorted(thoughts, key=lambda t: (-_worth(t), t.depth, t.order[::-1]))


def _worth(thought: Thought) -> float:
    return -math.inf if thought.value is None else thought.value


@dataclass(frozen=True)
class BFS:
    """Level by level, the best ``beam`` thoughts of each level go on (ToT algorithm 1).

    Args:
        beam: thoughts that are continued.
        stop_at_solution: end after the first level in which a thought claims to solve the problem.
    """

    beam: int = 3
    stop_at_solution: bool = True

    def __post_init__(self) -> None:
        check_whole("beam", self.beam, 1)

    async def search(self, run: Expandable) -> None:
        """Until ``max_depth``, a solution, or nothing is left."""
        level = [run.root]
        for depth in range(run.max_depth):
            children = await run.expand(level)
            run.progress = (depth + 1) / run.max_depth
            best = rank([child for child in children if not child.is_final])
            level, left = best[: self.beam], best[self.beam :]
            _mark(level, Status.CHOSEN)
            _mark(left, Status.PRUNED)
            if not level or run.is_over or (self.stop_at_solution and run.solutions):
                return


@dataclass(frozen=True)
class DFS:
    """The best child first, to the bottom; then back to the next best (ToT algorithm 2).

    Args:
        threshold: children of a lower value are pruned; None prunes none.
        max_children: children of one thought that are visited at most; None visits all.
        stop_at_solution: end at the first thought that claims to solve the problem.
    """

    threshold: float | None = None
    max_children: int | None = None
    stop_at_solution: bool = True

    def __post_init__(self) -> None:
        if self.max_children is not None:
            check_whole("max_children", self.max_children, 1)

    async def search(self, run: Expandable) -> None:
        """Until a solution, or until every thought above the threshold was visited."""
        stack = [run.root]
        while stack and not run.is_over and not (self.stop_at_solution and run.solutions):
            thought = stack.pop()
            _mark([thought], Status.CHOSEN)
            if thought.depth >= run.max_depth:
                continue
            best = rank([child for child in await run.expand([thought]) if not child.is_final])
            good = [child for child in best if self.threshold is None or _worth(child) >= self.threshold]
            visited = good[: self.max_children]
            _mark([child for child in best if child not in visited], Status.PRUNED)
            stack += reversed(visited)


@dataclass(frozen=True)
class BestFirst:
    """Always the best thoughts of the whole tree, ``width`` at once.

    Args:
        width: thoughts continued at the same time; more keeps the target busier, less is greedier.
        max_expansions: thoughts continued at most.
        stop_at_solution: end when a thought claims to solve the problem.
    """

    width: int = 3
    max_expansions: int = 64
    stop_at_solution: bool = True

    def __post_init__(self) -> None:
        check_whole("width", self.width, 1)
        check_whole("max_expansions", self.max_expansions, 1)

    async def search(self, run: Expandable) -> None:
        """Until nothing is open, ``max_expansions``, or a solution."""
        frontier: list[tuple[float, int, tuple[int, ...], Thought]] = [(0.0, 0, (), run.root)]
        num_expanded = 0
        while frontier and num_expanded < self.max_expansions:
            num = min(self.width, self.max_expansions - num_expanded, len(frontier))
            parents = [heapq.heappop(frontier)[-1] for _ in range(num)]
            _mark(parents, Status.CHOSEN)
            children = await run.expand(parents)
            num_expanded += num
            run.progress = num_expanded / self.max_expansions
            for child in children:
                if not child.is_final and child.depth < run.max_depth:
                    heapq.heappush(frontier, (-_worth(child), child.depth, child.order, child))
            if run.is_over or (self.stop_at_solution and run.solutions):
                return


@dataclass
class _Visits:
    """Statistics of one thought in a Monte Carlo tree search."""

    thought: Thought
    parent: _Visits | None
    children: list[_Visits] = field(default_factory=list)
    num: int = 0
    total: float = 0.0
    expanded: bool = False
    dead: bool = False


@dataclass(frozen=True)
class MCTS:
    """Monte Carlo tree search: UCT selection, the evaluator's value instead of a rollout.

    Values are brought to [0, 1] by the smallest and largest seen so far. Kocsis and Szepesvari 2006.

    Args:
        iterations: expansions.
        exploration: weight of the uncertainty.
        width: expansions at the same time; each sees the others as visits of value 0 (virtual loss).
        stop_at_solution: end when a thought claims to solve the problem.
    """

    iterations: int = 24
    exploration: float = 1.0
    width: int = 1
    stop_at_solution: bool = True

    def __post_init__(self) -> None:
        check_whole("iterations", self.iterations, 1)
        check_whole("width", self.width, 1)
        check_number("exploration", self.exploration, 0)

    async def search(self, run: Expandable) -> None:
        """``iterations`` expansions, fewer when the tree is exhausted or a solution is there."""
        root, num_done = _Visits(run.root, None), 0
        seen: list[float] = []
        while num_done < self.iterations and not root.dead:
            leaves: list[_Visits] = []
            for _ in range(min(self.width, self.iterations - num_done)):
                leaf = self._select(root, seen)
                if leaf is None:
                    break
                leaf.expanded = True
                leaves.append(leaf)
                _visit(leaf, 0.0)
            parents = [leaf.thought for leaf in leaves]
            _mark(parents, Status.CHOSEN)
            children = await run.expand(parents)
            num_done += max(len(leaves), 1)
            run.progress = num_done / self.iterations
            for leaf in leaves:
                mine = [child for child in children if child.parent_id == leaf.thought.thought_id]
                seen += [child.value for child in mine if child.value is not None]
                self._grow(leaf, mine, seen, run.max_depth)
            if run.is_over or (self.stop_at_solution and run.solutions):
                return

    def _select(self, root: _Visits, seen: Sequence[float]) -> _Visits | None:
        """Down from the root by UCT to a thought that was not expanded; None when there is none."""
        node = root
        while node.expanded:
            alive = [child for child in node.children if not child.dead]
            if not alive:
                return None  # being expanded by this very batch
            node = max(alive, key=lambda child: self._uct(child, seen))
        return node

    def _uct(self, node: _Visits, seen: Sequence[float]) -> tuple[float, list[int]]:
        assert node.parent is not None
        first = [-part for part in node.thought.order]  # ties: the one asked for first
        mean = node.total / node.num if node.num else _scaled(node.thought.value, seen)
        return mean + self.exploration * math.sqrt(math.log(node.parent.num + 1) / (node.num + 1)), first

    def _grow(self, leaf: _Visits, children: Sequence[Thought], seen: Sequence[float], max_depth: int) -> None:
        for child in children:
            is_end = child.is_final or child.depth >= max_depth
            leaf.children.append(_Visits(child, leaf, expanded=is_end, dead=is_end))
        best = max((_scaled(child.value, seen) for child in children), default=0.0)
        _add(leaf, best)
        node: _Visits | None = leaf
        while node is not None and all(child.dead for child in node.children):
            node.dead = True
            node = node.parent


def _visit(node: _Visits | None, value: float) -> None:
    while node is not None:
        node.num += 1
        node.total += value
        node = node.parent


def _add(node: _Visits | None, value: float) -> None:
    """Add the value of a visit that is counted already."""
    while node is not None:
        node.total += value
        node = node.parent


def _scaled(value: float | None, seen: Sequence[float]) -> float:
    if value is None or not seen:
        return 0.0
    low, high = min(seen), max(seen)
    return (value - low) / (high - low) if high > low else 0.5


def _mark(thoughts: Sequence[Thought], status: Status) -> None:
    for thought in thoughts:
        thought.status = status
