"""Searches on a real engine: the same tree under any schedule, no thought lost, budgets, and all evaluators."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from seedmp import Engine
from seedmp.errors import ConfigError
from seedmp.search import (
    BFS,
    DFS,
    MCTS,
    BestFirst,
    Budget,
    Chat,
    NoValue,
    Propose,
    RandomValue,
    Sample,
    Score,
    SelfConsistency,
    Status,
    Task,
    ThoughtTree,
    TreeOfThoughts,
    Value,
    Vote,
)
from seedmp.search.asking import Asker
from seedmp.search.run import SearchRun
from seedmp.search.strategies import Strategy
from tests.helpers.sums import Sums

PROBLEM = (2, 3, 8)
EVALUATORS = [Score(), Value(3), Vote(5), SelfConsistency(), RandomValue(), NoValue()]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(num_drafts=2, k_config=(1, 1, 1), target_threads=1, validate=True) as started:
        yield started


@pytest.fixture(scope="module")
def reference(engine: Engine) -> str:
    return solve_to_json(engine)


def solve_to_json(engine: Engine) -> str:
    tree = TreeOfThoughts(engine, Sums(3), seed=5, search=BFS(3, stop_at_solution=False), generate=Sample(6, 1.0))
    return tree.solve((3, 5, 6, 9)).tree.to_json(timings=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_drafts": 1, "schedule": "serial"},
        {"num_drafts": 1},
        {"num_drafts": 3, "policy": "fcfs"},
        {"num_drafts": 4},
    ],
    ids=str,
)
def test_a_seed_gives_one_tree_under_any_schedule(settings: dict[str, Any], reference: str) -> None:
    with Engine(k_config=(1, 1, 1), target_threads=1, **settings) as other:
        assert solve_to_json(other) == reference
    assert len(json.loads(reference)["thoughts"]) > 30


@pytest.mark.parametrize("strategy", [BFS(2), DFS(), BestFirst(2, 4), MCTS(4, width=2)], ids=str)
def test_a_barrier_and_batch_mates_change_no_tree(engine: Engine, strategy: Strategy) -> None:
    alone = TreeOfThoughts(engine, Sums(), search=strategy, seed=1).solve(PROBLEM)
    waiting = TreeOfThoughts(engine, Sums(), search=strategy, seed=1, barrier=True)
    together = waiting.solve_all([PROBLEM, (4, 4, 6), PROBLEM], concurrency=3)
    plain = [result.tree.to_json(timings=False) for result in (alone, together[0], together[2])]
    assert len(set(plain)) == 1
    assert together[1].tree.problem == "24 from (4, 4, 6)"


@pytest.mark.alone
def test_a_thought_is_valued_while_its_siblings_are_written(engine: Engine) -> None:
    def first_value_and_last_text(*, barrier: bool) -> tuple[float, float]:
        tree = TreeOfThoughts(engine, Sums(), generate=Sample(12, 1.3), barrier=barrier).solve(PROBLEM).tree
        level = tree.levels()[1]
        return min(t.valued_s for t in level if t.value is not None), max(t.finished_s for t in level)

    valued, written = first_value_and_last_text(barrier=False)
    assert 0 < valued < written
    valued, written = first_value_and_last_text(barrier=True)
    assert valued > written


@pytest.mark.parametrize("evaluator", EVALUATORS, ids=str)
def test_every_evaluator(engine: Engine, evaluator: object) -> None:
    def solve() -> SearchRun:
        tree = TreeOfThoughts(engine, Sums(), evaluate=evaluator, generate=Sample(6, 1.2), seed=2)  # type: ignore[arg-type]
        return tree.solve(PROBLEM)  # type: ignore[return-value]

    first, second = solve(), solve()
    assert first.tree.to_json(timings=False) == second.tree.to_json(timings=False)
    alive = [t for t in first.tree if t.status in (Status.CHOSEN, Status.PRUNED, Status.FINAL) and t.depth]
    assert alive and all(t.value is not None for t in alive)
    assert any(t.num_value_tokens > 0 for t in alive) == isinstance(evaluator, Score | Value | Vote)
    if isinstance(evaluator, Vote):
        assert sum(t.value or 0 for t in alive if t.depth == 1) == evaluator.n
    if isinstance(evaluator, Score | RandomValue | SelfConsistency):
        assert all(0 <= (t.value or 0) <= 1 for t in alive)


def test_proposals_are_lines_of_one_text(engine: Engine) -> None:
    result = TreeOfThoughts(engine, Sums(), generate=Propose(3, 0.7), evaluate=NoValue(), seed=4).solve(PROBLEM)
    (root_level, *_) = result.tree.levels()[1:]
    assert 1 <= len(root_level) <= 3
    assert sum(t.num_tokens > 0 for t in root_level) == 1, "one text paid for all"


def test_what_cannot_be_read_is_counted(engine: Engine) -> None:
    result = TreeOfThoughts(engine, Sums(accept=r".*\(left: \d+ \d+\)"), generate=Sample(4, 1.0)).solve((5, 6, 7))
    assert result.counts()["failed"] == result.tree.count(Status.FAILED) > 0
    assert all(t.note for t in result.tree if t.status is Status.FAILED)
    nothing = TreeOfThoughts(engine, Sums(accept="never")).solve(PROBLEM)
    assert (nothing.best, nothing.answer, nothing.is_correct, nothing.ended) == (None, "", False, "complete")
    assert len(nothing.tree) == 4 == nothing.tree.count(Status.FAILED)


def test_a_request_that_is_refused_is_a_failed_thought(engine: Engine) -> None:
    result = TreeOfThoughts(engine, Sums()).solve(tuple(range(600)))
    assert result.tree.count(Status.FAILED) == len(result.tree) > 0
    assert "the models allow 1024" in next(t.note for t in result.tree if t.depth)
    assert TreeOfThoughts(engine, Sums()).solve(PROBLEM).tree.num_tokens > 0, "the engine goes on"


@pytest.mark.parametrize("limit", [{"nodes": 6}, {"tokens": 60}, {"seconds": 0.05}], ids=str)
def test_budgets(engine: Engine, limit: dict[str, float]) -> None:
    search = BFS(2, stop_at_solution=False)
    budget = Budget(**limit)  # type: ignore[arg-type]
    result = TreeOfThoughts(engine, Sums(5), search=search, budget=budget).solve((3, 5, 6, 9))
    assert result.ended == next(iter(limit))
    if "nodes" in limit:
        assert len(result.tree) == 6
    if "seconds" in limit:
        assert result.tree.count(Status.CANCELLED) > 0 == result.tree.count(Status.RUNNING)


def test_cancelling_gives_what_there_is(engine: Engine) -> None:
    def cancel(run: SearchRun) -> None:
        if any(t.status is Status.CHOSEN and t.depth == 1 for t in run.tree):
            threading.Thread(target=searching.cancel).start()

    searching = TreeOfThoughts(engine, Sums(6), search=BFS(2, stop_at_solution=False), on_change=cancel)
    result = searching.solve((3, 5, 6, 9))
    assert result.ended == "cancelled" and result.tree.count(Status.RUNNING) == 0
    assert engine.stats()["active_branches"] == 0 or wait_until_idle(engine)


def wait_until_idle(engine: Engine) -> bool:
    return any(engine.stats()["active_branches"] == 0 for _ in range(200))


def test_inside_a_running_loop(engine: Engine) -> None:
    async def cell_of_a_notebook() -> str:
        return TreeOfThoughts(engine, Sums(), seed=1).solve(PROBLEM).tree.to_json(timings=False)

    outside = TreeOfThoughts(engine, Sums(), seed=1).solve(PROBLEM).tree.to_json(timings=False)
    assert asyncio.run(cell_of_a_notebook()) == outside


def test_results_are_saved(engine: Engine, tmp_path: Path) -> None:
    result = TreeOfThoughts(engine, Sums()).solve(PROBLEM)
    result.save(tmp_path / "tree.json")
    assert ThoughtTree.load(tmp_path / "tree.json").to_json() == result.tree.to_json()
    result.save_html(tmp_path / "tree.html")
    result.save_svg(tmp_path / "tree.svg")
    assert "24 from (2, 3, 8)" in (tmp_path / "tree.html").read_text()
    assert (tmp_path / "tree.svg").read_text().startswith("<svg")


def test_prompts_go_on_from_the_tokens_that_were_generated(engine: Engine) -> None:
    before = engine.stats()
    TreeOfThoughts(engine, Sums(3), search=BFS(3, stop_at_solution=False), seed=8).solve((3, 5, 7, 11))
    after = engine.stats()
    prompt = len(engine.encode("Input: 3 5 7 11\nStep:", special=True))
    computed = after["target_prefill_tokens"] - before["target_prefill_tokens"]
    judged = after["finished"] - before["finished"]
    assert computed <= prompt + 4 * judged, "prompts add '\\nStep:' or '\\nJudge:' to a parent"


def test_conversations_need_a_template(engine: Engine) -> None:
    class Talk(Sums):
        def thought_ask(self, problem: object, path: object) -> object:  # type: ignore[override]
            return super().thought_ask((1,), ()).__class__(Chat((("user", "hi"),)), 4)

    result = TreeOfThoughts(engine, Talk()).solve(PROBLEM)
    assert "no chat template" in next(t.note for t in result.tree if t.depth)


def test_what_a_task_lacks_is_told_at_once(engine: Engine) -> None:
    class Poor(Task[int]):
        name = "poor"
        depth = 1
        describe = thought_ask = read_thought = lambda *args: None  # type: ignore[assignment]

    for settings, message in (
        ({"generate": Propose(2)}, "no propose_ask, which Propose"),
        ({"evaluate": Vote()}, "no vote_ask, which Vote"),
        ({}, "no value_ask, which Score"),
    ):
        with pytest.raises(ConfigError, match=message):
            TreeOfThoughts(engine, Poor(), **settings)
    with pytest.raises(ConfigError, match="tokens=0: must be a finite number > 0"):
        Budget(tokens=0)


def test_known_texts_are_not_encoded_again(engine: Engine) -> None:
    asker = Asker(engine)
    (output,) = engine.generate("Input: 2 3 8\nStep:", timeout=60)
    asker.remember("0", "Input: 2 3 8\nStep:", output)
    ids = asker.encode("Input: 2 3 8\nStep:" + output.text + "\nJudge:", ["0"])
    assert ids[: len(output.prompt_token_ids)] == output.prompt_token_ids
    assert engine.decode(ids).endswith(output.text + "\nJudge:")
