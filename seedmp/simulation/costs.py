"""Times of the steps of a round on a machine, and how often drafts are accepted: the format of ``costs.json``.

Written by ``seedmp profile`` (from a run) and by ``measure`` (in one process); read by ``seedmp simulate``.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from seedmp.checks import check_number, check_whole
from seedmp.errors import ConfigError
from seedmp.plain_json import parse_json

FORMAT = 1
MAX_POINTS = 4096


@dataclass(frozen=True)
class Curve:
    """Milliseconds by size. Straight lines between the points; beyond them the last slope goes on; flat before them.

    Args:
        sizes: [P] > 0, increasing.
        ms: [P] >= 0.

    Raises:
        ConfigError: they are not.
    """

    sizes: tuple[int, ...]
    ms: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.sizes) <= MAX_POINTS or len(self.sizes) != len(self.ms):
            raise ConfigError(f"a curve of {len(self.sizes)} sizes and {len(self.ms)} times: needs as many, 1 or more")
        if self.sizes[0] < 1 or any(b <= a for a, b in zip(self.sizes, self.sizes[1:], strict=False)):
            raise ConfigError(f"sizes {list(self.sizes)[:8]} of a curve: must begin with 1 or more, and increase")
        if not all(isinstance(t, int | float) and 0 <= t < 1e9 for t in self.ms):
            raise ConfigError(f"times {list(self.ms)[:8]} of a curve: must be milliseconds >= 0")

    def at(self, size: float) -> float:
        """The time of a size."""
        sizes, ms = self.sizes, self.ms
        if size <= sizes[0] or len(sizes) == 1:
            return ms[0]
        right = min(bisect_left(sizes, size), len(sizes) - 1)
        slope = (ms[right] - ms[right - 1]) / (sizes[right] - sizes[right - 1])
        if size > sizes[-1]:
            return ms[-1] + max(0.0, slope) * (size - sizes[-1])
        return ms[right - 1] + slope * (size - sizes[right - 1])

    def less(self, ms: Sequence[float]) -> Curve:
        """The curve with each point lower by this time, but not below 0."""
        return Curve(self.sizes, tuple(max(0.0, old - cut) for old, cut in zip(self.ms, ms, strict=True)))

    @classmethod
    def from_samples(cls, samples: Sequence[tuple[int, float]]) -> Curve | None:
        """Medians by size, pooled by their numbers where they fall (isotonic regression); None without samples."""
        by_size: dict[int, list[float]] = {}
        for size, ms in samples:
            if size > 0:
                by_size.setdefault(size, []).append(ms)
        if not by_size:
            return None
        pools: list[tuple[float, int, int]] = []  # mean of medians, samples, sizes
        for _, times in sorted(by_size.items()):
            pools.append((sorted(times)[len(times) // 2], len(times), 1))
            while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
                (left, m, i), (right, n, j) = pools[-2:]
                pools[-2:] = [((left * m + right * n) / (m + n), m + n, i + j)]
        rising = [round(ms, 6) for ms, _, sizes in pools for _ in range(sizes)]
        return cls(tuple(sorted(by_size)), tuple(rising))


@dataclass(frozen=True)
class Costs:
    """The price list of a machine and a pair of models.

    Args:
        target: a forward of the target, by rows; all threads, nothing else running. ``context_ms`` comes on top.
        draft: one layer of drafting (a forward and choosing children), by rows.
        forward_overhead_ms: of the verifier, for each forward.
        branch_overhead_ms: of the verifier, for each branch in a forward (accept rule, commit, messages).
        draft_overhead_ms: of a draft, for each round of drafting, for any number of layers and branches.
        message_ms: one way, from a send to when the other side has decoded it.
        context_ms: time that a forward takes in addition, for each row and 1000 tokens of context before the row.
        target_threads, draft_threads: cores that a forward keeps busy.
        cores: of the machine; 0 when nothing competes for them.
        acceptance: [depth][child] probability that a child is accepted, given that its parent was and that its
            earlier siblings were not. The last depth holds for all deeper ones. Further children are never accepted.
        where: what it was measured on, for people.
    """

    target: Curve
    draft: Curve
    forward_overhead_ms: float = 0.0
    branch_overhead_ms: float = 0.0
    draft_overhead_ms: float = 0.0
    message_ms: float = 0.1
    context_ms: float = 0.0
    target_threads: int = 1
    draft_threads: int = 1
    cores: float = 0.0
    acceptance: tuple[tuple[float, ...], ...] = ((0.6,),)
    where: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        overheads = ("forward_overhead_ms", "branch_overhead_ms", "draft_overhead_ms", "message_ms")
        for name in (*overheads, "context_ms", "cores"):
            check_number(name, getattr(self, name), 0, 1e9)
        for name in ("target_threads", "draft_threads"):
            check_whole(name, getattr(self, name), 1, 4096)
        if not self.acceptance or not all(row and all(0 <= p <= 1 for p in row) for row in self.acceptance):
            raise ConfigError(f"acceptance {self.acceptance!r}: one row a depth, of probabilities from 0 to 1")

    def target_ms(self, rows: float, context_len: int) -> float:
        """Milliseconds of a forward of ``rows`` rows, each after a context of ``context_len`` tokens."""
        return self.target.at(rows) + self.context_ms * rows * context_len / 1000

    def accepts(self, depth: int, child: int) -> float:
        """Probability of the child-th child (from 0) at a depth (from 1), when its turn comes."""
        row = self.acceptance[min(depth, len(self.acceptance)) - 1]
        return row[child] if child < len(row) else 0.0

    def with_acceptance(self, acceptance: Sequence[Sequence[float]]) -> Costs:
        return replace(self, acceptance=tuple(tuple(float(p) for p in row) for row in acceptance))

    def with_overheads(self, of_run: Costs) -> Costs:
        """Prices of the models alone, joined with the overheads of a profiled run."""
        return replace(
            self,
            forward_overhead_ms=of_run.forward_overhead_ms,
            branch_overhead_ms=of_run.branch_overhead_ms,
            draft_overhead_ms=self.draft_overhead_ms + of_run.draft_overhead_ms,
        )

    def to_plain(self) -> dict[str, Any]:
        """A JSON-able dictionary that ``from_plain`` reads back."""
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_plain(cls, plain: object) -> Costs:
        """The inverse of ``to_plain``.

        Raises:
            ConfigError: says what is missing or wrong.
        """
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise ConfigError(f"no costs of format {FORMAT}")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(plain) - known - {"format"})
        missing = sorted({"target", "draft"} - set(plain))
        if unknown or missing:
            raise ConfigError(f"costs: {', '.join(f'unknown key {k!r}' for k in unknown) or f'missing {missing}'}")
        values = {name: plain[name] for name in known & set(plain)}
        try:
            for name in ("target", "draft"):
                values[name] = Curve(tuple(values[name]["sizes"]), tuple(values[name]["ms"]))
            if "acceptance" in values:
                values["acceptance"] = tuple(tuple(row) for row in values["acceptance"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise ConfigError(f"costs: {type(error).__name__} {error}") from None


def load_costs(path: str | os.PathLike[str]) -> Costs:
    """Read ``costs.json``, or the one in a folder that ``seedmp profile`` wrote.

    Raises:
        ConfigError: there is none, or it is of another format.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "costs.json"
    try:
        return Costs.from_plain(parse_json(file.read_bytes()))
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except (ValueError, ConfigError) as error:
        raise ConfigError(f"{file}: {error}") from None


def chain_acceptance(mean_accepted: float, depth: int) -> float:
    """The probability a with a + a² + ... + a^depth = mean_accepted: one law for all depths of a chain."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if sum(middle**i for i in range(1, depth + 1)) < mean_accepted:
            low = middle
        else:
            high = middle
    return low


# For trying the simulator. The target has 134M parameters in bfloat16, with 2 threads on 2 cores. It was measured up
# to 32 rows while the library was designed, before linear layers were prepacked. A layer of drafting, the overheads and
# the acceptance of a chain are those of the bundled pair on GSM8K at that time. More rows, and the second child, are
# assumed.
EXAMPLE = Costs(
    Curve((1, 8, 16, 32, 128, 512), (14.9, 15.3, 18.4, 27.6, 83.0, 310.0)),
    Curve((1, 4, 16, 64, 256), (1.6, 1.8, 2.4, 5.0, 15.0)),
    forward_overhead_ms=0.3, branch_overhead_ms=0.5, message_ms=0.15, target_threads=2, draft_threads=1, cores=2,
    acceptance=((0.6, 0.3),), where={"what": "the 134M shape in bfloat16 on 2 cores; rows above 32 assumed"},
)  # fmt: skip
