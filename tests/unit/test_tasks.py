"""GSM8K and Blocksworld: published formats, our own problems, prompts, the simulator."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seedmp.errors import ConfigError
from seedmp.tasks.blocksworld import (
    COLOURS,
    evaluation_prompt,
    generate_blocksworld,
    load_blocksworld,
    make_state,
    parse_state,
    shortest_plan_len,
)
from seedmp.tasks.gsm8k import final_number, load_gsm8k

GSM8K_LINE = {
    "question": "A pen costs $2. How many dollars do 600 pens cost?",
    "answer": "They cost 600 * 2 = $<<600*2=1200>>1200.\n#### 1,200",
}
BLOCKSWORLD_LINE = {
    "id": "generated/1",
    "n_steps": 4,
    "objects": ["a", "b", "c"],
    "init_text": "the red block is clear, the blue block is clear, the hand is empty, the red block is on "
    "top of the orange block, the blue block is on the table and the orange block is on the table",
    "goal_text": "the orange block is on top of the blue block",
}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_shipped_gsm8k_problems() -> None:
    problems = load_gsm8k(None, None)
    assert len(problems) == 8
    assert [problem.gold for problem in problems] == [18, 44, 180, 42, 48, 165, 105, 1300]
    for problem in problems:
        assert problem.is_solved_by(problem.answer)
        assert "<<" not in problem.answer
        assert problem.prompt == f"Question: {problem.question}\nAnswer:"
    assert load_gsm8k(None, 3) == problems[:3]


def test_gsm8k_file(tmp_path: Path) -> None:
    (problem,) = load_gsm8k(write(tmp_path / "x.jsonl", GSM8K_LINE), None)
    assert problem.gold == 1200
    assert problem.answer == "They cost 600 * 2 = $1200.\n#### 1,200"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so\n#### 72\n", 72),
        ("#### -5", -5),
        ("#### $1,300.", 1300),
        ("#### 1\n#### 2", 2),
        ("72", None),
        ("#### none", None),
    ],
)
def test_final_number(text: str, number: int | None) -> None:
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("load", "good", "fields"),
    [
        (load_gsm8k, GSM8K_LINE, ("question", "answer")),
        (load_blocksworld, BLOCKSWORLD_LINE, ("init_text", "goal_text")),
    ],
)
def test_bad_files_are_named(
    load: Callable[[Path, int | None], Any], good: dict[str, Any], fields: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "problems.jsonl"
    for field in fields:
        write(file, good, {name: value for name, value in good.items() if name != field})
        with pytest.raises(ConfigError, match=rf"problems\.jsonl, line 2: .*'{field}' is missing"):
            load(file, None)
        assert len(load(file, 1)) == 1
        write(file, good | {field: 7})
        with pytest.raises(ConfigError, match=f"line 1: .*'{field}' is 7"):
            load(file, None)
        write(file, good | {field: "no such format"})
        if field != "question":
            with pytest.raises(ConfigError, match=f"line 1: .*'{field}'"):
                load(file, None)
    for text, message in (
        ("", "no problems"),
        ("\n\n", "no problems"),
        ("a,b\n", "no JSON"),
        ("[1]\n", "list"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=rf"problems\.jsonl.*{message}"):
            load(file, None)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        load(file, None)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.jsonl", None)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path, None)
    write(file, good)
    with pytest.raises(ConfigError, match="limit=0"):
        load(file, 0)


def test_blocksworld_file_and_prompts(tmp_path: Path) -> None:
    (problem,) = load_blocksworld(write(tmp_path / "x.jsonl", BLOCKSWORLD_LINE), None)
    assert (problem.num_steps, problem.problem_id) == (4, "generated/1")
    head = f"Blocksworld\nGoal: {problem.goal_text}\nState: {problem.init_text}\n"
    assert problem.thought_prompt == head + "Think:"
    assert evaluation_prompt(problem.goal_text, problem.init_text) == head + "Steps left:"
    minimal = {name: BLOCKSWORLD_LINE[name] for name in ("init_text", "goal_text")}
    (problem,) = load_blocksworld(write(tmp_path / "y.jsonl", minimal), None)
    assert problem.num_steps is None


def test_a_plan_by_hand() -> None:
    state = parse_state(str(BLOCKSWORLD_LINE["init_text"]))
    assert state.text() == BLOCKSWORLD_LINE["init_text"]
    goal = str(BLOCKSWORLD_LINE["goal_text"])
    assert shortest_plan_len(state, goal) == 4
    for action in (
        "unstack the red block from on top of the orange block",
        "put down the red block",
        "pick up the orange block",
        "stack the orange block on top of the blue block",
    ):
        assert not state.reaches(goal)
        after = state.after(action)
        assert after is not None
        state = after
    assert state.reaches(goal)
    assert state.text() == (
        "the red block is clear, the orange block is clear, the hand is empty, the orange block is on top of "
        "the blue block, the red block is on the table and the blue block is on the table"
    )


def test_held_block_and_illegal_actions() -> None:
    state = make_state([("red", "blue")], held="orange")
    assert state.text() == (
        "the blue block is clear, the hand is holding the orange block, the blue block is on top of the red "
        "block and the red block is on the table"
    )
    assert parse_state(state.text()) == state
    assert state.after("stack the orange block on top of the blue block") is not None
    assert state.after("stack the orange block on top of the red block") is None
    assert state.after("unstack the blue block from on top of the red block") is None
    assert state.after("fly") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "the sky is blue",
        "the red block is on top of the red block",
        "the red block is on top of the blue block",
        "the red block is on the table and the red block is on top of the blue block",
        "the red block is on top of the blue block, the blue block is on the table, the blue block is clear",
        "the hand is holding the red block and the red block is on the table",
    ],
)
def test_states_that_cannot_be(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_state(text)


def test_made_problems_are_deterministic_and_right() -> None:
    problems = load_blocksworld(None, None)
    assert problems == load_blocksworld(None, None)
    assert len(problems) == 8
    assert len(set(problems)) == 8
    assert load_blocksworld(None, 2) == problems[:2]
    for problem in problems:
        state = parse_state(problem.init_text)
        assert state.text() == problem.init_text
        assert 3 <= sum(map(len, state.towers)) <= len(COLOURS)
        assert shortest_plan_len(state, problem.goal_text) == problem.num_steps
        assert not state.reaches(problem.goal_text)
    assert generate_blocksworld(3, seed=1) != generate_blocksworld(3, seed=2)
    (one,) = generate_blocksworld(1, num_blocks=4, num_steps=4)
    assert one.num_steps == 4
    assert one.init_text.count("block is") >= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_blocks": 2}, "num_blocks=2: must be from 3 to 5"),
        ({"num_blocks": 6}, "num_blocks=6"),
        ({"num_steps": 3}, "num_steps=3: must be even"),
        ({"num_blocks": 3, "num_steps": 40}, "no problem of 3 blocks"),
    ],
)
def test_problems_that_cannot_be_made(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        generate_blocksworld(1, **options)
