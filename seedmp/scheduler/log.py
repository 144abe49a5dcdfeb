"""What the scheduler was told and what it ordered: enough to tell a branch's story, and to play it again."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from seedmp.scheduler.actions import Action, ReplaceWorker, RunForward, SendDraftTask, WakeAt
from seedmp.scheduler.events import BranchSubmitted, Event, ForwardFinished, ProposalArrived, ScoreRequested
from seedmp.token_tree.tree import TokenTree

MAX_ENTRIES = 4096
MAX_TOKENS = 1 << 20  # of the prompts in all entries
NO_BRANCH = -1
_SHOWN = 6  # items of a long tuple


@dataclass(slots=True)
class Entry:
    """An event that was handled, or a decision.

    Args:
        entry_id: the orders that followed from it name it as their ``cause``; ids are consecutive.
        at_ns: the scheduler's time.
        event: without its payload; None for a decision.
        orders: kind and branches of each order.
    """

    entry_id: int
    at_ns: int
    event: Event | None
    orders: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def concerns(self, branch_id: int) -> bool:
        """Whether a branch's story has it: events of the branch or of no branch, and orders for the branch."""
        event = self.event
        if isinstance(event, ForwardFinished) and event.outcomes:
            return any(outcome.branch_id == branch_id for outcome in event.outcomes)
        if event is not None and getattr(event, "branch_id", branch_id) == branch_id:
            return True
        return any(branch_id in branch_ids for _, branch_ids in self.orders)

    def __str__(self) -> str:
        what = "decide" if self.event is None else _describe(self.event)
        orders = "".join(f"\n    -> {name} {', '.join(map(str, ids))}".rstrip() for name, ids in self.orders)
        return f"#{self.entry_id} {self.at_ns} {what}{orders}"


class EventLog:
    """The last entries, oldest first. Proposals' payloads are left out, and prompts count against ``MAX_TOKENS``."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()
        self._num_tokens = 0
        self._next_id = 0

    @property
    def cause(self) -> int:
        """Id of the entry that is being worked on."""
        return self._next_id - 1

    @property
    def is_whole(self) -> bool:
        """Whether nothing was forgotten: then a new scheduler that is told all of it gives the same orders."""
        return not self._entries or self._entries[0].entry_id == 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(self, event: Event | None, now_ns: int) -> None:
        """Begin an entry; None is a decision."""
        if type(event) is ProposalArrived:
            event = _without_payload(event)
        self._entries.append(Entry(self._next_id, now_ns, event))
        self._next_id += 1
        self._num_tokens += _num_tokens(event)
        while len(self._entries) > MAX_ENTRIES or (self._num_tokens > MAX_TOKENS and len(self._entries) > 1):
            self._num_tokens -= _num_tokens(self._entries.popleft().event)

    def note(self, orders: Sequence[Action]) -> None:
        """What followed from the last entry."""
        if orders:
            self._entries[-1].orders = tuple((type(order).__name__, _branches_of(order)) for order in orders)

    def story(self, branch_id: int) -> str:
        """What happened to a branch, or with NO_BRANCH to all, and what was ordered for it, oldest first."""
        return "\n".join(str(entry) for entry in self._entries if entry.concerns(branch_id) or branch_id == NO_BRANCH)


def _without_payload(event: ProposalArrived) -> ProposalArrived:
    return ProposalArrived(
        event.worker_id, event.branch_id, event.round, event.started_ns, event.ready_ns, event.tree, None,
        event.drafted_idx,
    )  # fmt: skip


def _num_tokens(event: Event | None) -> int:
    return len(event.prompt_ids) if type(event) is BranchSubmitted or type(event) is ScoreRequested else 0


def _branches_of(order: Action) -> tuple[int, ...]:
    if isinstance(order, RunForward):
        return tuple(segment.branch_id for segment in order.segments)
    if isinstance(order, SendDraftTask):
        return (order.draft.branch_id,)
    return () if isinstance(order, WakeAt | ReplaceWorker) else (order.branch_id,)


def _describe(value: Any) -> str:
    """A record in one line, long tuples cut."""
    if isinstance(value, TokenTree):
        return f"<tree of {len(value)}>"
    if dataclasses.is_dataclass(value):
        fields = (field for field in dataclasses.fields(value) if getattr(value, field.name) != field.default)
        return f"{type(value).__name__}({', '.join(f'{f.name}={_describe(getattr(value, f.name))}' for f in fields)})"
    if isinstance(value, tuple):
        shown = ", ".join(_describe(item) for item in value[:_SHOWN])
        return f"({shown}, ... {len(value)} in all)" if len(value) > _SHOWN else f"({shown})"
    return repr(value)
