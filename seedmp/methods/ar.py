"""``ar``: the target alone, one token a forward."""

from __future__ import annotations

from dataclasses import dataclass

from seedmp.methods.base import NO_DRAFT, Drawing, Method, deterministic
from seedmp.sampling import SamplingParams


@dataclass(frozen=True)
class Autoregressive(Method):
    """No proposals: every forward of the target gives one token. What speculation is compared with."""

    name = "ar"
    draft_kind = NO_DRAFT

    def drawing(self, params: SamplingParams) -> Drawing:
        return deterministic(params)
