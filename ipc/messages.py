"""Every message that travels between processes, grouped by link.

Each docstring says: from whom to whom; when; what answers it; what a late copy does; size.
Letters: C context tokens, p pending tokens, N draft tokens, M draws, I internal nodes, m pairs a row.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from seedmp.draft_order import DraftOrder
from seedmp.ipc.codec import MAX_INT, Length, Range, message
from seedmp.metrics import RequestCounters
from seedmp.sampling import SamplingParams
from seedmp.token_tree.tree import ProposalKind

PROTOCOL_VERSION = 4
MAX_INDEX = 2**31 - 1

Natural = Annotated[int, Range(0, MAX_INT)]  # ids of requests and branches, rounds
Index = Annotated[int, Range(0, MAX_INDEX)]  # workers, epochs
TokenIds = Annotated[tuple[int, ...], Range(0, MAX_INDEX)]
NodeIds = Annotated[tuple[int, ...], Range(-1, MAX_INDEX)]  # -1: none
ShortText = Annotated[str, Length(256)]


# --- draft worker -> verifier ---------------------------------------------------------------


@message("draft-hello")
class DraftHello:
    """Draft worker → verifier, once it can draft; answered by DraftWelcome. A copy is ignored. O(1)."""

    worker_id: Index
    epoch: Index
    protocol_version: Index
    arena_layout: str


@message("context-ready")
class ContextReady:
    """Draft worker → verifier, when the KV of a task's pending tokens is in the arena, before drafting goes on.

    Lets other branches share the prompt. Sent only for tasks with ``announce``; needs no answer; a copy
    or one of another (round, epoch) is dropped. O(1).
    """

    branch_id: Natural
    round: Natural
    epoch: Index


@message("proposal")
class Proposal:
    """Draft worker → verifier: the token tree grown for one round.

    Answers DraftTask. A copy, or one whose (round, epoch) is not awaited, is counted and dropped.
    Size O(N + M) + one sparse row of m pairs per internal node when the accept rule needs them.
    """

    branch_id: Natural
    round: Natural
    epoch: Index
    started_ns: int  # CLOCK_MONOTONIC
    ready_ns: int  # CLOCK_MONOTONIC; the queue serves the earliest first
    forward_ns: int  # of ready_ns - started_ns, spent in model forwards
    token_ids: TokenIds  # [N]
    parents: NodeIds  # [N], NO_PARENT at the root
    kind: ProposalKind
    row_ids: np.ndarray  # [I, m] int32
    row_probs: np.ndarray  # [I, m] float32
    drafted_idx: NodeIds = ()  # [N] which slot lent for the tree has a node's KV, -1: none
    draws: NodeIds = ()  # [M] node of each draw of an iid tree; empty if no two siblings were equal


# --- verifier -> draft worker ---------------------------------------------------------------


@message("cuda-tensor")
class CudaTensor:
    """A CUDA IPC handle of one shared tensor (torch's rebuild arguments); never its contents. O(1)."""

    name: str
    dtype: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    device: int
    handle: bytes
    storage_size_bytes: int
    storage_offset_bytes: int
    ref_counter_handle: bytes
    ref_counter_offset: int
    event_handle: bytes
    event_sync_required: bool


@message("draft-welcome")
class DraftWelcome:
    """Verifier → draft worker: answers DraftHello; on CUDA with the handles of arena and weights. A copy is ignored."""

    tensors: tuple[CudaTensor, ...] = ()


@message("draft-task")
class DraftTask:
    """Verifier → draft worker: grow one proposal; also the verdict on the last one (what follows the context).

    Holds all that a draft needs, so any worker can serve any branch. ``order.slots`` are lent to the worker for
    this round: it may write them and nothing else. Answered by Proposal. Size O(C + N).
    """

    order: DraftOrder


@message("shutdown")
class Shutdown:
    """Verifier → draft worker, supervisor → verifier: finish and exit. Needs no answer. O(1)."""


# --- engine -> verifier ---------------------------------------------------------------------


@message("engine-hello")
class EngineHello:
    """Engine → verifier, first on a link; answered by EngineWelcome. O(1)."""

    protocol_version: Index


@message("submit")
class Submit:
    """Engine → verifier: one continuation of a prompt; answered by Committed ..., Finished or Failed.

    ``committed_ids`` are tokens that an earlier verifier had already committed. A known id is dropped. O(C).
    ``branch`` and ``child`` are the engine's open branches (0: none) whose tokens are the prompt, and the prompt
    with all that is generated: their KV is evicted last, until CloseBranches.
    """

    request_id: Natural
    stream: Natural
    prompt_ids: tuple[int, ...]
    committed_ids: tuple[int, ...]
    params: SamplingParams  # seed is set
    branch: Natural = 0
    child: Natural = 0
    priority: int = 0  # for policies that look at it: higher is more urgent
    user: ShortText = ""  # for policies that look at it: who asks


@message("score")
class Score:
    """Engine → verifier: log-probabilities of continuations of one context; answered by Scored or Failed.

    ``branch`` as in Submit.
    """

    request_id: Natural
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]  # all continuations, end to end
    lengths: tuple[int, ...]
    branch: Natural = 0


@message("close-branches")
class CloseBranches:
    """Engine → verifier: these branches will not be continued; with ``free`` their KV is freed where nobody
    else uses it, else it stays as a cached prefix. Needs no answer; a copy or an unknown id is ignored. O(ids).
    """

    branches: tuple[int, ...]
    free: bool


@message("cancel")
class Cancel:
    """Engine → verifier: drop a request; answered by Failed unless it was finished. A copy is ignored. O(1)."""

    request_id: Natural


@message("stats-query")
class StatsQuery:
    """Engine → verifier: answered by StatsReply, within a forward. O(1)."""

    query_id: Natural


# --- verifier -> engine ---------------------------------------------------------------------


@message("engine-welcome")
class EngineWelcome:
    """Verifier → engine: answers EngineHello with the limits that requests are held to. O(1)."""

    protocol_version: int
    max_model_len: int
    kv_slots: int


@message("committed")
class Committed:
    """Verifier → engine, after each round: tokens that are final. In order, each once. O(new tokens)."""

    request_id: int
    token_ids: tuple[int, ...]


@message("finished")
class Finished:
    """Verifier → engine: the request is complete; nothing follows for it. O(1)."""

    request_id: int
    reason: str
    stop: str
    finished_ns: int  # CLOCK_MONOTONIC
    counters: RequestCounters


@message("scored")
class Scored:
    """Verifier → engine: answers Score. One log-probability (nats) per continuation token."""

    request_id: int
    logprobs: np.ndarray  # [sum of lengths] float32


@message("failed")
class Failed:
    """Verifier → engine: the request failed; ``kind`` names the exception. Nothing follows for it. O(1)."""

    request_id: int
    kind: str
    text: str


@message("stats-reply")
class StatsReply:
    """Verifier → engine: answers StatsQuery with counters by name. O(counters)."""

    query_id: int
    names: tuple[str, ...]
    values: tuple[float, ...]


# --- supervisor: pipes to the engine and to the workers ----------------------------------------


@message("worker-ready")
class WorkerReady:
    """Worker → supervisor → engine: the worker serves from now on. O(1)."""

    worker: str
    epoch: int
    pid: int


@message("worker-failed")
class WorkerFailed:
    """Worker → supervisor: it cannot go on (start-up or outermost frame); it exits next. O(traceback)."""

    worker: str
    epoch: int
    kind: str
    text: str
    traceback_text: str


@message("worker-lost")
class WorkerLost:
    """Supervisor → verifier (of a draft) and → engine: the process is gone and reaped. O(1)."""

    worker: str
    epoch: int
    exitcode: int


@message("replace-worker")
class ReplaceWorker:
    """Verifier → supervisor: a draft is stalled, or what it sends is refused; it gets no more tasks.

    Answered by WorkerLost once the process is killed and reaped, or at once if there is no such incarnation. O(1).
    """

    worker: str
    epoch: int
    reason: str


@message("group-started")
class GroupStarted:
    """Supervisor → engine: verifier ``group`` and its drafts serve at ``endpoint``. Again after a restart."""

    group: int
    epoch: int
    endpoint: str


@message("engine-down")
class EngineDown:
    """Supervisor → engine: nothing will be served any more; the supervisor exits next."""

    kind: str
    text: str
    worker: str
    last_log: str
