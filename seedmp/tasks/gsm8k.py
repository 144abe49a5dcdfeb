"""GSM8K: grade-school word problems, in the published format or from the few that are shipped."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seedmp.tasks.jsonl import FieldError, read_problems, text_field

EXAMPLES = Path(__file__).resolve().parent / "gsm8k_examples.jsonl"
_FINAL = re.compile(r"####\s*\$?\s*(-?\d[\d,]*)")
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
    """The number after the last ``####``, or None."""
    found = _FINAL.findall(text)
    return int(found[-1].replace(",", "")) if found else None


def _parse(record: dict[str, Any]) -> Gsm8kProblem:
    answer = text_field(record, "answer")
    gold = final_number(answer)
    if gold is None:
        raise FieldError("field 'answer' does not end with '#### ' and a whole number")
    question = text_field(record, "question").strip()
    return Gsm8kProblem(question, _CALCULATOR.sub("", answer).strip(), gold)
