"""Can results be written there? Asked before the work whose results they are."""

from __future__ import annotations

import os
from pathlib import Path

from seedmp.errors import ConfigError


def check_output(path: Path, suffixes: tuple[str, ...] = ()) -> None:
    """Refuse a file that cannot be written; it is not touched.

    Raises:
        ConfigError: a suffix that is not allowed, no such folder, or not writable.
    """
    if suffixes and path.suffix not in suffixes:
        raise ConfigError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise ConfigError(f"{path}: cannot be written: it is a folder")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: cannot be written: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{path}: cannot be written: no permission")


def check_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made with its parents and found writable.

    Raises:
        ConfigError: it is not.
    """
    path = Path(folder)
    probe = path / f".writable-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror or error}") from None
    return path
