"""Where a run of accepted tokens ends a text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from seedmp.client.stop_text import cut_at_stop
from seedmp.sampling import SamplingParams
from seedmp.scheduler.stopping import Stop, find_stop

EOS = 2
PIECES = {3: "one", 4: " tw", 5: "o", 6: "\n", 7: "\n\nthree", 8: "é", 9: ""}


def decode(token_ids: Sequence[int], num_tokens: int) -> str:
    return "".join(PIECES.get(token_id, "?") for token_id in token_ids[-num_tokens:])


def stop(
    old: Sequence[int], new: Sequence[int], *, max_new: int = 99, eos: Sequence[int] = (EOS,), **params: object
) -> Stop:
    return find_stop(old, new, SamplingParams(**params), frozenset(eos), max_new, decode)  # type: ignore[arg-type]


def test_nothing_ends_it() -> None:
    assert stop([3], [4, 5, 6]) == Stop(3)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_eos_anywhere_in_an_accepted_run(at: int) -> None:
    new = [3, 4, 5, 6]
    new[at] = EOS
    assert stop([3], new) == Stop(at + 1, "stop")
    assert stop([3], new, ignore_eos=True) == Stop(4)
    assert stop([3], new, eos=()) == Stop(4)


def test_the_first_of_two_enders_counts() -> None:
    assert stop([], [3, EOS, 4, EOS]) == Stop(2, "stop")
    assert stop([], [3, 11, EOS], stop_token_ids=(11,)) == Stop(2, "stop")


def test_stop_tokens_hold_although_eos_is_ignored() -> None:
    assert stop([], [EOS, 11, 3], stop_token_ids=(11,), ignore_eos=True) == Stop(2, "stop")
    assert stop([], [3, EOS], stop_token_ids=(EOS,), ignore_eos=True) == Stop(2, "stop")


@pytest.mark.parametrize(("num_old", "num_kept"), [(0, 4), (3, 2), (4, 1)])
def test_the_length_is_exact(num_old: int, num_kept: int) -> None:
    max_new = num_old + num_kept
    assert stop([3] * num_old, [3] * 5, max_new=max_new) == Stop(num_kept, "length")


def test_eos_as_the_last_token_allowed_is_a_stop() -> None:
    assert stop([3], [4, EOS], max_new=3) == Stop(2, "stop")


@pytest.mark.parametrize(
    ("old", "new", "text", "num_kept"),
    [
        ([], [3, 4, 5], "one two", 3),  # across three tokens
        ([3], [4, 5, 6], " two", 2),
        ([3, 4], [5, 3], "two", 1),  # begun in an earlier round
        ([6], [6, 3], "\n\n", 1),
        ([3], [7, 3], "\n\nth", 1),  # ends within a token
        ([3], [8, 4], "é", 1),
        ([3], [9, 9, 4], "tw", 3),  # tokens without text
    ],
)
def test_stop_strings_across_token_boundaries(old: list[int], new: list[int], text: str, num_kept: int) -> None:
    assert stop(old, new, stop=(text, "never")) == Stop(num_kept, "stop", text)


def test_of_two_stop_strings_the_earlier_one_is_named() -> None:
    assert stop([], [3, 7], stop=("three", "\n\n")) == Stop(2, "stop", "\n\n")


def test_a_stop_string_needs_a_tokenizer() -> None:
    params = SamplingParams(stop=("one",))
    assert find_stop([], [3, 4], params, frozenset(), 99, None) == Stop(2)


def test_a_long_text_does_not_hide_a_stop_string() -> None:
    assert stop([3] * 500, [4, 5], max_new=999, stop=(" two",)) == Stop(2, "stop", " two")


@pytest.mark.parametrize(
    ("text", "at", "expected"),
    [("ab\n\ncd", "\n\n", "ab"), ("abab", "b", "a"), ("ab", "", "ab"), ("ab", "x", "ab"), ("xab", "x", "")],
)
def test_cut_at_stop(text: str, at: str, expected: str) -> None:
    assert cut_at_stop(text, at) == expected
