"""From repeats to rows: medians, spreads, ratios within a repeat, and the comparison of two reports.

tokens/s of a row is the median over its repeats; ``speedup`` the median of the ratio to the group's base
row of the same repeat, because machines drift and ratios less so.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from seedmp.measure import Measurement

Texts = tuple[tuple[int, ...], ...]
NOISE_FLOOR = 0.02  # ratios nearer to 1 than this are never called a change


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


def row_of(name: str, results: Sequence[Result], base: Sequence[Result]) -> dict[str, Any]:
    """The figures of one row; ``base`` are the base row's results of the same repeats."""
    rates = spread([result.tokens_per_s for result in results])
    pairs = list(zip(results, base, strict=False))
    ratios = [result.tokens_per_s / other.tokens_per_s for result, other in pairs if other.tokens_per_s]
    row: dict[str, Any] = {"name": name, "tokens_per_s": rates["median"]}
    row |= {f"tokens_per_s_{kind}": rates[kind] for kind in ("min", "max", "iqr")}
    if ratios:
        row |= {"speedup": statistics.median(ratios), "speedup_min": min(ratios), "speedup_max": max(ratios)}
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
    """One row in two reports; ``noise`` is what the ratio may be off by chance."""

    row: str
    before: float
    after: float
    noise: float
    ratio_of_speedups: float | None

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
    rows = {(r.get("cell", ""), r["name"]): r for r in after["rows"] if "tokens_per_s" in r}
    changes = []
    for row in before["rows"]:
        other = rows.get((row.get("cell", ""), row["name"]))
        if other is None or "tokens_per_s" not in row:
            continue
        noise = max(NOISE_FLOOR, math.hypot(_noise(row), _noise(other)))
        speedups = row.get("speedup"), other.get("speedup")
        ratio = speedups[1] / speedups[0] if speedups[0] and speedups[1] else None
        label = " ".join(filter(None, (row.get("cell"), row["name"])))
        changes.append(Change(label, row["tokens_per_s"], other["tokens_per_s"], noise, ratio))
    return changes


def _noise(row: Mapping[str, Any]) -> float:
    low, high = row.get("tokens_per_s_min"), row.get("tokens_per_s_max")
    return float((high - low) / 2 / row["tokens_per_s"]) if low and high and row["tokens_per_s"] else 0.0
