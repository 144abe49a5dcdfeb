"""A whole small language model as the draft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from seedmp.config import EngineConfig
from seedmp.drafts.base import KV, Drafter, DraftKind
from seedmp.drafts.tree_drafter import TreeDrafter, WholeModel
from seedmp.errors import ConfigError
from seedmp.ipc.arena import Layout, layout_for
from seedmp.models import pair
from seedmp.models.eagle import is_head
from seedmp.models.load import ModelSpec, check_vocabularies, load_config, load_model, max_positions
from seedmp.models.runner import make_runner, pack_model


class ModelDraft(DraftKind):
    """A decoder-only transformers model of the target's vocabulary."""

    name = "model"

    def __init__(self, config: EngineConfig) -> None:
        super().__init__(config)
        self.spec = ModelSpec(config.draft, config.draft_shape)

    @classmethod
    def default_for(cls, target: str | None) -> str:
        if target is not None:
            raise ConfigError(f"no draft for target {target!r}: name a draft model, or use method='ar' or 'ngram'")
        return str(pair.DRAFT)

    def check(self) -> None:
        if is_head(self.config.draft):
            raise ConfigError(
                f"draft {self.config.draft!r} is an EAGLE head: only method='eagle' can draft with it, "
                f"method={self.config.method.name!r} needs a whole model"
            )
        load_config(self.spec)

    def vocab_size(self) -> int:
        return check_vocabularies(self.target, self.spec)

    def model_config(self) -> Any:
        return load_config(self.spec)

    def max_positions(self) -> int | None:
        return max_positions(self.model_config())

    def layouts(self, draft_dtype: torch.dtype, target_dtype: torch.dtype) -> dict[str, Layout]:
        return {KV: layout_for(self.model_config(), self.config.num_draft_slots, draft_dtype)}

    def load(self, dtype: torch.dtype, device: str, target_model: Any = None) -> Any:
        return load_model(self.spec, dtype, device)

    def pack(self, model: Any) -> Any:
        return pack_model(self.config.runner, model)

    def skeleton(self, dtype: torch.dtype) -> Any:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.model_config(), dtype=dtype, trust_remote_code=False)

    def drafter(self, model: Any, arenas: Mapping[str, torch.Tensor], vocab_size: int) -> Drafter:
        runner = make_runner(self.config.runner, model, arenas[KV], vocab_size)
        return TreeDrafter(WholeModel(runner), self.config.draft_top_m, noise=self.config.draft_noise)
