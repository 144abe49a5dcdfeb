"""How the children of a thought are made: one text each, or the lines of one text."""

from __future__ import annotations

from dataclasses import dataclass

from seedmp.errors import ConfigError


@dataclass(frozen=True)
class Sample:
    """Each child is a text of its own, sampled from the same prompt (ToT's i.i.d. thoughts).

    Args:
        n: children of a thought.
        temperature: of the texts; at 0 there is one child.

    Raises:
        ConfigError: n is below 1.
    """

    n: int
    temperature: float = 0.8

    def __post_init__(self) -> None:
        _check(self.n, self.temperature)


@dataclass(frozen=True)
class Propose:
    """The children are the lines of one text (ToT's proposals). Fewer of them are equal, and the prompt is read once.

    Args:
        n: children of a thought at most. Further lines are ignored.
        temperature: of the text.
    """

    n: int
    temperature: float = 0.7

    def __post_init__(self) -> None:
        _check(self.n, self.temperature)


Generator = Sample | Propose


def _check(n: int, temperature: float) -> None:
    if not isinstance(n, int) or n < 1:
        raise ConfigError(f"n={n!r}: a thought needs at least one child")
    if not (isinstance(temperature, int | float) and 0 <= temperature < float("inf")):
        raise ConfigError(f"temperature={temperature!r}: must be a finite number >= 0")
