"""Who is told when an engine serves and when it closes: how a profiler gets at engines that others open.

The engine knows this list and nothing of those who are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from seedmp.config import EngineConfig


class ObservedEngine(Protocol):
    """What an observer may ask an engine for."""

    config: EngineConfig
    folder: Path

    def stats(self) -> dict[str, float]: ...


# Called with an engine that has become ready; what it returns is called once, before that engine closes.
Observer = Callable[[ObservedEngine], Callable[[], object]]

OBSERVERS: list[Observer] = []


@contextmanager
def observing(observer: Observer) -> Iterator[None]:
    """Tell ``observer`` of every engine of this process that becomes ready inside."""
    OBSERVERS.append(observer)
    try:
        yield
    finally:
        OBSERVERS.remove(observer)
