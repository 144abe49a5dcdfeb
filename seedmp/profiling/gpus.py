"""Memory and utilisation of GPUs by process, where NVML's Python binding is installed (``nvidia-ml-py``)."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import subprocess
from typing import Any


class GpuMeter:
    """What each process uses on all GPUs. In a container the driver may report the host's ids: then none match."""

    def __init__(self, nvml: Any) -> None:
        self.nvml = nvml
        self.devices = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        self._bytes: dict[int, int] = {}
        self._share: dict[int, float] = {}
        self._since_us = 0

    @classmethod
    def open(cls) -> GpuMeter | None:
        """A meter, or None without the binding, a driver or a GPU."""
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            meter = cls(nvml)
        except Exception:  # whatever a missing or foreign driver raises
            return None
        return meter if meter.devices else None

    def look(self) -> None:
        """Ask the driver; costs a few milliseconds."""
        self._bytes, self._share, latest_us = {}, {}, self._since_us
        for device in self.devices:
            with contextlib.suppress(self.nvml.NVMLError):
                for entry in self.nvml.nvmlDeviceGetComputeRunningProcesses(device):
                    self._bytes[entry.pid] = self._bytes.get(entry.pid, 0) + (entry.usedGpuMemory or 0)
            with contextlib.suppress(self.nvml.NVMLError):  # not found: nothing ran since
                for entry in self.nvml.nvmlDeviceGetProcessUtilization(device, self._since_us):
                    self._share[entry.pid] = self._share.get(entry.pid, 0.0) + entry.smUtil / 100
                    latest_us = max(latest_us, entry.timeStamp)
        self._since_us = latest_us

    def of(self, pid: int) -> tuple[int, float]:
        """(bytes, share of the multiprocessors) of a process at the last look."""
        return self._bytes.get(pid, 0), self._share.get(pid, 0.0)

    def close(self) -> None:
        with contextlib.suppress(self.nvml.NVMLError):
            self.nvml.nvmlShutdown()


def mps_state() -> str:
    """Whether MPS lets processes run on a GPU at the same time: ``on``, ``off``, or ``unknown`` without its program."""
    control = shutil.which("nvidia-cuda-mps-control")
    pipe = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")
    if os.path.exists(os.path.join(pipe, "control")):
        return "on"
    if control is None:
        return "unknown"
    try:
        done = subprocess.run([control], input="get_server_list\n", capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return "on" if done.returncode == 0 else "off"
