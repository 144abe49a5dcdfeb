"""What a user gets back: outputs, chunks of a stream, and the handle of a running request."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError as FutureCancelledError
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import TypeVar

from seedmp import metrics
from seedmp.checks import check_timeout, shown
from seedmp.errors import CancelledError, RejectedError, RequestTimeoutError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RequestMetrics:
    """What one continuation cost.

    Args:
        rounds: target passes.
        drafted: draft tokens along the tree's depth, summed over rounds.
        accepted: draft tokens that were accepted.
        queue_wait_s: time its proposals waited for the target.
        first_token_s: from submission to the first committed token.
        elapsed_s: from submission to the end.
        target_prefill_tokens: prompt tokens computed for it by the target (not shared with others).
        draft_prefill_tokens: the same by drafts.
    """

    rounds: int
    drafted: int
    accepted: int
    queue_wait_s: float
    first_token_s: float
    elapsed_s: float
    target_prefill_tokens: int
    draft_prefill_tokens: int

    @classmethod
    def of(cls, counters: metrics.RequestCounters, submitted_ns: int, finished_ns: int) -> RequestMetrics:
        """From what the verifier counted; times are CLOCK_MONOTONIC."""
        c = counters
        return cls(
            c.rounds, c.drafted, c.accepted, c.queue_wait_ns / 1e9, (c.first_token_ns - submitted_ns) / 1e9,
            (finished_ns - submitted_ns) / 1e9, c.target_prefill_tokens, c.draft_prefill_tokens,
        )  # fmt: skip

    @property
    def acceptance_rate(self) -> float:
        """Accepted ÷ drafted."""
        return metrics.acceptance_rate(self.accepted, self.drafted)

    @property
    def mean_accepted_len(self) -> float:
        """Tokens committed by a target pass."""
        return metrics.mean_accepted_len(self.accepted, self.rounds)


@dataclass(frozen=True)
class RequestOutput:
    """One finished continuation.

    Args:
        prompt: as given; None for token ids without a tokenizer.
        prompt_token_ids: ids that the models saw.
        text: generated text without the stop string; empty without a tokenizer.
        token_ids: generated ids, the stopping token or string included.
        finish_reason: ``stop`` or ``length``.
        seed: repeats this very text with the same models and parameters.
        index: which of ``SamplingParams.n``.
        metrics: of this continuation.
        logprob: summed log-probability of ``token_ids`` (nats, temperature 1), if it was asked for.
    """

    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    seed: int
    index: int
    metrics: RequestMetrics
    logprob: float | None = None


@dataclass(frozen=True)
class StreamChunk:
    """New tokens of a stream; ``text`` is the new text, complete characters only.

    Text is made from when somebody follows the stream: the first chunk after that has what came before.
    """

    text: str
    token_ids: tuple[int, ...]


Listener = Callable[[StreamChunk | None], object]


class RequestHandle:
    """A running request: a future, and a stream of chunks.

    Thread-safe. The engine fills it from its own thread. Cancelling the future cancels the request.
    """

    def __init__(self, request_id: int, cancel: Callable[[int], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self.future: Future[RequestOutput] = Future()
        self.future.add_done_callback(self._on_done)
        self._chunks: queue.SimpleQueue[StreamChunk | None] = queue.SimpleQueue()
        self._listeners: list[Listener] = []
        self._history: list[StreamChunk] = []
        self.is_followed = False  # somebody wants text before the end
        self._has_ended = False
        self._lock = threading.RLock()  # a listener may come back

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the output.

        Args:
            timeout: seconds; the request is cancelled when they are over.

        Raises:
            RejectedError: the timeout is none.
            RequestTimeoutError: not finished in time.
            RequestError: the request failed or was cancelled.
            EngineDeadError, EngineClosedError: the engine ended first.
        """
        limit = check_timeout(timeout, error=RejectedError)
        try:
            return self.future.result(limit)
        except FutureCancelledError:
            raise CancelledError(f"request {self.request_id} was cancelled") from None
        except FutureTimeoutError:
            if self.future.done():
                raise
            self.cancel()
            raise RequestTimeoutError(f"request {self.request_id} did not finish within {timeout} s") from None

    def done(self) -> bool:
        """Whether an output or an error is there."""
        return self.future.done()

    def cancel(self) -> None:
        """Drop the request; ``result`` then raises CancelledError unless it was finished."""
        self._cancel(self.request_id)

    def __iter__(self) -> Iterator[StreamChunk]:
        """Chunks as they are committed; raises what ``result`` raises."""
        self.is_followed = True
        while (chunk := self._chunks.get()) is not None:
            yield chunk
        self.result()

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with each chunk, those so far at once, then None; later from the engine's thread.

        A listener that raises there is not called again; its error is logged.

        Raises:
            RejectedError: the listener cannot be called.
        """
        if not callable(listener):
            raise RejectedError(f"listener={shown(listener)}: must be a function of one chunk")
        with self._lock:
            self.is_followed = True
            for chunk in self._history:
                listener(chunk)
            if self._has_ended:
                listener(None)
            else:
                self._listeners.append(listener)

    def push(self, chunk: StreamChunk) -> None:
        """A chunk was committed (engine's thread)."""
        with self._lock:
            self._history.append(chunk)
            self._chunks.put(chunk)
            self._tell(chunk)

    def finish(self, outcome: RequestOutput | BaseException) -> None:
        """The request ended (engine's thread); later calls have no effect."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
            settle(self.future, outcome)
            self._chunks.put(None)
            self._tell(None)

    def _tell(self, chunk: StreamChunk | None) -> None:
        """Call every listener; one that raises is dropped, for the thread serves other requests, too."""
        for listener in tuple(self._listeners):
            try:
                listener(chunk)
            except BaseException:  # even SystemExit: it would end the engine's thread
                log.exception("a listener of request %d failed and is not called again", self.request_id)
                self._listeners.remove(listener)

    def _on_done(self, future: Future[RequestOutput]) -> None:
        if future.cancelled():
            self.cancel()


def settle(future: Future[T], outcome: T | BaseException) -> None:
    """Give a future its outcome, unless its owner gave up; nothing that its callbacks raise gets out."""
    try:
        if future.done() or not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
    except BaseException:  # of a callback
        log.exception("a callback of a future failed")
