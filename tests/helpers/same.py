"""Equality of records that hold arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np


def same(left: Any, right: Any) -> bool:
    """Equality that looks into arrays."""
    if isinstance(left, np.ndarray):
        kinds = left.dtype == right.dtype and left.shape == right.shape
        return bool(kinds and left.tobytes() == right.tobytes())
    if dataclasses.is_dataclass(left) and not isinstance(left, type):
        return type(left) is type(right) and all(
            same(getattr(left, f.name), getattr(right, f.name)) for f in dataclasses.fields(left)
        )
    if isinstance(left, tuple | list):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    return type(left) is type(right) and bool(left == right)
