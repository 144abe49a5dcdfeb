"""What a draft kind is: how one kind of draft is checked, laid out, loaded, shared and run.

A method names its draft kind. One object is made in the user's process, which checks with it, and one in the
supervisor, whose workers inherit it. Making one costs nothing.

Adding a kind: a class in a file of its own, and its name in ``registry.DRAFT_KINDS``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from seedmp.config import EngineConfig
from seedmp.draft_order import DraftOrder
from seedmp.ipc.messages import Proposal
from seedmp.models.load import ModelSpec, check_vocabularies
from seedmp.models.prepack import prepack_linears
from seedmp.token_tree.opt_tree import NOT_DRAFTED
from seedmp.token_tree.tree import TokenTree

if TYPE_CHECKING:
    import torch

    from seedmp.ipc.arena import Layout
    from seedmp.models.features import FeatureTap

KV, FEATURES = "kv", "features"  # names of arenas


class Drafter(Protocol):
    """Answers draft tasks, in a draft process."""

    def draft(self, tasks: list[DraftOrder], on_context: Callable[[DraftOrder], None]) -> list[Proposal]:
        """One proposal for each task, in order.

        Args:
            tasks: all that have come; their branches may differ.
            on_context: to be called for tasks with ``announce`` once the KV of their pending tokens is in the arena.
        """
        ...


def make_proposal(
    task: DraftOrder,
    tree: TokenTree,
    started_ns: int,
    *,
    forward_ns: int = 0,
    drafted_idx: tuple[int, ...] | None = None,
    row_ids: np.ndarray | None = None,
    row_probs: np.ndarray | None = None,
    draws: tuple[int, ...] = (),
    clock_ns: Callable[[], int] = time.monotonic_ns,
) -> Proposal:
    """The answer to a task; its tree is ready now.

    Args:
        task: that is answered.
        tree: N draft tokens.
        started_ns: CLOCK_MONOTONIC when drafting began.
        forward_ns: time spent in forwards of a model since then.
        drafted_idx: [N] which slot lent for the tree has a node's KV, NOT_DRAFTED if none; None: no node has any.
        row_ids: [I, m] int32 tokens of the law of each internal node; None: the tree is deterministic.
        row_probs: [I, m] float32, their probabilities.
        draws: [M] node of each draw of an iid tree; empty if no two siblings were equal.
        clock_ns: says when now is.
    """
    no_law = np.empty((0, 0))
    return Proposal(
        task.branch_id, task.round, task.epoch, started_ns, clock_ns(), forward_ns, tree.token_ids,
        tree.parents, tree.kind, (no_law if row_ids is None else row_ids).astype("<i4"),
        (no_law if row_probs is None else row_probs).astype("<f4"),
        (NOT_DRAFTED,) * len(tree) if drafted_idx is None else drafted_idx, draws,
    )  # fmt: skip


class DraftKind(ABC):
    """One kind of draft, for the models of one engine.

    Args:
        config: of the engine.
    """

    name: ClassVar[str]

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.target = ModelSpec(config.target, config.target_shape)

    # --- in the user's process ---

    @classmethod
    @abstractmethod
    def default_for(cls, target: str | None) -> str:
        """Path of the draft where the user names none.

        Args:
            target: as the user named it; None is the bundled one.

        Raises:
            ConfigError: only the user can know it.
        """

    @abstractmethod
    def check(self) -> None:
        """Whether the draft can be read, and fits the target; before any process starts.

        Raises:
            ConfigError: says what does not fit.
        """

    def vocab_size(self) -> int:
        """Tokens that target and draft share.

        Raises:
            ConfigError: their vocabularies differ.
        """
        return check_vocabularies(self.target, self.target)

    # --- in the supervisor ---

    def model_config(self) -> Any:
        """The transformers configuration that sizes and dtype of the draft follow from; None without a model."""
        return None

    def max_positions(self) -> int | None:
        """Positions that the draft allows; None: as many as the target."""
        return None

    def layouts(self, draft_dtype: torch.dtype, target_dtype: torch.dtype) -> dict[str, Layout]:
        """Arenas that the drafts of a group and their verifier share, by name."""
        return {}

    def load(self, dtype: torch.dtype, device: str, target_model: Any = None) -> Any:
        """The module whose weights all drafts of a group share; None without a model.

        Args:
            dtype: of the weights.
            device: such as ``cpu`` or ``cuda:0``.
            target_model: the target, if this process has loaded it.
        """
        return None

    def pack(self, model: Any) -> Any:
        """The loaded module with its weights as this CPU reads them best; once, before drafts are forked."""
        prepack_linears(model)
        return model

    def skeleton(self, dtype: torch.dtype) -> Any:
        """The same module without weights, on the meta device; its tensors come by CUDA IPC."""
        raise NotImplementedError(f"draft kind {self.name} has no model to attach")

    # --- in the verifier ---

    def tap(self, target_model: Any, arenas: Mapping[str, torch.Tensor]) -> FeatureTap | None:
        """What keeps the hidden states that drafts need of the target's forwards; None: they need none.

        Args:
            target_model: the transformers model that this process runs.
            arenas: of ``layouts``, by name.
        """
        return None

    # --- in a draft process ---

    @abstractmethod
    def drafter(self, model: Any, arenas: Mapping[str, torch.Tensor], vocab_size: int) -> Drafter:
        """What answers draft tasks.

        Args:
            model: as ``load`` gave it, or on a CPU ``pack``.
            arenas: of ``layouts``, by name.
            vocab_size: real tokens of the target.
        """
