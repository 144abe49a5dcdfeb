"""Question: how do tokens/s and latency change with 1 to 64 concurrent branches?

All branches are submitted at once. One row is an engine with three drafts (``fcfs-batch``). The other is plain decoding
of the same batch (``ar-batch``: target alone, batched rounds), which speculation must beat when the target is busy
anyway. Latency is the time from submission to a branch's last token: median and longest. The time to the first token is
a mean. Decoding is greedy and ignores EOS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seedmp.benchmarks.harness import Group, Plan, Row
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.subjects import Encoder, continue_all, engine_subject, greedy_texts
from seedmp.benchmarks.svg import Figure, Series, line_chart
from seedmp.benchmarks.tables import ACCEPTANCE, NAME, RATE, SAME_TEXT, SPEEDUP, Column, Table, table
from seedmp.benchmarks.workloads import question_ids, questions
from seedmp.sampling import SamplingParams

ROWS: dict[str, dict[str, Any]] = {
    "ar-batch": {"method": "ar", "policy": "fcfs-batch"},
    "fcfs-batch": {"method": "mcsd", "k_config": (1, 1, 1), "policy": "fcfs-batch"},
}
KV_SLOTS = 16384  # 64 branches of 256 tokens
SHOWS = (
    "Where more branches stop adding tokens/s, what they cost each branch in waiting, and up to which load drafting "
    "pays at all: speculation fills idle arithmetic, and a large batch leaves none.",
)
SHOWS_NOT = ("Arrival over time: all branches come at once, so the latency at n is that of a full queue.",)


def plan(options: Options) -> Plan:
    """Each number of branches is a group."""
    counts = options.pick((1, 2, 4, 8, 16, 32, 64), (1, 4, 16), (1, 4))
    max_tokens = options.pick(64, 16, 6)
    texts = questions(options, max(counts))
    encoder = Encoder(options)
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=options.seed)

    def row(name: str, n: int) -> Row:
        subject = engine_subject(options, num_drafts=3, kv_slots=KV_SLOTS, **ROWS[name])
        prompts = question_ids(encoder, texts[:n])
        return Row(
            name, subject, lambda engine, repeat: continue_all(engine, prompts, params),
            lambda engine: greedy_texts(engine, prompts, max_tokens),
        )  # fmt: skip

    names = options.pick(tuple(ROWS), tuple(ROWS), ("fcfs-batch",))
    groups = [Group(f"n={n}", [row(name, n) for name in names], names[0], {"n": n}) for n in counts]
    return Plan("scale", groups, {"max_tokens": max_tokens, "drafts": 3, "kv_slots": KV_SLOTS})


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Speed and latency."""
    columns = [
        Column("branches", "n"), NAME, RATE, SPEEDUP, Column("first token s", "first_token_s", ".2f"),
        Column("latency s", "latency_s", ".2f"), Column("longest s", "latency_max_s", ".2f"), ACCEPTANCE,
        Column("verify ms", "verify_ms", ".1f"), Column("queue ms", "queue_wait_ms", ".1f"), SAME_TEXT,
    ]  # fmt: skip
    return [table("scale", "Concurrent branches: speed-up over the target alone", report["rows"], columns)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Speed and latency against the number of branches."""
    speed: dict[str, Series] = {}
    latency: dict[str, Series] = {}
    for row in report["rows"]:
        if "tokens_per_s" in row:
            name = row["name"]
            speed.setdefault(name, Series(name)).add(
                row["n"], row["tokens_per_s"], row["tokens_per_s_min"], row["tokens_per_s_max"]
            )
            latency.setdefault(name, Series(name)).add(row["n"], row["latency_s"])
    if not speed:
        return []
    return [
        line_chart(
            "scale", "Tokens/s of concurrent branches", "branches", "tokens/s", list(speed.values()), log_x=True
        ),
        line_chart("scale-latency", "Median latency of a branch", "branches", "s", list(latency.values()), log_x=True),
    ]
