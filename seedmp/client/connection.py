"""The connection: one thread that talks to the verifiers and knows every request in flight.

It hands work to groups, sends it again with its committed tokens when a group was lost, and tells everybody who
waits when nothing will be served any more. It starts no process: a ``GroupSource`` says where groups serve.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Any

import numpy as np
import zmq

from seedmp import errors
from seedmp.client.detokenize import Detokenizer
from seedmp.client.in_flight import Job, Pending, PendingJob, PendingScore, Routes
from seedmp.client.launch import GroupEvent, GroupSource
from seedmp.errors import (
    CancelledError,
    ConfigError,
    EngineDeadError,
    RejectedError,
    RequestError,
    RequestTimeoutError,
    WorkerStartError,
)
from seedmp.ids import WorkerName
from seedmp.ipc import codec
from seedmp.ipc.channel import DealerChannel
from seedmp.ipc.messages import (
    PROTOCOL_VERSION,
    Cancel,
    CloseBranches,
    Committed,
    EngineDown,
    EngineHello,
    EngineWelcome,
    Failed,
    Finished,
    GroupStarted,
    Score,
    Scored,
    StatsQuery,
    StatsReply,
    Submit,
    WorkerLost,
    WorkerReady,
)
from seedmp.ipc.span_ring import SpanRing
from seedmp.request import RequestHandle, settle
from seedmp.trace import Activity

log = logging.getLogger(__name__)

JOIN_S = 6.0
POLL_MS = 500
STATS_S = 60.0
CANCELLED = "the request was cancelled"

Frames = list[bytes | memoryview]


class Connection:
    """Requests in flight, and the links to the verifiers that serve them.

    Methods may be called in any thread. Sockets are made, used and closed in a thread of its own.

    Args:
        source: where groups serve.
        detokenizer: makes text of tokens.
        ring: told what the thread does; closed at its end.
        channel_type: a link to the endpoint of a verifier.
    """

    def __init__(
        self,
        source: GroupSource,
        detokenizer: Detokenizer,
        ring: SpanRing,
        channel_type: Callable[[Any, str, bytes], DealerChannel] = DealerChannel,
    ) -> None:
        self.pids: dict[str, int] = {}
        self.num_lost = 0
        self._source = source
        self._detokenizer = detokenizer
        self._ring = ring
        self._channel_type = channel_type
        self._thread = threading.Thread(target=self._run, name="seedmp-engine", daemon=True)
        self._started = threading.Event()
        self._lock = threading.Lock()  # guards what the users' threads touch: from here to dead
        self._orders: list[tuple[int, Frames]] = []  # for a group; encoded by who ordered
        self._cancelled: list[int] = []  # requests to be dropped
        self._pending: dict[int, Pending] = {}
        self._queries: dict[int, tuple[int, Future[StatsReply]]] = {}  # with the group that is asked
        self._routes = Routes(source.num_groups)
        self._next_id = 0
        self._wake_read, wake_write = os.pipe()
        self._wake_write: int | None = wake_write  # None once the thread has ended
        self.dead: BaseException | None = None  # why nothing is served any more
        self._dropped: deque[tuple[int, bool]] = deque()  # branches; filled without the lock, by finalizers too
        self._channels: dict[int, DealerChannel] = {}

    # --- called from the users' threads ------------------------------------------------------------

    def start(self, timeout_s: float) -> None:
        """Begin, and wait until every group serves.

        Raises:
            ConfigError, WorkerStartError: a group could not be started, or not in time.
            EngineDeadError: the source is gone.
        """
        self._thread.start()
        if not self._started.wait(timeout_s):
            raise WorkerStartError(f"the workers were not ready within {timeout_s:.0f} s")
        if self.dead is not None:
            raise self.dead

    def submit(self, job: Job) -> RequestHandle:
        """Start a continuation and return at once.

        Raises:
            RejectedError: the request cannot be sent.
            EngineDeadError, EngineClosedError: nothing is served any more.
        """
        handle = RequestHandle(self._new_id(), self._request_cancel)
        pending = PendingJob(job, handle, time.monotonic_ns(), group=0)
        frames = _encoded(pending.message())
        with self._lock:
            self._check_alive()
            pending.group = self._routes.for_job(job, self._pending.values())
            self._add(handle.request_id, pending, frames)
        return handle

    def score(
        self, prompt_ids: tuple[int, ...], flat: tuple[int, ...], lengths: tuple[int, ...], branch: int
    ) -> Future[list[np.ndarray]]:
        """Start scoring continuations of a context.

        Args:
            flat: tokens of all continuations, one after another.
            lengths: of each.
            branch: id of the open branch that the context is; 0: none.

        Returns:
            the future of one float32 array a continuation; cancelling it cancels the request.

        Raises:
            RejectedError: the request cannot be sent.
            EngineDeadError, EngineClosedError: nothing is served any more.
        """
        future: Future[list[np.ndarray]] = Future()
        request_id = self._new_id()
        pending = PendingScore(future, Score(request_id, prompt_ids, flat, lengths, branch), group=0)
        frames = _encoded(pending.message())
        with self._lock:
            self._check_alive()
            pending.group = self._routes.for_score(branch, self._pending.values())
            self._add(request_id, pending, frames)
        future.add_done_callback(lambda done: self._request_cancel(request_id) if done.cancelled() else None)
        return future

    def query(self) -> list[StatsReply]:
        """Counters of every group; a verifier that dies meanwhile is asked again when it is back.

        Raises:
            EngineDeadError, EngineClosedError: nothing is served any more.
            RequestTimeoutError: a verifier does not answer, and was not replaced in time.
        """
        asked: dict[int, Future[StatsReply]] = {}
        with self._lock:
            self._check_alive()
            for group in range(self._source.num_groups):
                query_id = self._take_id()
                asked[query_id] = Future()
                self._queries[query_id] = group, asked[query_id]
                self._order(group, codec.encode(StatsQuery(query_id)))
        deadline = time.monotonic() + STATS_S
        try:
            return [future.result(max(0.0, deadline - time.monotonic())) for future in asked.values()]
        except FutureTimeoutError:
            raise RequestTimeoutError(f"the verifier did not answer within {STATS_S:.0f} s") from None
        finally:
            with self._lock:
                for query_id in asked:
                    self._queries.pop(query_id, None)

    def new_branch_id(self, parent: int = 0) -> int:
        """A number for a branch, never used before and never 0; what holds the parent's KV holds most of its KV."""
        with self._lock:
            branch_id = self._take_id()
            self._routes.inherit(branch_id, parent)
            return branch_id

    def drop_branch(self, branch_id: int, *, free: bool) -> None:
        """A branch will not be continued; ``free`` gives its KV back at once.

        Without ``free`` it takes no lock: a finalizer may call it while this thread holds the lock.
        """
        self._dropped.append((branch_id, free))
        if free:
            with self._lock:
                self._wake()

    def stop(self, why: BaseException) -> None:
        """End the thread; everybody who waits gets ``why``. A second call does nothing."""
        with self._lock:
            if self.dead is None:
                self.dead = why
            self._wake()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)

    def _request_cancel(self, request_id: int) -> None:
        with self._lock:
            pending = self._pending.get(request_id)
            if pending is not None and self.dead is None:
                pending.is_cancelled = True
                self._cancelled.append(request_id)
                self._wake()

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise type(self.dead)(str(self.dead)) from self.dead

    def _add(self, request_id: int, pending: Pending, frames: Frames) -> None:
        self._pending[request_id] = pending
        self._order(pending.group, frames)

    def _new_id(self) -> int:
        with self._lock:
            self._check_alive()
            return self._take_id()

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _order(self, group: int, frames: Frames) -> None:
        self._orders.append((group, frames))
        self._wake()

    def _wake(self) -> None:
        """Make the thread look at its orders; the lock is held."""
        if self._wake_write is not None:
            os.write(self._wake_write, b"x")

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        context = zmq.Context()
        try:
            self._serve(context)
        except EngineDeadError as error:
            self._die(error)
        except Exception as error:
            log.exception("the engine's thread failed")
            self._die(EngineDeadError(f"the engine's thread failed: {type(error).__name__}: {error}"))
        finally:
            for channel in self._channels.values():
                channel.close()
            context.term()
            self._die(self.dead or EngineDeadError("the engine's thread ended"))
            with self._lock:
                assert self._wake_write is not None
                os.close(self._wake_write)
                os.close(self._wake_read)
                self._wake_write = None
            self._source.close()
            self._ring.close()

    def _serve(self, context: zmq.Context[Any]) -> None:
        while self.dead is None:
            channels = list(self._channels.values())
            poller = zmq.Poller()
            poller.register(self._wake_read, zmq.POLLIN)
            poller.register(self._source.fileno(), zmq.POLLIN)
            for channel in channels:
                poller.register(channel.socket, zmq.POLLIN)
            self._ring.count_bytes(sum(c.bytes_in for c in channels), sum(c.bytes_out for c in channels))
            self._ring.enter(Activity.IDLE)
            ready = dict(poller.poll(POLL_MS))
            self._ring.enter(Activity.IPC)
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if self._source.fileno() in ready:
                for event in self._source.receive():
                    self._on_group_event(event, context)
            for channel in list(self._channels.values()):
                messages = channel.receive_all()
                self._ring.enter(Activity.COMMIT)
                for msg in messages:
                    self._on_message(msg)
                self._ring.enter(Activity.IPC)
            self._send_orders()
            self._send_dropped()

    def _send_orders(self) -> None:
        """Send what was ordered. For a group that is away it is lost: all that is in flight is sent when it is back."""
        with self._lock:
            orders, self._orders = self._orders, []
            cancelled, self._cancelled = self._cancelled, []
            for group, frames in orders:
                if group in self._channels:
                    self._channels[group].send_frames(frames)
        for request_id in cancelled:
            pending = self._pending.get(request_id)
            if pending is not None and pending.group in self._channels:
                self._channels[pending.group].send(Cancel(request_id))
            elif pending is not None:
                self._fail(request_id, CancelledError(CANCELLED))

    def _send_dropped(self) -> None:
        dropped = [self._dropped.popleft() for _ in range(len(self._dropped))]
        if not dropped:
            return
        with self._lock:
            for branch_id, _ in dropped:
                self._routes.forget(branch_id)
        for free in (True, False):
            ids = tuple(branch_id for branch_id, wants_free in dropped if wants_free is free)
            for channel in self._channels.values() if ids else ():
                channel.send(CloseBranches(ids, free))

    # --- groups come and go ------------------------------------------------------------------------

    def _on_group_event(self, event: GroupEvent, context: zmq.Context[Any]) -> None:
        if isinstance(event, WorkerReady):
            self.pids[event.worker] = event.pid
        elif isinstance(event, WorkerLost):
            log.warning("%s died (exit code %d)", event.worker, event.exitcode)
            self.num_lost += 1
            self.pids.pop(event.worker, None)
            name = WorkerName.parse(event.worker)
            if name.draft is None:
                channel = self._channels.pop(name.group, None)
                if channel is not None:
                    channel.close()
        elif isinstance(event, GroupStarted):
            self._connect(event, context)
        elif isinstance(event, EngineDown):
            self._die(_error_of(event))

    def _connect(self, event: GroupStarted, context: zmq.Context[Any]) -> None:
        """Open the link to a verifier; what was in flight goes on from its committed tokens."""
        identity = f"engine-{os.getpid()}-{secrets.token_hex(4)}".encode()
        channel = self._channel_type(context, event.endpoint, identity)
        channel.send(EngineHello(PROTOCOL_VERSION))
        with self._lock:
            self._orders = [(group, frames) for group, frames in self._orders if group != event.group]
            mine = {id_: pending for id_, pending in self._pending.items() if pending.group == event.group}
            for pending in mine.values():
                if not pending.is_cancelled:
                    channel.send(pending.message())
            for query_id, (group, _) in self._queries.items():
                if group == event.group:
                    channel.send(StatsQuery(query_id))
            self._channels[event.group] = channel
        for request_id, pending in mine.items():
            if pending.is_cancelled:  # the one before took the order with it
                self._fail(request_id, CancelledError(CANCELLED))
        if len(self._channels) == self._source.num_groups:
            self._started.set()

    def _die(self, why: BaseException) -> None:
        """Nothing will be served any more: everybody who waits is told."""
        with self._lock:
            if self.dead is None:
                self.dead = why
            ids, queries = list(self._pending), [future for _, future in self._queries.values()]
            self._queries.clear()
        for request_id in ids:
            error = type(self.dead)(str(self.dead))
            error.__cause__ = self.dead
            self._fail(request_id, error)
        for future in queries:
            settle(future, self.dead)
        self._started.set()

    # --- what verifiers say ------------------------------------------------------------------------

    def _on_message(self, msg: Any) -> None:
        match msg:
            case Committed() | Scored() | Finished():
                self._on_progress(msg)
            case Failed():
                self._fail(msg.request_id, _request_error(msg))
            case StatsReply():
                with self._lock:
                    _, future = self._queries.pop(msg.query_id, (0, None))
                if future is not None:
                    settle(future, msg)
            case EngineWelcome() if msg.protocol_version != PROTOCOL_VERSION:
                theirs = msg.protocol_version
                self._die(EngineDeadError(f"the verifier speaks protocol {theirs}, not {PROTOCOL_VERSION}"))

    def _on_progress(self, msg: Committed | Scored | Finished) -> None:
        """Hand on what a request got. Where that fails, in a tokenizer, say, the request fails and no other."""
        with self._lock:
            pending = self._pending.get(msg.request_id)
            if isinstance(msg, Finished):
                self._pending.pop(msg.request_id, None)
        try:
            match msg, pending:
                case Committed(), PendingJob():
                    pending.commit(msg.token_ids, self._detokenizer)
                case Finished(), PendingJob():
                    pending.finish(msg, self._detokenizer)
                case Scored(), PendingScore():
                    pending.resolve(msg)
        except Exception as error:
            log.exception("request %d failed in the engine's thread", msg.request_id)
            assert pending is not None
            self._request_cancel(msg.request_id)
            pending.fail(RequestError(f"request {msg.request_id}: {type(error).__name__}: {error}"))

    def _fail(self, request_id: int, error: BaseException) -> None:
        with self._lock:
            pending = self._pending.pop(request_id, None)
            if isinstance(pending, PendingJob):
                self._routes.forget(pending.job.child)
        if pending is not None:
            pending.fail(error)


def _encoded(msg: Submit | Score) -> Frames:
    """The frames of a request, made by who asks, so that a value that cannot travel fails this request alone.

    Raises:
        RejectedError: the message cannot be encoded, or the verifier would refuse it.
    """
    try:
        frames = codec.encode(msg)
        codec.decode(frames)
    except Exception as error:  # an encoder raises anything
        raise RejectedError(f"the request cannot be sent: {type(error).__name__}: {error}") from error
    return frames


def _request_error(msg: Failed) -> RequestError:
    """The error that a verifier names."""
    kind = getattr(errors, msg.kind, None)
    if isinstance(kind, type) and issubclass(kind, RequestError):
        return kind(msg.text)
    return RequestError(msg.text)


def _error_of(msg: EngineDown) -> BaseException:
    if msg.kind == "ConfigError":
        return ConfigError(msg.text.partition("ConfigError: ")[2] or msg.text)
    if msg.kind == "WorkerStartError":
        return WorkerStartError(msg.text, msg.worker, msg.last_log)
    return EngineDeadError(f"{msg.text}\n{msg.last_log}".strip())
