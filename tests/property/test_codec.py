"""Messages survive the wire; whatever else comes is refused with one error."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import types
import typing
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seedmp.errors import ProtocolError
from seedmp.ipc import codec, messages
from seedmp.sampling import MAX_SEED, SamplingParams
from seedmp.token_tree.opt_tree import AdaptiveShape
from tests.helpers.same import same

INTS = st.integers(-(2**63), 2**64 - 1)
FLOATS = st.floats(allow_nan=False)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0, 10),
    draft_temperature=st.none() | st.floats(0, 10),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 100),
    max_tokens=st.integers(1, 1000),
    stop=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 2**31), max_size=3).map(tuple),
    ignore_eos=st.booleans(),
    seed=st.none() | st.integers(0, MAX_SEED),
    n=st.integers(1, 5),
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ARRAYS = st.one_of(
    hnp.arrays("<i4", hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=50)),
    hnp.arrays("<f4", hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=50)),
)
PLAIN: dict[Any, st.SearchStrategy[Any]] = {
    int: INTS,
    float: FLOATS,
    str: TEXTS,
    bytes: st.binary(max_size=30),
    bool: st.booleans(),
    np.ndarray: ARRAYS,
    SamplingParams: PARAMS,
    AdaptiveShape: st.builds(
        AdaptiveShape, st.integers(1, 512), st.integers(1, 512), st.integers(1, 512), st.none() | st.floats(0, 1)
    ),
}
REGISTERED = codec.registered()


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of an annotated type, as they occur in messages."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return st.lists(values_of(args[0]), max_size=4).map(tuple)
    if origin in (typing.Union, types.UnionType):
        return st.none() | st.one_of(*[values_of(arg) for arg in args if arg is not type(None)])
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    if origin is np.ndarray:
        return ARRAYS
    return PLAIN[hint] if hint in PLAIN else instances(hint)


def instances(cls: type) -> st.SearchStrategy[Any]:
    """Random instances of a message."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    return st.builds(cls, **{field.name: values_of(hints[field.name]) for field in fields if field.init})


ANY_MESSAGE = st.sampled_from(sorted(REGISTERED)).flatmap(lambda tag: instances(REGISTERED[tag]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ANY_MESSAGE)
def test_round_trip(msg: Any) -> None:
    frames = codec.encode(msg)
    assert same(codec.decode([bytes(frame) for frame in frames]), msg)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_random_bytes_are_refused(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(frames)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOATS | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(sorted(REGISTERED)), st.lists(JSON, max_size=14), st.lists(st.binary(max_size=8), max_size=2))
def test_wrong_fields_are_refused_or_make_a_valid_message(tag: str, fields: list[Any], more: list[bytes]) -> None:
    frames = [msgpack.packb([tag, *fields], use_bin_type=True), *more]
    try:
        msg = codec.decode(frames)
    except ProtocolError:
        return
    assert type(msg) is REGISTERED[tag]
    assert same(codec.decode([bytes(frame) for frame in codec.encode(msg)]), msg)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(ANY_MESSAGE, st.data())
def test_one_changed_byte_breaks_nothing_else(msg: Any, data: st.DataObject) -> None:
    """Either it is refused, or it is a message all the same; never another error."""
    frames = [bytearray(frame) for frame in codec.encode(msg)]
    frame = data.draw(st.sampled_from([f for f in frames if f]))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(ProtocolError):
        codec.decode([bytes(f) for f in frames])


@pytest.mark.parametrize(
    ("header", "more", "text"),
    [
        (["nobody"], [], "unknown tag 'nobody'"),
        (["cancel"], [], "Cancel: expected 1 to 1 fields"),
        (["cancel", 1, 2], [], "Cancel: expected 1 to 1 fields"),
        (["cancel", True], [], "expected int, got bool"),
        (["cancel", 1], [b"x"], "more frames than arrays"),
        (["scored", 1, ["<f4", [2]]], [], "frame is missing"),
        (["scored", 1, ["<f4", [2]]], [b"1234"], "came with 4 bytes"),
        (["scored", 1, ["|O", [1]]], [b"12345678"], "array of dtype"),
        (["scored", 1, ["<f4", [-1]]], [b""], "array of dtype"),
    ],
)
def test_the_error_says_what_is_wrong(header: list[Any], more: list[bytes], text: str) -> None:
    with pytest.raises(ProtocolError, match=text):
        codec.decode([msgpack.packb(header), *more])


def test_a_field_with_a_default_may_be_missing() -> None:
    assert codec.decode([msgpack.packb(["score", 3, [1], [2], [1]])]) == messages.Score(3, (1,), (2,), (1,), 0)
