"""A small task for tests of searches: three numbers, two steps, in the bundled pair's words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from seedmp.search import Ask, Defaults, Parsed, Task, Thought

STEP = re.compile(r" \d+ [-+*/] \d+ = \d+ \(left: ([\d ]+)\)")

Numbers = tuple[int, ...]


class Sums(Task[Numbers]):
    """Correct when the last step says that 24 is left; good enough to test a search with."""

    name = "sums"
    defaults = Defaults(num_thoughts=4, temperature=1.0, evaluate="score", beam=2)
    value_labels: Mapping[str, float] = {" sure": 1.0, " likely": 1.0, " impossible": 0.0}

    def __init__(self, depth: int = 2, *, accept: str = ".*", max_tokens: int = 32) -> None:
        self.depth = depth
        self.accept = re.compile(accept)
        self.max_tokens = max_tokens

    def describe(self, problem: Numbers) -> str:
        return f"24 from {problem}"

    def written(self, problem: Numbers, path: Sequence[Thought]) -> str:
        return "\nStep:".join(["Input: " + " ".join(map(str, problem)), *(thought.text for thought in path)])

    def thought_ask(self, problem: Numbers, path: Sequence[Thought]) -> Ask:
        return Ask(self.written(problem, path) + "\nStep:", self.max_tokens, stop=("\n",))

    def propose_ask(self, problem: Numbers, path: Sequence[Thought], num_thoughts: int) -> Ask:
        return Ask(self.written(problem, path) + "\nStep:", 48)

    def read_thought(self, problem: Numbers, path: Sequence[Thought], text: str) -> Parsed | None:
        step = STEP.fullmatch(text)
        if step is None or self.accept.fullmatch(text) is None:
            return None
        return Parsed(text, step[1], is_final=step[1] == "24")

    def value_ask(self, problem: Numbers, path: Sequence[Thought]) -> Ask:
        return Ask(self.written(problem, path) + "\nJudge:", 4, choices=tuple(self.value_labels))

    def vote_ask(self, problem: Numbers, paths: Sequence[Sequence[Thought]]) -> Ask:
        return Ask("Best plan:", 4, choices=tuple(f" {number}" for number in range(1, len(paths) + 1)))

    def read_vote(self, text: str, num_choices: int) -> int | None:
        return int(text) - 1

    def is_correct(self, problem: Numbers, path: Sequence[Thought]) -> bool:
        return path[-1].state == "24"
