"""Every task by name: options, shipped problems, and questions that an engine accepts."""

from __future__ import annotations

from typing import Any

import pytest

from seedmp.errors import ConfigError
from seedmp.sampling import SamplingParams
from seedmp.search.task import Ask, Chat, Task
from seedmp.tasks.registry import TASKS, get_task
from tests.helpers.paths import walk

# Answers that are in the format, for each (task, chat); what they say need not be true.
STATE = "the red block is clear, the hand is empty and the red block is on the table"
STEPS = ["1 + 2 = 3 (left: 3 4 5)", "3 + 4 = 7 (left: 5 7)", "5 + 7 = 12 (left: 12)", "1 + 2 + 4 + 5 = 24"]
ANSWERS: dict[tuple[str, bool], list[str]] = {
    ("blocksworld", False): [f" t\nAction: pick up the red block\nState: {STATE}"] * 7,
    ("blocksworld", True): [f" pick up the red block\nState: {STATE}"] * 7,
    ("creative_writing", False): [" a plan", "a story"],
    ("creative_writing", True): [" a plan", "a story"],
    ("game24", False): [f" {step}" for step in STEPS],
    ("game24", True): STEPS,
    ("gsm8k", False): [" a line", "another", "a third", "#### 4"],
    ("gsm8k", True): ["How many? 4"] * 3 + [" 4"],
}
DIALECTS = [(name, chat) for name in TASKS for chat in (False, True)]


def all_asks(task: Task[Any], problem: Any, answers: list[str]) -> list[Ask]:
    """Every question that a search with the task's own settings asks."""
    path = walk(task, problem, *answers)
    asks = []
    for depth in range(task.depth):
        asks.append(task.thought_ask(problem, path[:depth]))
        if task.defaults.generate == "propose":
            asks.append(task.propose_ask(problem, path[:depth], task.defaults.num_thoughts))
        evaluate = task.defaults.evaluate_at(depth + 1)
        if evaluate in ("value", "score"):
            asks.append(task.value_ask(problem, path[: depth + 1]))
        elif evaluate == "vote":
            asks.append(task.vote_ask(problem, [path[: depth + 1]] * 3))
    return asks


@pytest.mark.parametrize(("name", "chat"), DIALECTS)
def test_every_question_renders(name: str, chat: bool) -> None:
    task = get_task(name, chat=chat)
    assert task.name == name
    for problem in task.load():
        assert task.describe(problem)
        for ask in all_asks(task, problem, ANSWERS[name, chat]):
            SamplingParams(max_tokens=ask.max_tokens, stop=ask.stop)
            if not chat:
                assert isinstance(ask.prompt, str)
                assert not ask.prompt.endswith(" "), "blanks belong to the token that follows"
                continue
            assert isinstance(ask.prompt, Chat)
            roles = [role for role, _ in ask.prompt.messages]
            assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
            assert all(content.strip() for _, content in ask.prompt.messages)
            assert not any("{" in content or "}" in content for _, content in ask.prompt.messages)


@pytest.mark.parametrize(("name", "chat"), DIALECTS)
def test_every_choice_is_understood(name: str, chat: bool) -> None:
    """What constrained decoding lets a model say always parses, and means what it says."""
    task = get_task(name, chat=chat)
    problem = task.load()[0]
    path = walk(task, problem, *ANSWERS[name, chat])
    if task.value_labels and task.defaults.evaluate != "vote":
        for choice in task.value_ask(problem, path).choices:
            assert task.read_value(choice) == task.value_labels[choice]
    if "vote" in task.defaults.evaluate:
        vote = task.vote_ask(problem, [path[:1]] * 4)
        assert [task.read_vote(choice, 4) for choice in vote.choices] == [0, 1, 2, 3]


@pytest.mark.parametrize(("name", "chat"), DIALECTS)
def test_an_empty_path_is_judged(name: str, chat: bool) -> None:
    """A search whose thoughts all failed still has a result."""
    task = get_task(name, chat=chat)
    problem = task.load()[0]
    assert task.is_correct(problem, []) is False
    assert task.answer(problem, []) == ""
    assert isinstance(task.score(problem, []), dict)


def test_settings_of_the_papers() -> None:
    depths = {name: get_task(name, chat=True).depth for name in TASKS}
    assert depths == {"blocksworld": 7, "creative_writing": 2, "game24": 4, "gsm8k": 4}
    writing = get_task("creative_writing", chat=True).defaults
    assert (writing.num_thoughts, writing.evaluate, writing.num_values, writing.beam) == (5, "vote", 5, 1)
    game = get_task("game24", chat=True)
    assert (game.defaults.generate, game.defaults.evaluate, game.defaults.num_values) == ("propose", "value", 3)
    assert (game.defaults.beam, game.defaults.temperature) == (5, 0.7)
    assert game.value_labels == {" sure": 20, " likely": 1, " impossible": 0.001}
    blocks = get_task("blocksworld", chat=True).defaults
    assert (blocks.num_thoughts, blocks.temperature, blocks.evaluate) == (4, 0.8, "score")
    assert (get_task("gsm8k", chat=True).defaults.num_thoughts, get_task("gsm8k", chat=True).depth) == (3, 4)


def test_names_and_options() -> None:
    assert get_task("Creative-Writing", chat=True).name == "creative_writing"
    assert get_task("game24", chat=False, answer=False).depth == 3
    assert get_task("blocksworld", chat=True, depth=12).depth == 12
    with pytest.raises(ConfigError, match=r"no task 'chess'; known are blocksworld, creative_writing, game24, gsm8k"):
        get_task("chess", chat=False)
    with pytest.raises(ConfigError, match=r"'gsm8k' has no option 'answer'; it has depth"):
        get_task("gsm8k", chat=True, answer=True)
    with pytest.raises(ConfigError, match=r"no option 'depth'; it has none"):
        get_task("creative_writing", chat=True, depth=3)
    with pytest.raises(ConfigError, match="depth=0"):
        get_task("gsm8k", chat=True, depth=0)


def test_what_a_task_does_not_say_is_named() -> None:
    task = get_task("gsm8k", chat=False)
    problem = task.load()[0]
    with pytest.raises(ConfigError, match="'gsm8k' has no propose_ask"):
        task.propose_ask(problem, [], 3)
    with pytest.raises(ConfigError, match="'gsm8k' has no value_ask"):
        task.value_ask(problem, [])
    with pytest.raises(ConfigError, match="'gsm8k' has no vote_ask"):
        task.vote_ask(problem, [])
