"""The engine: what a user opens, asks and closes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import zmq

from seedmp import errors, metrics
from seedmp.branch import Branch
from seedmp.config import EngineConfig, Method, Placement, needs_draft, resolve_placement
from seedmp.errors import (
    ConfigError,
    EngineClosedError,
    EngineDeadError,
    RejectedError,
    RequestError,
    WorkerStartError,
)
from seedmp.ipc.channel import DealerChannel, receive_on_pipe, send_on_pipe
from seedmp.ipc.endpoints import make_runtime_dir
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
    Shutdown,
    StatsQuery,
    StatsReply,
    Submit,
    WorkerLost,
    WorkerReady,
)
from seedmp.ipc.span_log import SpanLog
from seedmp.ipc.span_ring import SpanRing, ring_path
from seedmp.models import pair
from seedmp.models.load import ModelSpec, check_vocabularies, load_config, load_tokenizer
from seedmp.request import RequestHandle, RequestMetrics, RequestOutput, StreamChunk
from seedmp.sampling import MAX_SEED, SamplingParams
from seedmp.stop_text import cut_at_stop
from seedmp.system import let_idle_threads_sleep
from seedmp.trace import Activity, Span

if TYPE_CHECKING:
    from seedmp.profiling.profile import Profile
    from seedmp.tuning.plan import Plan

log = logging.getLogger(__name__)

Prompt = str | Sequence[int]

CLOSE_S = 6.0
POLL_MS = 500
STATS_S = 60.0


@dataclass
class _Pending:
    """A request in flight, as the engine's thread sees it; enough to hand it to a new verifier."""

    handle: RequestHandle
    prompt: str | None
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    stream: int
    index: int
    submitted_ns: int
    group: int
    branch: int = 0
    child: int = 0
    token_ids: list[int] = field(default_factory=list)
    text_len: int = 0


@dataclass
class _PendingScore:
    """A scoring request in flight."""

    future: Future[list[np.ndarray]]
    message: Score
    group: int


class Engine:
    """A target, its drafts and their scheduler, in processes of their own.

    Works from scripts without a main guard, from ``python -c``, a REPL or a notebook. A context
    manager; ``close`` leaves nothing behind, and neither does the death of this process.

    Args:
        target: folder or hub id of a decoder-only transformers model; None is the bundled pair's.
        draft: the same for the draft; None is the bundled one (for ``eagle`` the bundled head), or the target itself
            for ``ar`` and ``ngram``.
        plan: what `seedmp tune` wrote, or its path: models and settings that are not given are the plan's.
        settings: fields of ``EngineConfig``.

    Raises:
        ConfigError: a setting is wrong; no process is left.
        WorkerStartError: a process did not become ready.
    """

    # Told of each engine that serves; what they return is called before it closes (`seedmp profile`).
    on_open: ClassVar[list[Callable[[Engine], Callable[[], None]]]] = []

    def __init__(
        self,
        target: str | os.PathLike[str] | None = None,
        draft: str | os.PathLike[str] | None = None,
        *,
        plan: str | os.PathLike[str] | Plan | None = None,
        **settings: Any,
    ) -> None:
        if plan is not None:
            from seedmp.tuning.plan import read_plan  # on first use

            models = [None if name is None else os.fspath(name) for name in (target, draft)]
            target, draft, settings = read_plan(plan).settings_for(models[0], models[1], settings)
        target_path = str(pair.TARGET) if target is None else os.fspath(target)
        draft_path = _default_draft(target, settings.get("method")) if draft is None else os.fspath(draft)
        unknown = set(settings) - set(EngineConfig.__dataclass_fields__)
        if unknown:
            known = ", ".join(sorted(set(EngineConfig.__dataclass_fields__) - {"target", "draft"}))
            raise ConfigError(f"unknown setting {sorted(unknown)[0]!r}: known are {known}")
        self.config = EngineConfig(target=target_path, draft=draft_path, **settings)
        target_spec = ModelSpec(self.config.target, self.config.target_shape)
        draft_spec = ModelSpec(self.config.draft, self.config.draft_shape)
        load_config(target_spec)
        if _is_head(self.config):
            draft_spec = target_spec  # whose vocabulary a head speaks
        else:
            load_config(draft_spec)
        self.folder = make_runtime_dir()
        self._span_log = SpanLog(self.folder)
        try:
            self._start_process()
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        self._finalizer = weakref.finalize(self, _abandon, self._process, self._to_supervisor, self.folder)
        try:
            self.vocab_size = check_vocabularies(target_spec, draft_spec)
            self.tokenizer = load_tokenizer(self.config.target)
            if isinstance(self.config.placement, Placement) or self.config.placement != "auto":
                resolve_placement(self.config)
            self._io = _EngineThread(self)
            self._io.thread.start()
            self._io.wait_until_started(self.config.ready_timeout_s + 30)
            self._before_close = [tell(self) for tell in Engine.on_open]
        except BaseException:
            self.close()
            raise

    def _start_process(self) -> None:
        """Start the supervisor, with a pipe each way; it forks the workers."""
        env = dict(os.environ)
        checkout = str(Path(__file__).resolve().parent.parent)
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [checkout, env.get("PYTHONPATH")]))
        env.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for GPUs must not make a context before forking
        let_idle_threads_sleep(env)
        env["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # no loader threads in the process that forks
        env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        env["TRANSFORMERS_VERBOSITY"] = "error"
        env["TOKENIZERS_PARALLELISM"] = "false"
        read_theirs, write_ours = os.pipe()
        read_ours, write_theirs = os.pipe()
        with open(self.folder / "supervisor.log", "w") as log_file:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "seedmp.workers.supervisor", "--folder", str(self.folder),
                    "--engine-in", str(read_theirs), "--engine-out", str(write_theirs),
                ],
                stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, env=env, start_new_session=True,
                pass_fds=(read_theirs, write_theirs),
            )  # fmt: skip
        os.close(read_theirs)
        os.close(write_theirs)
        self._to_supervisor = Connection(write_ours, readable=False)
        self._from_supervisor = Connection(read_ours, writable=False)
        self._to_supervisor.send_bytes(json.dumps(self.config.to_plain()).encode())

    # --- generating -----------------------------------------------------------------------------

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
    ) -> list[RequestOutput]:
        """Continue prompts; all at once, in the order given.

        Args:
            prompts: one prompt or a list; text, or token ids.
            params: the same for all; ``n`` outputs follow one another for each prompt, with ``best_of``
                the likeliest first.
            timeout: seconds for the whole call.

        Raises:
            RequestTimeoutError: not all finished in time; the rest was cancelled.
            RequestError: a request failed; the others were cancelled.
        """
        params = params or SamplingParams()
        if params.best_of is None:
            handles = [handle for prompt in as_list(prompts) for handle in self.submit_all(prompt, params)]
            return self.wait_for(handles, timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        drawn = replace(params, n=params.best_of, best_of=None)
        handles = [handle for prompt in as_list(prompts) for handle in self.submit_all(prompt, drawn)]
        outputs = self.wait_for(handles, timeout)
        groups = [outputs[i : i + params.best_of] for i in range(0, len(outputs), params.best_of)]
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        return [out for group in groups for out in self.likeliest(group, params.n, left)]

    def wait_for(self, handles: Sequence[RequestHandle], timeout: float | None) -> list[RequestOutput]:
        """Outputs of requests, in order; when one fails or the time is over, the others are cancelled.

        Raises:
            RequestTimeoutError, RequestError: as ``generate``.
        """
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
        """
        rows = self.score_ids(outputs[0].prompt_token_ids, [out.token_ids for out in outputs], timeout=timeout)
        scored = [replace(out, logprob=float(row.sum())) for out, row in zip(outputs, rows, strict=True)]
        means = [float(row.mean()) for row in rows]
        order = sorted(range(len(scored)), key=lambda i: (-means[i], i))
        return [scored[i] for i in order[:n]]

    def submit(self, prompt: Prompt, params: SamplingParams | None = None) -> RequestHandle:
        """Start one continuation and return at once.

        Raises:
            RejectedError: the prompt or the parameters cannot be served.
        """
        params = params or SamplingParams()
        if params.n != 1 or params.best_of is not None:
            raise RejectedError(
                f"n={params.n}, best_of={params.best_of}: submit() starts one continuation; use generate()"
            )
        return self.submit_all(prompt, params)[0]

    def submit_all(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        first_stream: int = 0,
        branch: int = 0,
        children: Sequence[int] = (),
    ) -> list[RequestHandle]:
        """Start ``params.n`` continuations of one prompt, which share its KV.

        Args:
            first_stream: continuation i draws the noise of stream ``first_stream + i``.
            branch: id of the open branch that the prompt is, if it is one.
            children: ids of the branches that the continuations become, if they do.
        """
        params = params or SamplingParams()
        if params.best_of is not None:
            raise RejectedError(f"best_of={params.best_of}: outputs are compared by generate()")
        if params.stop and self.tokenizer is None:
            raise RejectedError(f"stop={params.stop!r}: the target {self.config.target!r} has no tokenizer")
        if params.is_constrained:
            from seedmp.decoding.constraint import check_constraint  # imports torch

            check_constraint(params, self.tokenizer)
        text, prompt_ids = self._encode(prompt)
        if not prompt_ids:
            raise RejectedError("the prompt is empty: at least one token is needed")
        if params.seed is None:
            params = replace(params, seed=secrets.randbelow(MAX_SEED))
        one = replace(params, n=1)
        return [
            self._io.submit(
                text, prompt_ids, one, first_stream + index, index, branch, children[index] if children else 0
            )
            for index in range(params.n)
        ]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[StreamChunk]:
        """Chunks of one continuation as they are committed; leaving the loop early cancels it."""
        handle = self.submit(prompt, params)
        try:
            yield from handle
        finally:
            handle.cancel()

    def chat(
        self,
        messages: Sequence[dict[str, str]],
        params: SamplingParams | None = None,
        *,
        timeout: float | None = None,
    ) -> RequestOutput:
        """Answer a conversation, formatted by the model's own chat template.

        Args:
            messages: ``{"role": ..., "content": ...}`` dictionaries.

        Raises:
            RejectedError: the model has no chat template.
        """
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise RejectedError(f"the target {self.config.target!r} has no chat template: use generate() with a prompt")
        ids = self.tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        return self.generate([tuple(ids)], params, timeout=timeout)[0]

    def open(self, prompt: Prompt) -> Branch:
        """A branch: a committed token path that can be continued, forked and scored; its KV stays.

        Raises:
            RejectedError: the prompt is empty.
        """
        text, ids = self._encode(prompt)
        if not ids:
            raise RejectedError("the prompt is empty: at least one token is needed")
        return Branch(self, ids, text or "")

    def new_branch_id(self) -> int:
        """A number for a branch; unique in this engine, never 0."""
        return self._io.new_branch_id()

    def drop_branch(self, branch_id: int, *, free: bool = False) -> None:
        """A branch will not be continued; ``free`` gives its KV back at once. Safe at any time, in any thread."""
        self._io.dropped.append((branch_id, free))
        if free:
            self._io.wake()

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
        future = self.submit_score(prompt_ids, continuations, branch=branch)
        try:
            return future.result(timeout)
        except FutureTimeoutError:
            if future.done():
                raise
            raise errors.RequestTimeoutError(f"not scored within {timeout} s") from None

    def submit_score(
        self, prompt_ids: Sequence[int], continuations: Sequence[Sequence[int]], *, branch: int = 0
    ) -> Future[list[np.ndarray]]:
        """Start ``score_ids`` and return at once."""
        lengths = [len(ids) for ids in continuations]
        if not lengths or 0 in lengths:
            raise RejectedError("every text to score needs at least one token")
        flat = tuple(int(i) for ids in continuations for i in ids)
        return self._io.score(tuple(int(i) for i in prompt_ids), flat, tuple(lengths), branch)

    def encode(self, text: str, *, special: bool = False) -> tuple[int, ...]:
        """Token ids of text, as a continuation unless ``special`` tokens are asked for."""
        if self.tokenizer is None:
            raise RejectedError(f"the target {self.config.target!r} has no tokenizer: give token ids")
        if not special and self._starts_words_with_blank:
            anchor = tuple(self.tokenizer("\n", add_special_tokens=False).input_ids)
            ids = tuple(self.tokenizer("\n" + text, add_special_tokens=False).input_ids)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return tuple(self.tokenizer(text, add_special_tokens=special).input_ids)

    @cached_property
    def _starts_words_with_blank(self) -> bool:
        """Whether the tokenizer puts a blank before a text's first word (SentencePiece); wrong in a continuation."""
        assert self.tokenizer is not None
        first = self.tokenizer("x", add_special_tokens=False).input_ids[:1]
        return bool(first) and str(self.tokenizer.convert_ids_to_tokens(first)[0]).startswith("\u2581")

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out; empty without a tokenizer."""
        return "" if self.tokenizer is None else str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def tokens_of_text(self, output: RequestOutput) -> tuple[int, ...]:
        """The tokens of an output's text: without EOS and without what belongs to the stop string."""
        if self.tokenizer is None:
            return output.token_ids
        ids, text = output.token_ids, output.text
        while ids and len(self.decode(ids[:-1])) >= len(text):
            ids = ids[:-1]
        if self.decode(ids) == text:
            return ids
        ids = ids[:-1]  # the stop string begins inside the last token
        return ids + self.encode(text[len(self.decode(ids)) :])

    def _encode(self, prompt: Prompt) -> tuple[str | None, tuple[int, ...]]:
        if isinstance(prompt, str):
            return prompt, self.encode(prompt, special=True) if prompt else ()
        if not isinstance(prompt, Sequence) or not all(isinstance(i, int | np.integer) for i in prompt):
            raise RejectedError(f"a prompt of type {type(prompt).__name__}: must be str or a sequence of token ids")
        return None, tuple(int(i) for i in prompt)

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
        return self._span_log.spans(reset=reset)

    def worker_pids(self) -> dict[str, int]:
        """Process ids of the workers that are ready, by name, and of the supervisor."""
        return {**self._io.pids, "supervisor": self._process.pid}

    def profile(self, folder: str | os.PathLike[str]) -> Profile:
        """``with engine.profile("out/") as profile:`` watch every process, then write into the folder what each did.

        ``profile.summary`` says in words what limited the run; docs/profiling.md describes the files.

        Raises:
            ConfigError: the folder cannot be written.
        """
        from seedmp.profiling.profile import Profile

        return Profile(self, folder)

    # --- ending ---------------------------------------------------------------------------------

    def close(self) -> None:
        """End all processes and remove sockets and shared memory; pending requests raise EngineClosedError."""
        try:
            while getattr(self, "_before_close", None):
                self._before_close.pop()()
        finally:
            self._close()

    def _close(self) -> None:
        self._span_log.close()
        if hasattr(self, "_io"):
            self._io.stop(EngineClosedError("the engine was closed"))
        self._finalizer()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _abandon(process: subprocess.Popen[bytes], to_supervisor: Connection, folder: Path) -> None:
    """End the supervisor, which ends the workers; then make sure that nothing is left."""
    if not to_supervisor.closed:
        with contextlib.suppress(OSError):  # it may be gone already
            send_on_pipe(to_supervisor, Shutdown())
        to_supervisor.close()
    try:
        process.wait(CLOSE_S)
    except subprocess.TimeoutExpired:
        process.kill()  # the workers follow it
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _default_draft(target: str | os.PathLike[str] | None, method: object) -> str:
    """What drafts where no draft is named.

    Raises:
        ConfigError: the method needs one and only the user knows it, or the bundled head is not there.
    """
    is_eagle = method in (Method.EAGLE, Method.EAGLE.value)
    if target is not None:
        if not needs_draft(method):
            return os.fspath(target)
        wanted = "a head that was trained for it (python -m seedmp.training.eagle)" if is_eagle else "a draft model"
        raise ConfigError(f"no draft for target {os.fspath(target)!r}: name {wanted}, or use method='ar' or 'ngram'")
    if not is_eagle:
        return str(pair.DRAFT)
    if not pair.HEAD.is_dir():
        raise ConfigError(
            f"no draft for method='eagle': the bundled target's head is not there ({pair.HEAD}); name one, "
            "or train one with python -m seedmp.training.eagle"
        )
    return str(pair.HEAD)


def _is_head(config: EngineConfig) -> bool:
    """Whether the draft is a head, and one that fits the target.

    Raises:
        ConfigError: it does not fit, or the method needs a head and it is none, or the other way round.
    """
    from seedmp.models.eagle import is_head, read_head  # they import torch, on first use

    if config.method is Method.EAGLE:
        read_head(config.draft, ModelSpec(config.target))  # it fits what the target is before inflation
        return True
    if needs_draft(config.method) and is_head(config.draft):
        raise ConfigError(
            f"draft {config.draft!r} is an EAGLE head: only method='eagle' can draft with it, "
            f"method={config.method.value!r} needs a whole model"
        )
    return False


def as_list(prompts: Prompt | Sequence[Prompt]) -> Sequence[Prompt]:
    """One prompt, or several, as a list."""
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int | np.integer)):
        return [prompts]  # type: ignore[list-item]
    return prompts  # type: ignore[return-value]


class _EngineThread:
    """Owns the engine's sockets and everything in flight; one thread, talked to through a queue."""

    def __init__(self, engine: Engine) -> None:
        self.config = engine.config
        self.tokenizer = engine.tokenizer
        self.process = engine._process
        self.from_supervisor = engine._from_supervisor
        self.thread = threading.Thread(target=self._run, name="seedmp-engine", daemon=True)
        self.lock = threading.Lock()  # guards what the user's threads touch: orders, pending, dead
        self.orders: list[Any] = []
        self.wake_read, wake_write = os.pipe()
        self.wake_write: int | None = wake_write  # None once the thread has ended
        self.pending: dict[int, _Pending | _PendingScore] = {}
        self.queries: dict[int, Future[StatsReply]] = {}
        self.next_id = 0
        self.dead: BaseException | None = None
        self.started = threading.Event()
        self.channels: dict[int, DealerChannel] = {}
        self.pids: dict[str, int] = {}
        self.num_lost = 0
        self.dropped: deque[tuple[int, bool]] = deque()  # branches; filled by any thread, a finalizer too
        self.num_expected = self.config.num_groups
        self.ring = SpanRing(ring_path(engine.folder, "engine"))

    # --- called from the user's threads ------------------------------------------------------------

    def wait_until_started(self, timeout_s: float) -> None:
        """Until every group serves.

        Raises:
            the error that the supervisor reported, or WorkerStartError after the time.
        """
        if not self.started.wait(timeout_s):
            raise WorkerStartError(f"the workers were not ready within {timeout_s:.0f} s")
        if self.dead is not None:
            raise self.dead

    def submit(
        self,
        prompt: str | None,
        prompt_ids: tuple[int, ...],
        params: SamplingParams,
        stream: int,
        index: int,
        branch: int,
        child: int,
    ) -> RequestHandle:
        with self.lock:
            self._check_alive()
            request_id = self._take_id()
            handle = RequestHandle(request_id, self._request_cancel)
            loads = dict.fromkeys(range(self.num_expected), 0)
            for other in self.pending.values():
                loads[other.group] += 1
            group = min(loads, key=lambda g: loads[g])
            pending = self.pending[request_id] = _Pending(
                handle, prompt, prompt_ids, params, stream, index, time.monotonic_ns(), group, branch, child
            )
            self._order(group, _submit(request_id, pending))
        return handle

    def score(
        self, prompt_ids: tuple[int, ...], flat: tuple[int, ...], lengths: tuple[int, ...], branch: int
    ) -> Future[list[np.ndarray]]:
        with self.lock:
            self._check_alive()
            request_id = self._take_id()
            future: Future[list[np.ndarray]] = Future()
            message = Score(request_id, prompt_ids, flat, lengths, branch)
            self.pending[request_id] = _PendingScore(future, message, 0)
            self._order(0, message)
        return future

    def query(self) -> list[StatsReply]:
        futures = []
        with self.lock:
            self._check_alive()
            for group in range(self.num_expected):
                query_id = self._take_id()
                future: Future[StatsReply] = Future()
                self.queries[query_id] = future
                futures.append(future)
                self._order(group, StatsQuery(query_id))
        try:
            return [future.result(STATS_S) for future in futures]
        except FutureTimeoutError:
            raise EngineDeadError(f"the verifier did not answer within {STATS_S:.0f} s") from None

    def stop(self, why: BaseException) -> None:
        with self.lock:
            if self.dead is None:
                self.dead = why
            self._wake()
        if self.thread.is_alive() and self.thread is not threading.current_thread():
            self.thread.join(CLOSE_S)

    def _request_cancel(self, request_id: int) -> None:
        with self.lock:
            pending = self.pending.get(request_id)
            if pending is not None and self.dead is None:
                self._order(pending.group, Cancel(request_id))

    def _check_alive(self) -> None:
        if self.dead is not None:
            raise type(self.dead)(str(self.dead)) from self.dead

    def new_branch_id(self) -> int:
        with self.lock:
            return self._take_id()

    def wake(self) -> None:
        with self.lock:
            self._wake()

    def _take_id(self) -> int:
        self.next_id += 1
        return self.next_id

    def _order(self, group: int, msg: Any) -> None:
        self.orders.append((group, msg))
        self._wake()

    def _wake(self) -> None:
        """Make the thread look at its orders; the lock is held."""
        if self.wake_write is not None:
            os.write(self.wake_write, b"x")

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
            for channel in self.channels.values():
                channel.close()
            context.term()
            self._die(self.dead or EngineDeadError("the engine's thread ended"))
            with self.lock:
                assert self.wake_write is not None
                os.close(self.wake_write)
                os.close(self.wake_read)
                self.wake_write = None
            self.from_supervisor.close()
            self.ring.close()

    def _serve(self, context: zmq.Context[Any]) -> None:
        while self.dead is None:
            poller = zmq.Poller()
            poller.register(self.wake_read, zmq.POLLIN)
            poller.register(self.from_supervisor.fileno(), zmq.POLLIN)
            for channel in self.channels.values():
                poller.register(channel.socket, zmq.POLLIN)
            channels = self.channels.values()
            self.ring.count_bytes(sum(c.bytes_in for c in channels), sum(c.bytes_out for c in channels))
            self.ring.enter(Activity.IDLE)
            ready = dict(poller.poll(POLL_MS))
            self.ring.enter(Activity.IPC)
            if self.wake_read in ready:
                os.read(self.wake_read, 4096)
            if self.from_supervisor.fileno() in ready:
                self._read_supervisor(context)
            for channel in list(self.channels.values()):
                messages = channel.receive_all()
                self.ring.enter(Activity.COMMIT)
                for msg in messages:
                    self._on_message(msg)
                self.ring.enter(Activity.IPC)
            self._send_dropped()
            self._send_orders()

    def _send_dropped(self) -> None:
        dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
        for free in (True, False):
            ids = tuple(branch_id for branch_id, wants_free in dropped if wants_free is free)
            for channel in self.channels.values() if ids else ():
                channel.send(CloseBranches(ids, free))

    def _send_orders(self) -> None:
        with self.lock:
            orders, self.orders = self.orders, []
            for group, msg in orders:
                channel = self.channels.get(group)
                if channel is not None:
                    channel.send(msg)
                elif not isinstance(msg, Submit | Score):  # those are sent again when the group is back
                    self.orders.append((group, msg))

    def _read_supervisor(self, context: zmq.Context[Any]) -> None:
        try:
            while self.from_supervisor.poll():
                self._on_supervisor_message(receive_on_pipe(self.from_supervisor), context)
        except (EOFError, OSError):
            if self.dead is None:
                raise EngineDeadError("the supervisor process is gone") from None

    def _on_supervisor_message(self, msg: Any, context: zmq.Context[Any]) -> None:
        if isinstance(msg, WorkerReady):
            self.pids[msg.worker] = msg.pid
        elif isinstance(msg, WorkerLost):
            log.warning("%s died (exit code %d)", msg.worker, msg.exitcode)
            self.num_lost += 1
            self.pids.pop(msg.worker, None)
            if msg.worker.startswith("verifier-"):
                channel = self.channels.pop(int(msg.worker.partition("-")[2]), None)
                if channel is not None:
                    channel.close()
        elif isinstance(msg, GroupStarted):
            self._connect(msg, context)
        elif isinstance(msg, EngineDown):
            self._die(_error_of(msg))

    def _connect(self, msg: GroupStarted, context: zmq.Context[Any]) -> None:
        """Open the link to a verifier; what was in flight goes on from its committed tokens."""
        channel = DealerChannel(context, msg.endpoint, f"engine-{os.getpid()}-{secrets.token_hex(4)}".encode())
        channel.send(EngineHello(PROTOCOL_VERSION))
        with self.lock:
            self.orders = [order for order in self.orders if not isinstance(order[1], Submit | Score)]
            for request_id, pending in self.pending.items():
                if pending.group != msg.group:
                    continue
                if isinstance(pending, _PendingScore):
                    channel.send(pending.message)
                else:
                    channel.send(_submit(request_id, pending))
            self.channels[msg.group] = channel
        if len(self.channels) == self.num_expected:
            self.started.set()

    def _on_message(self, msg: Any) -> None:
        if isinstance(msg, Committed):
            pending = self.pending.get(msg.request_id)
            if isinstance(pending, _Pending):
                self._commit(pending, msg)
        elif isinstance(msg, Finished):
            self._finish(msg)
        elif isinstance(msg, Failed):
            self._fail(msg.request_id, getattr(errors, msg.kind, RequestError)(msg.text))
        elif isinstance(msg, Scored):
            with self.lock:
                scored = self.pending.get(msg.request_id)
            if isinstance(scored, _PendingScore) and not scored.future.done():  # its owner may have cancelled it
                ends = np.cumsum(scored.message.lengths)[:-1]
                scored.future.set_result(np.split(np.array(msg.logprobs), ends))
        elif isinstance(msg, StatsReply):
            future = self.queries.pop(msg.query_id, None)
            if future is not None:
                future.set_result(msg)
        elif isinstance(msg, EngineWelcome) and msg.protocol_version != PROTOCOL_VERSION:
            self._die(EngineDeadError(f"the verifier speaks protocol {msg.protocol_version}, not {PROTOCOL_VERSION}"))

    def _commit(self, pending: _Pending, msg: Committed) -> None:
        pending.token_ids += msg.token_ids
        text = self._new_text(pending, is_last=False) if pending.handle.is_followed else ""
        pending.handle.push(StreamChunk(text, msg.token_ids))

    def _new_text(self, pending: _Pending, *, is_last: bool, stop: str = "") -> str:
        """Text not streamed yet: complete characters, nothing that may turn out to be a stop string."""
        if self.tokenizer is None:
            return ""
        text = cut_at_stop(str(self.tokenizer.decode(pending.token_ids, skip_special_tokens=True)), stop)
        if not is_last:
            whole = [at for candidate in pending.params.stop if (at := text.find(candidate)) >= 0]
            held_back = max(map(len, pending.params.stop), default=1) - 1
            text = text.rstrip("\ufffd")
            text = text[: max(0, min([len(text) - held_back, *whole]))]
        new, pending.text_len = text[pending.text_len :], max(pending.text_len, len(text))
        return new

    def _finish(self, msg: Finished) -> None:
        with self.lock:
            pending = self.pending.pop(msg.request_id, None)
        if isinstance(pending, _PendingScore):
            return
        if not isinstance(pending, _Pending):
            return
        rest = self._new_text(pending, is_last=True, stop=msg.stop)
        if rest:
            pending.handle.push(StreamChunk(rest, ()))
        text = ""
        if self.tokenizer is not None:
            text = cut_at_stop(str(self.tokenizer.decode(pending.token_ids, skip_special_tokens=True)), msg.stop)
        cost = RequestMetrics.of(msg.counters, pending.submitted_ns, msg.finished_ns)
        assert pending.params.seed is not None
        pending.handle.finish(
            RequestOutput(
                pending.prompt, pending.prompt_ids, text, tuple(pending.token_ids), msg.reason,
                pending.params.seed, pending.index, cost,
            )
        )  # fmt: skip

    def _fail(self, request_id: int, error: BaseException) -> None:
        with self.lock:
            pending = self.pending.pop(request_id, None)
        if isinstance(pending, _Pending):
            pending.handle.finish(error)
        elif isinstance(pending, _PendingScore) and not pending.future.done():
            pending.future.set_exception(error)

    def _die(self, why: BaseException) -> None:
        """Nothing will be served any more: everybody who waits is told."""
        with self.lock:
            if self.dead is None:
                self.dead = why
            ids, queries = list(self.pending), list(self.queries.values())
            self.queries.clear()
        for request_id in ids:
            error = type(self.dead)(str(self.dead))
            error.__cause__ = self.dead
            self._fail(request_id, error)
        for future in queries:
            if not future.done():
                future.set_exception(self.dead)
        self.started.set()


def _submit(request_id: int, pending: _Pending) -> Submit:
    return Submit(
        request_id, pending.stream, pending.prompt_ids, tuple(pending.token_ids), pending.params,
        pending.branch, pending.child,
    )  # fmt: skip


def _error_of(msg: EngineDown) -> BaseException:
    if msg.kind == "ConfigError":
        return ConfigError(msg.text.partition("ConfigError: ")[2] or msg.text)
    if msg.kind == "WorkerStartError":
        return WorkerStartError(msg.text, msg.worker, msg.last_log)
    return EngineDeadError(f"{msg.text}\n{msg.last_log}".strip())
