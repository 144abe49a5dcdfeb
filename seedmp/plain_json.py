"""JSON from users: files, options, records of a line."""

from __future__ import annotations

import json
from typing import Any

MAX_NESTING = 100  # lists and objects within each other; what this library reads nests less than ten
MAX_DIGITS = 1000  # of a whole number; far from where Python itself refuses to write one


def parse_json(text: str | bytes) -> Any:
    """What ``json.loads`` gives, from text that may begin with a byte order mark.

    Raises:
        ValueError: not JSON, or not UTF-8, nested too deep, or a number with too many digits; says which.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        plain = json.loads(text.removeprefix("\ufeff"), parse_int=_whole)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_NESTING} levels") from None
    _check_nesting(plain)
    return plain


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits, more than {MAX_DIGITS}")
    return int(digits)


def _check_nesting(plain: Any) -> None:
    level = [plain]
    for _ in range(MAX_NESTING):
        lists = [value for value in level if isinstance(value, list)]
        objects = [value.values() for value in level if isinstance(value, dict)]
        level = [inner for values in (*lists, *objects) for inner in values]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_NESTING} levels")
