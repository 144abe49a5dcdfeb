"""Search a tree of thoughts: thoughts are written and valued by an engine, a strategy decides what goes on.

A thought is valued as soon as it exists, while its siblings are still being written, so that the
verifier's queue does not run dry between the two; ``barrier=True`` waits, for comparison.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from seedmp import metrics
from seedmp.engine import Engine
from seedmp.errors import ConfigError, RequestError
from seedmp.request import RequestHandle
from seedmp.search.asking import Asker, derive_seed, finished
from seedmp.search.evaluators import (
    AnyEvaluator,
    NoValue,
    Question,
    Score,
    SelfConsistency,
    Value,
    Valued,
    Vote,
    ids_of,
)
from seedmp.search.generators import Generator, Propose, Sample
from seedmp.search.strategies import BFS, Strategy, rank
from seedmp.search.task import Ask, Task
from seedmp.search.thought_tree import Status, Thought, ThoughtTree

T = TypeVar("T")
EVALUATORS: dict[str, Callable[[int], AnyEvaluator]] = {
    "value": lambda n: Value(n),
    "score": lambda n: Score(),
    "vote": lambda n: Vote(n),
    "self-consistency": lambda n: SelfConsistency(),
    "none": lambda n: NoValue(),
}


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
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and value > 0):
                raise ConfigError(f"{name}={value!r}: must be above 0, or None for no limit")


@dataclass(frozen=True)
class SearchResult:
    """Outcome of one search.

    Args:
        tree: all thoughts.
        best: the solution of the highest value; without solutions the best thought of the deepest level.
        solutions: thoughts that claim to solve the problem, best first.
        answer: what the best path says.
        is_correct: whether the best path truly solves the problem; None when the task cannot tell.
        any_correct: whether one of the solutions does.
        score: more figures of the task about the best path.
        ended: ``solution``, ``complete``, ``nodes``, ``tokens``, ``seconds`` or ``cancelled``.
        num_failed_values: evaluations that could not be read.
        wall_s: of the search.
        tokens_per_s: generated and scored tokens by wall time.
    """

    tree: ThoughtTree
    best: Thought | None
    solutions: tuple[Thought, ...]
    answer: str
    is_correct: bool | None
    any_correct: bool | None
    score: dict[str, Any]
    ended: str
    num_failed_values: int
    wall_s: float

    @property
    def tokens_per_s(self) -> float:
        """Generated and scored tokens ÷ wall time."""
        return metrics.tokens_per_s(self.tree.num_tokens, self.wall_s)

    @property
    def path(self) -> list[Thought]:
        """The thoughts of the best path."""
        return self.tree.path(self.best) if self.best is not None else []

    def counts(self) -> dict[str, int]:
        """Thoughts, by what became of them, and tokens."""
        by_status = {status.value: self.tree.count(status) for status in Status}
        by_status[Status.CHOSEN.value] -= 1  # the root
        failed = {"failed_values": self.num_failed_values, "tokens": self.tree.num_tokens}
        return {"thoughts": len(self.tree), **{name: num for name, num in by_status.items() if num}, **failed}

    def summary(self) -> dict[str, str]:
        """The outcome in words, for people."""
        correct = {True: "yes", False: "no", None: "nobody can tell"}[self.is_correct]
        counts = ", ".join(f"{num} {name.replace('_', ' ')}" for name, num in self.counts().items())
        return {
            "ended": self.ended, "answer": self.answer, "correct": correct, "counts": counts,
            "time": f"{self.wall_s:.1f} s, {self.tokens_per_s:.0f} tokens/s",
        }  # fmt: skip

    def save(self, path: str | Path, *, timings: bool = True) -> None:
        """Write the tree as JSON; ``ThoughtTree.load`` reads it."""
        self.tree.save(path, timings=timings)

    def save_html(self, path: str | Path) -> None:
        """Write one page in which the tree can be folded and the search replayed."""
        from seedmp.search.page import save_html

        save_html(self.tree, path, title=self.tree.task, summary=self.summary(), answer_id=self._best_id)

    def save_svg(self, path: str | Path) -> None:
        """Write a picture of the tree."""
        from seedmp.search.picture import save_svg

        save_svg(self.tree, path, answer_id=self._best_id)

    @property
    def _best_id(self) -> str | None:
        return None if self.best is None else self.best.thought_id


@dataclass
class SearchRun:
    """One running search: what a strategy expands, and the book-keeping around it.

    Runs in: one event loop, so nothing here needs a lock.
    """

    asker: Asker
    task: Task[Any]
    problem: Any
    generator: Generator
    evaluators: Sequence[AnyEvaluator]
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
        grown = await gather(*(self._grow(parent, num) for parent, num in jobs))
        children = [child for family in grown for child in family]
        if self.barrier:
            await gather(*(self._value(child) for child in children if child.status is Status.RUNNING))
        self._merge(children)
        alive = [child for child in children if child.status is Status.RUNNING]
        for depth in sorted({child.depth for child in alive}):
            await self._compare([child for child in alive if child.depth == depth])
        for child in alive:
            child.status = Status.FINAL if child.is_final else Status.OPEN
        self.on_change(self)
        return alive

    # --- writing --------------------------------------------------------------------------------

    async def _grow(self, parent: Thought, num: int) -> list[Thought]:
        """Children of one thought; each is valued as soon as it is there, unless all wait for all."""
        path = self.tree.path(parent)
        temperature = self.generator.temperature
        seed = derive_seed(self.seed, "thought", parent.thought_id)
        if isinstance(self.generator, Propose):
            return await self._propose(parent, path, num, seed)
        ask = self.task.thought_ask(self.problem, path)
        num = num if temperature > 0 else 1
        children = [self.tree.add(parent, index, self.elapsed_s) for index in range(num)]
        self.on_change(self)
        try:
            handles = self.asker.start(ask, num, temperature, seed, ids_of(path))
        except RequestError as error:
            for child in children:
                self._fail(child, str(error))
            return children
        try:
            await gather(*(self._finish(*job, path, ask) for job in zip(children, handles, strict=True)))
        except BaseException:
            for handle in handles:  # a job that was cancelled before it began did not do it
                handle.cancel()
            raise
        return children

    async def _finish(self, child: Thought, handle: RequestHandle, path: Sequence[Thought], ask: Ask) -> None:
        try:
            output = await finished(handle)
        except RequestError as error:
            self._fail(child, str(error))
            return
        child.finished_s, child.num_tokens = self.elapsed_s, len(output.token_ids)
        self._read(child, path, output.text)
        if child.text == output.text:
            self.asker.remember(child.thought_id, ask.prompt, output)
        self.on_change(self)
        if child.status is Status.RUNNING and not self.barrier:
            await self._value(child)

    async def _propose(self, parent: Thought, path: Sequence[Thought], num: int, seed: int) -> list[Thought]:
        started_s = self.elapsed_s
        ask = self.task.propose_ask(self.problem, path, num)
        try:
            (output,) = await self.asker.answers(ask, 1, self.generator.temperature, seed, ids_of(path))
        except RequestError as error:
            child = self.tree.add(parent, 0, started_s)
            self._fail(child, str(error))
            return [child]
        texts = self.task.split_proposals(output.text)[:num] or [output.text]
        children = [self.tree.add(parent, index, started_s) for index in range(len(texts))]
        for child, text in zip(children, texts, strict=True):
            child.finished_s = self.elapsed_s
            child.num_tokens = len(output.token_ids) if child is children[0] else 0
            self._read(child, path, text)
        self.on_change(self)
        if not self.barrier:
            await gather(*(self._value(child) for child in children if child.status is Status.RUNNING))
        return children

    def _read(self, child: Thought, path: Sequence[Thought], text: str) -> None:
        parsed = self.task.read_thought(self.problem, path, text)
        if parsed is None:
            child.text = text
            self._fail(child, "not in the task's format")
            return
        child.text, child.label, child.is_final = parsed.text, parsed.label, parsed.is_final
        child.state = parsed.state if parsed.state is not None else ""

    def _fail(self, child: Thought, why: str) -> None:
        child.status, child.note, child.finished_s = Status.FAILED, why, self.elapsed_s
        self.on_change(self)

    # --- valuing --------------------------------------------------------------------------------

    def _evaluator(self, depth: int) -> AnyEvaluator:
        return self.evaluators[min(depth, len(self.evaluators)) - 1]

    async def _value(self, child: Thought) -> None:
        """Value one thought by itself; what was asked already, as about an equal state, is not asked again."""
        evaluator = self._evaluator(child.depth)
        if isinstance(evaluator, Vote | SelfConsistency):
            return
        path = self.tree.path(child)
        key = child.state or child.thought_id
        if isinstance(evaluator, Value | Score):
            key = str(self.task.value_ask(self.problem, path))
        self._asked[child.thought_id] = key
        task = self.values.get(key)
        if task is None:
            question = Question(self.asker, self.task, self.problem, derive_seed(self.seed, "value", key))
            task = self.values[key] = asyncio.ensure_future(self._answer(evaluator.value(question, path)))
        valued = await task
        if valued.value is not None:
            parent_value = path[-2].value if len(path) > 1 else None
            child.value = self.task.path_value(parent_value, valued.value)
        child.valued_s = self.elapsed_s
        self.on_change(self)

    async def _answer(self, question: Awaitable[Valued]) -> Valued:
        """An evaluation; one that the engine refuses is one that could not be read."""
        try:
            return await question
        except RequestError:
            return Valued(None, 0, 1)

    async def _compare(self, children: Sequence[Thought]) -> None:
        """Value what must be compared with the rest of its level, or with all that claims to be a solution."""
        evaluator = self._evaluator(children[0].depth)
        if not isinstance(evaluator, Vote | SelfConsistency):
            return
        if isinstance(evaluator, SelfConsistency):
            children = [*self.solutions, *children]
        seed = derive_seed(self.seed, "vote", *(child.thought_id for child in children))
        question = Question(self.asker, self.task, self.problem, seed)
        paths = [self.tree.path(child) for child in children]
        try:
            values = await evaluator.values(question, paths)
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


class TreeOfThoughts:
    """Solves problems of a task by searching trees of thoughts.

    Args:
        engine: writes and values thoughts.
        task: prompts and formats; see ``seedmp.search.task``.
        search: ``BFS``, ``DFS``, ``BestFirst``, ``MCTS`` or a strategy of your own; None is breadth first
            with the task's beam.
        generate: ``Sample`` or ``Propose``; None is what the task says.
        evaluate: an evaluator, or one for each level; None is what the task says.
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
        evaluate: AnyEvaluator | Sequence[AnyEvaluator] | None = None,
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
            kind = Propose if defaults.generate == "propose" else Sample
            generate = kind(defaults.num_thoughts, defaults.temperature)
        self.generate: Generator = generate
        if evaluate is None:
            names = (defaults.evaluate,) if isinstance(defaults.evaluate, str) else tuple(defaults.evaluate)
            evaluate = [EVALUATORS[name](defaults.num_values) for name in names]
        self.evaluators = tuple(evaluate) if isinstance(evaluate, Sequence) else (evaluate,)
        self._check()
        self.seed = seed
        self.budget = budget or Budget()
        self.barrier = barrier
        self.on_change = on_change or (lambda run: None)
        self._cancelled = threading.Event()
        self._cancel_running: set[Callable[[], object]] = set()

    def _check(self) -> None:
        needs: dict[str, object] = {}
        if isinstance(self.generate, Propose):
            needs["propose_ask"] = self.generate
        for evaluator in self.evaluators:
            if isinstance(evaluator, Value | Score):
                needs["value_ask"] = evaluator
            elif isinstance(evaluator, Vote):
                needs["vote_ask"] = evaluator
        for method, user in needs.items():
            if getattr(type(self.task), method) is getattr(Task, method):
                raise ConfigError(f"task {self.task.name!r} has no {method}, which {user} needs")
        if any(isinstance(evaluator, Score) for evaluator in self.evaluators) and not self.task.value_labels:
            raise ConfigError(f"task {self.task.name!r} has no value_labels, which Score needs")

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
            await _end(run, searching)
        if self._cancelled.is_set():
            run.ended = "cancelled"
        return self._result(run)

    def _result(self, run: SearchRun) -> SearchResult:
        solutions = run.solutions
        alive = [t for t in run.tree if t.status in (Status.CHOSEN, Status.PRUNED, Status.OPEN) and t.depth]
        deepest = max((thought.depth for thought in alive), default=0)
        last = rank([thought for thought in alive if thought.depth == deepest])
        best = next(iter(solutions or last), None)
        path = run.tree.path(best) if best is not None else []
        judged = [self.task.is_correct(run.problem, run.tree.path(solution)) for solution in solutions]
        return SearchResult(
            run.tree, best, tuple(solutions), self.task.answer(run.problem, path) if path else "",
            self.task.is_correct(run.problem, path) if path else False,
            None if solutions and all(is_right is None for is_right in judged) else any(judged),
            dict(self.task.score(run.problem, path)) if path else {},
            run.ended or ("solution" if solutions else "complete"), run.num_failed_values, run.elapsed_s,
        )  # fmt: skip


async def _end(run: SearchRun, searching: asyncio.Future[None]) -> None:
    """Wait until nothing of a search runs any more; what was not ready is cancelled."""
    running: list[asyncio.Future[Any]] = [searching, *run.values.values()]
    for job in running:
        job.cancel()
    await asyncio.wait(running)
    for thought in run.tree.thoughts.values():
        if thought.status is Status.RUNNING:
            thought.status = Status.CANCELLED


async def gather(*jobs: Awaitable[T]) -> list[T]:
    """Wait for all; when one fails the others are cancelled before its error goes on."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def run_anywhere(job: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in a thread of its own when this one has a running event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(job)
    with ThreadPoolExecutor(1, "seedmp-search") as executor:
        return executor.submit(asyncio.run, job).result()
