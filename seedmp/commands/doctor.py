"""The command ``seedmp doctor``: what this node has, and what that means for an engine on it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from seedmp import __version__
from seedmp.config import EngineConfig, resolve_placement
from seedmp.models import pair
from seedmp.profiling.gpus import mps_state
from seedmp.system import affinity_cores, bf16_flags, cpu_quota

SHARED_MEMORY = Path("/dev/shm")
LIBRARIES = ("torch", "transformers", "pyzmq", "msgpack", "numpy", "psutil", "llguidance")
GIB = 2**30


@dataclass(frozen=True)
class Node:
    """Facts about this machine, as far as an engine cares.

    Args:
        quota: cores' worth of CPU time that the container allows; None without a limit.
        bf16: flags of the CPU that multiply bfloat16 itself.
        peers: pairs of GPUs that reach each other's memory.
        mps: ``on``, ``off`` or ``unknown``.
    """

    versions: dict[str, str]
    cores: int
    cores_of_machine: int
    quota: float | None
    cpu: str
    bf16: tuple[str, ...]
    memory_bytes: int
    shared_bytes: int
    shared_free_bytes: int
    gpus: tuple[dict[str, Any], ...] = ()
    peers: tuple[tuple[int, int], ...] = ()
    mps: str = "unknown"
    nvml: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``seedmp doctor``."""
    parser.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    """Print what this node has, and what that means."""
    node = look()
    config = EngineConfig(target=str(pair.TARGET), draft=str(pair.DRAFT))
    plan = plan_of(config)
    words = advice(node, config, plan)
    if args.json:
        print(json.dumps({**asdict(node), "plan": plan, "advice": words}, indent=1))
        return 0
    for name, value in [*facts(node), *((name, str(value)) for name, value in plan.items())]:
        print(f"{name:18} {value}")
    print()
    for sentence in words:
        print(f"* {sentence}")
    return 0


# --- looking -------------------------------------------------------------------------------------


def look() -> Node:
    """Ask the system; makes no CUDA context."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import psutil
    import torch

    shared = shutil.disk_usage(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
    num_gpus = torch.cuda.device_count()
    gpus, peers = [], []
    for index in range(num_gpus):
        gpu = torch.cuda.get_device_properties(index)
        gpus.append({"name": gpu.name, "memory_gib": round(gpu.total_memory / GIB, 1)})
        peers += [(index, j) for j in range(num_gpus) if j != index and torch.cuda.can_device_access_peer(index, j)]
    return Node(
        {"seedmp": __version__, "python": sys.version.split()[0]} | {name: _version(name) for name in LIBRARIES},
        affinity_cores(), os.cpu_count() or 1, cpu_quota(), str(torch.backends.cpu.get_cpu_capability()), bf16_flags(),
        psutil.virtual_memory().total, shared.total if shared else 0, shared.free if shared else 0,
        tuple(gpus), tuple(peers), mps_state() if gpus else "unknown", _version("nvidia-ml-py") != NOT_INSTALLED,
    )  # fmt: skip


NOT_INSTALLED = "not installed"


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def plan_of(config: EngineConfig) -> dict[str, Any]:
    """What ``Engine()`` would do here."""
    placement = resolve_placement(config)
    target_threads, draft_threads = config.threads()
    plan: dict[str, Any] = {
        "target on": placement.target,
        "drafts": f"{config.num_drafts} on {placement.drafts[0]}",
        "method": str(config.method),
        "schedule": f"{config.schedule.value}, {config.policy}",
    }
    if placement.target == "cpu":
        plan["CPU threads"] = f"target {target_threads}, each draft {draft_threads}"
    return plan


# --- telling -------------------------------------------------------------------------------------


def facts(node: Node) -> list[tuple[str, str]]:
    """One line a fact."""
    quota = "no quota" if node.quota is None else f"quota {node.quota:g} cores"
    bf16 = ", ".join(node.bf16) or "not in hardware"
    shared = f"{node.shared_free_bytes / GIB:.1f} of {node.shared_bytes / GIB:.1f} GiB free in {SHARED_MEMORY}"
    lines = list(node.versions.items())
    lines += [
        ("cores", f"{node.cores} usable of {node.cores_of_machine}, {quota}"),
        ("CPU", f"{node.cpu}, bfloat16 {bf16}"),
        ("memory", f"{node.memory_bytes / GIB:.1f} GiB"),
        ("shared memory", shared if node.shared_bytes else f"no {SHARED_MEMORY}"),
        ("GPUs", "; ".join(f"{g['name']}, {g['memory_gib']:.0f} GiB" for g in node.gpus) or "none that torch sees"),
    ]
    if node.gpus:
        pairs = ", ".join(f"{a}-{b}" for a, b in node.peers) or "none"
        lines += [("peer access", pairs if len(node.gpus) > 1 else "one GPU"), ("MPS", node.mps)]
        lines.append(("NVML", "installed" if node.nvml else "not installed: profiles lack GPU memory by process"))
    return lines


def advice(node: Node, config: EngineConfig, plan: dict[str, Any]) -> list[str]:
    """What the facts mean, the most important first."""
    words = []
    on_cpu = plan["target on"] == "cpu"
    target_threads, draft_threads = config.threads()
    drafts = config.drafts_per_group * config.num_groups
    usable = node.cores if node.quota is None else min(float(node.cores), node.quota)
    if on_cpu:
        words.append(
            f"Everything runs on the CPU: the target's forward uses {target_threads} "
            f"thread{'s' if target_threads > 1 else ''}, beside {drafts} drafts of {draft_threads}."
        )
    if on_cpu and usable < target_threads:
        words.append(
            f"The container allows {usable:g} cores' worth of time, but {target_threads} threads would be started: set "
            f"target_threads={max(1, int(usable))}, or forwards are stopped in the middle."
        )
    elif on_cpu and usable < target_threads + draft_threads:
        words.append(
            "Drafts and target want more cores than there are, so drafting beside a forward slows it down: the default "
            "policy fcfs-batch suffers least; with fcfs try target_threads="
            f"{max(1, target_threads - draft_threads)}. `seedmp profile` tells."
        )
    if on_cpu and node.bf16:
        words.append("bfloat16 is in hardware: dtype='bfloat16' makes wide forwards of large targets cheaper.")
    elif on_cpu:
        words.append("bfloat16 is not in hardware: stay with float32 (dtype='auto').")
    if on_cpu and node.shared_bytes < GIB:
        words.append(
            f"{node.shared_bytes / GIB:.1f} GiB of shared memory: KV arenas must fit (docker: "
            "--shm-size=4g), or lower kv_slots."
        )
    if len(node.gpus) == 1:
        words.append("Target and drafts share one GPU." + _mps_advice(node))
    elif len(node.gpus) > 1:
        words.append("The target has the first GPU, the drafts the second; tokens travel between them, never KV.")
        if (0, 1) not in node.peers:
            words.append("The first two GPUs do not reach each other's memory: nothing here needs it.")
    return words


def _mps_advice(node: Node) -> str:
    if node.mps == "on":
        return " MPS is on: their kernels may run at the same time."
    return (
        f" MPS is {node.mps}: without it kernels of different processes take turns, and drafting does not overlap "
        "with verification. Start `nvidia-cuda-mps-control -d` before the engine."
    )
