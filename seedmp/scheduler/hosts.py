"""Who carries out the scheduler's orders: one method for each kind of order, one function that calls them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from seedmp.scheduler.actions import (
    Action,
    CommitTokens,
    FailBranch,
    FinishBranch,
    ReplaceWorker,
    RunForward,
    SendDraftTask,
    WakeAt,
)


class Host(Protocol):
    """The verifier process, a simulator, or a test. What a host does not need, it leaves empty."""

    def send_draft_task(self, order: SendDraftTask) -> None:
        """Hand a task to a draft worker, which answers ProposalArrived."""
        ...

    def run_forward(self, order: RunForward) -> None:
        """Run the target; answered by ForwardFinished, at once or later."""
        ...

    def commit_tokens(self, order: CommitTokens) -> None:
        """Tell a branch's owner about final tokens."""
        ...

    def finish_branch(self, order: FinishBranch) -> None:
        """Tell a branch's owner that it is complete."""
        ...

    def fail_branch(self, order: FailBranch) -> None:
        """Tell a branch's owner why it failed."""
        ...

    def replace_worker(self, order: ReplaceWorker) -> None:
        """End a draft worker; answered by WorkerLost."""
        ...

    def wake_at(self, order: WakeAt) -> None:
        """Call ``Scheduler.decide`` again at this time."""
        ...


def perform(orders: Iterable[Action], host: Host) -> None:
    """Let a host carry out orders, in their order."""
    for order in orders:
        match order:
            case SendDraftTask():
                host.send_draft_task(order)
            case RunForward():
                host.run_forward(order)
            case CommitTokens():
                host.commit_tokens(order)
            case FinishBranch():
                host.finish_branch(order)
            case FailBranch():
                host.fail_branch(order)
            case ReplaceWorker():
                host.replace_worker(order)
            case WakeAt():
                host.wake_at(order)
