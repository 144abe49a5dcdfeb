"""What one target forward verifies. Adding a policy: a class here and a name in ``config.PolicyName``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from seedmp.config import PolicyName


@dataclass(frozen=True)
class QueueItem:
    """A branch with work for the target, since ``ready_ns``; it asks for ``num_rows`` rows of a forward."""

    branch_id: int
    ready_ns: int
    num_rows: int
    is_proposal: bool


@dataclass(frozen=True)
class Selection:
    """The first ``num_items`` of the queue are served now; with none, ask again at ``hold_until_ns``."""

    num_items: int
    hold_until_ns: int | None = None


@dataclass(frozen=True)
class Outlook:
    """What a policy may know besides the queue.

    Args:
        now_ns: CLOCK_MONOTONIC.
        max_rows: rows of one forward.
        expected_ready_ns: when the proposals that are being drafted should be ready; to be read once, at need.
        forward_ns: time of a small forward, 0 when unknown.
        free_ns: when the last forward ended.
    """

    now_ns: int
    max_rows: int
    expected_ready_ns: Iterable[int]
    forward_ns: int
    free_ns: int


class Policy(Protocol):
    """Chooses a prefix of the queue, which is in first-come order and may end where one forward is full."""

    def select(self, queue: Sequence[QueueItem], outlook: Outlook) -> Selection:
        """What to serve now; ``queue`` is not empty."""
        ...


class Fcfs:
    """One item a forward, in the order of readiness: SEED's rounds-scheduled execution."""

    def select(self, queue: Sequence[QueueItem], outlook: Outlook) -> Selection:
        return Selection(1)


class FcfsBatch:
    """The first-come prefix of the queue in one forward.

    A forward costs a fixed part, about the time of a small one. So it pays to hold the queue for a
    proposal that is expected sooner than that, and never longer, counted from when the first of the
    queue could have been served: with drafting faster than a small forward, groups that have come
    apart meet again; with slower drafting they alternate, one drafting while the other is verified.
    """

    def select(self, queue: Sequence[QueueItem], outlook: Outlook) -> Selection:
        num_items, num_rows = 0, 0
        for item in queue:
            if num_items and num_rows + item.num_rows > outlook.max_rows:
                return Selection(num_items)
            num_items, num_rows = num_items + 1, num_rows + item.num_rows
        latest = max(queue[0].ready_ns, outlook.free_ns) + outlook.forward_ns
        if outlook.now_ns < latest and queue[0].is_proposal:
            overdue = outlook.now_ns - outlook.forward_ns  # who is later than that may never come
            soon = [at_ns for at_ns in outlook.expected_ready_ns if overdue <= at_ns <= latest]
            if soon:
                return Selection(0, min(latest, max(outlook.now_ns, *soon) + outlook.forward_ns // 4))
        return Selection(num_items)


POLICIES: dict[PolicyName, type[Policy]] = {PolicyName.FCFS: Fcfs, PolicyName.FCFS_BATCH: FcfsBatch}
