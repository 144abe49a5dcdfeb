"""Read problem files: one JSON object a line, with errors that name file, line and field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from seedmp.errors import ConfigError

T = TypeVar("T")


class FieldError(ValueError):
    """A record lacks a field or has a wrong one; the message says which."""


def read_problems(path: Path, what: str, limit: int | None, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """Read the first problems of a file.

    Args:
        path: UTF-8 text, one JSON object a line; empty lines are skipped.
        what: name of the format, for errors.
        limit: problems at most; None reads all. Lines after them are not looked at.
        parse: makes a problem of a record; raises FieldError.

    Raises:
        ConfigError: the limit is below 1, the file cannot be read, a line has the wrong format, or
            there is no problem.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: must be a whole number >= 1, or None for all problems")
    problems: list[T] = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for line_no, line in enumerate(file, start=1):
                if limit is not None and len(problems) == limit:
                    break
                if line.strip():
                    problems.append(_parse_line(f"{path}, line {line_no}", what, line, parse))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); a {what} file is wanted") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; a {what} file is wanted") from None
    if not problems:
        raise ConfigError(f"{path}: has no problems; a {what} file has one JSON object a line")
    return problems


def text_field(record: dict[str, Any], name: str) -> str:
    """A field that must be a non-empty string.

    Raises:
        FieldError: it is missing or something else.
    """
    if name not in record:
        raise FieldError(f"field {name!r} is missing; there are {', '.join(map(repr, record)) or 'none'}")
    value = record[name]
    if not isinstance(value, str) or not value.strip():
        raise FieldError(f"field {name!r} is {value!r}: must be a non-empty string")
    return value


def _parse_line(where: str, what: str, line: str, parse: Callable[[dict[str, Any]], T]) -> T:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{where}: is no JSON ({error}); a {what} file has one object a line") from None
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: is a JSON {type(record).__name__}; a {what} file has one object a line")
    try:
        return parse(record)
    except FieldError as error:
        raise ConfigError(f"{where}: is no {what} problem: {error}") from None
