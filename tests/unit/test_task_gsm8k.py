"""GSM8K as a task: prompts word for word, where a solution ends, which number counts."""

from __future__ import annotations

import pytest

from seedmp.errors import ConfigError
from seedmp.search.task import Chat
from seedmp.tasks import gsm8k
from seedmp.tasks.gsm8k import Gsm8k, Gsm8kChat, Gsm8kProblem, final_number
from tests.helpers.paths import walk

QUESTION = "Ann has 3 boxes of 12 eggs and breaks 5. How many are left?"
PROBLEM = Gsm8kProblem(QUESTION, "She has 3 * 12 = 36.\n36 - 5 = 31 are left.\n#### 31", 31)
LINES = [" She has 3 * 12 = 36.", "36 - 5 = 31 are left.", "#### 31"]


def test_prompts_of_the_bundled_pair() -> None:
    task = Gsm8k()
    assert task.depth == 4
    path = walk(task, PROBLEM, *LINES)
    assert [thought.is_final for thought in path] == [False, False, True]
    assert task.thought_ask(PROBLEM, []).prompt == f"Question: {QUESTION}\nAnswer:"
    assert task.thought_ask(PROBLEM, path[:1]).prompt == f"Question: {QUESTION}\nAnswer:{LINES[0]}\n"
    assert task.thought_ask(PROBLEM, path[:2]).prompt == f"Question: {QUESTION}\nAnswer:{LINES[0]}\n{LINES[1]}\n"
    assert task.thought_ask(PROBLEM, path[:2]).stop == ("\n",)
    assert "\n" not in task.thought_ask(PROBLEM, path).stop, "the last thought is the rest of the solution"
    assert task.is_correct(PROBLEM, path)
    assert task.answer(PROBLEM, path) == "31"
    assert task.score(PROBLEM, path) == {"gold": 31}


def test_thoughts_of_the_bundled_pair() -> None:
    task = Gsm8k(depth=2)
    path = walk(task, PROBLEM, f"{LINES[0]}\nand more")
    assert path[0].text == LINES[0]
    assert path[0].state == "", "equal lines are not merged: agreement is what is counted"
    (rest,) = walk(task, PROBLEM, LINES[0], "36 - 5 = 31.\n#### 31\nQuestion: another\n#### 7")[1:]
    assert rest.text == "36 - 5 = 31.\n#### 31"
    assert rest.is_final
    assert task.is_correct(PROBLEM, [*path, rest])
    (open_end,) = walk(task, PROBLEM, LINES[0], "36 - 5 = 31.")[1:]
    assert not open_end.is_final
    assert not task.is_correct(PROBLEM, [*path, open_end])
    assert task.answer(PROBLEM, [open_end]) == ""
    for text in ("", "  ", "\nmore"):
        assert task.read_thought(PROBLEM, [], text) is None
    with pytest.raises(ConfigError, match="depth=0"):
        Gsm8k(depth=0)


@pytest.mark.parametrize(
    ("text", "number", "answer"),
    [
        ("#### 31", 31, "31"),
        ("#### 31.00", 31, "31"),
        ("#### 31.5", None, "31.5"),
        ("#### 31,000", 31000, "31000"),
        ("####31", 31, "31"),
        ("#### thirty-one", None, ""),
    ],
)
def test_numbers_that_are_not_whole(text: str, number: int | None, answer: str) -> None:
    task = Gsm8k()
    path = walk(task, PROBLEM, text)
    assert final_number(text) == number
    assert task.is_correct(PROBLEM, path) is (number == 31)
    assert task.answer(PROBLEM, path) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 1/2", "0.5"),
        ("#### 2/4", "0.5"),
        ("#### -1/2", "-0.5"),
        ("#### 1/3", "1/3"),
        ("#### 1 1/2", "1.5"),
        ("#### 62/2", "31"),
        ("#### 1e3", "1000"),
        ("#### 3.1e1", "31"),
        ("#### 1.5 x 10^3", "1500"),
        ("#### 1/0", "1/0"),
        ("#### .5", "0.5"),
        ("#### **31**", "31"),
        ("**#### 31**", "31"),
        ("#### __31__", "31"),
        ("#### *31* eggs", "31"),
        ("#### (31)", "31"),
        ("#### -$31", "-31"),
        ("#### \u221231", "-31"),
        ("#### 31%", "31"),
        ("#### 1{,}200", "1200"),
        (r"\boxed{31}", "31"),
        (r"#### $\boxed{31}$", "31"),
        (r"So \[\boxed{\frac{62}{2}}\]", "31"),
        (r"\boxed{31\text{ eggs}}", "31"),
        (r"It is \boxed{7}, no: \boxed{31}.", "31"),
        ("There are **5** and **31 eggs**.", "31"),
        ("**5** are left.\n#### 31", "31"),
    ],
)
def test_numbers_as_models_write_them(text: str, answer: str) -> None:
    task = Gsm8k(depth=1)
    path = walk(task, PROBLEM, text)
    assert task.answer(PROBLEM, path) == answer
    assert task.is_correct(PROBLEM, path) is (answer == "31")


@pytest.mark.parametrize("digits", ["9" * 5000, "1e999999999", "1e5000", f"1/{'3' * 5000}", f"0.{'1' * 5000}"])
def test_numbers_with_too_many_digits_are_wrong_answers(digits: str) -> None:
    task = Gsm8k(depth=1)
    path = walk(task, PROBLEM, f"#### {digits}")
    assert not task.is_correct(PROBLEM, path)
    assert task.answer(PROBLEM, path) == digits


def test_chat_history_is_in_every_prompt() -> None:
    task = Gsm8kChat()
    steps = ["How many eggs are there? 3 * 12 = 36.", "How many are left? 36 - 5 = 31."]
    path = walk(task, PROBLEM, *steps)
    assert [thought.text for thought in path] == [step[:-1] for step in steps]
    opening = ("user", gsm8k._OPENING.format(QUESTION))
    first, third, value = task.thought_ask(PROBLEM, []), task.thought_ask(PROBLEM, path), task.value_ask(PROBLEM, path)
    assert first.prompt == Chat((opening,), "Step 1:")
    history = (
        opening,
        ("assistant", f"Step 1: {path[0].text}"),
        ("user", "Write step 2 only, in one line."),
        ("assistant", f"Step 2: {path[1].text}"),
    )
    assert third.prompt == Chat((*history, ("user", "Write step 3 only, in one line.")), "Step 3:")
    assert value.prompt == Chat((*history, ("user", gsm8k._VALUE)), "Value:")
    assert value.choices == tuple(f" {number}" for number in range(11))
    assert path[0].state in path[1].state
    last = task.thought_ask(PROBLEM, walk(task, PROBLEM, *steps, "And now? 31."))
    assert isinstance(last.prompt, Chat)
    assert (last.prompt.answer_prefix, last.regex) == ("####", r" -?[0-9][0-9,]{0,14}")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (" How many? 3 * 12 = 36 eggs.", "How many? 3 * 12 = 36 eggs"),
        ("**Step 1:** How many? 36\nStep 2: more", "How many? 36"),
        ("Answer: 36 - 5 = 31", "Answer: 36 - 5 = 31"),
    ],
)
def test_chat_steps(text: str, kept: str) -> None:
    parsed = Gsm8kChat().read_thought(PROBLEM, [], text)
    assert parsed is not None
    assert (parsed.text, parsed.is_final) == (kept, False)


@pytest.mark.parametrize(
    "text",
    [
        "#### 31",
        "Step 3: #### 31.",
        "**Answer: 31**",
        "The final answer is $31.",
        "#### 31 eggs",
        r"\boxed{31}",
        r"The answer is $\boxed{31}$.",
    ],
)
def test_chat_finals(text: str) -> None:
    task = Gsm8kChat()
    path = walk(task, PROBLEM, text)
    assert (path[0].text, path[0].is_final) == ("#### 31", True)
    assert task.is_correct(PROBLEM, path)


def test_chat_last_thought_is_a_number() -> None:
    task = Gsm8kChat(depth=1)
    for text in (" 31", "$31", "31 eggs.", "#### 31", "**31**", r"\boxed{31}"):
        assert walk(task, PROBLEM, text)[0].text == "#### 31"
    for text in ("", "31 + 2", "many", "How many? 31"):
        assert task.read_thought(PROBLEM, [], text) is None
    assert Gsm8kChat().read_thought(PROBLEM, [], "#### 36 - 5 = 31") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 10", 10),
        ("7.", 7),
        ("Value: **3**", 3),
        ("8/10", 8),
        ("11", None),
        ("7.5", None),
        ("-1", None),
        ("good", None),
    ],
)
def test_chat_values(text: str, value: float | None) -> None:
    assert Gsm8kChat().read_value(text) == value


def test_chat_example_is_right() -> None:
    example = gsm8k._OPENING.split("Problem:")[1]
    assert 3 * 12 == 36
    assert (3 * 12 - 5) * 2 == 62 == final_number(example)
