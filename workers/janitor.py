"""The janitor: a small process that outlives the supervisor and the user's process, and clears up after both.

It does nothing while they live. It is forked before any library is loaded, in a session of its own, and is nobody's
child: it ends by itself. The supervisor sends it home when everything is removed. It acts in two cases:

- the supervisor is gone without that, killed perhaps: the kernel ends the workers, the janitor removes the folder;
- the user's process is gone and the supervisor has not ended soon, stopped perhaps: the janitor kills its process
  group, then removes the folder.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
from pathlib import Path
from typing import NoReturn

from seedmp.ipc.folder import remove_folder
from seedmp.workers.owner import Owner

GRACE_S = 2.5  # for a supervisor whose user is gone
READ_S = 2.0  # for a user whose supervisor is gone: until then the last log can be read
SENT_HOME = b"x"
STDERR = 2


class Janitor:
    """The supervisor's end.

    Args:
        folder: to be removed.
        owner: the user's process.
    """

    def __init__(self, folder: Path, owner: Owner) -> None:
        self.socket, theirs = socket.socketpair()
        supervisor = os.getpid()
        child = os.fork()
        if child == 0:
            try:
                os.setsid()  # not in the group that it may have to kill
                if os.fork() == 0:
                    _serve(theirs, folder, owner, supervisor)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        theirs.close()

    def send_home(self) -> None:
        """Everything is removed; returns when the janitor has ended."""
        self.socket.settimeout(GRACE_S)
        with contextlib.suppress(OSError):  # it was killed, or is stopped
            self.socket.send(SENT_HOME)
            self.socket.recv(1)


def _serve(supervisor: socket.socket, folder: Path, owner: Owner, pid: int) -> NoReturn:
    """Wait for the end of the supervisor ``pid`` or of the owner. Runs in the janitor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in os.listdir("/proc/self/fd"):  # among them is the pipe whose end tells the engine of the supervisor's
        if int(name) > STDERR and int(name) not in (supervisor.fileno(), owner.pidfd):
            with contextlib.suppress(OSError):
                os.close(int(name))
    owner.wait(math.inf, supervisor.fileno())
    supervisor.settimeout(GRACE_S)
    try:
        if supervisor.recv(1) == SENT_HOME:
            os._exit(0)
        owner.wait(READ_S)
    except TimeoutError:
        os.killpg(pid, signal.SIGKILL)  # it has not ended, so its number is still its own
    remove_folder(folder)
    os._exit(0)
