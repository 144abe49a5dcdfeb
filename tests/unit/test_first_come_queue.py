"""The queue's order, and that what the scheduler keeps is compared with what it should be."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from seedmp.config import EngineConfig
from seedmp.errors import InvariantError
from seedmp.sampling import SamplingParams
from seedmp.scheduler import events
from seedmp.scheduler.branches import BranchState
from seedmp.scheduler.policies import QueueItem
from seedmp.scheduler.queue import FirstComeQueue, QueueView
from seedmp.scheduler.scheduler import Scheduler
from seedmp.scheduler.state import Limits


def item(branch_id: int, ready_ns: int, num_rows: int = 4) -> QueueItem:
    return QueueItem(branch_id, ready_ns, num_rows, is_proposal=True)


def test_the_earliest_is_first_and_then_the_lowest_id() -> None:
    queue = FirstComeQueue()
    for branch_id, ready_ns in ((3, 5), (1, 9), (2, 5), (4, 1)):
        queue.put(item(branch_id, ready_ns))
    assert [i.branch_id for i in queue] == [4, 2, 3, 1]


def test_a_branch_has_one_place() -> None:
    queue = FirstComeQueue()
    queue.put(item(1, 5))
    queue.put(item(2, 6))
    queue.put(item(1, 7, num_rows=2))
    assert list(queue) == [item(2, 6), item(1, 7, num_rows=2)]
    queue.remove(2)
    queue.remove(2)
    assert list(queue) == [item(1, 7, num_rows=2)]


def test_it_is_what_sorting_gives() -> None:
    rng, queue = random.Random(0), FirstComeQueue()
    items: dict[int, QueueItem] = {}
    for _ in range(300):
        branch_id = rng.randrange(20)
        if rng.random() < 0.3:
            queue.remove(branch_id)
            items.pop(branch_id, None)
        else:
            items[branch_id] = item(branch_id, rng.randrange(9))
            queue.put(items[branch_id])
        assert list(queue) == sorted(items.values(), key=lambda i: (i.ready_ns, i.branch_id))


@pytest.fixture
def scheduler() -> Scheduler:
    """Three prompts of 20 tokens, without a worker."""
    config = EngineConfig(target="-", draft="-", validate=True)
    scheduler = Scheduler(config, Limits(64, 32, frozenset()))
    for branch_id in range(3):
        params = SamplingParams(temperature=0.0, max_tokens=8, seed=1)
        scheduler.handle(events.BranchSubmitted(branch_id, 0, (branch_id,) * 20, (), params), branch_id)
    scheduler._admit()
    scheduler.validate()
    return scheduler


def test_a_policy_sees_the_whole_queue_without_what_was_preempted(scheduler: Scheduler) -> None:
    """Each wants 19 rows."""
    assert [(i.branch_id, i.num_rows) for i in QueueView(scheduler.state.branches.queue)] == [(0, 19), (1, 19), (2, 19)]
    view = QueueView(scheduler.state.branches.queue, {0})
    assert [i.branch_id for i in view] == [i.branch_id for i in view] == [1, 2]
    assert view.get(0) is None and view.get(1) is not None and view
    assert not QueueView(scheduler.state.branches.queue, {0, 1, 2})


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda s: s.state.branches._in_state[BranchState.DRAFTABLE].remove(1), "branches by state"),
        (lambda s: s.state.branches.queue.remove(2), "queue"),
        (lambda s: s.branches[0].target_path.slots.append(s.forwards.slots.lease(1)[0]), "path"),
        (lambda s: s.drafting._computing.update({0: s.branches[0]}), "contexts"),
        (lambda s: s.drafting._loads.update([7]), "loads"),
    ],
)
def test_what_is_kept_wrongly_is_found(scheduler: Scheduler, spoil: Callable[[Scheduler], None], text: str) -> None:
    spoil(scheduler)
    with pytest.raises(InvariantError, match=text):
        scheduler.validate()
