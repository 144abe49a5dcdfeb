"""Game of 24: the exact checker, published tables, prompts word for word, what parses."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import pytest

from seedmp.errors import ConfigError
from seedmp.search.task import Chat
from seedmp.tasks import game24
from seedmp.tasks.game24 import Game24, Game24Chat, Game24Problem, evaluate, load_game24, parse_step
from tests.helpers.paths import walk

PROBLEM = Game24Problem((8, 4, 7, 10))
STEPS = [" 8 / 4 = 2 (left: 2 7 10)", " 7 * 2 = 14 (left: 10 14)", " 14 + 10 = 24 (left: 24)"]
ANSWER = " 7 * (8 / 4) + 10 = 24"
TABLE = "Rank,Puzzles,AMT (s),Solved rate,1-sigma Mean (s),1-sigma STD (s)\n"


@pytest.mark.parametrize(
    ("numbers", "expression", "is_right"),
    [
        ((1, 1, 4, 6), "(1 + 1) * 4 * 6", False),
        ((1, 1, 4, 6), "4 * 6 * 1 * 1", True),
        ((4, 7, 8, 10), "7 * (8 / 4) + 10", True),
        ((4, 7, 8, 10), "7*(8/4)+10", True),
        ((3, 3, 8, 8), "8 / (3 - 8 / 3)", True),  # exact only with fractions
        ((1, 4, 5, 6), "6 / (5 / 4 - 1)", True),
        ((4, 7, 8, 10), "8 / 4 * 7 + 8 / 4 * 5", False),  # other numbers
        ((2, 3, 4, 6), "4 * 6", False),  # not all of them
        ((4, 6, 6, 10), "(6 - 4) * 6 + 6 + 6", False),  # one too often
        ((4, 6, 7, 10), "24", False),
        ((3, 8, 9, 9), "3 * 8 * 9 / 9 + 0", False),  # one too many
        ((2, 4, 4, 6), "2 ** 4 + 4 + 4", False),
        ((2, 4, 12, 4), "12 // 4 * 4 * 2", False),
        ((4, 4, 6, 8), "-4 + 4 + 24", False),
        ((4, 4, 6, 8), "-(4 - 4 - 6) * 4", False),
        ((8, 8, 4, 4), "8 - (-8) + 4 + 4", True),
        ((8, 8, 4, 4), "-(-8) + 8 + 4 + 4", True),
        ((8, 8, 4, 4), "-(-8) + 8 + 4 - 4", False),
        ((4, 6, 1, 1), "4 * 6 / (1 - 1)", False),
        ((4, 6, 1, 1), "4 * 6 * 1 * 1 + ", False),
        ((4, 6, 1, 1), "4 * 6 * 1 * True", False),
        ((4, 6, 1, 1), "4(6)(1)(1)", False),
        ((4, 6, 1, 1), "4 6 1 1", False),
        ((24, 1, 1, 1), "24.0 * 1 * 1 * 1", False),
        ((4, 6, 1, 1), "04 * 6 * 1 * 1", False),
        ((4, 6, 1, 1), "(" * 99 + "4" + ")" * 99, False),
        ((4, 6, 1, 1), "1" * 10_000, False),
        ((4, 6, 1, 1), "", False),
        ((4, 6, 1, 1), "__import__('os')", False),
    ],
)
def test_expressions(numbers: tuple[int, ...], expression: str, is_right: bool) -> None:
    assert Game24Problem(numbers).is_solved_by(expression) is is_right


def test_huge_numbers_are_no_step() -> None:
    many = "1" * 5000
    for text in (f"{many} - 1 = 1 (left: 1 2)", f"1 - 1 = 0 (left: 1 {many})", f"1 / 1.{many} = 1 (left: 1)"):
        assert parse_step(text) is None
    assert evaluate(many) is None


def test_24_by_rounding_is_not_24() -> None:
    """In floating point this is 24.0 exactly; in truth it is a little less."""
    expression = "24 - 1 / 999999999999999999"
    assert 24 - 1 / 999999999999999999 == 24
    found = evaluate(expression)
    assert found is not None
    assert found[0] < 24
    assert not Game24Problem((24, 1, 999999999999999999)).is_solved_by(expression)


@pytest.mark.parametrize(
    ("text", "is_true"),
    [
        ("8 / 4 = 2 (left: 2 7 10)", True),
        ("4 - 8 = -4 (left: -4 7 10)", True),
        ("7 / 4 = 7/4 (left: 7/4 8 10)", True),
        ("7 / 4 = 1.75 (left: 1.75 8 10)", True),
        ("8 / 7 = 1.14 (left: 1.14 4 10)", False),
        ("8 / 4 = 3 (left: 3 7 10)", False),
        ("8 / 4 = 2 (left: 2 7 11)", False),
        ("8 / 4 = 2 (left: 2 7)", False),
        ("8 + 8 = 16 (left: 4 7 10 16)", False),  # one number twice
        ("8 + 8 = 16 (left: 7 10 16)", False),
        ("9 - 7 = 2 (left: 2 8 10)", False),
        ("8 / 0 = 8 (left: 4 7 8 10)", False),
    ],
)
def test_steps(text: str, is_true: bool) -> None:
    step = parse_step(text)
    assert step is not None
    assert step.is_true([Fraction(n) for n in PROBLEM.numbers]) is is_true


@pytest.mark.parametrize("text", ["", "8 / 4 = 2", "8 ^ 4 = 2 (left: 1)", "8 / 4 (left: 2)", "8 / 4 = 1/0 (left: 1/0)"])
def test_what_is_no_step(text: str) -> None:
    assert parse_step(text) is None


def test_step_is_written_in_one_way() -> None:
    step = parse_step("8/4=2  (left: 10, 7, 2)")
    assert step is not None
    assert step.text == "8 / 4 = 2 (left: 2 7 10)"


def test_published_table(tmp_path: Path) -> None:
    file = tmp_path / "24.csv"
    file.write_text(TABLE + "1,1 1 4 6,4.4,99.20%,4.67,1.48\n2,11 1 1 11,4.41,99.60%,4.68,1.45\n")
    assert load_game24(file) == [Game24Problem((1, 1, 4, 6), "1"), Game24Problem((11, 1, 1, 11), "2")]
    assert len(load_game24(file, 1)) == 1
    assert load_game24(file)[1].words == "1 1 11 11"


def test_plain_lines_and_made_puzzles(tmp_path: Path) -> None:
    file = tmp_path / "24.txt"
    file.write_text("4 7 8 10\n\n3,3,8,8\n")
    assert [problem.numbers for problem in load_game24(file)] == [(4, 7, 8, 10), (3, 3, 8, 8)]
    made = load_game24()
    assert len(made) == 8
    assert made == load_game24(limit=8)
    assert load_game24(limit=20)[:8] == made


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TABLE + "1,1 1 4,4\n", r"24\.csv, line 2: .*field 'Puzzles' is '1 1 4': must be four whole numbers"),
        (TABLE + "1,1 1 4 x,4\n", "line 2: .*field 'Puzzles' is '1 1 4 x'"),
        (TABLE + "1\n", "line 2: .*field 'Puzzles' is missing"),
        (TABLE, "no problems"),
        ("Rank,Numbers\n1,2\n", r"line 1: .*the line is 'Rank Numbers': must be four"),
        ("1 2 3 4\n1 2 3 4 5\n", "line 2: .*must be four"),
        ("1 2 3 0\n", "line 1: .*from 1 to 999"),
        ("", "no problems"),
    ],
)
def test_wrong_files_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "24.csv"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_game24(file)
    with pytest.raises(ConfigError, match="limit=0"):
        load_game24(None, 0)


def test_prompts_of_the_bundled_pair() -> None:
    task = Game24()
    path = walk(task, PROBLEM, *STEPS, ANSWER)
    asks = [task.thought_ask(PROBLEM, path[:depth]) for depth in range(4)]
    assert asks[0].prompt == "Input: 4 7 8 10\nStep:"
    assert asks[1].prompt == f"Input: 4 7 8 10\nStep:{STEPS[0]}\nStep:"
    written = f"Input: 4 7 8 10\nStep:{STEPS[0]}\nStep:{STEPS[1]}\nStep:{STEPS[2]}"
    assert asks[3].prompt == f"{written}\nAnswer:"
    assert all(ask.stop == ("\n",) for ask in asks)
    value = task.value_ask(PROBLEM, path[:1])
    assert value.prompt == f"Input: 4 7 8 10\nStep:{STEPS[0]}\nJudge:"
    assert value.choices == (" sure", " likely", " impossible")
    assert [task.read_value(choice) for choice in value.choices] == [1, 1, 0]
    assert task.value_ask(PROBLEM, path).prompt == task.value_ask(PROBLEM, path[:3]).prompt == f"{written}\nJudge:"


def test_answer_level_is_optional() -> None:
    long, short = Game24(), Game24(answer=False)
    assert (long.depth, short.depth) == (4, 3)
    assert [t.is_final for t in walk(long, PROBLEM, *STEPS, ANSWER)] == [False, False, False, True]
    assert [t.is_final for t in walk(short, PROBLEM, *STEPS)] == [False, False, True]
    assert short.is_correct(PROBLEM, walk(short, PROBLEM, *STEPS))
    assert long.is_correct(PROBLEM, walk(long, PROBLEM, *STEPS, ANSWER))
    assert not long.is_correct(PROBLEM, walk(long, PROBLEM, *STEPS))
    assert short.answer(PROBLEM, walk(short, PROBLEM, *STEPS)) == "8 / 4 = 2; 7 * 2 = 14; 14 + 10 = 24"
    assert long.answer(PROBLEM, walk(long, PROBLEM, *STEPS, ANSWER)) == ANSWER.strip()


@pytest.mark.parametrize(
    ("texts", "steps_are_right", "expression_is_right"),
    [
        ([*STEPS, ANSWER], True, True),
        ([*STEPS, " 7 * 8 / 4 + 10 = 24"], True, True),
        ([*STEPS, " 8 * 4 - 7 - 10 = 24"], True, False),
        ([*STEPS, " 7 * (8 / 4) + 11 = 24"], True, False),
        ([" 8 / 4 = 2 (left: 2 7 10)", " 7 * 2 = 12 (left: 10 12)", " 12 + 12 = 24 (left: 24)", ANSWER], False, True),
        ([STEPS[0], STEPS[1], " 14 - 10 = 4 (left: 4)", ANSWER], False, True),
        ([STEPS[0], " 2 + 7 = 9 (left: 9 24)", " 24 * 1 = 24 (left: 24)", ANSWER], False, True),
    ],
)
def test_the_expression_decides_or_else_the_steps(
    texts: list[str], steps_are_right: bool, expression_is_right: bool
) -> None:
    long, short = Game24(), Game24(answer=False)
    path = walk(long, PROBLEM, *texts)
    assert long.is_correct(PROBLEM, path) is expression_is_right
    assert long.score(PROBLEM, path) == {"steps_correct": steps_are_right}
    assert short.is_correct(PROBLEM, path[:3]) is steps_are_right


def test_a_hopeless_path_does_not_get_better() -> None:
    assert Game24().path_value(None, 0.9) == 0.9
    assert Game24().path_value(0.1, 1.0) == pytest.approx(0.1)


def test_thoughts_of_the_bundled_pair() -> None:
    task = Game24()
    parsed = task.read_thought(PROBLEM, [], f"{STEPS[0]}\nJudge: likely")
    assert parsed is not None
    assert (parsed.text, parsed.state) == (STEPS[0], "2 7 10")
    false = task.read_thought(PROBLEM, [], " 8 / 4 = 5 (left: 10 7 5)")
    assert false is not None, "what is not true is not for the parser to say"
    assert false.state == "5 7 10"
    for text in ("", " 8 / 4 = 2", " 8 / 4 = 2 (left: 2 7)", " 8 / 4 = 2 (left: 24)", ANSWER, " Step: nothing"):
        assert task.read_thought(PROBLEM, [], text) is None
    path = walk(task, PROBLEM, *STEPS)
    for text in ("", STEPS[0], " 7 * (8 = 24", " no", " 7 ** 2 = 24", " 8 * 3 ="):
        assert task.read_thought(PROBLEM, path, text) is None
    claims = [(ANSWER, True), (" 7 * (8 / 4) + 10", True), (" 7 * (8 / 4) + 11 = 25", False)]
    for text, is_final in claims:
        parsed = task.read_thought(PROBLEM, path, text)
        assert parsed is not None
        assert parsed.is_final is is_final


def test_states() -> None:
    """Equal numbers are one thought as long as what follows depends on them alone."""
    task = Game24()
    ours, theirs = walk(task, PROBLEM, *STEPS), walk(task, PROBLEM, " 10 * 1 = 2 (left: 2 7 10)", *STEPS[1:])
    assert [t.state for t in ours[:2]] == [t.state for t in theirs[:2]] == ["2 7 10", "10 14"]
    assert ours[2].state != theirs[2].state


def test_chat_prompts() -> None:
    task = Game24Chat()
    path = walk(task, PROBLEM, *STEPS, ANSWER)
    assert [thought.text for thought in path] == [text.strip() for text in [*STEPS, ANSWER]]
    first = task.propose_ask(PROBLEM, [], 8)
    assert isinstance(first.prompt, Chat)
    assert first.prompt.messages[0][1].endswith(
        "Numbers: 4 7 8 10\nWrite up to 8 different possible next steps, one a line, nothing else."
    )
    second = task.thought_ask(PROBLEM, path[:1])
    assert isinstance(second.prompt, Chat)
    assert "Numbers: 2 7 10\n" in second.prompt.messages[0][1]
    last = task.propose_ask(PROBLEM, path[:3], 8)
    assert isinstance(last.prompt, Chat)
    assert last == task.thought_ask(PROBLEM, path[:3])
    assert "\n".join(["Numbers: 4 7 8 10", *(t.text for t in path[:3])]) in last.prompt.messages[0][1]
    value, judged = task.value_ask(PROBLEM, path[:2]), task.value_ask(PROBLEM, path)
    assert isinstance(value.prompt, Chat)
    assert isinstance(judged.prompt, Chat)
    assert value.prompt.messages[0][1].endswith("10 14: sure, likely or impossible? Answer with one word.")
    assert f"Numbers: 4 7 8 10\nAnswer: {ANSWER.strip()}\n" in judged.prompt.messages[0][1]
    assert value.choices == tuple(task.value_labels)


def test_chat_examples_are_true() -> None:
    before = [Fraction(n) for n in (2, 8, 8, 14)]
    lines = game24._PROPOSE.split("\n\n")[0].split("\n")[2:]
    assert len(lines) == 8
    for line in lines:
        step = parse_step(line)
        assert step is not None
        assert step.is_true(before)
    for numbers, step_text in re.findall(r"Numbers: ([\d ]+)\nNext step: (.*)", game24._NEXT):
        step = parse_step(step_text)
        assert step is not None
        assert step.is_true([Fraction(n) for n in numbers.split()])
    example, *steps, answer = game24._COMPOSE.split("\n\n")[0].split("\n")
    problem = Game24Problem(tuple(map(int, example.removeprefix("Numbers: ").split())))
    task = Game24Chat()
    assert task.is_correct(problem, walk(task, problem, *steps, answer))
    judged = re.findall(r"^([\d ]+): (sure|impossible)", game24._JUDGE, re.MULTILINE)
    for words, label in judged:
        assert game24._is_solvable(tuple(map(int, words.split()))) is (label == "sure")


def test_chat_formats_hold_every_step() -> None:
    """What the regular expressions let through parses; true steps are let through."""
    task = Game24Chat()
    path = walk(task, PROBLEM, *STEPS)
    for depth, text in enumerate([*STEPS, ANSWER]):
        ask = task.thought_ask(PROBLEM, path[:depth])
        assert ask.regex is not None
        assert re.fullmatch(ask.regex, text)
        if depth:
            assert not re.fullmatch(ask.regex, STEPS[0])
    regex = task.propose_ask(PROBLEM, [], 3).regex
    assert regex is not None
    lines = ["8 / 4 = 2 (left: 2 7 10)", "4 - 8 = -4 (left: -4 7 10)", "7 / 4 = 7/4 (left: 7/4 8 10)"]
    assert re.fullmatch(regex, "\n".join(lines))
    assert re.fullmatch(regex, lines[0])
    assert not re.fullmatch(regex, "\n".join([*lines, lines[0]]))
    assert all(task.read_thought(PROBLEM, [], line) for line in lines)


@pytest.mark.parametrize(
    "text", ["8 / 4 = 2 (left: 2 7 10)", "1. 8 ÷ 4 = 2 (left: 2, 7, 10).", "- **Step 1:** 8/4 = 2 (left: 10 7 2)"]
)
def test_chat_steps(text: str) -> None:
    parsed = Game24Chat().read_thought(PROBLEM, [], text)
    assert parsed is not None
    assert (parsed.text, parsed.state) == ("8 / 4 = 2 (left: 2 7 10)", "2 7 10")


@pytest.mark.parametrize("text", ["Answer: 7 * (8 / 4) + 10 = 24", "**7 × (8 ÷ 4) + 10 = 24.**", "7 * (8 / 4) + 10"])
def test_chat_answers(text: str) -> None:
    task = Game24Chat()
    path = walk(task, PROBLEM, *STEPS)
    parsed = task.read_thought(PROBLEM, path, text)
    assert parsed is not None
    assert parsed.text == ANSWER.strip()
    assert parsed.is_final
    for wrong in ("", "I cannot", "The answer is 24 = 24 = 24"):
        assert task.read_thought(PROBLEM, path, wrong) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [(" sure", 20), ("Judgement: Likely.", 1), ("**impossible**", 0.001), ("surely", None), ("not sure", None)],
)
def test_chat_values(text: str, value: float | None) -> None:
    assert Game24Chat().read_value(text) == value
