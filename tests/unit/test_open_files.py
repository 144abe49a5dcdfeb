"""Too few open files are told with numbers, and what the system allows is used."""

from __future__ import annotations

import errno
import subprocess
import sys

from seedmp.workers.open_files import explain

CODE = """
import resource, sys
from seedmp.errors import ConfigError
from seedmp.workers.open_files import allow_open_files
soft, hard, num_workers = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    allow_open_files(num_workers)
except ConfigError as error:
    print(error)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


def allow(soft: int, hard: int, num_workers: int) -> list[str]:
    command = [sys.executable, "-c", CODE, *map(str, (soft, hard, num_workers))]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_the_soft_limit_is_raised() -> None:
    assert allow(30, 200, 3) == ["200"]


def test_too_few_are_refused() -> None:
    told, limit = allow(40, 40, 5)
    assert told.startswith("a process may open 40 files (ulimit -n): 5 workers need ")
    assert limit == "40"


def test_the_limit_is_in_the_error() -> None:
    assert "Too many open files: a process may open" in explain(OSError(errno.EMFILE, "Too many open files"))
    assert explain(OSError(errno.ENOENT, "No such file")) == "[Errno 2] No such file"
