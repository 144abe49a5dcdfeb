"""Game of 24: make 24 from four numbers, each used once, with + - * /; checked with exact fractions.

A thought takes two numbers and leaves one fewer: ``8 / 4 = 2 (left: 2 7 10)``. After three of them the
last thought writes the whole as one expression: ``(10 - 4) * (8 / 2) = 24``.
"""

from __future__ import annotations

import ast
import csv
import operator
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from seedmp.search.task import Ask, Defaults, Parsed, Task
from seedmp.search.thought_tree import Thought
from seedmp.tasks.chat import conversation, plain_lines, read_label
from seedmp.tasks.jsonl import FieldError, check_limit, read_lines

GOAL = 24
NUM_NUMBERS = 4
DEFAULT_NUM_PROBLEMS = 8
MAX_MADE = 13  # numbers of made problems, as on cards
MAX_CHARS = 200  # of an expression or a step; longer ones are refused before they are parsed

Numbers = tuple[Fraction, ...]  # sorted
WON: Numbers = (Fraction(GOAL),)

_OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}
_AST_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_NUMBER = r"-?\d+(?:\.\d+)?(?:/\d+)?"
_STEP = re.compile(rf"({_NUMBER})\s*([-+*/])\s*({_NUMBER})\s*=\s*({_NUMBER})\s*\(left:((?:[\s,]+{_NUMBER})+)\)")
_ANSWER = re.compile(r"([\d\s+\-*/()]*\d[\d\s+\-*/()]*)(?:=\s*(\d+))?")
_OTHER_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})


@dataclass(frozen=True)
class Game24Problem:
    """One puzzle.

    Attributes:
        numbers: four whole numbers in the order of the file.
        problem_id: where it comes from.
    """

    numbers: tuple[int, ...]
    problem_id: str = ""

    @property
    def words(self) -> str:
        """The numbers in rising order."""
        return " ".join(map(str, sorted(self.numbers)))

    def is_solved_by(self, expression: str) -> bool:
        """Whether an expression is exactly 24 and uses each number exactly once."""
        found = evaluate(expression)
        return found is not None and found[0] == GOAL and Counter(found[1]) == Counter(self.numbers)


@dataclass(frozen=True)
class Step:
    """What a step says, true or not.

    Attributes:
        first, sign, second: the operation.
        result: what it is said to be.
        left: the numbers said to be left, sorted.
    """

    first: Fraction
    sign: str
    second: Fraction
    result: Fraction
    left: Numbers

    @property
    def text(self) -> str:
        """The step in words."""
        return f"{self.first} {self.sign} {self.second} = {self.result} (left: {_words(self.left)})"

    def is_true(self, before: Sequence[Fraction]) -> bool:
        """Whether it takes two of the numbers, calculates rightly and leaves what it says."""
        if self.sign == "/" and self.second == 0:
            return False
        rest = Counter(before)
        rest.subtract([self.first, self.second])
        true_result = _OPERATORS[self.sign](self.first, self.second)
        rest[true_result] += 1
        return min(rest.values()) >= 0 and true_result == self.result and +rest == Counter(self.left)


def parse_step(text: str) -> Step | None:
    """Read ``8 / 4 = 2 (left: 2 7 10)``; numbers may be fractions. None when it is something else."""
    found = _STEP.fullmatch(text.strip()) if len(text) <= MAX_CHARS else None
    if found is None:
        return None
    try:
        first, second, result = (Fraction(found[group]) for group in (1, 3, 4))
        left = tuple(sorted(Fraction(number) for number in re.split(r"[\s,]+", found[5].strip(" ,"))))
    except ZeroDivisionError:  # a fraction like 1/0
        return None
    return Step(first, found[2], second, result, left)


def evaluate(expression: str) -> tuple[Fraction, tuple[int, ...]] | None:
    """Value of an expression and the numbers in it, exactly; None when it is not one of + - * / over whole numbers."""
    if len(expression) > MAX_CHARS or not re.fullmatch(r"[\d\s+\-*/()]+", expression):
        return None
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        numbers: list[int] = []
        return _value(tree, numbers), tuple(numbers)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def load_game24(path: Path | None = None, limit: int | None = None) -> list[Game24Problem]:
    """Load puzzles.

    Args:
        path: the published table (a ``Puzzles`` column with the four numbers), or a file of four numbers a
            line. None makes puzzles that can be solved with whole numbers, always the same.
        limit: problems at most; None for all (eight made ones).

    Raises:
        ConfigError: the file cannot be read, has another format or no problems; names file, line, field.
    """
    if path is None:
        check_limit(limit)
        return _make_problems(DEFAULT_NUM_PROBLEMS if limit is None else limit)
    header: list[str] = []

    def parse(line: str) -> Game24Problem | None:
        try:
            cells = next(csv.reader([line]))
        except csv.Error as error:
            raise FieldError(f"no row of a table ({error})") from None
        if not header and "Puzzles" in cells:
            header.extend(cells)
            return None
        if not header:
            return Game24Problem(_four_numbers(line.replace(",", " "), "the line"))
        row = dict(zip(header, cells, strict=False))
        if "Puzzles" not in row:
            raise FieldError(f"field 'Puzzles' is missing; the line has {len(cells)} of {len(header)} fields")
        return Game24Problem(_four_numbers(row["Puzzles"], "field 'Puzzles'"), row.get("Rank", ""))

    return read_lines(path, "Game of 24", limit, parse)


class Game24(Task[Game24Problem]):
    """For the bundled pair: three steps over whole numbers and, if wanted, the expression that they make.

    Args:
        answer: whether a fourth thought writes the expression; else the third step ends the path.
    """

    name = "game24"
    # The pair judges "sure" or "impossible" with one or two numbers left, "likely" or "impossible" with more.
    value_labels: Mapping[str, float] = {" sure": 1.0, " likely": 1.0, " impossible": 0.0}
    defaults = Defaults(num_thoughts=8, temperature=1.0, evaluate="score", beam=5)

    def __init__(self, answer: bool = True) -> None:
        self.depth = NUM_NUMBERS if answer else NUM_NUMBERS - 1

    def load(self, path: Path | None = None, limit: int | None = None) -> list[Game24Problem]:
        return load_game24(path, limit)

    def describe(self, problem: Game24Problem) -> str:
        return f"Make {GOAL} from {problem.words}"

    def thought_ask(self, problem: Game24Problem, path: Sequence[Thought]) -> Ask:
        if _is_answer(len(path)):
            return Ask(f"{_written(problem, path)}\nAnswer:", max_tokens=64, stop=("\n",))
        return Ask(f"{_written(problem, path)}\nStep:", max_tokens=48, stop=("\n",))

    def read_thought(self, problem: Game24Problem, path: Sequence[Thought], text: str) -> Parsed | None:
        line = text.split("\n")[0].rstrip()
        return self._read_line(path, line, line)

    def value_ask(self, problem: Game24Problem, path: Sequence[Thought]) -> Ask:
        """Ask for a judgement of the last step. An answer is judged by the numbers that it was made from."""
        judged = path[: NUM_NUMBERS - 1]
        return Ask(f"{_written(problem, judged)}\nJudge:", max_tokens=4, choices=tuple(self.value_labels))

    def path_value(self, parent_value: float | None, value: float) -> float:
        """The product along the path: after a hopeless step, a step that looks good does not help."""
        return value if parent_value is None else parent_value * value

    def answer(self, problem: Game24Problem, path: Sequence[Thought]) -> str:
        if len(path) == NUM_NUMBERS:
            return path[-1].text.strip()
        return "; ".join(thought.text.split("(")[0].strip() for thought in path)

    def is_correct(self, problem: Game24Problem, path: Sequence[Thought]) -> bool:
        """Whether the expression makes 24 from the given numbers; without one, whether all steps are true and do."""
        if len(path) != self.depth:
            return False
        if len(path) == NUM_NUMBERS:
            return problem.is_solved_by(path[-1].text.split("=")[0])
        return self._steps_lead_to_goal(problem, path)

    def score(self, problem: Game24Problem, path: Sequence[Thought]) -> dict[str, Any]:
        """``steps_correct``: whether each step is true and the third one leaves 24."""
        return {"steps_correct": self._steps_lead_to_goal(problem, path[: NUM_NUMBERS - 1])}

    def _steps_lead_to_goal(self, problem: Game24Problem, path: Sequence[Thought]) -> bool:
        left: Numbers = tuple(map(Fraction, problem.numbers))
        for thought in path:
            step = parse_step(thought.text)
            if step is None or not step.is_true(left):
                return False
            left = step.left
        return left == WON

    def _read_line(self, path: Sequence[Thought], line: str, step_text: str | None = None) -> Parsed | None:
        """A step or an answer; ``step_text`` is what is kept of a line, None keeps it in our own spelling."""
        if _is_answer(len(path)):
            found = _ANSWER.fullmatch(line.strip())
            if found is None or evaluate(found[1]) is None:
                return None
            text = f"{found[1].strip()} = {found[2] or GOAL}"
            return Parsed(text if step_text is None else step_text, text, found[2] in (None, str(GOAL)))
        step = parse_step(line)
        if step is None or len(step.left) != NUM_NUMBERS - 1 - len(path):
            return None
        is_final = len(path) + 1 == self.depth and step.left == WON
        state = _words(step.left)
        if len(step.left) == 1:  # the expression or the judgement that follows depends on the steps themselves
            state = "; ".join([*(thought.text.strip() for thought in path), step.text])
        return Parsed(step.text if step_text is None else step_text, state, is_final)


_RULES = (
    f"In the Game of {GOAL} you make {GOAL} from given numbers with + - * /. A step takes two of the numbers and puts "
    "the result in their place. Write a step as in: 14 - 8 = 6 (left: 2 6 8). Write fractions as 8/3.\n\n"
)
_NEXT = """Numbers: 2 8 8 14
Next step: 14 - 8 = 6 (left: 2 6 8)

Numbers: 2 6 8
Next step: 8 - 2 = 6 (left: 6 6)

Numbers: {}
Write one next step in one line, nothing else."""
_PROPOSE = """Numbers: 2 8 8 14
Possible next steps:
2 + 8 = 10 (left: 8 10 14)
8 / 2 = 4 (left: 4 8 14)
14 + 2 = 16 (left: 8 8 16)
2 * 8 = 16 (left: 8 14 16)
8 - 2 = 6 (left: 6 8 14)
14 - 8 = 6 (left: 2 6 8)
14 / 2 = 7 (left: 7 8 8)
14 - 2 = 12 (left: 8 8 12)

Numbers: {}
Write up to {} different possible next steps, one a line, nothing else."""
_COMPOSE = """Numbers: 4 4 6 8
4 + 8 = 12 (left: 4 6 12)
6 - 4 = 2 (left: 2 12)
2 * 12 = 24 (left: 24)
Answer: (6 - 4) * (4 + 8) = 24

Numbers: {}
Write the steps as one expression that uses each of the numbers at the top once. One line, nothing else."""
_JUDGE = f"""Say whether {GOAL} can be made from the numbers with + - * /, each used once: sure, likely or impossible.

10 14: sure (10 + 14 = 24)
11 12: impossible
4 4 10: sure ((10 - 4) * 4 = 24)
5 7 8: likely (no way found, the numbers are of the right size)
1 3 3: impossible (all too small)
10 10 11: impossible (all too big)

{{}}: sure, likely or impossible? Answer with one word."""
_JUDGE_ANSWER = f"""Say whether the answer is right: it must be {GOAL} and use each of the numbers exactly once.

Numbers: 4 4 6 8
Answer: (6 - 4) * (4 + 8) = 24
Judgement: sure

Numbers: 2 9 10 12
Answer: 2 * (12 - 10) + 9 = 24
Judgement: impossible

Numbers: {{}}
Answer: {{}}
Answer with one word, sure or impossible."""


class Game24Chat(Game24):
    """For chat models, set up as in the paper: proposals, each judged three times."""

    value_labels: Mapping[str, float] = {" sure": 20.0, " likely": 1.0, " impossible": 0.001}
    defaults = Defaults("propose", num_thoughts=8, temperature=0.7, evaluate="value", num_values=3, beam=5)

    def thought_ask(self, problem: Game24Problem, path: Sequence[Thought]) -> Ask:
        if _is_answer(len(path)):
            steps = "\n".join([problem.words, *(thought.text for thought in path)])
            return _line_ask(_RULES + _COMPOSE.format(steps), "Answer:", rf" [0-9()+*/ -]{{7,60}} = {GOAL}")
        return _line_ask(_RULES + _NEXT.format(_left(problem, path)), "Next step:", f" {_step_regex(path)}")

    def propose_ask(self, problem: Game24Problem, path: Sequence[Thought], num_thoughts: int) -> Ask:
        if _is_answer(len(path)):
            return self.thought_ask(problem, path)
        question = _RULES + _PROPOSE.format(_left(problem, path), num_thoughts)
        step = _step_regex(path)
        regex = f"{step}(\n{step}){{0,{num_thoughts - 1}}}"
        return Ask(conversation(question, answer_prefix="Possible next steps:\n"), 40 * num_thoughts, regex=regex)

    def read_thought(self, problem: Game24Problem, path: Sequence[Thought], text: str) -> Parsed | None:
        lines = plain_lines(text.translate(_OTHER_SIGNS), "next step", "step", "answer")
        return self._read_line(path, lines[0]) if lines else None

    def value_ask(self, problem: Game24Problem, path: Sequence[Thought]) -> Ask:
        question = _JUDGE.format(_left(problem, path))
        if len(path) == NUM_NUMBERS:
            question = _JUDGE_ANSWER.format(problem.words, path[-1].text)
        prompt = conversation(question, answer_prefix="Judgement:")
        return Ask(prompt, max_tokens=8, stop=("\n",), choices=tuple(self.value_labels))

    def read_value(self, text: str) -> float | None:
        return read_label(text, self.value_labels, "judgement")


def _is_answer(num_thoughts: int) -> bool:
    """Whether the thought after ``num_thoughts`` others is the expression."""
    return num_thoughts == NUM_NUMBERS - 1


def _written(problem: Game24Problem, path: Sequence[Thought]) -> str:
    return "\nStep:".join([f"Input: {problem.words}", *(thought.text for thought in path)])


def _left(problem: Game24Problem, path: Sequence[Thought]) -> str:
    step = parse_step(path[-1].text) if path else None
    return _words(step.left) if step is not None else problem.words


def _line_ask(question: str, answer_prefix: str, regex: str) -> Ask:
    return Ask(conversation(question, answer_prefix=answer_prefix), max_tokens=64, stop=("\n",), regex=regex)


def _step_regex(path: Sequence[Thought]) -> str:
    """A step, true or not, that leaves the right number of numbers. They may be fractions."""
    number = r"-?[0-9]{1,5}(/[0-9]{1,3})?"
    left = f"{number}( {number}){{{NUM_NUMBERS - 2 - len(path)}}}"
    return rf"{number} [-+*/] {number} = {number} \(left: {left}\)"


def _value(node: ast.expr, numbers: list[int]) -> Fraction:
    """Value of a syntax tree; its numbers are appended."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _AST_SIGNS:
        first, second = _value(node.left, numbers), _value(node.right, numbers)
        return _OPERATORS[_AST_SIGNS[type(node.op)]](first, second)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):  # what it makes, subtracting makes, too
        return -_value(node.operand, numbers)
    raise ValueError("not an expression of + - * /")


def _four_numbers(text: str, where: str) -> tuple[int, ...]:
    parts = text.split()
    if len(parts) != NUM_NUMBERS or not all(re.fullmatch(r"[1-9]\d{0,2}", part) for part in parts):
        raise FieldError(f"{where} is {text.strip()!r}: must be four whole numbers from 1 to 999")
    return tuple(map(int, parts))


def _make_problems(num_problems: int) -> list[Game24Problem]:
    chance = random.Random(0)
    problems: list[Game24Problem] = []
    while len(problems) < num_problems:
        numbers = tuple(sorted(chance.randint(1, MAX_MADE) for _ in range(NUM_NUMBERS)))
        if _is_solvable(numbers):
            problems.append(Game24Problem(numbers, f"made-0-{len(problems)}"))
    return problems


def _is_solvable(numbers: tuple[int, ...]) -> bool:
    """Whether 24 can be made without leaving the whole numbers >= 0."""
    if len(numbers) == 1:
        return numbers[0] == GOAL
    for i, low in enumerate(numbers):
        for j, high in enumerate(numbers[i + 1 :], i + 1):
            rest = (*numbers[:i], *numbers[i + 1 : j], *numbers[j + 1 :])
            results = {low + high, abs(low - high), low * high}
            results |= {a // b for a, b in ((low, high), (high, low)) if b and a % b == 0}
            if any(_is_solvable((*rest, result)) for result in results):
                return True
    return False


def _words(numbers: Sequence[Fraction]) -> str:
    return " ".join(map(str, numbers))
