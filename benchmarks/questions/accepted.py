"""Question: how many tokens does a target pass commit, by kind of token tree, at one number of draft tokens?

Mean accepted length = 1 + accepted ÷ rounds. The recovered or bonus token counts, so plain decoding has 1. Every tree
has the same number of draft tokens (only ``chain-4`` has 4) and any depth. ``k_config`` and Sequoia's growmap are
both the best ones for one measured acceptance, so they differ in shape alone. That acceptance is measured along texts
that the target writes for other problems of the task, at the same temperature. OPT-Tree's threshold is 0. The prompts
ask for the first thought of each problem. They are continued until EOS or ``max_tokens``, with the same seeds in all
rows. The standard error is over texts, of a ratio of sums. The pair is not inflated and runs in float32: a larger
shape changes times, but not how many tokens are accepted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from seedmp import metrics
from seedmp.benchmarks import paper
from seedmp.benchmarks.calibration import Calibration, Choose, FittedSubject, best_growmap, best_k_config
from seedmp.benchmarks.harness import Group, Plan, Row
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.subjects import Encoder, engine_subject
from seedmp.benchmarks.summary import Result
from seedmp.benchmarks.svg import Bar, Figure, bar_chart
from seedmp.benchmarks.tables import DASH, NAME, RATE, SAME_TEXT, Column, Table, by_cell, same_text, table
from seedmp.benchmarks.workloads import roots
from seedmp.engine import Engine
from seedmp.errors import ConfigError
from seedmp.measuring.account import account
from seedmp.measuring.engines import Subject, forget_texts, submit_fresh
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams
from seedmp.token_tree.growmap import Growmap
from seedmp.token_tree.sequoia import expected_tokens

NODES = 16
SHORT_CHAIN = 4
AR, K_CONFIG, SEQUOIA, OPT_TREE = "ar", "k_config", "sequoia", "opt-tree"
# (more, less, at temperature 0 alone): what the papers say, at equal numbers of draft tokens.
RELATIONS = ((SEQUOIA, K_CONFIG, False), (OPT_TREE, SEQUOIA, True))
SHOWS = (
    "What the shape of a tree is worth, at one number of draft tokens: accepted length of every kind that we have.",
    "Sequoia's tree is the best k_config or better by the measured acceptance, which assumes that a child's rank alone "
    "decides; OPT-Tree knows each context. Where one of these does not show in the figures, a line says so.",
)
SHOWS_NOT = (
    "Speed: a chain of 16 takes 16 forwards of the draft one after another, `ngram` takes none. tokens/s is "
    "of one run of a small pair, all texts at once.",
    "Other pairs: how much a tree gains depends on how often the draft's first guess is wrong but a later one right.",
)


def plan(options: Options) -> Plan:
    """Each (task, temperature) is a group."""
    if options.data is not None and options.data.is_file():
        raise ConfigError(f"--data {options.data}: accepted reads three data sets; give the folder that has them")
    if options.target is None:
        options = replace(options, shape=None, draft_shape=None, dtype="float32")
    num_nodes = options.nodes or NODES
    num_prompts, num_other = options.pick((24, 12), (6, 4), (2, 2))
    max_tokens = options.pick(96, 32, 16)
    tasks = options.pick(paper.TASKS, paper.TASKS, ("blocksworld",))
    temperatures = options.pick((0.0, 0.6, 1.0), (0.0,), (0.0,))
    encoder = Encoder(options)
    texts = {task: split_prompts(options, encoder, task, num_prompts, num_other) for task in tasks}
    calibrations = {
        cell_of(task, temperature): Calibration(options, other, temperature, max_tokens, num_nodes)
        for task, (_, other) in texts.items() for temperature in temperatures
    }  # fmt: skip
    groups = [
        Group(
            cell_of(task, temperature),
            [
                _row(name, subject, prompts, SamplingParams(temperature, max_tokens=max_tokens, seed=options.seed))
                for name, subject in subjects(options, num_nodes, calibrations[cell_of(task, temperature)]).items()
            ],
            AR, {"task": task, "temperature": temperature},
        )
        for task, (prompts, _) in texts.items() for temperature in temperatures
    ]  # fmt: skip
    settings = {
        "shape": "none", "draft_shape": "none", "dtype": options.dtype, "repeats": options.repeats or 1,
        "nodes": num_nodes, "max_tokens": max_tokens, "prompts": {task: len(own) for task, (own, _) in texts.items()},
        "calibration_prompts": {task: len(other) for task, (_, other) in texts.items()},
    }  # fmt: skip

    def finish(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"model": options.describe_model(), "fitted": fitted(calibrations, num_nodes), "not_so": not_so(rows)}

    return Plan("accepted", groups, settings, finish, num_repeats=options.repeats or 1)


def cell_of(task: str, temperature: float) -> str:
    """Of a group."""
    return f"{task} T={temperature:g}"


def split_prompts(
    options: Options, encoder: Encoder, task: str, num: int, num_other: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Prompts to measure on, and other prompts to fit trees to. Of few problems, a third are for fitting.

    Raises:
        ConfigError: there are no others.
    """
    asks = [root.thought() for root in roots(options, task, num + num_other, 1, chat=False)]
    found = list(dict.fromkeys(encoder.prompt(str(ask.prompt)) for ask in asks))
    num = num if len(found) >= num + num_other else 2 * len(found) // 3
    if not 0 < num < len(found):
        raise ConfigError(f"{task}: has {len(found)} different prompts: must be 2 or more, to fit trees to others")
    return found[:num], found[num:]


def subjects(options: Options, num_nodes: int, calibration: Calibration) -> dict[str, Subject]:
    """All rows' engines; trees have ``num_nodes`` draft tokens."""
    width = max(k for k in range(1, math.isqrt(num_nodes) + 1) if num_nodes % k == 0)
    chains = f"{width}x{num_nodes // width}"
    any_depth = {"nodes": num_nodes, "max_depth": num_nodes}

    def engine(method: str, **settings: Any) -> Subject:
        return engine_subject(options, method=method, num_drafts=1, **settings)

    def fitted_engine(method: str, choose: Choose) -> Subject:
        return FittedSubject(
            engine_subject(options, method=method, num_drafts=1), calibration, num_nodes, choose
        )  # fmt: skip

    made = {
        AR: engine("ar"),
        f"chain-{SHORT_CHAIN}": engine("mcsd", k_config=(1,) * SHORT_CHAIN),
        f"chain-{num_nodes}": engine("mcsd", k_config=(1,) * num_nodes),
        K_CONFIG: fitted_engine("mcsd", best_k_config),
        chains: engine("specinfer", growmap=chains),
        SEQUOIA: fitted_engine("sequoia", best_growmap),
        OPT_TREE: engine("opt-tree", threshold=0.0, **any_depth),
        "eagle": engine("eagle", **any_depth),
        "ngram": engine("ngram", **any_depth),
        "coupled-chain": engine("coupled", k_config=(1,) * num_nodes),
        "coupled-sequoia": fitted_engine("coupled", best_growmap),
    }
    left_out: tuple[str, ...] = options.pick(
        (), (f"chain-{SHORT_CHAIN}", chains, "coupled-sequoia"), tuple(set(made) - {AR, K_CONFIG, SEQUOIA})
    )
    return {name: subject for name, subject in made.items() if name not in left_out}


def _row(name: str, subject: Subject, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> Row:
    # Texts are compared at temperature 0; a warm-up elsewhere needs one of them.
    warm = prompts if params.temperature == 0 else prompts[:1]
    greedy = replace(params, temperature=0.0)
    return Row(
        name, subject, lambda engine, repeat: run_texts(engine, prompts, params),
        lambda engine: run_texts(engine, warm, greedy).token_ids,
    )  # fmt: skip


def run_texts(engine: Engine, prompts: Sequence[tuple[int, ...]], params: SamplingParams) -> Result:
    """Continue all prompts, each with noise of its own, and count over texts."""
    forget_texts(engine)
    outputs: list[RequestOutput] = []

    def job() -> list[RequestOutput]:
        outputs[:] = submit_fresh(engine, prompts, params, own_noise=True)
        return outputs

    measured = account(engine, job)
    counts = Counts.of(outputs)
    return Result.of(measured, **counts.figures())


@dataclass(frozen=True)
class Counts:
    """Accepted draft tokens and rounds of each text."""

    accepted: tuple[int, ...]
    rounds: tuple[int, ...]

    @classmethod
    def of(cls, outputs: Sequence[RequestOutput]) -> Counts:
        """As the scheduler counted them."""
        costs = [output.metrics for output in outputs]
        return cls(tuple(cost.accepted for cost in costs), tuple(cost.rounds for cost in costs))

    def figures(self) -> dict[str, float]:
        """Sums, mean accepted length and its standard error. A single text has no standard error."""
        accepted, rounds = sum(self.accepted), sum(self.rounds)
        figures = {
            "accepted": float(accepted), "rounds": float(rounds),
            "mean_accepted_len": metrics.mean_accepted_len(accepted, rounds),
        }  # fmt: skip
        if len(self.rounds) > 1 and rounds:
            ratio, num = accepted / rounds, len(self.rounds)
            squares = sum((a - ratio * r) ** 2 for a, r in zip(self.accepted, self.rounds, strict=True))
            figures["standard_error"] = math.sqrt(num / (num - 1) * squares) / rounds
        return figures


# --- what the figures say -----------------------------------------------------------------------------


def fitted(calibrations: Mapping[str, Calibration], num_nodes: int) -> list[dict[str, Any]]:
    """The trees that were fitted, cell by cell, with their expected tokens by the measured acceptance."""
    lines = []
    for cell, calibration in calibrations.items():
        if (acceptance := calibration.measured) is not None:
            k_config = best_k_config(acceptance, num_nodes)["k_config"]
            growmap = Growmap(best_growmap(acceptance, num_nodes)["growmap"])
            lines.append(
                {
                    "name": cell, "acceptance": [round(p, 4) for p in acceptance[0, 1:].tolist()],
                    K_CONFIG: k_config, "k_config_expected": _expected(Growmap.from_k_config(k_config), acceptance),
                    "growmap": growmap.num_children, "growmap_depth": len(growmap.levels) - 1,
                    "growmap_expected": _expected(growmap, acceptance),
                }
            )  # fmt: skip
    return lines


def _expected(growmap: Growmap, acceptance: Any) -> float:
    return round(expected_tokens(growmap, acceptance), 4)


def not_so(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each relation that a cell's figures contradict, with both figures and the difference in standard errors."""
    lines: list[dict[str, Any]] = []
    for cell, members in by_cell(rows).items():
        ran = {row["name"]: row for row in members if "mean_accepted_len" in row}
        for more, less, only_greedy in RELATIONS:
            if not {more, less} <= ran.keys() or (only_greedy and ran[more]["temperature"] != 0):
                continue
            difference = ran[more]["mean_accepted_len"] - ran[less]["mean_accepted_len"]
            if difference < 0:
                noise = math.hypot(*(ran[name].get("standard_error", 0.0) for name in (more, less)))
                lines.append(
                    {
                        "name": f"{more} >= {less}", "cell": cell, "first": _length(ran[more]),
                        "second": _length(ran[less]), "in_errors": difference / noise if noise else None,
                    }
                )  # fmt: skip
    return lines


def _length(row: Mapping[str, Any]) -> str:
    if "mean_accepted_len" not in row:
        return DASH
    error = row.get("standard_error")
    return f"{row['mean_accepted_len']:.2f}" + (f" ±{error:.2f}" if error is not None else "")


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Rows by cells; then the relations that do not hold, the fitted trees, and every row by itself."""
    rows = report["rows"]
    lines = report.get("not_so", ())
    relations = [
        Column("not so", "name"), Column("where", "cell"), Column("first", "first"), Column("second", "second"),
        Column("difference in standard errors", "in_errors", "+.1f"),
    ]  # fmt: skip
    trees = [
        Column("cell", "name"), Column("1st child accepted", lambda line: line["acceptance"][0], ".2f"),
        Column("k_config", lambda line: ",".join(map(str, line[K_CONFIG]))),
        Column("expected", "k_config_expected", ".2f"), Column("growmap's depth", "growmap_depth"),
        Column("expected of growmap", "growmap_expected", ".2f"),
    ]  # fmt: skip
    every = [
        Column("task", "task"), Column("T", "temperature"), NAME, Column("accepted length", _length),
        Column("rounds", "rounds", ".0f"), Column("accepted", "accepted", ".0f"), RATE, SAME_TEXT,
    ]  # fmt: skip
    title = "Sequoia >= k_config, and OPT-Tree >= Sequoia at T=0: not so"
    return [
        _by_method(rows, report["settings"].get("nodes", NODES)),
        table("not-so", title if lines else f"{title} nowhere", lines, relations),
        table("fitted", "Trees fitted to other prompts, and what is expected of them", report.get("fitted", ()), trees),
        table("accepted-rows", "Every row", rows, every),
    ]


def _by_method(rows: Sequence[Mapping[str, Any]], num_nodes: int) -> Table:
    """Methods down, cells across."""
    cells = list(by_cell(rows))
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = {row["cell"]: row for row in rows if row["name"] == name}
        reasons = [row["not_run"] for row in own.values() if "not_run" in row]
        greedy = [row for row in own.values() if row.get("temperature") == 0 and "text_equals_base" in row]
        differing = [str(same_text(row)) for row in greedy if not row["text_equals_base"]]
        last = f"not run: {reasons[0]}" if reasons else ", ".join(differing) or ("yes" if greedy else DASH)
        lines.append((f"`{name}`", *(_length(own.get(cell, {})) for cell in cells), last))
    title = f"Mean accepted length, bonus token included, ± standard error; {num_nodes} draft tokens"
    return Table("accepted", title, ("row", *cells, SAME_TEXT.head), tuple(lines))


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Accepted length of each row, cell by cell."""
    bars = {}
    for cell, rows in by_cell(report["rows"]).items():
        ran = [row for row in rows if "mean_accepted_len" in row and row["name"] != AR]
        if ran:
            bars[cell] = [_bar(row) for row in ran]
    title = "Mean accepted length (range: a standard error)"
    return [bar_chart("accepted", title, "tokens per target pass", bars, baseline=1.0)] if bars else []


def _bar(row: Mapping[str, Any]) -> Bar:
    length, error = row["mean_accepted_len"], row.get("standard_error", 0.0)
    return Bar(row["name"], length, length - error, length + error)
