"""Read problem files: one problem a line, as JSON or otherwise, with errors that name file, line and field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from seedmp.checks import check_whole
from seedmp.errors import ConfigError
from seedmp.plain_json import parse_json

T = TypeVar("T")


class FieldError(ValueError):
    """A record lacks a field or has a wrong one; the message says which."""


def read_problems(path: Path, what: str, limit: int | None, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """Read the first problems of a file of one JSON object a line.

    Args:
        path: UTF-8 text, with or without a byte order mark; empty lines are skipped.
        what: name of the format, for errors.
        limit: problems at most; None reads all. Lines after them are not looked at.
        parse: makes a problem of a record; raises FieldError.

    Raises:
        ConfigError: the limit is below 1, the file cannot be read, a line has the wrong format, or
            there is no problem.
    """

    def parse_line(line: str) -> T:
        try:
            record = parse_json(line)
        except ValueError as error:
            raise FieldError(f"no JSON ({error}), there must be one object a line") from None
        if not isinstance(record, dict):
            raise FieldError(f"a JSON {type(record).__name__}, there must be one object a line")
        return parse(record)

    return read_lines(path, what, limit, parse_line)


def read_lines(path: Path, what: str, limit: int | None, parse: Callable[[str], T | None]) -> list[T]:
    """Read the first problems of a file of one problem a line, in any format.

    Args:
        path: UTF-8 text, with or without a byte order mark; empty lines are skipped.
        what: name of the format, for errors.
        limit: problems at most; None reads all. Lines after them are not looked at.
        parse: makes a problem of a line, or None of one that has none (a header); raises FieldError.

    Raises:
        ConfigError: as ``read_problems``.
    """
    check_limit(limit)
    problems: list[T] = []
    try:
        with Path(path).open(encoding="utf-8-sig") as file:
            for line_no, line in enumerate(file, start=1):
                if len(problems) == limit:
                    break
                if line.strip():
                    try:
                        problem = parse(line.rstrip("\n"))
                    except FieldError as error:
                        raise ConfigError(f"{path}, line {line_no}: is no {what} problem: {error}") from None
                    if problem is not None:
                        problems.append(problem)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); a {what} file is wanted") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; a {what} file is wanted") from None
    if not problems:
        raise ConfigError(f"{path}: has no problems; a {what} file has one a line")
    return problems


def check_limit(limit: int | None) -> None:
    """Refuse a limit that leaves no problem.

    Raises:
        ConfigError: it is below 1.
    """
    if limit is not None:
        check_whole("limit", limit, 1)


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
