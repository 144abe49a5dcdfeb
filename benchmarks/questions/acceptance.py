"""Question: how does the speed-up depend on the draft's quality?

SEED's Figure 5. ``draft_noise`` sets the quality: that share of the draft's law is uniform over its top candidates.
The proposal is drawn from the mixed law, and the rule is given the mixed law, so every point is lossless. Texts are
sampled at temperature 1, so that acceptance changes gradually.
Bounds: let a be the acceptance rate (accepted ÷ drafted), L the depth, d and v the draft and verify times of serial SD,
v1 the time of AR's forward, and n the number of branches. A round gives 1 + a L tokens. So over AR ``fcfs`` reaches at
most (1 + a L) v1 / max(v, (d + v) / n), and ``fcfs-batch`` at most (1 + a L) n v1 / (d + v of the batch).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seedmp.benchmarks.harness import Group, Plan, Row
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.subjects import Encoder, continue_all, engine_subject, greedy_texts
from seedmp.benchmarks.svg import Figure, Series, line_chart
from seedmp.benchmarks.tables import USUAL, Column, Table, table
from seedmp.benchmarks.workloads import question_ids, questions
from seedmp.sampling import SamplingParams

K_CONFIG = (1, 1, 1)
NUM_BRANCHES = 3
SCHEDULES: dict[str, dict[str, Any]] = {
    "serial-sd": {"schedule": "serial"},
    "fcfs": {"policy": "fcfs"},
    "fcfs-batch": {"policy": "fcfs-batch"},
}
SHOWS = (
    "What a better or worse draft is worth here, and how far each schedule is from what its own draft and verify times "
    "would allow.",
)
SHOWS_NOT = (
    "A noisy draft costs what a good one costs; a better real draft is usually larger and slower.",
    "The bounds take the mean times of this run as fixed, and leave out prefill and messages; they are for "
    f"{NUM_BRANCHES} branches.",
)


def plan(options: Options) -> Plan:
    """Each amount of noise is a group with plain decoding in it."""
    noises = options.pick((0.0, 0.2, 0.4, 0.6, 0.8, 0.95), (0.0, 0.5, 0.9), (0.5,))
    names = options.pick(tuple(SCHEDULES), ("serial-sd", "fcfs-batch"), ("fcfs-batch",))
    max_tokens = options.pick(96, 24, 8)
    texts = questions(options, NUM_BRANCHES)
    prompts = question_ids(Encoder(options), texts)
    params = SamplingParams(temperature=1.0, max_tokens=max_tokens, ignore_eos=True, seed=options.seed)

    def row(name: str, noise: float, settings: Mapping[str, Any]) -> Row:
        given = {"draft_noise": noise} if noise else {}
        method = settings.get("method", "mcsd")
        subject = engine_subject(
            options, **{"method": method, "k_config": K_CONFIG, "num_drafts": NUM_BRANCHES, **settings, **given}
        )
        return Row(
            name, subject, lambda engine, repeat: continue_all(engine, prompts, params),
            lambda engine: greedy_texts(engine, prompts, max_tokens),
        )  # fmt: skip

    groups = [
        Group(
            f"noise={noise}",
            [
                row("serial-ar", 0.0, {"method": "ar", "schedule": "serial"}),
                *(row(name, noise, SCHEDULES[name]) for name in names),
            ],
            "serial-ar", {"draft_noise": noise},
        )
        for noise in noises
    ]  # fmt: skip
    settings = {"max_tokens": max_tokens, "k_config": K_CONFIG, "temperature": 1.0, "branches": NUM_BRANCHES}
    return Plan("acceptance", groups, settings, _bounds)


def _bounds(rows: Any) -> dict[str, Any]:
    """The two bounds as straight lines over the acceptance rate: their values at 0 and at 1."""
    ran = [row for row in rows if "tokens_per_s" in row]
    times = {
        name: sum(row[key] for row in ran if row["name"] == who) / max(1, sum(row["name"] == who for row in ran))
        for name, who, key in (
            ("ar_ms", "serial-ar", "verify_ms"), ("verify_ms", "serial-sd", "verify_ms"),
            ("draft_ms", "serial-sd", "draft_round_ms"), ("batch_ms", "fcfs-batch", "verify_ms"),
        )
    }  # fmt: skip
    if not all(times.values()):
        return {"bounds": {}}
    n, depth = NUM_BRANCHES, len(K_CONFIG)
    one = {
        "fcfs": times["ar_ms"] / max(times["verify_ms"], (times["draft_ms"] + times["verify_ms"]) / n),
        "fcfs-batch": n * times["ar_ms"] / (times["draft_ms"] + times["batch_ms"]),
    }
    return {
        "bounds": {name: {"at_0": value, "at_1": value * (1 + depth)} for name, value in one.items()},
        "times": times,
    }


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All points."""
    rows = report["rows"]
    lines = [{"name": name, **bound} for name, bound in report.get("bounds", {}).items()]
    heads = [Column("schedule", "name"), Column("acceptance 0", "at_0", ".2f"), Column("acceptance 1", "at_1", ".2f")]
    return [
        table("acceptance", "Speed-up over serial AR", rows, [Column("noise", "draft_noise"), *USUAL]),
        table("bounds", "Bounds over AR: straight lines between", lines, heads),
    ]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Speed-up against acceptance, with both bounds."""
    series: dict[str, Series] = {}
    for row in report["rows"]:
        if "speedup" in row and row["name"] != "serial-ar":
            series.setdefault(row["name"], Series(row["name"])).add(
                row["acceptance_rate"], row["speedup"], row["speedup_min"], row["speedup_max"]
            )
    for name, bound in report.get("bounds", {}).items():
        line = series.setdefault(f"bound {name}", Series(f"bound of {name}", dashed=True, of=name))
        line.add(0.0, bound["at_0"])
        line.add(1.0, bound["at_1"])
    if not series:
        return []
    return [
        line_chart(
            "acceptance", "Speed-up over AR against acceptance", "acceptance rate", "speed-up", list(series.values())
        )
    ]
