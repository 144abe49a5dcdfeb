"""A draft process that answers well most times, and else with something that is almost a proposal."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seedmp.drafts.base import Drafter
from seedmp.drafts.model import ModelDraft
from seedmp.ipc import codec
from seedmp.ipc.messages import Proposal
from seedmp.methods.static import SpecInfer
from seedmp.token_tree.tree import ProposalKind
from tests.helpers.mutate import mutate

SHARE = 0.08  # of all proposals
PROBS = [0.0, 1.0, 0.5, float("nan"), float("inf"), -1.0]


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
            if not isinstance(msg, Proposal) or rng.random() > SHARE:
                return encode(msg)
            if rng.random() < 0.5:
                msg = odd_proposal(msg, rng)
                if rng.random() < 0.7:
                    return encode(msg)
            return mutate([bytes(frame) for frame in encode(msg)], rng) or [b""]

        codec.encode = spoil
        return super().drafter(model, arenas, vocab_size)


def odd_proposal(good: Proposal, rng: random.Random) -> Proposal:
    """What a rogue draft says instead: another size, another round, slots and numbers of any kind."""
    size = rng.choice([0, 1, 2, 3, 10, 11, 500, 5000, 70_000])
    now = time.monotonic_ns()
    tokens = tuple(rng.randrange(rng.choice([1, 500, 2**31])) for _ in range(size))
    parents = tuple(rng.randrange(-1, index) if rng.random() < 0.5 else index - 1 for index in range(size))
    width = rng.choice([0, 1, 2, 64, 65])
    num_rows = rng.choice([0, 1, size and len({*parents})]) if size <= 500 else 1
    return Proposal(
        good.branch_id + rng.choice([0, 0, 0, 0, 1, 2**40]), good.round + rng.choice([0, 0, 0, 0, 1, 1000]),
        good.epoch, rng.choice([0, now, -(2**63)]), rng.choice([now, -(2**63), 2**63 - 1, 0]),
        rng.choice([0, 2**63 - 1, -(2**63)]), tokens, parents, rng.choice([good.kind, *ProposalKind]),
        np.array(rng.choices(range(500), k=num_rows * width), "<i4").reshape(num_rows, width),
        np.array(rng.choices(PROBS, k=num_rows * width), "<f4").reshape(num_rows, width),
        tuple(rng.choice([-1, 0, index, 2**31 - 1]) for index in range(size)), rng.choice([(), (0,), tokens[:9]]),
    )  # fmt: skip
