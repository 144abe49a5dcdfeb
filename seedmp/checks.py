"""Checks of single values; every message names the value and what is allowed."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from seedmp.errors import ConfigError, SeedmpError

_LARGEST = sys.float_info.max


def check_whole(
    name: str, value: Any, low: int, high: int | None = None, *, error: type[SeedmpError] = ConfigError
) -> int:
    """``value``, if it is a whole number from ``low`` to ``high``; ``high=None`` sets no upper limit.

    Args:
        name: of the setting, for the message.
        error: class that is raised.

    Raises:
        ConfigError (or ``error``): it is not; a bool is no number.
    """
    if isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high):
        return value
    allowed = f">= {low}" if high is None else f"from {low} to {high}"
    raise error(f"{name}={value!r}: must be a whole number {allowed}")


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float | None = None,
    *,
    above: bool = False,
    error: type[SeedmpError] = ConfigError,
) -> float:
    """``value``, if it is a finite number from ``low`` to ``high``; ``high=None`` sets no upper limit.

    Args:
        name: of the setting, for the message.
        above: ``low`` itself is refused.
        error: class that is raised.

    Raises:
        ConfigError (or ``error``): it is not; a bool is no number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
    if is_number and (value > low if above else value >= low) and (high is None or value <= high):
        return value  # type: ignore[no-any-return]
    if high is None:
        allowed = f"{'>' if above else '>='} {low:g}"
    else:
        allowed = f"{'above' if above else 'from'} {low:g} to {high:g}"
    raise error(f"{name}={value!r}: must be a finite number {allowed}")


def check_one_of(name: str, value: Any, allowed: Iterable[Any], *, error: type[SeedmpError] = ConfigError) -> Any:
    """``value``, if it is one of ``allowed``.

    Raises:
        ConfigError (or ``error``): it is not; the message lists all that are.
    """
    allowed = tuple(allowed)
    if value in allowed:
        return value
    raise error(f"{name}={value!r}: must be one of {', '.join(map(str, allowed))}")
