"""No draft processes: the target alone, or a lookup inside the scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seedmp.drafts.base import Drafter, DraftKind
from seedmp.models import pair
from seedmp.models.load import ModelSpec, check_vocabularies, load_config

if TYPE_CHECKING:
    import torch


class NoDraft(DraftKind):
    """Nothing drafts. A draft that is named all the same must be a model of the target's vocabulary."""

    name = "none"

    @classmethod
    def default_for(cls, target: str | None) -> str:
        return str(pair.DRAFT) if target is None else target

    def check(self) -> None:
        load_config(ModelSpec(self.config.draft, self.config.draft_shape))

    def vocab_size(self) -> int:
        return check_vocabularies(self.target, ModelSpec(self.config.draft, self.config.draft_shape))

    def drafter(self, model: Any, arenas: Mapping[str, torch.Tensor], vocab_size: int) -> Drafter:
        raise AssertionError("an engine without drafts has no draft process")
