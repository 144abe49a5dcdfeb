"""Spans on one clock: who was busy with what, and for how long at the same time."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Activity(enum.IntEnum):
    """What a process can be busy with; it is in exactly one at a time, except that branches QUEUE meanwhile."""

    IDLE = 0  # waits for messages
    IPC = 1  # reads, decodes, encodes and sends messages
    SCHEDULE = 2  # the scheduler takes note and decides
    DRAFT = 3  # a draft grows trees
    VERIFY = 4  # a forward of the target
    RESAMPLE = 5  # the accept rule: accept, reject, draw from the residual
    COMMIT = 6  # accepted tokens and their slots are kept; in your process: text is made
    WATCH = 7  # the supervisor looks after the workers
    QUEUE = 8  # a proposal waits for the target; beside the others


@dataclass(frozen=True)
class Span:
    """Work of one worker on one branch (-1: on several). All spans come from the rings of ``ipc/span_ring.py``.

    Args:
        kind: ``draft``; ``queue``, a proposal's wait; ``verify``, a forward and the accept rule.
        worker_id: draft worker, or -1 for the verifier.
        start_ns: CLOCK_MONOTONIC.
        end_ns: CLOCK_MONOTONIC.
        num: proposals that a draft made in this time; 1 for the others.
    """

    kind: str
    worker_id: int
    branch_id: int
    start_ns: int
    end_ns: int
    num: int = 1


def union(spans: Iterable[Span]) -> list[tuple[int, int]]:
    """Disjoint intervals [start_ns, end_ns) covered by the spans, in order."""
    merged: list[tuple[int, int]] = []
    for start, end in sorted((span.start_ns, span.end_ns) for span in spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((start, end))
    return merged


def total_ns(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of disjoint intervals."""
    return sum(end - start for start, end in intervals)


def intersection_ns(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> int:
    """Time covered by both of two lists of disjoint, ordered intervals."""
    total, i, j = 0, 0, 0
    while i < len(left) and j < len(right):
        total += max(0, min(left[i][1], right[j][1]) - max(left[i][0], right[j][0]))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return total
