"""Typed messages to MessagePack frames and back; nothing is ever unpickled.

A message is a frozen dataclass registered with ``@message(tag)``. On the wire frame 0 is the
MessagePack array ``[tag, field, field, ...]``; every numpy array travels as a raw frame of its
own behind it, and the header holds ``[dtype, shape]`` in its place. Decoding checks tag, number
and type of fields, and refuses everything else with ``ProtocolError``. Fields are only ever
appended, with a default: a shorter message of an older peer decodes.

What a peer may send is bounded: the length of a header, the dimensions of arrays, whole numbers to 64 bits with a sign,
floats to finite ones. A field with narrower limits is annotated with ``Range`` or ``Length``. The cost of decoding
is linear in the bytes that came, whatever sizes they claim.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union

import msgpack
import numpy as np

from seedmp.errors import ProtocolError, SeedmpError

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_: object) -> Callable[[Any], Any]:
        return lambda decorated: decorated


MessageT = TypeVar("MessageT", bound=type)
Reader = Callable[[Any, "_Frames"], Any]

ALLOWED_DTYPES = {"<i4": np.dtype("<i4"), "<f4": np.dtype("<f4")}
MAX_INT = 2**63 - 1  # MessagePack itself allows nothing below -2**63
MAX_HEADER_BYTES = 1 << 24
MAX_LISTS = 1 << 16  # in a header
MAX_DIMS = 4
MAX_SIZE = 1 << 30  # of a dimension
MAX_PEEKED = 3  # numbers at the beginning of a message that was refused
_SMALL_BYTES = 256  # claims of a header so short cannot cost much
_NO_MAPS = {"max_map_len": 0, "max_ext_len": 0}  # no message has any
_BAD_VALUE = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)


@dataclasses.dataclass(frozen=True)
class Range:
    """Annotates a whole number, or each item of a tuple of them: what is allowed."""

    low: int
    high: int


INT64 = Range(-(2**63), MAX_INT)


@dataclasses.dataclass(frozen=True)
class Length:
    """Annotates a text or a tuple: the most characters or items."""

    most: int


@dataclasses.dataclass(frozen=True)
class Refused:
    """A message that could not be decoded, as far as it could be read.

    Args:
        kind: class of the message; None if it is not known.
        numbers: the whole numbers that the message begins with, at most three.
        why: for people.
    """

    kind: type | None
    numbers: tuple[int, ...]
    why: str


_classes: dict[str, type] = {}
_tags: dict[type, str] = {}
_readers: dict[type, tuple[list[Reader], int]] = {}


class _Frames:
    """Raw frames behind the header, taken in order."""

    def __init__(self, frames: Sequence[Any]) -> None:
        self.frames = iter(frames)

    def take(self) -> Any:
        try:
            return next(self.frames)
        except StopIteration:
            raise ProtocolError("an array's frame is missing") from None


@dataclass_transform(frozen_default=True)
def message(tag: str) -> Callable[[MessageT], MessageT]:
    """Register a dataclass as a message under ``tag``."""

    def register(cls: MessageT) -> MessageT:
        frozen: Any = dataclasses.dataclass(frozen=True)(cls)
        if tag in _classes:
            raise ValueError(f"message tag {tag!r} is used twice")
        _classes[tag] = frozen
        _tags[frozen] = tag
        return typing.cast(MessageT, frozen)

    return register


def encode(msg: Any) -> list[bytes | memoryview]:
    """Frames of a message: the header, then one raw frame per array."""
    frames: list[bytes | memoryview] = []
    header = [_tags[type(msg)], *_plain_fields(msg, frames)]
    return [msgpack.packb(header, use_bin_type=True), *frames]


def decode(frames: Sequence[Any]) -> Any:
    """The message in ``frames`` (bytes or anything with the buffer protocol).

    Raises:
        ProtocolError: unknown tag, wrong number, type or range of fields, broken MessagePack, a frame missing or too
            many, a header that is too long. Nothing else.
    """
    if not frames:
        raise ProtocolError("a message without frames")
    header = _unpack(frames[0])
    if not isinstance(header, list) or not header or not isinstance(header[0], str):
        raise ProtocolError("the header is not an array that starts with a tag")
    cls = _classes.get(header[0])
    if cls is None:
        raise ProtocolError(f"unknown tag {header[0][:40]!r}")
    raw = _Frames(frames[1:])
    result = _read_fields(cls, header[1:], raw)
    if next(raw.frames, None) is not None:
        raise ProtocolError(f"{header[0]}: more frames than arrays")
    return result


def _unpack(frame: Any) -> Any:
    """The plain value in a header.

    An array that claims more items than there are bytes for would be allocated before they are missed, and so would
    each array in it. So a header is walked first, without making anything of it.
    """
    num_bytes = memoryview(frame).nbytes
    if num_bytes > MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {num_bytes} bytes: must have at most {MAX_HEADER_BYTES}")
    try:
        if num_bytes > _SMALL_BYTES:
            walker = msgpack.Unpacker(None, max_buffer_size=num_bytes, **_NO_MAPS)
            walker.feed(frame)
            walker.skip()
        return msgpack.unpackb(frame, raw=False, use_list=True, list_hook=_ListCounter(), **_NO_MAPS)
    except (*_BAD_VALUE, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not MessagePack: {type(error).__name__}") from error


class _ListCounter:
    """Called with each list of a header: millions of empty ones fit into few bytes, but not into little memory."""

    def __init__(self) -> None:
        self.num_lists = 0

    def __call__(self, items: list[Any]) -> list[Any]:
        self.num_lists += 1
        if self.num_lists > MAX_LISTS:
            raise ValueError
        return items


def peek(frames: Sequence[Any], why: str) -> Refused:
    """What can be read of a message that ``decode`` refuses, because of ``why``."""
    tag: Any = None
    numbers: list[int] = []
    reader = msgpack.Unpacker(None, raw=False, max_array_len=64, max_str_len=64, max_bin_len=0, **_NO_MAPS)
    try:
        reader.feed(bytes(memoryview(frames[0])[:_SMALL_BYTES]))
        num_fields = reader.read_array_header() - 1
        tag = reader.unpack()
        while len(numbers) < min(num_fields, MAX_PEEKED):
            number = reader.unpack()
            if type(number) is not int or number > MAX_INT:
                break
            numbers.append(number)
    except (*_BAD_VALUE, msgpack.UnpackException, RecursionError):
        pass  # it ends here, as far as it can be read
    return Refused(_classes.get(tag) if isinstance(tag, str) else None, tuple(numbers), why)


def registered() -> dict[str, type]:
    """All messages by tag."""
    return dict(_classes)


def _plain_fields(value: Any, frames: list[bytes | memoryview]) -> list[Any]:
    return [_plain(getattr(value, field.name), frames) for field in dataclasses.fields(value) if field.init]


def _plain(value: Any, frames: list[bytes | memoryview]) -> Any:
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        frames.append(array.data.cast("B") if array.nbytes else b"")
        return [array.dtype.str, list(array.shape)]
    if isinstance(value, enum.Enum):
        return value.value
    if dataclasses.is_dataclass(value):
        return _plain_fields(value, frames)
    if isinstance(value, tuple):
        return [_plain(item, frames) for item in value] if value and not isinstance(value[0], int) else value
    return value


def _read_fields(cls: type, values: Any, frames: _Frames) -> Any:
    if cls not in _readers:
        hints = typing.get_type_hints(cls, include_extras=True)
        fields = [field for field in dataclasses.fields(cls) if field.init]
        required = sum(
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING for field in fields
        )
        _readers[cls] = ([_reader(hints[field.name]) for field in fields], required)
    readers, required = _readers[cls]
    if not isinstance(values, list) or not required <= len(values) <= len(readers):
        raise ProtocolError(f"{cls.__name__}: expected {required} to {len(readers)} fields")
    try:
        return cls(*[read(value, frames) for read, value in zip(readers, values, strict=False)])
    except SeedmpError as error:
        raise ProtocolError(f"{cls.__name__}: {error}") from error
    except _BAD_VALUE as error:  # of a record's own checks
        raise ProtocolError(f"{cls.__name__}: {type(error).__name__}") from error


def _reader(hint: Any) -> Reader:
    """A function that checks and converts one decoded value to the annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _limited(args[0], args[1])
    if origin in (Union, types.UnionType):
        (inner,) = [_reader(arg) for arg in args if arg is not type(None)]
        return lambda value, frames: None if value is None else inner(value, frames)
    if origin is tuple:
        item = _reader(args[0])
        if args[0] is int:
            return _read_ints
        return lambda value, frames: tuple(item(v, frames) for v in _expect(list, value))
    if hint is np.ndarray or origin is np.ndarray:
        return _read_array
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum_reader(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return lambda value, frames: _read_fields(hint, value, frames)
    if hint is int:
        return _read_int
    if hint is float:
        return _read_float
    return lambda value, frames: _expect(hint, value)


def _limited(hint: Any, limit: Range | Length) -> Reader:
    if isinstance(limit, Length):
        inner, most = _reader(hint), limit.most

        def read_length(value: Any, frames: _Frames) -> Any:
            result = inner(value, frames)
            if len(result) > most:
                raise ProtocolError(f"{len(result)} characters or items: must be at most {most}")
            return result

        return read_length
    return _int_reader(limit) if hint is int else _ints_reader(limit)


def _int_reader(limit: Range) -> Reader:
    low, high = limit.low, limit.high

    def read(value: Any, frames: _Frames) -> int:
        if type(value) is not int:
            raise ProtocolError(f"expected int, got {type(value).__name__}")
        if not low <= value <= high:
            raise ProtocolError(f"{value}: must be from {low} to {high}")
        return value

    return read


def _ints_reader(limit: Range) -> Reader:
    low, high = limit.low, limit.high

    def read(value: Any, frames: _Frames) -> tuple[int, ...]:
        if type(value) is not list:
            raise ProtocolError("expected an array of whole numbers")
        if value:
            if set(map(type, value)) != {int}:
                raise ProtocolError("expected an array of whole numbers")
            least, most = min(value), max(value)
            if least < low or most > high:
                raise ProtocolError(f"{least if least < low else most} in an array: must be from {low} to {high}")
        return tuple(value)

    return read


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ProtocolError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


_read_int, _read_ints = _int_reader(INT64), _ints_reader(INT64)


def _read_float(value: Any, frames: _Frames) -> float:
    if type(value) is not int and type(value) is not float:
        raise ProtocolError(f"expected float, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ProtocolError(f"{value}: must be a finite number")
    return float(value)


def _enum_reader(hint: type[enum.Enum]) -> Reader:
    members = {item.value: item for item in hint}

    def read(value: Any, frames: _Frames) -> enum.Enum:
        member = members.get(value) if isinstance(value, str | int) else None
        if member is None:
            raise ProtocolError(f"{str(value)[:40]!r} is not one of {list(members)}")
        return member

    return read


def _read_array(value: Any, frames: _Frames) -> np.ndarray:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
        raise ProtocolError("expected [dtype, shape] of an array")
    dtype, shape = ALLOWED_DTYPES.get(value[0]), value[1]
    if dtype is None:
        raise ProtocolError(f"array of dtype {value[0][:10]!r}: must be one of {list(ALLOWED_DTYPES)}")
    if not isinstance(shape, list) or not 1 <= len(shape) <= MAX_DIMS:
        raise ProtocolError(f"the shape of an array must have 1 to {MAX_DIMS} sizes")
    sizes = _read_ints(shape, frames)
    if min(sizes) < 0 or max(sizes) > MAX_SIZE:
        raise ProtocolError(f"array of dtype {value[0]} and shape {sizes}: sizes must be from 0 to {MAX_SIZE}")
    frame = memoryview(frames.take())
    if frame.nbytes != math.prod(sizes) * dtype.itemsize:
        raise ProtocolError(f"an array of dtype {value[0]} and shape {sizes} came with {frame.nbytes} bytes")
    try:
        result: np.ndarray = np.frombuffer(frame, dtype=dtype).reshape(sizes)
    except ValueError:
        raise ProtocolError(f"array of dtype {value[0]} and shape {sizes}: no array can be so large") from None
    return result
