"""Work in flight: what was asked for, how far it has come, and which group serves it. Pure; no thread, no socket."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from seedmp.checks import check_text, check_whole
from seedmp.client.detokenize import Detokenizer, TextStream
from seedmp.errors import RejectedError
from seedmp.ipc.messages import Finished, Score, Scored, Submit
from seedmp.request import RequestHandle, RequestMetrics, RequestOutput, StreamChunk, settle
from seedmp.sampling import SamplingParams

MAX_PRIORITY = 1000
MAX_USER_LEN = 256


@dataclass(frozen=True)
class Job:
    """One continuation that somebody wants.

    Args:
        prompt: as given; None for token ids.
        params: seed is set.
        stream: which noise of the seed is drawn.
        index: which of the continuations of its prompt it is.
        branch, child: ids of the open branches that the prompt is and that the continuation becomes; 0: none.
        priority: from -1000 to 1000. Under a policy that looks at it, a higher one is served sooner.
        user: who asks, at most 256 characters; for policies that share between users.

    Raises:
        RejectedError: a value is of another type or out of range.
    """

    prompt: str | None
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stream: int = 0
    index: int = 0
    branch: int = 0
    child: int = 0
    priority: int = 0
    user: str = ""

    def __post_init__(self) -> None:
        whole = partial(check_whole, error=RejectedError)
        ids = ("stream", "index", "branch", "child")
        checked: dict[str, object] = {name: whole(name, getattr(self, name), 0) for name in ids}
        checked["priority"] = whole("priority", self.priority, -MAX_PRIORITY, MAX_PRIORITY)
        checked["user"] = check_text("user", self.user, max_len=MAX_USER_LEN, error=RejectedError)
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass
class PendingJob:
    """A continuation in flight; enough to hand it to a new verifier.

    Args:
        submitted_ns: CLOCK_MONOTONIC.
        group: that serves it.
        token_ids: committed so far.
        text: what was streamed of them, once somebody follows.
        is_cancelled: its owner gave up; a new verifier does not get it.
    """

    job: Job
    handle: RequestHandle
    submitted_ns: int
    group: int
    token_ids: list[int] = field(default_factory=list)
    text: TextStream | None = None
    is_cancelled: bool = False

    def message(self) -> Submit:
        """For a verifier: goes on from the committed tokens."""
        job = self.job
        return Submit(
            self.handle.request_id, job.stream, job.prompt_ids, tuple(self.token_ids), job.params, job.branch,
            job.child, job.priority, job.user,
        )  # fmt: skip

    def commit(self, token_ids: tuple[int, ...], detokenizer: Detokenizer) -> None:
        """Tokens became final; who follows gets them, with their text."""
        self.token_ids += token_ids
        text = ""
        if self.handle.is_followed:
            if self.text is None:
                self.text = detokenizer.stream(self.job.params.stop)
            text = self.text.read(self.token_ids)
        self.handle.push(StreamChunk(text, token_ids))

    def finish(self, msg: Finished, detokenizer: Detokenizer) -> None:
        """The output, made of all tokens at once; what was not streamed of its text is the last chunk."""
        text = detokenizer.decode(self.token_ids, msg.stop)
        rest = text if self.text is None else text[self.text.num_chars :]
        if rest:
            self.handle.push(StreamChunk(rest, ()))
        cost = RequestMetrics.of(msg.counters, self.submitted_ns, msg.finished_ns)
        job = self.job
        assert job.params.seed is not None
        self.handle.finish(
            RequestOutput(
                job.prompt, job.prompt_ids, text, tuple(self.token_ids), msg.reason, job.params.seed, job.index, cost
            )
        )

    def fail(self, error: BaseException) -> None:
        """Whoever waits gets the error."""
        self.handle.finish(error)


@dataclass
class PendingScore:
    """Texts that are being scored; a cancelled future cancels the request."""

    future: Future[list[np.ndarray]]
    request: Score
    group: int
    is_cancelled: bool = False

    def message(self) -> Score:
        """For a verifier."""
        return self.request

    def resolve(self, msg: Scored) -> None:
        """One array a text, unless the owner gave up."""
        settle(self.future, np.split(np.array(msg.logprobs), np.cumsum(self.request.lengths)[:-1]))

    def fail(self, error: BaseException) -> None:
        """Whoever waits gets the error."""
        settle(self.future, error)


Pending = PendingJob | PendingScore


class Routes:
    """Which group gets what.

    A continuation goes to a group with the fewest requests in flight; of several such groups to the one that holds
    its branch's KV. It lives for many rounds, so waiting costs more than a prefill. A score is one forward: it goes
    to the group that holds its branch's KV, whatever the load. A score without a branch goes where the fewest are.

    A branch's KV is held by the group that made the branch, or else by the first that used it. That is a guess: the
    KV may have been evicted, or lost with its verifier, and is then computed again.
    """

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups
        self._holders: dict[int, int] = {}  # open branch -> group

    def for_job(self, job: Job, in_flight: Iterable[Pending]) -> int:
        """The group for a continuation; from now on it holds the branches of the job."""
        loads, holder = self._loads(in_flight), self._holders.get(job.branch)
        group = min(range(self.num_groups), key=lambda g: (loads[g], g != holder))
        if job.branch:
            self._holders.setdefault(job.branch, group)
        if job.child:
            self._holders[job.child] = group
        return group

    def for_score(self, branch: int, in_flight: Iterable[Pending]) -> int:
        """The group for a score; from now on it holds the branch (0: none)."""
        if branch in self._holders:
            return self._holders[branch]
        loads = self._loads(in_flight)
        group = min(range(self.num_groups), key=lambda g: loads[g])
        if branch:
            self._holders[branch] = group
        return group

    def inherit(self, branch: int, parent: int) -> None:
        """A new branch goes on from ``parent``, where there is most of its KV."""
        if parent in self._holders:
            self._holders[branch] = self._holders[parent]

    def forget(self, branch: int) -> None:
        """A branch was dropped, or was never made."""
        self._holders.pop(branch, None)

    def __len__(self) -> int:
        """Branches that are remembered."""
        return len(self._holders)

    def _loads(self, in_flight: Iterable[Pending]) -> list[int]:
        loads = [0] * self.num_groups
        for pending in in_flight:
            loads[pending.group] += 1
        return loads
