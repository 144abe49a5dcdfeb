"""Where sockets live: ``ipc://`` files in a private folder that dies with the engine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from seedmp.errors import ConfigError

MAX_IPC_PATH_BYTES = 107  # sun_path of a Unix socket


def make_runtime_dir() -> Path:
    """A new 0700 folder for sockets and worker logs.

    Raises:
        ConfigError: the temporary folder cannot be written, or its path is too long for a socket.
    """
    base = os.environ.get("SEEDMP_RUNTIME_DIR") or tempfile.gettempdir()
    try:
        folder = Path(tempfile.mkdtemp(prefix="seedmp-", dir=base))
    except OSError as error:
        raise ConfigError(
            f"no folder for sockets can be made in {base!r} ({error.strerror}): set SEEDMP_RUNTIME_DIR"
        ) from error
    longest = len(os.fsencode(folder / "verifier-000-0000-drafts"))
    if longest > MAX_IPC_PATH_BYTES:
        folder.rmdir()
        raise ConfigError(
            f"the path of the socket folder {str(folder)!r} is too long "
            f"({longest} bytes, {MAX_IPC_PATH_BYTES} allowed): set SEEDMP_RUNTIME_DIR to a shorter folder"
        )
    return folder


def engine_endpoint(folder: Path, group: int, epoch: int) -> str:
    """Where the verifier of ``group`` listens for the engine."""
    return f"ipc://{folder}/verifier-{group}-{epoch}"


def draft_endpoint(folder: Path, group: int, epoch: int) -> str:
    """Where the verifier of ``group`` listens for its drafts."""
    return f"ipc://{folder}/verifier-{group}-{epoch}-drafts"
