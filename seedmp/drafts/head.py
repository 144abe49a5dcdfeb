"""An EAGLE head as the draft: it continues the target's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch

from seedmp.drafts.base import FEATURES, KV, Drafter, DraftKind
from seedmp.drafts.head_model import HeadModel
from seedmp.drafts.tree_drafter import TreeDrafter
from seedmp.errors import ConfigError
from seedmp.ipc.arena import FeatureLayout, Layout, layout_for
from seedmp.models import pair
from seedmp.models.eagle import EagleHead, HeadSpec, load_head, read_head
from seedmp.models.eagle_runner import HeadRunner
from seedmp.models.features import FeatureTap
from seedmp.models.load import ModelSpec


class HeadDraft(DraftKind):
    """A head of EAGLE-1, -2 or -3 that was trained for the target.

    The verifier writes the target's hidden states into a feature arena, slot by slot beside its KV; drafts read them.
    """

    name = "eagle-head"

    @classmethod
    def default_for(cls, target: str | None) -> str:
        train = "python -m seedmp.training.eagle"
        if target is not None:
            raise ConfigError(
                f"no draft for target {target!r}: name a head that was trained for it ({train}), "
                "or use method='ar' or 'ngram'"
            )
        if not pair.HEAD.is_dir():
            raise ConfigError(
                f"no draft for method='eagle': the bundled target's head is not there ({pair.HEAD}); name one, "
                f"or train one with {train}"
            )
        return str(pair.HEAD)

    @property
    def lender(self) -> ModelSpec:
        """What a head fits, and borrows matrices from: the target before inflation."""
        return ModelSpec(self.config.target)

    @cached_property
    def spec(self) -> HeadSpec:
        """The head, held to its target; read once."""
        return read_head(self.config.draft, self.lender)

    def check(self) -> None:
        _ = self.spec

    def model_config(self) -> Any:
        return self.spec.config

    def layouts(self, draft_dtype: torch.dtype, target_dtype: torch.dtype) -> dict[str, Layout]:
        dtype = str(target_dtype).removeprefix("torch.")
        return {
            KV: layout_for(self.spec.config, self.config.num_draft_slots, draft_dtype),
            FEATURES: FeatureLayout(self.config.kv_slots, self.spec.feature_size, dtype),
        }

    def load(self, dtype: torch.dtype, device: str, target_model: Any = None) -> Any:
        is_lender = self.target == self.lender
        return load_head(self.spec, dtype, device, self.lender, target_model if is_lender else None)

    def skeleton(self, dtype: torch.dtype) -> Any:
        with torch.device("meta"):
            return EagleHead(self.spec)

    def tap(self, target_model: Any, arenas: Mapping[str, torch.Tensor]) -> FeatureTap:
        return FeatureTap(target_model, self.spec.feature_layers, arenas[FEATURES], self.spec.target_hidden)

    def drafter(self, model: Any, arenas: Mapping[str, torch.Tensor], vocab_size: int) -> Drafter:
        runner = HeadRunner(model, arenas[KV], vocab_size)
        return TreeDrafter(HeadModel(runner, arenas[FEATURES]), self.config.draft_top_m)
