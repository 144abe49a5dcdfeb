"""Messages made wrong: frames that almost are what was sent."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgpack

from seedmp.ipc import codec

TAGS = sorted(codec.registered())
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 2**32, -(2**31), 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0.5, -0.0,
    1e308, 5e-324, float("nan"), float("inf"), float("-inf"), "", "x", "iid", "deterministic", "\0", "é" * 300, "<i4",
    b"", b"\xff" * 20, [], [0], [[]], [-1], [2**63 - 1], [0, 2**63 - 1], [1] * 100, [0] * 40, [[1], 2], ["<f4", [0, 0]],
    ["<i4", [0, 2**62]], ["<i4", [2**31, 2**31, 2**31, 2**31]], ["|O", [1]], {}, {"a": 1}, msgpack.ExtType(5, b"abc"),
    msgpack.Timestamp(1, 2), *TAGS[:4],
]  # fmt: skip


def places(header: Any) -> list[tuple[list[Any], int]]:
    """Every list in a header, and each index of it."""
    found, todo = [], [header]
    while todo:
        items = todo.pop()
        found += [(items, index) for index in range(len(items))]
        todo += [item for item in items if isinstance(item, list)]
    return found


def _replace(rng: random.Random, items: list[Any], index: int) -> None:
    items[index] = rng.choice(ODD)


def _nudge(rng: random.Random, items: list[Any], index: int) -> None:
    if type(items[index]) is int:
        items[index] = max(-(2**63), min(2**64 - 1, items[index] + rng.choice([-2, -1, 1, 2, 1000, 2**31, 2**62])))
    else:
        items[index] = rng.choice(ODD)


def _delete(rng: random.Random, items: list[Any], index: int) -> None:
    del items[index]


def _repeat(rng: random.Random, items: list[Any], index: int) -> None:
    items[index:index] = [items[index]] * rng.choice([1, 2, 3, 50, 3000])


def _swap(rng: random.Random, items: list[Any], index: int) -> None:
    other = rng.randrange(len(items))
    items[index], items[other] = items[other], items[index]


def _deepen(rng: random.Random, items: list[Any], index: int) -> None:
    for _ in range(rng.choice([1, 2, 5, 100])):
        items[index] = [items[index]]


CHANGES: list[Callable[[random.Random, list[Any], int], None]] = [_replace, _nudge, _delete, _repeat, _swap, _deepen]


def mutate(frames: list[bytes], rng: random.Random) -> list[bytes]:
    """The same message with something wrong in its values, its bytes or its frames; now and then with nothing."""
    frames = list(frames)
    what = rng.random()
    if what < 0.6:
        header = msgpack.unpackb(frames[0])
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            known = places(header)
            if known:
                items, index = rng.choice(known)
                rng.choice(CHANGES)(rng, items, index)
                header = msgpack.unpackb(msgpack.packb(header))  # no list is in two places, or is one of ODD
        if header and rng.random() < 0.05:
            header[0] = rng.choice(TAGS)
        frames[0] = msgpack.packb(header, use_bin_type=True)
    elif what < 0.85:
        number = rng.randrange(len(frames))
        frame = bytearray(frames[number])
        for _ in range(rng.choice([1, 1, 2, 4, 16])):
            if frame:
                frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.2:
            at = rng.randrange(len(frame) + 1)
            frame[at:at] = rng.choice([b"\xdd\xff\xff\xff\xff", b"\xdd\x00\x01\x00\x00" * 200, b"\x91" * 3000, b"\xc1"])
        frames[number] = bytes(frame)
    elif what < 0.93:
        number = rng.randrange(len(frames))
        frames[number] = frames[number][: rng.randrange(len(frames[number]) + 1)] + rng.randbytes(rng.choice([0, 0, 9]))
    elif what < 0.97:
        frames.insert(rng.randrange(len(frames) + 1), rng.choice([b"", *frames, rng.randbytes(12)]))
    else:
        del frames[rng.randrange(len(frames))]
    return frames
