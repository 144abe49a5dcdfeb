"""Who was first: the order in which branches come for a forward."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator

from seedmp.scheduler.policies import QueueItem


class FirstComeQueue:
    """At most one item of each branch, by ``ready_ns``, then by branch.

    It is kept sorted: a change is a search, not a look at every branch.
    """

    def __init__(self) -> None:
        self._items: dict[int, QueueItem] = {}  # by branch
        self._order: list[tuple[int, int]] = []  # (ready_ns, branch_id)

    def __iter__(self) -> Iterator[QueueItem]:
        return (self._items[branch_id] for _, branch_id in self._order)

    def __len__(self) -> int:
        return len(self._order)

    def get(self, branch_id: int) -> QueueItem | None:
        """A branch's item, if it is in."""
        return self._items.get(branch_id)

    def put(self, item: QueueItem) -> None:
        """Let it wait, instead of what its branch has there, if anything."""
        self.remove(item.branch_id)
        self._items[item.branch_id] = item
        insort(self._order, (item.ready_ns, item.branch_id))

    def remove(self, branch_id: int) -> None:
        """Take a branch out, if it is in."""
        item = self._items.pop(branch_id, None)
        if item is not None:
            del self._order[bisect_left(self._order, (item.ready_ns, branch_id))]


class QueueView:
    """A queue as a policy sees it: to be read only, without some branches."""

    def __init__(self, queue: FirstComeQueue, without: Collection[int] = ()) -> None:
        self._queue = queue
        self._without = without

    def __iter__(self) -> Iterator[QueueItem]:
        if not self._without:
            return iter(self._queue)
        return (item for item in self._queue if item.branch_id not in self._without)

    def __bool__(self) -> bool:
        return any(True for _ in self) if self._without else len(self._queue) > 0

    def get(self, branch_id: int) -> QueueItem | None:
        """A branch's item, if it is in."""
        return None if branch_id in self._without else self._queue.get(branch_id)
