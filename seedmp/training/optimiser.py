"""Muon for the hidden matrices, AdamW for embeddings and norms, over several processes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MUON_RATE, ADAM_RATE = 0.02, 3e-3
MOMENTUM = 0.95
DECAY = 0.05
MAX_GRAD_NORM = 1.0
WARM_UP_STEPS = 60
LAST_RATE = 0.02  # share of the full learning rate at the end


def rate_share(progress: float, start_rate: float) -> float:
    """Share of the full learning rate: a cosine from ``start_rate`` to ``LAST_RATE`` while ``progress`` goes 0 to 1."""
    return LAST_RATE + (start_rate - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


def newton_schulz(stack: Tensor, num_steps: int = 5) -> Tensor:
    """Nearest orthogonal matrices, roughly: all singular values come near 1.

    Args:
        stack: [M, R, C], R <= C.
    """
    x: Tensor = stack.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


class Muon:
    """Momentum, orthogonalised per matrix (Jordan et al. 2024).

    Matrices of one shape are stacked and go through ``bmm`` together, each process taking its part of
    the stack: ``torch.optim.Muon`` takes them one by one and costs 0.6 s a step here.

    Args:
        matrices: parameters of two dimensions.
        rank, num_ranks: this process and how many there are.
    """

    def __init__(self, matrices: list[nn.Parameter], rank: int, num_ranks: int) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for matrix in matrices:  # all lie on their side: rows <= columns
            self._groups.setdefault((min(matrix.shape), max(matrix.shape)), []).append(matrix)
        self.momenta = {shape: torch.zeros(len(group), *shape) for shape, group in self._groups.items()}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the matrices along their gradients, which are the same in every process."""
        for shape, group in self._groups.items():
            gradient = torch.stack([_wide(_grad(matrix)) for matrix in group])
            momentum = self.momenta[shape].lerp_(gradient, 1 - MOMENTUM)
            nesterov = gradient.lerp_(momentum, MOMENTUM)
            for matrix, update in zip(group, self._orthogonal(nesterov), strict=True):
                rows, columns = matrix.shape
                turned = update if rows <= columns else update.T
                matrix.mul_(1 - rate * DECAY).add_(turned, alpha=-rate * math.sqrt(max(1.0, rows / columns)))

    def _orthogonal(self, stack: Tensor) -> Tensor:
        if self._num_ranks == 1:
            return newton_schulz(stack)
        part = -(-len(stack) // self._num_ranks)
        mine = torch.zeros(part, *stack.shape[1:], dtype=torch.bfloat16)
        taken = stack[self._rank * part : (self._rank + 1) * part]
        if len(taken):
            mine[: len(taken)] = newton_schulz(taken)
        parts = [torch.empty_like(mine) for _ in range(self._num_ranks)]
        dist.all_gather(parts, mine)
        return torch.cat(parts)[: len(stack)]


class Optimiser:
    """Both optimisers and the one flat gradient that the processes average.

    Args:
        model: a ``LlamaForCausalLM``; its gradients become views of the flat one.
        rank, num_ranks: this process and how many there are.
    """

    def __init__(self, model: nn.Module, rank: int, num_ranks: int, adam_rate: float = ADAM_RATE) -> None:
        self._num_ranks, self._adam_rate = num_ranks, adam_rate
        parameters = dict(model.named_parameters())
        # After the gradients: this process's progress and loss, averaged with them.
        self._flat = torch.zeros(sum(parameter.numel() for parameter in parameters.values()) + 2)
        start = 0
        for parameter in parameters.values():
            parameter.grad = self._flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        hidden = {name for name, p in parameters.items() if p.dim() == 2 and "embed" not in name}
        self._muon = Muon([parameters[name] for name in sorted(hidden)], rank, num_ranks)
        others = [p for name, p in parameters.items() if name not in hidden]
        self._adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def clear(self) -> None:
        """Set the gradients to zero."""
        self._flat.zero_()

    def average(self, progress: float, loss: float) -> tuple[float, float]:
        """Average the gradients of all processes, and (progress, loss) with them: all must see the same."""
        self._flat[-2], self._flat[-1] = progress, loss
        if self._num_ranks > 1:
            dist.all_reduce(self._flat)
            self._flat /= self._num_ranks
        gradient = self._flat[:-2]
        norm = float(gradient.norm())
        if norm > MAX_GRAD_NORM:
            gradient *= MAX_GRAD_NORM / norm
        return float(self._flat[-2]), float(self._flat[-1])

    def step(self, factor: float) -> None:
        """Take a step at this share of the full learning rates."""
        self._muon.step(MUON_RATE * factor)
        for group in self._adam.param_groups:
            group["lr"] = self._adam_rate * factor
        self._adam.step()

    def state(self) -> dict[str, Any]:
        """What a later run needs to go on."""
        return {"muon": self._muon.momenta, "adam": self._adam.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from ``state()``."""
        for shape, momentum in state["muon"].items():
            self._muon.momenta[shape].copy_(momentum)
        self._adam.load_state_dict(state["adam"])


def _grad(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
