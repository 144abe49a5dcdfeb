"""GSM8K: grade-school word problems, in the published format or from the few that are shipped.

For the bundled pair a thought is a line of the worked solution; for chat models a sub-question and its
answer. Both end with ``#### `` and the number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from seedmp.checks import check_whole
from seedmp.search.task import Ask, Defaults, Parsed, Task
from seedmp.search.thought_tree import Thought
from seedmp.tasks.chat import conversation, plain_lines, read_label
from seedmp.tasks.jsonl import FieldError, read_problems, text_field

EXAMPLES = Path(__file__).resolve().parent / "gsm8k_examples.jsonl"
MAX_DIGITS = 300  # longer numbers are no answer

# 1,200 or 12.50 or 1e3 or 1/2 or 1 1/2
_NUMBER = r"(-?(?:\d[\d,]*\s+\d+/\d+|(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?(?:/\d[\d,]*(?:\.\d+)?)?))"
_FINAL = re.compile(rf"####\s*{_NUMBER}")
_UNIT = r"(?: [A-Za-z][A-Za-z ]*)?"  # "62 dollars" is a number, "36 - 5 = 31" is a calculation
_ANSWER_IS = r"(?:the )?(?:final )?answer(?: is|:)\s*"
_LOOSE_FINAL = re.compile(rf"(?:####\s*|{_ANSWER_IS}(?:####\s*)?){_NUMBER}{_UNIT}", re.IGNORECASE)
_ONLY_NUMBER = re.compile(rf"{_NUMBER}{_UNIT}")
_HUGE = re.compile(r"[eE][+-]?\d{4}")  # times or through more than a googol
_BOLD = re.compile(rf"\*\*{_NUMBER}{_UNIT}\.?\*\*")
# Other spellings, as models write them, and ours. A boxed number is a final one, as after ####.
_SPELLINGS = (
    (re.compile(r"\\?\$|\\[()\[\]]"), ""),
    (re.compile(r"[−–](?=\s*[\d.])"), "-"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"(?<=\d)\s*(?:\\times|×|x|\*)\s*10\^\{?([+-]?\d+)\}?"), r"e\1"),
    (re.compile(r"\\text\s*\{([^{}]*)\}"), r" \1"),
    (re.compile(r"(?:####\s*)?\\boxed\s*\{([^{}]*)\}"), r"#### \1"),
    (re.compile(r"####[\s*_({€£]*(-?)[\s*_({€£]*"), r"#### \1"),
)
_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Gsm8kProblem:
    """One word problem.

    Attributes:
        question: the text of the problem.
        answer: the worked solution, without calculator marks; ends with ``#### `` and the number.
        gold: the right number; GSM8K has whole ones only.
    """

    question: str
    answer: str
    gold: int

    @property
    def prompt(self) -> str:
        """What the bundled pair is asked (without <bos>, which its tokenizer adds)."""
        return f"Question: {self.question}\nAnswer:"

    def is_solved_by(self, text: str) -> bool:
        """Whether a generated answer ends with the right number."""
        return final_number(text) == self.gold


def load_gsm8k(path: Path | None = None, limit: int | None = None) -> list[Gsm8kProblem]:
    """Load problems.

    Args:
        path: a file as published: one object a line with ``question`` and ``answer``. None takes the
            eight problems of our own that are shipped.
        limit: problems at most; None for all.

    Raises:
        ConfigError: the file cannot be read, has another format or no problems; names file, line, field.
    """
    return read_problems(EXAMPLES if path is None else path, "GSM8K", limit, _parse)


def final_number(text: str) -> int | None:
    """The final number of an answer, or None; 12.0 and 24/2 are whole, 12.5 is none of GSM8K's answers."""
    value = _read_number(_final_words(text))
    return int(value) if value is not None and value.denominator == 1 else None


def _final_words(text: str) -> str:
    """The number after the last ``####`` or in the last box, or else the last bold one; empty when there is none."""
    plain = _plain(text)
    found = _FINAL.findall(plain) or _BOLD.findall(plain)
    return str(found[-1]) if found else ""


def _plain(text: str) -> str:
    """Text with its numbers in our spelling, and final ones after ``####``."""
    for spelling, ours in _SPELLINGS:
        text = spelling.sub(ours, text)
    return text


def _read_number(words: str) -> Fraction | None:
    """The exact value of what ``_NUMBER`` finds; None of nothing, of a division by 0, and of too many digits."""
    if not words or len(words) > MAX_DIGITS or _HUGE.search(words):
        return None
    parts = [part.partition("/") for part in words.lstrip("-").replace(",", "").split()]
    try:
        value = sum((Fraction(above) / Fraction(below or 1) for above, _, below in parts), Fraction())
    except ZeroDivisionError:
        return None
    return -value if words[0] == "-" else value


def _words_of(value: Fraction) -> str:
    """A number as text, the same for equal values."""
    if value.denominator == 1 or 10**12 % value.denominator:
        return str(value)
    digits = str(abs(value) * 10**12).rjust(13, "0")
    return f"{'-' if value < 0 else ''}{digits[:-12]}.{digits[-12:].rstrip('0')}"


class Gsm8k(Task[Gsm8kProblem]):
    """For the bundled pair. A thought is a line; the last thought is the whole rest of the solution.

    Self-consistency counts solutions that agree. Therefore equal lines are not merged.

    Args:
        depth: thoughts of a path at most.

    Raises:
        ConfigError: the depth is below 1.
    """

    name = "gsm8k"
    defaults = Defaults(num_thoughts=3, temperature=0.7, evaluate="self-consistency", beam=3, stop_at_solution=False)

    def __init__(self, depth: int = 4) -> None:
        self.depth = check_whole("depth", depth, 1)

    def load(self, path: Path | None = None, limit: int | None = None) -> list[Gsm8kProblem]:
        return load_gsm8k(path, limit)

    def describe(self, problem: Gsm8kProblem) -> str:
        return problem.question

    def thought_ask(self, problem: Gsm8kProblem, path: Sequence[Thought]) -> Ask:
        prompt = problem.prompt + "".join(f"{thought.text}\n" for thought in path)
        if self._is_last(path):
            return Ask(prompt, max_tokens=200, stop=("\n\n", "\nQuestion:"))
        return Ask(prompt, max_tokens=96, stop=("\n",))

    def read_thought(self, problem: Gsm8kProblem, path: Sequence[Thought], text: str) -> Parsed | None:
        lines = text.rstrip().split("\n")
        lines = lines if self._is_last(path) else lines[:1]
        ends = [number for number, line in enumerate(lines, 1) if _FINAL.search(_plain(line))]
        kept = "\n".join(lines[: ends[0]] if ends else lines)
        return Parsed(kept, None, bool(ends)) if kept.strip() else None

    def answer(self, problem: Gsm8kProblem, path: Sequence[Thought]) -> str:
        """The final number, equal numbers in one spelling; empty when there is none."""
        words = _final_words(path[-1].text) if path else ""
        value = _read_number(words)
        return words if value is None else _words_of(value)

    def is_correct(self, problem: Gsm8kProblem, path: Sequence[Thought]) -> bool:
        return bool(path) and problem.is_solved_by(path[-1].text)

    def score(self, problem: Gsm8kProblem, path: Sequence[Thought]) -> dict[str, Any]:
        return {"gold": problem.gold}

    def _is_last(self, path: Sequence[Thought]) -> bool:
        return len(path) + 1 >= self.depth


_OPENING = """Solve a word problem step by step. Each step is one line: a small question, and its answer with the \
calculation. When the number that was asked for is known, write #### and the number instead.

Problem: Ann has 3 boxes of 12 eggs. She breaks 5 eggs and sells the rest at 2 dollars each. How many dollars does she \
get?
Step 1: How many eggs has Ann? 3 * 12 = 36 eggs.
Step 2: How many eggs does she sell? 36 - 5 = 31 eggs.
Step 3: How many dollars does she get? 31 * 2 = 62 dollars.
Step 4: #### 62

Problem: {}
Write step 1 only, in one line."""
_VALUE = """How likely is it that all steps so far are right and lead to the solution? Answer with one whole number, \
from 0 (surely wrong) to 10 (surely right)."""


class Gsm8kChat(Gsm8k):
    """For chat models: sub-questions with their answers as turns of one conversation, each path valued 0 to 10."""

    value_labels: Mapping[str, float] = {f" {number}": float(number) for number in range(11)}
    defaults = Defaults(num_thoughts=3, temperature=1.0, evaluate="value", beam=1)

    def thought_ask(self, problem: Gsm8kProblem, path: Sequence[Thought]) -> Ask:
        if self._is_last(path):
            request = "Write the final answer now: #### and the number."
            prompt = conversation(*self._turns(problem, path, request), answer_prefix="####")
            return Ask(prompt, max_tokens=16, stop=("\n",), regex=r" -?[0-9][0-9,]{0,14}")
        request = f"Write step {len(path) + 1} only, in one line."
        prompt = conversation(*self._turns(problem, path, request), answer_prefix=f"Step {len(path) + 1}:")
        return Ask(prompt, max_tokens=128, stop=("\n",))

    def read_thought(self, problem: Gsm8kProblem, path: Sequence[Thought], text: str) -> Parsed | None:
        """One line; the final one also as ``Answer: 62`` or, where it is asked for, as a number alone."""
        lines = plain_lines(text, "step")
        if not lines:
            return None
        line = _plain(lines[0])
        found = _LOOSE_FINAL.fullmatch(line) or (_ONLY_NUMBER.fullmatch(line) if self._is_last(path) else None)
        kept = f"#### {found[1]}" if found else lines[0]
        if not found and (self._is_last(path) or "####" in kept):
            return None
        return Parsed(kept, "\n".join([*(thought.text for thought in path), kept]), found is not None)

    def value_ask(self, problem: Gsm8kProblem, path: Sequence[Thought]) -> Ask:
        prompt = conversation(*self._turns(problem, path, _VALUE), answer_prefix="Value:")
        return Ask(prompt, max_tokens=4, stop=("\n",), choices=tuple(self.value_labels))

    def read_value(self, text: str) -> float | None:
        return read_label(text, self.value_labels, "value")

    def _turns(self, problem: Gsm8kProblem, path: Sequence[Thought], request: str) -> list[str]:
        """The conversation so far, so that a path extends its parent's; ``request`` ends it."""
        turns = [_OPENING.format(problem.question)]
        for number, thought in enumerate(path, 1):
            turns += [f"Step {number}: {thought.text}", f"Write step {number + 1} only, in one line."]
        if path:
            turns[-1] = request
        return turns


def _parse(record: dict[str, Any]) -> Gsm8kProblem:
    answer = text_field(record, "answer")
    gold = final_number(answer)
    if gold is None:
        raise FieldError("field 'answer' does not end with '#### ' and a whole number")
    question = text_field(record, "question").strip()
    return Gsm8kProblem(question, _CALCULATOR.sub("", answer).strip(), gold)
