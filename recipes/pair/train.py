"""The training loop: windows in, a model out, over one or more processes of one thread each."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from recipes.pair.corpus import MIXTURE, WEIGHT_UNIT, WINDOW, Windows
from recipes.pair.documents import DECISION
from recipes.pair.llama import MAX_POSITIONS, Shape, build, hidden_states, weighted_loss
from seedmp.training.optimiser import ADAM_RATE, WARM_UP_STEPS, Optimiser, rate_share

HELD_OUT_WINDOWS = 4  # of each kind, in the log
LEAST_WEIGHT_DISTILLED = 0.3  # a draft has to guess what was given, too


@dataclass(frozen=True)
class Plan:
    """One training run.

    Attributes:
        shape: of the model.
        checkpoint: file that is written now and then and that a later run goes on from.
        windows: stems of packed windows; a part of each batch is taken from each.
        shares: how much of a batch comes from each stem; sums to 1.
        held_out: folder with packed windows to report the loss on, or None.
        minutes: wall-clock time; the learning rate follows it, however many steps that gives.
        num_windows: windows of a step in each process.
        num_ranks: processes.
        seed: of the weights, the order and the position offsets.
        start_from: file of weights to begin with instead of random ones.
        teacher: (shape, file of weights) of the model whose law is learnt instead of the text, or None.
        start_rate: share of the full learning rate at the beginning.
        compiled: run through ``torch.compile`` (needs a C compiler).
        save_seconds, log_seconds: time between checkpoints, and between lines of the log.
    """

    shape: Shape
    checkpoint: Path
    windows: tuple[Path, ...]
    shares: tuple[float, ...]
    held_out: Path | None
    minutes: float
    num_windows: int = 4
    num_ranks: int = 2
    seed: int = 0
    start_from: Path | None = None
    teacher: tuple[Shape, Path] | None = None
    adam_rate: float = ADAM_RATE
    start_rate: float = 1.0
    compiled: bool = True
    save_seconds: float = 240.0
    log_seconds: float = 30.0


def train(plan: Plan) -> None:
    """Run a plan to its end; the weights are then in its checkpoint."""
    if plan.num_ranks == 1:
        _run(0, plan, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        spawn(_run, (plan, f"{folder}/store"), nprocs=plan.num_ranks)


def load_weights(model: nn.Module, file: Path) -> None:
    """Take the weights of a checkpoint."""
    model.load_state_dict(torch.load(file, weights_only=True)["model"])


def _run(rank: int, plan: Plan, store: str) -> None:
    if plan.num_ranks > 1:
        torch.set_num_threads(1)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=plan.num_ranks)
    try:
        _Run(plan, rank).loop()
    finally:
        if plan.num_ranks > 1:
            dist.destroy_process_group()


class _Run:
    """State of one process in a run."""

    def __init__(self, plan: Plan, rank: int) -> None:
        self.plan, self.rank = plan, rank
        torch.manual_seed(plan.seed)
        self.model = build(plan.shape)
        if plan.start_from is not None:
            load_weights(self.model, plan.start_from)
        self.optimiser = Optimiser(self.model, rank, plan.num_ranks, plan.adam_rate)
        self.step, self.elapsed_s = 0, 0.0
        if plan.checkpoint.exists():
            saved = torch.load(plan.checkpoint, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.optimiser.restore(saved["optimiser"])
            self.step, self.elapsed_s = saved["step"], saved["elapsed_s"]
        self.teacher = None
        if plan.teacher is not None:
            self.teacher = build(plan.teacher[0]).eval().requires_grad_(False)
            load_weights(self.teacher, plan.teacher[1])
        self.forward = torch.compile(hidden_states, dynamic=False) if plan.compiled else hidden_states
        self.sets = [Windows.load(stem) for stem in plan.windows]
        self.orders = [
            torch.randperm(len(some.tokens), generator=torch.Generator().manual_seed(plan.seed + 1)).tolist()
            for some in self.sets
        ]

    @property
    def tokens_per_step(self) -> int:
        return self.plan.num_windows * self.plan.num_ranks * WINDOW

    def loop(self) -> None:
        """Steps until the time is over; both processes see the same progress and so do the same."""
        plan = self.plan
        budget_s = plan.minutes * 60
        began = time.monotonic() - self.elapsed_s
        logged_s = saved_s = self.elapsed_s
        logged_step, loss_sum = self.step, 0.0
        progress = self.elapsed_s / budget_s
        while progress < 1:
            loss = self._backward()
            progress, loss = self.optimiser.average((time.monotonic() - began) / budget_s, loss)
            rate = rate_share(min(progress, 1.0), plan.start_rate)
            self.optimiser.step(rate * min(1.0, (self.step + 1) / WARM_UP_STEPS))
            self.step += 1
            loss_sum += loss
            self.elapsed_s = progress * budget_s
            if self.elapsed_s - logged_s >= plan.log_seconds:
                num_steps = self.step - logged_step
                self._log(
                    f"tokens {self.step * self.tokens_per_step / 1e6:.3f}M loss {loss_sum / num_steps:.4f}"
                    f" rate {rate_share(min(progress, 1.0), plan.start_rate):.3f}"
                    f" tok/s {num_steps * self.tokens_per_step / (self.elapsed_s - logged_s):.0f}"
                )
                logged_s, logged_step, loss_sum = self.elapsed_s, self.step, 0.0
            if self.elapsed_s - saved_s >= plan.save_seconds or progress >= 1:
                self._save()
                if plan.held_out is not None:
                    self._log("held-out " + self._held_out(plan.held_out))
                saved_s = self.elapsed_s

    def _batch(self) -> tuple[Tensor, Tensor]:
        """([B, T] tokens, [B, T] weights) of this process in this step."""
        tokens, weights = [], []
        for some, order, share in zip(self.sets, self.orders, self.plan.shares, strict=True):
            count = round(self.plan.num_windows * share)
            first = (self.step * self.plan.num_ranks + self.rank) * count
            rows = [order[(first + i) % len(order)] for i in range(count)]
            tokens.append(torch.from_numpy(some.tokens[rows].astype("int64")))
            weights.append(torch.from_numpy(some.weights[rows].astype("float32")) / WEIGHT_UNIT)
        return torch.cat(tokens), torch.cat(weights)

    def _backward(self) -> float:
        tokens, weights = self._batch()
        # Any offset up to the window's length: so positions up to MAX_POSITIONS - 1 are seen.
        chance = torch.Generator().manual_seed(self.plan.seed + 7919 * self.step + self.rank)
        offset = torch.randint(0, MAX_POSITIONS - WINDOW + 1, (len(tokens), 1), generator=chance)
        positions = offset + torch.arange(WINDOW)
        self.optimiser.clear()
        targets: Tensor = tokens[:, 1:].reshape(-1)
        weights = weights[:, 1:].reshape(-1)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.forward(self.model, tokens, positions)
            if self.teacher is not None:
                with torch.no_grad():
                    taught = self.forward(self.teacher, tokens, positions)[:, :-1]
                    targets = taught.flatten(0, 1).bfloat16() @ self.teacher.model.embed_tokens.weight.bfloat16().T
                weights = weights.clamp_min(LEAST_WEIGHT_DISTILLED) * (tokens[:, 1:].reshape(-1) != 0)
        embedding = self.model.model.embed_tokens.weight
        loss = weighted_loss(hidden[:, :-1].flatten(0, 1), embedding, targets, weights)
        loss.backward()
        return float(loss.detach())

    @torch.no_grad()
    def _held_out(self, folder: Path) -> str:
        """Loss of each kind, and of its tokens that decide; the processes share the windows."""
        sums = torch.zeros(len(MIXTURE), 4)
        for row, name in zip(sums, MIXTURE, strict=True):
            some = Windows.load(folder / f"held-{name}")
            mine = slice(self.rank, HELD_OUT_WINDOWS, self.plan.num_ranks)
            tokens = torch.from_numpy(some.tokens[mine].astype("int64"))
            weights = torch.from_numpy(some.weights[mine].astype("float32"))[:, 1:]
            losses = token_losses(self.model, tokens)
            for at, chosen in ((0, weights > 0), (2, weights >= DECISION * WEIGHT_UNIT)):
                row[at] = losses[chosen].sum()
                row[at + 1] = chosen.sum()
        if self.plan.num_ranks > 1:
            dist.all_reduce(sums)
        parts = []
        for (total, count, key_total, key_count), name in zip(sums.tolist(), MIXTURE, strict=True):
            parts.append(f"{name} {total / max(count, 1):.3f}")
            if key_count:
                parts.append(f"(key {key_total / key_count:.3f})")
        return " ".join(parts)

    def _save(self) -> None:
        if self.rank:
            return
        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "tokens": self.step * self.tokens_per_step,
        }
        temporary = self.plan.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.plan.checkpoint)

    def _log(self, text: str) -> None:
        if self.rank == 0:
            print(f"{self.elapsed_s:6.0f} s step {self.step} {text}", flush=True)
            sys.stdout.flush()


@torch.no_grad()
def token_losses(model: Any, tokens: Tensor) -> Tensor:
    """[B, T - 1] loss in nats of each token but the first, in bf16 as the model will run."""
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    losses = []
    with torch.autocast("cpu", torch.bfloat16):
        for row, row_positions in zip(tokens.split(2), positions.split(2), strict=True):
            hidden = hidden_states(model, row, row_positions)[:, :-1]
            logits = (hidden.bfloat16() @ model.model.embed_tokens.weight.bfloat16().T).float()
            losses.append(torch.nn.functional.cross_entropy(logits.mT, row[:, 1:], reduction="none"))
    return torch.cat(losses)
