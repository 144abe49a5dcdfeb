"""The runtime folder of an engine: sockets, logs and span rings, in a private folder that dies with the engine.

While its owner lives, the owner holds a lock on the file ``lock`` in it. A folder whose lock nobody holds is a
leftover of a process that was killed together with all who would have removed it: the next engine removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

from seedmp.errors import ConfigError

MAX_IPC_PATH_BYTES = 107  # sun_path of a Unix socket
PREFIX = "seedmp-"
LOCK = "lock"
LAST_LOG_CHARS = 2000
MAX_LOG_BYTES = 1 << 20
KEPT_LOG_BYTES = 1 << 18
REMOVE_TRIES, REMOVE_PAUSE_S = 20, 0.05


class RuntimeFolder:
    """A new 0700 folder, and the lock that says that somebody uses it; leftovers of others are removed first.

    Raises:
        ConfigError: the temporary folder cannot be written, or its path is too long for a socket.
    """

    def __init__(self) -> None:
        base = Path(os.environ.get("SEEDMP_RUNTIME_DIR") or tempfile.gettempdir())
        remove_leftovers(base)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        except OSError as error:
            raise ConfigError(
                f"no folder for sockets can be made in {str(base)!r} ({error.strerror}): set SEEDMP_RUNTIME_DIR"
            ) from error
        try:
            _check_length(self.path)
            self._lock_fd = _lock(self.path)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def remove(self) -> None:
        """Delete the folder and give the lock back. Called once."""
        remove_folder(self.path)
        os.close(self._lock_fd)


def _check_length(folder: Path) -> None:
    longest = len(os.fsencode(folder / "verifier-000-0000-drafts"))
    if longest > MAX_IPC_PATH_BYTES:
        raise ConfigError(
            f"the path of the socket folder {str(folder)!r} is too long "
            f"({longest} bytes, {MAX_IPC_PATH_BYTES} allowed): set SEEDMP_RUNTIME_DIR to a shorter folder"
        )


def _lock(folder: Path) -> int:
    """A descriptor that holds the lock; the file gets its name when it is locked, so that nobody finds it free."""
    new = folder / f"{LOCK}.new"
    fd = os.open(new, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        new.rename(folder / LOCK)
    except OSError as error:
        os.close(fd)
        raise ConfigError(f"{str(folder)!r} cannot be locked ({error.strerror}): set SEEDMP_RUNTIME_DIR") from error
    return fd


def remove_leftovers(base: Path) -> None:
    """Delete runtime folders of this user in ``base`` whose owner is gone."""
    with contextlib.suppress(OSError):
        for folder in base.glob(f"{PREFIX}*"):
            if _is_leftover(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_leftover(folder: Path) -> bool:
    """Whether it is a runtime folder of this user whose lock is free. Follows no link."""
    try:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            return False
        fd = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def remove_folder(folder: Path) -> None:
    """Delete a folder in which processes that are just ending may still write a file."""
    for _ in range(REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(REMOVE_PAUSE_S)


# --- logs -------------------------------------------------------------------------------------------


def log_path(folder: Path, name: str) -> Path:
    """Where a process writes its log, always at the end of the file."""
    return folder / f"{name}.log"


def last_log(folder: Path, name: str) -> str:
    """The end of a process's log, possibly empty."""
    try:
        return _tail(log_path(folder, name), 4 * LAST_LOG_CHARS).decode(errors="replace")[-LAST_LOG_CHARS:].strip()
    except OSError:
        return ""


def bound_log(path: Path) -> None:
    """Shorten a log of more than ``MAX_LOG_BYTES`` to its end; a line written meanwhile may be lost."""
    with contextlib.suppress(OSError):  # it is gone, or the disk is full
        if path.stat().st_size > MAX_LOG_BYTES:
            end = _tail(path, KEPT_LOG_BYTES)
            with open(path, "r+b") as file:
                file.truncate(0)
            with open(path, "ab") as file:
                file.write(end[end.find(b"\n") + 1 :])


def _tail(path: Path, num_bytes: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - num_bytes))
        return file.read(num_bytes)
