"""Values that somebody might give for anything: of every type, at every limit, from Python, numpy and torch."""

from __future__ import annotations

import enum
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seedmp.sampling import SamplingParams

INTS = (
    -(2**70), -(2**63), -1000, -1, 0, 1, 2, 3, 5, 7, 64, 255, 4095, 4096, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1,
    2**63, 2**64, 2**70, 10**400, 10**5000,
)  # fmt: skip
FLOATS = (
    0.0, -0.0, 0.1, 0.5, 0.9, 1.0, 1.5, 2.0, 5e-324, 1e-300, 1e-45, 1e-38, 1e-8, 1e-5, 1e5, 1e30, 1e38, 1e300, -1.0,
    -1e-300, float("nan"), float("inf"), -float("inf"),
)  # fmt: skip
TEXTS = (
    "", " ", "a", "\n", "\0", "ab", "é", "\U0001f600", "\ud800", "a\udfffb", "\u202e", "[0-9]+", " [0-9]", "(", "(?=a)",
    "a{3,1}", "[", "\\", "(a|b)*c", ".*", "x" * 300, "x" * 20_000, "None", "nan", "0", "..", "/", "cpu", "fcfs",
    "no:such", "Input: 4 7 8 10\nStep:", "<|endoftext|>", "\ufeff", "e\u0301",
)  # fmt: skip
NUMPY_TYPES = (
    "bool", "int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "complex64", "str", "object",
)  # fmt: skip
TORCH_TYPES = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Word(str):
    """A str of another class."""


class Number(enum.IntEnum):
    """An int of another class."""

    SEVEN = 7


class Unshowable:
    """Nothing can be said about it."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@dataclass(frozen=True)
class MoreParams(SamplingParams):
    """Parameters of a class that no message has."""

    more: int = 0


class OddValues:
    """Draws values; the same seed draws the same."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def any(self) -> Any:
        """A value of any kind."""
        kinds: tuple[Callable[[], Any], ...] = (
            self.scalar, self.scalar, self.numpy_scalar, self.torch_scalar, self.array, self.several, self.several,
            self.thing,
        )  # fmt: skip
        return self.chance.choice(kinds)()

    def scalar(self) -> Any:
        """Of Python's own."""
        choice = self.chance.choice
        return choice((choice(INTS), choice(FLOATS), choice(TEXTS), choice((True, False)), None, choice(INTS)))

    def numpy_scalar(self) -> Any:
        """Or what comes of it when numpy cannot hold the value."""
        value = self.chance.choice((*INTS[:-2], *FLOATS, *TEXTS[:8], True))
        try:
            with np.errstate(all="ignore"):
                return np.dtype(self.chance.choice(NUMPY_TYPES)).type(value)
        except (OverflowError, ValueError, TypeError):
            return np.int64(self.chance.randrange(-2, 5000))

    def torch_scalar(self) -> Any:
        """A tensor without dimensions; one kind has no data."""
        device = "meta" if self.chance.random() < 0.05 else "cpu"
        return torch.tensor(self.chance.randrange(-2, 300), device=device).to(self.chance.choice(TORCH_TYPES))

    def array(self) -> Any:
        """An array or a tensor of some dimensions."""
        shape = [self.chance.randrange(4) for _ in range(self.chance.randrange(1, 4))]
        values = np.array([self.chance.randrange(-1, 5000) for _ in range(int(np.prod(shape)))]).reshape(shape)
        if self.chance.random() < 0.5:
            return torch.from_numpy(values).to(self.chance.choice(TORCH_TYPES))
        if self.chance.random() < 0.2:
            return np.array([" a", "b"])
        return values.astype(self.chance.choice(NUMPY_TYPES[:9]))

    def several(self) -> Any:
        """A list or the like, of one kind or mixed, perhaps nested."""
        drawn = self.chance.choice(
            (self.scalar, self.numpy_scalar, self.torch_scalar, self.any, self.token_id, self.token_id)
        )
        items = [drawn() for _ in range(self.chance.choice((0, 1, 1, 2, 3, 5)))]
        makers: tuple[Callable[[list[Any]], Any], ...] = (
            list, list, tuple, iter, lambda items: (item for item in items), lambda items: [items, items],
            lambda items: dict(enumerate(items)), _array_of_objects,
        )  # fmt: skip
        return self.chance.choice(makers)(items)

    def token_id(self) -> int:
        """Of a vocabulary of 4,096, most often."""
        return self.chance.choice((0, 1, 5, 30, 300, 4095, 4096, -1))

    def thing(self) -> Any:
        """An object of some class."""
        loop: list[Any] = []
        loop.append(loop)
        things: tuple[Any, ...] = (
            object(), Unshowable(), Word("\n"), Number.SEVEN, Decimal("0.5"), Fraction(1, 2), 1j, Path("no/such"),
            b"ab", bytearray(b"ab"), memoryview(b"ab"), range(3), {5}, frozenset((5, "x")), {}, {"n": 1}, {1: loop},
            loop, int, len, lambda *_: None, itertools.repeat(5), SamplingParams, SamplingParams(max_tokens=2),
            MoreParams(max_tokens=2), MoreParams, Exception("x"), NotImplemented, ..., slice(3),
            [{"role": "user", "content": "\ud800"}], [{"role": 5}], [{}], [("role", "user")],
        )  # fmt: skip
        return self.chance.choice(things)


def _array_of_objects(items: list[Any]) -> np.ndarray:
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = item
    return array
