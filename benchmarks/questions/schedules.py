"""Question: what does each schedule make of the same job on the same cores, and what memory does it take?

SEED's Figure 1 with n drafts for n branches: serial AR, serial SD, scheduled one proposal at a time (``fcfs``, the
paper), scheduled in batches (``fcfs-batch``), and n replicas of the target (``parallel``). Decoding is greedy and
ignores EOS. tokens/s = kept tokens ÷ wall time. Memory = sum of the processes' PSS. The bounds follow from the draft
and verify times d and v of serial SD. Over serial SD, ``fcfs`` reaches at most min(1 + d/v, n), and ``fcfs-batch`` at
most n (d + v) / (d + v of the batch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seedmp.benchmarks.harness import Group, Plan, Row
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.subjects import Encoder, continue_all, engine_subject, greedy_texts
from seedmp.benchmarks.svg import Figure, Series, line_chart
from seedmp.benchmarks.tables import (
    ACCEPTANCE,
    NAME,
    RATE,
    SAME_TEXT,
    SPEEDUP,
    Column,
    Table,
    by_cell,
    table,
)
from seedmp.benchmarks.workloads import question_ids, questions
from seedmp.sampling import SamplingParams

K_CONFIG = (1, 1, 1)
ROWS: dict[str, dict[str, Any]] = {
    "serial-ar": {"method": "ar", "schedule": "serial"},
    "serial-sd": {"method": "mcsd", "schedule": "serial"},
    "fcfs": {"method": "mcsd", "policy": "fcfs"},
    "fcfs-batch": {"method": "mcsd", "policy": "fcfs-batch"},
    "parallel": {"method": "mcsd", "schedule": "parallel"},
}
SHOWS = (
    "Whether scheduling pays on this node: compare `fcfs` and `fcfs-batch` with `serial-sd`, and all with `serial-ar`.",
    "What memory `parallel` costs for its speed.",
)
SHOWS_NOT = (
    "Overlap of drafting and verifying needs a core, or a GPU, to spare: with fewer cores than busy processes they "
    "take time from each other.",
    "In 16-bit types a forward of many rows rounds otherwise than one of a single row, so greedy texts may part "
    "where two logits nearly tie; in float32 they are the same.",
)


def plan(options: Options) -> Plan:
    """Each n is a group."""
    counts = options.pick((1, 2, 3, 4, 8), (3,), (2,))
    max_tokens = options.pick(96, 24, 8)
    texts = questions(options, max(counts))
    encoder = Encoder(options)
    names = options.pick(tuple(ROWS), tuple(ROWS), ("serial-ar", "serial-sd", "fcfs-batch"))
    groups = []
    for n in counts:
        prompts = question_ids(encoder, texts[:n])
        rows = [_row(options, name, n, prompts, max_tokens) for name in names]
        groups.append(Group(f"n={n}", rows, "serial-ar", {"n": n}))
    return Plan("schedules", groups, {"max_tokens": max_tokens, "k_config": K_CONFIG}, _bounds)


def _row(options: Options, name: str, n: int, prompts: Sequence[tuple[int, ...]], max_tokens: int) -> Row:
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=options.seed)
    subject = engine_subject(options, k_config=K_CONFIG, num_drafts=n, **ROWS[name])
    return Row(
        name, subject, lambda engine, repeat: continue_all(engine, prompts, params),
        lambda engine: greedy_texts(engine, prompts, max_tokens),
    )  # fmt: skip


def _bounds(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the schedules can reach at most over serial SD, by n."""
    result = {}
    for cell, members in by_cell(rows).items():
        by_name = {row["name"]: row for row in members if "tokens_per_s" in row}
        if {"serial-sd", "fcfs-batch"} <= by_name.keys():
            draft_ms, verify_ms = by_name["serial-sd"]["draft_round_ms"], by_name["serial-sd"]["verify_ms"]
            batch_ms, n = by_name["fcfs-batch"]["verify_ms"], by_name["serial-sd"]["n"]
            result[cell] = {
                "fcfs": min(1 + draft_ms / verify_ms, n) if verify_ms else None,
                "fcfs-batch": n * (draft_ms + verify_ms) / (draft_ms + batch_ms) if batch_ms else None,
            }
    return {"bounds_over_serial_sd": result}


def over(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], base: str) -> float | None:
    """Ratio to another row of the same cell: median of the ratios of the same repeat."""
    other = next((r for r in rows if r["name"] == base and r.get("cell") == row.get("cell")), None)
    if other is None or "repeats" not in row or "repeats" not in other:
        return None
    ratios = sorted(a / b for a, b in zip(row["repeats"], other["repeats"], strict=False))
    return float((ratios[len(ratios) // 2] + ratios[(len(ratios) - 1) // 2]) / 2)


def memory_mib(row: Mapping[str, Any]) -> float | None:
    """Sum over processes."""
    return sum(row["memory_mib"].values()) if row.get("memory_mib") else None


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The schedules, and the memory of their processes."""
    rows = report["rows"]
    n = Column("n", "n")
    main = [
        n, NAME, RATE, SPEEDUP, Column("x serial SD", lambda row: over(row, rows, "serial-sd"), ".2f"), ACCEPTANCE,
        Column("overlap s", "overlap_s", ".2f"), Column("verifier busy", "verifier_busy", ".2f"),
        Column("draft ms", "draft_round_ms", ".1f"), Column("verify ms", "verify_ms", ".1f"),
        Column("wall s", "wall_s", ".2f"), Column("MiB", memory_mib, ".0f"), SAME_TEXT,
    ]  # fmt: skip
    kinds = [("verifier", "verifier"), ("drafts", "draft"), ("supervisor", "supervisor")]
    memory = [n, NAME, *(Column(head, _sum_of(kind), ".0f") for head, kind in kinds), Column("all", memory_mib, ".0f")]
    bounds = [
        {"name": name, "n": cell.removeprefix("n="), "bound": value}
        for cell, values in report.get("bounds_over_serial_sd", {}).items()
        for name, value in values.items()
    ]
    return [
        table("schedules", "Schedules: speed-up over serial AR", rows, main),
        table("memory", "Memory: PSS by kind of process, MiB", rows, memory),
        table("bounds", "Bounds over serial SD, from its own draft and verify times", bounds,
              [n, NAME, Column("at most", "bound", ".2f")]),
    ]  # fmt: skip


def _sum_of(kind: str) -> Any:
    def total(row: Mapping[str, Any]) -> float | None:
        sizes = row.get("memory_mib") or {}
        return sum(size for name, size in sizes.items() if name.startswith(kind)) if sizes else None

    return total


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Speed and memory against n."""
    series: dict[str, Series] = {}
    memory: dict[str, Series] = {}
    for row in report["rows"]:
        if "tokens_per_s" in row and "n" in row:
            series.setdefault(row["name"], Series(row["name"])).add(
                row["n"], row["tokens_per_s"], row["tokens_per_s_min"], row["tokens_per_s_max"]
            )
            if (mib := memory_mib(row)) is not None:
                memory.setdefault(row["name"], Series(row["name"])).add(row["n"], mib)
    if not series:
        return []
    return [
        line_chart("schedules", "Tokens/s of n branches with n drafts", "n", "tokens/s", list(series.values())),
        line_chart("schedules-memory", "Memory, sum of PSS", "n", "MiB", list(memory.values())),
    ]
