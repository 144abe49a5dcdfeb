"""Where sockets live: ``ipc://`` files in the runtime folder."""

from __future__ import annotations

from pathlib import Path


def engine_endpoint(folder: Path, group: int, epoch: int) -> str:
    """Where the verifier of ``group`` listens for the engine."""
    return f"ipc://{folder}/verifier-{group}-{epoch}"


def draft_endpoint(folder: Path, group: int, epoch: int) -> str:
    """Where the verifier of ``group`` listens for its drafts."""
    return f"ipc://{folder}/verifier-{group}-{epoch}-drafts"
