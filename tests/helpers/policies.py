"""Policies that decide anything that is allowed, and one that decides what is not."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from seedmp.scheduler.policies import Outlook, Policy, QueueItem, Selection, Ticket


class AnyOrder(Policy):
    """Any set in any order, any victim, any worker; sometimes it waits. The same in each run."""

    def __init__(self) -> None:
        self.rng = random.Random(1)

    def some(self, things: Iterable[Any]) -> list[Any]:
        """At least one of them, shuffled."""
        shuffled = list(things)
        self.rng.shuffle(shuffled)
        return shuffled[: self.rng.randrange(1, len(shuffled) + 1)]

    def select(self, queue: Iterable[QueueItem], outlook: Outlook) -> Selection:
        if self.rng.random() < 0.2:
            return Selection((), outlook.now_ns + self.rng.randrange(1, 10**6))
        return Selection(tuple(item.branch_id for item in self.some(queue)))

    def admit(self, waiting: Sequence[Ticket], num_active: int) -> Sequence[int]:
        if num_active and self.rng.random() < 0.5:
            return []
        return [ticket.branch_id for ticket in self.some(waiting)]

    def draft_order(self, draftable: Sequence[Ticket]) -> Sequence[Ticket]:
        return self.rng.sample(draftable, len(draftable))

    def worker(self, ticket: Ticket, loads: Mapping[int, int]) -> int:
        return self.rng.choice(list(loads))

    def victim(self, candidates: Sequence[Ticket]) -> int:
        return self.rng.choice(candidates).branch_id


class Scripted(Policy):
    """Answers one choice with whatever it is given, the others first come, first served."""

    def __init__(self, choice: str, answer: Any) -> None:
        setattr(self, choice, lambda *args: answer)


class Broken(Policy):
    """Selects a branch that nobody has heard of."""

    def select(self, queue: Iterable[QueueItem], outlook: Outlook) -> Selection:
        return Selection((10**6,))
