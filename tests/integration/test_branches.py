"""Branches of a reasoning tree: their KV stays, is shared, is given back, and is counted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from seedmp import Branch, Engine, SamplingParams
from seedmp.errors import RejectedError

PROMPT = "Question: Ann has 12 red pens and 7 blue pens. She gives away 5 of them. How many pens has she left?\nAnswer:"
JUDGES = ["\n#### 14", "\n#### 7"]
PARAMS = SamplingParams(temperature=0.9, max_tokens=24, stop=("\n",), seed=3, ignore_eos=True)
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(num_drafts=2, k_config=(2, 1, 1), kv_slots=1024, target_threads=1, validate=True) as started:
        yield started


def prefilled(engine: Engine) -> tuple[float, float]:
    stats = engine.stats()
    return stats["target_prefill_tokens"], stats["draft_prefill_tokens"]


def test_thoughts_and_their_evaluations_compute_the_prompt_once(engine: Engine) -> None:
    root = engine.open(PROMPT + " I")
    before = prefilled(engine)
    thoughts = root.fork(4, PARAMS, timeout=TIMEOUT_S)
    of_thoughts = [after - was for was, after in zip(before, prefilled(engine), strict=True)]
    assert of_thoughts == [len(root.token_ids) - 1] * 2, "the last token of a prompt is the first row of a round"
    before = prefilled(engine)
    judged = [thought.append("\nAnswer again:") for thought in thoughts]
    for branch in judged:
        branch.fork(1, PARAMS, timeout=TIMEOUT_S)
    new = sum(len(branch.token_ids) - len(thought.token_ids) for branch, thought in zip(judged, thoughts, strict=True))
    of_target, of_drafts = (after - was for was, after in zip(before, prefilled(engine), strict=True))
    assert of_target <= new, "only what was appended"
    assert of_drafts <= new + 2 * len(thoughts), "drafts never computed the leaf that was accepted last"


def test_a_branch_never_changes(engine: Engine) -> None:
    root = engine.open(PROMPT)
    longer = root.extend(PARAMS, timeout=TIMEOUT_S)
    assert root.text == PROMPT and longer.token_ids[: len(root.token_ids)] == root.token_ids
    assert longer.output is not None and longer.text == longer.output.text
    given = root.append(longer.text)
    assert given.text == longer.text and engine.decode(given.token_ids) == engine.decode(longer.token_ids)
    again = root.extend(PARAMS, timeout=TIMEOUT_S)
    assert again.token_ids == longer.token_ids, "a seed repeats a text"


def test_scores_of_tokens_add_up(engine: Engine) -> None:
    root = engine.open(PROMPT)
    sums = root.score(JUDGES, timeout=TIMEOUT_S)
    scored = root.score_tokens(JUDGES, timeout=TIMEOUT_S)
    assert [s.text for s in scored] == JUDGES
    for total, one in zip(sums, scored, strict=True):
        assert total == one.total == pytest.approx(float(one.logprobs.sum()))
        assert len(one.logprobs) == len(one.token_ids) and one.mean == pytest.approx(total / len(one.token_ids))


def test_closing_frees_what_nobody_else_uses() -> None:
    with Engine(num_drafts=1, k_config=(1, 1), kv_slots=512, target_threads=1, validate=True) as engine:
        everything = engine.stats()["target_slots_free"]
        root = engine.open(PROMPT)
        left, right = root.fork(2, PARAMS, timeout=TIMEOUT_S)
        used = everything - wait_for_stats(engine, left_over=0)["target_slots_free"]
        left.close()
        after_left = everything - wait_for_stats(engine, free_above=everything - used)["target_slots_free"]
        assert len(root.token_ids) <= after_left < used
        with root:
            pass
        assert everything - engine.stats()["target_slots_free"] == after_left, "the other child needs the prompt"
        right.close()
        assert wait_for_stats(engine, free_above=everything - 1)["target_slots_free"] == everything
        assert engine.stats()["draft_slots_free"] == 512
        for use in (lambda: root.append("x"), lambda: left.extend(PARAMS), lambda: right.score(["x"])):
            with pytest.raises(RejectedError, match="the branch was closed"):
                use()
        root.close()


def wait_for_stats(engine: Engine, *, free_above: float = -1, left_over: float | None = None) -> dict[str, float]:
    """Statistics once the verifier has heard of what was closed."""
    deadline = time.monotonic() + 10
    while True:
        stats = engine.stats()
        is_there = stats["target_slots_free"] > free_above
        if (is_there and (left_over is None or stats["target_slots_leased"] == left_over)) or (
            time.monotonic() > deadline
        ):
            return stats


def test_branches_outlive_a_crash_of_the_verifier(engine: Engine) -> None:
    root = engine.open(PROMPT)
    (before,) = root.fork(1, PARAMS, timeout=TIMEOUT_S)
    os.kill(engine.worker_pids()["verifier-0"], signal.SIGKILL)
    (after,) = root.fork(1, PARAMS, timeout=TIMEOUT_S)
    assert after.token_ids == before.token_ids
    assert before.append("\n").extend(PARAMS, timeout=TIMEOUT_S).token_ids[: len(before.token_ids)] == before.token_ids


def test_equal_prompts_of_strangers_share(engine: Engine) -> None:
    prompt = PROMPT + " Let me think."
    engine.generate(prompt, PARAMS, timeout=TIMEOUT_S)
    before = engine.stats()
    engine.generate(prompt, PARAMS, timeout=TIMEOUT_S)
    after = engine.stats()
    assert after["target_prefill_tokens"] == before["target_prefill_tokens"]
    assert after["shared_target_tokens"] > before["shared_target_tokens"]
    assert 0 < after["target_prefix_hit_rate"] < 1 and 0 < after["draft_prefix_hit_rate"] < 1


def test_best_of(engine: Engine) -> None:
    params = SamplingParams(temperature=1.2, max_tokens=12, seed=5, n=2, best_of=5, ignore_eos=True)
    best = engine.generate([PROMPT, PROMPT + " I"], params, timeout=TIMEOUT_S)
    assert len(best) == 4
    drawn = engine.generate(PROMPT, SamplingParams(temperature=1.2, max_tokens=12, seed=5, n=5, ignore_eos=True))
    rows = engine.score_ids(drawn[0].prompt_token_ids, [out.token_ids for out in drawn], timeout=TIMEOUT_S)
    by_mean = sorted(range(5), key=lambda i: -float(rows[i].mean()))
    assert [out.token_ids for out in best[:2]] == [drawn[i].token_ids for i in by_mean[:2]]
    assert best[0].logprob == pytest.approx(float(rows[by_mean[0]].sum()), abs=1e-4)
    with pytest.raises(RejectedError, match="best_of=1: must be a whole number >= n=2"):
        SamplingParams(n=2, best_of=1)
    with pytest.raises(RejectedError, match="outputs are compared by generate"):
        engine.submit_all(PROMPT, params)


def test_forgotten_branches_leave_no_owner(engine: Engine) -> None:
    kept: list[Branch] = engine.open(PROMPT).fork(2, PARAMS, timeout=TIMEOUT_S)
    assert wait_for_kept(engine, len(kept)) == len(kept), "the root was forgotten, its children were not"
    kept.clear()
    assert wait_for_kept(engine, 0) == 0


def wait_for_kept(engine: Engine, num: int) -> float:
    """Open branches that the verifier knows, once they are ``num`` or after ten seconds."""
    deadline = time.monotonic() + 10
    while (kept := engine.stats()["branches_kept"]) != num and time.monotonic() < deadline:
        pass
    return kept


def test_a_score_goes_to_the_group_that_holds_the_branch() -> None:
    """Each group has arenas of its own; the wrong one would have to compute the whole context."""
    with Engine(num_drafts=2, schedule="parallel", k_config=(1, 1), kv_slots=512, target_threads=1) as engine:
        root = engine.open(PROMPT)
        children = root.fork(2, PARAMS, timeout=TIMEOUT_S)
        for child in (*children, *children[::-1]):
            before, _ = prefilled(engine)
            child.score(JUDGES, timeout=TIMEOUT_S)
            computed = prefilled(engine)[0] - before
            assert computed <= 2, f"{computed} of {len(child.token_ids)} context tokens, with KV of nearly all of them"
        judged = [child.append("\nIs that right?") for child in children]
        for branch, child in zip(judged, children, strict=True):
            before, _ = prefilled(engine)
            branch.score([" yes", " no"], timeout=TIMEOUT_S)
            assert prefilled(engine)[0] - before <= len(branch.token_ids) - len(child.token_ids) + 2


def test_a_priority_and_a_user_change_no_text(engine: Engine) -> None:
    root = engine.open(PROMPT)
    (plain,) = root.fork(1, PARAMS, timeout=TIMEOUT_S)
    (urgent,) = root.fork(1, PARAMS, timeout=TIMEOUT_S, priority=1000, user="ann")
    assert urgent.token_ids == plain.token_ids
    (output,) = engine.generate([root.token_ids], PARAMS, priority=-5, user="bob", timeout=TIMEOUT_S)
    assert plain.output is not None and output.token_ids == plain.output.token_ids
    with pytest.raises(RejectedError, match="priority=1001"):
        root.extend(PARAMS, priority=1001)
    with pytest.raises(RejectedError, match="at most 256 characters"):
        engine.submit(PROMPT, PARAMS, user=300 * "x")
