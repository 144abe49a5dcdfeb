"""The engine: what a user opens, asks and closes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import secrets
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from seedmp import metrics
from seedmp.branch import Branch
from seedmp.checks import check_all, check_flag, check_ids, check_path, check_timeout, check_whole, check_wholes, shown
from seedmp.client import observers
from seedmp.client.connection import Connection
from seedmp.client.detokenize import Detokenizer
from seedmp.client.encode import Encoder, as_list
from seedmp.client.encode import Prompt as Prompt  # as the methods below name it
from seedmp.client.in_flight import Job
from seedmp.client.launch import Launcher, LocalLauncher, hold_standard_descriptors
from seedmp.config import EngineConfig, Placement, resolve_placement
from seedmp.drafts.base import DraftKind
from seedmp.drafts.registry import DRAFT_KINDS, make_draft_kind
from seedmp.errors import ConfigError, EngineClosedError, RejectedError, RequestTimeoutError
from seedmp.ipc.folder import RuntimeFolder
from seedmp.ipc.span_log import SpanLog
from seedmp.ipc.span_ring import SpanRing, ring_path
from seedmp.methods.registry import method_class
from seedmp.models import pair
from seedmp.models.load import ModelSpec, load_config, load_tokenizer, warn_of_ignored_settings
from seedmp.plan import Plan, read_plan
from seedmp.request import RequestHandle, RequestOutput, StreamChunk
from seedmp.sampling import MAX_SEED, SamplingParams
from seedmp.trace import Span

if TYPE_CHECKING:
    from seedmp.profiling.profile import Profile

START_S = 30.0  # added to ready_timeout_s, for starting the process that starts the workers

_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()  # of this process and, after a fork, of its parent


class Engine:
    """A target, its drafts and their scheduler, in processes of their own.

    Works from scripts without a main guard, from ``python -c``, a REPL or a notebook. A context
    manager; ``close`` leaves nothing behind, and neither does the death of this process.

    Args:
        target: folder or hub id of a decoder-only transformers model; None is the bundled pair's.
        draft: the same for the draft; None is the bundled one (for ``eagle`` the bundled head), or the target itself
            for ``ar`` and ``ngram``.
        plan: what `seedmp tune` wrote, or its path: models and settings that are not given are the plan's.
        launcher: starts the processes; None starts them on this machine.
        settings: fields of ``EngineConfig``.

    Raises:
        ConfigError: a setting is wrong; no process is left.
        WorkerStartError: a process did not become ready.
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | None = None,
        draft: str | os.PathLike[str] | None = None,
        *,
        plan: str | os.PathLike[str] | Plan | None = None,
        launcher: Launcher | None = None,
        **settings: Any,
    ) -> None:
        target = None if target is None else check_path("target", target)
        draft = None if draft is None else check_path("draft", draft)
        if plan is not None:
            plan = plan if isinstance(plan, Plan) else check_path("plan", plan)
            target, draft, settings = read_plan(plan).settings_for(target, draft, settings)
        target_path = str(pair.TARGET) if target is None else target
        draft_path = _default_draft(target, settings.get("method")) if draft is None else draft
        unknown = set(settings) - set(EngineConfig.__dataclass_fields__)
        if unknown:
            known = ", ".join(sorted(set(EngineConfig.__dataclass_fields__) - {"target", "draft"}))
            raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}: known are {known}")
        self.config = EngineConfig(target=target_path, draft=draft_path, **settings)
        load_config(ModelSpec(self.config.target, self.config.target_shape))
        draft_kind = make_draft_kind(self.config)
        draft_kind.check()
        if launcher is not None and not callable(getattr(launcher, "start", None)):
            raise ConfigError(f"launcher={shown(launcher)}: must be a seedmp.client.launch.Launcher, or None")
        hold_standard_descriptors()
        self._pid = os.getpid()
        runtime = RuntimeFolder()
        self.folder = runtime.path
        self._ending = contextlib.ExitStack()  # what close() does, last first
        try:
            self._start(launcher or LocalLauncher(), draft_kind, runtime)
        except BaseException as error:
            self.close()
            if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
                raise ConfigError(f"this process may open too few files for an engine (ulimit -n): {error}") from error
            raise

    def _disown(self) -> None:
        """This process was forked from the one that opened the engine: here it is closed. Nothing is sent or ended."""
        self._io = cast(Connection, _NotHere(self._pid))  # the connection's thread is not here

    def _start(self, launcher: Launcher, draft_kind: DraftKind, runtime: RuntimeFolder) -> None:
        """Start the processes, load the tokenizer meanwhile, then wait until all groups serve."""
        leftovers = contextlib.ExitStack()  # also undone when the engine is forgotten, so it does not know the engine
        self._ending.callback(weakref.finalize(self, _close_in, self._pid, leftovers))
        leftovers.callback(runtime.remove)
        self._span_log = SpanLog(self.folder)
        self._ending.callback(self._span_log.close)
        self._launch = launcher.start(self.config, self.folder)
        leftovers.callback(self._launch.stop)
        self.vocab_size = draft_kind.vocab_size()
        self.tokenizer = load_tokenizer(self.config.target)
        warn_of_ignored_settings(ModelSpec(self.config.target))
        if isinstance(self.config.placement, Placement) or self.config.placement != "auto":
            resolve_placement(self.config)
        self._encoder = Encoder(self.tokenizer, self.config.target)
        self._detokenizer = Detokenizer(self.tokenizer)
        ring = SpanRing(ring_path(self.folder, "engine"))
        self._io = Connection(self._launch, self._detokenizer, ring)
        self._ending.callback(self._io.stop, EngineClosedError("the engine was closed"))
        _OPEN.add(self)
        self._io.start(self.config.ready_timeout_s + START_S)
        for observer in tuple(observers.OBSERVERS):
            self._ending.callback(observer(self))

    # --- generating -----------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        user: str = "",
    ) -> list[RequestOutput]:
        """Continue prompts; all at once, in the order given.

        Args:
            prompts: one prompt or a list; text, or token ids.
            params: the same for all; ``n`` outputs follow one another for each prompt, with ``best_of``
                the likeliest first.
            timeout: seconds for the whole call.
            priority: from -1000 to 1000. Under a policy that looks at it, a higher one is served sooner.
            user: who asks, at most 256 characters; for policies that share between users.

        Raises:
            RejectedError: a prompt or a parameter cannot be served.
            RequestTimeoutError: not all finished in time; the rest was cancelled.
            RequestError: a request failed; the others were cancelled.
        """
        params = SamplingParams.of(params)
        timeout = check_timeout(timeout, error=RejectedError)
        deadline = None if timeout is None else time.monotonic() + timeout
        outputs = self.wait_for(self.submit_each(prompts, params, priority=priority, user=user), timeout)
        if params.best_of is None:
            return outputs
        groups = [outputs[i : i + params.best_of] for i in range(0, len(outputs), params.best_of)]
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return [out for group in groups for out in self.likeliest(group, params.n, left)]

    def submit_each(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams, *, priority: int = 0, user: str = ""
    ) -> list[RequestHandle]:
        """Start all continuations that ``generate`` draws; when a prompt is refused, none goes on.

        Raises:
            RejectedError: a prompt or a parameter cannot be served.
        """
        params = SamplingParams.of(params)
        drawn = params if params.best_of is None else replace(params, n=params.best_of, best_of=None)
        handles: list[RequestHandle] = []
        try:
            for prompt in as_list(prompts):
                handles += self.submit_all(prompt, drawn, priority=priority, user=user)
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def wait_for(self, handles: Sequence[RequestHandle], timeout: float | None) -> list[RequestOutput]:
        """Outputs of requests, in order; when one fails or the time is over, the others are cancelled.

        Raises:
            RequestTimeoutError, RequestError: as ``generate``.
        """
        handles = check_all("handles", handles, RequestHandle, error=RejectedError)
        timeout = check_timeout(timeout, error=RejectedError)
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            return [h.result(None if deadline is None else max(0.0, deadline - time.monotonic())) for h in handles]
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise

    def likeliest(self, outputs: Sequence[RequestOutput], n: int, timeout: float | None = None) -> list[RequestOutput]:
        """The ``n`` outputs of one prompt with the highest mean log-probability a token, best first.

        Equal ones stay in the order given. All are scored in one packed forward; ``logprob`` is set.

        Raises:
            RejectedError: no outputs, or they cannot be scored.
            RequestTimeoutError: not scored in time.
        """
        outputs = check_all("outputs", outputs, RequestOutput, error=RejectedError)
        n = check_whole("n", n, 1, error=RejectedError)
        if not outputs:
            raise RejectedError("outputs=[]: at least one is needed")
        rows = self.score_ids(outputs[0].prompt_token_ids, [out.token_ids for out in outputs], timeout=timeout)
        scored = [replace(out, logprob=float(row.sum())) for out, row in zip(outputs, rows, strict=True)]
        means = [float(row.mean()) for row in rows]
        order = sorted(range(len(scored)), key=lambda i: (-means[i], i))
        return [scored[i] for i in order[:n]]

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0, user: str = ""
    ) -> RequestHandle:
        """Start one continuation and return at once; ``priority`` and ``user`` as in ``generate``.

        Raises:
            RejectedError: the prompt or the parameters cannot be served.
        """
        params = SamplingParams.of(params)
        if params.n != 1 or params.best_of is not None:
            raise RejectedError(
                f"n={params.n}, best_of={params.best_of}: submit() starts one continuation; use generate()"
            )
        return self.submit_all(prompt, params, priority=priority, user=user)[0]

    def submit_all(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        first_stream: int = 0,
        branch: int = 0,
        children: Sequence[int] = (),
        priority: int = 0,
        user: str = "",
    ) -> list[RequestHandle]:
        """Start ``params.n`` continuations of one prompt, which share its KV; else as ``submit``.

        Args:
            first_stream: continuation i draws the noise of stream ``first_stream + i``.
            branch: id of the open branch that the prompt is, if it is one.
            children: ids of the branches that the continuations become, if they do.
        """
        params = SamplingParams.of(params)
        if params.best_of is not None:
            raise RejectedError(f"best_of={params.best_of}: outputs are compared by generate()")
        if params.stop and self.tokenizer is None:
            raise RejectedError(f"stop={params.stop!r}: the target {self.config.target!r} has no tokenizer")
        if params.is_constrained:
            from seedmp.decoding.constraint import check_constraint  # imports torch

            check_constraint(params, self.tokenizer)
        text, prompt_ids = self._encoder.encode_prompt(prompt)
        if params.seed is None:
            params = replace(params, seed=secrets.randbelow(MAX_SEED))
        one = replace(params, n=1)
        first_stream = check_whole("first_stream", first_stream, 0, error=RejectedError)
        children = check_wholes("children", children, 1, error=RejectedError)
        if children and len(children) != params.n:
            raise RejectedError(f"children={shown(children)}: must be as many as n={params.n}, or none")
        jobs = [
            Job(
                text, prompt_ids, one, first_stream + index, index, branch, children[index] if children else 0,
                priority, user,
            )
            for index in range(params.n)
        ]  # fmt: skip
        handles: list[RequestHandle] = []
        try:
            for job in jobs:
                handles.append(self._io.submit(job))
        except BaseException:
            for handle in handles:
                handle.cancel()
            raise
        return handles

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, priority: int = 0, user: str = ""
    ) -> Iterator[StreamChunk]:
        """Chunks of one continuation as they are committed; leaving the loop early cancels it. Else as ``submit``."""
        handle = self.submit(prompt, params, priority=priority, user=user)
        try:
            yield from handle
        finally:
            handle.cancel()

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
        priority: int = 0,
        user: str = "",
    ) -> RequestOutput:
        """Answer a conversation, formatted by the model's own chat template; else as ``generate``.

        Args:
            messages: ``{"role": ..., "content": ...}`` dictionaries.

        Raises:
            RejectedError: the model has no chat template, or it refuses the messages.
        """
        return self.generate([self.encode_chat(messages)], params, timeout=timeout, priority=priority, user=user)[0]

    def open(self, prompt: Prompt) -> Branch:
        """A branch: a committed token path that can be continued, forked and scored; its KV stays.

        Raises:
            RejectedError: the prompt is empty.
        """
        text, ids = self._encoder.encode_prompt(prompt)
        return Branch(self, ids, text or "")

    def new_branch_id(self, parent: int = 0) -> int:
        """A number for a branch; unique in this engine, never 0. ``parent`` is the open branch that it goes on from."""
        return self._io.new_branch_id(check_whole("parent", parent, 0, error=RejectedError))

    def drop_branch(self, branch_id: int, *, free: bool = False) -> None:
        """A branch will not be continued; ``free`` gives its KV back at once. Safe at any time, in any thread."""
        branch_id = check_whole("branch_id", branch_id, 0, error=RejectedError)
        self._io.drop_branch(branch_id, free=check_flag("free", free, error=RejectedError))

    def score_ids(
        self,
        prompt_ids: Sequence[int],
        continuations: Sequence[Sequence[int]],
        *,
        timeout: float | None = None,
        branch: int = 0,
    ) -> list[np.ndarray]:
        """Log-probabilities (nats, temperature 1) of continuations of a context, in one packed forward.

        Args:
            branch: id of the open branch that the context is, if it is one.

        Returns:
            one float32 array per continuation, one value per token.

        Raises:
            RejectedError: a text without tokens, or too much for the arena.
            RequestTimeoutError: not scored in time.
        """
        timeout = check_timeout(timeout, error=RejectedError)
        future = self.submit_score(prompt_ids, continuations, branch=branch)
        try:
            return future.result(timeout)
        except FutureTimeoutError:
            if future.done():
                raise
            raise RequestTimeoutError(f"not scored within {timeout} s") from None
        finally:
            future.cancel()  # and with it the request, unless it is done

    def submit_score(
        self, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]], *, branch: int = 0
    ) -> Future[list[np.ndarray]]:
        """Start ``score_ids`` and return at once; cancelling the future cancels the request.

        Raises:
            RejectedError: what is given are no token ids, or a text has none.
        """
        branch = check_whole("branch", branch, 0, error=RejectedError)
        context = check_ids("prompt_ids", prompt_ids, error=RejectedError)
        if not isinstance(continuations, Sequence | np.ndarray) or isinstance(continuations, str | bytes):
            raise RejectedError(f"continuations={shown(continuations)}: must be a list of lists of token ids")
        texts = [check_ids("continuation", ids, error=RejectedError) for ids in continuations]
        lengths = tuple(map(len, texts))
        if not lengths or 0 in lengths:
            raise RejectedError("every text to score needs at least one token")
        return self._io.score(context, tuple(itertools.chain(*texts)), lengths, branch)

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Token ids of text, as a continuation unless ``special`` tokens are asked for."""
        return self._encoder.encode(text, special=special)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
        """Token ids of a conversation, formatted by the model's own chat template; its errors are RejectedError."""
        return self._encoder.encode_chat(messages)

    def decode(self, token_ids: Sequence[int]) -> str:
        """What token ids add to a text before them, special tokens left out; empty without a tokenizer."""
        return self._detokenizer.decode(check_ids("token_ids", token_ids, error=RejectedError))

    def tokens_of_text(self, output: RequestOutput) -> tuple[int, ...]:
        """The tokens of an output's text: without EOS and without what belongs to the stop string."""
        (output,) = check_all("output", [output], RequestOutput, error=RejectedError)
        if self.tokenizer is None:
            return output.token_ids
        ids, text = output.token_ids, output.text
        while ids and len(self.decode(ids[:-1])) >= len(text):
            ids = ids[:-1]
        if self.decode(ids) == text:
            return ids
        ids = ids[:-1]  # the stop string begins inside the last token
        return ids + self.encode(text[len(self.decode(ids)) :])

    # --- looking in -----------------------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Counters of the verifier(s), summed; times in ns.

        ``prefix_hit_rate`` is the share of context tokens whose KV was found instead of computed.
        """
        total = {"workers_lost": float(self._io.num_lost), "spans_lost": float(self._span_log.num_lost)}
        for reply in self._io.query():
            for name, value in zip(reply.names, reply.values, strict=True):
                total[name] = total.get(name, 0.0) + value
        for model in ("target", "draft"):
            shared, computed = total[f"shared_{model}_tokens"], total[f"{model}_prefill_tokens"]
            total[f"{model}_prefix_hit_rate"] = metrics.share(shared, shared + computed)
        return total

    def spans(self, *, reset: bool = False) -> list[Span]:
        """What drafts, queue and verifier(s) did, on one clock, since the first call; ``reset`` forgets it.

        The first call begins the recording. ``stats()["spans_lost"]`` counts what was overwritten before it was read.
        """
        return self._span_log.spans(reset=check_flag("reset", reset, error=RejectedError))

    def worker_pids(self) -> dict[str, int]:
        """Process ids of the workers that are ready, by name, and of the supervisor."""
        return {**self._io.pids, **self._launch.pids}

    def profile(self, folder: str | os.PathLike[str]) -> Profile:
        """``with engine.profile("out/") as profile:`` watch every process, then write into the folder what each did.

        ``profile.summary`` says in words what limited the run; docs/profiling.md describes the files.

        Raises:
            ConfigError: the folder cannot be written.
        """
        from seedmp.profiling.profile import Profile

        return Profile(self, check_path("folder", folder))

    # --- ending ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End all processes and remove sockets and shared memory; pending requests raise EngineClosedError.

        In a process that was forked from the one that opened the engine, it does nothing.
        """
        _close_in(self._pid, self._ending)

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _NotHere:
    """In a forked process, the connection of its parent's engine."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def drop_branch(self, branch_id: int, *, free: bool) -> None:
        """The branch is the parent's; finalizers call this, too."""

    def __getattr__(self, name: str) -> Any:
        raise EngineClosedError(f"the engine belongs to process {self._pid}, which forked this one: open another here")


def _close_in(pid: int, ending: contextlib.ExitStack) -> None:
    """End what belongs to process ``pid``, if this is that process and not one forked from it."""
    if os.getpid() == pid:
        ending.close()


def _disown_all() -> None:
    for engine in list(_OPEN):
        engine._disown()


os.register_at_fork(after_in_child=_disown_all)


def _default_draft(target: str | None, method: object) -> str:
    """What drafts where no draft is named.

    Raises:
        ConfigError: the method needs one and only the user knows it, or the bundled one is not there.
    """
    kind = DRAFT_KINDS.load(method_class("mcsd" if method is None else method).draft_kind)
    return kind.default_for(target)
