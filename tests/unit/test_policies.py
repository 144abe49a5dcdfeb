"""Which prefix of the queue a forward serves."""

from __future__ import annotations

import pytest

from seedmp.config import PolicyName
from seedmp.scheduler.policies import POLICIES, Fcfs, FcfsBatch, Outlook, QueueItem, Selection

NOW_NS = 1_000_000
FORWARD_NS = 10_000


def item(branch_id: int, ready_ns: int = NOW_NS, num_rows: int = 10, is_proposal: bool = True) -> QueueItem:
    return QueueItem(branch_id, ready_ns, num_rows, is_proposal)


def outlook(expected: tuple[int, ...] = (), max_rows: int = 32, now_ns: int = NOW_NS, free_ns: int = 0) -> Outlook:
    return Outlook(now_ns, max_rows, expected, FORWARD_NS, free_ns)


def test_every_name_has_a_policy() -> None:
    assert set(POLICIES) == set(PolicyName)


@pytest.mark.parametrize("num", [1, 2, 9])
@pytest.mark.parametrize("expected", [(), (NOW_NS + 1,)])
def test_fcfs_serves_one_at_once(num: int, expected: tuple[int, ...]) -> None:
    assert Fcfs().select([item(i) for i in range(num)], outlook(expected)) == Selection(1)


@pytest.mark.parametrize(
    ("rows", "num_items"),
    [
        ([10], 1),
        ([10, 10, 10], 3),
        ([16, 16], 2),
        ([16, 16, 1], 2),  # the budget is exactly used
        ([10, 23, 1], 1),  # a prefix: the third may not overtake the second
        ([99, 1], 1),  # the first is always served, in chunks if need be
        ([1] * 40, 32),
    ],
)
def test_fcfs_batch_serves_the_prefix_that_fits(rows: list[int], num_items: int) -> None:
    queue = [item(i, num_rows=num) for i, num in enumerate(rows)]
    assert FcfsBatch().select(queue, outlook()) == Selection(num_items)


def test_fcfs_batch_waits_for_a_proposal_that_is_due_within_a_forward() -> None:
    due_ns = NOW_NS + 4_000
    selection = FcfsBatch().select([item(0)], outlook((due_ns, NOW_NS + 10**6)))
    assert selection.num_items == 0
    assert selection.hold_until_ns is not None
    assert due_ns < selection.hold_until_ns <= NOW_NS + FORWARD_NS


@pytest.mark.parametrize("late_ns", [1, 10**9])
def test_fcfs_batch_does_not_wait_for_what_is_due_later(late_ns: int) -> None:
    assert FcfsBatch().select([item(0)], outlook((NOW_NS + FORWARD_NS + late_ns,))) == Selection(1)


def test_fcfs_batch_never_holds_the_first_longer_than_a_forward() -> None:
    waiting_since = NOW_NS - FORWARD_NS
    assert FcfsBatch().select([item(0, waiting_since)], outlook((NOW_NS,))) == Selection(1)
    almost = FcfsBatch().select([item(0, waiting_since + 100)], outlook((NOW_NS - 5,)))
    assert almost == Selection(0, NOW_NS + 100)


def test_fcfs_batch_counts_from_when_the_first_could_be_served() -> None:
    """What waited for a forward meets those that it verified, if they are drafted sooner than another one takes."""
    queue = [item(0, NOW_NS - 2 * FORWARD_NS)]
    held = FcfsBatch().select(queue, outlook((NOW_NS + 4_000,), free_ns=NOW_NS))
    assert held.num_items == 0 and held.hold_until_ns is not None and held.hold_until_ns <= NOW_NS + FORWARD_NS
    assert FcfsBatch().select(queue, outlook((NOW_NS + FORWARD_NS + 1,), free_ns=NOW_NS)) == Selection(1)
    later = outlook((NOW_NS,), now_ns=NOW_NS + FORWARD_NS, free_ns=NOW_NS)
    assert FcfsBatch().select(queue, later) == Selection(1)


def test_fcfs_batch_does_not_wait_for_what_is_long_overdue() -> None:
    """A draft that hangs must not cost every forward another one's time."""
    queue = [item(0, NOW_NS - 2 * FORWARD_NS), item(1)]
    assert FcfsBatch().select(queue, outlook((NOW_NS - FORWARD_NS - 1,), free_ns=NOW_NS)) == Selection(2)


def test_fcfs_batch_holds_no_prompt() -> None:
    assert FcfsBatch().select([item(0, is_proposal=False)], outlook((NOW_NS + 1,))) == Selection(1)


def test_fcfs_batch_does_not_hold_a_full_forward() -> None:
    """A forward that is full already gains nothing from a late proposal."""
    queue = [item(i, num_rows=16) for i in range(3)]
    assert FcfsBatch().select(queue, outlook((NOW_NS + 1,))) == Selection(2)
