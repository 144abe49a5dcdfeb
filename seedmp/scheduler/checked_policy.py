"""A policy's answers, checked before they are carried out: a mistake of a policy is told as one, and breaks nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from seedmp.config import POLICIES
from seedmp.errors import PolicyError
from seedmp.scheduler.policies import Outlook, Policy, Selection, Ticket
from seedmp.scheduler.queue import QueueView


def make_policy(name: str) -> CheckedPolicy:
    """The policy of this name, for one scheduler.

    Raises:
        PolicyError: it is no class that extends ``Policy``.
    """
    made = POLICIES.load(name)
    if not (isinstance(made, type) and issubclass(made, Policy)):
        raise PolicyError(f"policy={name!r}: must be a class that extends seedmp.scheduler.policies.Policy")
    return CheckedPolicy(made())


class CheckedPolicy:
    """Asks a policy.

    Raises, in every method:
        PolicyError: the answer is impossible; the message names the policy's class and what is allowed.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def select(self, queue: QueueView, outlook: Outlook, *, is_woken: bool) -> Selection:
        """As ``Policy.select``; ``is_woken``: a proposal will arrive, so waiting for it without a time is allowed."""
        selection = self.policy.select(queue, outlook)
        if not isinstance(selection, Selection):
            self._refuse(f"select returned a {type(selection).__name__}: must be a Selection")
        ids, hold_ns = selection.branch_ids, selection.hold_until_ns
        self._check_known("select", ids, queue.get, "in the queue")
        if not ids and hold_ns is None and not is_woken:
            self._refuse("select chose nothing and named no time, and no proposal is on its way: nobody would wake it")
        if not ids and hold_ns is not None and hold_ns <= outlook.now_ns:
            self._refuse(f"select holds the queue until {hold_ns} ns: must be later than now, {outlook.now_ns} ns")
        return selection

    def admit(self, waiting: Sequence[Ticket], num_active: int) -> Sequence[int]:
        """As ``Policy.admit``."""
        ids = self.policy.admit(waiting, num_active)
        known = {ticket.branch_id: ticket for ticket in waiting}
        self._check_known("admit", ids, known.get, "waiting")
        if not ids and not num_active:
            self._refuse("admit chose nobody although no branch is active: nobody would wake it")
        return ids

    def draft_order(self, draftable: Sequence[Ticket]) -> Sequence[Ticket]:
        """As ``Policy.draft_order``."""
        ordered = self.policy.draft_order(draftable)
        if ordered is not draftable and sorted(t.branch_id for t in ordered) != [t.branch_id for t in draftable]:
            self._refuse(f"draft_order returned {len(ordered)} branches: must be the {len(draftable)} given, once each")
        return ordered

    def worker(self, ticket: Ticket, loads: Mapping[int, int]) -> int:
        """As ``Policy.worker``."""
        worker_id = self.policy.worker(ticket, loads)
        if worker_id not in loads:
            self._refuse(f"worker chose {worker_id!r}: must be one of {sorted(loads)}")
        return worker_id

    def victim(self, candidates: Sequence[Ticket]) -> int:
        """As ``Policy.victim``."""
        branch_id = self.policy.victim(candidates)
        if all(ticket.branch_id != branch_id for ticket in candidates):
            self._refuse(f"victim chose branch {branch_id!r}: must be one of {[t.branch_id for t in candidates]}")
        return branch_id

    def submitted(self, ticket: Ticket) -> None:
        self.policy.submitted(ticket)

    def served(self, ticket: Ticket, num_tokens: int) -> None:
        self.policy.served(ticket, num_tokens)

    def ended(self, ticket: Ticket) -> None:
        self.policy.ended(ticket)

    def _check_known(self, choice: str, ids: Sequence[int], find: Callable[[int], object], where: str) -> None:
        if len(ids) > 1 and len(set(ids)) < len(ids):
            self._refuse(f"{choice} chose branches {list(ids[:8])}: must name each branch once")
        for branch_id in ids:
            if find(branch_id) is None:
                self._refuse(f"{choice} chose branch {branch_id!r}: must be one that is {where}")

    def _refuse(self, text: str) -> NoReturn:
        made = type(self.policy)
        raise PolicyError(f"policy {made.__module__}:{made.__qualname__}: {text}")
