"""Messages survive the wire; whatever else comes is refused with one error."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import time
import types
import typing
from typing import Annotated, Any

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

INTS = st.integers(-(2**63), codec.MAX_INT)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.floats(0, 10),
    draft_temperature=st.none() | st.floats(0, 10),
    top_p=st.floats(0.01, 1),
    top_k=st.integers(0, 100),
    max_tokens=st.integers(1, 1000),
    stop=st.lists(st.text(min_size=1), max_size=3).map(tuple),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=3).map(tuple),
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
    if origin is Annotated:
        inner, limit = args
        if isinstance(limit, codec.Range):
            allowed = st.integers(limit.low, limit.high)
            return allowed if inner is int else st.lists(allowed, max_size=4).map(tuple)
        return values_of(inner).filter(lambda value: len(value) <= limit.most)
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
    hints = typing.get_type_hints(cls, include_extras=True)
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
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
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


# --- what is claimed, and what it may cost ----------------------------------------------------------

PROPOSAL = ["proposal", 5, 3, 1, 10, 20, 4, [11, 12], [-1, 0], "iid"]


def proposal(**changed: Any) -> list[bytes]:
    """Frames of a proposal with other fields."""
    fields = dict(
        zip(("tag", *(field.name for field in dataclasses.fields(messages.Proposal))), PROPOSAL, strict=False)
    )
    fields |= {"row_ids": ["<i4", [0, 0]], "row_probs": ["<f4", [0, 0]], "drafted_idx": [-1, -1], "draws": []}
    assert set(changed) <= set(fields)
    return [msgpack.packb([*(fields | changed).values()]), b"", b""]


@pytest.mark.parametrize(
    "shape",
    [
        [0, 2**63 - 1], [2**63 - 1, 0], [0, 2**64 - 1], [1] * 100, [0] * 33, [], [2**40], [2**31, 2**31, 0], [-1, 0],
        [0, -(2**63)], [2**62, 4], ["1"], [1.0], [True, 0], [[1]], [None],
    ],
)  # fmt: skip
def test_shapes_that_no_array_has(shape: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(proposal(row_ids=["<i4", shape]))


@pytest.mark.parametrize(
    "changed",
    [
        {"round": -1}, {"epoch": 2**40}, {"ready_ns": 2**63}, {"ready_ns": 2**64 - 1}, {"started_ns": 1.0},
        {"token_ids": [1, 2**63]}, {"token_ids": [-1, 2]}, {"parents": [-2, 0]}, {"draws": [2**31]},
        {"drafted_idx": [-(2**63), 0]}, {"kind": "IID"}, {"kind": []}, {"kind": {}}, {"kind": None}, {"kind": 0},
        {"kind": msgpack.ExtType(4, b"x")}, {"kind": msgpack.Timestamp(1)},
    ],
    ids=str,
)  # fmt: skip
def test_fields_out_of_range(changed: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        codec.decode(proposal(**changed))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), True, 2**2000, "1"])
def test_only_finite_numbers_are_floats(value: Any) -> None:
    header = ["stats-reply", 1, ["rounds"], [value]]
    with pytest.raises((ProtocolError, OverflowError)):  # the latter: MessagePack cannot even say it
        codec.decode([msgpack.packb(header)])


def nested_claims(levels: int, claimed: int) -> bytes:
    """Arrays in arrays, each of which says that it has many items."""
    return b"".join(b"\xdd" + claimed.to_bytes(4, "big") for _ in range(levels))


SIZE = 900_000
COSTLY = {
    "a long shape": proposal(row_ids=["<i4", [2**63 - 1] * (SIZE // 9)]),
    "a long shape of ones": proposal(row_ids=["<i4", [1] * SIZE]),
    "arrays that claim much": [nested_claims(1000, SIZE).ljust(SIZE, b"\0")],
    "arrays that claim too much": [nested_claims(1000, 2**32 - 1).ljust(SIZE, b"\0")],
    "deep": [b"\x91" * SIZE],
    "empty lists": [b"\xdd" + SIZE.to_bytes(4, "big") + b"\x90" * SIZE],
    "a map": [b"\xdf\xff\xff\xff\xff".ljust(SIZE, b"\xa0")],
    "a long tag": [msgpack.packb(["x" * SIZE])],
    "a long enum": proposal(kind="x" * SIZE),
    "a long number list": proposal(token_ids=[2**64 - 1] * (SIZE // 9)),
    "many frames": [*proposal(), *[b""] * (SIZE // 10)],
    "many fields": [msgpack.packb(["cancel", *range(SIZE // 5)])],
    "too long": [b"\x91" + b"\0" * codec.MAX_HEADER_BYTES],
}


@pytest.mark.parametrize("name", COSTLY)
def test_a_refusal_costs_no_more_than_its_bytes(name: str) -> None:
    start = time.process_time()
    with pytest.raises(ProtocolError) as caught:
        codec.decode(COSTLY[name])
    codec.peek(COSTLY[name], str(caught.value))
    assert time.process_time() - start < 1  # no message may stall a worker longer; 91 s were seen
    assert len(str(caught.value)) < 400


@settings(max_examples=300, deadline=None, derandomize=True)
@given(ANY_MESSAGE, st.data())
def test_what_was_refused_can_still_say_whose_it_was(msg: Any, data: st.DataObject) -> None:
    """Cut anywhere: the leading numbers that are whole are read, and none that was not sent."""
    frames = [bytes(frame) for frame in codec.encode(msg)]
    (tag, *fields) = msgpack.unpackb(frames[0])
    numbers = fields[: next((i for i, f in enumerate(fields) if type(f) is not int), len(fields))][: codec.MAX_PEEKED]
    whole = codec.peek(frames, "why")
    assert whole == codec.Refused(REGISTERED[tag], tuple(numbers), "why")
    cut = codec.peek([frames[0][: data.draw(st.integers(0, len(frames[0])))]], "why")
    assert cut.kind in (None, REGISTERED[tag]) and cut.numbers == tuple(numbers[: len(cut.numbers)])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=2))
def test_peeking_never_fails(frames: list[bytes]) -> None:
    assert codec.peek(frames, "why").why == "why"
