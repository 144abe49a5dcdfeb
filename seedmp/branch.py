"""A branch of a reasoning tree: a committed token path of an engine, to be continued, forked and scored."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from seedmp.checks import check_text, check_texts, check_timeout
from seedmp.errors import RejectedError
from seedmp.request import RequestHandle, RequestOutput
from seedmp.sampling import SamplingParams


class BranchEngine(Protocol):
    """What a branch needs of its engine; ``Engine`` says what each method does."""

    def new_branch_id(self, parent: int = 0) -> int: ...

    def drop_branch(self, branch_id: int, *, free: bool = False) -> None: ...

    def submit_all(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        branch: int,
        children: Sequence[int],
        priority: int,
        user: str,
    ) -> list[RequestHandle]: ...

    def wait_for(self, handles: Sequence[RequestHandle], timeout: float | None) -> list[RequestOutput]: ...

    def score_ids(
        self,
        prompt_ids: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        timeout: float | None,
        branch: int,
    ) -> list[np.ndarray]: ...

    def encode(self, text: str) -> tuple[int, ...]: ...

    def tokens_of_text(self, output: RequestOutput) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class ScoredText:
    """Log-probabilities of one continuation.

    Args:
        text: as given.
        token_ids: of the text.
        logprobs: [tokens] float32, nats at temperature 1.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: np.ndarray

    @property
    def total(self) -> float:
        """Sum over the tokens."""
        return float(self.logprobs.sum())

    @property
    def mean(self) -> float:
        """Mean over the tokens: comparable between texts of different length."""
        return float(self.logprobs.mean())


class Branch:
    """A committed token path whose KV stays in the arenas, in the target's and in the drafts'.

    A branch never changes: ``extend``, ``append`` and ``fork`` make new ones, which share its KV. It holds
    token ids only and the KV is found by them, so it outlives the crash of any worker. Cached prefixes that
    no open branch needs are evicted before those of branches; when even that is not enough, KV of branches
    goes too, and is computed again when it is needed. A context manager.

    Attributes:
        token_ids: prompt and everything generated on the way.
        text: what the last step added; the prompt at the root.
        output: of the continuation that made this branch; None for a prompt or an appended text.
    """

    def __init__(
        self,
        engine: BranchEngine,
        token_ids: tuple[int, ...],
        text: str,
        output: RequestOutput | None = None,
        branch_id: int | None = None,
    ) -> None:
        self.engine = engine
        self.token_ids = token_ids
        self.text = text
        self.output = output
        self.branch_id = engine.new_branch_id() if branch_id is None else branch_id
        self.closed = False
        weakref.finalize(self, engine.drop_branch, self.branch_id).atexit = False

    def extend(
        self,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        user: str = "",
    ) -> Branch:
        """Continue once: ``fork(1)``."""
        return self.fork(1, params, timeout=timeout, priority=priority, user=user)[0]

    def append(self, text: str) -> Branch:
        """A branch with given text added; computed together with what follows it."""
        self._check_open()
        engine, text = self.engine, check_text("text", text, error=RejectedError)
        token_ids = self.token_ids + engine.encode(text)
        return Branch(engine, token_ids, text, branch_id=engine.new_branch_id(self.branch_id))

    def fork(
        self,
        n: int,
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        user: str = "",
    ) -> list[Branch]:
        """Continue ``n`` times; each child is a branch of its own, which ends where its text ends.

        A stop string or EOS is not part of it, so that ``append`` and ``fork`` go on from the text.

        Args:
            timeout: seconds for all of them; what is not finished then is cancelled.
            priority, user: as in ``Engine.generate``.

        Raises:
            RejectedError: the branch was closed, or cannot be continued so.
            RequestTimeoutError: not all finished in time.
        """
        self._check_open()
        engine = self.engine
        params, timeout = replace(SamplingParams.of(params), n=n), check_timeout(timeout, error=RejectedError)
        ids = [engine.new_branch_id() for _ in range(params.n)]
        try:
            handles = engine.submit_all(
                self.token_ids, params, branch=self.branch_id, children=ids, priority=priority, user=user
            )
            outputs = engine.wait_for(handles, timeout)
        except BaseException:
            for child in ids:
                engine.drop_branch(child)  # some may have finished, and nobody gets them
            raise
        return [
            Branch(engine, self.token_ids + engine.tokens_of_text(out), out.text, out, branch_id)
            for out, branch_id in zip(outputs, ids, strict=True)
        ]

    def score(self, texts: Iterable[str], *, timeout: float | None = None) -> list[float]:
        """Summed log-probability (nats, temperature 1) of each text as a continuation, in one packed forward."""
        return [scored.total for scored in self.score_tokens(texts, timeout=timeout)]

    def score_tokens(self, texts: Iterable[str], *, timeout: float | None = None) -> list[ScoredText]:
        """``score`` with the log-probability of every token."""
        self._check_open()
        texts = check_texts("texts", texts, error=RejectedError)
        ids = [self.engine.encode(text) for text in texts]
        rows = self.engine.score_ids(self.token_ids, ids, timeout=timeout, branch=self.branch_id)
        return [ScoredText(*parts) for parts in zip(texts, ids, rows, strict=True)]

    def close(self) -> None:
        """Free the KV that no other branch, request or child uses; the branch cannot be used any more.

        Its children stay as they are. A branch that is only forgotten leaves its KV as a cached prefix.
        """
        if not self.closed:
            self.closed = True
            self.engine.drop_branch(self.branch_id, free=True)

    def _check_open(self) -> None:
        if self.closed:
            raise RejectedError("the branch was closed")

    def __enter__(self) -> Branch:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
