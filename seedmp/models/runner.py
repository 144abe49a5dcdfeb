"""How a forward is run: the protocol, and the ways that have names.

``Runner`` is all that workers know of a loaded model. A way to run is one class, and one line in ``RUNNERS`` or
``module:attribute`` in the setting ``runner``. It is called as ``EagerRunner`` is, and may have its ``pack``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from seedmp.models.rows import Rows
from seedmp.registry import Registry

if TYPE_CHECKING:
    import torch

    from seedmp.models.features import FeatureTap


class Runner(Protocol):
    """A model and its arena. One process, one thread."""

    @property
    def vocab_size(self) -> int:
        """V, tokens that a text can have; the model may have more columns."""

    @property
    def device(self) -> torch.device:
        """Where the model and its arena are."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the arena."""

    @property
    def num_slots(self) -> int:
        """S, slots of the arena that rows may name: 0 to S - 1."""

    @property
    def busy_ns(self) -> int:
        """Time spent in forwards so far, without the preparation of their inputs."""

    def run(self, rows: Rows) -> torch.Tensor:
        """Run the model once over the rows, and write their K and V into the arena.

        Hidden states that drafts read are published when this returns. Rows whose numbers overflow, and rows that
        attend to such rows of now or before, have NaN in every column; no other row notices.

        Returns:
            [W, V] logits of the wanted rows on the model's device, float32 or the model's dtype.
        """

    def publish(self) -> None:
        """Return when other processes can read all K and V that were written."""


class RunnerMaker(Protocol):
    """What makes a runner of a kind, such as its class."""

    def __call__(self, model: Any, arena: torch.Tensor, vocab_size: int, tap: FeatureTap | None = None) -> Runner:
        """Args as ``make_runner``."""


RUNNERS: Registry[RunnerMaker] = Registry(
    "runner",
    {
        "auto": "seedmp.models.fused_runner:FUSED_OR_EAGER",
        "eager": "seedmp.models.eager:EagerRunner",
        "fused": "seedmp.models.fused_runner:FusedRunner",
    },
)


def pack_model(name: str, model: Any) -> Any:
    """A loaded model with its weights as a runner wants them: once, before other processes are forked that share it.

    Args:
        name: of the runner, as for ``make_runner``.
        model: a transformers causal language model in eval mode; it is used up.

    Returns:
        what ``make_runner`` takes; the model itself for a runner without ``pack``.

    Raises:
        ConfigError: no runner has this name, or it does not run this model.
    """
    pack = getattr(RUNNERS.load(name), "pack", None)
    return model if pack is None else pack(model)


def make_runner(name: str, model: Any, arena: torch.Tensor, vocab_size: int, tap: FeatureTap | None = None) -> Runner:
    """A runner of this name for a loaded model.

    Args:
        name: in ``RUNNERS``, or ``module:attribute``.
        model: what ``pack_model`` gave, or a transformers causal language model in eval mode; the runner may change
            how it attends.
        arena: shaped as ``seedmp.ipc.arena.ArenaLayout`` says.
        vocab_size: V.
        tap: keeps hidden states for draft heads; None if no draft needs them.

    Raises:
        ConfigError: no runner has this name, or the model's layers attend in a way that it does not know.
    """
    return RUNNERS.load(name)(model, arena, vocab_size, tap)
