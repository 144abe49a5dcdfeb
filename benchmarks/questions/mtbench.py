"""Question: what do two-turn conversations gain, with the first turn's KV kept for the second?

MT-bench as in EAGLE's and OPT-Tree's evaluations: both turns of each question, greedy. The second turn continues the
first turn's own tokens, so that their KV is found and not computed again. Chat models get their template, others the
plain form ``Question: ... Answer: ...``. ``kept`` is the share of the second turn's context whose KV was found.
Accepted length = 1 + accepted ÷ rounds over both turns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seedmp import metrics
from seedmp.benchmarks.harness import Group, Plan, Row
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.subjects import Encoder, engine_subject
from seedmp.benchmarks.summary import Result
from seedmp.benchmarks.svg import Bar, Figure, bar_chart
from seedmp.benchmarks.tables import USUAL, Column, Table, by_cell, table
from seedmp.benchmarks.workloads import conversations
from seedmp.engine import Engine
from seedmp.errors import ConfigError
from seedmp.measuring.account import account
from seedmp.measuring.engines import TIMEOUT_S, forget_texts
from seedmp.request import RequestOutput
from seedmp.sampling import SamplingParams

MAX_PROMPT_LEN = 400  # of a first turn; longer questions are passed over
METHODS: dict[str, dict[str, Any]] = {
    "ar": {"method": "ar", "schedule": "serial"},
    "mcsd": {"method": "mcsd", "k_config": (1, 1, 1), "schedule": "serial"},
    "opt-tree": {"method": "opt-tree", "nodes": 10, "max_depth": 4, "schedule": "serial"},
    "eagle": {"method": "eagle", "nodes": 10, "max_depth": 4, "schedule": "serial"},
    "ngram": {"method": "ngram", "nodes": 10, "max_depth": 4, "schedule": "serial"},
    "mcsd-batch": {"method": "mcsd", "k_config": (1, 1, 1), "policy": "fcfs-batch", "num_drafts": 3},
}
SHOWS = (
    "Accepted length and speed on questions of many kinds, with the KV of the first turn kept for the second.",
    "`mcsd-batch` serves all conversations at once, the other rows one after another.",
)
SHOWS_NOT = (
    "The quality of answers. The bundled pair is no chat model: it goes on in its own manner, and prompts in the "
    "manner of a chat are not what it was trained on, which lowers acceptance.",
)


def plan(options: Options) -> Plan:
    """One group; all conversations are one job."""
    num = options.pick(6, 2, 1)
    max_tokens = options.pick(96, 16, 8)
    encoder = Encoder(options)
    found = [
        turns
        for turns in conversations(options, None if options.data else num)
        if len(_first(encoder, turns)) <= MAX_PROMPT_LEN
    ]
    if not found:
        raise ConfigError(f"no conversation begins with at most {MAX_PROMPT_LEN} tokens")
    talks = found[:num]
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=options.seed)
    names = options.pick(tuple(METHODS), ("ar", "mcsd", "mcsd-batch"), ("mcsd-batch",))
    rows = [
        Row(
            name, engine_subject(options, **METHODS[name]), lambda engine, repeat: talk(engine, encoder, talks, params),
            lambda engine: talk(engine, encoder, talks, params).token_ids,
        )
        for name in names
    ]  # fmt: skip
    settings = {"max_tokens": max_tokens, "conversations": len(talks), "chat_template": encoder.has_chat}
    return Plan("mtbench", [Group("two turns T=0", rows, names[0])], settings)


def _first(encoder: Encoder, turns: Sequence[str]) -> tuple[int, ...]:
    return encoder.prompt(f"Question: {turns[0]}\nAnswer:", turns[0])


def talk(engine: Engine, encoder: Encoder, talks: Sequence[Sequence[str]], params: SamplingParams) -> Result:
    """Both turns of all conversations."""
    forget_texts(engine)
    first_outputs: list[RequestOutput] = []
    second_outputs: list[RequestOutput] = []
    branch_ids = [engine.new_branch_id() for _ in range(2 * len(talks))]
    prompts: list[tuple[int, ...]] = []
    shared: dict[str, float] = {}

    def turn(prompts: Sequence[tuple[int, ...]], ids: Sequence[int]) -> list[RequestOutput]:
        handles = [
            engine.submit_all(prompt, params, children=[branch_id])[0]
            for prompt, branch_id in zip(prompts, ids, strict=True)
        ]
        return engine.wait_for(handles, TIMEOUT_S)

    def job() -> list[RequestOutput]:
        prompts[:] = [_first(encoder, turns) for turns in talks]
        first_outputs[:] = turn(prompts, branch_ids[: len(talks)])
        shared.update(engine.stats())
        prompts[:] = [
            _second(engine, encoder, turns, prompt, output)
            for turns, prompt, output in zip(talks, prompts, first_outputs, strict=True)
        ]
        second_outputs[:] = turn(prompts, branch_ids[len(talks) :])
        return [*first_outputs, *second_outputs]

    try:
        measured = account(engine, job)
        after = engine.stats()
    finally:
        for branch_id in branch_ids:
            engine.drop_branch(branch_id, free=True)
    found = after["shared_target_tokens"] - shared["shared_target_tokens"]
    computed = after["target_prefill_tokens"] - shared["target_prefill_tokens"]
    return Result.of(measured, kept=metrics.share(found, found + computed))


def _second(
    engine: Engine, encoder: Encoder, turns: Sequence[str], prompt: tuple[int, ...], output: RequestOutput
) -> tuple[int, ...]:
    if encoder.has_chat:
        return encoder.conversation([turns[0], output.text, turns[1]])
    return prompt + engine.tokens_of_text(output) + engine.encode(f"\nQuestion: {turns[1]}\nAnswer:")


def tables(report: Mapping[str, Any]) -> list[Table]:
    """All methods."""
    columns = [*USUAL[:5], Column("kept", "kept", ".2f"), Column("draft ms", "draft_round_ms", ".1f"), USUAL[5]]
    return [table("mtbench", "Two-turn conversations: speed-up over AR", report["rows"], columns)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Speed of each method."""
    bars = {
        cell: [
            Bar(row["name"], row["tokens_per_s"], row["tokens_per_s_min"], row["tokens_per_s_max"])
            for row in rows if "tokens_per_s" in row
        ]
        for cell, rows in by_cell(report["rows"]).items()
    }  # fmt: skip
    return [bar_chart("mtbench", "Tokens/s of two-turn conversations", "tokens/s", bars)] if bars else []
