"""Fixtures that many tests share."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Shells start jobs in the background with Ctrl-C ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # toy models gain nothing from more, and threads that wait take cores from workers


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Folders of a tiny random target and draft of an architecture, each made once."""
    from tests.helpers.models import make_pair

    made: dict[str, tuple[Path, Path]] = {}

    def get(architecture: str) -> tuple[Path, Path]:
        if architecture not in made:
            made[architecture] = make_pair(architecture, tmp_path_factory.mktemp(architecture))
        return made[architecture]

    return get


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    """An empty folder for engines' sockets: their paths may have 107 bytes, and ``tmp_path`` alone may have 80."""
    with tempfile.TemporaryDirectory(prefix="seedmp-test-") as folder:
        yield Path(folder)
