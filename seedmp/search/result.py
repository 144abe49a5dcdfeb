"""What a search came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedmp import metrics
from seedmp.search import page, picture
from seedmp.search.run import SearchRun
from seedmp.search.strategies import rank
from seedmp.search.thought_tree import Status, Thought, ThoughtTree


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

    @classmethod
    def of(cls, run: SearchRun) -> SearchResult:
        """What a search that has ended came to."""
        task = run.task
        solutions = run.solutions
        alive = [t for t in run.tree if t.status in (Status.CHOSEN, Status.PRUNED, Status.OPEN) and t.depth]
        deepest = max((thought.depth for thought in alive), default=0)
        last = rank([thought for thought in alive if thought.depth == deepest])
        best = next(iter(solutions or last), None)
        path = run.tree.path(best) if best is not None else []
        judged = [task.is_correct(run.problem, run.tree.path(solution)) for solution in solutions]
        return cls(
            run.tree, best, tuple(solutions), task.answer(run.problem, path) if path else "",
            task.is_correct(run.problem, path) if path else False,
            None if solutions and all(is_right is None for is_right in judged) else any(judged),
            dict(task.score(run.problem, path)) if path else {},
            run.ended or ("solution" if solutions else "complete"), run.num_failed_values, run.elapsed_s,
        )  # fmt: skip

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
        page.save_html(self.tree, path, title=self.tree.task, summary=self.summary(), answer_id=self._best_id)

    def save_svg(self, path: str | Path) -> None:
        """Write a picture of the tree."""
        picture.save_svg(self.tree, path, answer_id=self._best_id)

    @property
    def _best_id(self) -> str | None:
        return None if self.best is None else self.best.thought_id
