"""What a figure was measured on."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from seedmp.system import affinity_cores


def describe_node() -> dict[str, Any]:
    """What a figure was measured on: hardware, versions, commit."""
    import torch
    import transformers
    import zmq

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": platform.machine(),
        "cores": affinity_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pyzmq": zmq.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """The checkout's commit, with + when files differ from it; empty outside a checkout."""
    folder = Path(__file__).resolve().parents[2]
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty=+"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
