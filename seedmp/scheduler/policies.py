"""Who is served first. A new policy: a class here or anywhere, and a name in ``config.POLICIES`` or ``module:Class``.

A policy answers questions of the scheduler. It may keep state, but it has no clock and no chance: the same questions
get the same answers. Every answer is checked (``checked_policy``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Ticket:
    """What a policy may know of a branch from its submission to its end.

    Args:
        branch_id: ids are the order of arrival.
        submitted_ns: CLOCK_MONOTONIC.
        priority: of the request; higher is more urgent.
        user: of the request; empty if nobody was named.
    """

    branch_id: int
    submitted_ns: int = 0
    priority: int = 0
    user: str = ""


class QueueItem(NamedTuple):
    """A branch with work for the target, since ``ready_ns``; it asks for ``num_rows`` rows of a forward.

    ``is_proposal`` is false for a part of a prompt. The rest is as in ``Ticket``.
    """

    branch_id: int
    ready_ns: int
    num_rows: int
    is_proposal: bool
    submitted_ns: int = 0
    priority: int = 0
    user: str = ""


@dataclass(frozen=True)
class Selection:
    """These branches of the queue are served now, in this order; with none, ask again at ``hold_until_ns``.

    What does not fit into one forward waits for the next decision; the first always gets its rows, in parts if need
    be. With no branch and no time, the policy is asked again when a proposal arrives.
    """

    branch_ids: tuple[int, ...] = ()
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


class Policy:
    """Every choice that is a matter of order; each one is first come, first served here.

    There is one object for each verifier. A subclass overrides the choices that it makes otherwise.
    """

    # --- choices ---

    def select(self, queue: Iterable[QueueItem], outlook: Outlook) -> Selection:
        """What the next forward serves.

        Args:
            queue: not empty, at most one item of each branch, first come first; it can be read again and again.
                Reading no more than needed keeps a decision cheap.
        """
        return Selection((next(iter(queue)).branch_id,))

    def admit(self, waiting: Sequence[Ticket], num_active: int) -> Sequence[int]:
        """Branches that may begin now, in order.

        Args:
            waiting: first come first; not empty.
            num_active: branches that were admitted and have not ended.
        """
        return [ticket.branch_id for ticket in waiting]

    def draft_order(self, draftable: Sequence[Ticket]) -> Sequence[Ticket]:
        """In which order branches get a draft worker and slots; all of ``draftable``, which is first come first."""
        return draftable

    def worker(self, ticket: Ticket, loads: Mapping[int, int]) -> int:
        """Which worker drafts for a branch; ``loads`` has the tasks of each worker. Equal loads: by branch in turn."""
        return min(loads, key=lambda worker: (loads[worker], (worker - ticket.branch_id) % len(loads)))

    def victim(self, candidates: Sequence[Ticket]) -> int:
        """Which branch loses its target KV when slots are short; it is computed again later. Here the youngest."""
        return max(candidates, key=lambda ticket: ticket.submitted_ns).branch_id

    # --- what happened ---

    def submitted(self, ticket: Ticket) -> None:
        """A request arrived."""

    def served(self, ticket: Ticket, num_tokens: int) -> None:
        """Tokens of a branch were committed."""

    def ended(self, ticket: Ticket) -> None:
        """A branch that was submitted is gone."""


class Fcfs(Policy):
    """One item a forward, in the order of readiness: SEED's rounds-scheduled execution."""


class FcfsBatch(Policy):
    """The first items of the queue in one forward, as many as fit.

    A forward costs a fixed part, about the time of a small one. So it pays to hold the queue for a
    proposal that is expected sooner than that, and never longer, counted from when the first of the
    queue could have been served: with drafting faster than a small forward, groups that have come
    apart meet again; with slower drafting they alternate, one drafting while the other is verified.
    """

    def select(self, queue: Iterable[QueueItem], outlook: Outlook) -> Selection:
        chosen: list[int] = []
        first, num_rows = None, 0
        for item in self.order(queue):
            if first is None:
                first = item
            elif num_rows + item.num_rows > outlook.max_rows:
                return Selection(tuple(chosen))
            chosen.append(item.branch_id)
            num_rows += item.num_rows
        assert first is not None
        latest = max(first.ready_ns, outlook.free_ns) + outlook.forward_ns
        if outlook.now_ns < latest and first.is_proposal:
            overdue = outlook.now_ns - outlook.forward_ns  # who is later than that may never come
            soon = [at_ns for at_ns in outlook.expected_ready_ns if overdue <= at_ns <= latest]
            if soon:
                wait_ns = max(1, outlook.forward_ns // 4)
                return Selection((), min(latest, max(outlook.now_ns, *soon) + wait_ns))
        return Selection(tuple(chosen))

    def order(self, queue: Iterable[QueueItem]) -> Iterable[QueueItem]:
        """The queue in the order in which a forward is filled."""
        return queue


class Ranked(FcfsBatch):
    """``fcfs-batch`` in another order: branches of a lower ``rank`` come first, equal ones first come first."""

    def rank(self, who: QueueItem | Ticket) -> int:
        """Lower is served first."""
        raise NotImplementedError(f"{type(self).__name__} has no rank")

    def order(self, queue: Iterable[QueueItem]) -> Iterable[QueueItem]:
        return sorted(queue, key=self.rank)

    def admit(self, waiting: Sequence[Ticket], num_active: int) -> Sequence[int]:
        return [ticket.branch_id for ticket in sorted(waiting, key=self.rank)]

    def draft_order(self, draftable: Sequence[Ticket]) -> Sequence[Ticket]:
        return sorted(draftable, key=self.rank)

    def victim(self, candidates: Sequence[Ticket]) -> int:
        return max(candidates, key=lambda ticket: (self.rank(ticket), ticket.submitted_ns)).branch_id


class Priority(Ranked):
    """The highest ``priority`` first, equal ones as ``fcfs-batch``.

    Priorities do not age: while requests of a higher priority fill every forward, lower ones starve.
    """

    def rank(self, who: QueueItem | Ticket) -> int:
        return -who.priority


class Fair(Ranked):
    """The user with the fewest committed tokens first; requests without a user are those of one user.

    A user who comes, or comes back, starts no lower than the least served user who is there: an absence earns nothing.
    So nobody starves: whoever is served rises above those who wait.
    """

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}
        self._branches: Counter[str] = Counter()

    def rank(self, who: QueueItem | Ticket) -> int:
        return self._tokens.get(who.user, 0)

    def submitted(self, ticket: Ticket) -> None:
        if not self._branches[ticket.user]:
            least = min((self._tokens[user] for user, num in self._branches.items() if num), default=0)
            self._tokens[ticket.user] = max(self._tokens.get(ticket.user, 0), least)
        self._branches[ticket.user] += 1

    def served(self, ticket: Ticket, num_tokens: int) -> None:
        self._tokens[ticket.user] += num_tokens

    def ended(self, ticket: Ticket) -> None:
        self._branches[ticket.user] -= 1
        if not +self._branches:  # nobody is left to be compared with
            self._branches.clear()
            self._tokens.clear()
