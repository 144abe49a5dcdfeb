"""Checks of single values: the one door that settings, parameters and prompts come in by.

What numpy and torch make of a number, a flag, a text or a list of token ids becomes what Python and the wire know.
A bool is no number, and a number is no flag. Every message names the value and what is allowed.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Sequence, Set
from itertools import islice
from typing import Any, TypeVar

from seedmp.errors import ConfigError, SeedmpError

T = TypeVar("T")

MAX_WHOLE = 2**63 - 1  # of the wire
MAX_TOKEN_ID = 2**31 - 1  # arrays of token ids are int32
MAX_TIMEOUT_S = 1e6  # 11 days; waits of the operating system count milliseconds in 31 bits
MAX_TEXTS = 1 << 16  # texts in one list
MAX_SHOWN = 200  # characters of a value in a message


def plain(value: Any) -> Any:
    """A numpy or torch scalar as Python's own; everything else as it is.

    An array or a tensor without dimensions is a scalar, too.
    """
    if type(value) in (int, float, str, bool) or value is None:
        return value
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        with contextlib.suppress(RuntimeError, TypeError, ValueError):  # a tensor without data has no number
            return value.item()
    return value


def plain_parts(value: Any, depth: int = 2) -> Any:
    """``plain`` for all that is in lists and tuples, ``depth`` levels down; an array becomes a list."""
    if type(value) in (list, tuple) and depth > 0:
        return type(value)(plain_parts(item, depth - 1) for item in value)
    return list(_items(value)) if _is_array(value) else plain(value)


def shown(value: Any) -> str:
    """A value in a message: at most 200 characters, whatever the value is."""
    try:
        text = repr(value)
    except Exception:  # a number of 5,000 digits, or a class of the user's whose repr fails
        text = f"<{type(value).__name__}>"
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def check_whole(
    name: str, value: Any, low: int, high: int | None = None, *, error: type[SeedmpError] = ConfigError
) -> int:
    """``value`` as an int, if it is a whole number from ``low`` to ``high``; ``high=None``: to what a message can hold.

    Args:
        name: of the setting, for the message.
        error: class that is raised.

    Raises:
        ConfigError (or ``error``): it is not; a bool is no number.
    """
    number = plain(value)
    if isinstance(number, int) and not isinstance(number, bool):
        number = int(number)
        if low <= number <= (MAX_WHOLE if high is None else high):
            return number
    allowed = f">= {low}" if high is None else f"from {low} to {high}"
    if high is None and isinstance(number, int) and number > MAX_WHOLE:
        allowed = f"from {low} to {MAX_WHOLE}"
    raise error(f"{name}={shown(value)}: must be a whole number {allowed}")


def check_number(
    name: str,
    value: Any,
    low: float,
    high: float | None = None,
    *,
    above: bool = False,
    error: type[SeedmpError] = ConfigError,
) -> float:
    """``value`` as an int or a float, if it is a finite number from ``low`` to ``high``; ``high=None``: no upper limit.

    Args:
        name: of the setting, for the message.
        above: ``low`` itself is refused.
        error: class that is raised.

    Raises:
        ConfigError (or ``error``): it is not; a bool is no number, nor is what no float can hold.
    """
    number = plain(value)
    if isinstance(number, int | float) and not isinstance(number, bool) and _is_finite(number):
        number = int(number) if isinstance(number, int) else float(number)
        if (number > low if above else number >= low) and (high is None or number <= high):
            return number
    if high is None:
        allowed = f"{'>' if above else '>='} {low:g}"
    else:
        allowed = f"in ({low:g}, {high:g}]" if above else f"from {low:g} to {high:g}"
    raise error(f"{name}={shown(value)}: must be a finite number {allowed}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False  # an int beyond the floats


def check_timeout(value: Any, *, name: str = "timeout", error: type[SeedmpError] = ConfigError) -> float | None:
    """Seconds to wait, None without a limit; what is longer than 11 days is 11 days.

    Raises:
        ConfigError (or ``error``): it is neither None nor a finite number >= 0.
    """
    if value is None:
        return None
    try:
        return min(float(check_number(name, value, 0, error=error)), MAX_TIMEOUT_S)
    except error:
        raise error(f"{name}={shown(value)}: must be a finite number of seconds >= 0, or None") from None


def check_flag(name: str, value: Any, *, error: type[SeedmpError] = ConfigError) -> bool:
    """``value``, if it is True or False; numpy's and torch's are, 1 and 0 are not.

    Raises:
        ConfigError (or ``error``): it is not.
    """
    flag = plain(value)
    if isinstance(flag, bool):
        return flag
    raise error(f"{name}={shown(value)}: must be True or False")


def check_text(
    name: str,
    value: Any,
    *,
    empty: bool = True,
    max_len: int | None = None,
    error: type[SeedmpError] = ConfigError,
) -> str:
    """``value`` as a plain str, if it is text.

    Args:
        empty: whether text without a character is allowed.
        max_len: in characters.

    Raises:
        ConfigError (or ``error``): it is not, or holds half of a surrogate pair, which no encoding can carry.
    """
    text = plain(value)
    if not isinstance(text, str) or not (text or empty) or (max_len is not None and len(text) > max_len):
        size = "" if max_len is None else f" of at most {max_len} characters"
        raise error(f"{name}={shown(value)}: must be {'text' if empty else 'a non-empty str'}{size}")
    text = str.__str__(text)  # of a subclass its characters
    try:
        text.encode()
    except UnicodeEncodeError as fault:
        raise error(
            f"{name}={shown(value)}: character {fault.start} is half of a surrogate pair, which is no text; "
            "must be text that UTF-8 can encode"
        ) from None
    return text


def check_texts(
    name: str, value: Any, *, empty: bool = True, what: str = "text", error: type[SeedmpError] = ConfigError
) -> tuple[str, ...]:
    """Several texts; an array of strings is one list of them.

    Args:
        empty: whether a text without a character is allowed.
        what: one of them, for the message.

    Raises:
        ConfigError (or ``error``): it is no list, one of them is no text, or there are too many.
    """
    allowed = f"must be a list; every {what} must be {'text' if empty else 'a non-empty str'}"
    value = plain(value)
    refused = isinstance(value, str | bytes | bytearray | memoryview | dict) or not isinstance(value, Iterable)
    if refused or not (_is_array(value) or not hasattr(value, "ndim")):
        raise error(f"{name}={shown(value)}: {allowed}")
    texts: list[str] = []
    for item in islice(_items(value), MAX_TEXTS + 1):
        if not isinstance(plain(item), str) or not (item or empty):
            raise error(f"{name}={shown(value)}: {allowed}, not {shown(item)}")
        texts.append(check_text(name, item, error=error))
    if len(texts) > MAX_TEXTS:
        raise error(f"{name}={shown(value)}: must be at most {MAX_TEXTS} texts")
    return tuple(texts)


def check_ids(name: str, value: Any, *, error: type[SeedmpError] = ConfigError) -> tuple[int, ...]:
    """Token ids: a list or other sequence, a set, or an array or tensor with one dimension.

    Raises:
        ConfigError (or ``error``): it is none of these (bytes are not), or one is no whole number from 0 to 2**31 - 1.
    """
    allowed = f"must be a list of token ids, each a whole number from 0 to {MAX_TOKEN_ID}"
    refused = isinstance(value, str | bytes | bytearray | memoryview)
    if refused or not (isinstance(value, Sequence | Set) or _is_array(value)):
        raise error(f"{name}={shown(value)}: {allowed}")
    ids = tuple(_items(value))
    if not all(type(token_id) is int for token_id in ids):
        ids = tuple(map(plain, ids))
        strange = next((i for i in ids if not isinstance(i, int) or isinstance(i, bool)), None)
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise error(f"{name}={shown(value)}: {allowed}, not {shown(strange)}")
        ids = tuple(map(int, ids))
    if ids and not (min(ids) >= 0 and max(ids) <= MAX_TOKEN_ID):
        strange = next(i for i in ids if not 0 <= i <= MAX_TOKEN_ID)
        raise error(f"{name}={shown(value)}: token id {shown(strange)}; {allowed}")
    return ids


def check_wholes(
    name: str, value: Any, low: int, high: int | None = None, *, error: type[SeedmpError] = ConfigError
) -> tuple[int, ...]:
    """Several whole numbers; else as ``check_whole``."""
    if isinstance(value, str | bytes | bytearray | memoryview) or not (isinstance(value, Sequence) or _is_array(value)):
        raise error(f"{name}={shown(value)}: must be a list of whole numbers")
    return tuple(check_whole(name, item, low, high, error=error) for item in _items(value))


def check_all(name: str, value: Any, kind: type[T], *, error: type[SeedmpError] = ConfigError) -> list[T]:
    """Several objects of one class, as a list.

    Raises:
        ConfigError (or ``error``): it is no list or tuple, or something else is in it.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(item, kind) for item in value):
        raise error(f"{name}={shown(value)}: must be a list of {kind.__name__}")
    return list(value)


def check_path(name: str, value: Any, *, error: type[SeedmpError] = ConfigError) -> str:
    """The path of a file or folder, or a hub id, as text.

    Raises:
        ConfigError (or ``error``): it is neither text nor a path, is empty, or has a NUL character.
    """
    path = os.fspath(value) if isinstance(value, os.PathLike) else plain(value)
    if isinstance(path, str) and path and "\0" not in path:
        with contextlib.suppress(UnicodeEncodeError):  # half of a surrogate pair
            os.fsencode(path)
            return str.__str__(path)
    raise error(f"{name}={shown(value)}: must be a path, as text or as a pathlib.Path")


def check_one_of(name: str, value: Any, allowed: Iterable[Any], *, error: type[SeedmpError] = ConfigError) -> Any:
    """The one of ``allowed`` that ``value`` is.

    Raises:
        ConfigError (or ``error``): it is none; the message lists all that are allowed.
    """
    allowed, value = tuple(allowed), plain(value)
    for item in allowed:
        if isinstance(value, type(item)) and value == item:
            return item
    raise error(f"{name}={shown(value)}: must be one of {', '.join(map(str, allowed))}")


def _is_array(value: Any) -> bool:
    return getattr(value, "ndim", None) == 1 and callable(getattr(value, "tolist", None))


def _items(value: Any) -> Iterable[Any]:
    """What is in a list; an array's numbers as Python's own.

    A tensor without readable numbers (on the meta device, sparse) goes on as it is: the check of its items refuses it
    by name.
    """
    if _is_array(value):
        with contextlib.suppress(RuntimeError, TypeError, ValueError, NotImplementedError):
            return value.tolist()  # type: ignore[no-any-return]
    return value  # type: ignore[no-any-return]
