"""What a round costs under each schedule, and the static tree that should give most tokens per second.

All predictions of tokens/s from d (drafting) and v (verifying) are here. Times are in seconds.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from seedmp.errors import ConfigError
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.sequoia import search_trees

TimeOf = Callable[[int], float]


class RoundPolicy(enum.Enum):
    """Who waits for whom; the names are those of ``config.Schedule`` and ``config.POLICIES``."""

    SERIAL = "serial"
    FCFS = "fcfs"
    FCFS_BATCH = "fcfs-batch"


@dataclass(frozen=True)
class Fleet:
    """How many share the target.

    Args:
        num_branches: B, branches in flight.
        num_drafts: n, draft processes; one serves several branches in one packed forward.
    """

    num_branches: int = 1
    num_drafts: int = 1

    def __post_init__(self) -> None:
        if self.num_branches < 1 or self.num_drafts < 1:
            raise ConfigError(f"{self.num_branches} branches and {self.num_drafts} drafts: both must be 1 or more")


def draft_round_time(growmap: Growmap, draft_time: TimeOf, num_branches: int = 1) -> float:
    """d: forwards that grow this tree for ``num_branches`` branches at once, a level in each.

    The committed token is the first; nodes without children, so all of the last level, are not run.
    ``draft_time(width)`` is one forward of that many rows.
    """
    rows = (sum(count > 0 for count in level) for level in growmap.branches[:-1])
    return sum(draft_time(num_branches * width) for width in rows)


def time_per_round(
    growmap: Growmap, draft_time: TimeOf, target_time: TimeOf, policy: RoundPolicy, fleet: Fleet
) -> float:
    """Seconds of the whole engine for each round of a branch; tokens/s is expected tokens over this.

    With d(b) drafting for b branches packed together, v(b) verifying b of them in one forward, B branches, n drafts:

    * SERIAL: d(1) + v(1). One branch at a time, nothing overlaps.
    * FCFS: max(v(1), d(1) / n, (d(1) + v(1)) / B). The target does one proposal at a time, n drafts one each, and
      a branch waits for its own verdict. With B = n it is max(v, (d + v) / n).
    * FCFS_BATCH: the better of one group, (d(ceil(B/n)) + v(B)) / B, and two alternating halves, where one is
      drafted while the other is verified: (max(d1, v2) + max(d2, v1)) / B. With B = 1 it is SERIAL.

    The last two are bounds: no queueing, copying or scheduling time is in them.
    """
    num_branches, num_drafts = fleet.num_branches, fleet.num_drafts

    def draft(branches: int) -> float:
        return draft_round_time(growmap, draft_time, math.ceil(branches / num_drafts))

    def verify(branches: int) -> float:
        return target_time(branches * growmap.size)

    if policy is RoundPolicy.SERIAL or num_branches == 1:
        return draft(1) + verify(1)
    if policy is RoundPolicy.FCFS:
        return max(verify(1), draft(1) / num_drafts, (draft(1) + verify(1)) / num_branches)
    half, rest = num_branches // 2, num_branches - num_branches // 2
    together = draft(num_branches) + verify(num_branches)
    alternating = max(draft(half), verify(rest)) + max(draft(rest), verify(half))
    return min(together, alternating) / num_branches


@dataclass(frozen=True)
class TreeOption:
    """One row of the table that ``choose_tree`` chooses from."""

    growmap: Growmap
    expected_tokens: float
    round_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.expected_tokens / self.round_s


@dataclass(frozen=True)
class TreeChoice:
    """The option with the most predicted tokens/s, and all options by size, then depth.

    The first option is the tree of the root alone, plain decoding: where it is best, speculation does not pay.
    """

    best: TreeOption
    options: tuple[TreeOption, ...]


def choose_tree(
    acceptance: np.ndarray,
    draft_time: TimeOf,
    target_time: TimeOf,
    policy: RoundPolicy,
    fleet: Fleet,
    sizes: Sequence[int] = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64),
    max_levels: int = 12,
) -> TreeChoice:
    """Sequoia's hardware-aware choice, extended by level widths, branches, drafts and policies.

    Args:
        acceptance: [K, B + 1] of ``sequoia.parse_acceptance``.
        draft_time, target_time: seconds of one forward, as a function of its number of rows; > 0.
        sizes: nodes with the root to try; plain decoding is always among them.

    Raises:
        ConfigError: a size, a depth or a time is out of range.
    """
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"sizes={list(sizes)}: must be whole numbers >= 1")
    table = search_trees(acceptance, max(sizes), max_levels)
    options: dict[Growmap, TreeOption] = {}
    for size in sorted({1, *sizes}):
        for levels in range(1, max_levels + 1):
            tokens = float(table.expected[size, levels])
            if not math.isfinite(tokens):
                continue
            growmap = table.growmap(size, levels)
            if growmap not in options:
                round_s = time_per_round(growmap, draft_time, target_time, policy, fleet)
                if not (math.isfinite(round_s) and round_s > 0):
                    raise ConfigError(f"a round of {size} nodes takes {round_s} s: times must be finite and above 0")
                options[growmap] = TreeOption(growmap, tokens, round_s)
    rows = tuple(options.values())
    return TreeChoice(max(rows, key=lambda option: option.tokens_per_s), rows)
