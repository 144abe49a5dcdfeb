"""What this process may use of the machine: cores, and the quota that a container sets on them."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16", "i8mm_bf16")
SPIN_COUNT = 2000


def affinity_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(root: Path = CGROUPS, own: Path = OWN_CGROUP) -> float | None:
    """Cores' worth of CPU time that control groups allow, the least of all above this process; None without a limit."""
    limits = []
    try:
        below = next((line.split("::", 1)[1].strip() for line in own.read_text().splitlines() if "::" in line), "/")
    except OSError:
        below = "/"
    folder = root / below.lstrip("/")
    for place in (folder, *folder.parents):
        if place != root and root not in place.parents:
            break
        quota = _read_quota(place)
        if quota is not None:
            limits.append(quota)
    return min(limits, default=None)


def usable_cores() -> float:
    """Cores by affinity, or less where a quota says so."""
    quota = cpu_quota()
    return affinity_cores() if quota is None else min(float(affinity_cores()), quota)


def bf16_flags() -> tuple[str, ...]:
    """Instructions of this CPU for bfloat16; without any it is slower than float32."""
    try:
        flags = CPU_INFO.read_text().split()
    except OSError:
        return ()
    return tuple(flag for flag in BF16_FLAGS if flag in flags)


def let_idle_threads_sleep(env: MutableMapping[str, str]) -> None:
    """OpenMP threads that wait must not keep cores from other processes. Read once, when torch is loaded."""
    env.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))


def _read_quota(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()  # version 2
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((folder / "cpu" / "cpu.cfs_quota_us").read_text())  # version 1
        return quota_us / int((folder / "cpu" / "cpu.cfs_period_us").read_text()) if quota_us > 0 else None
    except (OSError, ValueError):
        return None
