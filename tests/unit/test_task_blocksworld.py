"""Blocksworld as a task: prompts word for word, what parses, which plans are right."""

from __future__ import annotations

import re

import pytest

from seedmp.errors import ConfigError
from seedmp.search.task import Chat
from seedmp.search.thought_tree import Thought
from seedmp.tasks import blocksworld
from seedmp.tasks.blocksworld import (
    Blocksworld,
    BlocksworldChat,
    BlocksworldProblem,
    is_plan,
    parse_state,
    thought_regex,
)
from tests.helpers.paths import walk

START = (
    "the red block is clear, the blue block is clear, the hand is empty, the red block is on top of the orange block, "
    "the blue block is on the table and the orange block is on the table"
)
GOAL = "the orange block is on top of the blue block"
PROBLEM = BlocksworldProblem(START, GOAL, 4)
ACTIONS = [
    "unstack the red block from on top of the orange block",
    "put down the red block",
    "pick up the orange block",
    "stack the orange block on top of the blue block",
]


def states_after(actions: list[str]) -> list[str]:
    state, found = parse_state(START), []
    for action in actions:
        after = state.after(action)
        assert after is not None
        state = after
        found.append(state.text())
    return found


STATES = states_after(ACTIONS)
TEXTS = [
    f" orange on blue; over orange: red; over blue: none\nAction: {action}\nState: {state}"
    for action, state in zip(ACTIONS, STATES, strict=True)
]
HEAD = f"Blocksworld\nGoal: {GOAL}\nState: {START}\n"


def test_prompts_of_the_bundled_pair() -> None:
    task = Blocksworld()
    assert task.depth == 7
    ask = task.thought_ask(PROBLEM, [])
    assert ask.prompt == HEAD + "Think:"
    path = walk(task, PROBLEM, *TEXTS[:2])
    assert task.thought_ask(PROBLEM, path).prompt == f"{HEAD}Think:{TEXTS[0]}\nThink:{TEXTS[1]}\nThink:"
    value = task.value_ask(PROBLEM, path)
    assert value.prompt == f"Blocksworld\nGoal: {GOAL}\nState: {STATES[1]}\nSteps left:"
    assert value.choices == tuple(task.value_labels) == tuple(f" {label}" for label in [*range(10), "many"])
    assert [task.read_value(text) for text in (" 0", " 7", " many", " x")] == [0, -7, -10, None]
    assert task.value_ask(PROBLEM, []).prompt == HEAD + "Steps left:"


def test_what_the_engine_stops_at_is_no_part_of_a_thought() -> None:
    task = Blocksworld()
    for stop in task.thought_ask(PROBLEM, []).stop:
        assert stop not in TEXTS[0]
    for rest in ("\nThink: x", "\nSteps left: 3", "\nDone\n"):
        parsed = task.read_thought(PROBLEM, [], TEXTS[0] + rest)
        assert parsed is not None
        assert parsed.text == TEXTS[0]
        assert any(stop in rest for stop in task.thought_ask(PROBLEM, []).stop)


def test_long_paths_begin_again_at_their_last_state() -> None:
    """As in training: the words of a prompt stay below what a document has."""
    task = Blocksworld()
    path = walk(task, PROBLEM, *TEXTS[:3], *TEXTS[:3])
    prompts = [str(task.thought_ask(PROBLEM, path[:depth]).prompt) for depth in range(len(path) + 1)]
    fresh = [depth for depth, prompt in enumerate(prompts) if prompt.count("Think:") == 1]
    assert fresh == [0, 4]
    assert prompts[4] == f"Blocksworld\nGoal: {GOAL}\nState: {path[3].state}\nThink:"
    assert prompts[5] == f"{prompts[4]}{path[4].text}\nThink:"
    assert all(len(prompt.split()) < blocksworld.MAX_PATH_WORDS for prompt in prompts)


def test_states_are_keys_in_one_wording() -> None:
    loose = STATES[0].replace("the blue block is clear, ", "") + "."
    assert loose != STATES[0]
    parsed = Blocksworld().read_thought(PROBLEM, [], f" think\nAction: {ACTIONS[0]}\nState: {loose}")
    assert parsed is not None
    assert parsed.state == STATES[0]
    assert parsed.text.endswith(loose)
    assert not parsed.is_final


@pytest.mark.parametrize(
    "text",
    [
        "",
        " think",
        f" think\nAction: {ACTIONS[0]}",
        f"\nAction: {ACTIONS[0]}\nState: {STATES[0]}",
        f" think\nAction: fly away\nState: {STATES[0]}",
        f" think\nAction: {ACTIONS[0]} now\nState: {STATES[0]}",
        f" think\nAction:{ACTIONS[0]}\nState: {STATES[0]}",
        f" think\nAction: {ACTIONS[0]}\nState: the sky is blue",
        f" think\nAction: {ACTIONS[0]}\nState: {STATES[0][:-5]}",
        f" think\nState: {STATES[0]}\nAction: {ACTIONS[0]}",
    ],
)
def test_thoughts_that_are_none(text: str) -> None:
    assert Blocksworld().read_thought(PROBLEM, [], text) is None


def test_a_right_plan() -> None:
    task = Blocksworld()
    path = walk(task, PROBLEM, *TEXTS)
    assert [thought.is_final for thought in path] == [False, False, False, True]
    assert task.is_correct(PROBLEM, path)
    assert not task.is_correct(PROBLEM, path[:3])
    assert not task.is_correct(PROBLEM, [])
    assert task.answer(PROBLEM, path) == "\n".join(ACTIONS)
    assert task.score(PROBLEM, path) == {"num_actions": 4, "num_steps": 4}


def test_the_search_believes_the_model_and_the_checker_does_not() -> None:
    """A goal that holds in the model's words alone is a claim, not a solution."""
    task = Blocksworld()
    (claim,) = walk(task, PROBLEM, f" think\nAction: {ACTIONS[0]}\nState: {STATES[3]}")
    assert claim.is_final
    assert not task.is_correct(PROBLEM, [claim])
    illegal = walk(task, PROBLEM, f" t\nAction: pick up the orange block\nState: {STATES[2]}", TEXTS[3])
    assert illegal[-1].is_final
    assert not task.is_correct(PROBLEM, illegal)


@pytest.mark.parametrize(
    ("actions", "is_right"),
    [
        (ACTIONS, True),
        ([], False),
        ([ACTIONS[0], "put down the blue block", *ACTIONS[2:]], False),  # illegal in the middle
        ([ACTIONS[0], "", *ACTIONS[2:]], False),
        (ACTIONS[1:], False),
        ([*ACTIONS, ACTIONS[2]], False),
        ([*ACTIONS, "unstack the orange block from on top of the blue block"], False),  # goal reached and left
    ],
)
def test_plans(actions: list[str], is_right: bool) -> None:
    assert is_plan(PROBLEM, actions) is is_right


def test_depth() -> None:
    assert Blocksworld(depth=2).depth == 2
    with pytest.raises(ConfigError, match="depth=0"):
        Blocksworld(depth=0)


def test_chat_conversation_grows_by_turns() -> None:
    task = BlocksworldChat()
    first = task.thought_ask(PROBLEM, [])
    path = walk(task, PROBLEM, f" {ACTIONS[0]}\nState: {STATES[0]}")
    assert path[0].text == f"Action: {ACTIONS[0]}\nState: {STATES[0]}"
    second, value = task.thought_ask(PROBLEM, path), task.value_ask(PROBLEM, path)
    assert isinstance(first.prompt, Chat)
    assert isinstance(second.prompt, Chat)
    assert isinstance(value.prompt, Chat)
    assert first.prompt.answer_prefix == "Action:"
    opening = first.prompt.messages[0]
    assert opening[1].endswith(f"Now your task:\nGoal: {GOAL}\nState: {START}\n{blocksworld._FIRST}")
    assert second.prompt.messages == (opening, ("assistant", path[0].text), ("user", blocksworld._NEXT))
    assert value.prompt.messages[:2] == second.prompt.messages[:2]
    assert (value.prompt.answer_prefix, value.choices) == ("Evaluation:", (" good", " bad"))


def test_chat_example_obeys_the_rules() -> None:
    goal, *rest = re.findall(r"^(?:Goal|Action|State): (.*)$", blocksworld._RULES, re.MULTILINE)
    state = parse_state(rest[0])
    for action, text in zip(rest[1::2], rest[2::2], strict=True):
        after = state.after(action)
        assert after is not None
        state = after
        assert text == state.text()
    assert state.reaches(goal)


@pytest.mark.parametrize(
    "text",
    [
        f" {ACTIONS[0]}\nState: {STATES[0]}",
        f"Action: {ACTIONS[0]}.\nState: {STATES[0]}.",
        f"**Action:** {ACTIONS[0].capitalize()}\n\n**State:** {STATES[0].capitalize()}.\n\nNow the hand is full.",
        f"1. action: `{ACTIONS[0]}`\n2. state: {STATES[0]}",
    ],
)
def test_chat_answers_that_are_understood(text: str) -> None:
    parsed = BlocksworldChat().read_thought(PROBLEM, [], text)
    assert parsed is not None
    assert parsed.text == f"Action: {ACTIONS[0]}\nState: {STATES[0]}"
    assert parsed.state == STATES[0]


@pytest.mark.parametrize("text", ["", ACTIONS[0], f"Sure!\n{ACTIONS[0]}\n{STATES[0]}", f"{ACTIONS[0]}\nstate: done"])
def test_chat_answers_that_are_not(text: str) -> None:
    assert BlocksworldChat().read_thought(PROBLEM, [], text) is None


def test_chat_regex_matches_every_right_answer() -> None:
    pattern = re.compile(thought_regex(PROBLEM))
    state = parse_state(START)
    for action, after in state.successors():
        assert pattern.fullmatch(f" {action}\nState: {after.text()}")
    assert not pattern.fullmatch(f" pick up the green block\nState: {START}")
    assert BlocksworldChat().thought_ask(PROBLEM, []).regex == pattern.pattern


@pytest.mark.parametrize(
    ("text", "value"),
    [(" good", 1), ("**Good**.", 1), ("Evaluation: bad", 0), ("goodness", None), ("", None), ("it is good", None)],
)
def test_chat_values(text: str, value: float | None) -> None:
    assert BlocksworldChat().read_value(text) == value


def test_actions_are_read_from_thoughts_of_both_dialects() -> None:
    for text in (TEXTS[0], f"Action: {ACTIONS[0]}\nState: {STATES[0]}"):
        assert blocksworld.plan_of([Thought("0", "root", text=text)]) == [ACTIONS[0]]
    assert blocksworld.plan_of([Thought("0", "root", text="no action")]) == [""]
