"""Options of a benchmark. Wrong ones are refused before a model is loaded."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seedmp.checks import check_number, check_one_of, check_whole
from seedmp.config import DTYPES
from seedmp.errors import ConfigError
from seedmp.models.inflate import get_shape
from seedmp.models.load import ModelSpec, load_config
from seedmp.reporting import output
from seedmp.system import bf16_flags

NONE = "none"
CPU_SHAPE, GPU_SHAPES, SMOKE_SHAPE = "134m", ("7b", "68m"), "13m"
GPU_ROOM_GIB = 24  # a 7B target in bfloat16, a draft, their contexts and KV
REPORT_ROOM_MIB = 16
PRECISE_REPEATS, MIN_SPREAD_REPEATS = 20, 5  # with a precision: default and least; ten may look precise by luck
PRECISIONS = (0.5, 100)  # percent
MAX_NODES = 128  # a tree is searched for in seconds


@dataclass(frozen=True)
class Options:
    """Settings that all benchmarks share.

    Args:
        quick: sizes that take minutes instead of an hour.
        smoke: sizes that take seconds. They show whether the benchmark still runs; the figures mean nothing.
        repeats: interleaved repeats; None: 5, 2 with ``quick``, 1 with ``smoke``.
        precision: percent. A group is repeated until chance moves none of its speed-ups by more than this. None: the
            number of repeats is fixed.
        target: folder or hub id; None is the bundled pair, inflated.
        draft: the same for the draft.
        head: an EAGLE head of the target; None is the bundled one for the bundled target.
        data: a file in a published format, or a folder with such files; None: texts of our own.
        shape: what a bundled target is inflated to, ``none``, or None for what suits the node.
        draft_shape: the same for the draft.
        dtype: of both models; None for what suits the node.
        out: folder for JSON, plots and the report.
        seed: of sampled texts.
        nodes: draft tokens of each tree, where a benchmark compares trees of one size; None: 16.
    """

    quick: bool = False
    smoke: bool = False
    repeats: int | None = None
    precision: float | None = None
    target: str | None = None
    draft: str | None = None
    head: str | None = None
    data: Path | None = None
    shape: str | None = None
    draft_shape: str | None = None
    dtype: str | None = None
    out: Path = Path("bench-report")
    seed: int = 0
    nodes: int | None = None

    @property
    def num_repeats(self) -> int:
        """Repeats after the warm-up; with ``precision`` the least."""
        return self.repeats or (PRECISE_REPEATS if self.precision else self.pick(5, 2, 1))

    def pick(self, full: Any, quick: Any, smoke: Any) -> Any:
        """The size that was asked for."""
        return smoke if self.smoke else quick if self.quick else full

    def resolved(self) -> Options:
        """Shapes and dtype chosen for this node, all settings checked.

        Raises:
            ConfigError: a setting is wrong, or the folder has no room or cannot be written.
        """
        if self.repeats is not None:
            check_whole("repeats", self.repeats, 1)
        if self.precision is not None:
            check_number("precision", self.precision, *PRECISIONS)
        if self.precision is not None and self.num_repeats < MIN_SPREAD_REPEATS:
            raise ConfigError(
                f"repeats={self.repeats} with precision={self.precision}: a spread needs {MIN_SPREAD_REPEATS} or more"
            )
        if self.dtype is not None:
            check_one_of("dtype", self.dtype, DTYPES)
        if self.target is not None and self.draft is None:
            raise ConfigError(f"no draft for target {self.target!r}: give --draft too")
        if self.nodes is not None:
            check_whole("nodes", self.nodes, 1, MAX_NODES)
        if self.data is not None and not self.data.exists():
            raise ConfigError(f"--data {self.data}: no such file or folder")
        check_room(self.out)
        shape, draft_shape, dtype = self._defaults()
        shape, draft_shape = self.shape or shape, self.draft_shape or draft_shape
        for name in (shape, draft_shape):
            if name not in (None, NONE):
                get_shape(name)
        chosen = replace(
            self, shape=None if shape == NONE else shape, draft_shape=None if draft_shape == NONE else draft_shape,
            dtype=self.dtype or dtype,
        )  # fmt: skip
        load_config(chosen.target_spec)
        load_config(chosen.draft_spec)
        if self.head is not None:
            from seedmp.models.eagle import read_head

            read_head(self.head, ModelSpec(chosen.target_spec.path))
        return chosen

    def _defaults(self) -> tuple[str | None, str | None, str]:
        """Shapes of target and draft, and dtype, that suit the node."""
        import torch

        if self.smoke:
            return (SMOKE_SHAPE if self.target is None else None), None, "float32"
        if not torch.cuda.is_available():
            return (CPU_SHAPE if self.target is None else None), None, "bfloat16" if bf16_flags() else "float32"
        if self.target is not None:
            return None, None, "bfloat16"
        room_gib = torch.cuda.mem_get_info()[0] / 2**30
        shape, draft_shape = GPU_SHAPES if room_gib >= GPU_ROOM_GIB else (CPU_SHAPE, NONE)
        return shape, draft_shape, "bfloat16"

    @property
    def target_spec(self) -> ModelSpec:
        """The target; ``resolved`` options only."""
        from seedmp.models import pair

        return ModelSpec(self.target or str(pair.TARGET), self.shape)

    @property
    def draft_spec(self) -> ModelSpec:
        """The draft; ``resolved`` options only."""
        from seedmp.models import pair

        return ModelSpec(self.draft or str(pair.DRAFT), self.draft_shape)

    @property
    def eagle_head(self) -> str | None:
        """The head that ``eagle`` drafts with. None when this target has no head."""
        from seedmp.models import pair

        if self.head is not None or self.target is not None:
            return self.head
        return str(pair.HEAD) if pair.HEAD.is_dir() else None

    def engine_settings(self) -> dict[str, Any]:
        """Settings that all engines of a run share."""
        return {
            "target": self.target, "draft": self.draft, "target_shape": self.shape, "draft_shape": self.draft_shape,
            "dtype": self.dtype,
        }  # fmt: skip

    def describe_model(self) -> str:
        """The models in words; says so when they are inflated."""
        target = self.target or "bundled target"
        target += f", inflated to {self.shape}" if self.shape else ""
        draft = self.draft or "bundled draft"
        draft += f", inflated to {self.draft_shape}" if self.draft_shape else ""
        return f"{target}; {draft}; {self.dtype}"

    def to_plain(self) -> dict[str, Any]:
        """A JSON-able dictionary without folders of this machine."""
        return {
            "size": self.pick("full", "quick", "smoke"), "repeats": self.num_repeats, "precision": self.precision,
            "seed": self.seed,
            "target": self.target or "bundled", "draft": self.draft or "bundled", "shape": self.shape or NONE,
            "draft_shape": self.draft_shape or NONE, "dtype": self.dtype,
            "head": self.head or "bundled", "data": self.data.name if self.data else "our own",
        }  # fmt: skip


def check_room(path: Path) -> None:
    """Make a folder for results, with room for them.

    Raises:
        ConfigError: it cannot be written, or the disk is full.
    """
    free_mib = shutil.disk_usage(output.check_folder(path)).free / 2**20
    if free_mib < REPORT_ROOM_MIB:
        raise ConfigError(f"--out {path}: {free_mib:.0f} MiB free, {REPORT_ROOM_MIB} are needed")
