"""Measuring the price list of a machine in one process: the target's forwards and the drafts' layers, each alone.

No engine runs, so nothing competes for the cores, and the simulator can add the competition itself. Messages and the
verifier's overhead cannot be measured in one process. They come from a profile, or keep their defaults.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seedmp.config import EngineConfig, resolve_placement
from seedmp.draft_order import DraftOrder
from seedmp.drafts.tree_drafter import TreeDrafter, WholeModel
from seedmp.errors import ConfigError
from seedmp.ipc.arena import allocate_on, layout_for
from seedmp.methods.base import MODEL
from seedmp.models.load import ModelSpec, check_vocabularies, load_config, load_model, max_positions
from seedmp.models.rows import BranchRows, pack_rows
from seedmp.models.runner import Runner, make_runner, pack_model
from seedmp.sampling import SamplingParams
from seedmp.scheduler.actions import Segment
from seedmp.simulation.costs import Costs, Curve
from seedmp.system import usable_cores
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.tree import NO_PARENT, ProposalKind, TokenTree
from seedmp.workers.build import resolve_dtypes
from seedmp.workers.target import TargetRunner

ROWS = (*range(1, 13), 14, 16, 20, 24, 32, 48, 64, 96, 128)  # the first ones without gaps: kernels prefer some counts
BRANCHES = (1, 2, 3, 4, 6, 8, 12, 16)
CONTEXT = 64
SPREAD = 3  # slots from one token of a context to the next
LONGER, CONTEXT_ROWS = 8, 16  # contexts to compare; rows
DEEP, FLAT = 4, 1  # levels; their difference is free of what a round pays once


@dataclass(frozen=True)
class LoadedPair:
    """Both models in this process, with the arenas that measuring needs."""

    config: EngineConfig
    target: Runner
    draft: Runner
    dtype: torch.dtype
    max_len: int  # tokens for which the target has slots and positions

    @classmethod
    def load(cls, config: EngineConfig, num_slots: int) -> LoadedPair:
        """Load the models of a configuration as an engine would.

        Raises:
            ConfigError: a model cannot be loaded, or the configuration has no draft that could be measured.
        """
        if not config.method.has_drafts:
            raise ConfigError(f"method={config.method.name} has no draft to measure")
        if config.method.draft_kind != MODEL:
            raise ConfigError(
                "method=eagle: a head drafts from its target's hidden states, so it is not measured alone"
            )
        placement = resolve_placement(config)
        specs = ModelSpec(config.target, config.target_shape), ModelSpec(config.draft, config.draft_shape)
        vocab_size = check_vocabularies(*specs)
        configs = [load_config(spec) for spec in specs]
        dtypes = resolve_dtypes(config, placement, *configs)

        def load(spec: ModelSpec, dtype: torch.dtype, device: str) -> Runner:
            model: Any = load_model(spec, dtype, device)
            arena = allocate_on(layout_for(model.config, num_slots, dtype), device)
            return make_runner(config.runner, pack_model(config.runner, model), arena, vocab_size)

        target = load(specs[0], dtypes[0], placement.target)
        draft = load(specs[1], dtypes[1], placement.drafts[0])
        return cls(config, target, draft, dtypes[0], min(num_slots, max_positions(configs[0])))


def measure_costs(
    config: EngineConfig,
    *,
    rows: Sequence[int] = ROWS,
    branches: Sequence[int] = BRANCHES,
    context_len: int = CONTEXT,
    repeats: int = 7,
    temperature: float = 1.0,
    loaded: LoadedPair | None = None,
) -> Costs:
    """Time both models, loaded as an engine would; the acceptance stays to be filled in.

    Args:
        temperature: of the draft; at 0 no noise is drawn.
        loaded: the models, if they are loaded already; with ``num_slots(...)`` slots.

    Raises:
        ConfigError: as ``LoadedPair.load``.
    """
    if loaded is None:
        loaded = LoadedPair.load(config, num_slots(rows, branches, context_len))
    target_threads, draft_threads = config.threads()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(target_threads)
        target = measure_target(loaded.target, loaded.max_len, rows, context_len, repeats)
        context_ms = measure_context(loaded.target, loaded.max_len, context_len, repeats)
        target = target.less([context_ms * size * context_len / 1000 for size in target.sizes])
        torch.set_num_threads(draft_threads)
        draft, draft_overhead_ms = measure_draft(
            loaded.draft, branches, context_len, config.draft_top_m, repeats, temperature
        )
    finally:
        torch.set_num_threads(before)
    cores = usable_cores() if loaded.target.device.type == "cpu" else 0.0
    where = {"target": config.target, "target_shape": config.target_shape or "", "dtype": str(loaded.dtype)}
    return Costs(
        target, draft, draft_overhead_ms=draft_overhead_ms, context_ms=context_ms, target_threads=target_threads,
        draft_threads=draft_threads, cores=cores, where=where,
    )  # fmt: skip


def num_slots(rows: Sequence[int] = ROWS, branches: Sequence[int] = BRANCHES, context_len: int = CONTEXT) -> int:
    """Slots of each arena that ``measure_costs`` needs."""
    return context_len * max(branches) + max(*rows, (DEEP + 2) * max(branches)) + 1


def measure_target(
    runner: Runner, max_len: int, rows: Sequence[int], context_len: int = CONTEXT, repeats: int = 7
) -> Curve:
    """A forward by rows, as a round runs it: one branch, a last token and a chain of drafts, all logits wanted.

    The branch's slots lie among those of others. The medians are not smoothed: with float32 on a CPU, 12 rows may take
    less time than 11.
    """
    target = TargetRunner(runner)
    spread = max(1, min(SPREAD, (max_len - max(rows)) // context_len))
    _fill(runner, context_len * spread)

    def forward(num: int) -> Callable[[], None]:
        segment = _segment(num, range(0, context_len * spread, spread), context_len * spread)
        return lambda: _wait(target.forward([segment]))

    return _curve({num: forward(num) for num in rows}, repeats)


def measure_context(runner: Runner, max_len: int, context_len: int = CONTEXT, repeats: int = 7) -> float:
    """``Costs.context_ms``: what a row pays for 1000 more tokens before it; 0 where there are no slots to try."""
    longer = min(LONGER * context_len, max_len - CONTEXT_ROWS)
    if longer < 2 * context_len:
        return 0.0
    target = TargetRunner(runner)

    def forward(length: int) -> Callable[[], None]:
        segment = _segment(CONTEXT_ROWS, range(length), length)
        return lambda: _wait(target.forward([segment]))

    times = _times({length: forward(length) for length in (context_len, longer)}, repeats)
    short, long = (statistics.median(times[length]) for length in (context_len, longer))
    return max(0.0, long - short) / (CONTEXT_ROWS * (longer - context_len)) * 1000


def _segment(num_rows: int, context: range, first_slot: int) -> Segment:
    """A branch with a last token and ``num_rows - 1`` draft tokens below each other."""
    tree = TokenTree((1,) * (num_rows - 1), tuple(range(NO_PARENT, num_rows - 2)), ProposalKind.DETERMINISTIC)
    slots = tuple(range(first_slot, first_slot + num_rows))
    return Segment(0, tuple(context), len(context), (1,), slots[:1], True, False, tree, slots[1:], 0, SamplingParams())


def measure_draft(
    runner: Runner,
    branches: Sequence[int],
    context_len: int = CONTEXT,
    top_m: int = 64,
    repeats: int = 7,
    temperature: float = 1.0,
) -> tuple[Curve, float]:
    """Times in ms: of a layer of drafting by its number of rows (one for each branch), and of the rest of a round.

    The time of a layer is the difference between a deep and a flat chain, divided by the difference in levels.
    """
    drafter = TreeDrafter(WholeModel(runner), top_m)
    kind = ProposalKind.WITHOUT_REPLACEMENT if temperature else ProposalKind.DETERMINISTIC
    _fill(runner, context_len)

    def tasks(num: int, depth: int) -> list[DraftOrder]:
        shape = Growmap.from_k_config((1,) * depth).num_children
        context = np.arange(context_len - 1, dtype="<i4")
        first = context_len
        result = []
        for branch_id in range(num):
            slots = np.arange(first, first + depth + 1, dtype="<i4")
            first += depth + 1
            result.append(
                DraftOrder(0, branch_id, 0, 0, 0, branch_id, shape, kind, temperature, False, context, (1,), slots)
            )
        return result

    def round_of(num: int, depth: int) -> Callable[[], None]:
        made = tasks(num, depth)
        return lambda: (drafter.draft(made, lambda _: None), None)[1]

    deep = _times({num: round_of(num, DEEP) for num in branches}, repeats)
    flat = _times({num: round_of(num, FLAT) for num in branches}, repeats)
    samples = [
        (num, max(0.0, d - f) / (DEEP - FLAT)) for num in branches for d, f in zip(deep[num], flat[num], strict=True)
    ]
    curve = Curve.from_samples(samples)
    assert curve is not None
    besides = statistics.median(statistics.median(flat[num]) - FLAT * curve.at(num) for num in branches)
    return curve, max(0.0, besides)


def _fill(runner: Runner, context_len: int) -> None:
    runner.run(pack_rows([BranchRows((), [1] * context_len, range(context_len))]))


def _wait(logits: torch.Tensor) -> None:
    if logits.is_cuda:
        torch.cuda.synchronize(logits.device)


def _curve(jobs: dict[int, Callable[[], None]], repeats: int) -> Curve:
    times = sorted(_times(jobs, repeats).items())
    return Curve(tuple(size for size, _ in times), tuple(statistics.median(each) for _, each in times))


def _times(jobs: dict[int, Callable[[], None]], repeats: int) -> dict[int, list[float]]:
    """Milliseconds of each job, interleaved; the first round warms up."""
    times: dict[int, list[float]] = {size: [] for size in jobs}
    for repeat in range(repeats + 1):
        for size, job in jobs.items():
            start_ns = time.monotonic_ns()
            job()
            if repeat:
                times[size].append((time.monotonic_ns() - start_ns) / 1e6)
    return times
