"""What a profile saw of an engine: what its report, findings and drawings are made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from seedmp.config import EngineConfig
from seedmp.profiling.sampler import ProcessRecord


@dataclass
class ProfileData:
    """A finished profile.

    Args:
        stats: growth of ``Engine.stats`` during the profile; empty if the engine was closed or died in it.
        shares_gpu: whether target and drafts are on one GPU.
    """

    start_ns: int
    end_ns: int
    processes: list[ProcessRecord]
    config: EngineConfig
    node: dict[str, Any]
    cores: float
    stats: dict[str, float] = field(default_factory=dict)
    shares_gpu: bool = False
    mps: str = "unknown"

    @property
    def wall_s(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9

    def of_kind(self, kind: str) -> list[ProcessRecord]:
        """Processes whose name begins so: engine, verifier, draft, supervisor."""
        return [process for process in self.processes if process.name.startswith(kind)]
