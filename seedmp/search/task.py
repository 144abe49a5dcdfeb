"""What a task must say so that a tree of thoughts can be searched for it; copy a task and change it.

``docs/search.md`` has a complete example. A task knows prompts, formats and what a thought means. It knows no
engines and no searches, and of the tree only the path of thoughts that it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from seedmp.errors import ConfigError
from seedmp.search.thought_tree import Thought

Problem = TypeVar("Problem")


@dataclass(frozen=True)
class Chat:
    """A prompt for a chat model, rendered by its own chat template.

    Args:
        messages: (role, content) pairs, the last one the user's.
        answer_prefix: how the answer begins; the model goes on from there.
    """

    messages: tuple[tuple[str, str], ...]
    answer_prefix: str = ""


Prompt = str | Chat  # plain text is continued as it is


@dataclass(frozen=True)
class Ask:
    """One question to the model.

    Args:
        prompt: text to continue, or a conversation.
        max_tokens: of the answer.
        stop: strings that end it; not part of it.
        regex: the answer must match it; None leaves it free.
        choices: the answer must be one of these; empty leaves it free.
    """

    prompt: Prompt
    max_tokens: int
    stop: tuple[str, ...] = ()
    regex: str | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parsed:
    """What a text means.

    Args:
        text: the thought, cut where it ends.
        state: the situation after the thought. Thoughts with equal states are merged. None: never merged.
        is_final: whether it claims to solve the problem.
        label: a few words that say what is new in it, for pictures. Empty: the text's beginning is shown.
    """

    text: str
    state: str | None = None
    is_final: bool = False
    label: str = ""


@dataclass(frozen=True)
class Defaults:
    """How a task is searched unless the user says otherwise.

    Args:
        generate: ``sample`` (one thought a text) or ``propose`` (a thought a line of one text).
        num_thoughts: thoughts asked for of each path.
        temperature: of thoughts.
        evaluate: ``value``, ``vote``, ``score``, ``self-consistency`` or ``none``. A tuple names one for each level;
            its last entry holds for all deeper levels.
        num_values: how often a value or a vote is asked for.
        beam: thoughts of a level that go on (breadth first).
        stop_at_solution: whether the first claim ends a search, or all are compared.
    """

    generate: str = "sample"
    num_thoughts: int = 3
    temperature: float = 0.8
    evaluate: str | tuple[str, ...] = "score"
    num_values: int = 1
    beam: int = 3
    stop_at_solution: bool = True

    def evaluate_at(self, depth: int) -> str:
        """How the thoughts of a level (1 for the root's children) are valued."""
        if isinstance(self.evaluate, str):
            return self.evaluate
        return self.evaluate[min(depth, len(self.evaluate)) - 1]


class Task(ABC, Generic[Problem]):
    """Base class of tasks. ``path`` always has the thoughts from the root's child down to the one that is meant.

    Every task needs ``describe``, ``thought_ask`` and ``read_thought``, and should have ``is_correct``. The other
    methods are needed by some searches only: ``load`` by ``seedmp solve``, ``value_ask`` by the evaluators ``value``
    and ``score``, ``vote_ask`` by ``vote``, ``propose_ask`` by the generator ``propose``.

    Attributes:
        name: as on the command line.
        depth: levels of the tree (T in the papers).
        defaults: how it is searched.
        value_labels: the answers that an evaluation may give, each with its value. Higher is better.
    """

    name: ClassVar[str]
    depth: int
    defaults: Defaults = Defaults()
    value_labels: Mapping[str, float] = {}

    def load(self, path: Path | None = None, limit: int | None = None) -> Sequence[Problem]:
        """Problems of a file in the published format; None takes a few that are shipped.

        Raises:
            ConfigError: the file cannot be read or has another format.
        """
        raise ConfigError(f"task {self.name!r} has no load: give its problems to solve()")

    @abstractmethod
    def describe(self, problem: Problem) -> str:
        """The problem in a line or two, for people."""

    def root_state(self, problem: Problem) -> str | None:
        """The state to begin with, if thoughts may come back to it; see ``Parsed.state``."""
        return None

    # --- thoughts -------------------------------------------------------------------------------

    @abstractmethod
    def thought_ask(self, problem: Problem, path: Sequence[Thought]) -> Ask:
        """What makes the model write the next thought of a path."""

    def propose_ask(self, problem: Problem, path: Sequence[Thought], num_thoughts: int) -> Ask:
        """What makes the model write several next thoughts of a path in one text."""
        raise ConfigError(f"task {self.name!r} has no propose_ask: generate its thoughts with Sample")

    def split_proposals(self, text: str) -> list[str]:
        """The texts for ``read_thought`` in an answer to ``propose_ask``; by default its lines."""
        return [line for line in text.split("\n") if line.strip()]

    @abstractmethod
    def read_thought(self, problem: Problem, path: Sequence[Thought], text: str) -> Parsed | None:
        """What a text means as the next thought of a path; None when it is not in the format.

        It must look only at what the model wrote. ``is_correct`` judges whether that is true.
        """

    # --- values ---------------------------------------------------------------------------------

    def value_ask(self, problem: Problem, path: Sequence[Thought]) -> Ask:
        """What makes the model answer with one of ``value_labels`` about the path's last thought."""
        raise ConfigError(f"task {self.name!r} has no value_ask: choose another evaluator than Value and Score")

    def read_value(self, text: str) -> float | None:
        """The number that an answer to ``value_ask`` stands for; None when there is none.

        By default the label that the answer begins with, longest labels first.
        """
        for label in sorted(self.value_labels, key=len, reverse=True):
            if text.strip().lower().startswith(label.strip().lower()):
                return self.value_labels[label]
        return None

    def path_value(self, parent_value: float | None, value: float) -> float:
        """Value of a path, from its parent's value (None at the top) and its last thought's own value.

        By default the last thought's value alone.
        """
        return value

    def vote_ask(self, problem: Problem, paths: Sequence[Sequence[Thought]]) -> Ask:
        """What makes the model name the best of several paths."""
        raise ConfigError(f"task {self.name!r} has no vote_ask: choose another evaluator than Vote")

    def read_vote(self, text: str, num_choices: int) -> int | None:
        """Index of the path that an answer to ``vote_ask`` names; None when it names none."""
        raise ConfigError(f"task {self.name!r} has no read_vote: choose another evaluator than Vote")

    # --- outcome --------------------------------------------------------------------------------

    def answer(self, problem: Problem, path: Sequence[Thought]) -> str:
        """The path's final answer, as text. Self-consistency counts equal answers."""
        return path[-1].text if path else ""

    def is_correct(self, problem: Problem, path: Sequence[Thought]) -> bool | None:
        """Whether a path truly solves the problem. None (the default) when that is unknown. No search uses it."""
        return None

    def score(self, problem: Problem, path: Sequence[Thought]) -> Mapping[str, Any]:
        """More figures about a path, for reports."""
        return {}


def check_task(task: Task[Any], needs: Sequence[str], user: object) -> None:
    """Refuse a task without what a search needs.

    Args:
        needs: methods that the task must override, and attributes that must not be empty.
        user: who needs them, for the message.

    Raises:
        ConfigError: the task lacks one.
    """
    for name in needs:
        default = getattr(Task, name)
        if getattr(type(task), name) is default if callable(default) else not getattr(task, name):
            raise ConfigError(f"task {task.name!r} has no {name}, which {user} needs")
