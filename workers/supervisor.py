"""The supervisor: a small process that preloads the libraries, forks the workers and replaces them.

Started by the engine as ``python -m seedmp.workers.supervisor``, so the user's ``__main__`` is never
imported again. It has one thread, no socket and no CUDA context: forking from it is safe and quick.
It ends, and takes everything with it, when the pipe from the engine closes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgpack  # noqa: F401  preloaded for the workers
import torch
import zmq  # noqa: F401  preloaded for the workers; no context is made here

from seedmp.config import EngineConfig, Method, Placement, resolve_placement
from seedmp.decoding.constraint import Constrainer, automaton_tokenizer
from seedmp.errors import ConfigError, SeedmpError
from seedmp.ipc.arena import (
    ArenaLayout,
    FeatureLayout,
    allocate_on,
    allocate_shared,
    attach_cuda,
    check_shared_memory,
    export_cuda,
    layout_for,
)
from seedmp.ipc.channel import receive_on_pipe, send_on_pipe
from seedmp.ipc.endpoints import engine_endpoint
from seedmp.ipc.messages import (
    CudaTensor,
    EngineDown,
    GroupStarted,
    Shutdown,
    WorkerFailed,
    WorkerLost,
    WorkerReady,
)
from seedmp.ipc.span_ring import SpanRing, ring_path
from seedmp.models.eagle import EagleHead, HeadSpec, load_head, read_head
from seedmp.models.eagle_runner import HeadRunner
from seedmp.models.features import FeatureTap
from seedmp.models.load import (
    ModelSpec,
    check_vocabularies,
    eos_token_ids,
    load_config,
    load_model,
    load_tokenizer,
    max_positions,
)
from seedmp.models.prepack import prepack_linears
from seedmp.models.runner import make_runner
from seedmp.scheduler.scheduler import Limits, Scheduler
from seedmp.trace import Activity
from seedmp.workers.draft import DraftModel, DraftServer, TreeDrafter, WholeModel
from seedmp.workers.draft_head import HeadModel
from seedmp.workers.lifecycle import WorkerSpec, last_log, run_worker
from seedmp.workers.target import TargetRunner, Verifier

TICK_S = 0.25
SHUTDOWN_S = 3.0
DUMP_S = 0.3
RESTART_WINDOW_S = 60.0
SMALL_DRAFT = 1 << 20  # layers x hidden size squared; about 10 million weights in the layers


@dataclass
class Worker:
    """A child process and how far it has come."""

    spec: WorkerSpec
    process: BaseProcess
    pipe: Connection
    is_ready: bool = False
    failure: WorkerFailed | None = None


@dataclass
class Group:
    """A verifier and its drafts; they live and die with the verifier."""

    index: int
    verifier_epoch: int = 0
    announced: bool = False


@dataclass(frozen=True)
class SharedModel:
    """What drafts share: on a CPU the module and the arena, inherited through fork; on a GPU only their layout."""

    config: Any
    layout: ArenaLayout
    model: Any = None
    arena: torch.Tensor | None = None
    head: HeadSpec | None = None  # if the draft is one
    feature_layout: FeatureLayout | None = None
    features: torch.Tensor | None = None  # on a CPU; the verifier inherits them too

    @property
    def layouts(self) -> tuple[ArenaLayout | FeatureLayout, ...]:
        """Of all arenas that drafts attach."""
        return (self.layout,) if self.feature_layout is None else (self.layout, self.feature_layout)

    def with_features(self) -> SharedModel:
        """With a feature arena in shared memory, if there is to be one."""
        return self if self.feature_layout is None else replace(self, features=allocate_shared(self.feature_layout))

    def __str__(self) -> str:
        features = "" if self.feature_layout is None else f", features {self.feature_layout}"
        return f"{self.layout}{features}"


class Supervisor:
    """Forks, watches and replaces the workers of one engine."""

    def __init__(self, config: EngineConfig, folder: Path, engine_in: Connection, engine_out: Connection) -> None:
        self.config = config
        self.folder = folder
        self.engine_in = engine_in
        self.engine_out = engine_out
        self.fork = multiprocessing.get_context("fork")
        self.lifeline_read, self.lifeline_write = os.pipe()
        num_workers = config.num_groups * (1 + config.drafts_per_group)
        self.board = torch.zeros(num_workers, dtype=torch.int64).share_memory_()
        self.workers: dict[str, Worker] = {}
        self.groups = [Group(index) for index in range(config.num_groups)]
        self.draft_epochs: dict[str, int] = {}
        self.deaths: deque[float] = deque()
        self.started_s = time.monotonic()
        self.placement = resolve_placement(config)
        self.target_spec = ModelSpec(config.target, config.target_shape)
        self.draft_spec = ModelSpec(config.draft, config.draft_shape)
        self.head = read_head(config.draft, ModelSpec(config.target)) if config.method is Method.EAGLE else None
        self.vocab_size = check_vocabularies(
            self.target_spec, self.draft_spec if self.head is None else self.target_spec
        )
        draft_config = load_config(self.draft_spec) if self.head is None else self.head.config
        self.dtype, self.draft_dtype = resolve_dtypes(
            config, self.placement, load_config(self.target_spec), draft_config
        )
        self.shared: list[SharedModel | None] = []

    # --- starting -------------------------------------------------------------------------------

    def start(self) -> None:
        """Fork the verifiers, load what drafts share, fork the drafts."""
        torch.set_num_threads(1)  # no thread pool may exist when forking
        self.shared = [self._plan_shared() for _ in self.groups]
        target_layout = layout_for(load_config(self.target_spec), self.config.kv_slots, self.dtype)
        if self.placement.target == "cpu":
            layouts = [layout for shared in self.shared if shared is not None for layout in shared.layouts]
            needed = target_layout.size_bytes * len(self.groups) + sum(layout.size_bytes for layout in layouts)
            check_shared_memory(needed)
            self.shared = [shared and shared.with_features() for shared in self.shared]
        _preload(load_config(self.target_spec))
        for group in self.groups:
            self._start_verifier(group)
        if self.config.drafts_per_group and self.placement.target == "cpu":
            model = self._load_draft("cpu")
            prepack_linears(model)
            check_shared_memory(sum(weight.nbytes for weight in model.parameters()))
            model.share_memory()
            for index, planned in enumerate(self.shared):
                assert planned is not None
                arena = allocate_shared(planned.layout)
                self.shared[index] = replace(planned, model=model, arena=arena)
        for group in self.groups:
            self._start_drafts(group)

    def _plan_shared(self) -> SharedModel | None:
        if not self.config.drafts_per_group:
            return None
        config = load_config(self.draft_spec) if self.head is None else self.head.config
        layout = layout_for(config, self.config.num_draft_slots, self.draft_dtype)
        if self.head is None:
            return SharedModel(config, layout)
        features = FeatureLayout(self.config.kv_slots, self.head.feature_size, str(self.dtype).removeprefix("torch."))
        return SharedModel(config, layout, head=self.head, feature_layout=features)

    def _load_draft(self, device: str, target_model: Any = None) -> Any:
        if self.head is None:
            return load_model(self.draft_spec, self.draft_dtype, device)
        lender = ModelSpec(self.config.target)  # a head fits what the target is before inflation
        if self.target_spec != lender:
            target_model = None
        return load_head(self.head, self.draft_dtype, device, lender, target_model)

    def _start_verifier(self, group: Group) -> None:
        spec = WorkerSpec(f"verifier-{group.index}", group.verifier_epoch, self._beat_index(group.index, None))
        shared = self.shared[group.index]
        self._fork(spec, lambda pipe, ready, beat: self._verifier_main(group, shared, pipe, ready, beat))

    def _start_drafts(self, group: Group) -> None:
        for worker_id in range(self.config.drafts_per_group):
            self._start_draft(group, worker_id)

    def _start_draft(self, group: Group, worker_id: int) -> None:
        name = f"draft-{group.index}.{worker_id}"
        epoch = self.draft_epochs.get(name, -1) + 1
        self.draft_epochs[name] = epoch
        shared = self.shared[group.index]
        assert shared is not None
        spec = WorkerSpec(name, epoch, self._beat_index(group.index, worker_id))
        self._fork(spec, lambda pipe, ready, beat: self._draft_main(group, worker_id, epoch, shared, ready, beat))

    def _beat_index(self, group_index: int, worker_id: int | None) -> int:
        first = group_index * (1 + self.config.drafts_per_group)
        return first if worker_id is None else first + 1 + worker_id

    def _fork(
        self, spec: WorkerSpec, main: Callable[[Connection, Callable[[], None], Callable[[], None]], None]
    ) -> None:
        ours, theirs = self.fork.Pipe()
        foreign = [ours.fileno(), self.engine_in.fileno(), self.engine_out.fileno(), self.lifeline_write]
        foreign += [worker.pipe.fileno() for worker in self.workers.values() if not worker.pipe.closed]
        self.board[spec.beat_index] = time.monotonic_ns()
        process = self.fork.Process(
            target=run_worker,
            name=spec.name,
            args=(
                spec, self.folder, theirs, self.lifeline_read, foreign, self.board,
                lambda ready, beat: main(theirs, ready, beat),
            ),
        )  # fmt: skip
        process.start()
        theirs.close()
        self.workers[spec.name] = Worker(spec, process, ours)

    # --- the workers' mains (run in the children) --------------------------------------------------

    def _verifier_main(
        self,
        group: Group,
        shared: SharedModel | None,
        pipe: Connection,
        ready: Callable[[], None],
        beat: Callable[[], None],
    ) -> None:
        config, device = self.config, self.placement.target
        torch.set_num_threads(config.threads()[0])
        model = load_model(self.target_spec, self.dtype, device)
        prepack_linears(model)
        arena = allocate_on(layout_for(model.config, config.kv_slots, self.dtype), device)
        tensors: tuple[CudaTensor, ...] = ()
        owned: list[Any] = []  # exported GPU memory lives as long as this process
        if shared is not None and device != "cpu":
            draft_device = self.placement.drafts[0]
            draft_model = self._load_draft(draft_device, model)
            owned = [draft_model, *(allocate_on(layout, draft_device) for layout in shared.layouts)]
            torch.cuda.synchronize(draft_device)
            named = {
                **dict(draft_model.named_parameters()),
                **dict(draft_model.named_buffers()),
                **dict(zip((ARENA, FEATURES), owned[1:], strict=False)),
            }
            tensors = tuple(export_cuda(name, tensor.detach()) for name, tensor in named.items())
        tokenizer = load_tokenizer(config.target)
        max_len = max_positions(model.config)
        if shared is not None and shared.head is None:
            max_len = min(max_len, max_positions(shared.config))
        limits = Limits(max_len, self.vocab_size, frozenset(eos_token_ids(self.target_spec)))
        decode = None if tokenizer is None else lambda ids: tokenizer.decode(ids, skip_special_tokens=True)
        scheduler = Scheduler(config, limits, decode)
        constrainer = None
        if tokenizer is not None:
            make_tokenizer = partial(automaton_tokenizer, tokenizer, sorted(limits.eos_token_ids))
            constrainer = Constrainer(make_tokenizer, self.vocab_size)
        tap = None
        if shared is not None and shared.head is not None:
            features = owned[2] if owned else shared.features
            tap = FeatureTap(model, shared.head.feature_layers, features, shared.head.target_hidden)
        runner = TargetRunner(make_runner(config.runner, model, arena, self.vocab_size, tap), constrainer)
        layout = str(shared) if shared is not None else ""
        verifier = Verifier(
            config, scheduler, runner, self.folder, group.index, group.verifier_epoch, pipe, layout, tensors
        )
        ready()
        verifier.serve(beat)

    def _draft_main(
        self,
        group: Group,
        worker_id: int,
        epoch: int,
        shared: SharedModel,
        ready: Callable[[], None],
        beat: Callable[[], None],
    ) -> None:
        torch.set_num_threads(self.config.threads()[1])
        server = DraftServer(self.folder, group.index, group.verifier_epoch, worker_id, epoch, str(shared))
        welcome = server.welcome(self.config.ready_timeout_s, beat)
        model, arena, features = shared.model, shared.arena, shared.features
        if welcome.tensors:
            model, arena, features = _attach_model(shared, welcome.tensors, self.draft_dtype)
        assert arena is not None
        draft_model: DraftModel
        if shared.head is not None:
            assert features is not None
            draft_model = HeadModel(HeadRunner(model, arena, self.vocab_size), features)
        else:
            draft_model = WholeModel(make_runner(self.config.runner, model, arena, self.vocab_size))
        drafter = TreeDrafter(draft_model, self.config.draft_top_m, noise=self.config.draft_noise)
        ready()
        server.serve(drafter, beat)

    # --- watching -------------------------------------------------------------------------------

    def watch(self) -> None:
        """Until the engine says so or is gone: report, replace, notice stalls."""
        ring = SpanRing(ring_path(self.folder, "supervisor"))
        while True:
            sources: list[Any] = [self.engine_in]
            sources += [worker.process.sentinel for worker in self.workers.values()]
            sources += [worker.pipe for worker in self.workers.values() if not worker.pipe.closed]
            ring.enter(Activity.IDLE)
            ready = wait(sources, TICK_S)
            ring.enter(Activity.WATCH)
            if self.engine_in in ready and self._engine_is_done():
                return
            for worker in list(self.workers.values()):
                self._read_reports(worker)
            for worker in list(self.workers.values()):
                if self.workers.get(worker.spec.name) is worker and not worker.process.is_alive():
                    self._on_death(worker)
            self._check_deadlines()

    def _engine_is_done(self) -> bool:
        try:
            return isinstance(receive_on_pipe(self.engine_in), Shutdown)
        except (EOFError, OSError):
            return True

    def _read_reports(self, worker: Worker) -> None:
        try:
            while not worker.pipe.closed and worker.pipe.poll():
                msg = receive_on_pipe(worker.pipe)
                if isinstance(msg, WorkerFailed):
                    worker.failure = msg
                elif isinstance(msg, WorkerReady):
                    worker.is_ready = True
                    self._tell_engine(msg)
                    self._announce_groups()
        except (EOFError, OSError):
            worker.pipe.close()

    def _announce_groups(self) -> None:
        for group in self.groups:
            members = [f"verifier-{group.index}"]
            members += [f"draft-{group.index}.{i}" for i in range(self.config.drafts_per_group)]
            if not group.announced and all(name in self.workers and self.workers[name].is_ready for name in members):
                group.announced = True
                endpoint = engine_endpoint(self.folder, group.index, group.verifier_epoch)
                self._tell_engine(GroupStarted(group.index, group.verifier_epoch, endpoint))

    def _tell_engine(self, msg: Any) -> None:
        send_on_pipe(self.engine_out, msg)

    def _on_death(self, worker: Worker) -> None:
        self._read_reports(worker)
        worker.pipe.close()
        worker.process.join()
        del self.workers[worker.spec.name]
        exitcode = worker.process.exitcode if worker.process.exitcode is not None else -1
        if not worker.is_ready:
            raise _StartFailed(worker, exitcode)
        lost = WorkerLost(worker.spec.name, worker.spec.epoch, exitcode)
        self._tell_engine(lost)
        now = time.monotonic()
        self.deaths.append(now)
        while self.deaths and now - self.deaths[0] > RESTART_WINDOW_S:
            self.deaths.popleft()
        if len(self.deaths) > self.config.max_restarts:
            raise _GaveUp(worker, exitcode, len(self.deaths))
        kind, _, rest = worker.spec.name.partition("-")
        group = self.groups[int(rest.partition(".")[0])]
        if kind == "draft":
            verifier = self.workers.get(f"verifier-{group.index}")
            if verifier is not None and verifier.process.is_alive():
                send_on_pipe(verifier.pipe, lost)
                self._start_draft(group, int(rest.partition(".")[2]))
            return
        self._stop([w for name, w in self.workers.items() if name.startswith(f"draft-{group.index}.")], grace_s=0)
        group.verifier_epoch += 1
        group.announced = False
        self.started_s = now
        self._start_verifier(group)
        self._start_drafts(group)

    def _check_deadlines(self) -> None:
        late = [worker for worker in self.workers.values() if not worker.is_ready]
        if late and time.monotonic() - self.started_s > self.config.ready_timeout_s and len(self.deaths) == 0:
            raise _StartFailed(late[0], None)
        now_ns = time.monotonic_ns()
        for worker in self.workers.values():
            silent_s = (now_ns - int(self.board[worker.spec.beat_index])) / 1e9
            limit_s = self.config.stall_timeout_s if worker.is_ready else self.config.ready_timeout_s
            if silent_s > limit_s and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGUSR1)  # its traceback goes to its log
                time.sleep(DUMP_S)
                worker.process.kill()

    # --- ending ---------------------------------------------------------------------------------

    def stop(self) -> None:
        """Ask verifiers to finish (they tell their drafts), then make sure of it."""
        verifiers = [worker for name, worker in self.workers.items() if name.startswith("verifier-")]
        for verifier in verifiers:
            if not verifier.pipe.closed:
                try:
                    send_on_pipe(verifier.pipe, Shutdown())
                except OSError:
                    verifier.pipe.close()  # it died first
        self._stop(list(self.workers.values()), SHUTDOWN_S)

    def _stop(self, workers: list[Worker], grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()
            worker.pipe.close()
            self.workers.pop(worker.spec.name, None)


ARENA, FEATURES = "\0arena", "\0features"


class _Down(SeedmpError):
    """Nothing can be served any more."""

    kind = "WorkerError"

    def __init__(self, worker: Worker, text: str) -> None:
        super().__init__(text)
        self.worker = worker


class _StartFailed(_Down):
    """A worker never became ready; it is not restarted blindly."""

    def __init__(self, worker: Worker, exitcode: int | None) -> None:
        why = "was not ready in time" if exitcode is None else f"ended before it was ready (exit code {exitcode})"
        if worker.failure is not None:
            why += f": {worker.failure.kind}: {worker.failure.text}"
        super().__init__(worker, f"{worker.spec.name} {why}")
        is_config = worker.failure is not None and worker.failure.kind == "ConfigError"
        self.kind = "ConfigError" if is_config else "WorkerStartError"


class _GaveUp(_Down):
    """Workers die too often."""

    def __init__(self, worker: Worker, exitcode: int, num_deaths: int) -> None:
        failure = f": {worker.failure.kind}: {worker.failure.text}" if worker.failure is not None else ""
        super().__init__(
            worker,
            f"{worker.spec.name} died (exit code {exitcode}){failure}; "
            f"{num_deaths} deaths in {RESTART_WINDOW_S:.0f} s are more than max_restarts allows",
        )


def resolve_dtypes(
    config: EngineConfig, placement: Placement, target_config: Any, draft_config: Any
) -> tuple[torch.dtype, torch.dtype]:
    """Of target and drafts: the same, but float32 for a small draft on a CPU, where converting bfloat16 costs more."""
    dtype = _resolve_dtype(config, placement, target_config)
    sizes = draft_config.get_text_config(decoder=True)
    is_small = sizes.num_hidden_layers * sizes.hidden_size**2 < SMALL_DRAFT
    return dtype, torch.float32 if placement.target == "cpu" and is_small else dtype


def _resolve_dtype(config: EngineConfig, placement: Placement, target_config: Any) -> torch.dtype:
    name = config.dtype
    if name == "auto":
        if placement.target == "cpu":
            return torch.float32
        checkpoint = getattr(target_config, "dtype", None)
        return checkpoint if isinstance(checkpoint, torch.dtype) else torch.bfloat16
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _preload(model_config: Any) -> None:
    """Import the model's code once, before the forks."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    AutoModelForCausalLM._model_mapping[type(model_config)]


def _attach_model(
    shared: SharedModel, tensors: tuple[CudaTensor, ...], dtype: torch.dtype
) -> tuple[Any, torch.Tensor, torch.Tensor | None]:
    """A module whose weights are another process's, its arena, and the target's features if it is a head."""
    from transformers import AutoModelForCausalLM

    attached = {handle.name: attach_cuda(handle) for handle in tensors}
    arena, features = attached.pop(ARENA), attached.pop(FEATURES, None)
    if arena.is_cuda:
        torch.cuda.set_device(arena.device)
    with torch.device("meta"):
        model: Any = (
            AutoModelForCausalLM.from_config(shared.config, dtype=dtype)
            if shared.head is None
            else EagleHead(shared.head)
        )
    for name, tensor in attached.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if leaf in owner._parameters:
            owner._parameters[leaf] = torch.nn.Parameter(tensor, requires_grad=False)
        else:
            owner._buffers[leaf] = tensor
    if shared.head is None:
        model.tie_weights()
    return model.eval(), arena, features


def main() -> None:
    """Entry point of ``python -m seedmp.workers.supervisor``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--engine-in", type=int, required=True)
    parser.add_argument("--engine-out", type=int, required=True)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    engine_in = Connection(args.engine_in, writable=False)
    engine_out = Connection(args.engine_out, readable=False)
    supervisor: Supervisor | None = None
    down: EngineDown | None = None
    try:
        plain = json.loads(engine_in.recv_bytes())
        supervisor = Supervisor(EngineConfig.from_plain(plain), args.folder, engine_in, engine_out)
        supervisor.start()
        supervisor.watch()
    except EOFError:
        pass  # the engine is gone
    except _Down as error:
        down = EngineDown(error.kind, str(error), error.worker.spec.name, last_log(args.folder, error.worker.spec.name))
    except ConfigError as error:
        down = EngineDown("ConfigError", str(error), "supervisor", "")
    except BrokenPipeError:
        pass  # the engine is gone
    except Exception as error:
        import traceback

        traceback.print_exc()
        down = EngineDown(
            "EngineDeadError",
            f"supervisor: {type(error).__name__}: {error}",
            "supervisor",
            traceback.format_exc(),
        )
    if supervisor is not None:
        supervisor.stop()
    try:
        if down is not None:
            send_on_pipe(engine_out, down)
        engine_out.close()
    except OSError:
        pass  # nobody listens
    shutil.rmtree(args.folder, ignore_errors=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
