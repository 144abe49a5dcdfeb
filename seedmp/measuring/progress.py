"""How far a run of measurements is."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar


class Progress(Protocol):
    """Where the run is."""

    def step(self, text: str) -> None: ...

    def advance(self, amount: float = 1.0) -> None: ...

    def extend(self, amount: float) -> None: ...


class Screen:
    """A bar with the time left; nothing where there is no terminal."""

    def __init__(self, total: int) -> None:
        self.title = ""
        self.console = Console(stderr=True)
        self.bar = Bar(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(), console=self.console, transient=True,
            disable=not self.console.is_terminal,
        )  # fmt: skip
        self.task = self.bar.add_task("starting", total=total)

    def step(self, text: str) -> None:
        """What runs now."""
        self.bar.update(self.task, description=f"{self.title} {text}")

    def advance(self, amount: float = 1.0) -> None:
        """Something is done."""
        self.bar.advance(self.task, amount)

    def extend(self, amount: float) -> None:
        """There is more to do than was planned."""
        self.bar.update(self.task, total=(self.bar.tasks[0].total or 0) + amount)

    def __enter__(self) -> Screen:
        self.bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bar.stop()
