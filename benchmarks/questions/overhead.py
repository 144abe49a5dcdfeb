"""Question: what does the scheduler itself cost a round?

``python -m seedmp.benchmarks.questions.overhead --branches 16``

The scheduler alone, under a virtual clock: drafts and target answer at once with what was made before, so all time is
the scheduler's and its orders'. Microseconds a round = time in ``handle``, ``decide`` and ``perform`` ÷ verified
proposals, the median of the repeats. The checksum is of all orders: equal decisions have equal checksums. It does not
show sockets, messages or tensors.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
import zlib
from collections.abc import Sequence

from seedmp.config import EngineConfig
from seedmp.draft_order import DraftOrder
from seedmp.errors import InternalError
from seedmp.sampling import SamplingParams
from seedmp.scheduler import actions, events
from seedmp.scheduler.hosts import perform
from seedmp.scheduler.scheduler import Scheduler
from seedmp.scheduler.state import Limits
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.opt_tree import NOT_DRAFTED
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree

TREE = Growmap.from_k_config((2, 2, 1))
SHARED, OWN, NEW = 150, 50, 256  # tokens of a prompt that all have, and that one has; generated
TOKENS_EACH = 100  # ids of a branch's draft tokens
DRAFT_NS, FORWARD_NS = 1_000_000, 3_000_000


class Host:
    """Drafts that are always ready, and a target that accepts none, one or two tokens in turn."""

    def __init__(self, branches: int, policy: str) -> None:
        config = EngineConfig(target="-", draft="-", num_drafts=3, k_config=(2, 2, 1), policy=policy, kv_slots=1 << 16)
        self.scheduler = Scheduler(config, Limits(4096, 1 << 20, frozenset()))
        self.now_ns = self.spent_ns = self.num_rounds = self.checksum = 0
        self.drafts: list[DraftOrder] = []
        self.forward: actions.RunForward | None = None
        idx = iter(range(len(TREE.num_children)))
        self.drafted_idx = tuple(next(idx) if num else NOT_DRAFTED for num in TREE.num_children[1:])
        self.trees = [
            TokenTree(tuple(range(first, first + TREE.num_nodes)), TREE.parents, ProposalKind.WITHOUT_REPLACEMENT)
            for first in range(10_000, 10_000 + TOKENS_EACH * branches, TOKENS_EACH)
        ]
        params = SamplingParams(temperature=1.0, max_tokens=NEW, seed=1, ignore_eos=True)
        for worker_id in range(3):
            self.tell(events.WorkerJoined(worker_id, 0))
        for branch_id in range(branches):
            prompt = (*range(SHARED), *(1000 + branch_id,) * OWN)
            self.tell(events.BranchSubmitted(branch_id, 0, prompt, (), params))

    def run(self) -> float:
        """Until all is generated; microseconds a round."""
        while self.scheduler.branches:
            start_ns = time.perf_counter_ns()
            perform(self.scheduler.decide(self.now_ns), self)
            self.spent_ns += time.perf_counter_ns() - start_ns
            drafts, self.drafts = self.drafts, []
            for order in drafts:
                ready_ns, tree = self.now_ns + DRAFT_NS, self.trees[order.branch_id]
                self.tell(
                    events.ProposalArrived(
                        order.worker_id, order.branch_id, order.round, self.now_ns, ready_ns, tree, None,
                        self.drafted_idx,
                    )
                )  # fmt: skip
            if self.forward is not None:
                segments, self.forward = self.forward.segments, None
                self.now_ns += FORWARD_NS
                outcomes = tuple(self.verdict(segment) for segment in segments if segment.verify)
                self.tell(events.ForwardFinished(FORWARD_NS, outcomes))
            self.now_ns += DRAFT_NS
        return self.spent_ns / 1e3 / self.num_rounds

    def tell(self, event: events.Event) -> None:
        start_ns = time.perf_counter_ns()
        perform(self.scheduler.handle(event, self.now_ns), self)
        self.spent_ns += time.perf_counter_ns() - start_ns

    def verdict(self, segment: actions.Segment) -> events.Outcome:
        self.num_rounds += 1
        accepted: list[int] = []
        node_idx = NO_PARENT
        while len(accepted) < self.num_rounds % 3 and segment.tree.children[node_idx + 1]:
            node_idx = segment.tree.children[node_idx + 1][0]
            accepted.append(node_idx)
        return events.Outcome(segment.branch_id, tuple(accepted), 5000 + segment.branch_id)

    # --- the scheduler's host ---

    def send_draft_task(self, order: actions.SendDraftTask) -> None:
        self.drafts.append(order.draft)
        self.note(order.draft.branch_id, order.draft.worker_id)

    def run_forward(self, order: actions.RunForward) -> None:
        self.forward = order
        self.note(*[segment.branch_id for segment in order.segments])

    def commit_tokens(self, order: actions.CommitTokens) -> None:
        self.note(order.branch_id, *order.token_ids)

    def finish_branch(self, order: actions.FinishBranch) -> None:
        self.note(order.branch_id)

    def fail_branch(self, order: actions.FailBranch) -> None:
        raise InternalError(f"branch {order.branch_id} failed: {order.text}")

    def replace_worker(self, order: actions.ReplaceWorker) -> None:
        raise AssertionError(order)

    def wake_at(self, order: actions.WakeAt) -> None:
        self.now_ns = max(self.now_ns, order.at_ns)

    def note(self, *numbers: int) -> None:
        self.checksum = zlib.crc32(repr(numbers).encode(), self.checksum)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--branches", type=int, default=16)
    parser.add_argument("--policy", default="fcfs-batch")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args(argv)
    times = []
    for _ in range(args.repeats):
        host = Host(args.branches, args.policy)
        gc.collect()
        times.append(host.run())
    print(
        f"{args.policy}, {args.branches} branches, {host.num_rounds} rounds: {statistics.median(times):.1f} us a round "
        f"({min(times):.1f} to {max(times):.1f}), checksum {host.checksum:08x}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
