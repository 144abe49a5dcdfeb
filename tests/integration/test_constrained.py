"""Constrained requests through the engine, on the bundled pair, in real processes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from seedmp import Engine, RequestOutput, SamplingParams
from seedmp.errors import RejectedError, RequestError
from tests.helpers.models import make_pair

TIMEOUT_S = 60.0
JUDGE = "Input: {}\nStep: 8 / 4 = 2 (left: 2 7 10)\nJudge:"
STORY = "Write a story whose paragraphs end with these sentences: It rained.\nStory:\n"
APPLES = "Question: Tom has 3 apples and buys 4 more. How many apples does he have?\nAnswer:"
VALUES = (" sure", " likely", " impossible")
WORDS = r" [a-z]{1,9}( [a-z]{1,9}){2,4}\."  # bounded: max_tokens might cut a text that may go on for ever
INPUTS = ("4 7 8 10", "1 2 3 4", "5 5 8 4", "2 7 8 4", "8 4 4 4")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Three drafts; trees of several children."""
    with Engine(num_drafts=3, k_config=(2, 2, 1), kv_slots=4096, target_threads=1, validate=True) as started:
        yield started


def texts_of(engine: Engine, params: SamplingParams, prompts: list[str]) -> list[RequestOutput]:
    return engine.generate(prompts, params, timeout=TIMEOUT_S)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("constraint", "regex"),
    [
        ({"regex": " [0-9]"}, " [0-9]"),
        ({"choices": VALUES}, "|".join(VALUES)),
        ({"regex": WORDS}, WORDS),
        (
            {"regex": r" \d{1,2} [-+*/] \d{1,2} = \d+ \(left:( \d{1,2}){1,3}\)"},
            r" \d+ [-+*/] \d+ = \d+ \(left:( \d+)+\)",
        ),
    ],
)
def test_every_text_matches(engine: Engine, constraint: dict[str, object], regex: str, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, max_tokens=64, seed=5, n=2, **constraint)  # type: ignore[arg-type]
    outputs = texts_of(engine, params, [JUDGE.format(numbers) for numbers in INPUTS])
    assert len(outputs) == 10
    assert [out.text for out in outputs if not re.fullmatch(regex, out.text)] == []
    assert {out.finish_reason for out in outputs} == {"stop"}


def test_a_text_ends_at_once_when_nothing_may_follow(engine: Engine) -> None:
    (out,) = texts_of(
        engine, SamplingParams(temperature=1, choices=VALUES, max_tokens=64, seed=1), [JUDGE.format("1 2 3 4")]
    )
    assert engine.decode(out.token_ids) == out.text
    assert 2 not in out.token_ids  # no EOS
    (exact,) = texts_of(
        engine, SamplingParams(choices=VALUES, max_tokens=len(out.token_ids), seed=1), [JUDGE.format("1 2 3 4")]
    )
    assert (exact.text, exact.finish_reason) == (out.text, "stop")


def test_eos_ends_what_could_go_on(engine: Engine) -> None:
    # The target ends about one number in twenty before its third digit: of 150 all but certainly one.
    outputs = texts_of(
        engine, SamplingParams(temperature=1, regex=" ?[0-9]{1,3}", max_tokens=64, seed=3, n=150), [APPLES]
    )
    assert all(re.fullmatch(" ?[0-9]{1,3}", out.text) for out in outputs)
    assert any(out.token_ids[-1] == 2 for out in outputs)


def test_a_stop_string_ends_a_constrained_text(engine: Engine) -> None:
    params = SamplingParams(temperature=1, regex=WORDS, stop=(" a", " the", " to", " in"), max_tokens=64, seed=2, n=10)
    outputs = texts_of(engine, params, [STORY])
    for out in outputs:
        assert not any(stop in out.text for stop in params.stop)
        assert re.fullmatch(WORDS, out.text) or re.fullmatch(r"( [a-z]+){0,5}", out.text)
    (short,) = texts_of(engine, SamplingParams(temperature=1, regex=WORDS, max_tokens=2, seed=2), [STORY])
    assert (len(short.token_ids), short.finish_reason) == (2, "length")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_what_matches_everything_changes_nothing(engine: Engine, temperature: float) -> None:
    params = SamplingParams(temperature=temperature, max_tokens=32, seed=7)
    prompts = [STORY, APPLES, JUDGE.format("4 7 8 10")]
    free = texts_of(engine, params, prompts)
    held = texts_of(engine, replace(params, regex="(?s:.*)"), prompts)
    assert [out.token_ids for out in held] == [out.token_ids for out in free]


def test_a_seed_repeats_a_constrained_text_whatever_its_company(engine: Engine) -> None:
    params = SamplingParams(temperature=1, regex=WORDS, max_tokens=64, seed=9)
    alone = texts_of(engine, params, [STORY])[0]
    crowd = texts_of(engine, params, [APPLES, STORY, *(JUDGE.format(numbers) for numbers in INPUTS)])
    assert crowd[1].token_ids == alone.token_ids


def test_a_branch_is_continued_within_a_constraint(engine: Engine) -> None:
    root = engine.open("Input: 4 7 8 10\nStep: 8 / 4 = 2 (left: 2 7 10)\nJudge:")
    (judged,) = root.fork(1, SamplingParams(temperature=0, choices=VALUES, max_tokens=16))
    (again,) = judged.append("\nJudge:").fork(1, SamplingParams(temperature=0, choices=VALUES, max_tokens=16))
    assert {judged.text, again.text} <= set(VALUES)


def test_a_broken_expression_is_refused_before_any_work(engine: Engine) -> None:
    before = engine.stats()["rounds"]
    with pytest.raises(RejectedError, match="unclosed character class"):
        engine.submit(APPLES, SamplingParams(regex="[a-"))
    assert engine.stats()["rounds"] == before
    with pytest.raises(RequestError, match="no token of the vocabulary"):  # sound, but it matches nothing
        engine.generate(APPLES, SamplingParams(regex=r"[^\x00-\x{10FFFF}]"), timeout=TIMEOUT_S)
    assert texts_of(engine, SamplingParams(regex="7", max_tokens=4), [APPLES])[0].text == "7"


def test_a_target_without_tokenizer_refuses(tmp_path: Path) -> None:
    target, draft = make_pair("llama", tmp_path)
    with (
        Engine(target, draft, num_drafts=1, kv_slots=256, target_threads=1) as started,
        pytest.raises(RejectedError, match="no tokenizer"),
    ):
        started.submit((1, 2, 3), SamplingParams(choices=("a", "b")))
