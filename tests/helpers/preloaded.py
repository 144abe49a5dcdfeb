"""Supervisors forked from a process that has imported their libraries: an engine starts in a fifth of the time.

Imports are most of an engine's start, and nearly all of its processor time. All else is as for users: each engine
has a supervisor of its own, in a session of its own, with its own pipes, log and environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

import psutil

from seedmp.client.launch import BOOTSTRAP, CHECKOUT

COMMAND = ["-c", BOOTSTRAP, str(CHECKOUT)]
MAX_REQUEST_BYTES = 1 << 16
NUM_FDS = 3  # from the engine, to the engine, log


class Preloaded:
    """Stands in for the module ``subprocess`` where engines start their supervisor; the process starts on first use."""

    DEVNULL = subprocess.DEVNULL
    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def Popen(
        self, args: Sequence[str], *, stdout: TextIO, env: dict[str, str], pass_fds: tuple[int, int], **settings: Any
    ) -> Supervisor:
        """Fork a supervisor; the arguments are those that an engine gives to ``subprocess.Popen``."""
        assert list(args[:4]) == [sys.executable, *COMMAND], args
        assert settings == {"stdin": subprocess.DEVNULL, "stderr": stdout, "start_new_session": True}, settings
        if self._socket is None:
            self._start(env)
        assert self._socket is not None
        request = json.dumps([args[4:], pass_fds, env]).encode()
        socket.send_fds(self._socket, [request], [*pass_fds, stdout.fileno()])
        answer = self._socket.recv(MAX_REQUEST_BYTES)
        assert answer, "the preloaded process has ended"
        return Supervisor(args, int(answer))

    def _start(self, env: dict[str, str]) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, env={**env, "PYTHONPATH": str(CHECKOUT)}, pass_fds=(theirs.fileno(),),
            )  # fmt: skip

    def close(self) -> None:
        """End the preloaded process; supervisors that it forked go on."""
        if self._socket is not None and self._process is not None:
            self._socket.close()
            self._process.wait()


class Supervisor:
    """A forked supervisor: what engines use of ``subprocess.Popen``, for a process that is no child of this one."""

    def __init__(self, args: Sequence[str], pid: int) -> None:
        self.args = args
        self.pid = pid
        self._process: psutil.Process | None = None
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended already
            self._process = psutil.Process(pid)

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, within ``timeout`` seconds.
        """
        if self._process is not None:
            try:
                self._process.wait(timeout)
            except psutil.TimeoutExpired:
                raise subprocess.TimeoutExpired(list(self.args), timeout or 0.0) from None

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._process.kill()


def serve(requests: socket.socket) -> None:
    """Fork a supervisor for each request, until the other end is closed. Runs in the preloaded process."""
    import seedmp.workers.supervisor  # noqa: F401  what the forks need not do again

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and they end this process
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for those that end
    while True:
        request, fds, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, NUM_FDS)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            requests.close()
            supervise(json.loads(request), fds)
        for fd in fds:
            os.close(fd)
        requests.send(str(pid).encode())


def supervise(request: tuple[list[str], list[int], dict[str, str]], fds: list[int]) -> NoReturn:
    """Be what the engine's command starts."""
    try:
        from seedmp.workers import start

        arguments, their_fds, env = request
        engine_in, engine_out, log = fds
        ours = dict(zip(map(str, their_fds), (str(engine_in), str(engine_out)), strict=True))
        os.setsid()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = [COMMAND[0], *(ours.get(argument, argument) for argument in arguments)]
        start.main()
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as listening:
        serve(listening)
