"""JSON from users, and that every file of theirs is refused by name, whatever is in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from seedmp.commands.growmap import _read_json
from seedmp.commands.solve import _option
from seedmp.errors import ConfigError
from seedmp.models.eagle import _read_config
from seedmp.plain_json import MAX_DIGITS, MAX_NESTING, parse_json
from seedmp.plan import load_plan
from seedmp.search.thought_tree import ThoughtTree
from seedmp.simulation.costs import EXAMPLE, FORMAT, load_costs
from seedmp.solve import SolveOptions, _Lines
from seedmp.tasks.chat import read_choice
from seedmp.tasks.gsm8k import load_gsm8k
from seedmp.token_tree.growmap_file import load_growmap
from seedmp.tuning.prompts import read_texts

BROKEN = {
    "nested 100,000 deep": "[" * 100_000,
    "nested too deep": "[" * 500 + "]" * 500,
    "objects nested too deep": '{"a":' * 500 + "1" + "}" * 500,
    "a number of 5,000 digits": "9" * 5000,
    "a field of 5,000 digits": '{"question": ' + "9" * 5000 + "}",
    "a field nested too deep": '{"question": ' + "[" * 500 + "]" * 500 + "}",
    "not UTF-8": '"\ud800"',
    "half": '{"a": ',
    "nothing": "",
}
READERS: dict[str, Callable[[Path], Any]] = {
    "task.jsonl": load_gsm8k,
    "prompts.jsonl": read_texts,
    "plan.json": load_plan,
    "growmap.json": load_growmap,
    "costs.json": load_costs,
    "tree.json": ThoughtTree.load,
    "values.json": _read_json,
    "config.json": lambda file: _read_config(file.parent),
    "solved.jsonl": lambda file: _Lines(file, SolveOptions("gsm8k"), fresh=False),
}


@pytest.mark.parametrize("what", BROKEN)
@pytest.mark.parametrize("name", READERS)
def test_a_broken_file_is_named(name: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(BROKEN[what].encode("utf-8", "surrogatepass") + b"\n")
    with pytest.raises(ConfigError) as caught:
        READERS[name](file)
    assert str(file if name != "config.json" else tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_limits() -> None:
    assert parse_json("[" * MAX_NESTING + "]" * MAX_NESTING)
    assert parse_json("9" * MAX_DIGITS) == int("9" * MAX_DIGITS)
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        parse_json("[" * (MAX_NESTING + 1) + "]" * (MAX_NESTING + 1))
    with pytest.raises(ValueError, match="a number of 1001 digits, more than 1000"):
        parse_json("9" * (MAX_DIGITS + 1))


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_is_no_content(mark: str, tmp_path: Path) -> None:
    assert parse_json(mark + "[1]") == parse_json((mark + "[1]").encode()) == [1]
    lines = tmp_path / "lines.jsonl"
    lines.write_text(mark + '{"question": "1 + 1?", "answer": "#### 2"}\n' * 2, "utf-8")
    assert [problem.gold for problem in load_gsm8k(lines)] == [2, 2] if not mark else load_gsm8k(lines, 1)
    growmap = tmp_path / "growmap.json"
    growmap.write_text(mark + '{"seedmp_growmap": 1, "num_children": [[2], [0, 0]]}', "utf-8")
    assert load_growmap(growmap).branches


def test_a_number_that_no_float_holds_is_refused_by_name(tmp_path: Path) -> None:
    huge = "9" * 900
    file = tmp_path / "costs.json"
    plain = asdict(EXAMPLE) | {"format": FORMAT}
    file.write_text(json.dumps(plain).replace('"message_ms": 0.15', f'"message_ms": {huge}'))
    with pytest.raises(ConfigError, match="message_ms=999"):
        load_costs(file)


def test_options_and_choices() -> None:
    deep = "[" * 5000
    assert _option(f"depth={deep}") == ("depth", deep)
    assert read_choice("9" * 5000, 3) is None
    assert read_choice("002", 3) == 1
