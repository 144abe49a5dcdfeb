"""The verifier: hosts the target, the queue and both arenas' leases, and serves rounds.

One thread: read what has come, let the scheduler decide, send draft tasks, run one forward of the
target, commit. Drafts work in their own processes meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq

from seedmp.config import EngineConfig
from seedmp.decoding.accept import DraftRows, accept, rule_for
from seedmp.decoding.constraint import Constrainer, regex_of
from seedmp.errors import ProtocolError, RequestError
from seedmp.ipc.channel import RouterChannel, receive_on_pipe
from seedmp.ipc.endpoints import draft_endpoint, engine_endpoint
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
    Score,
    Scored,
    Shutdown,
    StatsQuery,
    StatsReply,
    Submit,
    WorkerLost,
)
from seedmp.ipc.span_ring import SpanRing, ring_path
from seedmp.models.rows import BranchRows, pack_rows
from seedmp.models.runner import Runner
from seedmp.sampling import Noise, TargetLaw
from seedmp.scheduler import actions, events
from seedmp.scheduler.scheduler import Scheduler
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree
from seedmp.trace import Activity, Span

log = logging.getLogger(__name__)

IDLE_POLL_MS = 500
MAX_SPANS = 200_000
NS_PER_MS = 1_000_000


class TargetRunner:
    """Runs forwards of the target and applies the accept rules.

    Args:
        runner: of the target.
        constrainer: of the target's tokenizer; None refuses constrained requests.

    Runs in: verifier process, main thread.
    """

    def __init__(self, runner: Runner, constrainer: Constrainer | None = None) -> None:
        self._runner = runner
        self.constrainer = constrainer

    @property
    def vocab_size(self) -> int:
        """Tokens that a text can have."""
        return self._runner.vocab_size

    @property
    def busy_ns(self) -> int:
        """Time spent in forwards so far."""
        return self._runner.busy_ns

    def run(self, segments: Sequence[actions.Segment]) -> tuple[list[events.Outcome], dict[int, np.ndarray]]:
        """One packed forward over all segments.

        Returns:
            outcomes of the segments that were verified, and [texts' tokens] float32 log-probabilities
            of those that were scored, by branch.
        """
        return self.decide(segments, self.forward(segments))

    def forward(self, segments: Sequence[actions.Segment]) -> torch.Tensor:
        """[rows wanted, V] logits of the last tokens and trees of the segments that are verified, in order."""
        branches = [
            BranchRows(
                s.context_slots, s.chain_ids, s.chain_slots, s.tree.token_ids, s.tree.parents, s.tree_slots,
                num_wanted=1 + len(s.tree) if s.verify else 0,
            )
            for s in segments
        ]  # fmt: skip
        return self._runner.run(pack_rows(branches))

    def decide(
        self, segments: Sequence[actions.Segment], logits: torch.Tensor
    ) -> tuple[list[events.Outcome], dict[int, np.ndarray]]:
        """Accept, reject and resample, or score; as ``run`` returns it."""
        outcomes: list[events.Outcome] = []
        scores: dict[int, np.ndarray] = {}
        first = 0
        for s in segments:
            if not s.verify:
                continue
            rows = logits[first : first + 1 + len(s.tree)]
            first += rows.shape[0]
            if s.score:
                scores[s.branch_id] = _log_probs(s.tree, rows)
                outcomes.append(events.Outcome(s.branch_id, (), 0))
                continue
            try:
                outcomes.append(self._verify(s, rows))
            except RequestError as error:
                outcomes.append(events.Outcome(s.branch_id, (), 0, problem=str(error)))
        return outcomes, scores

    def _verify(self, s: actions.Segment, rows: torch.Tensor) -> events.Outcome:
        """Apply the accept rule; what a constraint forbids is taken from the target's law before."""
        constrained = None
        if s.params.is_constrained:
            if self.constrainer is None:
                raise RequestError("the target has no tokenizer: its text cannot be constrained")
            constrained = self.constrainer.walk(regex_of(s.params), s.generated_ids, s.tree)
            rows = constrained.mask(rows)
        law = TargetLaw(s.params.temperature, s.params.top_p, s.params.top_k, self.vocab_size)
        position = s.position + len(s.chain_ids)
        assert s.params.seed is not None
        verdict = accept(
            rule_for(s.tree.kind, s.params.temperature), s.tree,
            s.payload if isinstance(s.payload, DraftRows) else None,
            rows, law, Noise(s.params.seed, s.stream), position,
        )  # fmt: skip
        num_kept = None if constrained is None else constrained.end(verdict.accepted, verdict.next_token)
        return events.Outcome(s.branch_id, verdict.accepted, verdict.next_token, num_kept)


def read_proposal(msg: Proposal, vocab_size: int) -> tuple[TokenTree, DraftRows | None]:
    """The tree that was proposed, and the laws that it was drawn from if the accept rule needs them.

    Raises:
        ProtocolError: they are no tree or no laws, or two nodes claim one slot.
    """
    tree = TokenTree(msg.token_ids, msg.parents, msg.kind)
    in_slots = [drafted_idx for drafted_idx in msg.drafted_idx if drafted_idx >= 0]
    if len(msg.drafted_idx) != len(tree) or len(set(in_slots)) < len(in_slots):
        raise ProtocolError(f"slots {msg.drafted_idx[:8]} of {len(tree)} nodes: each node needs an entry of its own")
    if msg.kind is ProposalKind.DETERMINISTIC:
        return tree, None
    rows = DraftRows(msg.row_ids, msg.row_probs, msg.draws)
    rows.validate(tree, vocab_size)
    return tree, rows


def _log_probs(tree: TokenTree, rows: torch.Tensor) -> np.ndarray:
    """[N] float32 log-probability (nats, temperature 1) of each node after its parent."""
    parents = torch.tensor(tree.parents, device=rows.device) + 1
    tokens = torch.tensor(tree.token_ids, device=rows.device)
    logs = rows.float().log_softmax(-1)[parents].gather(1, tokens[:, None])[:, 0]
    result: np.ndarray = logs.cpu().numpy()
    return result


class Verifier:
    """Connects sockets, scheduler and target; performs what the scheduler orders.

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
        cuda_tensors: tuple[CudaTensor, ...] = (),
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.config = config
        self.scheduler = scheduler
        self.runner = runner
        self.supervisor = supervisor
        self.draft_layout = draft_layout
        self.cuda_tensors = cuda_tensors
        self.clock_ns = clock_ns
        self.context = zmq.Context()
        self.engines = RouterChannel(self.context, engine_endpoint(folder, group, epoch))
        self.drafts = RouterChannel(self.context, draft_endpoint(folder, group, epoch))
        self.owners: dict[int, tuple[bytes, int]] = {}  # branch_id -> (peer, request_id)
        self.branch_ids: dict[tuple[bytes, int], int] = {}
        self.next_branch_id = 0
        self.outbox: list[tuple[bytes, Any]] = []  # for engines; drafts are told first, they are waiting
        self.spans: deque[Span] = deque(maxlen=MAX_SPANS)
        self.overhead_ns = 0
        self.forward_ns = 0
        self.draft_overhead_ns = 0
        self.draft_forward_ns = 0
        self.ring = SpanRing(ring_path(folder, f"verifier-{group}-{epoch}"), clock_ns)
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
            orders = self.scheduler.decide(self.clock_ns())
            self.ring.enter(Activity.IPC)
            self._perform(orders)
            self._send_outbox()
            timeout_ms = self._timeout_ms(orders)
            if ready or orders:
                self.overhead_ns += self.clock_ns() - start_ns - (self.forward_ns - forward_before)
        self._close()

    def _count_bytes(self) -> None:
        channels = (self.engines, self.drafts)
        self.ring.count_bytes(sum(c.bytes_in for c in channels), sum(c.bytes_out for c in channels))

    def _timeout_ms(self, orders: Sequence[actions.Action]) -> int:
        for order in orders:
            if isinstance(order, actions.RunForward):
                return 0  # what it committed may be drafted on
            if isinstance(order, actions.WakeAt):
                return max(0, -(-(order.at_ns - self.clock_ns()) // NS_PER_MS))
        return IDLE_POLL_MS

    def _read_supervisor(self) -> None:
        try:
            while self.supervisor.poll():
                msg = receive_on_pipe(self.supervisor)
                if isinstance(msg, WorkerLost):
                    worker_id = int(msg.worker.rpartition(".")[2])
                    self._tell(events.WorkerLost(worker_id, msg.epoch))
                elif isinstance(msg, Shutdown):
                    self.running = False
        except (EOFError, OSError):
            self.running = False  # the supervisor is gone

    # --- messages -> events ----------------------------------------------------------------------

    def _tell(self, event: events.Event, activity: Activity = Activity.SCHEDULE) -> None:
        self.ring.enter(activity)
        orders = self.scheduler.handle(event, self.clock_ns())
        self.ring.enter(Activity.IPC)
        self._perform(orders)

    def _on_draft_message(self, peer: bytes, msg: Any) -> None:
        if isinstance(msg, Proposal):
            self._on_proposal(peer, msg)
        elif isinstance(msg, ContextReady):
            if self._is_current(peer, msg.epoch):
                self._tell(events.ContextComputed(msg.branch_id, msg.round))
        elif isinstance(msg, DraftHello):
            same = (PROTOCOL_VERSION, self.draft_layout)
            if (msg.protocol_version, msg.arena_layout) != same or _worker_id(peer) != msg.worker_id:
                self.drafts.num_malformed += 1
                log.warning("refused a draft: it speaks %s %s, not %s", msg.protocol_version, msg.arena_layout, same)
                return
            self.drafts.send(peer, DraftWelcome(self.cuda_tensors))
            self._tell(events.WorkerJoined(msg.worker_id, msg.epoch))
        else:
            self.drafts.num_malformed += 1

    def _is_current(self, peer: bytes, epoch: int) -> bool:
        worker_id = _worker_id(peer)
        return worker_id is not None and self.scheduler.workers.get(worker_id) == epoch

    def _on_proposal(self, peer: bytes, msg: Proposal) -> None:
        try:
            tree, rows = read_proposal(msg, self.runner.vocab_size)
        except ProtocolError as error:
            self.drafts.num_malformed += 1
            log.warning("dropped a malformed proposal: %s", error)
            return
        if not self._is_current(peer, msg.epoch) or any(not 0 <= t < self.runner.vocab_size for t in msg.token_ids):
            self.scheduler.counters["stale_proposals"] += 1
            return
        worker_id = _worker_id(peer)
        assert worker_id is not None
        self.spans.append(Span("draft", worker_id, msg.branch_id, msg.started_ns, msg.ready_ns))
        self.draft_forward_ns += msg.forward_ns
        self.draft_overhead_ns += msg.ready_ns - msg.started_ns - msg.forward_ns
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
                        _keeper(peer, msg.branch), _keeper(peer, msg.child),
                    )
                )  # fmt: skip
        elif isinstance(msg, Score):
            self._on_score(peer, msg)
        elif isinstance(msg, Cancel):
            branch_id = self.branch_ids.get((peer, msg.request_id))
            if branch_id is not None:
                self._tell(events.BranchCancelled(branch_id))
        elif isinstance(msg, CloseBranches):
            self._tell(events.KeepersLeft(tuple((peer, branch) for branch in msg.branches), msg.free))
        elif isinstance(msg, StatsQuery):
            self.engines.send(peer, self._stats(msg))
        elif isinstance(msg, EngineHello):
            limits = self.scheduler.limits
            self.engines.send(peer, EngineWelcome(PROTOCOL_VERSION, limits.max_model_len, self.config.kv_slots))
        else:
            self.engines.num_malformed += 1

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
        self._tell(events.ScoreRequested(branch_id, msg.prompt_ids, tree, _keeper(peer, msg.branch)))

    # --- orders ---------------------------------------------------------------------------------

    def _perform(self, orders: Sequence[actions.Action]) -> None:
        for order in orders:
            match order:
                case actions.SendDraftTask():
                    self._send_draft_task(order)
                case actions.RunForward():
                    self._send_outbox()
                    self._run_forward(order)
                case actions.CommitTokens():
                    peer, request_id = self.owners[order.branch_id]
                    self.outbox.append((peer, Committed(request_id, order.token_ids)))
                case actions.FinishBranch():
                    self._finish(order)
                case actions.FailBranch():
                    peer, request_id = self._forget(order.branch_id)
                    self.outbox.append((peer, Failed(request_id, order.kind, order.text)))

    def _send_outbox(self) -> None:
        for peer, msg in self.outbox:
            self.engines.send(peer, msg)
        self.outbox.clear()

    def _send_draft_task(self, order: actions.SendDraftTask) -> None:
        epoch = self.scheduler.workers[order.worker_id]
        task = DraftTask(
            order.branch_id, order.round, epoch, order.seed, order.stream, order.children, order.kind,
            order.draft_temperature, order.announce, np.asarray(order.context_slots, dtype="<i4"),
            order.pending_ids, np.asarray(order.slots, dtype="<i4"), order.adaptive, order.shared_noise,
            np.asarray(order.feature_slots, dtype="<i4"),
        )  # fmt: skip
        self.drafts.send(f"draft-{order.worker_id}-{epoch}".encode(), task)

    def _run_forward(self, order: actions.RunForward) -> None:
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
        self.spans.append(Span("verify", -1, branch_id, start_ns, end_ns))
        for segment in verified:
            branch = self.scheduler.branches.get(segment.branch_id)
            if branch is not None:
                ready_ns = min(branch.ready_ns, start_ns)
                self.spans.append(Span("queue", -1, segment.branch_id, ready_ns, start_ns))
                self.ring.note(Activity.QUEUE, segment.branch_id, len(segment.tree), ready_ns, start_ns)
        for scored_id, logprobs in scores.items():
            peer, request_id = self.owners[scored_id]
            self.outbox.append((peer, Scored(request_id, logprobs)))
        self._tell(events.ForwardFinished(end_ns - start_ns, tuple(outcomes)), Activity.COMMIT)

    def _forget(self, branch_id: int) -> tuple[bytes, int]:
        owner = self.owners.pop(branch_id)
        del self.branch_ids[owner]
        return owner

    def _finish(self, order: actions.FinishBranch) -> None:
        peer, request_id = self._forget(order.branch_id)
        c = order.counters
        finished = Finished(
            request_id, order.reason, order.stop, c.rounds, c.drafted, c.accepted, c.queue_wait_ns,
            c.first_token_ns, self.clock_ns(), c.target_prefill_tokens, c.draft_prefill_tokens,
        )  # fmt: skip
        self.outbox.append((peer, finished))

    def _stats(self, query: StatsQuery) -> StatsReply:
        scheduler = self.scheduler
        values: dict[str, float] = {name: float(value) for name, value in scheduler.counters.items()}
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
            "active_branches": len(scheduler.branches),
            "queue_len": len(scheduler.queue()),
            "drafts_alive": len(scheduler.workers),
            "target_slots_free": scheduler.target_slots.num_free,
            "draft_slots_free": scheduler.draft_slots.num_free,
            "branches_kept": scheduler.target_slots.num_kept,
            "target_slots_leased": scheduler.target_slots.num_leased,
            "draft_slots_leased": scheduler.draft_slots.num_leased,
        }
        spans = list(self.spans) if query.with_spans else []
        if query.reset:
            self.spans.clear()
        return StatsReply(
            query.query_id, tuple(values), tuple(float(value) for value in values.values()),
            tuple(span.kind for span in spans), tuple(span.worker_id for span in spans),
            tuple(span.branch_id for span in spans), tuple(span.start_ns for span in spans),
            tuple(span.end_ns for span in spans),
        )  # fmt: skip

    def _close(self) -> None:
        for worker_id, epoch in self.scheduler.workers.items():
            self.drafts.send(f"draft-{worker_id}-{epoch}".encode(), Shutdown())
        self.drafts.socket.setsockopt(zmq.LINGER, 200)
        self.engines.close()
        self.drafts.close()
        self.ring.close()
        self.context.term()


def _keeper(peer: bytes, branch: int) -> tuple[bytes, int] | None:
    return (peer, branch) if branch else None


def _worker_id(peer: bytes) -> int | None:
    """The worker behind a socket identity ``draft-ID-EPOCH``; None for anything else."""
    parts = peer.split(b"-")
    return int(parts[1]) if len(parts) == 3 and parts[0] == b"draft" and parts[1].isdigit() else None
