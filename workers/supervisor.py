"""The supervisor: a small process that preloads the libraries, forks the workers and replaces them.

Started by ``seedmp.workers.start``, so the user's ``__main__`` is never imported again. It has one thread, no
socket and no CUDA context: forking from it is safe and quick. It ends, and takes everything with it, when the pipe
from the engine closes or the user's process is gone.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import signal
import time
import traceback
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
from seedmp.errors import ConfigError
from seedmp.ids import Incarnation, WorkerName
from seedmp.ipc.channel import receive_on_pipe, send_on_pipe
from seedmp.ipc.endpoints import draft_endpoint, engine_endpoint
from seedmp.ipc.folder import bound_log, last_log
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
from seedmp.workers.down import Down, GaveUp, StartFailed
from seedmp.workers.draft import DraftServer
from seedmp.workers.janitor import Janitor
from seedmp.workers.lifecycle import WorkerSpec, run_worker
from seedmp.workers.open_files import allow_open_files, explain
from seedmp.workers.owner import Owner

TICK_S = 0.25
SHUTDOWN_S = 2.0
DUMP_S = 0.3
RESTART_WINDOW_S = 60.0
TIDY_S = 1.0
RING_KEPT_S = 2.0  # after its writer's death: who reads rings looks for new ones more often


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
    has_served: bool = False


class Supervisor:
    """Forks, watches and replaces the workers of one engine."""

    def __init__(
        self,
        config: EngineConfig,
        folder: Path,
        engine_in: Connection,
        engine_out: Connection,
        owner: Owner,
        janitor: Janitor,
    ) -> None:
        self.config = config
        self.folder = folder
        self.engine_in = engine_in
        self.engine_out = engine_out
        self.owner = owner
        self.janitor = janitor
        self.fork = multiprocessing.get_context("fork")
        self.lifeline_read, self.lifeline_write = os.pipe()
        num_workers = config.num_groups * (1 + config.drafts_per_group)
        allow_open_files(num_workers)
        self.board = torch.zeros(num_workers, dtype=torch.int64).share_memory_()
        self.workers: dict[WorkerName, Worker] = {}
        self.groups = [Group(index) for index in range(config.num_groups)]
        self.draft_epochs: dict[WorkerName, int] = {}
        self.deaths: deque[float] = deque()
        self.started_s = time.monotonic()
        self.build = Build(config)
        self.secret = secrets.token_bytes(16)  # makes the names of the drafts' sockets
        self.shared: list[SharedDraft] = []
        self.dead_rings: deque[tuple[float, Path]] = deque()  # when the writer's death was seen, where
        self.tidied_s = self.started_s

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
        foreign.append(self.janitor.socket.fileno())
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
        verifier = self.build.make_verifier(shared, self.folder, group.index, group.verifier_epoch, pipe, self.secret)
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
        server = DraftServer(self.folder, name, epoch, group.verifier_epoch, str(shared), self.secret)
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
            if self.owner.pidfd is not None:
                sources.append(self.owner.pidfd)
            sources += [worker.process.sentinel for worker in self.workers.values()]
            sources += [worker.pipe for worker in self.workers.values() if not worker.pipe.closed]
            ring.enter(Activity.IDLE)
            ready = wait(sources, TICK_S)
            ring.enter(Activity.WATCH)
            if self.owner.is_gone() or (self.engine_in in ready and self._engine_is_done()):
                return
            for worker in list(self.workers.values()):
                self._read_reports(worker)
            for worker in list(self.workers.values()):
                if self.workers.get(worker.spec.name) is worker and not worker.process.is_alive():
                    self._on_death(worker)
            self._check_deadlines()
            self._tidy()

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
            worker.pipe.close()  # it is dying; its end will be seen

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
                group.announced = group.has_served = True
                endpoint = engine_endpoint(self.folder, group.index, group.verifier_epoch)
                self._tell_engine(GroupStarted(group.index, group.verifier_epoch, endpoint))

    def _tell_engine(self, msg: Any) -> None:
        try:
            send_on_pipe(self.engine_out, msg)
        except OSError:
            raise _EngineGone from None

    def _tell_worker(self, worker: Worker, msg: Any) -> None:
        """Send a message; a worker that cannot take it is dying, and its end will be seen."""
        try:
            if not worker.pipe.closed:
                send_on_pipe(worker.pipe, msg)
        except OSError:
            worker.pipe.close()

    def _on_death(self, worker: Worker) -> None:
        self._read_reports(worker)
        self._forget(worker)
        name = worker.spec.name
        group = self.groups[name.group]
        exitcode = worker.process.exitcode if worker.process.exitcode is not None else -1
        was_killed = exitcode < 0
        if not worker.is_ready and not (group.has_served and was_killed):
            raise StartFailed(worker.spec, worker.failure, exitcode)
        lost = WorkerLost(str(worker.spec.name), worker.spec.epoch, exitcode)
        self._tell_engine(lost)
        now = time.monotonic()
        self.deaths.append(now)
        while self.deaths and now - self.deaths[0] > RESTART_WINDOW_S:
            self.deaths.popleft()
        if len(self.deaths) > self.config.max_restarts:
            raise GaveUp(worker.spec, worker.failure, exitcode, len(self.deaths), RESTART_WINDOW_S)
        if name.draft is not None:
            verifier = self.workers.get(WorkerName(group.index))
            if verifier is not None and verifier.process.is_alive():  # else the whole group starts again
                self._tell_worker(verifier, lost)
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
            raise StartFailed(late[0].spec, late[0].failure, None)
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
            self._tell_worker(verifier, Shutdown())
        self._stop(list(self.workers.values()), SHUTDOWN_S)

    def _stop(self, workers: list[Worker], grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        for worker in workers:
            if worker.process.is_alive():
                worker.process.kill()
            self._forget(worker)

    def _forget(self, worker: Worker) -> None:
        """A process has ended, or was killed: nothing of it stays but its log, and for a moment its ring."""
        worker.process.join()
        worker.pipe.close()
        self.workers.pop(worker.spec.name, None)
        name, epoch = worker.spec.name, worker.spec.epoch
        self.dead_rings.append((time.monotonic(), ring_path(self.folder, str(Incarnation(name, epoch)))))
        if name.draft is None:
            for endpoint in (engine_endpoint, draft_endpoint):
                Path(endpoint(self.folder, name.group, epoch).removeprefix("ipc://")).unlink(missing_ok=True)

    def _tidy(self) -> None:
        """Keep the folder small, however long the engine serves and however many workers died."""
        now = time.monotonic()
        while self.dead_rings and now - self.dead_rings[0][0] > RING_KEPT_S:
            self.dead_rings.popleft()[1].unlink(missing_ok=True)
        if now - self.tidied_s > TIDY_S:
            self.tidied_s = now
            for path in self.folder.glob("*.log"):
                bound_log(path)


class _EngineGone(Exception):
    """The engine does not read any more."""


def main(folder: Path, engine_in_fd: int, engine_out_fd: int, owner: Owner, janitor: Janitor) -> None:
    """Serve one engine, then end this process and everything that belongs to it."""
    engine_in = Connection(engine_in_fd, writable=False)
    engine_out = Connection(engine_out_fd, readable=False)
    supervisor: Supervisor | None = None
    down: EngineDown | None = None
    try:
        config = EngineConfig.from_plain(json.loads(engine_in.recv_bytes()))
        supervisor = Supervisor(config, folder, engine_in, engine_out, owner, janitor)
        supervisor.start()
        supervisor.watch()
    except (EOFError, _EngineGone):
        pass  # nobody is to be told
    except Down as error:
        name = str(error.spec.name)
        down = EngineDown(error.kind, str(error), name, last_log(folder, name))
    except ConfigError as error:
        down = EngineDown("ConfigError", str(error), "supervisor", "")
    except OSError as error:  # of files, processes or memory, the system gives no more
        traceback.print_exc()
        down = EngineDown("WorkerStartError", f"supervisor: {explain(error)}", "supervisor", "")
    except Exception as error:
        traceback.print_exc()
        text = f"supervisor: {type(error).__name__}: {error}"
        down = EngineDown("EngineDeadError", text, "supervisor", traceback.format_exc())
    if supervisor is not None:
        supervisor.stop()
    try:
        if down is not None:
            send_on_pipe(engine_out, down)
        engine_out.close()
    except OSError:
        pass  # nobody listens
    shutil.rmtree(folder, ignore_errors=True)
    janitor.send_home()
    os._exit(0)
