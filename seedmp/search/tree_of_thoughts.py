"""Search a tree of thoughts: thoughts are written and valued by an engine, a strategy decides what goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from seedmp.engine import Engine
from seedmp.search.asking import Asker, derive_seed
from seedmp.search.evaluators import Evaluator, make_evaluators
from seedmp.search.generators import Generator, make_generator
from seedmp.search.result import SearchResult
from seedmp.search.run import Budget, SearchRun
from seedmp.search.strategies import BFS, Strategy
from seedmp.search.task import Task
from seedmp.search.thought_tree import ThoughtTree
from seedmp.search.waiting import gather, run_anywhere


class TreeOfThoughts:
    """Solves problems of a task by searching trees of thoughts.

    Args:
        engine: writes and values thoughts.
        task: prompts and formats; see ``seedmp.search.task``.
        search: ``BFS``, ``DFS``, ``BestFirst``, ``MCTS`` or a strategy of your own; None is breadth first
            with the task's beam.
        generate: ``Sample``, ``Propose`` or a generator of your own; None is what the task says.
        evaluate: an evaluator (yours derive from ``Evaluator``), or one for each level; None is what the task says.
        seed: the tree is a function of the models, the problem and this, whatever the schedule.
        budget: where each search ends at the latest.
        barrier: value a level only when all of it is written (for comparison; slower).
        on_change: called with the running search after each change, from the search's thread.

    Raises:
        ConfigError: the task lacks what the generator or an evaluator needs.
    """

    def __init__(
        self,
        engine: Engine,
        task: Task[Any],
        *,
        search: Strategy | None = None,
        generate: Generator | None = None,
        evaluate: Evaluator | Sequence[Evaluator] | None = None,
        seed: int = 0,
        budget: Budget | None = None,
        barrier: bool = False,
        on_change: Callable[[SearchRun], None] | None = None,
    ) -> None:
        defaults = task.defaults
        self.engine = engine
        self.task = task
        self.search = search or BFS(defaults.beam, defaults.stop_at_solution)
        if generate is None:
            generate = make_generator(defaults.generate, defaults.num_thoughts, defaults.temperature)
        self.generate = generate
        if evaluate is None:
            evaluate = make_evaluators(defaults.evaluate, defaults.num_values)
        self.evaluators = tuple(evaluate) if isinstance(evaluate, Sequence) else (evaluate,)
        self.generate.check(task)
        for evaluator in self.evaluators:
            evaluator.check(task)
        self.seed = seed
        self.budget = budget or Budget()
        self.barrier = barrier
        self.on_change = on_change or (lambda run: None)
        self._cancelled = threading.Event()
        self._cancel_running: set[Callable[[], object]] = set()

    def solve(self, problem: Any) -> SearchResult:
        """Search for one problem; works inside a notebook too.

        Raises:
            EngineDeadError, EngineClosedError: the engine ended. Failed requests are failed thoughts.
        """
        return run_anywhere(self.solve_async(problem))

    def solve_all(
        self,
        problems: Sequence[Any],
        *,
        concurrency: int = 1,
        on_result: Callable[[int, SearchResult], None] | None = None,
    ) -> list[SearchResult]:
        """Search for several problems, ``concurrency`` at a time; results in the order given.

        Args:
            on_result: called with (index, result) as each is ready.
        """
        return run_anywhere(self._solve_all(problems, concurrency, on_result))

    async def _solve_all(
        self, problems: Sequence[Any], concurrency: int, on_result: Callable[[int, SearchResult], None] | None
    ) -> list[SearchResult]:
        room = asyncio.Semaphore(concurrency)

        async def solve_one(index: int, problem: Any) -> SearchResult:
            async with room:
                result = await self.solve_async(problem)
            if on_result is not None:
                on_result(index, result)
            return result

        return await gather(*(solve_one(index, problem) for index, problem in enumerate(problems)))

    def cancel(self) -> None:
        """End every running search; each gives what it has, ``ended`` is ``cancelled``. Any thread may call it."""
        self._cancelled.set()
        for cancel in tuple(self._cancel_running):
            cancel()

    async def solve_async(self, problem: Any) -> SearchResult:
        """``solve`` for asyncio."""
        task = self.task
        tree = ThoughtTree(task.name, task.describe(problem), f"{self.search}, {self.generate}, {self.evaluators}")
        tree.root.state = task.root_state(problem) or ""
        run = SearchRun(
            Asker(self.engine), task, problem, self.generate, self.evaluators,
            derive_seed(self.seed, tree.problem), self.budget, self.barrier, self.on_change, tree,
        )  # fmt: skip
        searching = asyncio.ensure_future(self.search.search(run))
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            loop.call_soon_threadsafe(searching.cancel)

        self._cancel_running.add(cancel)
        try:
            if not self._cancelled.is_set():
                await asyncio.wait_for(searching, self.budget.seconds)
        except (asyncio.TimeoutError, TimeoutError):
            run.ended = "seconds"
        except asyncio.CancelledError:
            if not self._cancelled.is_set():
                raise
        finally:
            self._cancel_running.discard(cancel)
            await run.end(searching)
        if self._cancelled.is_set():
            run.ended = "cancelled"
        return SearchResult.of(run)
