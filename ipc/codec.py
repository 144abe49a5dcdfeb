"""Typed messages to MessagePack frames and back; nothing is ever unpickled.

A message is a frozen dataclass registered with ``@message(tag)``. On the wire frame 0 is the
MessagePack array ``[tag, field, field, ...]``; every numpy array travels as a raw frame of its
own behind it, and the header holds ``[dtype, shape]`` in its place. Decoding checks tag, number
and type of fields, and refuses everything else with ``ProtocolError``. Fields are only ever
appended, with a default: a shorter message of an older peer decodes.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Union

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
        ProtocolError: unknown tag, wrong number or type of fields, broken MessagePack, a frame
            missing or too many.
    """
    if not frames:
        raise ProtocolError("a message without frames")
    try:
        header = msgpack.unpackb(frames[0], raw=False, use_list=True, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolError(f"not MessagePack: {type(error).__name__}") from error
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
        hints = typing.get_type_hints(cls)
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
    except ProtocolError as error:
        raise ProtocolError(f"{cls.__name__}: {error}") from error
    except SeedmpError as error:
        raise ProtocolError(f"{cls.__name__}: {error}") from error


def _reader(hint: Any) -> Reader:
    """A function that checks and converts one decoded value to the annotated type."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
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
        return lambda value, frames: _read_enum(hint, value)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return lambda value, frames: _read_fields(hint, value, frames)
    if hint is float:
        return lambda value, frames: float(value) if isinstance(value, int) else _expect(float, value)
    return lambda value, frames: _expect(hint, value)


def _expect(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ProtocolError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _read_ints(value: Any, frames: _Frames) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise ProtocolError("expected an array of whole numbers")
    return tuple(value)


def _read_enum(hint: type[enum.Enum], value: Any) -> enum.Enum:
    try:
        return hint(value)
    except ValueError:
        raise ProtocolError(f"{value!r} is not one of {[item.value for item in hint]}") from None


def _read_array(value: Any, frames: _Frames) -> np.ndarray:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)):
        raise ProtocolError("expected [dtype, shape] of an array")
    dtype, shape = ALLOWED_DTYPES.get(value[0]), _read_ints(value[1], frames)
    if dtype is None or any(size < 0 for size in shape):
        raise ProtocolError(f"array of dtype {value[0][:10]!r} and shape {shape[:4]}")
    frame = memoryview(frames.take())
    if frame.nbytes != math.prod(shape) * dtype.itemsize:
        raise ProtocolError(f"an array of shape {shape[:4]} came with {frame.nbytes} bytes")
    result: np.ndarray = np.frombuffer(frame, dtype=dtype).reshape(shape)
    return result
