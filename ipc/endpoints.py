"""Where sockets live, ``ipc://`` files in the runtime folder, and what drafts are called there."""

from __future__ import annotations

import hashlib
from pathlib import Path

from seedmp.ids import Incarnation


def engine_endpoint(folder: Path, group: int, epoch: int) -> str:
    """Where the verifier of ``group`` listens for the engine."""
    return f"ipc://{folder}/verifier-{group}-{epoch}"


def draft_endpoint(folder: Path, group: int, epoch: int) -> str:
    """Where the verifier of ``group`` listens for its drafts."""
    return f"ipc://{folder}/verifier-{group}-{epoch}-drafts"


def draft_identity(draft: Incarnation, secret: bytes) -> bytes:
    """Of a draft's socket.

    Args:
        draft: which process.
        secret: of the supervisor, which its workers inherit. Without it nobody can say hello as a draft, or take the
            place of one that is still to come.
    """
    token = hashlib.blake2b(str(draft).encode(), key=secret, digest_size=8).hexdigest()
    return f"{draft}-{token}".encode()
