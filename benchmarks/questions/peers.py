"""Question: what else could one use, on the same weights, dtype and cores, in the same run?

Greedy continuation of the same prompts. transformers: ``generate`` (one prompt after another), ``generate-batch``
(one padded batch), ``continuous-batch`` (``generate_batch``), ``assisted`` (assisted generation with our draft,
three tokens a round), ``prompt-lookup``. llama.cpp, with the extra ``peers``, on the same weights written as GGUF:
``llama.cpp`` (one prompt after another) and ``llama.cpp with draft`` (the same, three tokens a round by our draft
through the Python binding's ``draft_model``). Ours: ``ar`` (plain decoding, one prompt after another),
``serial-sd``, ``fcfs``, ``fcfs-batch``. Speed-up is over ``generate``; ``ar`` must not be slower than it, or our
speed-ups would be against a straw man. No row finds KV of an earlier repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from seedmp.benchmarks.harness import Group, Plan, Row
from seedmp.benchmarks.options import Options
from seedmp.benchmarks.peers.llama_cpp import HOW_IT_DRAFTS, llama_cpp_subject
from seedmp.benchmarks.peers.transformers import Peer, peer_subject
from seedmp.benchmarks.questions.schedules import over
from seedmp.benchmarks.subjects import Encoder, continue_all, engine_subject, greedy_texts
from seedmp.benchmarks.summary import Result
from seedmp.benchmarks.svg import Bar, Figure, bar_chart
from seedmp.benchmarks.tables import USUAL, Column, Table, table
from seedmp.benchmarks.workloads import question_ids, questions
from seedmp.config import EngineConfig
from seedmp.sampling import SamplingParams

K_CONFIG = (1, 1, 1)
NUM_BRANCHES = 3
OURS: dict[str, dict[str, Any]] = {
    "ar": {"method": "ar", "schedule": "serial"},
    "serial-sd": {"method": "mcsd", "schedule": "serial"},
    "fcfs": {"method": "mcsd", "policy": "fcfs"},
    "fcfs-batch": {"method": "mcsd", "policy": "fcfs-batch"},
}
THEIRS: dict[str, Callable[..., Result]] = {
    "generate": Peer.one_by_one,
    "generate-batch": Peer.batched,
    "continuous-batch": Peer.continuous,
    "assisted": Peer.assisted,
    "prompt-lookup": Peer.prompt_lookup,
}
SHOWS = (
    "Our plain decoding (`ar`) against transformers' own (`generate`), and what scheduling adds "
    "to what one could have anyway, batching above all.",
)
SHOWS_NOT = (
    "Servers with kernels of their own (vLLM, SGLang, llama.cpp with quantised weights) are other programs on other "
    "weights; they are not here unless a row says so.",
    "`llama.cpp` has kernels of its own, and its Python binding a loop of its own around them: with a draft "
    "it copies the logits of each token that it verifies, which llama.cpp's own programs do not.",
    "`continuous-batch` makes its manager and cache in each call, which short runs do not earn back.",
)


def plan(options: Options) -> Plan:
    """One group."""
    num, max_tokens = options.pick(NUM_BRANCHES, NUM_BRANCHES, 2), options.pick(128, 24, 8)
    texts = questions(options, num)
    prompts = question_ids(Encoder(options), texts)
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, seed=options.seed)
    threads = EngineConfig("-", "-").threads()[0]
    peer = peer_subject(options, threads)

    def ours(name: str) -> Row:
        subject = engine_subject(options, k_config=K_CONFIG, num_drafts=NUM_BRANCHES, **OURS[name])
        return Row(
            name, subject, lambda engine, repeat: continue_all(engine, prompts, params),
            lambda engine: greedy_texts(engine, prompts, max_tokens), {"by": "seedmp"},
        )  # fmt: skip

    def theirs(name: str) -> Row:
        call = THEIRS[name]
        return Row(
            name, peer, lambda started, repeat: call(started, prompts, max_tokens),
            lambda started: call(started, prompts, max_tokens).token_ids, {"by": "transformers"},
        )  # fmt: skip

    def llama_cpp(name: str, with_draft: bool, **settings: str) -> Row:
        subject = llama_cpp_subject(options, threads, max(map(len, prompts)) + max_tokens, with_draft=with_draft)
        return Row(
            name, subject, lambda started, repeat: started.one_by_one(prompts, max_tokens),
            lambda started: started.one_by_one(prompts, max_tokens).token_ids,
            {"by": "llama.cpp", **settings},
        )  # fmt: skip

    our_names = options.pick(tuple(OURS), tuple(OURS), ("ar", "fcfs-batch"))
    rows = [
        *map(theirs, THEIRS), llama_cpp("llama.cpp", False),
        llama_cpp("llama.cpp with draft", True, drafts=HOW_IT_DRAFTS), *map(ours, our_names),
    ]  # fmt: skip
    settings = {"max_tokens": max_tokens, "prompts": num, "k_config": K_CONFIG, "threads": threads}
    return Plan("peers", [Group("greedy", rows, "generate")], settings, _honesty)


def _honesty(rows: Any) -> dict[str, Any]:
    """Our plain decoding ÷ transformers'."""
    ratios = [over(row, rows, "generate") for row in rows if row["name"] == "ar"]
    return {"ar_over_generate": ratios[0] if ratios else None}


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Ours and theirs."""
    rows = report["rows"]
    columns = [
        USUAL[0], Column("by", "by"), *USUAL[1:3],
        Column("x batched", lambda row: over(row, rows, "generate-batch"), ".2f"), *USUAL[3:],
    ]  # fmt: skip
    return [table("peers", "Peers: speed-up over transformers' generate", rows, columns)]


def figures(report: Mapping[str, Any]) -> list[Figure]:
    """Speed of each row."""
    bars = [
        Bar(row["name"], row["tokens_per_s"], row["tokens_per_s_min"], row["tokens_per_s_max"])
        for row in report["rows"] if "tokens_per_s" in row
    ]  # fmt: skip
    return [bar_chart("peers", "Tokens/s, greedy, same prompts", "tokens/s", {"greedy": bars})] if bars else []
