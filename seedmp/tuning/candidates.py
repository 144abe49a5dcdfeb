"""The settings to choose from: the best trees of each policy, number of drafts and division of the cores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from seedmp.config import EngineConfig
from seedmp.simulation.costs import Costs
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.tree_cost import Fleet, RoundPolicy, choose_tree
from seedmp.tuning.acceptance import Acceptance
from seedmp.tuning.options import FAMILIES, TuneOptions

MAX_LEVELS = 9
SIZES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32)
TREES_EACH = 4  # of a policy, number of drafts and division of the cores, that are simulated
FINALISTS_EACH = 2  # of the same, that are run
FORWARD_TOKENS = EngineConfig("-", "-").max_forward_tokens

Threads = tuple[int, int]  # of a target's forward, and of a draft's


@dataclass(frozen=True)
class Candidate:
    """Settings to choose from, and what is thought of them, in tokens/s.

    Args:
        settings: of ``Engine``, models left out.
        threads: whose prices it is simulated with.
        estimated: by the formulas of ``tree_cost``, which know no queue; 0 for plain decoding.
        simulated: by the simulator.
    """

    settings: Mapping[str, Any]
    threads: Threads
    estimated: float = 0.0
    simulated: float = 0.0

    @property
    def is_ar(self) -> bool:
        return bool(self.settings["method"] == "ar")

    @cached_property
    def tree(self) -> Growmap | None:
        return EngineConfig("-", "-", **self.settings).method.static_tree

    @property
    def name(self) -> str:
        """In a few words, for the table."""
        if self.is_ar:
            return "plain decoding (ar)"
        s = self.settings
        if "k_config" in s:
            tree = "k " + ",".join(map(str, s["k_config"]))
        else:
            assert self.tree is not None
            tree = f"{self.tree.num_nodes} tokens, depth {self.tree.depth}"
        threads = f", threads {s['target_threads']}+{s['draft_threads']}" if "target_threads" in s else ""
        plural = "s" if s["num_drafts"] > 1 else ""
        return f"{s['method']} {tree}; {s['policy']}, {s['num_drafts']} draft{plural}{threads}"


def tree_settings(method: str, growmap: Growmap) -> dict[str, Any]:
    """``k_config`` where all nodes of a level have as many children, else ``growmap`` and the method for it."""
    levels = growmap.branches[:-1]
    if all(len(set(level)) == 1 for level in levels):
        return {"method": method, "k_config": tuple(level[0] for level in levels)}
    return {"method": FAMILIES[method].with_growmap, "growmap": growmap.num_children}


def estimate(
    options: TuneOptions, acceptance: Acceptance, prices: Mapping[Threads, Costs], context_len: int
) -> list[Candidate]:
    """The best few trees of each policy, number of drafts and division of the cores, after so long a context."""
    alone = options.branches == 1
    policies = (RoundPolicy.FCFS_BATCH,) if alone else (RoundPolicy.FCFS_BATCH, RoundPolicy.FCFS)
    sizes = [size for size in SIZES if size * options.branches <= max(FORWARD_TOKENS, 2 * options.branches)]
    vector = acceptance.vector()
    found = []
    for threads, costs in prices.items():
        overhead_ms = costs.forward_overhead_ms + costs.branch_overhead_ms
        draft_time, target_time = (
            _seconds(costs.draft.at),
            _seconds(partial(costs.target_ms, context_len=context_len), overhead_ms),
        )
        for policy in policies:
            for drafts in sorted({min(num, options.branches) for num in options.drafts}):
                fleet = Fleet(options.branches, drafts)
                choice = choose_tree(vector, draft_time, target_time, policy, fleet, sizes, MAX_LEVELS)
                best = sorted(choice.options, key=lambda option: -option.tokens_per_s)
                for option in [option for option in best if option.growmap.num_nodes][:TREES_EACH]:
                    settings = tree_settings(options.method, option.growmap)
                    settings |= {"num_drafts": drafts, "policy": policy.value}
                    settings |= common_settings(options, threads if costs.cores else None)
                    found.append(Candidate(settings, threads, option.tokens_per_s))
    return found


def _seconds(ms_at: Callable[[float], float], more_ms: float = 0.0) -> Callable[[int], float]:
    return lambda rows: max(1e-6, (ms_at(rows) + more_ms) / 1e3)


def common_settings(options: TuneOptions, threads: Threads | None) -> dict[str, Any]:
    """Of every candidate: what differs from the defaults for this workload."""
    settings: dict[str, Any] = {"dtype": options.dtype}
    if threads is not None:
        settings |= {"target_threads": threads[0], "draft_threads": threads[1]}
    return settings


def finalists(candidates: Iterable[Candidate], num: int) -> list[Candidate]:
    """The best by the simulator; of one policy, number of drafts and division of the cores not all."""
    taken: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.simulated):
        alike = [c for c in taken if _group(c) == _group(candidate)]
        if len(taken) < num and len(alike) < FINALISTS_EACH:
            taken.append(candidate)
    return taken


def _group(candidate: Candidate) -> tuple[Any, ...]:
    return candidate.settings["policy"], candidate.settings["num_drafts"], candidate.threads
