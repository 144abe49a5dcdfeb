"""The verifier: hosts the target, the queue and both arenas' leases, and serves rounds.

One thread: read what has come, let the scheduler decide, send draft tasks, run one forward of the
target, commit. Drafts work in their own processes meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import zmq

from seedmp.config import EngineConfig
from seedmp.errors import ProtocolError
from seedmp.ids import Incarnation, WorkerName
from seedmp.ipc.channel import RouterChannel, receive_on_pipe, send_on_pipe
from seedmp.ipc.codec import Refused
from seedmp.ipc.endpoints import draft_endpoint, draft_identity, engine_endpoint
from seedmp.ipc.messages import (
    PROTOCOL_VERSION,
    Cancel,
    CloseBranches,
    Committed,
    ContextReady,
    CudaTensor,
    DraftHello,
    DraftTask,
    DraftWelcome,
    EngineHello,
    EngineWelcome,
    Failed,
    Finished,
    Proposal,
    ReplaceWorker,
    Score,
    Scored,
    Shutdown,
    StatsQuery,
    StatsReply,
    Submit,
    WorkerLost,
)
from seedmp.ipc.span_ring import SpanRing, ring_path
from seedmp.scheduler import actions, events
from seedmp.scheduler.drafting import NO_TASK
from seedmp.scheduler.hosts import perform
from seedmp.scheduler.scheduler import Scheduler
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree
from seedmp.trace import Activity
from seedmp.workers.target import ProposalLimits, TargetRunner, read_proposal

log = logging.getLogger(__name__)

IDLE_POLL_MS = 500
NS_PER_MS = 1_000_000


class Verifier:
    """Connects sockets, scheduler and target; the scheduler's host.

    Runs in: verifier process, main thread.
    """

    def __init__(
        self,
        config: EngineConfig,
        scheduler: Scheduler,
        runner: TargetRunner,
        folder: Path,
        group: int,
        epoch: int,
        supervisor: Connection,
        draft_layout: str,
        draft_secret: bytes,
        cuda_tensors: tuple[CudaTensor, ...] = (),
        keep: object = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.config = config
        self.scheduler = scheduler
        self.runner = runner
        self.group = group
        self.supervisor = supervisor
        self.draft_layout = draft_layout
        self.draft_secret = draft_secret
        self.draft_peers: dict[int, bytes] = {}  # worker_id -> socket of the last incarnation that said hello
        self.cuda_tensors = cuda_tensors
        self.keep = keep  # GPU memory that drafts map lives as long as this process
        self.clock_ns = clock_ns
        self.context = zmq.Context()
        self.engines = RouterChannel(self.context, engine_endpoint(folder, group, epoch))
        self.drafts = RouterChannel(self.context, draft_endpoint(folder, group, epoch))
        self.owners: dict[int, tuple[bytes, int]] = {}  # branch_id -> (peer, request_id)
        self.branch_ids: dict[tuple[bytes, int], int] = {}
        self.next_branch_id = 0
        self.outbox: list[tuple[bytes, Any]] = []  # for engines; drafts are told first, they are waiting
        self.wake_ns: int | None = None  # when to decide again even if nothing comes
        self.proposal_limits = ProposalLimits(runner.vocab_size, config.method.max_tree_nodes, config.draft_top_m)
        self.ending: set[tuple[int, int]] = set()  # incarnations that the supervisor was asked to end
        self.num_stale = 0  # proposals of workers that are gone
        self.overhead_ns = 0
        self.forward_ns = 0
        self.draft_overhead_ns = 0
        self.draft_forward_ns = 0
        self.ring = SpanRing(ring_path(folder, str(Incarnation(WorkerName(group), epoch))), clock_ns)
        self.running = True

    # --- the loop -------------------------------------------------------------------------------

    def serve(self, beat: Callable[[], None]) -> None:
        """Serve until Shutdown comes or the supervisor is gone."""
        poller = zmq.Poller()
        poller.register(self.engines.socket, zmq.POLLIN)
        poller.register(self.drafts.socket, zmq.POLLIN)
        poller.register(self.supervisor.fileno(), zmq.POLLIN)
        timeout_ms = 0
        while self.running:
            self._count_bytes()
            self.ring.enter(Activity.IDLE)
            ready = dict(poller.poll(timeout_ms))
            self.ring.enter(Activity.IPC)
            beat()
            start_ns, forward_before = self.clock_ns(), self.forward_ns
            if self.supervisor.fileno() in ready:
                self._read_supervisor()
            for peer, msg in self.drafts.receive_all():
                self._on_draft_message(peer, msg)
            for peer, msg in self.engines.receive_all():
                self._on_engine_message(peer, msg)
            self.ring.enter(Activity.SCHEDULE)
            self.wake_ns = None
            orders = self.scheduler.decide(self.clock_ns())
            self.ring.enter(Activity.IPC)
            perform(orders, self)
            self._send_outbox()
            timeout_ms = self._timeout_ms()
            if ready or orders:
                self.overhead_ns += self.clock_ns() - start_ns - (self.forward_ns - forward_before)
        self._close()

    def _count_bytes(self) -> None:
        channels = (self.engines, self.drafts)
        self.ring.count_bytes(sum(c.bytes_in for c in channels), sum(c.bytes_out for c in channels))

    def _timeout_ms(self) -> int:
        if self.wake_ns is None:
            return IDLE_POLL_MS
        return max(0, -(-(self.wake_ns - self.clock_ns()) // NS_PER_MS))

    def _read_supervisor(self) -> None:
        try:
            while self.supervisor.poll():
                msg = receive_on_pipe(self.supervisor)
                if isinstance(msg, WorkerLost):
                    draft = WorkerName.parse(msg.worker).draft
                    assert draft is not None, f"{msg.worker} is no draft"
                    self.ending.discard((draft, msg.epoch))
                    self._tell(events.WorkerLost(draft, msg.epoch))
                elif isinstance(msg, Shutdown):
                    self.running = False
        except (EOFError, OSError):
            self.running = False  # the supervisor is gone

    # --- messages -> events ----------------------------------------------------------------------

    def _tell(self, event: events.Event, activity: Activity = Activity.SCHEDULE) -> None:
        self.ring.enter(activity)
        orders = self.scheduler.handle(event, self.clock_ns())
        self.ring.enter(Activity.IPC)
        perform(orders, self)

    def _on_draft_message(self, peer: bytes, msg: Any) -> None:
        if isinstance(msg, DraftHello):
            self._on_hello(peer, msg)
            return
        worker_id = self._current_worker(peer)
        if worker_id is None:
            if isinstance(msg, Proposal):
                self.num_stale += 1
            elif not isinstance(msg, ContextReady | Refused):
                self.drafts.count_malformed(f"a {type(msg).__name__} of a draft")
        elif isinstance(msg, Proposal):
            self._on_proposal(worker_id, msg)
        elif isinstance(msg, ContextReady):
            if msg.epoch == self.scheduler.workers[worker_id]:
                self._tell(events.ContextComputed(worker_id, msg.branch_id, msg.round))
        elif isinstance(msg, Refused):
            is_answer = msg.kind is Proposal and msg.numbers[2:] == (self.scheduler.workers[worker_id],)
            branch_id, round_ = msg.numbers[:2] if is_answer else (NO_TASK, NO_TASK)
            self._tell(events.AnswerRefused(worker_id, branch_id, round_, msg.why))
        else:
            self.drafts.count_malformed(f"a {type(msg).__name__} of a draft")
            self._tell(events.AnswerRefused(worker_id, NO_TASK, NO_TASK, f"it sent a {type(msg).__name__}"))

    def _on_hello(self, peer: bytes, msg: DraftHello) -> None:
        self._read_supervisor()  # it tells of a death before it starts the next incarnation
        worker_id, epoch = msg.worker_id, msg.epoch
        present = self.scheduler.workers.get(worker_id, epoch)
        same = (PROTOCOL_VERSION, self.draft_layout)
        problem = ""
        if peer != draft_identity(Incarnation(WorkerName(self.group, worker_id), epoch), self.draft_secret):
            problem = f"nobody has started it: its socket is not that of worker {worker_id}, epoch {epoch}"
        elif (msg.protocol_version, msg.arena_layout) != same:
            problem = f"it speaks {msg.protocol_version} {msg.arena_layout[:200]}, not {same}"
        elif (worker_id, epoch) in self.ending:
            problem = f"epoch {epoch} of worker {worker_id} is being replaced"
        elif present > epoch:
            problem = f"worker {worker_id} is there, in epoch {present}, not {epoch}"
        if problem:
            self.drafts.count_malformed(f"a draft is refused: {problem}")
            return
        if present != epoch:  # the supervisor starts the next one when this one is reaped
            self._tell(events.WorkerLost(worker_id, present))
        self.draft_peers[worker_id] = peer
        self.drafts.send(peer, DraftWelcome(self.cuda_tensors))
        self._tell(events.WorkerJoined(worker_id, epoch))

    def _current_worker(self, peer: bytes) -> int | None:
        """The worker behind a socket, if it is one that gets tasks."""
        worker_id = _worker_id(peer)
        is_there = worker_id in self.scheduler.workers and self.draft_peers[worker_id] == peer
        return worker_id if is_there else None

    def _on_proposal(self, worker_id: int, msg: Proposal) -> None:
        try:
            if msg.epoch != self.scheduler.workers[worker_id]:
                raise ProtocolError(f"epoch {msg.epoch}: must be {self.scheduler.workers[worker_id]}")
            tree, rows = read_proposal(msg, self.proposal_limits)
        except ProtocolError as error:
            self.drafts.count_malformed(f"a proposal: {error}")
            self._tell(events.AnswerRefused(worker_id, msg.branch_id, msg.round, str(error)))
            return
        if 0 <= msg.forward_ns <= msg.ready_ns - msg.started_ns and 0 <= msg.started_ns <= self.clock_ns():
            self.draft_forward_ns += msg.forward_ns
            self.draft_overhead_ns += min(msg.ready_ns, self.clock_ns()) - msg.started_ns - msg.forward_ns
        self._tell(
            events.ProposalArrived(
                worker_id, msg.branch_id, msg.round, msg.started_ns, msg.ready_ns, tree, rows, msg.drafted_idx
            )
        )

    def _on_engine_message(self, peer: bytes, msg: Any) -> None:
        if isinstance(msg, Submit):
            branch_id = self._new_branch(peer, msg.request_id)
            if branch_id is not None:
                self._tell(
                    events.BranchSubmitted(
                        branch_id, msg.stream, msg.prompt_ids, msg.committed_ids, msg.params,
                        _owner(peer, msg.branch), _owner(peer, msg.child), msg.priority, msg.user,
                    )
                )  # fmt: skip
        elif isinstance(msg, Score):
            self._on_score(peer, msg)
        elif isinstance(msg, Cancel):
            branch_id = self.branch_ids.get((peer, msg.request_id))
            if branch_id is not None:
                self._tell(events.BranchCancelled(branch_id))
        elif isinstance(msg, CloseBranches):
            self._tell(events.OwnersLeft(tuple((peer, branch) for branch in msg.branches), msg.free))
        elif isinstance(msg, StatsQuery):
            self.engines.send(peer, self._stats(msg))
        elif isinstance(msg, EngineHello):
            limits = self.scheduler.limits
            self.engines.send(peer, EngineWelcome(PROTOCOL_VERSION, limits.max_model_len, self.config.kv_slots))
        elif isinstance(msg, Refused):
            self._fail_refused(peer, msg)
        else:
            self.engines.count_malformed(f"a {type(msg).__name__} of an engine")

    def _fail_refused(self, peer: bytes, msg: Refused) -> None:
        """Whoever waits for a request that cannot be read is told; the copy of one that is served fails nobody."""
        if msg.kind in (Submit, Score) and msg.numbers and (peer, msg.numbers[0]) not in self.branch_ids:
            self.engines.send(peer, Failed(msg.numbers[0], "RejectedError", msg.why))

    def _new_branch(self, peer: bytes, request_id: int) -> int | None:
        if (peer, request_id) in self.branch_ids:
            return None
        branch_id = self.next_branch_id
        self.next_branch_id += 1
        self.owners[branch_id] = peer, request_id
        self.branch_ids[peer, request_id] = branch_id
        return branch_id

    def _on_score(self, peer: bytes, msg: Score) -> None:
        if min(msg.lengths, default=0) < 1 or sum(msg.lengths) != len(msg.token_ids):
            text = f"texts of {msg.lengths[:8]} tokens to score: each must have at least one"
            self.engines.send(peer, Failed(msg.request_id, "RejectedError", text))
            return
        branch_id = self._new_branch(peer, msg.request_id)
        if branch_id is None:
            return
        parents: list[int] = []
        for length in msg.lengths:
            parents += [NO_PARENT, *range(len(parents), len(parents) + length - 1)]
        tree = TokenTree(msg.token_ids, tuple(parents), ProposalKind.DETERMINISTIC)
        self._tell(events.ScoreRequested(branch_id, msg.prompt_ids, tree, _owner(peer, msg.branch)))

    # --- orders ---------------------------------------------------------------------------------

    def send_draft_task(self, order: actions.SendDraftTask) -> None:
        draft = order.draft
        self.drafts.send(self.draft_peers[draft.worker_id], DraftTask(draft))

    def run_forward(self, order: actions.RunForward) -> None:
        self._send_outbox()
        start_ns = self.clock_ns()
        forward_before = self.runner.busy_ns
        verified = [s for s in order.segments if s.verify]
        branch_id = verified[0].branch_id if len(verified) == 1 else -1
        num_rows = sum(len(s.chain_ids) + len(s.tree) for s in order.segments)
        self.ring.enter(Activity.VERIFY, branch_id, num_rows)
        logits = self.runner.forward(order.segments)
        if logits.is_cuda and self.ring.is_recording:
            torch.cuda.synchronize(logits.device)  # or the accept rule would seem to take the forward's time
        self.ring.enter(Activity.RESAMPLE, branch_id, len(verified))
        outcomes, scores = self.runner.decide(order.segments, logits)
        end_ns = self.clock_ns()
        self.forward_ns += self.runner.busy_ns - forward_before
        for segment in verified:
            ready_ns = min(segment.ready_ns, start_ns)
            self.ring.note(Activity.QUEUE, segment.branch_id, len(segment.tree), ready_ns, start_ns)
        for scored_id, logprobs in scores.items():
            peer, request_id = self.owners[scored_id]
            self.outbox.append((peer, Scored(request_id, logprobs)))
        self._tell(events.ForwardFinished(end_ns - start_ns, tuple(outcomes)), Activity.COMMIT)
        self.wake_ns = end_ns  # at once: what it committed may be drafted on

    def commit_tokens(self, order: actions.CommitTokens) -> None:
        peer, request_id = self.owners[order.branch_id]
        self.outbox.append((peer, Committed(request_id, order.token_ids)))

    def finish_branch(self, order: actions.FinishBranch) -> None:
        peer, request_id = self._forget(order.branch_id)
        finished = Finished(request_id, order.reason, order.stop, self.clock_ns(), order.counters)
        self.outbox.append((peer, finished))

    def fail_branch(self, order: actions.FailBranch) -> None:
        peer, request_id = self._forget(order.branch_id)
        self.outbox.append((peer, Failed(request_id, order.kind, order.text)))

    def replace_worker(self, order: actions.ReplaceWorker) -> None:
        worker = str(WorkerName(self.group, order.worker_id))
        log.warning("%s, epoch %d, is to be replaced: %s", worker, order.epoch, order.reason)
        self.ending.add((order.worker_id, order.epoch))
        try:
            send_on_pipe(self.supervisor, ReplaceWorker(worker, order.epoch, order.reason))
        except OSError:
            self.running = False  # the supervisor is gone

    def wake_at(self, order: actions.WakeAt) -> None:
        self.wake_ns = order.at_ns

    def _send_outbox(self) -> None:
        for peer, msg in self.outbox:
            self.engines.send(peer, msg)
        self.outbox.clear()

    def _forget(self, branch_id: int) -> tuple[bytes, int]:
        owner = self.owners.pop(branch_id)
        del self.branch_ids[owner]
        return owner

    def _stats(self, query: StatsQuery) -> StatsReply:
        values = self.scheduler.figures()
        values["stale_proposals"] += self.num_stale
        values |= {
            "overhead_ns": self.overhead_ns,
            "forward_ns": self.forward_ns,
            "draft_overhead_ns": self.draft_overhead_ns,
            "draft_forward_ns": self.draft_forward_ns,
            "engine_bytes_in": self.engines.bytes_in,
            "engine_bytes_out": self.engines.bytes_out,
            "draft_bytes_in": self.drafts.bytes_in,
            "draft_bytes_out": self.drafts.bytes_out,
            "malformed_messages": self.engines.num_malformed + self.drafts.num_malformed,
        }
        return StatsReply(query.query_id, tuple(values), tuple(float(value) for value in values.values()))

    def _close(self) -> None:
        for worker_id in self.scheduler.workers:
            self.drafts.send(self.draft_peers[worker_id], Shutdown())
        self.drafts.socket.setsockopt(zmq.LINGER, 200)
        self.engines.close()
        self.drafts.close()
        self.ring.close()
        self.context.term()


def _owner(peer: bytes, branch: int) -> tuple[bytes, int] | None:
    return (peer, branch) if branch else None


def _worker_id(peer: bytes) -> int | None:
    """The draft worker behind a socket's identity; None for anything else."""
    try:
        return Incarnation.parse(peer.decode().rpartition("-")[0]).worker.draft
    except ValueError:
        return None
