"""Searches over trees of thoughts; the public names, loaded on first use.

The one package besides the root whose ``__init__`` has names: users import from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

_PUBLIC = {
    "BFS": "strategies",
    "DFS": "strategies",
    "MCTS": "strategies",
    "Ask": "task",
    "BestFirst": "strategies",
    "Budget": "run",
    "Chat": "task",
    "Defaults": "task",
    "Evaluator": "evaluators",
    "Generator": "generators",
    "NoValue": "evaluators",
    "Parsed": "task",
    "Propose": "generators",
    "RandomValue": "evaluators",
    "Sample": "generators",
    "Score": "evaluators",
    "SearchResult": "result",
    "SelfConsistency": "evaluators",
    "Status": "thought_tree",
    "Task": "task",
    "Thought": "thought_tree",
    "ThoughtTree": "thought_tree",
    "TreeOfThoughts": "tree_of_thoughts",
    "Value": "evaluators",
    "Vote": "evaluators",
}
__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from seedmp.search.evaluators import Evaluator as Evaluator
    from seedmp.search.evaluators import NoValue as NoValue
    from seedmp.search.evaluators import RandomValue as RandomValue
    from seedmp.search.evaluators import Score as Score
    from seedmp.search.evaluators import SelfConsistency as SelfConsistency
    from seedmp.search.evaluators import Value as Value
    from seedmp.search.evaluators import Vote as Vote
    from seedmp.search.generators import Generator as Generator
    from seedmp.search.generators import Propose as Propose
    from seedmp.search.generators import Sample as Sample
    from seedmp.search.result import SearchResult as SearchResult
    from seedmp.search.run import Budget as Budget
    from seedmp.search.strategies import BFS as BFS
    from seedmp.search.strategies import DFS as DFS
    from seedmp.search.strategies import MCTS as MCTS
    from seedmp.search.strategies import BestFirst as BestFirst
    from seedmp.search.task import Ask as Ask
    from seedmp.search.task import Chat as Chat
    from seedmp.search.task import Defaults as Defaults
    from seedmp.search.task import Parsed as Parsed
    from seedmp.search.task import Task as Task
    from seedmp.search.thought_tree import Status as Status
    from seedmp.search.thought_tree import Thought as Thought
    from seedmp.search.thought_tree import ThoughtTree as ThoughtTree
    from seedmp.search.tree_of_thoughts import TreeOfThoughts as TreeOfThoughts
else:

    def __getattr__(name: str) -> Any:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
