"""Whose length decides about angles, and how far a tree may reach."""

from __future__ import annotations

import pytest

from seedmp.kv.rope_border import RopeBorder


@pytest.mark.parametrize(
    ("recomputes", "prompt_len", "num_tokens", "rope_len"),
    [
        (False, 32, 32, 0),
        (False, 32, 50, 0),  # what is generated has the angles of its own position
        (False, 33, 50, 33),
        (True, 32, 32, 0),
        (True, 3, 33, 33),
        (True, 50, 60, 33),
    ],
)
def test_the_requests_own_length_decides(recomputes: bool, prompt_len: int, num_tokens: int, rope_len: int) -> None:
    assert RopeBorder(32, recomputes).rope_len(prompt_len, num_tokens) == rope_len


def test_only_what_is_computed_anew_ends_at_the_border() -> None:
    assert RopeBorder(32, False).room(30) is None
    assert [RopeBorder(32, True).room(length) for length in (30, 32, 33)] == [2, 0, None]
