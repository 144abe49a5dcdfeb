"""Game of 24 documents: steps over whole numbers, judgements, and the answer composed from the steps.

::

    Input: 4 7 8 10
    Step: 8 / 4 = 2 (left: 2 7 10)
    Judge: likely
    Step: 10 + 2 = 12 (left: 7 12)
    Judge: impossible

Numbers are whole and >= 0, the greater one stands first, the numbers left are sorted. ``Judge``
stands after a step with probability 0.6: with one or two numbers left ``sure`` or ``impossible``, with
more ``likely`` or ``impossible``, always true. Of steps that lose only the arithmetic is trained. A
winning path ends with ``Answer: (10 - 4) * (8 / 2) = 24`` (probability 0.6) and ``Done``.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from recipes.pair.documents import CONNECTING, DECISION, GIVEN, PLAIN, RESULT, UNTRAINED, Document

GOAL = 24
Numbers = tuple[int, ...]  # sorted

KEEPING = 0.75  # steps after which 24 can still be made, where there is one
JUDGED = 0.6
ANSWERED = 0.6


@cache
def steps(numbers: Numbers) -> tuple[tuple[str, int, Numbers], ...]:
    """(step ``8 / 4``, its result, numbers left) of each step on two of the numbers."""
    found = {}
    for i, low in enumerate(numbers):
        for j in range(i + 1, len(numbers)):
            high = numbers[j]
            rest = numbers[:i] + numbers[i + 1 : j] + numbers[j + 1 :]
            results = {"+": high + low, "-": high - low, "*": high * low}
            if low and high % low == 0:
                results["/"] = high // low
            for sign, result in results.items():
                found[f"{high} {sign} {low}"] = (result, tuple(sorted((*rest, result))))
    return tuple((step, *outcome) for step, outcome in found.items())


@cache
def solvable(numbers: Numbers) -> bool:
    """Whether steps lead to 24 alone."""
    if len(numbers) == 1:
        return numbers[0] == GOAL
    return any(solvable(left) for _, _, left in steps(numbers))


def judgement(numbers: Numbers) -> str:
    """What ``Judge`` says of the numbers left."""
    if not solvable(numbers):
        return "impossible"
    return "sure" if len(numbers) <= 2 else "likely"


def compose(numbers: Numbers, path: list[str]) -> str:
    """The expression over the input numbers that the steps make.

    An operand that is itself made by a step stands in parentheses; where several numbers are equal,
    the one made last is taken, and an input number only when none was made.
    """
    made: list[tuple[int, str]] = []  # (value, expression), not used yet
    inputs = list(numbers)

    def take(value: int) -> str:
        for idx in reversed(range(len(made))):
            if made[idx][0] == value:
                return f"({made.pop(idx)[1]})"
        inputs.remove(value)
        return str(value)

    for step in path:
        left, sign, right = step.split()
        result = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}[sign]
        made.append((result(int(left), int(right)), f"{take(int(left))} {sign} {take(int(right))}"))
    return made[-1][1]


class Game24Source:
    """Endless documents about random numbers.

    Args:
        chance: consumed; the same state gives the same documents.
        excluded: numbers that are never an ``Input``.
    """

    def __init__(self, chance: random.Random, excluded: frozenset[Numbers]) -> None:
        self._chance = chance
        self._excluded = excluded

    def games(self) -> Iterator[Document]:
        """Whole games from numbers that can make 24; some steps are random and lose."""
        while True:
            numbers = self._numbers()
            if solvable(numbers):
                yield self._game(numbers)

    def judgements(self) -> Iterator[Document]:
        """Numbers and their judgement, on their own or after one or two random steps."""
        while True:
            numbers = self._numbers()
            alone = self._chance.random() < 0.65
            left, lines = numbers, []
            for _ in range(self._chance.choice((0, 1, 1, 1, 2)) if alone else self._chance.choice((1, 1, 2))):
                step, result, left = self._step(left, keeping=0.5)
                lines.append(f"Step: {step} = {result} (left: {_words(left)})\n")
                if len(left) == 2:
                    break
            if alone and left in self._excluded:
                continue
            document = Document(end_weight=UNTRAINED)
            if alone:
                document.add(f"Input: {_words(left)}\n", GIVEN)
            else:
                document.add(f"Input: {_words(numbers)}\n", GIVEN)
                document.add("".join(lines), CONNECTING)
            document.add_label("Judge", judgement(left))
            yield document

    def _game(self, numbers: Numbers) -> Document:
        document = Document([(f"Input: {_words(numbers)}\n", GIVEN)])
        left, path = numbers, []
        while len(left) > 1:
            hopeful = solvable(left)
            step, result, left = self._step(left, KEEPING)
            path.append(step)
            loses = hopeful and not solvable(left)
            document.add("Step:", DECISION)
            document.add(f" {step}", DECISION if hopeful and not loses else UNTRAINED)
            document.add(f" = {result} (left: {_words(left)})\n", RESULT)
            if self._chance.random() < JUDGED:
                document.add_label("Judge", judgement(left))
        if left == (GOAL,):
            if self._chance.random() < ANSWERED:
                document.add("Answer:", CONNECTING)
                document.add(f" {compose(numbers, path)} = {GOAL}\n", DECISION)
            document.add("Done\n", PLAIN)
        else:
            document.end_weight = UNTRAINED
        return document

    def _numbers(self) -> Numbers:
        while True:
            kind = self._chance.random()
            highest, count = (13, 4) if kind < 0.55 else (20, 4) if kind < 0.8 else (30, 3)
            numbers = tuple(sorted(self._chance.randint(1, highest) for _ in range(count)))
            if numbers not in self._excluded:
                return numbers

    def _step(self, left: Numbers, keeping: float) -> tuple[str, int, Numbers]:
        choices = steps(left)
        if self._chance.random() < keeping:
            choices = tuple(choice for choice in choices if solvable(choice[2])) or choices
        return self._chance.choice(choices)


def load_excluded(folder: Path) -> frozenset[Numbers]:
    """The puzzles of ``game24/24.csv``."""
    with (folder / "game24" / "24.csv").open(newline="") as file:
        return frozenset(tuple(sorted(map(int, row["Puzzles"].split()))) for row in csv.DictReader(file))


def _words(numbers: Numbers) -> str:
    return " ".join(map(str, numbers))
