"""From repeats to rows: medians, spreads, ratios within a repeat, and the comparison of two reports.

tokens/s of a row is the median over its repeats. ``speedup`` is the median of its ratios to the group's base row in the
same repeat. A machine gets slower and faster over time, and that changes ratios less than speeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seedmp.measuring.account import Measurement

Texts = tuple[tuple[int, ...], ...]
NOISE_FLOOR = 0.02  # ratios nearer to 1 than this are never called a change
SAME = 0.05  # two runs whose speed-ups differ by less say the same
NOTCH = 1.57  # McGill, Tukey, Larsen 1978, "Variations of Box Plots": medians whose notches do not meet differ


@dataclass(frozen=True)
class Result:
    """One run of one row.

    Args:
        wall_s: from the first submission to the last output.
        tokens_per_s: kept tokens ÷ wall time.
        token_ids: what was generated, per prompt.
        figures: more numbers; a row reports their medians.
    """

    wall_s: float
    tokens_per_s: float
    token_ids: Texts = ()
    figures: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, measured: Measurement, **figures: float) -> Result:
        """A job on an engine; ``figures`` are added to its own."""
        plain = {k: v for k, v in measured.to_plain().items() if k not in ("wall_s", "tokens_per_s")}
        return cls(measured.wall_s, measured.tokens_per_s, measured.token_ids, plain | figures)


def agreement(left: Texts, right: Texts) -> float:
    """Share of tokens before the first difference, over all texts."""
    same, total = 0, 0
    for a, b in zip(left, right, strict=True):
        total += max(len(a), len(b))
        same += next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same / total if total else 1.0


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, extremes and interquartile range."""
    if len(values) > 1:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    else:
        low = high = values[0]
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "iqr": high - low}


def notch(values: Sequence[float]) -> float:
    """How far chance may move a median: 1.57 x interquartile range ÷ square root of the number of values.

    Two medians differ, at about the 5 % level, when they are further apart than the sum of their notches (McGill, Tukey
    and Larsen, "Variations of Box Plots", 1978, section on notches).
    """
    return NOTCH * spread(values)["iqr"] / math.sqrt(len(values))


def row_of(name: str, results: Sequence[Result], base: Sequence[Result]) -> dict[str, Any]:
    """The figures of one row; ``base`` are the base row's results of the same repeats."""
    rates = spread([result.tokens_per_s for result in results])
    pairs = list(zip(results, base, strict=False))
    ratios = [result.tokens_per_s / other.tokens_per_s for result, other in pairs if other.tokens_per_s]
    row: dict[str, Any] = {"name": name, "tokens_per_s": rates["median"]}
    row |= {f"tokens_per_s_{kind}": rates[kind] for kind in ("min", "max", "iqr")}
    if ratios:
        row |= {"speedup": statistics.median(ratios), "speedup_min": min(ratios), "speedup_max": max(ratios)}
        row["speedup_notch"] = notch(ratios)
    row["wall_s"] = statistics.median(result.wall_s for result in results)
    for key in results[0].figures:
        row[key] = statistics.median(result.figures[key] for result in results)
    row["num_tokens"] = sum(map(len, results[0].token_ids))
    row["repeats"] = [result.tokens_per_s for result in results]
    return row


def compare_texts(row: dict[str, Any], texts: Texts, base: Texts) -> None:
    """Note in a row whether its greedy texts equal the base row's."""
    row["text_equals_base"] = texts == base
    row["agreement"] = agreement(texts, base) if len(texts) == len(base) else 0.0


@dataclass(frozen=True)
class Change:
    """One row in two reports.

    Args:
        row: its cell and name.
        before: tokens/s.
        after: tokens/s.
        noise: what the ratio may be off by chance.
        ratio_of_speedups: None for a base row, and without one.
        speedups_differ: whether the speed-ups are further apart than both notches explain; None without notches.
    """

    row: str
    before: float
    after: float
    noise: float
    ratio_of_speedups: float | None
    speedups_differ: bool | None

    @property
    def ratio(self) -> float:
        """After ÷ before."""
        return self.after / self.before if self.before else math.inf

    @property
    def is_beyond_noise(self) -> bool:
        """Whether the change is larger than the spread of the repeats explains."""
        return self.ratio == math.inf or self.ratio <= 0 or abs(math.log(self.ratio)) > self.noise


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Rows that both reports have, by cell and name; the noise of a row is half its range ÷ its median."""
    others = {_key(row): row for row in after["rows"] if "tokens_per_s" in row}
    changes = []
    for row in before["rows"]:
        key = _key(row)
        if key not in others or "tokens_per_s" not in row:
            continue
        noise = max(NOISE_FLOOR, math.hypot(_noise(row), _noise(others[key])))
        rates = row["tokens_per_s"], others[key]["tokens_per_s"]
        changes.append(Change(" ".join(filter(None, key)), *rates, noise, *_speedups(row, others[key])))
    return changes


def _speedups(row: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float | None, bool | None]:
    """Ratio of two speed-ups, and whether they are further apart than both notches; None where there are none."""
    if _is_base(row) or not {"speedup", "speedup_notch"} <= row.keys() & other.keys():
        return None, None
    before, after = row["speedup"], other["speedup"]
    return after / before, abs(after - before) > row["speedup_notch"] + other["speedup_notch"]


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row.get("cell", ""), row["name"]


def _noise(row: Mapping[str, Any]) -> float:
    low, high = row.get("tokens_per_s_min"), row.get("tokens_per_s_max")
    return float((high - low) / 2 / row["tokens_per_s"]) if low and high and row["tokens_per_s"] else 0.0


def _is_base(row: Mapping[str, Any]) -> bool:
    """A base row's ratio to itself is 1 in every repeat."""
    return bool(row.get("speedup_min") == row.get("speedup_max") == 1)


@dataclass(frozen=True)
class Likeness:
    """How alike two runs are.

    Args:
        num: ratios of speed-ups that both runs have.
        num_same: those that differ from 1 by ``SAME`` at most.
        median: of the differences from 1.
        largest: of the differences from 1.
    """

    num: int
    num_same: int
    median: float
    largest: float

    @classmethod
    def of(cls, ratios: Iterable[float | None]) -> Likeness | None:
        """None without a ratio."""
        off = [abs(ratio - 1) for ratio in ratios if ratio is not None]
        if not off:
            return None
        return cls(len(off), sum(distance <= SAME for distance in off), statistics.median(off), max(off))

    def __str__(self) -> str:
        return f"{self.num_same} of {self.num} (median {100 * self.median:.1f} %, largest {100 * self.largest:.1f} %)"


def num_apart(changes: Iterable[Change]) -> str | None:
    """``"2 of 9"``: of nine speed-ups with notches, two differ by more than both notches. None without notches."""
    judged = [change.speedups_differ for change in changes if change.speedups_differ is not None]
    return f"{sum(judged)} of {len(judged)}" if judged else None
