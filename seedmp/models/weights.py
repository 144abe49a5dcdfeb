"""Are the weights of a loaded model all there, of the right shape, and numbers?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from seedmp.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NUM_SHOWN = 4  # names in a message


def check_all_loaded(path: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Refuse a model some of whose weights did not come from its files: they would be random numbers.

    Tied weights and buffers may be missing: the model makes them itself.

    Args:
        path: of the model, for the message.
        model: as loaded, with ``ignore_mismatched_sizes``.
        info: what ``from_pretrained(..., output_loading_info=True)`` tells.

    Raises:
        ConfigError: a weight is missing, or has another shape than the configuration says.
    """
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    misfits = [
        f"{name} {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    problems = []
    for what, names in (("missing", sorted(weights.intersection(info["missing_keys"]))), ("of another shape", misfits)):
        if names:
            problems.append(f"{what}: {_listed(names)}")
    if not problems:
        return
    unknown = sorted(info["unexpected_keys"])
    if unknown:
        problems.append(f"unknown: {_listed(unknown)}")
    raise ConfigError(
        f"model {path!r}: its files do not have the {len(weights)} weights of a {type(model).__name__}; "
        + "; ".join(problems)
    )


def check_finite(what: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse weights that are not numbers.

    Args:
        what: whose they are, for the message.
        tensors: by name. One pass over each, at the speed of memory.

    Raises:
        ConfigError: NaN or Inf.
    """
    bad = [name for name, tensor in tensors if not _is_finite(tensor)]
    if bad:
        raise ConfigError(f"{what}: there is NaN or Inf in {_listed(bad)}; all weights must be finite numbers")


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    low, high = tensor.detach().aminmax()  # either is NaN if one element is
    return bool(low.isfinite() & high.isfinite())


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(names[:NUM_SHOWN]) + more
