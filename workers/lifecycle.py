"""What every worker process does at its beginning and end: die with its parent, log, report, beat."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from seedmp.ids import WorkerName
from seedmp.ipc.channel import send_on_pipe
from seedmp.ipc.folder import log_path
from seedmp.ipc.messages import WorkerFailed, WorkerReady
from seedmp.workers.open_files import explain

PR_SET_PDEATHSIG = 1
MAX_TRACEBACK_CHARS = 8000


@dataclass(frozen=True)
class WorkerSpec:
    """Who a worker is.

    Args:
        name: the worker.
        epoch: incarnation, counted from 0.
        beat_index: its place on the heartbeat board.
    """

    name: WorkerName
    epoch: int
    beat_index: int


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent dies (Linux; elsewhere ``watch_lifeline`` does it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def watch_lifeline(lifeline_fd: int) -> None:
    """End this process when the other end of a pipe, held by the parent alone, is closed."""

    def watch() -> None:
        os.read(lifeline_fd, 1)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def run_worker(
    spec: WorkerSpec,
    folder: Path,
    supervisor: Connection,
    lifeline_fd: int,
    foreign_fds: Sequence[int],
    board: torch.Tensor,
    main: Callable[[Callable[[], None], Callable[[], None]], None],
) -> None:
    """The outermost frame of a worker process.

    Args:
        supervisor: pipe that ready and failure are reported on.
        lifeline_fd: read end of the supervisor's lifeline.
        foreign_fds: descriptors inherited through fork that are not this process's business.
        board: [workers] int64 shared; this worker stamps its place with CLOCK_MONOTONIC ns.
        main: the work; is given ``ready()`` and ``beat()``.
    """
    for fd in foreign_fds:
        os.close(fd)
    die_with_parent()
    watch_lifeline(lifeline_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the user's process's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    log_file = open(log_path(folder, str(spec.name)), "a", buffering=1)  # noqa: SIM115
    os.dup2(log_file.fileno(), 1)
    os.dup2(log_file.fileno(), 2)
    faulthandler.enable(log_file)
    faulthandler.register(signal.SIGUSR1, log_file, all_threads=True)
    logging.basicConfig(stream=log_file, level=logging.INFO, format="%(asctime)s %(name)s %(message)s", force=True)
    beats = board.numpy()

    def beat() -> None:
        beats[spec.beat_index] = time.monotonic_ns()

    def ready() -> None:
        beat()
        send_on_pipe(supervisor, WorkerReady(str(spec.name), spec.epoch, os.getpid()))

    gc.freeze()  # what was inherited is never garbage; looking at it would copy its pages
    beat()
    try:
        main(ready, beat)
    except BaseException as error:
        text = traceback.format_exc()
        print(text, file=log_file)
        kind, told = type(error).__name__, explain(error)[:MAX_TRACEBACK_CHARS]
        failed = WorkerFailed(str(spec.name), spec.epoch, kind, told, text[-MAX_TRACEBACK_CHARS:])
        with contextlib.suppress(OSError):  # the supervisor is gone
            send_on_pipe(supervisor, failed)
        os._exit(1)
    os._exit(0)
