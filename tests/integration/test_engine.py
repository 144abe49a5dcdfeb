"""The engine on the bundled pair, in real processes: what requests get, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from seedmp import AsyncEngine, Engine, RequestOutput, SamplingParams, metrics
from seedmp.draft_order import DraftOrder
from seedmp.errors import (
    CancelledError,
    ConfigError,
    EngineClosedError,
    RejectedError,
    RequestError,
    RequestTimeoutError,
)
from seedmp.ids import WorkerName
from seedmp.ipc.messages import (
    PROTOCOL_VERSION,
    DraftHello,
    DraftTask,
    DraftWelcome,
    Proposal,
    Shutdown,
)
from seedmp.models import pair
from seedmp.token_tree.tree import ProposalKind
from seedmp.trace import Span
from seedmp.workers.draft import DraftServer
from tests.helpers.models import make_pair

CHECKOUT = Path(__file__).resolve().parents[2]
APPLES = "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:"
PENS = "Question: A pen costs 2 dollars. How much do 5 pens cost?\nAnswer:"
MATES = [f"Question: There are {i} birds and {i + 2} fish. How many animals?\nAnswer:" for i in range(4)]
GREEDY = SamplingParams(temperature=0.0, max_tokens=40, seed=0, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, max_tokens=32, seed=1234, ignore_eos=True)
KV_SLOTS = 700
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Three drafts, the paper's policy."""
    with Engine(num_drafts=3, policy="fcfs", kv_slots=KV_SLOTS, target_threads=1, validate=True) as started:
        yield started


@pytest.fixture(scope="module")
def single() -> Iterator[Engine]:
    """One draft, batched verification, whose forwards take two trees at most."""
    with Engine(num_drafts=1, kv_slots=KV_SLOTS, max_forward_tokens=24, target_threads=1) as started:
        yield started


def one(engine: Engine, prompt: str, params: SamplingParams) -> RequestOutput:
    (output,) = engine.generate(prompt, params, timeout=TIMEOUT_S)
    return output


# --- seeds ----------------------------------------------------------------------------------------


def test_a_seed_gives_one_text_whatever_the_batch_mates(engine: Engine) -> None:
    alone = one(engine, APPLES, SAMPLED)
    handles = [engine.submit(mate, SAMPLED) for mate in MATES]
    crowded = one(engine, APPLES, SAMPLED)
    mates = [handle.result(TIMEOUT_S) for handle in handles]
    assert crowded.token_ids == alone.token_ids
    assert len({output.token_ids for output in [alone, *mates]}) == 5
    other = one(engine, APPLES, SamplingParams(temperature=0.8, max_tokens=32, seed=1235, ignore_eos=True))
    assert other.token_ids != alone.token_ids


def test_a_seed_gives_one_text_whatever_the_workers_and_the_policy(engine: Engine, single: Engine) -> None:
    ours = engine.generate([APPLES, *MATES], SAMPLED, timeout=TIMEOUT_S)
    theirs = single.generate([APPLES, *MATES], SAMPLED, timeout=TIMEOUT_S)
    assert [output.token_ids for output in ours] == [output.token_ids for output in theirs]


def test_the_output_names_the_seed_that_was_drawn(engine: Engine) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=16, ignore_eos=True)
    drawn = one(engine, PENS, params)
    again = one(engine, PENS, SamplingParams(temperature=1.0, max_tokens=16, seed=drawn.seed, ignore_eos=True))
    assert again.token_ids == drawn.token_ids
    assert one(engine, PENS, params).seed != drawn.seed


# --- where a text ends ------------------------------------------------------------------------------


def test_exact_max_tokens(engine: Engine) -> None:
    """The last round's tree may reach further than is allowed."""
    full = one(engine, APPLES, GREEDY).token_ids
    for max_tokens in (1, 2, 3, 5, 8, 13):
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=0, ignore_eos=True)
        output = one(engine, APPLES, params)
        assert output.token_ids == full[:max_tokens]
        assert output.finish_reason == "length"


def test_a_stop_token_anywhere_in_an_accepted_run(engine: Engine) -> None:
    full = one(engine, APPLES, GREEDY)
    assert full.metrics.accepted > full.metrics.rounds  # runs of several tokens occur
    for token_id in dict.fromkeys(full.token_ids):
        params = SamplingParams(temperature=0.0, max_tokens=40, seed=0, ignore_eos=True, stop_token_ids=(token_id,))
        output = one(engine, APPLES, params)
        assert output.token_ids == full.token_ids[: full.token_ids.index(token_id) + 1]
        assert output.finish_reason == "stop"


def test_eos_ends_a_text(engine: Engine) -> None:
    assert engine.tokenizer is not None
    eos = engine.tokenizer.eos_token_id
    params = SamplingParams(temperature=0.0, max_tokens=200, seed=0)
    output = one(engine, APPLES, params)
    assert output.finish_reason == "stop"
    assert output.token_ids.index(eos) == len(output.token_ids) - 1
    assert "<eos>" not in output.text
    longer = one(engine, APPLES, SamplingParams(temperature=0.0, max_tokens=60, seed=0, ignore_eos=True))
    assert longer.token_ids[: len(output.token_ids)] == output.token_ids
    assert len(longer.token_ids) == 60


def test_stop_strings_across_token_boundaries(engine: Engine) -> None:
    full = one(engine, APPLES, GREEDY)
    pieces = [engine.decode([token_id]) for token_id in full.token_ids]
    checked = 0
    for first, second in itertools.pairwise(pieces[3:13]):
        stop = first[-2:] + second[:2]
        params = SamplingParams(temperature=0.0, max_tokens=40, seed=0, ignore_eos=True, stop=(stop, "never"))
        output = one(engine, APPLES, params)
        assert output.text == full.text[: full.text.index(stop)]
        assert output.finish_reason == "stop"
        num_kept = len(output.token_ids)
        assert output.token_ids == full.token_ids[:num_kept]
        assert stop in engine.decode(full.token_ids[:num_kept])
        assert stop not in engine.decode(full.token_ids[: num_kept - 1])
        checked += stop not in pieces
    assert checked > 3


# --- sharing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["engine", "single"])
def test_a_prompt_is_prefilled_once_for_all_its_continuations(name: str, request: pytest.FixtureRequest) -> None:
    used: Engine = request.getfixturevalue(name)
    prompt = f"Question: In the {name} house live 12 cats, 5 dogs and 31 mice. How many legs are that?\nAnswer:"
    before = used.stats()
    params = SamplingParams(temperature=1.0, max_tokens=12, seed=5, n=3, ignore_eos=True)
    outputs = used.generate(prompt, params, timeout=TIMEOUT_S)
    after = used.stats()
    prompt_len = len(outputs[0].prompt_token_ids)
    assert prompt_len > 20
    assert [output.index for output in outputs] == [0, 1, 2]
    assert len({output.token_ids for output in outputs}) == 3
    # All but the last token and the <bos> that earlier prompts left there.
    for arena in ("target", "draft"):
        of_requests = sum(getattr(output.metrics, f"{arena}_prefill_tokens") for output in outputs)
        counted = after[f"{arena}_prefill_tokens"] - before[f"{arena}_prefill_tokens"]
        assert of_requests == counted
        assert prompt_len - 6 <= counted <= prompt_len - 1, arena


def test_nothing_stays_leased(engine: Engine) -> None:
    one(engine, APPLES, GREEDY)
    stats = engine.stats()
    assert stats["target_slots_leased"] == stats["draft_slots_leased"] == 0
    assert stats["active_branches"] == stats["queue_len"] == 0
    assert stats["stale_proposals"] == stats["malformed_messages"] == 0


def test_more_branches_than_drafts(engine: Engine) -> None:
    prompts = [f"Question: What is {i} plus {i}?\nAnswer:" for i in range(10)]
    together = engine.generate(prompts, GREEDY, timeout=TIMEOUT_S)
    for index in (0, 5, 9):
        assert one(engine, prompts[index], GREEDY).token_ids == together[index].token_ids
    assert all(len(output.token_ids) == 40 for output in together)


# --- handles ----------------------------------------------------------------------------------------


def long_params(seed: int = 1) -> SamplingParams:
    return SamplingParams(temperature=0.9, max_tokens=600, seed=seed, ignore_eos=True)


def test_cancel(engine: Engine) -> None:
    handle = engine.submit(APPLES, long_params())
    next(iter(handle))  # it runs
    handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(TIMEOUT_S)
    handle.cancel()
    assert handle.done()
    assert one(engine, APPLES, GREEDY).token_ids
    assert engine.stats()["active_branches"] == 0


def test_timeout(engine: Engine) -> None:
    handle = engine.submit(APPLES, long_params())
    with pytest.raises(RequestTimeoutError, match=r"0\.05 s"):
        handle.result(0.05)
    with pytest.raises(RequestTimeoutError):
        engine.generate([APPLES, PENS], long_params(), timeout=0.05)
    with pytest.raises(CancelledError):  # a time that is over cancels
        handle.result(TIMEOUT_S)


def test_the_chunks_of_a_stream_are_the_text(engine: Engine) -> None:
    for params in (GREEDY, SAMPLED, SamplingParams(temperature=0.0, max_tokens=60, seed=0, stop=("apples.",))):
        expected = one(engine, APPLES, params)
        chunks = list(engine.stream(APPLES, params))
        assert "".join(chunk.text for chunk in chunks) == expected.text
        assert sum((chunk.token_ids for chunk in chunks), ()) == expected.token_ids
        assert len(chunks) > 3


def test_leaving_a_stream_cancels_it(engine: Engine) -> None:
    stream = engine.stream(APPLES, long_params())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    handle = engine.submit(PENS, GREEDY)  # behind the cancellation
    handle.result(TIMEOUT_S)
    assert engine.stats()["active_branches"] == 0


def test_async_engine(engine: Engine) -> None:
    async def use() -> tuple[list[RequestOutput], str]:
        wrapped = AsyncEngine(engine)
        outputs, chunks = await asyncio.gather(wrapped.generate([APPLES, PENS], GREEDY), collect(wrapped))
        return outputs, chunks

    async def collect(wrapped: AsyncEngine) -> str:
        return "".join([chunk.text async for chunk in wrapped.stream(MATES[0], GREEDY)])

    async def reject(wrapped: AsyncEngine) -> None:
        await wrapped.generate([()], GREEDY)

    outputs, streamed = asyncio.run(use())
    expected = engine.generate([APPLES, PENS, MATES[0]], GREEDY, timeout=TIMEOUT_S)
    assert [o.token_ids for o in outputs] == [o.token_ids for o in expected[:2]]
    assert streamed == expected[2].text
    with pytest.raises(RejectedError):
        asyncio.run(reject(AsyncEngine(engine)))


# --- scoring and forking ------------------------------------------------------------------------------


def test_scores_are_those_of_a_plain_forward(engine: Engine) -> None:
    prompt_ids = engine.encode(APPLES, special=True)
    texts = [engine.encode(text) for text in (" sure", " impossible to say\n", " 7")]
    model = AutoModelForCausalLM.from_pretrained(pair.TARGET, dtype=torch.float32).eval()
    scored = engine.score_ids(prompt_ids, texts, timeout=TIMEOUT_S)
    for ids, logprobs in zip(texts, scored, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt_ids, *ids]])).logits[0, len(prompt_ids) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].numpy()
        np.testing.assert_allclose(logprobs, expected, atol=1e-3)
    branch = engine.open(APPLES)
    assert branch.score([" sure"], timeout=TIMEOUT_S)[0] == pytest.approx(float(scored[0].sum()), abs=1e-3)


def test_fork(engine: Engine) -> None:
    root = engine.open(APPLES)
    params = SamplingParams(temperature=0.9, max_tokens=10, seed=9, ignore_eos=True)
    thoughts = root.fork(3, params, timeout=TIMEOUT_S)
    assert len({thought.token_ids for thought in thoughts}) == 3
    for thought in thoughts:
        assert thought.token_ids[: len(root.token_ids)] == root.token_ids
        assert len(thought.token_ids) == len(root.token_ids) + 10
        assert engine.decode(thought.token_ids[len(root.token_ids) :]) == thought.text
    (grandchild,) = thoughts[1].fork(1, GREEDY, timeout=TIMEOUT_S)
    (plain,) = engine.generate([thoughts[1].token_ids], GREEDY, timeout=TIMEOUT_S)
    assert grandchild.token_ids == thoughts[1].token_ids + plain.token_ids
    appended = root.append(" He has 7")
    assert appended.token_ids == root.token_ids + engine.encode(" He has 7")


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "/no/such/model", "draft": str(pair.DRAFT)}, r"'/no/such/model'.*allowed is a folder"),
        ({"k_config": (2, 0)}, r"k_config=\(2, 0\).*>= 1"),
        ({"k_config": (8, 8, 8)}, r"k_config=\(8, 8, 8\).*too many nodes.*512"),
        ({"k_config": (65,)}, r"k_config=\(65,\).*draft_top_m=64"),
        ({"num_drafts": 0}, r"num_drafts=0.*from 1 to 64"),
        ({"method": "magic"}, r"method='magic'.*ar, sd, mcsd"),
        ({"policy": "lifo"}, r"policy='lifo'.*fcfs, fcfs-batch"),
        ({"kv_slot": 5}, r"unknown setting 'kv_slot'.*kv_slots"),
        ({"target": str(pair.TARGET)}, r"no draft for target"),
        ({"placement": "cuda:77"}, r"no device 'cuda:77' here.*cpu"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Engine(**settings)  # type: ignore[arg-type]


def test_vocabularies_that_differ(tmp_path: Path) -> None:
    target, _ = make_pair("llama", tmp_path)
    with pytest.raises(ConfigError, match=r"vocab_size 96 .* 4096"):
        Engine(target, pair.DRAFT)


@pytest.mark.parametrize(
    ("prompt", "params", "message"),
    [
        ("", {}, r"the prompt is empty.*at least one token"),
        ((), {}, r"the prompt is empty.*at least one token"),
        ((5,) * 690, {}, r"prompt of 690 tokens.*kv_slots is 700"),
        ((5,) * 2000, {}, r"2000 tokens.*allow 1024"),
        ((5, 4096), {}, r"token id 4096.*\[0, 4096\)"),
        ((-1,), {}, r"token id -1; must be a list of token ids, each a whole number from 0"),
        ((1.5, 2), {}, r"prompt=\(1\.5, 2\): must be a list of token ids, .*, not 1\.5"),
        (7, {}, r"prompt=7: must be a prompt: text, or a list of token ids"),
        (APPLES, {"temperature": -0.1}, r"temperature=-0\.1.*>= 0"),
        (APPLES, {"temperature": float("nan")}, r"temperature=nan.*finite"),
        (APPLES, {"draft_temperature": -2}, r"draft_temperature=-2.*>= 0"),
        (APPLES, {"top_p": 0}, r"top_p=0.*\(0, 1\]"),
        (APPLES, {"max_tokens": 0}, r"max_tokens=0.*>= 1"),
        (APPLES, {"seed": -1}, r"seed=-1"),
        (APPLES, {"stop": ("",)}, r"stop=.*non-empty"),
    ],
)
def test_bad_requests(engine: Engine, prompt: object, params: dict[str, object], message: str) -> None:
    with pytest.raises(RejectedError, match=message) as caught:
        engine.submit(prompt, SamplingParams(**params)).result(TIMEOUT_S)  # type: ignore[arg-type]
    assert isinstance(caught.value, RequestError) and isinstance(caught.value, ValueError)
    assert one(engine, PENS, SamplingParams(temperature=0.0, max_tokens=2)).token_ids


def test_bad_texts_to_score(engine: Engine) -> None:
    for texts in ([], [(5,), ()]):
        with pytest.raises(RejectedError, match="at least one token"):
            engine.score_ids((1, 2), texts, timeout=TIMEOUT_S)
    with pytest.raises(RejectedError, match="token id 9999"):
        engine.score_ids((1, 2), [(9999,)], timeout=TIMEOUT_S)
    with pytest.raises(RejectedError, match="empty"):
        engine.score_ids((), [(5,)], timeout=TIMEOUT_S)


# --- joining ------------------------------------------------------------------------------------------


class ScriptedChannel:
    """A link on which everything has arrived before the worker looks."""

    bytes_in = bytes_out = 0

    def __init__(self, *batches: list[object]) -> None:
        self.batches = list(batches)
        self.sent: list[object] = []

    def poll(self, timeout_ms: int) -> bool:
        assert self.batches, "the worker waits for what it has already been sent"
        return True

    def receive_all(self) -> list[object]:
        return self.batches.pop(0) if self.batches else []

    def send(self, msg: object) -> None:
        self.sent.append(msg)

    def close(self) -> None:
        pass


def test_a_task_right_behind_the_welcome_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that replaces another is sent a task at once; both may be there when it looks."""
    empty = np.zeros(0, dtype="<i4")
    order = DraftOrder(3, 0, 0, 1, 0, 0, (1, 0), ProposalKind.DETERMINISTIC, 0.0, False, empty, (5,), empty)
    channel = ScriptedChannel([DraftWelcome(), DraftTask(order)], [Shutdown()])
    monkeypatch.setattr("seedmp.workers.draft.DealerChannel", lambda *args: channel)
    server = DraftServer(tmp_path, WorkerName(0, 3), 1, 0, "layout", b"secret")
    drafted: list[DraftOrder] = []

    class Drafter:
        def draft(self, tasks: list[DraftOrder], on_context: object) -> list[Proposal]:
            drafted.extend(tasks)
            return []

    server.welcome(5.0, lambda: None)
    server.serve(Drafter(), lambda: None)
    assert channel.sent == [DraftHello(3, 1, PROTOCOL_VERSION, "layout")]
    assert drafted == [order]


# --- scripts ------------------------------------------------------------------------------------------


def test_a_script_without_main_guard() -> None:
    script = (
        "from seedmp import Engine, SamplingParams\n"
        "engine = Engine(num_drafts=1, target_threads=1)\n"
        "out = engine.generate([(1, 398, 28)], SamplingParams(temperature=0, max_tokens=3, seed=0))\n"
        "print(len(out[0].token_ids))\n"
        "print(engine.folder)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    num_tokens, folder = done.stdout.split()
    assert num_tokens == "3"
    assert not Path(folder).exists()  # it ended without close()


# --- the schedule -----------------------------------------------------------------------------------


@pytest.mark.alone
def test_drafting_and_verifying_overlap(engine: Engine) -> None:
    engine.spans(reset=True)
    engine.generate([APPLES, PENS, *MATES], GREEDY, timeout=TIMEOUT_S)
    spans = engine.spans(reset=True)
    assert {span.kind for span in spans} == {"draft", "queue", "verify"}
    assert metrics.overlap_s(spans) > 0
    assert {span.worker_id for span in spans if span.kind == "draft"} == {0, 1, 2}
    assert all(span.start_ns <= span.end_ns for span in spans)
    assert engine.spans() == []


MAX_TRANSIT_NS = 10_000_000  # from a draft's stamp to the verifier's queue, on a busy machine


def count_overtaken(spans: list[Span]) -> int:
    """Verified proposals that had waited behind a later one although both were in the queue."""
    queued = sorted((span for span in spans if span.kind == "queue"), key=lambda span: span.end_ns)
    return sum(
        any(
            later.end_ns > span.end_ns and later.start_ns < span.start_ns
            and later.start_ns + MAX_TRANSIT_NS < span.end_ns
            for later in queued
        )
        for span in queued
    )  # fmt: skip


@pytest.mark.alone
def test_first_come_first_served() -> None:
    """A target much slower than the drafts: all three branches are nearly always waiting for it."""
    with Engine(num_drafts=3, policy="fcfs", target_shape="134m", target_threads=1, k_config=(1,)) as engine:
        prompts = [engine.encode(APPLES, special=True)[:12]] * 3
        engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=1, seed=0))
        engine.spans(reset=True)
        params = SamplingParams(temperature=0.0, max_tokens=24, seed=0, ignore_eos=True)
        outputs = engine.generate(prompts, params, timeout=TIMEOUT_S)
        assert len({output.token_ids for output in outputs}) == 1
        spans = engine.spans()
    queued = sorted((span for span in spans if span.kind == "queue"), key=lambda span: span.end_ns)
    served = dict.fromkeys(sorted({span.branch_id for span in queued}), 0)
    assert len(served) == 3
    for span in queued:
        served[span.branch_id] += 1
        if max(served.values()) < outputs[0].metrics.rounds:
            assert max(served.values()) - min(served.values()) <= 1, served
    assert len(queued) == sum(output.metrics.rounds for output in outputs) > 20
    assert count_overtaken(spans) == 0
    reversed_order = [
        Span("queue", -1, span.branch_id, other.start_ns, span.end_ns)
        for span, other in zip(queued, reversed(queued), strict=True)
    ]
    assert count_overtaken(reversed_order) > 0  # the measure would notice
    assert metrics.overlap_s(spans) > 0


# --- ending (last: it needs an engine of its own) -------------------------------------------------------


def test_close_ends_what_is_running() -> None:
    engine = Engine(num_drafts=1, target_threads=1)
    handle = engine.submit(APPLES, long_params())
    next(iter(handle))
    engine.close()
    with pytest.raises(EngineClosedError):
        handle.result(TIMEOUT_S)
    with pytest.raises(EngineClosedError):
        engine.submit(APPLES, GREEDY)
    engine.close()
    assert not engine.folder.exists()
