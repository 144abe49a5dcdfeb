"""How the children of a thought are made: one text each, or the lines of one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from seedmp.checks import check_number, check_one_of, check_whole
from seedmp.errors import RequestError
from seedmp.request import RequestHandle
from seedmp.search.asking import Asker
from seedmp.search.task import Ask, Task, check_task
from seedmp.search.thought_tree import Thought, ThoughtTree, ids_of
from seedmp.search.waiting import finished, gather


class Growing(Protocol):
    """What a generator sees of a running search."""

    @property
    def asker(self) -> Asker: ...

    @property
    def task(self) -> Task[Any]: ...

    @property
    def problem(self) -> Any: ...

    @property
    def tree(self) -> ThoughtTree: ...

    @property
    def elapsed_s(self) -> float:
        """Since the search began."""
        ...

    def seed_of(self, parent: Thought) -> int:
        """Of the texts of a thought's children."""
        ...

    def add_child(self, parent: Thought, index: int, started_s: float | None = None) -> Thought:
        """A thought that is being written, since now or ``started_s``."""
        ...

    def changed(self) -> None:
        """Tell whoever watches."""
        ...

    def read(self, child: Thought, path: Sequence[Thought], text: str, num_tokens: int) -> None:
        """A child of ``path`` is written; ``num_tokens`` were generated for it."""
        ...

    def fail(self, child: Thought, why: str) -> None:
        """Nothing became of a child."""
        ...

    async def value_early(self, children: Sequence[Thought]) -> None:
        """Value what is written while others are still being written, unless all wait for all."""
        ...


@dataclass(frozen=True)
class Generator:
    """How the children of a thought are made; those of your own derive from it and override ``grow``.

    Args:
        n: children of a thought at most.
        temperature: of their texts.

    Attributes:
        needs: methods that the task must override.

    Raises:
        ConfigError: a value is out of range.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    n: int
    temperature: float

    def __post_init__(self) -> None:
        check_whole("n", self.n, 1)
        check_number("temperature", self.temperature, 0)

    def check(self, task: Task[Any]) -> None:
        """Look at the task before a search begins.

        Raises:
            ConfigError: it lacks what is needed.
        """
        check_task(task, self.needs, self)

    async def grow(self, run: Growing, parent: Thought, num: int) -> list[Thought]:
        """Write at most ``num`` (1 to ``n``) children of a thought; those of which nothing became are among them."""
        raise NotImplementedError(f"{type(self).__name__} has no grow")


@dataclass(frozen=True)
class Sample(Generator):
    """Each child is a text of its own, sampled from the same prompt (ToT's i.i.d. thoughts).

    Args:
        n: children of a thought.
        temperature: of the texts; at 0 there is one child.
    """

    temperature: float = 0.8

    async def grow(self, run: Growing, parent: Thought, num: int) -> list[Thought]:
        """Each child is valued as soon as it is there."""
        path = run.tree.path(parent)
        ask = run.task.thought_ask(run.problem, path)
        children = [run.add_child(parent, index) for index in range(num if self.temperature > 0 else 1)]
        run.changed()
        try:
            handles = run.asker.start(ask, len(children), self.temperature, run.seed_of(parent), ids_of(path))
        except RequestError as error:
            for child in children:
                run.fail(child, str(error))
            return children
        try:
            await gather(*(self._finish(run, *job, path, ask) for job in zip(children, handles, strict=True)))
        except BaseException:
            for handle in handles:  # a job that was cancelled before it began did not do it
                handle.cancel()
            raise
        return children

    async def _finish(
        self, run: Growing, child: Thought, handle: RequestHandle, path: Sequence[Thought], ask: Ask
    ) -> None:
        try:
            output = await finished(handle)
        except RequestError as error:
            run.fail(child, str(error))
            return
        run.read(child, path, output.text, len(output.token_ids))
        if child.text == output.text:
            run.asker.remember(child.thought_id, ask.prompt, output)
        run.changed()
        await run.value_early([child])


@dataclass(frozen=True)
class Propose(Generator):
    """The children are the lines of one text (ToT's proposals). Fewer of them are equal, and the prompt is read once.

    Args:
        n: children of a thought at most. Further lines are ignored.
        temperature: of the text.
    """

    needs = ("propose_ask",)
    temperature: float = 0.7

    async def grow(self, run: Growing, parent: Thought, num: int) -> list[Thought]:
        """All children are there at once; the first is booked with the tokens of the text."""
        path, started_s = run.tree.path(parent), run.elapsed_s
        ask = run.task.propose_ask(run.problem, path, num)
        try:
            (output,) = await run.asker.answers(ask, 1, self.temperature, run.seed_of(parent), ids_of(path))
        except RequestError as error:
            child = run.add_child(parent, 0, started_s)
            run.fail(child, str(error))
            return [child]
        texts = run.task.split_proposals(output.text)[:num] or [output.text]
        children = [run.add_child(parent, index, started_s) for index in range(len(texts))]
        for child, text in zip(children, texts, strict=True):
            run.read(child, path, text, len(output.token_ids) if child is children[0] else 0)
        run.changed()
        await run.value_early(children)
        return children


GENERATORS: dict[str, type[Generator]] = {"sample": Sample, "propose": Propose}


def make_generator(name: str, n: int, temperature: float) -> Generator:
    """A generator by its name.

    Raises:
        ConfigError: there is none of this name, or a value is out of range.
    """
    return GENERATORS[check_one_of("generate", name, GENERATORS)](n, temperature)
