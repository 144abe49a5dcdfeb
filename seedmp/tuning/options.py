"""What ``seedmp tune`` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedmp.checks import check_one_of, check_whole
from seedmp.errors import ConfigError
from seedmp.models import pair
from seedmp.sampling import SamplingParams
from seedmp.tuning.acceptance import Drawing, Law


@dataclass(frozen=True)
class Family:
    """A method: how children are drawn, and its name with trees that are no k_config."""

    drawing: Drawing
    with_growmap: str


FAMILIES = {
    "mcsd": Family(Drawing.WITHOUT_REPLACEMENT, "sequoia"),
    "sd": Family(Drawing.IID, "specinfer"),
    "coupled": Family(Drawing.COUPLED, "coupled"),
}


@dataclass(frozen=True)
class TuneOptions:
    """What is asked for.

    Args:
        target, draft: folder or hub id; None, both, are the bundled pair.
        data: prompts: ``.jsonl`` with a ``question`` or ``prompt`` a line, else one prompt a line; None: the GSM8K
            questions that are shipped.
        branches: requests at once.
        draft_top_p: a vector is measured for it too.
        drafts: numbers of draft processes to choose from.
        quick: fewer sizes and candidates.

    Raises:
        ConfigError: a value is out of range.
    """

    target: str | None = None
    draft: str | None = None
    target_shape: str | None = None
    draft_shape: str | None = None
    dtype: str = "auto"
    data: Path | None = None
    branches: int = 8
    temperature: float = 0.0
    max_tokens: int = 96
    method: str = "mcsd"
    draft_top_p: float = 0.9
    drafts: tuple[int, ...] = (1, 2, 3)
    repeats: int = 5
    quick: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole("branches", self.branches, 1, 1024)
        check_whole("max_tokens", self.max_tokens, 8, 4096)
        check_whole("repeats", self.repeats, 1, 1000)
        check_whole("seed", self.seed, 0, 1 << 32)
        if not self.drafts:
            raise ConfigError("drafts=(): must be at least one number of drafts")
        for num in self.drafts:
            check_whole("drafts", num, 1, 64)
        check_one_of("method", self.method, FAMILIES)
        if (self.target is None) != (self.draft is None):
            raise ConfigError("target and draft: name both, or neither for the bundled pair")
        SamplingParams(temperature=self.temperature)
        Law(draft_top_p=self.draft_top_p)

    @property
    def num_finalists(self) -> int:
        """Settings that run for real beside plain decoding."""
        return 2 if self.quick else 4

    @property
    def num_calibrations(self) -> int:
        """Runs of each of them, after one that warms up, before it is predicted."""
        return 2 if self.quick else 3

    @property
    def models(self) -> dict[str, Any]:
        """Settings that all engines share."""
        return {
            "target": self.target or str(pair.TARGET), "draft": self.draft or str(pair.DRAFT),
            "target_shape": self.target_shape, "draft_shape": self.draft_shape, "dtype": self.dtype,
        }  # fmt: skip

    def params(self, seed: int) -> SamplingParams:
        return SamplingParams(temperature=self.temperature, max_tokens=self.max_tokens, seed=seed, ignore_eos=True)
