"""Single values: accepted as they are, or refused by name with what is allowed."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from seedmp.checks import (
    check_flag,
    check_number,
    check_one_of,
    check_path,
    check_texts,
    check_timeout,
    check_whole,
)
from seedmp.errors import ConfigError, RejectedError


def test_good_values_come_back() -> None:
    assert check_whole("n", 3, 1, 3) == 3
    assert check_number("x", 0.5, 0, 1) == 0.5
    assert check_one_of("dtype", "auto", ("auto", "float32")) == "auto"


@pytest.mark.parametrize("value", [0, 4, True, 1.0, "1", None])
def test_whole_numbers(value: object) -> None:
    with pytest.raises(ConfigError, match=r"n=.*: must be a whole number from 1 to 3"):
        check_whole("n", value, 1, 3)


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), float("inf"), True, "1", None])
def test_numbers(value: object) -> None:
    with pytest.raises(RejectedError, match=r"x=.*: must be a finite number from 0 to 1"):
        check_number("x", value, 0, 1, error=RejectedError)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def test_messages_show_any_value_in_few_words() -> None:
    for value in (Unshowable(), 10**5000, "x" * 10**6, "\ud800", list(range(10**5))):
        with pytest.raises(ConfigError) as caught:
            check_flag("flag", value)
        assert len(str(caught.value)) < 300
        str(caught.value).encode()


def test_times() -> None:
    assert check_timeout(None) is None
    assert check_timeout(np.float32(0.5)) == 0.5
    assert check_timeout(1e300) == 1e6, "no wait of the operating system overflows"
    for value in (-1, "5", True, float("nan"), float("inf"), [1]):
        with pytest.raises(ConfigError, match=r"timeout=.*: must be a finite number of seconds >= 0, or None"):
            check_timeout(value)


def test_paths() -> None:
    assert check_path("target", Path("/a")) == check_path("target", "/a") == "/a"
    for value in (b"/a", "", "a\0b", 5, None, True):
        with pytest.raises(ConfigError, match=r"target=.*: must be a path"):
            check_path("target", value)


def test_endless_lists_end() -> None:
    with pytest.raises(ConfigError, match="at most 65536 texts"):
        check_texts("texts", itertools.repeat("x"))


def test_open_ends() -> None:
    with pytest.raises(ConfigError, match=r"must be a whole number >= 1$"):
        check_whole("n", 0, 1)
    with pytest.raises(ConfigError, match=r"must be a finite number > 0$"):
        check_number("x", 0.0, 0, above=True)
    with pytest.raises(ConfigError, match=r"dtype='int8': must be one of auto, float32"):
        check_one_of("dtype", "int8", ("auto", "float32"))
