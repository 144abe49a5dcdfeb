"""Starting an engine's processes, and hearing of them: where groups serve, and which workers are ready or lost.

A *group* is a verifier with its drafts. Whoever starts groups, on this machine or elsewhere, is a ``Launcher``.
It returns a ``Launch``. The connection sees only the half of it that tells news: a ``GroupSource``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Protocol

from seedmp.config import EngineConfig
from seedmp.errors import EngineDeadError, WorkerStartError
from seedmp.ipc.channel import receive_on_pipe, send_on_pipe
from seedmp.ipc.folder import last_log, log_path
from seedmp.ipc.messages import EngineDown, GroupStarted, Shutdown, WorkerLost, WorkerReady
from seedmp.system import let_idle_threads_sleep

SUPERVISOR = "supervisor"
STOP_S = 4.0
STDERR = 2

# What the supervisor's interpreter runs, with the folder above this package before its arguments. The first line comes
# before any import: `python -c` would search the current folder for libraries, and run a file that somebody left there.
BOOTSTRAP = """\
import sys; sys.path[:] = filter(None, sys.path)
sys.path.insert(0, sys.argv.pop(1)); import seedmp; del sys.path[0]
from seedmp.workers.start import main; main()
"""
CHECKOUT = Path(__file__).resolve().parents[2]

GroupEvent = WorkerReady | WorkerLost | GroupStarted | EngineDown


class GroupSource(Protocol):
    """Tells where groups serve and what became of their workers.

    Each group is started once at least; after its verifier was lost it may start again, at another endpoint.
    """

    @property
    def num_groups(self) -> int:
        """How many groups there will be; they are numbered from 0."""

    def fileno(self) -> int:
        """A file descriptor that can be read when ``receive`` has news."""

    def receive(self) -> list[GroupEvent]:
        """The news since the last call, oldest first; never waits.

        Raises:
            EngineDeadError: there will be no more, and no group is looked after.
        """

    def close(self) -> None:
        """No news is wanted any more. Called once, by the thread that received."""


class Launch(GroupSource, Protocol):
    """Groups that were started for one engine."""

    @property
    def pids(self) -> dict[str, int]:
        """Process ids, by name, of what runs besides the workers."""

    def stop(self) -> None:
        """End every process, and wait for it; a second call does nothing. In any thread."""


class Launcher(Protocol):
    """A way to start groups."""

    def start(self, config: EngineConfig, folder: Path) -> Launch:
        """Start the groups that ``config`` asks for, without waiting until they serve.

        Args:
            folder: for sockets, logs and span rings; it outlives the launch.
        """


class LocalLauncher:
    """Starts all groups on this machine, as children of a supervisor process."""

    def start(self, config: EngineConfig, folder: Path) -> LocalLaunch:
        """Start the supervisor, with a pipe each way; it forks the workers.

        Raises:
            WorkerStartError: the system starts no process.
        """
        read_theirs, write_ours = os.pipe()
        read_ours, write_theirs = os.pipe()
        to_supervisor, from_supervisor = Pipe(write_ours, readable=False), Pipe(read_ours, writable=False)
        try:
            with open(log_path(folder, SUPERVISOR), "a") as log_file:
                process = subprocess.Popen(
                    [
                        sys.executable, "-c", BOOTSTRAP, str(CHECKOUT), "--folder", str(folder),
                        "--engine-in", str(read_theirs), "--engine-out", str(write_theirs),
                        "--owner", str(os.getpid()),
                    ],
                    stdin=subprocess.DEVNULL, stdout=log_file, stderr=log_file, env=_environment(),
                    start_new_session=True, pass_fds=(read_theirs, write_theirs),
                )  # fmt: skip
        except OSError as error:
            to_supervisor.close()
            from_supervisor.close()
            raise WorkerStartError(f"no process can be started ({sys.executable}): {error}") from error
        finally:
            os.close(read_theirs)
            os.close(write_theirs)
        with contextlib.suppress(OSError):  # it has ended already; the other pipe tells
            to_supervisor.send_bytes(json.dumps(config.to_plain()).encode())
        return LocalLaunch(process, to_supervisor, from_supervisor, config.num_groups, folder)


class LocalLaunch:
    """A supervisor and the workers that it forked; they end when this process does.

    Args:
        folder: where the supervisor has its log; None: nowhere.
    """

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        to_supervisor: Pipe,
        from_supervisor: Pipe,
        num_groups: int,
        folder: Path | None = None,
    ) -> None:
        self.process = process
        self.num_groups = num_groups
        self._to_supervisor = to_supervisor
        self._from_supervisor = from_supervisor
        self._folder = folder

    @property
    def pids(self) -> dict[str, int]:
        return {SUPERVISOR: self.process.pid}

    def fileno(self) -> int:
        return self._from_supervisor.fileno()

    def receive(self) -> list[GroupEvent]:
        news: list[GroupEvent] = []
        try:
            while self._from_supervisor.poll():
                news.append(receive_on_pipe(self._from_supervisor))
        except (EOFError, OSError):
            if not news:  # else the next call says so
                log = "" if self._folder is None else last_log(self._folder, SUPERVISOR)
                told = f"\n--- last log lines of {SUPERVISOR} ---\n{log}" if log else ""
                raise EngineDeadError(f"the supervisor process is gone{told}") from None
        return news

    def close(self) -> None:
        self._from_supervisor.close()

    def stop(self) -> None:
        """End the supervisor, which ends the workers; then make sure that nothing is left."""
        if not self._to_supervisor.closed:
            with contextlib.suppress(OSError):  # it may be gone already
                send_on_pipe(self._to_supervisor, Shutdown())
            self._to_supervisor.close()
        try:
            self.process.wait(STOP_S)
        except BaseException as error:  # it is stopped or hangs, or the user does not want to wait
            self.process.kill()  # the workers follow it
            self.process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise


def hold_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed, as in some daemons, on nothing.

    Else they would become pipes and sockets of ours, and what somebody prints would be written into these.
    """
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= STDERR:
        fd = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
    os.close(fd)


def _environment() -> dict[str, str]:
    """Of the supervisor: it forks safely and keeps quiet."""
    env = dict(os.environ)
    if "PYTHONPATH" in env:  # an empty entry is the current folder
        env["PYTHONPATH"] = os.pathsep.join(filter(None, env["PYTHONPATH"].split(os.pathsep)))
    env.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for GPUs must not make a context before forking
    let_idle_threads_sleep(env)
    env["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # no loader threads in the process that forks
    env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    env["TRANSFORMERS_VERBOSITY"] = "error"
    env["TOKENIZERS_PARALLELISM"] = "false"
    return env
