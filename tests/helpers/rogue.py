"""A draft process that answers well most times, and else with something that is almost a proposal."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seedmp.drafts.base import Drafter
from seedmp.drafts.model import ModelDraft
from seedmp.ipc import codec
from seedmp.ipc.messages import Proposal
from seedmp.methods.static import SpecInfer
from tests.helpers.mutate import mutate

SHARE = 0.02  # of all proposals


@dataclass(frozen=True)
class RogueSpecInfer(SpecInfer):
    """SpecInfer's trees, by such drafts."""

    name = "rogue-specinfer"
    draft_kind = "tests.helpers.rogue:RogueDraft"


class RogueDraft(ModelDraft):
    """The bundled draft, in a process that spoils some of what it sends."""

    name = "rogue"

    def drafter(self, model: Any, arenas: Mapping[str, Any], vocab_size: int) -> Drafter:
        rng, encode = random.Random(os.getpid()), codec.encode

        def spoil(msg: Any) -> list[Any]:
            frames = encode(msg)
            if isinstance(msg, Proposal) and rng.random() < SHARE:
                return mutate([bytes(frame) for frame in frames], rng) or [b""]
            return frames

        codec.encode = spoil
        return super().drafter(model, arenas, vocab_size)
