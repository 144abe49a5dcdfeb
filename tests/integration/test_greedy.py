"""Greedy text is the text of transformers' ``generate``, token for token, whatever was scheduled how."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from seedmp import Engine, SamplingParams
from seedmp.config import Schedule
from seedmp.errors import InternalError
from seedmp.metrics import RequestCounters
from seedmp.models.branch_attention import Attention, Reach, layer_reaches
from seedmp.scheduler.actions import SendDraftTask
from tests.helpers.local_loop import LocalLoop, Models
from tests.helpers.models import ARCHITECTURES, VOCAB_SIZE, WINDOW

MAX_TOKENS = 12
MAX_FORWARD_TOKENS = 16  # below most prompts: they are prefilled in chunks
LENGTHS = (5, 19, 37)
CHAIN, TREE = (1, 1, 1), (2, 2, 1)
# Trees are sampled at draft temperature 1, chains take the draft's top token: all kinds of proposals occur.
DRAFT_TEMPERATURES = {CHAIN: None, TREE: 1.0}
POLICIES = ("fcfs", "fcfs-batch")
WINDOWED = ("mistral", "qwen2", "gemma2", "gemma3")


def make_prompts() -> list[list[int]]:
    """Prompts of several lengths, two of them equal."""
    rng = random.Random(11)
    prompts = [[rng.randrange(2, VOCAB_SIZE) for _ in range(length)] for length in LENGTHS]
    return [*prompts, list(prompts[1])]


PROMPTS = make_prompts()


@dataclass(frozen=True)
class Case:
    """An architecture's models, and what ``generate`` says to each prompt."""

    name: str
    paths: tuple[Path, Path]
    models: Models
    expected: list[list[int]]


@pytest.fixture(scope="module")
def get_case(tiny_pair: Callable[[str], tuple[Path, Path]]) -> Callable[[str], Case]:
    cases: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in cases:
            models = Models.load(*tiny_pair(name))
            cases[name] = Case(name, tiny_pair(name), models, [reference(models, p) for p in PROMPTS])
        return cases[name]

    return get


def reference(models: Models, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    output = models.target.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MAX_TOKENS, pad_token_id=0
    )
    new: list[int] = output[0, len(prompt) :].tolist()
    return new


def greedy(draft_temperature: float | None = None) -> SamplingParams:
    return SamplingParams(
        temperature=0.0, draft_temperature=draft_temperature, max_tokens=MAX_TOKENS, seed=3, ignore_eos=True
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plain_decoding_is_generate(name: str, get_case: Callable[[str], Case]) -> None:
    case = get_case(name)
    for schedule in (Schedule.SERIAL, Schedule.SCHEDULED):
        for policy in POLICIES:
            loop = LocalLoop(
                case.models, method="ar", schedule=schedule, policy=policy, kv_slots=512,
                max_forward_tokens=MAX_FORWARD_TOKENS,
            )  # fmt: skip
            outcomes = loop.run(PROMPTS, greedy())
            assert [outcome.token_ids for outcome in outcomes] == case.expected, (schedule, policy)
            assert {outcome.reason for outcome in outcomes} == {"length"}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("method", ["sd", "mcsd"])
def test_drafting_changes_no_token(name: str, method: str, get_case: Callable[[str], Case]) -> None:
    case = get_case(name)
    for schedule in (Schedule.SERIAL, Schedule.SCHEDULED):
        for policy in POLICIES:
            for k_config in (TREE, CHAIN):
                loop = LocalLoop(
                    case.models, method=method, schedule=schedule, policy=policy, k_config=k_config,
                    kv_slots=512, max_forward_tokens=MAX_FORWARD_TOKENS,
                )  # fmt: skip
                outcomes = loop.run(PROMPTS, greedy(DRAFT_TEMPERATURES[k_config]))
                setting = (schedule, policy, k_config)
                assert [outcome.token_ids for outcome in outcomes] == case.expected, setting
                assert_some_accepted([outcome.counters for outcome in outcomes])
                many = schedule is Schedule.SCHEDULED and policy == "fcfs-batch"
                assert (loop.max_segments > 1) >= (many and k_config is CHAIN), setting


# Each method with the trees that only it has; draft temperature 1 and the target's 0.
METHODS: dict[str, dict[str, Any]] = {
    "specinfer-expansion": {"method": "specinfer", "k_config": (3, 2, 1)},
    "specinfer-chains": {"method": "specinfer", "growmap": "3x4"},
    "sequoia": {"method": "sequoia", "growmap": (3, 2, 1, 0, 2, 0, 1, 0, 0, 0)},
    "opt-tree": {"method": "opt-tree", "nodes": 10, "max_depth": 4, "threshold": 0.1},
    "ngram": {"method": "ngram"},
    "coupled": {"method": "coupled", "growmap": "3x3"},
}


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_every_method_is_generate(name: str, settings: dict[str, Any], get_case: Callable[[str], Case]) -> None:
    case = get_case(name)
    for schedule, policy, draft_temperature in (
        (Schedule.SCHEDULED, "fcfs-batch", 1.0),
        (Schedule.SCHEDULED, "fcfs", None),
        (Schedule.SERIAL, "fcfs-batch", 1.0),
    ):
        loop = LocalLoop(
            case.models, schedule=schedule, policy=policy, kv_slots=1024, max_forward_tokens=32, **settings
        )
        outcomes = loop.run(PROMPTS, greedy(draft_temperature))
        assert [outcome.token_ids for outcome in outcomes] == case.expected, (schedule, policy, draft_temperature)
        counters = [outcome.counters for outcome in outcomes]
        if settings["method"] != "ngram":  # what it finds in random prompts is up to chance
            assert_some_accepted(counters)
        assert sum(c.drafted for c in counters) > 0
        many = schedule is Schedule.SCHEDULED and policy == "fcfs-batch"
        assert (loop.max_segments > 1) >= many


@pytest.mark.parametrize("policy", ["priority", "fair", "tests.helpers.policies:AnyOrder"])
@pytest.mark.parametrize("name", ["specinfer-chains", "opt-tree"])
def test_who_is_served_first_changes_no_text(name: str, policy: str, get_case: Callable[[str], Case]) -> None:
    case = get_case("llama")
    for kv_slots in (1024, 256):
        loop = LocalLoop(case.models, policy=policy, kv_slots=kv_slots, max_forward_tokens=32, **METHODS[name])
        outcomes = loop.run(PROMPTS, greedy(1.0))
        assert [outcome.token_ids for outcome in outcomes] == case.expected, kv_slots


class RecordingLoop(LocalLoop):
    """Remembers how many committed tokens had no draft KV, for tasks after a branch's first."""

    def send_draft_task(self, order: SendDraftTask) -> None:
        if order.draft.round:
            self.num_pending = [*getattr(self, "num_pending", ()), len(order.draft.pending_ids)]
        super().send_draft_task(order)


@pytest.mark.parametrize("name", ["specinfer-chains", "sequoia", "opt-tree", "coupled"])
def test_accepted_tokens_are_not_drafted_again(name: str, get_case: Callable[[str], Case]) -> None:
    """With a draft that is always right only the leaf and the bonus token of a round lack draft KV."""
    target = get_case("llama").models.target
    loop = RecordingLoop(Models(target, target, VOCAB_SIZE), kv_slots=1024, **METHODS[name])
    outcomes = loop.run(PROMPTS, greedy())
    assert all(outcome.counters.accepted for outcome in outcomes)
    assert set(loop.num_pending) <= {1, 2}  # 1: the equal prompt's branch drafted the leaf meanwhile


def assert_some_accepted(counters: list[RequestCounters]) -> None:
    """Rounds that accept all, or nothing, would prove little."""
    drafted, accepted = sum(c.drafted for c in counters), sum(c.accepted for c in counters)
    assert 0 < accepted < drafted


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("window", [None, WINDOW + 1])
def test_the_window_matters(
    name: str, window: int | None, get_case: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cases above would notice a window that is ignored, or that is one token too wide; so would the layers."""
    case = get_case(name)

    def wrong_reaches(config: Any) -> tuple[Reach | None, ...]:
        assert Reach(WINDOW) in layer_reaches(config)
        wrong = None if window is None else Reach(window)
        return tuple(wrong if right == Reach(WINDOW) else right for right in layer_reaches(config))

    monkeypatch.setattr("seedmp.models.eager.layer_reaches", wrong_reaches)
    loop = LocalLoop(case.models, method="mcsd", kv_slots=512, runner="eager")  # only there do layers ask
    with pytest.raises(InternalError, match=f"asks for a window of {WINDOW} positions"):
        loop.run(PROMPTS, greedy())
    honest = Attention.mask_of
    monkeypatch.setattr(Attention, "mask_of", lambda attention, layer, _: honest(attention, layer, None))
    for runner in ("eager", "auto"):
        outcomes = LocalLoop(case.models, method="mcsd", kv_slots=512, runner=runner).run(PROMPTS, greedy())
        assert [outcome.token_ids for outcome in outcomes] != case.expected


@pytest.mark.timeout(30)
def test_a_small_arena_preempts_and_changes_nothing(get_case: Callable[[str], Case]) -> None:
    case = get_case("llama")
    loop = LocalLoop(case.models, method="mcsd", kv_slots=96, draft_kv_slots=96, max_forward_tokens=MAX_FORWARD_TOKENS)
    outcomes = loop.run(PROMPTS, greedy())
    assert [outcome.token_ids for outcome in outcomes] == case.expected
    assert loop.scheduler.counters["preempted"] + loop.scheduler.forwards.slots.num_evicted > 0


@pytest.mark.parametrize(
    ("name", "method", "schedule", "policy"),
    [
        ("llama", "sd", Schedule.SERIAL, "fcfs"),
        ("llama", "ar", Schedule.SERIAL, "fcfs-batch"),
        ("llama", "sd", Schedule.SCHEDULED, "fcfs"),
        ("llama", "mcsd", Schedule.SCHEDULED, "fcfs-batch"),
        ("llama", "mcsd", Schedule.PARALLEL, "fcfs"),
        ("llama", "sd", Schedule.PARALLEL, "fcfs-batch"),
        ("gemma2", "mcsd", Schedule.SCHEDULED, "fcfs-batch"),
    ],
)
def test_real_processes(
    name: str, method: str, schedule: Schedule, policy: str, get_case: Callable[[str], Case]
) -> None:
    check_engine(get_case(name), method=method, schedule=schedule, policy=policy)


def check_engine(case: Case, **settings: Any) -> None:
    with Engine(
        *case.paths, num_drafts=2, kv_slots=512, max_forward_tokens=MAX_FORWARD_TOKENS, target_threads=1,
        validate=True, **settings,
    ) as engine:  # fmt: skip
        outputs = engine.generate(PROMPTS, greedy(1.0), timeout=60)
        assert [list(output.token_ids) for output in outputs] == case.expected
        assert {output.finish_reason for output in outputs} == {"length"}
        stats = engine.stats()
        assert stats["workers_lost"] == 0
        assert stats["target_slots_leased"] == 0 == stats["draft_slots_leased"]
        if settings["method"] != "ar":
            assert 0 < stats["accepted"] < stats["drafted"]
