"""How many files a process may open: each worker, socket and shared tensor takes some."""

from __future__ import annotations

import errno
import os
import resource

from seedmp.errors import ConfigError

STDERR = 2
SPARE_FDS, FDS_A_WORKER = 24, 4


def allow_open_files(num_workers: int) -> None:
    """Let this process and the workers open as many files as the system allows.

    Raises:
        ConfigError: that is too few for so many workers.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    first_free = os.dup(STDERR)
    os.close(first_free)
    needed = first_free + SPARE_FDS + FDS_A_WORKER * num_workers
    if limit != resource.RLIM_INFINITY and limit < needed:
        raise ConfigError(f"a process may open {limit} files (ulimit -n): {num_workers} workers need {needed}")


def explain(error: BaseException) -> str:
    """The words of an error; where descriptors ran out, with the limit."""
    if getattr(error, "errno", None) not in (errno.EMFILE, errno.ENFILE):
        return str(error)
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"{error}: a process may open {limit} (ulimit -n)"
