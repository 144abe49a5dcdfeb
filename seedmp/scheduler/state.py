"""What all parts of the scheduler look at."""

from __future__ import annotations

from dataclasses import dataclass, field

from seedmp.config import EngineConfig
from seedmp.kv.rope_border import RopeBorder
from seedmp.scheduler.branches import BranchTable
from seedmp.scheduler.checked_policy import CheckedPolicy, make_policy
from seedmp.scheduler.log import EventLog

COUNTERS = (
    "rounds", "drafted", "accepted", "committed_tokens", "forwards", "forward_rows",
    "target_prefill_tokens", "draft_prefill_tokens", "shared_target_tokens", "shared_draft_tokens",
    "queue_wait_ns", "stale_proposals", "preempted", "finished", "failed",
)  # fmt: skip


@dataclass(frozen=True)
class Limits:
    """What requests are held to.

    Args:
        max_model_len: positions of target and draft.
        vocab_size: token ids must be below it.
        eos_token_ids: of the target.
        rope: where the angles of the target's positions begin to depend on a text's length; None: nowhere.
    """

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    rope: RopeBorder | None = None


@dataclass(frozen=True)
class State:
    """One object of each, shared by the scheduler, its drafting and its forwards."""

    config: EngineConfig
    limits: Limits
    policy: CheckedPolicy
    log: EventLog
    branches: BranchTable
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))

    @classmethod
    def of(cls, config: EngineConfig, limits: Limits) -> State:
        """The state before the first event.

        Raises:
            PolicyError: the configuration's policy is none.
        """
        log = EventLog()
        return cls(config, limits, make_policy(config.policy), log, BranchTable(log))
