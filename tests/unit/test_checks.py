"""Single values: accepted as they are, or refused by name with what is allowed."""

from __future__ import annotations

import pytest

from seedmp.checks import check_number, check_one_of, check_whole
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


def test_open_ends() -> None:
    with pytest.raises(ConfigError, match=r"must be a whole number >= 1$"):
        check_whole("n", 0, 1)
    with pytest.raises(ConfigError, match=r"must be a finite number > 0$"):
        check_number("x", 0.0, 0, above=True)
    with pytest.raises(ConfigError, match=r"dtype='int8': must be one of auto, float32"):
        check_one_of("dtype", "int8", ("auto", "float32"))
