"""One running search: what a strategy expands, what a generator writes into, and the book-keeping around it.

A thought is valued as soon as it exists, while its siblings are still being written, so that the
verifier's queue does not run dry between the two; ``barrier=True`` waits, for comparison.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from seedmp.checks import check_number
from seedmp.errors import RequestError
from seedmp.search.asking import Asker, derive_seed
from seedmp.search.evaluators import Evaluator, Question, Valued
from seedmp.search.generators import Generator
from seedmp.search.strategies import rank
from seedmp.search.task import Task
from seedmp.search.thought_tree import Status, Thought, ThoughtTree
from seedmp.search.waiting import gather


@dataclass(frozen=True)
class Budget:
    """Where a search ends at the latest; None is without limit.

    Args:
        nodes: thoughts asked for.
        tokens: generated and scored; looked at before each expansion, which is then completed.
        seconds: of wall time; what is running then is cancelled. The only limit that depends on the machine.
    """

    nodes: int | None = None
    tokens: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("nodes", "tokens", "seconds"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, 0, above=True)


@dataclass
class SearchRun:
    """One running search: what a strategy expands, and the book-keeping around it.

    Runs in: one event loop, so nothing here needs a lock.
    """

    asker: Asker
    task: Task[Any]
    problem: Any
    generator: Generator
    evaluators: Sequence[Evaluator]
    seed: int
    budget: Budget
    barrier: bool
    on_change: Callable[[SearchRun], None]
    tree: ThoughtTree
    progress: float = 0.0
    ended: str = ""
    num_failed_values: int = 0
    started: float = field(default_factory=time.monotonic)
    _canonical: dict[str, Thought] = field(init=False)  # state -> the thought that stands for it
    values: dict[str, asyncio.Task[Valued]] = field(default_factory=dict)  # evaluations, by what was asked
    _asked: dict[str, str] = field(default_factory=dict)  # thought_id -> what was asked about it
    _booked: set[str] = field(default_factory=set)  # evaluations whose cost is in the tree

    def __post_init__(self) -> None:
        self._canonical = {self.root.state: self.root} if self.root.state else {}

    @property
    def max_depth(self) -> int:
        """Levels of the tree."""
        return self.task.depth

    @property
    def root(self) -> Thought:
        """Where the search begins."""
        return self.tree.root

    @property
    def is_over(self) -> bool:
        """Whether a budget is used up."""
        return bool(self.ended)

    @property
    def solutions(self) -> list[Thought]:
        """Thoughts that claim to solve the problem, best first."""
        return rank([thought for thought in self.tree.thoughts.values() if thought.status is Status.FINAL])

    @property
    def elapsed_s(self) -> float:
        """Since the search began."""
        return time.monotonic() - self.started

    async def expand(self, parents: Sequence[Thought]) -> list[Thought]:
        """Children of several thoughts, valued; see ``strategies.Expandable``."""
        if self._is_used_up():
            return []
        jobs = [(parent, num) for parent, num in zip(parents, self._share_out(len(parents)), strict=True) if num]
        grown = await gather(*(self.generator.grow(self, parent, num) for parent, num in jobs))
        children = [child for family in grown for child in family]
        if self.barrier:
            await self._value_each(children)
        self._merge(children)
        alive = [child for child in children if child.status is Status.RUNNING]
        for depth in sorted({child.depth for child in alive}):
            await self._compare([child for child in alive if child.depth == depth])
        for child in alive:
            child.status = Status.FINAL if child.is_final else Status.OPEN
        self.changed()
        return alive

    # --- writing: what a generator needs (``generators.Growing``) ----------------------------------

    def seed_of(self, parent: Thought) -> int:
        """Of the texts of a thought's children."""
        return derive_seed(self.seed, "thought", parent.thought_id)

    def add_child(self, parent: Thought, index: int, started_s: float | None = None) -> Thought:
        """A thought that is being written, since now or ``started_s``."""
        return self.tree.add(parent, index, self.elapsed_s if started_s is None else started_s)

    def changed(self) -> None:
        """Tell whoever watches."""
        self.on_change(self)

    def read(self, child: Thought, path: Sequence[Thought], text: str, num_tokens: int) -> None:
        """A child of ``path`` is written; ``num_tokens`` were generated for it."""
        child.finished_s, child.num_tokens = self.elapsed_s, num_tokens
        parsed = self.task.read_thought(self.problem, path, text)
        if parsed is None:
            child.text = text
            self.fail(child, "not in the task's format")
            return
        child.text, child.label, child.is_final = parsed.text, parsed.label, parsed.is_final
        child.state = parsed.state if parsed.state is not None else ""

    def fail(self, child: Thought, why: str) -> None:
        """Nothing became of a child."""
        child.status, child.note, child.finished_s = Status.FAILED, why, self.elapsed_s
        self.changed()

    async def value_early(self, children: Sequence[Thought]) -> None:
        """Value what is written while others are still being written, unless all wait for all."""
        if not self.barrier:
            await self._value_each(children)

    # --- valuing --------------------------------------------------------------------------------

    def _evaluator(self, depth: int) -> Evaluator:
        return self.evaluators[min(depth, len(self.evaluators)) - 1]

    async def _value_each(self, children: Sequence[Thought]) -> None:
        alive = [child for child in children if child.status is Status.RUNNING]
        await gather(*(self._value(child) for child in alive if not self._evaluator(child.depth).compares))

    async def _value(self, child: Thought) -> None:
        """Value one thought by itself; what was asked already, as about an equal state, is not asked again."""
        evaluator = self._evaluator(child.depth)
        path = self.tree.path(child)
        key = self._asked[child.thought_id] = evaluator.key(self.task, self.problem, path)
        task = self.values.get(key)
        if task is None:
            question = Question(self.asker, self.task, self.problem, derive_seed(self.seed, "value", key))
            task = self.values[key] = asyncio.ensure_future(self._answer(evaluator.value(question, path)))
        valued = await task
        if valued.value is not None:
            parent_value = path[-2].value if len(path) > 1 else None
            child.value = self.task.path_value(parent_value, valued.value)
        child.valued_s = self.elapsed_s
        self.changed()

    async def _answer(self, question: Awaitable[Valued]) -> Valued:
        """An evaluation; one that the engine refuses is one that could not be read."""
        try:
            return await question
        except RequestError:
            return Valued(None, 0, 1)

    async def _compare(self, children: Sequence[Thought]) -> None:
        """Value what must be compared with the rest of its level, or with all that claims to be a solution."""
        evaluator = self._evaluator(children[0].depth)
        if not evaluator.compares:
            return
        children = evaluator.compared(self.solutions, children)
        seed = derive_seed(self.seed, "vote", *(child.thought_id for child in children))
        question = Question(self.asker, self.task, self.problem, seed)
        try:
            values = await evaluator.values(question, [self.tree.path(child) for child in children])
        except RequestError:
            values = [Valued(None, 0, 1)] * len(children)
        for child, valued in zip(children, values, strict=True):
            child.value, child.valued_s, child.num_value_tokens = valued.value, self.elapsed_s, valued.num_tokens
            self.num_failed_values += valued.num_failed

    def _merge(self, children: Sequence[Thought]) -> None:
        """Equal states become one thought: the one that is there already, else the first of the commonest text.

        An evaluation is booked to the first thought that it is about.
        """
        alive = [child for child in children if child.status is Status.RUNNING]
        texts = Counter((child.state, child.text) for child in alive)
        for child in sorted(alive, key=lambda child: -texts[child.state, child.text]):  # stable
            if child.state:
                self._canonical.setdefault(child.state, child)
        for child in alive:
            first = self._canonical.get(child.state, child)
            if first is not child:
                child.status, child.note = Status.MERGED, f"equal to {first.thought_id}"
            key = self._asked.get(child.thought_id)
            if key is not None and key not in self._booked:
                self._booked.add(key)
                valued = self.values[key].result()
                child.num_value_tokens = valued.num_tokens
                self.num_failed_values += valued.num_failed

    # --- budgets --------------------------------------------------------------------------------

    def _is_used_up(self) -> bool:
        if self.budget.nodes is not None and len(self.tree) >= self.budget.nodes:
            self.ended = "nodes"
        elif self.budget.tokens is not None and self.tree.num_tokens >= self.budget.tokens:
            self.ended = "tokens"
        return self.is_over

    def _share_out(self, num_parents: int) -> list[int]:
        """Children that each parent may have: all that the generator makes, as long as nodes are left."""
        left = num_parents * self.generator.n
        if self.budget.nodes is not None and self.budget.nodes - len(self.tree) < left:
            left, self.ended = self.budget.nodes - len(self.tree), "nodes"
        return [max(0, min(self.generator.n, left - i * self.generator.n)) for i in range(num_parents)]

    # --- the end --------------------------------------------------------------------------------

    async def end(self, searching: asyncio.Future[None]) -> None:
        """Wait until nothing of the search runs any more; what was not ready is cancelled."""
        running: list[asyncio.Future[Any]] = [searching, *self.values.values()]
        for job in running:
            job.cancel()
        await asyncio.wait(running)
        for thought in self.tree.thoughts.values():
            if thought.status is Status.RUNNING:
                thought.status = Status.CANCELLED
