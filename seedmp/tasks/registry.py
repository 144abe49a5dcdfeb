"""The tasks that come with the library, by name."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from seedmp.errors import ConfigError
from seedmp.search.task import Task
from seedmp.tasks.blocksworld import Blocksworld, BlocksworldChat
from seedmp.tasks.creative_writing import CreativeWriting, CreativeWritingChat
from seedmp.tasks.game24 import Game24, Game24Chat
from seedmp.tasks.gsm8k import Gsm8k, Gsm8kChat


class Dialects(NamedTuple):
    """One task in the words of the bundled pair, and of chat models."""

    text: type[Task[Any]]
    chat: type[Task[Any]]


TASKS: dict[str, Dialects] = {
    "blocksworld": Dialects(Blocksworld, BlocksworldChat),
    "creative_writing": Dialects(CreativeWriting, CreativeWritingChat),
    "game24": Dialects(Game24, Game24Chat),
    "gsm8k": Dialects(Gsm8k, Gsm8kChat),
}


def get_task(name: str, *, chat: bool, **options: Any) -> Task[Any]:
    """A task by name; ``creative-writing`` will do for ``creative_writing``.

    Args:
        name: one of ``TASKS``.
        chat: for a model with a chat template; else for the bundled pair.
        options: of the task, ``depth=6`` say.

    Raises:
        ConfigError: no such task, it has no such option, or the option's value is wrong.
    """
    dialects = TASKS.get(name.lower().replace("-", "_"))
    if dialects is None:
        raise ConfigError(f"there is no task {name!r}; known are {', '.join(TASKS)}")
    task = dialects.chat if chat else dialects.text
    known = [option for option in inspect.signature(task).parameters]
    for option in options:
        if option not in known:
            raise ConfigError(f"task {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
    return task(**options)
