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
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import msgpack  # noqa: F401  preloaded for the workers
import torch
import zmq  # noqa: F401  preloaded for the workers; no context is made here

from seedmp.config import EngineConfig
from seedmp.errors import ConfigError, SeedmpError
from seedmp.ids import WorkerName
from seedmp.ipc.channel import receive_on_pipe, send_on_pipe
from seedmp.ipc.endpoints import engine_endpoint
from seedmp.ipc.messages import (
    EngineDown,
    GroupStarted,
    ReplaceWorker,
    Shutdown,
    WorkerFailed,
    WorkerLost,
    WorkerReady,
)
from seedmp.ipc.span_ring import SpanRing, ring_path
from seedmp.models.load import load_config
from seedmp.trace import Activity
from seedmp.workers.build import Build, SharedDraft, preload
from seedmp.workers.draft import DraftServer
from seedmp.workers.lifecycle import WorkerSpec, last_log, run_worker

TICK_S = 0.25
SHUTDOWN_S = 3.0
DUMP_S = 0.3
RESTART_WINDOW_S = 60.0


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
        self.workers: dict[WorkerName, Worker] = {}
        self.groups = [Group(index) for index in range(config.num_groups)]
        self.draft_epochs: dict[WorkerName, int] = {}
        self.deaths: deque[float] = deque()
        self.started_s = time.monotonic()
        self.build = Build(config)
        self.shared: list[SharedDraft] = []

    # --- starting -------------------------------------------------------------------------------

    def start(self) -> None:
        """Fork the verifiers, load what drafts share, fork the drafts."""
        torch.set_num_threads(1)  # no thread pool may exist when forking
        preload(load_config(self.build.target_spec))
        self.shared = self.build.share_arenas()
        for group in self.groups:
            self._start_verifier(group)
        self.shared = self.build.share_weights(self.shared)
        for group in self.groups:
            self._start_drafts(group)

    def _start_verifier(self, group: Group) -> None:
        spec = self._spec(WorkerName(group.index), group.verifier_epoch)
        shared = self.shared[group.index]
        self._fork(spec, lambda pipe, ready, beat: self._verifier_main(group, shared, pipe, ready, beat))

    def _start_drafts(self, group: Group) -> None:
        for worker_id in range(self.config.drafts_per_group):
            self._start_draft(group, worker_id)

    def _start_draft(self, group: Group, worker_id: int) -> None:
        name = WorkerName(group.index, worker_id)
        epoch = self.draft_epochs.get(name, -1) + 1
        self.draft_epochs[name] = epoch
        shared = self.shared[group.index]
        spec = self._spec(name, epoch)
        self._fork(spec, lambda pipe, ready, beat: self._draft_main(group, name, epoch, shared, ready, beat))

    def _spec(self, name: WorkerName, epoch: int) -> WorkerSpec:
        """With the worker's place on the heartbeat board: group by group, the verifier first."""
        first = name.group * (1 + self.config.drafts_per_group)
        return WorkerSpec(name, epoch, first if name.draft is None else first + 1 + name.draft)

    def _fork(
        self, spec: WorkerSpec, main: Callable[[Connection, Callable[[], None], Callable[[], None]], None]
    ) -> None:
        ours, theirs = self.fork.Pipe()
        foreign = [ours.fileno(), self.engine_in.fileno(), self.engine_out.fileno(), self.lifeline_write]
        foreign += [worker.pipe.fileno() for worker in self.workers.values() if not worker.pipe.closed]
        self.board[spec.beat_index] = time.monotonic_ns()
        process = self.fork.Process(
            target=run_worker,
            name=str(spec.name),
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
        shared: SharedDraft,
        pipe: Connection,
        ready: Callable[[], None],
        beat: Callable[[], None],
    ) -> None:
        verifier = self.build.make_verifier(shared, self.folder, group.index, group.verifier_epoch, pipe)
        ready()
        verifier.serve(beat)

    def _draft_main(
        self,
        group: Group,
        name: WorkerName,
        epoch: int,
        shared: SharedDraft,
        ready: Callable[[], None],
        beat: Callable[[], None],
    ) -> None:
        torch.set_num_threads(self.config.threads()[1])
        server = DraftServer(self.folder, name, epoch, group.verifier_epoch, str(shared))
        welcome = server.welcome(self.config.ready_timeout_s, beat)
        drafter = self.build.make_drafter(shared, welcome.tensors)
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
                elif isinstance(msg, ReplaceWorker):
                    self._replace(msg, worker)
        except (EOFError, OSError):
            worker.pipe.close()

    def _replace(self, order: ReplaceWorker, verifier: Worker) -> None:
        """Kill a draft; an incarnation that is not there, and so writes nothing, is said to be lost at once."""
        worker = self.workers.get(WorkerName.parse(order.worker))
        if worker is not None and worker.spec.epoch == order.epoch:
            worker.process.kill()  # ``watch`` notices, and starts the next one
        else:
            send_on_pipe(verifier.pipe, WorkerLost(order.worker, order.epoch, -1))

    def _announce_groups(self) -> None:
        for group in self.groups:
            drafts = range(self.config.drafts_per_group)
            members = [WorkerName(group.index), *(WorkerName(group.index, draft) for draft in drafts)]
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
        lost = WorkerLost(str(worker.spec.name), worker.spec.epoch, exitcode)
        self._tell_engine(lost)
        now = time.monotonic()
        self.deaths.append(now)
        while self.deaths and now - self.deaths[0] > RESTART_WINDOW_S:
            self.deaths.popleft()
        if len(self.deaths) > self.config.max_restarts:
            raise _GaveUp(worker, exitcode, len(self.deaths))
        name = worker.spec.name
        group = self.groups[name.group]
        if name.draft is not None:
            verifier = self.workers.get(WorkerName(group.index))
            if verifier is not None and verifier.process.is_alive():
                send_on_pipe(verifier.pipe, lost)
                self._start_draft(group, name.draft)
            return
        self._stop([w for other, w in self.workers.items() if other.group == group.index], grace_s=0)
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
        verifiers = [worker for name, worker in self.workers.items() if name.draft is None]
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
        name = str(error.worker.spec.name)
        down = EngineDown(error.kind, str(error), name, last_log(args.folder, name))
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
