"""EAGLE heads of random weights: whatever they propose, the text is the target's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seedmp import Engine, SamplingParams
from seedmp.config import Schedule
from seedmp.drafts.head_model import HeadModel
from seedmp.drafts.tree_drafter import TreeDrafter
from seedmp.models import pair
from seedmp.models.eagle import new_head, save_head
from seedmp.models.load import ModelSpec, load_model
from seedmp.scheduler import events
from seedmp.scheduler.actions import SendDraftTask
from seedmp.scheduler.branches import BranchState
from tests.helpers.heads import make_head
from tests.helpers.local_loop import LocalLoop, Models, Outcome
from tests.helpers.models import VOCAB_SIZE
from tests.integration.test_greedy import MAX_FORWARD_TOKENS, PROMPTS, assert_some_accepted, greedy, reference

# Random heads guess badly: trees are wide, so that something is accepted now and then.
TREES: dict[str, dict[str, Any]] = {
    "eagle-2": {"nodes": 50, "top_k": 24, "max_depth": 3},
    "opt-tree": {"nodes": 40, "threshold": 0.01, "max_depth": 4},
    "chain": {"nodes": 4, "top_k": 1, "max_depth": 4},
}
DRAFT_VOCAB = {"eagle": VOCAB_SIZE, "eagle3": 60}
ROOMY: dict[str, Any] = {"method": "eagle", "kv_slots": 1024, "max_forward_tokens": 192}


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    return {kind: make_head(kind, folder / kind, VOCAB_SIZE, num) for kind, num in DRAFT_VOCAB.items()}


@pytest.fixture(scope="module")
def get_models(
    tiny_pair: Callable[[str], tuple[Path, Path]], heads: dict[str, Path]
) -> Callable[[str, str], tuple[Models, list[list[int]]]]:
    made: dict[tuple[str, str], tuple[Models, list[list[int]]]] = {}

    def get(name: str, kind: str) -> tuple[Models, list[list[int]]]:
        if (name, kind) not in made:
            torch.set_num_threads(1)
            models = Models.with_head(tiny_pair(name)[0], heads[kind])
            made[name, kind] = models, [reference(models, prompt) for prompt in PROMPTS]
        return made[name, kind]

    return get


Get = Callable[[str, str], tuple[Models, list[list[int]]]]


def tokens(outcomes: list[Outcome]) -> list[list[int]]:
    return [outcome.token_ids for outcome in outcomes]


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("kind", DRAFT_VOCAB)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_greedy_text_is_generate(name: str, kind: str, tree: str, get_models: Get) -> None:
    models, expected = get_models(name, kind)
    for schedule, policy in (
        (Schedule.SCHEDULED, "fcfs-batch"),
        (Schedule.SCHEDULED, "fcfs"),
        (Schedule.SERIAL, "fcfs-batch"),
    ):
        loop = LocalLoop(models, schedule=schedule, policy=policy, **ROOMY, **TREES[tree])
        outcomes = loop.run(PROMPTS, greedy())
        assert tokens(outcomes) == expected, (schedule, policy)
        counters = [outcome.counters for outcome in outcomes]
        assert sum(c.drafted for c in counters) > 0
        if tree != "chain":
            assert_some_accepted(counters)


class WatchedLoop(LocalLoop):
    """Checks each task as it is sent."""

    def send_draft_task(self, order: SendDraftTask) -> None:
        draft = order.draft
        branch = self.scheduler.branches[draft.branch_id]
        first = len(draft.context_slots)
        assert first + len(draft.pending_ids) > 0
        wanted = [branch.target_path[i - 1] if i else -1 for i in range(first, len(branch.tokens))]
        assert list(draft.feature_slots) == wanted and branch.tokens[first:] == list(draft.pending_ids)
        self.num_pending = [*getattr(self, "num_pending", ()), (draft.round, len(draft.pending_ids))]
        super().send_draft_task(order)


def test_all_draft_kv_is_of_true_features(get_models: Get) -> None:
    """However much is accepted, its tokens come back as pending ones: with the bonus token."""
    models, expected = get_models("llama", "eagle3")
    loop = WatchedLoop(models, **ROOMY, **TREES["eagle-2"])
    outcomes = loop.run(PROMPTS[:3], greedy())
    assert tokens(outcomes) == expected[:3]
    later = [pending for number, pending in loop.num_pending if number]
    assert sum(outcome.counters.accepted for outcome in outcomes) > 0
    assert max(later) > 1
    # What was accepted in all but the last round of each branch was run again.
    assert sum(later) <= sum(outcome.counters.accepted + outcome.counters.rounds for outcome in outcomes)


def test_a_prompt_of_one_token_is_decoded_until_there_is_a_feature(get_models: Get) -> None:
    models, _ = get_models("llama", "eagle")
    loop = WatchedLoop(models, **ROOMY, **TREES["eagle-2"])
    outcomes = loop.run([[5], [5, 9]], greedy())
    assert tokens(outcomes) == [reference(models, [5]), reference(models, [5, 9])]
    assert all(outcome.counters.drafted for outcome in outcomes)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kv_slots", [72, 88])
def test_a_small_arena_preempts_and_changes_nothing(kv_slots: int, get_models: Get) -> None:
    models, expected = get_models("llama", "eagle3")
    loop = WatchedLoop(
        models, method="eagle", kv_slots=kv_slots, draft_kv_slots=96, max_forward_tokens=MAX_FORWARD_TOKENS,
        nodes=20, top_k=10, max_depth=3,
    )  # fmt: skip
    outcomes = loop.run(PROMPTS, greedy())
    assert tokens(outcomes) == expected
    assert loop.scheduler.counters["preempted"] + loop.scheduler.forwards.slots.num_evicted > 0


class LosingLoop(LocalLoop):
    """Every third task is lost with its worker, some after they announced their context; a new one takes its place."""

    num_tasks = 0

    def _draft(self, worker_id: int, tasks: list[Any]) -> None:
        self.num_tasks += 1
        if self.num_tasks % 3:
            super()._draft(worker_id, tasks)
            return
        for task in tasks:
            if task.announce:
                self._tell(events.ContextComputed(worker_id, task.branch_id, task.round))
        epoch = self.scheduler.workers[worker_id]
        self._tell(events.WorkerLost(worker_id, epoch))
        self._tell(events.WorkerJoined(worker_id, epoch + 1))


def test_lost_workers_change_nothing(get_models: Get) -> None:
    models, expected = get_models("llama", "eagle3")
    for first in range(3):
        loop = LosingLoop(models, **ROOMY, **TREES["eagle-2"])
        loop.num_tasks = first
        assert tokens(loop.run(PROMPTS, greedy())) == expected
        assert loop.num_tasks > 6


def proposals_of(models: Models, monkeypatch: pytest.MonkeyPatch, corrupt: bool) -> tuple[list[Any], list[list[int]]]:
    """What was proposed, and the texts; ``corrupt`` turns every feature that a draft reads around."""
    seen: list[Any] = []
    honest = TreeDrafter.draft

    def draft(self: TreeDrafter, tasks: list[Any], on_context: Any) -> list[Any]:
        assert isinstance(self.model, HeadModel)
        if corrupt:
            self.model.features.neg_()
        proposals = honest(self, tasks, on_context)
        if corrupt:
            self.model.features.neg_()
        seen.extend((p.branch_id, p.round, p.token_ids, p.parents) for p in proposals)
        return proposals

    monkeypatch.setattr(TreeDrafter, "draft", draft)
    outcomes = LocalLoop(models, **ROOMY, **TREES["eagle-2"]).run(PROMPTS, greedy())
    return seen, tokens(outcomes)


@pytest.mark.parametrize("kind", DRAFT_VOCAB)
def test_proposals_follow_the_feature_arena_the_text_does_not(
    kind: str, get_models: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, expected = get_models("llama", kind)
    with monkeypatch.context() as patch:
        once, texts = proposals_of(models, patch, corrupt=False)
    with monkeypatch.context() as patch:
        again, _ = proposals_of(models, patch, corrupt=False)
    with monkeypatch.context() as patch:
        other, other_texts = proposals_of(models, patch, corrupt=True)
    assert once == again
    first_rounds = [p for p in once if p[1] == 0], [p for p in other if p[1] == 0]
    assert first_rounds[0] != first_rounds[1]
    assert texts == other_texts == expected


def test_batching_branches_does_not_change_their_proposals(get_models: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    models, _ = get_models("llama", "eagle3")
    together, _ = proposals_of(models, monkeypatch, corrupt=False)
    monkeypatch.undo()
    alone = []
    for branch_id, prompt in enumerate(PROMPTS):
        loop = LocalLoop(models, **ROOMY, **TREES["eagle-2"])
        with monkeypatch.context() as patch:
            seen: list[Any] = []

            def draft(
                self: TreeDrafter, tasks: list[Any], on_context: Any, honest: Any = TreeDrafter.draft, seen: Any = seen
            ) -> list[Any]:
                proposals: list[Any] = honest(self, tasks, on_context)
                seen.extend((p.round, p.token_ids, p.parents) for p in proposals)
                return proposals

            patch.setattr(TreeDrafter, "draft", draft)
            loop.run([prompt], greedy())
        alone += [(branch_id, *p) for p in seen]
    assert sorted(together) == sorted(alone)


# --- real processes --------------------------------------------------------------------------------

GREEDY = SamplingParams(temperature=0.0, max_tokens=16, seed=3, ignore_eos=True)
SAMPLED = SamplingParams(temperature=0.8, max_tokens=16, seed=5, ignore_eos=True)
ENGINE: dict[str, Any] = {"num_drafts": 2, "kv_slots": 1024, "target_threads": 1, "validate": True}


def texts(engine: Engine, params: SamplingParams) -> list[tuple[int, ...]]:
    return [tuple(output.token_ids) for output in engine.generate(PROMPTS, params, timeout=60)]


@pytest.fixture(scope="module")
def plain(tiny_pair: Callable[[str], tuple[Path, Path]]) -> dict[SamplingParams, list[tuple[int, ...]]]:
    with Engine(tiny_pair("llama")[0], method="ar", kv_slots=1024, target_threads=1) as engine:
        return {params: texts(engine, params) for params in (GREEDY, SAMPLED)}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("eagle", {**TREES["eagle-2"]}),
        ("eagle3", {**TREES["opt-tree"], "policy": "fcfs"}),
        ("eagle3", {**TREES["eagle-2"], "schedule": Schedule.PARALLEL}),
    ],
)
def test_a_real_engine(
    kind: str,
    settings: dict[str, Any],
    tiny_pair: Callable[[str], tuple[Path, Path]],
    heads: dict[str, Path],
    plain: dict[SamplingParams, list[tuple[int, ...]]],
) -> None:
    with Engine(tiny_pair("llama")[0], heads[kind], method="eagle", **ENGINE, **settings) as engine:
        assert texts(engine, GREEDY) == plain[GREEDY]
        assert texts(engine, SAMPLED) == plain[SAMPLED]
        stats = engine.stats()
        assert 0 < stats["accepted"] < stats["drafted"]
        assert stats["malformed_messages"] == stats["workers_lost"] == stats["stale_proposals"] == 0
        assert stats["target_slots_leased"] == stats["draft_slots_leased"] == 0


def test_killed_drafts_and_a_killed_verifier_change_no_text(
    tiny_pair: Callable[[str], tuple[Path, Path]],
    heads: dict[str, Path],
    plain: dict[SamplingParams, list[tuple[int, ...]]],
) -> None:
    with Engine(
        tiny_pair("llama")[0], heads["eagle3"], method="eagle", **ENGINE, **TREES["eagle-2"], max_restarts=20
    ) as engine:
        for victim, params in (("draft-0.0", SAMPLED), ("verifier-0", GREEDY), ("draft-0.1", GREEDY)):
            handles = [engine.submit(prompt, params) for prompt in PROMPTS]
            next(iter(engine.stream(PROMPTS[0], params)))  # they are under way
            os.kill(engine.worker_pids()[victim], signal.SIGKILL)
            outputs = [handle.result(60) for handle in handles]
            assert [tuple(output.token_ids) for output in outputs][1:] == plain[params][1:]
        assert engine.stats()["workers_lost"] >= 3


def test_several_turns(tiny_pair: Callable[[str], tuple[Path, Path]], heads: dict[str, Path]) -> None:
    """A branch goes on after appended text: its KV and features are there, those of the new text are made."""
    found = []
    for settings in ({"method": "ar"}, {"draft": heads["eagle3"], "method": "eagle", **TREES["eagle-2"]}):
        with Engine(tiny_pair("llama")[0], **{**ENGINE, **settings}) as engine:
            ids, turns = tuple(PROMPTS[0]), []
            for more in ([7, 8, 9, 10], [11], [60, 61]):
                branch = engine.open(ids).extend(SAMPLED)
                turns.append(tuple(branch.token_ids))
                ids = (*branch.token_ids, *more)
            found.append(turns)
            if settings["method"] == "eagle":
                assert engine.stats()["accepted"] > 0
    assert found[0] == found[1]


def test_states_in_which_slots_are_read(get_models: Get) -> None:
    """A branch that drafts keeps its target slots, whoever needs room."""
    models, _ = get_models("llama", "eagle")
    loop = LocalLoop(models, **ROOMY, **TREES["eagle-2"])
    scheduler = loop.scheduler
    preempt = scheduler.forwards._preempt

    def watched(keep: int, now_ns: int) -> int | None:
        drafting = {
            b.branch_id: list(b.target_path) for b in scheduler.branches.values() if b.state is BranchState.DRAFTING
        }
        victim = preempt(keep, now_ns)
        assert all(list(scheduler.branches[i].target_path) == path for i, path in drafting.items())
        return victim

    scheduler.forwards._preempt = watched  # type: ignore[method-assign]
    loop.run(PROMPTS, greedy())


@pytest.mark.parametrize("shape", [None, "13m"])
def test_the_bundled_head_drafts_for_the_bundled_target_inflated_or_not(
    shape: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    save_head(new_head(load_model(ModelSpec(str(pair.TARGET)), torch.float32)), tmp_path / "eagle3")
    monkeypatch.setattr(pair, "HEAD", tmp_path / "eagle3")
    found = []
    for settings in ({"method": "ar"}, {"method": "eagle", "nodes": 24, "top_k": 12, "max_depth": 2}):
        with Engine(target_shape=shape, dtype="float32", num_drafts=1, **settings) as engine:
            found.append(engine.generate(["Question: Ann has 3 apples."], GREEDY, timeout=60)[0].token_ids)
            if settings["method"] == "eagle":
                assert engine.config.draft == str(tmp_path / "eagle3")
                assert engine.stats()["drafted"] > 0
    assert found[0] == found[1]
