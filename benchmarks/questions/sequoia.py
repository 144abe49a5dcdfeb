"""Question: which tree pays on plain text: Sequoia's protocol for every method that we have?

Prompts are the first 128 tokens of C4, OpenWebText and CNN/DM passages. Each is continued by 128 tokens, at
temperatures 0 and 0.6. Passages come one after another (``serial``), as in Sequoia's and OPT-Tree's evaluations.
Trees have about the same number of draft tokens in every method. Sequoia's growmap comes from its dynamic programme
with the acceptance vector of its published demonstration, which is not this pair's. (``seedmp growmap make`` finds a
growmap for measured acceptance.) Accepted length = 1 + accepted ÷ rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from seedmp import metrics
from seedmp.benchmarks.harness import Group, Plan, Row
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.subjects import Encoder, continue_all, engine_subject, greedy_texts
from seedmp.benchmarks.svg import Bar, Figure, bar_chart
from seedmp.benchmarks.tables import USUAL, Column, Table, by_cell, table
from seedmp.benchmarks.workloads import passages
from seedmp.errors import ConfigError
from seedmp.methods.registry import METHODS
from seedmp.sampling import SamplingParams
from seedmp.token_tree.sequoia import parse_acceptance, search_trees

# First children's acceptance in Sequoia's published demonstration (Infini-AI-Lab/Sequoia, acceptance-rate-vector.pt).
DEMO_ACCEPTANCE = (0.0, 0.634, 0.108, 0.057, 0.022, 0.019, 0.015, 0.004, 0.003)
SHOWS = (
    "Accepted length of each kind of tree at about the same number of draft tokens, and what is left of it as speed "
    "after drafting was paid.",
)
SHOWS_NOT = (
    "The best tree for this node: sizes are the same for all methods, not tuned (`seedmp tune`, "
    "`seedmp growmap make`).",
    "Sequoia's published figures are for 64 to 768 draft tokens on a GPU that verifies them for nearly nothing.",
)


def settings_of(method: str, num_nodes: int) -> dict[str, Any] | None:
    """A tree of about ``num_nodes`` draft tokens; None: the method has no row here."""
    depth = 4 if num_nodes <= 16 else 7
    trees: dict[str, dict[str, Any] | None] = {
        "ar": {},
        "sd": None,  # specinfer, with k_config trees
        "eagle": {"nodes": num_nodes, "max_depth": depth},
        "mcsd": {"k_config": (2, 2, 1) if num_nodes <= 16 else (4, 2, 2, 1)},
        "specinfer": {"growmap": f"{max(2, num_nodes // depth)}x{depth}"},
        "opt-tree": {"nodes": num_nodes, "max_depth": depth},
        "ngram": {"nodes": num_nodes, "max_depth": depth},
        "coupled": {"k_config": (2, 2, 1) if num_nodes <= 16 else (4, 2, 2, 1)},
    }
    if method == "sequoia":
        acceptance = parse_acceptance(list(DEMO_ACCEPTANCE), ends_with_none=False)
        return {
            "growmap": search_trees(acceptance, num_nodes + 1, depth + 1).growmap(num_nodes + 1, depth + 1).num_children
        }
    return trees.get(method, {})


def plan(options: Options) -> Plan:
    """Each (data set, temperature) is a group."""
    import torch

    prompt_len, max_tokens = options.pick(128, 128, 48), options.pick(128, 16, 8)
    num_prompts = options.pick(3, 2, 1)
    num_nodes = 64 if torch.cuda.is_available() else 10
    temperatures = options.pick((0.0, 0.6), (0.0, 0.6), (0.6,))
    data = cut_prompts(passages(options), Encoder(options), prompt_len, num_prompts)
    if options.quick or options.smoke:
        data = dict(list(data.items())[:1])
    methods = {method: settings_of(method, num_nodes) for method in METHODS.names()}
    if options.smoke:
        methods = {method: methods[method] for method in ("ar", "sequoia")}
    groups = [
        Group(
            f"{name} T={temperature}",
            [
                _row(options, method, settings, prompts, temperature, max_tokens)
                for method, settings in methods.items() if settings is not None
            ],
            "ar", {"data": name, "temperature": temperature},
        )
        for name, prompts in data.items() for temperature in temperatures
    ]  # fmt: skip
    settings = {"prompt_tokens": prompt_len, "max_tokens": max_tokens, "prompts": num_prompts, "nodes": num_nodes}
    return Plan("sequoia", groups, settings)


def cut_prompts(
    data: Mapping[str, Sequence[str]], encoder: Encoder, prompt_len: int, num: int
) -> dict[str, list[tuple[int, ...]]]:
    """The first ``num`` passages that are long enough, cut to ``prompt_len`` tokens.

    Raises:
        ConfigError: a data set has none.
    """
    result = {}
    for name, texts in data.items():
        prompts: list[tuple[int, ...]] = []
        for text in texts:
            ids = encoder.plain(text)
            if len(ids) >= prompt_len:
                prompts.append(ids[:prompt_len])
            if len(prompts) == num:
                break
        if not prompts:
            raise ConfigError(f"{name}: no passage has {prompt_len} tokens of the target's vocabulary")
        result[name] = prompts
    return result


def _row(
    options: Options,
    method: str,
    settings: Mapping[str, Any],
    prompts: Sequence[tuple[int, ...]],
    temperature: float,
    max_tokens: int,
) -> Row:
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, ignore_eos=True, seed=options.seed)
    subject = engine_subject(options, method=method, schedule="serial", **settings)

    def work(engine: Any, repeat: int) -> Any:
        result = continue_all(engine, prompts, replace(params, seed=options.seed + repeat))
        made = sum(map(len, result.token_ids))
        rounds = metrics.share(made, result.figures["mean_accepted_len"])
        return replace(result, figures={**result.figures, "ms_per_round": 1e3 * metrics.share(result.wall_s, rounds)})

    shown = {key: str(value) for key, value in settings.items()}
    return Row(
        method, subject, work, lambda engine: greedy_texts(engine, prompts, max_tokens), {"tree": shown}
    )  # fmt: skip


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All methods, data set by data set."""
    columns = [
        Column("data", "data"), Column("T", "temperature"), *USUAL[:5], Column("draft ms", "draft_round_ms", ".1f"),
        Column("verify ms", "verify_ms", ".1f"), Column("ms per round", "ms_per_round", ".1f"), USUAL[5],
    ]  # fmt: skip
    return [table("sequoia", "Methods on Sequoia's protocol: speed-up over AR", report["rows"], columns)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Speed-up and accepted length of each method."""
    speed, length = {}, {}
    for cell, rows in by_cell(report["rows"]).items():
        ran = [row for row in rows if "speedup" in row and row["name"] != "ar"]
        if ran:
            speed[cell] = [Bar(row["name"], row["speedup"], row["speedup_min"], row["speedup_max"]) for row in ran]
            length[cell] = [Bar(row["name"], row["mean_accepted_len"]) for row in ran]
    if not speed:
        return []
    return [
        bar_chart("sequoia", "Speed-up over AR", "speed-up", speed, baseline=1.0),
        bar_chart("sequoia-length", "Mean accepted length", "tokens per target pass", length, baseline=1.0),
    ]
