"""A text whose numbers overflow fails alone: what it leaves in the arena reaches nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seedmp.errors import NumericalError
from seedmp.ipc.arena import layout_for
from seedmp.models import branch_attention, eager
from seedmp.models.buckets import Buckets
from seedmp.models.eager import EagerRunner
from seedmp.models.eagle import load_head, read_head
from seedmp.models.fused import why_not_fused
from seedmp.models.fused_runner import FusedRunner
from seedmp.models.load import ModelSpec, load_model
from seedmp.models.native.attention import NativeAttention
from seedmp.models.native.library import native_library
from seedmp.models.rows import BranchRows, pack_rows
from seedmp.sampling import SamplingParams
from seedmp.scheduler.actions import Segment
from seedmp.token_tree.tree import EMPTY_TREE, NO_PARENT, ProposalKind, TokenTree
from seedmp.workers.target import TargetRunner
from tests.helpers.heads import make_head
from tests.helpers.local_loop import LocalLoop, Models
from tests.helpers.models import VOCAB_SIZE

POISON = 90
GOOD, OTHER = [7, 30, 41, 8, 22], [60, 61, 12, 9, 44, 71]
BAD = [7, 30, POISON, 8, 22]
NUM_SLOTS = 200


def poisoned(path: Path, value: float = torch.nan) -> Any:
    """A model for which one token overflows."""
    model = load_model(ModelSpec(str(path)), torch.float32)
    model.get_input_embeddings().weight[POISON] = value
    return model


def branch(ids: list[int], at: int, num_wanted: int = 1) -> BranchRows:
    return BranchRows((), ids, range(at, at + len(ids)), num_wanted=num_wanted)


@pytest.fixture(params=["view", "gathered", "split", "ghosts", "fused", "fused by torch"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., EagerRunner]:
    """A runner that reads columns in one of the ways that there are."""
    torch.set_num_threads(1)
    monkeypatch.setattr(eager, "GATHER_SLACK", -1000 if request.param == "gathered" else 1000)
    if request.param == "split":
        monkeypatch.setattr(branch_attention, "COLUMN_COST", 0)
        monkeypatch.setattr(branch_attention, "MIN_SAVED", 0)
    buckets = Buckets() if request.param == "ghosts" else None

    if request.param == "fused by torch":
        monkeypatch.setattr(NativeAttention, "serves", staticmethod(lambda *_: False))

    def make_one(model: Any) -> EagerRunner:
        shape = layout_for(model.config, NUM_SLOTS, torch.float32).shape
        if request.param.startswith("fused"):
            if why_not_fused(model):
                pytest.skip(why_not_fused(model))
            fused = FusedRunner(model, torch.zeros(shape), VOCAB_SIZE)
            can_be_native = model.config.model_type == "qwen3" and native_library() is not None
            assert (fused._fused.native is not None) == (can_be_native and request.param == "fused")
            return fused
        runner = EagerRunner(model, torch.zeros(shape), VOCAB_SIZE, buckets=buckets)
        inputs = runner.prepare(pack_rows([branch(GOOD, 0), branch(OTHER, 190)]))
        way = "split" if inputs.attention.split else "view" if inputs.columns is None else "gathered"
        assert way == {"ghosts": "view"}.get(request.param, request.param)
        return runner

    return make_one


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma3"])
def test_rows_beside_and_after_it_do_not_notice(
    architecture: str, value: float, make: Callable[..., EagerRunner], tiny_pair: Callable[[str], tuple[Path, Path]]
) -> None:
    model = poisoned(tiny_pair(architecture)[0], value)
    runner = make(model)
    alone = [runner.run(pack_rows([branch(ids, 0)])) for ids in (GOOD, OTHER)]
    good, bad, other = runner.run(pack_rows([branch(GOOD, 0), branch(BAD, 60), branch(OTHER, 100)]))
    assert bad.isnan().all()
    torch.testing.assert_close(torch.stack([good, other]), torch.cat(alone), atol=1e-4, rtol=1e-4)
    # Its prompt comes in parts, so no logits show it; what follows in the forwards after it fails all the same.
    assert len(runner.run(pack_rows([branch(BAD[:4], 60, 0), branch(OTHER[:3], 100, 0)]))) == 0
    after = BranchRows(range(100, 103), OTHER[3:], range(120, 123), num_wanted=1)
    follows = BranchRows(range(60, 64), BAD[4:], [64], num_wanted=1)
    other, bad = runner.run(pack_rows([after, follows]))
    assert bad.isnan().all()
    torch.testing.assert_close(other[None], alone[1], atol=1e-4, rtol=1e-4)
    # Its slots may be used again.
    again = runner.run(pack_rows([branch(OTHER, 59)]))
    torch.testing.assert_close(again, alone[1], atol=1e-4, rtol=1e-4)
    assert runner._cache.arena.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_what_another_process_left_in_the_arena_is_not_multiplied(
    value: float, make: Callable[..., EagerRunner], tiny_pair: Callable[[str], tuple[Path, Path]]
) -> None:
    runner = make(load_model(ModelSpec(str(tiny_pair("llama")[0])), torch.float32))
    rows = pack_rows([branch(GOOD, 0), branch(OTHER, 60)])
    before = runner.run(rows)
    runner._cache.arena[:, :, [20, 30, 66]] = value
    torch.testing.assert_close(runner.run(rows), before, atol=1e-4, rtol=1e-4)


def test_one_logit_that_overflows_spoils_its_whole_row(
    make: Callable[..., EagerRunner], tiny_pair: Callable[[str], tuple[Path, Path]]
) -> None:
    model = load_model(ModelSpec(str(tiny_pair("llama")[0])), torch.float32)
    weight = torch.full_like(model.get_output_embeddings().weight[:1], 3e38)
    model.get_output_embeddings().weight[5:7] = torch.cat([weight, -weight])
    assert make(model).run(pack_rows([branch(GOOD, 0), branch(OTHER, 100)])).isnan().all()


def segment(tree: TokenTree, *, score: bool = False) -> Segment:
    params = SamplingParams(temperature=0.0, max_tokens=8, seed=1)
    end = len(GOOD)
    return Segment(
        0, (), 0, tuple(GOOD), tuple(range(end)), True, score, tree, tuple(range(end, end + len(tree))), 0, params,
        None, 0, (),
    )  # fmt: skip


def test_a_proposal_that_overflows_changes_nothing(tiny_pair: Callable[[str], tuple[Path, Path]]) -> None:
    model = poisoned(tiny_pair("llama")[0])
    shape = layout_for(model.config, NUM_SLOTS, torch.float32).shape
    runner = TargetRunner(EagerRunner(model, torch.zeros(shape), VOCAB_SIZE))
    first = runner.run([segment(EMPTY_TREE)])[0][0].next_token
    tree = TokenTree((POISON, first, POISON), (NO_PARENT, NO_PARENT, 1), ProposalKind.DETERMINISTIC)
    outcome = runner.run([segment(tree)])[0][0]
    assert (outcome.accepted, outcome.problem) == ((1,), "")
    scored = segment(TokenTree((first, POISON), (NO_PARENT, 0), ProposalKind.DETERMINISTIC), score=True)
    assert np.isfinite(runner.run([scored])[1][0]).all()  # nothing follows the token that overflows
    scored = segment(TokenTree((POISON, first), (NO_PARENT, 0), ProposalKind.DETERMINISTIC), score=True)
    outcomes, scores = runner.run([scored])
    assert outcomes[0].problem_kind == NumericalError.__name__ and not scores


def test_a_text_may_end_with_the_token_that_overflows(tiny_pair: Callable[[str], tuple[Path, Path]]) -> None:
    model = poisoned(tiny_pair("llama")[0])
    runner = EagerRunner(model, torch.zeros(layout_for(model.config, NUM_SLOTS, torch.float32).shape), VOCAB_SIZE)

    class LikesPoison:
        vocab_size = VOCAB_SIZE
        busy_ns = 0

        def run(self, rows: Any) -> torch.Tensor:
            logits = runner.run(rows).clone()
            logits[:, POISON] += 1e6
            return logits

    tree = TokenTree((POISON, 5), (NO_PARENT, 0), ProposalKind.DETERMINISTIC)
    outcome = TargetRunner(LikesPoison()).run([segment(tree)])[0][0]  # type: ignore[arg-type]
    assert (outcome.accepted, outcome.next_token, outcome.problem) == ((), POISON, "")


def run_beside(models: Models, prompts: list[list[int]], **settings: Any) -> tuple[list[list[int]], dict[int, str]]:
    """Texts of the requests that did not fail, and what the others failed with."""
    loop = LocalLoop(models, kv_slots=1024, max_forward_tokens=16, **settings)
    failures: dict[int, str] = {}
    loop.failures = _Take(failures)  # they are expected
    params = SamplingParams(temperature=0.0, max_tokens=10, seed=1, ignore_eos=True, draft_temperature=1.0)
    outcomes = loop.run(prompts, params)
    return [outcome.token_ids for i, outcome in enumerate(outcomes) if i not in failures], failures


class _Take(dict[int, str]):
    """Takes entries into another dict and stays empty."""

    def __init__(self, into: dict[int, str]) -> None:
        super().__init__()
        self.into = into

    def __setitem__(self, key: int, value: str) -> None:
        self.into[key] = value


@pytest.mark.parametrize("method", ["ar", "mcsd", "specinfer", "coupled"])
def test_a_request_fails_alone(method: str, tiny_pair: Callable[[str], tuple[Path, Path]]) -> None:
    target, draft = tiny_pair("llama")
    models = Models(poisoned(target), load_model(ModelSpec(str(draft)), torch.float32), VOCAB_SIZE)
    settings: dict[str, Any] = {"method": method} | ({} if method == "ar" else {"num_drafts": 1})
    alone, _ = run_beside(models, [GOOD, OTHER], **settings)
    beside, failures = run_beside(models, [GOOD, BAD, OTHER, BAD], **settings)
    assert beside == alone and len(failures) == 2
    assert all(text.startswith("NumericalError: the target's numbers overflowed") for text in failures.values())


@pytest.mark.parametrize("method", ["mcsd", "specinfer", "coupled", "opt-tree"])
def test_a_draft_that_overflows_only_proposes_badly(method: str, tiny_pair: Callable[[str], tuple[Path, Path]]) -> None:
    target, draft = tiny_pair("llama")
    sound = Models.load(target, draft)
    alone, _ = run_beside(sound, [GOOD, OTHER, BAD], method=method)
    models = Models(sound.target, poisoned(draft), VOCAB_SIZE)
    assert run_beside(models, [GOOD, OTHER, BAD], method=method) == (alone, {})


def test_a_head_that_overflows_only_proposes_badly(
    tmp_path: Path, tiny_pair: Callable[[str], tuple[Path, Path]]
) -> None:
    target = tiny_pair("llama")[0]
    head = make_head("eagle3", tmp_path / "head", VOCAB_SIZE, 64)
    models = Models.with_head(target, head)
    texts, _ = run_beside(models, [GOOD, OTHER, BAD], method="eagle")
    spec = ModelSpec(str(target))
    lent = load_head(read_head(str(head), spec), torch.float32, "cpu", spec, models.target)
    with torch.no_grad():
        next(p for name, p in lent.named_parameters() if name.endswith("k_proj.weight"))[0] = torch.nan
    assert run_beside(Models(models.target, lent, VOCAB_SIZE), [GOOD, OTHER, BAD], method="eagle") == (texts, {})
    alone, _ = run_beside(models, [GOOD, OTHER], method="eagle")
    bad_target = Models(poisoned(target), models.draft, VOCAB_SIZE)
    beside, failures = run_beside(bad_target, [GOOD, BAD, OTHER], method="eagle")
    assert beside == alone and list(failures) == [1]
