"""The user's process, as seen from the processes of its engine."""

from __future__ import annotations

import os
import select
import time
from typing import Any

LONG_S = 3600.0
POLL_S = 0.25  # where the kernel does not wake those who wait for a process


class Owner:
    """Tells when a process is gone. Its children may hold every pipe that it had, so pipes do not tell.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.pidfd: int | None = None  # readable when the process has ended
        self._was_gone = False
        self._process: Any = None  # of psutil
        try:
            self.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._was_gone = True
        except (AttributeError, OSError):  # an old kernel, or one that does not allow it
            import psutil

            try:
                self._process = psutil.Process(pid)
            except psutil.NoSuchProcess:
                self._was_gone = True

    def is_gone(self) -> bool:
        """Whether it has ended, reaped or not."""
        if self.pidfd is not None:
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            return bool(poller.poll(0))
        if self._process is not None:
            return not self._process.is_running() or self._process.status() == "zombie"
        return self._was_gone

    def wait(self, timeout_s: float, wake_fd: int | None = None) -> None:
        """Until it is gone, the time is over or ``wake_fd`` is readable."""
        deadline = time.monotonic() + timeout_s
        poller = select.poll()
        for fd in (self.pidfd, wake_fd):
            if fd is not None:
                poller.register(fd, select.POLLIN)
        while not self.is_gone():
            left_s = max(0.0, deadline - time.monotonic())
            step_s = min(left_s, POLL_S if self.pidfd is None else LONG_S)
            if poller.poll(1000 * step_s) or left_s == 0:
                return
