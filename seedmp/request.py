"""What a user gets back: outputs, chunks of a stream, and the handle of a running request."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

from seedmp import metrics
from seedmp.errors import RequestTimeoutError


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


class RequestHandle:
    """A running request: a future, and a stream of chunks.

    Thread-safe. The engine fills it from its own thread.
    """

    def __init__(self, request_id: int, cancel: Callable[[int], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self.future: Future[RequestOutput] = Future()
        self._chunks: queue.SimpleQueue[StreamChunk | None] = queue.SimpleQueue()
        self._listeners: list[Callable[[StreamChunk | None], object]] = []
        self._history: list[StreamChunk] = []
        self.is_followed = False  # somebody wants text before the end
        self._lock = threading.Lock()

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the output.

        Args:
            timeout: seconds; the request is cancelled when they are over.

        Raises:
            RequestTimeoutError: not finished in time.
            RequestError: the request failed or was cancelled.
            EngineDeadError, EngineClosedError: the engine ended first.
        """
        try:
            return self.future.result(timeout)
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
        self.future.result()

    def listen(self, listener: Callable[[StreamChunk | None], object]) -> None:
        """Call ``listener`` with each chunk, those so far at once, then None; later from the engine's thread."""
        with self._lock:
            self.is_followed = True
            for chunk in self._history:
                listener(chunk)
            self._listeners.append(listener)
            if self.future.done():
                listener(None)

    def push(self, chunk: StreamChunk) -> None:
        """A chunk was committed (engine's thread)."""
        with self._lock:
            self._history.append(chunk)
            self._chunks.put(chunk)
            for listener in self._listeners:
                listener(chunk)

    def finish(self, outcome: RequestOutput | BaseException) -> None:
        """The request ended (engine's thread); later calls have no effect."""
        with self._lock:
            if self.future.done():
                return
            if isinstance(outcome, BaseException):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
            self._chunks.put(None)
            for listener in self._listeners:
                listener(None)
