"""Question: what does SEED's Table 1 look like here: tasks x temperatures x trees x methods?

The workload is the paper's: three thoughts of one root, all from one prompt, then an evaluation of each thought.
tokens/s = kept tokens of thoughts and evaluations ÷ wall time. Tokens of a stop string are thrown away and do not
count. Rows: AR, SD and MCSD, each with one request at a time and scheduled. ``-scheduled`` verifies one proposal at a
time (the paper); ``-batch`` verifies all proposals that wait (ours). The draft's temperature is the target's in every
row. Repeats take turns through the problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from seedmp import metrics
from seedmp.benchmarks import paper
from seedmp.benchmarks.harness import Group, Plan, Row
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.subjects import Encoder, engine_subject
from seedmp.benchmarks.summary import Result, Texts
from seedmp.benchmarks.svg import Bar, Figure, bar_chart
from seedmp.benchmarks.tables import USUAL, Column, Table, by_cell, table
from seedmp.benchmarks.workloads import Root, roots
from seedmp.engine import Engine
from seedmp.errors import ConfigError
from seedmp.measuring.account import account
from seedmp.measuring.engines import TIMEOUT_S
from seedmp.request import RequestHandle, RequestOutput
from seedmp.sampling import SamplingParams
from seedmp.search.asking import Asker
from seedmp.search.task import Ask

NUM_THOUGHTS = 3
SEEDS_PER_ROOT = 1000
METHODS: dict[str, dict[str, Any]] = {
    "ar": {"method": "ar", "schedule": "serial"},
    "sd": {"method": "sd", "schedule": "serial"},
    "sd-scheduled": {"method": "sd", "policy": "fcfs"},
    "sd-batch": {"method": "sd", "policy": "fcfs-batch"},
    "mcsd": {"method": "mcsd", "schedule": "serial"},
    "mcsd-scheduled": {"method": "mcsd", "policy": "fcfs"},
    "mcsd-batch": {"method": "mcsd", "policy": "fcfs-batch"},
}
SHOWS = (
    "The paper's comparison with one code, one draft temperature and shown noise. The column `paper's speed-up` "
    "is what the paper printed for LLaMA-68M and LLaMA2-7B on hardware that it does not name, without spread.",
    "At k = (1, 1, 1) SD and MCSD are one algorithm: what they differ by there is noise.",
)
SHOWS_NOT = (
    "How good the thoughts are: every method draws from the target's own law, so methods cannot differ in that.",
    "The paper's absolute speed: models, hardware, prompts and lengths of text are others. The bundled pair's "
    "evaluations are a few tokens long.",
)


def plan(options: Options) -> Plan:
    """Each (task, temperature, k_config) is a group."""
    if options.data is not None and options.data.is_file():
        raise ConfigError(f"--data {options.data}: table1 reads three data sets; give the folder that has them")
    tasks = options.pick(paper.TASKS, paper.TASKS, ("blocksworld",))
    temperatures = options.pick((0.2, 1.0), (0.2, 1.0), (1.0,))
    trees: tuple[tuple[int, ...], ...] = options.pick(((1, 1, 1), (2, 2, 1)), ((2, 2, 1),), ((2, 2, 1),))
    names = options.pick(tuple(METHODS), [name for name in METHODS if name != "sd-batch"], ("ar", "mcsd-batch"))
    max_tokens = options.pick(100, 8, 6)
    chat = Encoder(options).has_chat
    problems = {task: roots(options, task, options.num_repeats, max_tokens, chat=chat) for task in tasks}
    groups = [
        Group(
            f"{task} T={temperature} k={','.join(map(str, tree))}",
            [_row(options, name, problems[task], temperature, tree) for name in names],
            "ar", {"task": task, "temperature": temperature, "k_config": tree},
        )
        for tree in trees for task in tasks for temperature in temperatures
    ]  # fmt: skip
    settings = {"max_tokens": max_tokens, "thoughts": NUM_THOUGHTS, "draft_temperature": "the target's"}
    return Plan("table1", groups, settings)


def _row(options: Options, name: str, problems: Sequence[Root], temperature: float, tree: tuple[int, ...]) -> Row:
    subject = engine_subject(options, k_config=tree, num_drafts=NUM_THOUGHTS, **METHODS[name])

    def work(engine: Engine, repeat: int) -> Result:
        seed = options.seed + repeat * SEEDS_PER_ROOT
        return grow(engine, problems[repeat % len(problems)], temperature, seed)

    return Row(name, subject, work, lambda engine: grow(engine, problems[0], 0.0, options.seed).token_ids)


def grow(engine: Engine, root: Root, temperature: float, seed: int) -> Result:
    """Three thoughts, then three evaluations."""
    asker = Asker(engine)
    branch_ids: list[int] = []
    outputs: list[RequestOutput] = []

    def start(ask: Ask, seed: int) -> RequestHandle:
        branch_ids.append(engine.new_branch_id())
        params = SamplingParams(
            temperature=temperature, max_tokens=ask.max_tokens, stop=ask.stop, seed=seed, regex=ask.regex,
            choices=ask.choices,
        )  # fmt: skip
        return engine.submit_all(asker.encode(ask.prompt), params, children=branch_ids[-1:])[0]

    def job() -> list[RequestOutput]:
        ask = root.thought()
        thoughts = engine.wait_for([start(ask, seed + number) for number in range(NUM_THOUGHTS)], TIMEOUT_S)
        asks = root.evaluations([thought.text for thought in thoughts])
        values = engine.wait_for(
            [start(ask, seed + NUM_THOUGHTS + number) for number, ask in enumerate(asks)], TIMEOUT_S
        )
        outputs[:] = [*thoughts, *values]
        return outputs

    try:
        measured = account(engine, job)
    finally:
        for branch_id in branch_ids:
            engine.drop_branch(branch_id, free=True)
    kept: Texts = tuple(engine.tokens_of_text(output) for output in outputs)
    num_kept = sum(map(len, kept))
    measured = replace(measured, token_ids=kept, tokens_per_s=metrics.tokens_per_s(num_kept, measured.wall_s))
    return Result.of(measured, thrown_away=float(sum(len(output.token_ids) for output in outputs) - num_kept))


def theirs(row: Mapping[str, Any]) -> float | None:
    """The paper's speed-up for the same cell."""
    return paper.speedup(row["task"], row["temperature"], tuple(row["k_config"]), row["name"])


def tables(report: Mapping[str, Any]) -> list[Table]:
    """One table, as the paper's but long."""
    tree = Column("k", lambda row: ",".join(map(str, row["k_config"])))
    paper_says = Column("paper's speed-up", theirs, ".2f")
    columns = [Column("task", "task"), Column("T", "temperature"), tree, *USUAL[:3], paper_says, *USUAL[3:]]
    return [table("table1", "Table 1: speed-up over AR, ours and the paper's", report["rows"], columns)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Speed-up of each method, cell by cell; the paper's as marks."""
    groups = {}
    for cell, rows in by_cell(report["rows"]).items():
        bars = [
            Bar(row["name"], row["speedup"], row["speedup_min"], row["speedup_max"], theirs(row))
            for row in rows if "speedup" in row and row["name"] != "ar"
        ]  # fmt: skip
        if bars:
            groups[cell] = bars
    title = "Speed-up over AR (dash: the paper's, on its hardware)"
    return [bar_chart("table1", title, "speed-up", groups, baseline=1.0)] if groups else []
